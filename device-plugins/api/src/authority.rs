//! Lets in callers that name a socket's path as the authority of their requests, as many Go, Java and C++ programs do. No
//! such path is an authority, and this server's HTTP/2 refuses the whole request for it. Nobody needs to know whom a request
//! on a Unix socket is for, so the name is replaced before it is looked at, in the compressed header block as it stands.
//!
//! Only the bytes of the value are replaced, and by a single character: what an entry of the compression's table is called
//! stays as it was, and none becomes larger, so that the reader's table keeps every entry that the writer's has.
//! It must not know anything else of HTTP/2 than how frames and header fields are delimited.

use bytes::{Buf as _, Bytes, BytesMut};

/// What a client says first.
const PREFACE_BYTES: usize = 24;

const FRAME_HEADER_BYTES: usize = 9;

/// The longest frame that this server accepts, and here the longest header block too. Longer ones stay as they are.
const FRAME_BYTES_MAX: usize = 16 * 1024;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The size of what `PRIORITY` says.
const PRIORITY_BYTES: usize = 5;

/// The place of `:authority` in the table that every connection begins with.
const AUTHORITY_INDEX: usize = 1;

const AUTHORITY_NAME: &[u8] = b":authority";

/// The same in the compression's code.
const AUTHORITY_NAME_HUFFMAN: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];

/// A value of one character.
const REPLACEMENT: &[u8] = &[1, b'x'];

/// The bytes that a client sends on one connection, on their way to the server.
#[derive(Debug)]
pub(crate) struct Renamer {
    raw: BytesMut,
    ready: BytesMut,
    state: State,
}

#[derive(Debug)]
enum State {
    /// So many bytes are not looked at.
    Pass(usize),
    Frame,
    /// A header block that is not complete yet.
    Block {
        frame: FrameHeader,
        priority: Bytes,
        block: BytesMut,
    },
}

#[derive(Clone, Copy, Debug)]
struct FrameHeader {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Renamer {
    pub(crate) fn new() -> Self {
        Self { raw: BytesMut::new(), ready: BytesMut::new(), state: State::Pass(PREFACE_BYTES) }
    }

    /// Takes what came.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.raw.extend_from_slice(bytes);
        while self.advance() {}
    }

    /// Takes that nothing comes any more: what is incomplete is for the server to judge.
    pub(crate) fn end(&mut self) {
        let rest = self.raw.split();
        self.ready.extend_from_slice(&rest);
    }

    /// What may go on.
    pub(crate) fn ready(&mut self) -> &mut BytesMut {
        &mut self.ready
    }

    /// Whether anything could be done with what is there.
    fn advance(&mut self) -> bool {
        match &mut self.state {
            State::Pass(left) => {
                let part = self.raw.split_to(self.raw.len().min(*left));
                self.ready.extend_from_slice(&part);
                *left -= part.len();
                let done = *left == 0;
                if done {
                    self.state = State::Frame;
                }
                done
            }
            State::Frame | State::Block { .. } => self.frame(),
        }
    }

    fn frame(&mut self) -> bool {
        let Some(frame) = FrameHeader::read(&self.raw) else { return false };
        let whole = FRAME_HEADER_BYTES + frame.length;
        let begun = match &self.state {
            State::Block { block, .. } => Some(block.len()),
            _ => None,
        };
        let belongs = if begun.is_some() { frame.kind == CONTINUATION } else { frame.kind == HEADERS };
        if !belongs || begun.unwrap_or(0) + frame.length > FRAME_BYTES_MAX {
            self.let_go(false);
            self.state = State::Pass(whole);
            return true;
        }
        if self.raw.len() < whole {
            return false;
        }
        let sent = self.raw.split_to(whole).freeze();
        let mut payload = sent.slice(FRAME_HEADER_BYTES..);
        if let State::Block { block, .. } = &mut self.state {
            block.extend_from_slice(&payload);
        } else {
            let Some(priority) = frame.unpad(&mut payload) else {
                // Not a frame at all; the server says so.
                self.ready.extend_from_slice(&sent);
                self.state = State::Frame;
                return true;
            };
            self.state = State::Block { frame, priority, block: BytesMut::from(&*payload) };
        }
        if frame.flags & END_HEADERS != 0 {
            self.let_go(true);
        }
        true
    }

    /// Sends on what was collected of a header block, as one frame: renamed if it is complete. If it is not, the server is to
    /// see that.
    fn let_go(&mut self, complete: bool) {
        let State::Block { frame, priority, block } = std::mem::replace(&mut self.state, State::Frame) else {
            return;
        };
        let renamed = if complete { rename(&block) } else { None };
        let block = renamed.as_deref().unwrap_or(&block);
        let end = if complete { END_HEADERS } else { 0 };
        frame.write(
            priority.len() + block.len(),
            frame.flags & !PADDED & !END_HEADERS | end,
            &mut self.ready,
        );
        self.ready.extend_from_slice(&priority);
        self.ready.extend_from_slice(block);
    }
}

impl FrameHeader {
    fn read(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, stream @ ..] = bytes.first_chunk::<FRAME_HEADER_BYTES>()?;
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        Some(Self { length, kind: *kind, flags: *flags, stream: u32::from_be_bytes(*stream) })
    }

    fn write(self, length: usize, flags: u8, to: &mut BytesMut) {
        let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        to.extend_from_slice(&length[1..]);
        to.extend_from_slice(&[self.kind, flags]);
        to.extend_from_slice(&self.stream.to_be_bytes());
    }

    /// Leaves the header block in the payload, and gives what stands before it.
    fn unpad(self, payload: &mut Bytes) -> Option<Bytes> {
        if self.flags & PADDED != 0 {
            let padding = usize::from(payload.try_get_u8().ok()?);
            payload.truncate(payload.len().checked_sub(padding)?);
        }
        let before = if self.flags & PRIORITY != 0 { PRIORITY_BYTES } else { 0 };
        (payload.len() >= before).then(|| payload.split_to(before))
    }
}

/// The header block with another authority. `None` if it cannot be read.
fn rename(block: &[u8]) -> Option<Vec<u8>> {
    let mut renamed = Vec::with_capacity(block.len());
    let mut at = 0;
    while let Some(first) = block.get(at) {
        let begin = at;
        let bits = match first {
            0x80.. => 7,
            0x40.. => 6,
            0x20.. => 5,
            _ => 4,
        };
        let index = integer(block, &mut at, bits)?;
        if matches!(first, 0x20..0x40 | 0x80..) {
            // A field of the table as it is, or the table's size.
            renamed.extend_from_slice(&block[begin..at]);
            continue;
        }
        let is_authority = match index {
            0 => {
                let huffman = block.get(at)? & 0x80 != 0;
                let name = string(block, &mut at)?;
                name == if huffman { AUTHORITY_NAME_HUFFMAN } else { AUTHORITY_NAME }
            }
            index => index == AUTHORITY_INDEX,
        };
        let before_value = at;
        let value = string(block, &mut at)?;
        if is_authority && !value.is_empty() {
            renamed.extend_from_slice(&block[begin..before_value]);
            renamed.extend_from_slice(REPLACEMENT);
        } else {
            renamed.extend_from_slice(&block[begin..at]);
        }
    }
    Some(renamed)
}

/// A number whose first byte has `bits` for it.
fn integer(block: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let mut next = || {
        let byte = *block.get(*at)?;
        *at += 1;
        Some(usize::from(byte))
    };
    let most = (1 << bits) - 1;
    let mut value = next()? & most;
    if value < most {
        return Some(value);
    }
    // More than four further bytes make a number that nothing here can be.
    for shift in [0, 7, 14, 21] {
        let byte = next()?;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn string<'a>(block: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let length = integer(block, at, 7)?;
    let text = block.get(*at..at.checked_add(length)?)?;
    *at += length;
    Some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a Go program sends to a socket whose path it takes for the authority: name by number, value in letters.
    const BY_INDEX: &[u8] = b"\x83\x86\x41\x0a%2Frun%2Fk\x04\x02/a\xbe";

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        FrameHeader { length: 0, kind, flags, stream: 1 }.write(payload.len(), flags, &mut bytes);
        bytes.extend_from_slice(payload);
        bytes.to_vec()
    }

    fn through(frames: &[Vec<u8>], step: usize) -> Vec<u8> {
        let sent = [vec![b'P'; PREFACE_BYTES], frames.concat()].concat();
        let mut renamer = Renamer::new();
        sent.chunks(step).for_each(|part| renamer.push(part));
        renamer.end();
        renamer.ready().split_off(PREFACE_BYTES).to_vec()
    }

    #[test]
    fn every_way_to_write_an_authority_is_found() {
        assert_eq!(rename(BY_INDEX).as_deref(), Some(&b"\x83\x86\x41\x01x\x04\x02/a\xbe"[..]));
        let value = b"\x04/k.s";
        for begin in [&b"\x40\x0a:authority"[..], b"\x00\x0a:authority", b"\x01", b"\x11", b"\x41"] {
            let block = [begin, value, b"\x04\x02/a"].concat();
            assert_eq!(rename(&block), Some([begin, b"\x01x\x04\x02/a"].concat()), "{begin:?}");
        }
        let huffman = [&[0x40, 0x88], AUTHORITY_NAME_HUFFMAN].concat();
        assert_eq!(rename(&[&*huffman, value].concat()), Some([&*huffman, b"\x01x"].concat()));
    }

    #[test]
    fn everything_else_stays() {
        let long = [&b"\x0f\x2d\x7f\x01"[..], &[b'z'; 128]].concat();
        for block in [&b""[..], b"\x83\x3f\xe1\x1f\xbe", b"\x41\x00", b"\x40\x05:path\x02/a", &long] {
            assert_eq!(rename(block).as_deref(), Some(block));
        }
        for broken in [&b"\x41"[..], b"\x41\x05abc", b"\x40\x0a:auth", b"\x7f\xff\xff\xff\xff\xff\x01"] {
            assert_eq!(rename(broken), None);
            let frames = [frame(HEADERS, END_HEADERS, broken)];
            assert_eq!(through(&frames, 7), frames.concat(), "the server is to judge it");
        }
    }

    #[test]
    fn frames_are_found_however_they_arrive() {
        let (first, second) = BY_INDEX.split_at(9);
        let padded = [&[3][..], &[0, 0, 0, 0, 16], first, b"pad"].concat();
        let frames = [
            frame(4, 0, &[0; 6]),
            frame(HEADERS, PADDED | PRIORITY | 1, &padded),
            frame(CONTINUATION, END_HEADERS, second),
            frame(0, 1, &[7; 300]),
            frame(HEADERS, END_HEADERS, BY_INDEX),
        ];
        let renamed = rename(BY_INDEX).expect("it can be read");
        let expected = [
            frame(4, 0, &[0; 6]),
            frame(HEADERS, PRIORITY | END_HEADERS | 1, &[&[0, 0, 0, 0, 16], &*renamed].concat()),
            frame(0, 1, &[7; 300]),
            frame(HEADERS, END_HEADERS, &renamed),
        ];
        for step in 1..=frames.concat().len() {
            assert_eq!(through(&frames, step), expected.concat(), "in parts of {step}");
        }
    }

    #[test]
    fn what_is_no_header_block_stays() {
        let half = frame(HEADERS, 0, BY_INDEX);
        let huge = vec![0x80; FRAME_BYTES_MAX + 1];
        for frames in [
            vec![half.clone(), frame(0, 0, b"data")],
            vec![frame(HEADERS, END_HEADERS, &huge), frame(0, 0, b"data")],
            vec![half.clone(), frame(CONTINUATION, END_HEADERS, &huge[..FRAME_BYTES_MAX])],
            vec![frame(HEADERS, PADDED | END_HEADERS, &[200, 1, 2])],
            vec![frame(CONTINUATION, END_HEADERS, BY_INDEX)],
            vec![frame(0, 0, b"data")[..11].to_vec()],
        ] {
            assert_eq!(through(&frames, 5), frames.concat());
        }
    }

    /// Header blocks that begin well, so that chance gets past the first byte.
    fn blocks() -> impl Strategy<Value = Vec<u8>> {
        let field = prop_oneof![
            Just(b"\x41\x05/k.so".to_vec()),
            Just(b"\x40\x0a:authority\x03a/b".to_vec()),
            Just(b"\x83\xbe\x3f\x01".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..6),
        ];
        proptest::collection::vec(field, 0..5).prop_map(|fields| fields.concat())
    }

    proptest! {
        #[test]
        fn whatever_comes_nothing_depends_on_how_it_is_cut(
            frames in proptest::collection::vec((0u8..11, any::<u8>(), blocks()), 0..6),
            rest in proptest::collection::vec(any::<u8>(), 0..20),
            step in 1usize..40,
        ) {
            let mut sent: Vec<_> = frames.iter().map(|(kind, flags, block)| frame(*kind, *flags, block)).collect();
            sent.push(rest);
            let whole = through(&sent, usize::MAX);
            prop_assert_eq!(through(&sent, step), whole.clone());
            prop_assert!(whole.len() <= sent.concat().len(), "it becomes no longer");
        }

        #[test]
        fn a_block_is_renamed_once_for_all(block in blocks()) {
            if let Some(renamed) = rename(&block) {
                prop_assert_eq!(rename(&renamed), Some(renamed.clone()));
                prop_assert!(renamed.len() <= block.len());
            }
        }
    }
}
