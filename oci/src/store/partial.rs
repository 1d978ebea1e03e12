//! A download under way: bytes appended to `partial/<hex>` until all are there, then verified as a whole.
//!
//! Must not know where the bytes come from.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};
use tombolo_api::Digest;

use super::{Store, StoreError, failed, hash_into, remove_tree};

/// Bytes received between two syncs: what a power cut can cost on a slow link, against wear of the flash.
const SYNC_EVERY: u64 = 16 * 1024 * 1024;

/// A download under way.
#[derive(Debug)]
pub struct Partial {
    store: Store,
    digest: Digest,
    size: u64,
    path: PathBuf,
    file: File,
    hasher: Sha256,
    len: u64,
    synced: u64,
}

impl Partial {
    pub(super) fn open(store: Store, digest: &Digest, size: u64) -> Result<Self, StoreError> {
        let path = store.partial_path(digest);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed("open", &path))?;
        let mut hasher = Sha256::new();
        let mut beating = store.beating(file);
        let len = hash_into(&mut beating, &mut hasher).map_err(failed("read", &path))?;
        let file = beating.file;
        let mut partial = Self { store, digest: *digest, size, path, file, hasher, len, synced: len };
        if len > size {
            partial.restart()?;
        }
        Ok(partial)
    }

    /// Bytes of it have come, though they are not written yet.
    pub(crate) fn beat(&self) {
        self.store.beat();
    }

    /// Bytes that are here.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is here yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that are not here yet.
    pub fn missing(&self) -> u64 {
        self.size - self.len
    }

    /// Whether every byte is here.
    pub fn is_complete(&self) -> bool {
        self.len == self.size
    }

    /// Appends bytes. More than the announced size is refused, and nothing of it is written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let len = self.len + bytes.len() as u64;
        if len > self.size {
            return Err(StoreError::SizeMismatch { digest: self.digest, expected: self.size, actual: len });
        }
        if let Err(error) = self.file.write_all(bytes) {
            // Part of it may have been written, which the hash does not know of.
            let _ = self.file.set_len(self.len);
            let _ = self.file.seek(SeekFrom::Start(self.len));
            return Err(failed("write", &self.path)(error));
        }
        self.hasher.update(bytes);
        self.len = len;
        if self.len - self.synced >= SYNC_EVERY {
            self.file.sync_data().map_err(failed("sync", &self.path))?;
            self.synced = self.len;
        }
        Ok(())
    }

    /// Forgets what is here: the source starts from the first byte again.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        self.file.set_len(0).map_err(failed("truncate", &self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(failed("rewind", &self.path))?;
        (self.hasher, self.len, self.synced) = (Sha256::new(), 0, 0);
        Ok(())
    }

    /// Verifies the whole and makes it a blob. Content with another digest is thrown away.
    pub fn commit(self) -> Result<(), StoreError> {
        if !self.is_complete() {
            return Err(StoreError::SizeMismatch {
                digest: self.digest,
                expected: self.size,
                actual: self.len,
            });
        }
        let actual = Digest::from_bytes(self.hasher.finalize().into());
        if actual != self.digest {
            remove_tree(&self.path)?;
            return Err(StoreError::DigestMismatch { expected: self.digest, actual });
        }
        self.file.sync_all().map_err(failed("sync", &self.path))?;
        let blob = self.store.blob_path(&self.digest);
        match fs::rename(&self.path, &blob) {
            // A cancelled download of the same content came to its end first.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.store.contains(&self.digest) => {}
            renamed => renamed.map_err(failed("rename to", &blob))?,
        }
        self.store.sync("blobs/sha256")
    }
}
