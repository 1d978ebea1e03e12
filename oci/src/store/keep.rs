//! Removing whatever is not to be kept. Must not know why something is.

use std::collections::BTreeSet;

use tombolo_api::Digest;

use super::{Store, StoreError, digest_in_name, remove_tree};
use crate::delta;

/// What is to be kept.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    /// Blobs, and downloads of them.
    pub blobs: BTreeSet<Digest>,
    /// Unpacked layers, by diff id.
    pub layers: BTreeSet<Digest>,
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub blobs: usize,
    pub layers: usize,
    pub partials: usize,
    /// Bytes of removed blobs, downloads, and files of layers.
    pub bytes: u64,
}

impl Store {
    /// Removes everything that is not to be kept.
    pub fn retain(&self, keep: &Keep) -> Result<Removed, StoreError> {
        let mut removed = Removed::default();
        for (diff_id, bytes) in self.layers()? {
            if !keep.layers.contains(&diff_id) {
                self.remove_layer(&diff_id)?;
                removed.layers += 1;
                removed.bytes += bytes;
            }
        }
        for (digest, bytes) in self.blobs()? {
            // A layer that was put together from chunks is a blob under its diff id.
            if !keep.blobs.contains(&digest) && !keep.layers.contains(&digest) {
                self.remove_blob(&digest)?;
                removed.blobs += 1;
                removed.bytes += bytes;
            }
        }
        for (digest, bytes) in self.partials()? {
            if !keep.blobs.contains(&digest) {
                remove_tree(&self.partial_path(&digest))?;
                removed.partials += 1;
                removed.bytes += bytes;
            }
        }
        for path in self.list("partial")? {
            let of_download = path.with_extension("");
            if digest_in_name(&path).is_none() && !of_download.is_file() {
                remove_tree(&path)?;
            }
        }
        delta::retain(self, &keep.layers)?;
        self.sync("blobs/sha256")?;
        Ok(removed)
    }
}
