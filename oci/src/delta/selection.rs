//! Some of a layer's chunks: how they are named, and how they are sent.
//!
//! ```text
//! selection   { chunks passed over since the last run (LEB128)  chunks taken (LEB128) }…
//! content     one gzip stream of the chosen chunks, in the list's order, nothing between them
//! ```
//!
//! Must not know why these chunks and not others.

use std::io::{self, Read, Write};
use std::iter::Flatten;
use std::ops::Range;
use std::vec;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::list::ChunkList;
use crate::layer::decode::{Content, stream_error};
use crate::layer::{Limits, UnpackError};
use crate::store::failed;

/// Runs of one selection: more are asked for one after the other.
const MAX_RUNS: usize = 4096;

/// Bytes of the longest selection: two numbers of up to three bytes each for every run, of lists of up to 2^18 chunks.
pub const MAX_SELECTION: usize = MAX_RUNS * 6;

/// A decent ratio at a third of the best one's time.
const LEVEL: Compression = Compression::new(6);

/// Runs of chunks, by their places in the list: in order, apart, none empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection(Vec<Range<u32>>);

/// Why bytes are no selection of a list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    #[error("it names no chunk")]
    Empty,
    #[error("it ends in the middle of a number")]
    Truncated,
    #[error("it names a chunk that the list does not have")]
    Beyond,
    #[error("one of its runs is empty, or it has more than {MAX_RUNS}")]
    Runs,
}

impl Selection {
    /// The first of those chunks that `chosen` names in ascending order, as many as one selection can have. `None` if there are none.
    pub fn of(chosen: impl Iterator<Item = u32>) -> Option<Self> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        for index in chosen {
            let full = runs.len() == MAX_RUNS;
            match runs.last_mut() {
                Some(run) if run.end == index => run.end += 1,
                _ if full => break,
                _ => runs.push(Range { start: index, end: index + 1 }),
            }
        }
        (!runs.is_empty()).then_some(Self(runs))
    }

    /// The places of the chunks, ascending.
    pub fn indices(&self) -> Flatten<vec::IntoIter<Range<u32>>> {
        self.0.clone().into_iter().flatten()
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut at = 0;
        for run in &self.0 {
            push_number(&mut bytes, run.start - at);
            push_number(&mut bytes, run.end - run.start);
            at = run.end;
        }
        bytes
    }

    /// Reads a selection from a list of `count` chunks.
    pub fn decode(mut bytes: &[u8], count: usize) -> Result<Self, SelectionError> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        let mut at = 0u32;
        while !bytes.is_empty() {
            let (skipped, taken) = (number(&mut bytes)?, number(&mut bytes)?);
            let start = at.checked_add(skipped).ok_or(SelectionError::Beyond)?;
            let end = start.checked_add(taken).ok_or(SelectionError::Beyond)?;
            if end as usize > count {
                return Err(SelectionError::Beyond);
            }
            // A run that begins where the last one ended has another, longer encoding: there is one for each selection.
            if taken == 0 || (skipped == 0 && !runs.is_empty()) || runs.len() == MAX_RUNS {
                return Err(SelectionError::Runs);
            }
            runs.push(start..end);
            at = end;
        }
        if runs.is_empty() { Err(SelectionError::Empty) } else { Ok(Self(runs)) }
    }
}

/// Writes the chosen chunks of the layer `blob`, whose list this is. No more of the blob is read than needed.
pub fn write_selected(
    blob: impl Read + Send + 'static,
    list: &ChunkList,
    selection: &Selection,
    out: impl Write,
) -> Result<(), UnpackError> {
    let mut content = Content::new(blob, &Limits::default())?;
    let mut out = GzEncoder::new(out, LEVEL);
    let mut chosen = selection.indices().peekable();
    let mut chunk = Vec::new();
    for (index, length) in (0..).zip(list.lengths()) {
        let Some(next) = chosen.peek() else { break };
        chunk.resize(length as usize, 0);
        content.read_exact(&mut chunk).map_err(|error| stream_error(error, "its content"))?;
        if *next == index {
            chosen.next();
            out.write_all(&chunk).map_err(sent)?;
        }
    }
    out.finish().and_then(|mut out| out.flush()).map_err(sent)
}

fn sent(error: io::Error) -> UnpackError {
    failed("send", "chunks".as_ref())(error).into()
}

fn push_number(bytes: &mut Vec<u8>, mut number: u32) {
    loop {
        let low = u8::try_from(number & 0x7f).expect("seven bits");
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
    }
}

fn number(bytes: &mut &[u8]) -> Result<u32, SelectionError> {
    let mut number = 0;
    for shift in [0, 7, 14] {
        let (first, rest) = bytes.split_first().ok_or(SelectionError::Truncated)?;
        *bytes = rest;
        number |= u32::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(number);
        }
    }
    // No list is that long.
    Err(SelectionError::Beyond)
}
