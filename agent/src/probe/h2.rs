//! HTTP/2 with prior knowledge as far as one request on a fresh connection needs it: one flight of frames there, the answer's
//! status and first bytes back. It must not know what the bytes mean.
//!
//! A general client would be as much code again as everything else that probes; nothing here is kept between requests, so
//! there is no state to get wrong: no dynamic header table, no flow control, no second stream.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types of RFC 9113, section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The first stream of a client.
const STREAM: u32 = 1;

/// Largest frame a peer may send that was told nothing else, and so the largest that is sent.
const FRAME_MAX: usize = 16 * 1024;

/// Frames read for one answer: a peer that only sends others is given up.
const FRAMES_MAX: usize = 64;

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// Everything a client sends to have one request answered.
pub(super) fn request(
    method: &str,
    path: &str,
    authority: &str,
    headers: &[(&str, &str)],
    body: Option<&[u8]>,
) -> Vec<u8> {
    let mut block = Vec::with_capacity(256);
    let pseudo = [(":method", method), (":scheme", "http"), (":path", path), (":authority", authority)];
    for (name, value) in pseudo.iter().chain(headers) {
        // A literal field that nobody on the way should remember, with a literal name.
        block.push(0x10);
        string(&mut block, &name.to_ascii_lowercase());
        string(&mut block, value);
    }
    let mut bytes = PREFACE.to_vec();
    frame(&mut bytes, SETTINGS, 0, 0, &[]);
    let mut kind = HEADERS;
    let mut flags = if body.is_none() { END_STREAM } else { 0 };
    let frames = block.len().div_ceil(FRAME_MAX);
    for (number, part) in block.chunks(FRAME_MAX).enumerate() {
        flags |= if number + 1 == frames { END_HEADERS } else { 0 };
        frame(&mut bytes, kind, flags, STREAM, part);
        (kind, flags) = (CONTINUATION, 0);
    }
    if let Some(body) = body {
        frame(&mut bytes, DATA, END_STREAM, STREAM, body);
    }
    bytes
}

/// Sends what [`request`] made, and reads until the status and `body_bytes` of the body are there, or the answer ends.
pub(super) async fn exchange(
    mut stream: TcpStream,
    request: &[u8],
    body_bytes: usize,
) -> Result<Answer, String> {
    stream.write_all(request).await.map_err(|error| error.to_string())?;
    let mut status = None;
    let mut body = Vec::new();
    for number in 0..FRAMES_MAX {
        let frame = next(&mut stream).await?;
        let broken = || "did not answer in HTTP/2".to_owned();
        // A server's first frame is always its settings.
        if number == 0 && frame.kind != SETTINGS {
            return Err(broken());
        }
        match (frame.kind, frame.stream) {
            (SETTINGS, _) if frame.flags & ACK == 0 => {
                let mut ack = Vec::with_capacity(9);
                self::frame(&mut ack, SETTINGS, ACK, 0, &[]);
                stream.write_all(&ack).await.map_err(|error| error.to_string())?;
            }
            // Informational answers come before the one that is waited for, trailers after it.
            (HEADERS, STREAM) if status.is_none() => {
                let block = frame.content().ok_or_else(broken)?;
                status = Some(first_field_status(block).ok_or_else(broken)?).filter(|status| *status >= 200);
            }
            (DATA, STREAM) => body.extend_from_slice(frame.content().ok_or_else(broken)?),
            (RST_STREAM, STREAM) | (GOAWAY, _) => {
                let at = if frame.kind == GOAWAY { 4 } else { 0 };
                let code = frame.payload.get(at..at + 4).and_then(|code| code.try_into().ok());
                let code = code.map_or(0, u32::from_be_bytes);
                return Err(format!("refused the request with HTTP/2 error {code}"));
            }
            _ => {}
        }
        let ended =
            frame.stream == STREAM && matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0;
        if let Some(status) = status.filter(|_| ended || body.len() >= body_bytes) {
            return Ok(Answer { status, body });
        }
        if ended {
            return Err(broken());
        }
    }
    Err(format!("sent {FRAMES_MAX} frames and no answer"))
}

impl Frame {
    /// The payload without padding and priority.
    fn content(&self) -> Option<&[u8]> {
        let mut content = self.payload.as_slice();
        if self.flags & PADDED != 0 {
            let (padding, rest) = content.split_first()?;
            content = rest.get(..rest.len().checked_sub(usize::from(*padding))?)?;
        }
        if self.kind == HEADERS && self.flags & PRIORITY != 0 {
            content = content.get(5..)?;
        }
        Some(content)
    }
}

async fn next(stream: &mut TcpStream) -> Result<Frame, String> {
    let closed = |_| "closed the connection before it answered".to_owned();
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.map_err(closed)?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    if length > FRAME_MAX {
        return Err("did not answer in HTTP/2".to_owned());
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await.map_err(closed)?;
    let id = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
    Ok(Frame { kind: head[3], flags: head[4], stream: id, payload })
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// A string of RFC 7541, section 5.2, without Huffman coding.
fn string(out: &mut Vec<u8>, text: &str) {
    let mut length = text.len();
    if length < 127 {
        out.push(length as u8);
    } else {
        out.push(127);
        length -= 127;
        while length >= 128 {
            out.push((length % 128) as u8 | 0x80);
            length /= 128;
        }
        out.push(length as u8);
    }
    out.extend_from_slice(text.as_bytes());
}

/// The value of `:status`, which must be an answer's first field.
fn first_field_status(block: &[u8]) -> Option<u16> {
    /// Entries 8 to 14 of the static table.
    const STATIC: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    let mut at = 0;
    // Changes of the table's size come first, and change nothing: there is none.
    while block.get(at)? & 0xe0 == 0x20 {
        let long = block[at] & 0x1f == 0x1f;
        at += 1;
        while long && block.get(at)? & 0x80 != 0 {
            at += 1;
        }
        at += usize::from(long);
    }
    let first = *block.get(at)?;
    let value = match first {
        0x88..=0x8e => return Some(STATIC[usize::from(first - 0x88)]),
        // A literal with the name of one of those entries.
        0x48..=0x4e | 0x08..=0x0e | 0x18..=0x1e => block.get(at + 1..)?,
        // A literal with a literal name.
        0x40 | 0x00 | 0x10 => {
            let rest = block.get(at + 1..)?;
            match rest.strip_prefix(b"\x07:status") {
                Some(value) => value,
                None => rest.strip_prefix(&[0x85, 0xb8, 0x84, 0x8d, 0x36, 0xa3])?,
            }
        }
        _ => return None,
    };
    digits(value)
}

/// Three digits, plain or in the Huffman code of RFC 7541, appendix B.
fn digits(string: &[u8]) -> Option<u16> {
    let (length, rest) = string.split_first()?;
    let text = rest.get(..usize::from(length & 0x7f))?;
    if length & 0x80 == 0 {
        return std::str::from_utf8(text).ok().filter(|text| text.len() == 3)?.parse().ok();
    }
    // Three digits take 15 to 18 bits.
    if !matches!(text.len(), 2 | 3) {
        return None;
    }
    let bits = text.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (32 - 8 * text.len());
    let mut number = 0;
    let mut at = 0;
    for _ in 0..3 {
        let six = (bits << at) >> 26;
        // `0` to `2` are the five bits 0 to 2, `3` to `9` the six bits 0x19 to 0x1f.
        let (digit, width) = match six {
            0..=5 => (six >> 1, 5),
            0x19..=0x1f => (six - 0x16, 6),
            _ => return None,
        };
        number = number * 10 + digit;
        at += width;
    }
    u16::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_in_every_form_it_may_have() {
        let table: [(&[u8], Option<u16>); 14] = [
            (&[0x88], Some(200)),
            (&[0x8d, 0x5f], Some(404)),
            (&[0x20, 0x3f, 0xe1, 0x1f, 0x8e], Some(500)),
            (b"\x48\x03302", Some(302)),
            (b"\x08\x03503", Some(503)),
            (b"\x10\x07:status\x03429", Some(429)),
            // RFC 7541, appendix C.6.1.
            (&[0x48, 0x82, 0x64, 0x02], Some(302)),
            // C.6.2: the first field is a 307.
            (&[0x48, 0x83, 0x64, 0x0e, 0xff], Some(307)),
            (&[0x82], None),
            (&[], None),
            (&[0x48], None),
            (b"\x48\x0330", None),
            (&[0x48, 0x82, 0xff, 0xff], None),
            (&[0x3f, 0xff], None),
        ];
        for (block, expected) in table {
            assert_eq!(first_field_status(block), expected, "{block:x?}");
        }
    }

    #[test]
    fn padding_and_priority_are_no_content() {
        let content = |kind, flags, payload: &[u8]| {
            Frame { kind, flags, stream: 1, payload: payload.to_vec() }.content().map(<[u8]>::to_vec)
        };
        assert_eq!(content(DATA, 0, b"abc"), Some(b"abc".to_vec()));
        assert_eq!(content(DATA, PADDED, b"\x02abc"), Some(b"a".to_vec()));
        assert_eq!(content(HEADERS, PADDED | PRIORITY, b"\x01pppppxy"), Some(b"x".to_vec()));
        assert_eq!(content(DATA, PADDED, b"\x04abc"), None);
        assert_eq!(content(HEADERS, PRIORITY, b"abc"), None);
    }
}
