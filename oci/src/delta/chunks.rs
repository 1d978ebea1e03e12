//! Where content is cut. The algorithm, its tables and these numbers are a part of the list's format: other cuts are another
//! format. Must not know layers.

use std::io::{self, Read};

use fastcdc::v2020::{MASKS, cut};

/// Shortest chunk, but for the last of all.
pub(super) const MIN: usize = 8 * 1024;
/// What lengths gather around: a list costs 15 bytes for each of these, a changed line costs one or two of them.
const AVERAGE: usize = 32 * 1024;
/// Longest chunk.
pub(super) const MAX: usize = 128 * 1024;

/// Normalisation of level 1: one bit more than the average's fifteen before it, one less behind it.
const MASK_BEFORE: u64 = MASKS[16];
const MASK_BEHIND: u64 = MASKS[14];

/// Read at once: several chunks, so that what is moved to the front of the buffer is little.
const BUFFER: usize = 4 * MAX;

/// Content cut into chunks, one after the other.
#[derive(Debug)]
pub struct Chunks<R> {
    source: R,
    buffer: Vec<u8>,
    /// What of the buffer is read and not given yet.
    start: usize,
    end: usize,
    ended: bool,
}

impl<R: Read> Chunks<R> {
    pub fn new(source: R) -> Self {
        Self { source, buffer: vec![0; BUFFER], start: 0, end: 0, ended: false }
    }

    /// The next chunk; `None` at the end.
    pub fn next_chunk(&mut self) -> io::Result<Option<&[u8]>> {
        // A cut depends on the bytes up to the longest chunk, never on how they came.
        if self.end - self.start < MAX && !self.ended {
            self.fill()?;
        }
        let rest = &self.buffer[self.start..self.end];
        if rest.is_empty() {
            return Ok(None);
        }
        let (_, length) =
            cut(rest, MIN, AVERAGE, MAX, MASK_BEFORE, MASK_BEHIND, MASK_BEFORE << 1, MASK_BEHIND << 1);
        self.start += length;
        Ok(Some(&rest[..length]))
    }

    /// The source, of which more may be read than was given.
    pub fn into_inner(self) -> R {
        self.source
    }

    fn fill(&mut self) -> io::Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        while self.end < BUFFER {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
