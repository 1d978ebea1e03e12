//! How bodies are told apart from what follows them (RFC 9112, 6 and 7): a length, chunks, or the end of the connection.
//!
//! Pure: takes bytes as they come, in whatever pieces, gives frames, and the other way round. It must not know sockets.

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HOST, HeaderMap, TRANSFER_ENCODING};
use http_body::Frame;

use super::outbox::Outbox;
use super::{FIELDS_MAX, Malformed, heads};

/// Longest line before a chunk, bytes: 16 digits, and room for extensions, which nobody uses.
const CHUNK_LINE_MAX: usize = 4 * 1024;

/// Digits of a chunk's size at most: as many as 64 bits have.
const SIZE_DIGITS_MAX: usize = 16;

/// Largest trailers, bytes; they are what a head's end would be.
const TRAILERS_MAX: usize = 16 * 1024;

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Empty,
    /// Bytes, at least one.
    Length(u64),
    Chunked,
    /// The connection's end is the body's.
    UntilClose,
}

/// Takes a body out of received bytes.
#[derive(Debug)]
pub(crate) enum Decoder {
    Done,
    /// Bytes that are still to come.
    Length(u64),
    /// Before the line with a chunk's size.
    Size,
    /// Bytes of the chunk that are still to come.
    Chunk(u64),
    /// Before the line's end after a chunk.
    ChunkEnd,
    Trailers,
    UntilClose,
}

impl Decoder {
    pub(crate) fn new(framing: Framing) -> Self {
        match framing {
            Framing::Empty | Framing::Length(0) => Self::Done,
            Framing::Length(bytes) => Self::Length(bytes),
            Framing::Chunked => Self::Size,
            Framing::UntilClose => Self::UntilClose,
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Bytes to come, if that is known.
    pub(crate) fn remaining(&self) -> Option<u64> {
        match self {
            Self::Done => Some(0),
            Self::Length(bytes) => Some(*bytes),
            _ => None,
        }
    }

    /// The next piece. `None`: it needs more bytes, or the body is [done](Self::is_done).
    pub(crate) fn decode(&mut self, received: &mut BytesMut) -> Result<Option<Frame<Bytes>>, Malformed> {
        loop {
            match self {
                Self::Done => return Ok(None),
                _ if received.is_empty() => return Ok(None),
                Self::UntilClose => return Ok(Some(Frame::data(received.split().freeze()))),
                Self::Length(left) => {
                    let data = take(received, left);
                    if *left == 0 {
                        *self = Self::Done;
                    }
                    return Ok(Some(Frame::data(data)));
                }
                Self::Chunk(left) => {
                    let data = take(received, left);
                    if *left == 0 {
                        *self = Self::ChunkEnd;
                    }
                    return Ok(Some(Frame::data(data)));
                }
                Self::ChunkEnd => match received[..] {
                    [b'\r', b'\n', ..] => {
                        received.advance(2);
                        *self = Self::Size;
                    }
                    [b'\r'] => return Ok(None),
                    _ => return Err(Malformed::Chunk),
                },
                Self::Size => {
                    let Some((line, size)) = chunk_line(received)? else { return Ok(None) };
                    received.advance(line);
                    *self = if size == 0 { Self::Trailers } else { Self::Chunk(size) };
                }
                Self::Trailers => {
                    let Some(trailers) = take_trailers(received)? else { return Ok(None) };
                    *self = Self::Done;
                    return Ok((!trailers.is_empty()).then(|| Frame::trailers(trailers)));
                }
            }
        }
    }

    /// The connection has ended. Returns whether that is this body's end too.
    pub(crate) fn close(&mut self) -> bool {
        if matches!(self, Self::UntilClose) {
            *self = Self::Done;
        }
        self.is_done()
    }
}

fn take(received: &mut BytesMut, left: &mut u64) -> Bytes {
    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(received.len());
    *left -= count as u64;
    received.split_to(count).freeze()
}

/// The line before a chunk: its length and the chunk's size. `None`: it needs more.
///
/// Strict, since whoever reads the same bytes before or after may see another line: a size must be there, and a line ends
/// with CRLF, has no other line end and no other control character in it.
fn chunk_line(received: &[u8]) -> Result<Option<(usize, u64)>, Malformed> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).map(u64::from);
    let digits = received.iter().map_while(digit).take(SIZE_DIGITS_MAX + 1);
    let (count, size) = digits.fold((0, 0_u64), |(count, size), digit| (count + 1, size << 4 | digit));
    if count == 0 || count > SIZE_DIGITS_MAX {
        return Err(Malformed::Chunk);
    }
    let rest = &received[count..];
    let is_text = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
    let text = rest.iter().take(CHUNK_LINE_MAX).take_while(|byte| is_text(byte)).count();
    let has_extension = rest[..text].iter().find(|byte| !matches!(byte, b' ' | b'\t'));
    if has_extension.is_some_and(|byte| *byte != b';') {
        return Err(Malformed::Chunk);
    }
    match rest[text..] {
        [b'\r', b'\n', ..] => Ok(Some((count + text + 2, size))),
        [] | [b'\r'] if received.len() < CHUNK_LINE_MAX => Ok(None),
        _ => Err(Malformed::Chunk),
    }
}

fn take_trailers(received: &mut BytesMut) -> Result<Option<HeaderMap>, Malformed> {
    if received.starts_with(b"\r\n") {
        received.advance(2);
        return Ok(Some(HeaderMap::new()));
    }
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    match httparse::parse_headers(received, &mut fields) {
        Ok(httparse::Status::Complete((length, fields))) => {
            let trailers = heads::fields(fields).ok_or(Malformed::Trailers)?;
            received.advance(length);
            Ok(Some(trailers))
        }
        Ok(httparse::Status::Partial) if received.len() < TRAILERS_MAX => Ok(None),
        _ => Err(Malformed::Trailers),
    }
}

/// A body is not what its head said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misfit {
    #[error("the body is longer than its Content-Length")]
    Long,
    #[error("the body is shorter than its Content-Length")]
    Short,
}

/// Puts a body into bytes to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoder {
    /// Bytes that are still to come.
    Length(u64),
    Chunked,
    UntilClose,
}

impl Encoder {
    pub(crate) fn new(framing: Framing) -> Self {
        match framing {
            Framing::Empty => Self::Length(0),
            Framing::Length(bytes) => Self::Length(bytes),
            Framing::Chunked => Self::Chunked,
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Nothing more may come, and the end is clear without saying it.
    pub(crate) fn is_full(&self) -> bool {
        *self == Self::Length(0)
    }

    /// Add a piece, for which the outbox must have room.
    pub(crate) fn encode(&mut self, frame: Frame<Bytes>, out: &mut Outbox) -> Result<(), Misfit> {
        let data = match frame.into_data() {
            Ok(data) if data.is_empty() => return Ok(()),
            Ok(data) => data,
            Err(frame) => {
                if let (Self::Chunked, Ok(trailers)) = (*self, frame.into_trailers()) {
                    out.text().extend_from_slice(b"0\r\n");
                    put_trailers(&trailers, out.text());
                    out.text().extend_from_slice(b"\r\n");
                    *self = Self::Length(0);
                }
                return Ok(());
            }
        };
        match self {
            Self::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(Misfit::Long)?;
                out.put(data);
            }
            Self::Chunked => {
                heads::put_hex(data.len(), out.text());
                out.text().extend_from_slice(b"\r\n");
                out.put(data);
                out.text().extend_from_slice(b"\r\n");
            }
            Self::UntilClose => out.put(data),
        }
        Ok(())
    }

    /// The body has ended.
    pub(crate) fn end(self, out: &mut Outbox) -> Result<(), Misfit> {
        match self {
            Self::Length(0) | Self::UntilClose => Ok(()),
            Self::Length(_) => Err(Misfit::Short),
            Self::Chunked => {
                out.text().extend_from_slice(b"0\r\n\r\n");
                Ok(())
            }
        }
    }
}

/// Fields that say where a message ends or goes may not come after it (RFC 9110, 6.5.1).
fn put_trailers(trailers: &HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in trailers {
        if ![CONTENT_LENGTH, TRANSFER_ENCODING, HOST].contains(name) {
            heads::put_field(name.as_str(), value.as_bytes(), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// What a decoder makes of bytes that come in these pieces: data, trailers, and what is left.
    fn decoded(framing: Framing, pieces: &[&[u8]]) -> Result<(Vec<u8>, HeaderMap, Vec<u8>, bool), Malformed> {
        let (mut decoder, mut received) = (Decoder::new(framing), BytesMut::new());
        let (mut data, mut trailers) = (Vec::new(), HeaderMap::new());
        for piece in pieces {
            received.extend_from_slice(piece);
            while let Some(frame) = decoder.decode(&mut received)? {
                match frame.into_data() {
                    Ok(bytes) => data.extend_from_slice(&bytes),
                    Err(frame) => trailers = frame.into_trailers().unwrap(),
                }
            }
        }
        Ok((data, trailers, received.to_vec(), decoder.is_done()))
    }

    #[test]
    fn bodies_end_where_their_heads_say() {
        let whole = |framing, bytes: &'static [u8]| {
            let (data, _, left, done) = decoded(framing, &[bytes]).unwrap();
            (String::from_utf8(data).unwrap(), String::from_utf8(left).unwrap(), done)
        };
        let said = |data: &str, left: &str, done| (data.to_owned(), left.to_owned(), done);
        assert_eq!(whole(Framing::Empty, b"GET"), said("", "GET", true));
        assert_eq!(whole(Framing::Length(3), b"abcGET"), said("abc", "GET", true));
        assert_eq!(whole(Framing::Length(5), b"abc"), said("abc", "", false));
        assert_eq!(whole(Framing::UntilClose, b"abc"), said("abc", "", false));
        assert_eq!(whole(Framing::Chunked, b"3\r\nabc\r\n0\r\n\r\nGET"), said("abc", "GET", true));
        assert_eq!(
            whole(Framing::Chunked, b"3;x=y\r\nabc\r\n0\r\na: b\r\n\r\nGET"),
            said("abc", "GET", true)
        );
        assert_eq!(
            whole(Framing::Chunked, b"0003 ;x=\"\xc3\xa4\"\r\nabc\r\n0 \r\n\r\n"),
            said("abc", "", true)
        );
        assert_eq!(whole(Framing::Chunked, b"3\r\nabc\r\nfFfFfFfFfFfFfFfF\r\n"), said("abc", "", false));
        assert_eq!(whole(Framing::Chunked, b"3\r\nabc\r\n0\r\n"), said("abc", "", false));
    }

    #[test]
    fn chunks_that_are_none_are_refused() {
        for bytes in [
            &b"x\r\nabc\r\n"[..],
            b"-1\r\nabc\r\n",
            b"3\r\nabcd\r\n",
            b"3\r\nabc\n0\r\n\r\n",
            b"11111111111111111\r\n",
            // Whoever ends a line at LF sees other chunks here.
            b"2;\nxx\r\nab\r\n0\r\n\r\n",
            b"2;x\ry\r\nab\r\n0\r\n\r\n",
            b"2\nab\r\n0\r\n\r\n",
            b"2;\0\r\nab\r\n0\r\n\r\n",
            b"2 x\r\nab\r\n0\r\n\r\n",
            // No size is not the size 0.
            b"\r\n\r\n",
            b";x\r\n\r\n",
            b" 2\r\nab\r\n0\r\n\r\n",
            b"+2\r\nab\r\n0\r\n\r\n",
            b"0x2\r\nab\r\n0\r\n\r\n",
            b"0\r\nno colon\r\n\r\n",
        ] {
            assert!(decoded(Framing::Chunked, &[bytes]).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
        let long = [b"3;".to_vec(), vec![b'x'; CHUNK_LINE_MAX]].concat();
        assert_eq!(decoded(Framing::Chunked, &[&long]), Err(Malformed::Chunk));
        let long = [b"0\r\na: ".to_vec(), vec![b'x'; TRAILERS_MAX]].concat();
        assert_eq!(decoded(Framing::Chunked, &[&long]), Err(Malformed::Trailers));
    }

    #[test]
    fn a_body_must_have_the_length_it_was_said_to_have() {
        let mut out = Outbox::default();
        let mut encoder = Encoder::new(Framing::Length(3));
        encoder.encode(Frame::data(Bytes::from_static(b"ab")), &mut out).unwrap();
        assert_eq!(encoder.end(&mut out), Err(Misfit::Short));
        assert_eq!(encoder.encode(Frame::data(Bytes::from_static(b"cd")), &mut out), Err(Misfit::Long));
    }

    proptest! {
        #[test]
        fn what_is_encoded_in_pieces_is_decoded_from_any_others(
            bodies in vec(vec(any::<u8>(), 0..40), 0..6),
            chunked: bool,
            trailer in proptest::option::of("[a-z]{1,8}"),
            cut in 1_usize..50,
        ) {
            let whole = bodies.concat();
            let framing = if chunked { Framing::Chunked } else { Framing::Length(whole.len() as u64) };
            let (mut encoder, mut out) = (Encoder::new(framing), Outbox::default());
            for body in &bodies {
                encoder.encode(Frame::data(Bytes::copy_from_slice(body)), &mut out).unwrap();
            }
            let mut sent = HeaderMap::new();
            if let Some(value) = &trailer {
                sent.insert("x-sum", HeaderValue::try_from(value).unwrap());
                encoder.encode(Frame::trailers(sent.clone()), &mut out).unwrap();
            }
            encoder.end(&mut out).unwrap();
            let bytes = out.text().clone();
            let pieces: Vec<_> = bytes.chunks(cut).collect();
            let (data, trailers, left, done) = decoded(framing, &pieces).unwrap();
            prop_assert_eq!(data, whole);
            prop_assert!(left.is_empty());
            prop_assert!(done);
            prop_assert_eq!(trailers, if chunked { sent } else { HeaderMap::new() });
        }
    }
}
