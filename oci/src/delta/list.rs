//! The list of a layer's chunks, and its one encoding.
//!
//! ```text
//! "TMBLCHK1"  diff id (32)  bytes of the layer (8)  number of chunks (4)  { length (3)  digest (12) }…  SHA-256 of all before (32)
//! ```
//!
//! Numbers are little-endian. Must not know where lists are kept.

use std::io::Read;

use sha2::{Digest as _, Sha256};
use tombolo_api::Digest;

use super::chunks::{Chunks, MAX};
use crate::layer::decode::{Stream, stream_error};
use crate::layer::{Limits, UnpackError};

/// Names the format, cuts included.
const MAGIC: &[u8; 8] = b"TMBLCHK1";
const HEAD: usize = 8 + 32 + 8 + 4;
const ENTRY: usize = 3 + CHUNK_DIGEST;
const TAIL: usize = 32;

/// Bytes of SHA-256 that name a chunk: an accident is out of the question, and the work to forge one buys no more than that a
/// layer is fetched whole.
const CHUNK_DIGEST: usize = 12;

/// Chunks of one layer: 8 GiB at their average length. Larger layers travel whole.
const MAX_CHUNKS: usize = 256 * 1024;

/// Bytes of the longest list.
pub const MAX_ENCODED: u64 = (HEAD + MAX_CHUNKS * ENTRY + TAIL) as u64;

/// The beginning of a chunk's SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChunkDigest([u8; CHUNK_DIGEST]);

/// One chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) length: u32,
    pub(super) digest: ChunkDigest,
}

/// What a layer consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkList {
    diff_id: Digest,
    size: u64,
    chunks: Vec<Chunk>,
}

/// Why bytes are no list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    #[error("it is not a list of chunks of the format that is known here")]
    Format,
    #[error("it has {actual} bytes where {expected} belong")]
    Length { expected: u64, actual: u64 },
    #[error("it is damaged")]
    Damaged,
    #[error("a chunk of {0} bytes is impossible")]
    Chunk(u32),
    #[error("its chunks have {actual} bytes together, but the layer {expected}")]
    Size { expected: u64, actual: u64 },
    #[error("a layer of more than {MAX_CHUNKS} chunks has no list")]
    TooMany,
}

/// Why a blob has no list.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    #[error(transparent)]
    Content(#[from] UnpackError),
    #[error(transparent)]
    List(#[from] ListError),
}

impl ChunkDigest {
    pub fn of(chunk: &[u8]) -> Self {
        let mut digest = [0; CHUNK_DIGEST];
        digest.copy_from_slice(&Sha256::digest(chunk)[..CHUNK_DIGEST]);
        Self(digest)
    }
}

impl ChunkList {
    /// Cuts a layer's blob. Reads all of it, and no more of what it unpacks to than `limits` allow.
    pub fn of(blob: impl Read + Send + 'static, limits: &Limits) -> Result<Self, CutError> {
        let mut content = Chunks::new(Stream::new(blob, limits)?);
        let (mut chunks, mut size) = (Vec::new(), 0);
        while let Some(chunk) = content.next_chunk().map_err(|error| stream_error(error, "its content"))? {
            if chunks.len() == MAX_CHUNKS {
                return Err(ListError::TooMany.into());
            }
            size += chunk.len() as u64;
            let length = u32::try_from(chunk.len()).expect("chunks are short");
            chunks.push(Chunk { length, digest: ChunkDigest::of(chunk) });
        }
        Ok(Self { diff_id: content.into_inner().digest(), size, chunks })
    }

    /// The digest of the whole uncompressed content.
    pub fn diff_id(&self) -> Digest {
        self.diff_id
    }

    /// Bytes of the uncompressed content.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many chunks there are.
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The length of each chunk, in order.
    pub fn lengths(&self) -> impl Iterator<Item = u32> + '_ {
        self.chunks.iter().map(|chunk| chunk.length)
    }

    pub(super) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + self.chunks.len() * ENTRY + TAIL);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(self.diff_id.as_bytes());
        bytes.extend_from_slice(&self.size.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(self.chunks.len()).expect("bounded").to_le_bytes());
        for chunk in &self.chunks {
            bytes.extend_from_slice(&chunk.length.to_le_bytes()[..3]);
            bytes.extend_from_slice(&chunk.digest.0);
        }
        let tail = Sha256::digest(&bytes);
        bytes.extend_from_slice(&tail);
        bytes
    }

    /// Reads a list. What comes out is consistent in itself; whether it is true only the layer's own digest shows.
    pub fn decode(bytes: &[u8]) -> Result<Self, ListError> {
        let (Some(head), Some(rest)) = (bytes.get(..HEAD), bytes.get(HEAD..)) else {
            return Err(ListError::Format);
        };
        if !head.starts_with(MAGIC) {
            return Err(ListError::Format);
        }
        let count = u32::from_le_bytes(head[48..52].try_into().expect("four bytes")) as usize;
        if count > MAX_CHUNKS {
            return Err(ListError::TooMany);
        }
        let (expected, actual) = (count * ENTRY + TAIL, rest.len());
        if actual != expected {
            return Err(ListError::Length { expected: expected as u64, actual: actual as u64 });
        }
        let (before, tail) = bytes.split_at(bytes.len() - TAIL);
        if Sha256::digest(before)[..] != *tail {
            return Err(ListError::Damaged);
        }
        let diff_id = Digest::from_bytes(head[8..40].try_into().expect("thirty-two bytes"));
        let size = u64::from_le_bytes(head[40..48].try_into().expect("eight bytes"));
        let mut chunks = Vec::with_capacity(count);
        for entry in rest[..count * ENTRY].chunks_exact(ENTRY) {
            let length = u32::from_le_bytes([entry[0], entry[1], entry[2], 0]);
            if length == 0 || length as usize > MAX {
                return Err(ListError::Chunk(length));
            }
            let digest = ChunkDigest(entry[3..].try_into().expect("what remains of an entry"));
            chunks.push(Chunk { length, digest });
        }
        let actual = chunks.iter().map(|chunk| u64::from(chunk.length)).sum();
        if actual != size {
            return Err(ListError::Size { expected: size, actual });
        }
        Ok(Self { diff_id, size, chunks })
    }
}
