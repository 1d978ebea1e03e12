//! Turning a layer blob into a directory that overlayfs takes as a lower layer.
//!
//! ```text
//! blob ─▶ decode (gzip, zstd; bytes and ratio bounded, diff id) ─▶ members (tar, bounded) ─▶ tree (writes below one root)
//! ```
//!
//! The blob is hostile: nothing it says may touch anything outside the given directory, or fill memory or disk beyond
//! [`Limits`]. Must not know the store, images, or mounts.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tombolo_api::Digest;

pub(crate) mod decode;
mod members;
#[cfg(test)]
mod tests;
mod tree;

use crate::store::{StoreError, failed};

/// The name, in a layer's directory, of its root as overlayfs sees it.
pub const ROOT: &str = "fs";
/// The name, in a layer's directory, of the file that says it is complete.
pub const RECORD: &str = "unpacked";

/// How the name of a file begins that stands for the deletion of another.
pub(crate) const WHITEOUT: &[u8] = b".wh.";

/// What a layer may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of the uncompressed archive.
    pub bytes: u64,
    /// Uncompressed bytes for each compressed one, looked at once [`Limits::ratio_from`] bytes have come out.
    pub ratio: u64,
    pub ratio_from: u64,
    /// Members of the archive.
    pub entries: u64,
    /// Whether the disk may take more, asked now and then: not all that a layer unpacks to is known before.
    pub room: RoomLeft,
}

/// Tells whether there is room.
#[derive(Clone)]
pub struct RoomLeft(pub Arc<dyn Fn() -> bool + Send + Sync>);

impl fmt::Debug for RoomLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RoomLeft")
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // The largest layers in use (GPU frameworks with their libraries) are below 10 GiB.
            bytes: 32 << 30,
            // Real layers stay below 20; only long runs of one byte reach gzip's 1,000.
            ratio: 200,
            // Small layers of zeros (a preallocated file) are harmless whatever their ratio.
            ratio_from: 256 << 20,
            // A full desktop distribution has half of it; each costs an inode.
            entries: 1_000_000,
            room: RoomLeft(Arc::new(|| true)),
        }
    }
}

/// What was unpacked, as kept beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    pub diff_id: Digest,
    /// Bytes of regular files.
    pub bytes: u64,
    pub entries: u64,
    /// Device nodes that were left out: a container gets its own `/dev`.
    pub devices: u64,
}

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error(
        "the layer's content is {actual}, but the image says {expected}: the image or the copy of it is damaged"
    )]
    DiffIdMismatch { expected: Digest, actual: Digest },
    #[error("the layer ends in the middle of {0:?}")]
    Truncated(String),
    #[error("the layer is damaged: {0}")]
    Malformed(String),
    #[error("the layer unpacks to more than {0} bytes, the limit of one layer")]
    TooManyBytes(u64),
    #[error("the layer unpacks to more than {0} times its size, as only a decompression bomb does")]
    Ratio(u64),
    #[error("the layer has more than {0} files, the limit of one layer")]
    TooManyEntries(u64),
    #[error("{path:?} in the layer is refused: {reason}")]
    Refused { path: String, reason: &'static str },
    #[error("{path:?} cannot be written")]
    Write {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl UnpackError {
    /// Whether the blob itself is at fault, so that a fresh copy may help.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::DiffIdMismatch { .. } | Self::Truncated(_) | Self::Malformed(_))
    }

    /// Bytes that have to be free before the same may succeed, if it was room on the disk that was wanting; 0 where nobody knows.
    pub fn room_needed(&self) -> Option<u64> {
        match self {
            Self::Store(error) => error.room_needed(),
            Self::Write { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
                    .then_some(0)
            }
            _ => None,
        }
    }
}

/// Unpacks `blob` into `directory`/[`ROOT`] and writes [`RECORD`] last. Syncing is the caller's.
pub fn unpack(
    blob: impl Read + Send + 'static,
    diff_id: &Digest,
    directory: &Path,
    limits: &Limits,
) -> Result<Unpacked, UnpackError> {
    let root = directory.join(ROOT);
    fs::create_dir(&root).map_err(failed("create", &root))?;
    let mut tree = tree::Tree::open(&root)?;
    let mut stream = decode::Stream::new(blob, limits)?;
    let mut members = members::Members::new(&mut stream, limits.entries);
    while let Some(member) = members.next()? {
        tree.write(&member, &mut members)?;
    }
    let entries = members.count();
    // Padding after the archive's end belongs to the diff id too.
    io::copy(&mut stream, &mut io::sink()).map_err(|error| decode::stream_error(error, "its end"))?;
    let actual = stream.digest();
    if actual != *diff_id {
        return Err(UnpackError::DiffIdMismatch { expected: *diff_id, actual });
    }
    let (bytes, devices) = tree.finish()?;
    let unpacked = Unpacked { diff_id: *diff_id, bytes, entries, devices };
    let record = directory.join(RECORD);
    let text = serde_json::to_vec(&unpacked).expect("a record of numbers and a digest serialises");
    fs::write(&record, text).map_err(failed("write", &record))?;
    Ok(unpacked)
}

/// The bytes of files in an unpacked layer, from its record.
pub(crate) fn recorded_bytes(directory: &Path) -> Option<u64> {
    let mut text = Vec::new();
    File::open(directory.join(RECORD)).ok()?.take(64 * 1024).read_to_end(&mut text).ok()?;
    serde_json::from_slice::<Unpacked>(&text).ok().map(|record| record.bytes)
}
