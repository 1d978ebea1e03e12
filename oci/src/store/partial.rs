//! A download under way: bytes appended to `partial/<hex>` until all are there, then verified as a whole.
//!
//! `partial/<hex>.marks` says what a power cut leaves of it: after every sync, how long it was and what its digest was until
//! there. Another boot keeps what the last mark vouches for that fits; the same boot, whatever its process died of, keeps all,
//! since the kernel had it. Must not know where the bytes come from.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tombolo_api::Digest;

use super::marks::{Mark, Marks};
use super::{PIECE, Store, StoreError, failed, remove_tree};

/// Bytes received between two syncs: what a power cut can cost, against wear of the flash.
pub(super) const SYNC_EVERY: u64 = 16 * 1024 * 1024;

/// The same on a slow link, where so many bytes are minutes.
const SYNC_AFTER: Duration = Duration::from_secs(15);

/// A download under way.
#[derive(Debug)]
pub struct Partial {
    store: Store,
    digest: Digest,
    size: u64,
    path: PathBuf,
    file: File,
    marks: Marks,
    hasher: Sha256,
    len: u64,
    synced: u64,
    synced_at: Instant,
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
        let there = file.metadata().map_err(failed("read", &path))?.len();
        let (marks, of_this_boot) = Marks::open(&path, store.boot())?;
        let mut partial = Self {
            store,
            digest: *digest,
            size,
            path,
            file,
            marks,
            hasher: Sha256::new(),
            len: 0,
            synced: 0,
            synced_at: Instant::now(),
        };
        // What is longer than the source says now is of another source.
        if there <= size {
            partial.take_up(there, of_this_boot)?;
        }
        partial.cut()?;
        Ok(partial)
    }

    /// Goes on with what is there and sound: up to the last mark whose digest fits, and to the end if the kernel that was given
    /// the rest still runs.
    fn take_up(&mut self, there: u64, of_this_boot: bool) -> Result<(), StoreError> {
        let marks: Vec<Mark> = self.marks.all().to_vec();
        let mut sound = (0, Sha256::new());
        let mut damaged = false;
        for mark in marks {
            if mark.len > there {
                break;
            }
            self.hash_to(mark.len)?;
            if Digest::from_bytes(self.hasher.clone().finalize().into()) != mark.digest {
                damaged = true;
                break;
            }
            sound = (self.len, self.hasher.clone());
        }
        self.synced = sound.0;
        if of_this_boot && !damaged {
            return self.hash_to(there);
        }
        if sound.0 < there {
            tracing::info!(digest = %self.digest, there, kept = sound.0, "the end of a download did not survive");
        }
        (self.len, self.hasher) = sound;
        Ok(())
    }

    fn hash_to(&mut self, end: u64) -> Result<(), StoreError> {
        let mut piece = vec![0; PIECE];
        while self.len < end {
            let most = piece.len().min(usize::try_from(end - self.len).unwrap_or(usize::MAX));
            match self.file.read(&mut piece[..most]) {
                Ok(0) => {
                    let end = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return Err(failed("read", &self.path)(end));
                }
                Ok(count) => {
                    self.hasher.update(&piece[..count]);
                    self.len += count as u64;
                    self.store.beat();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("read", &self.path)(error)),
            }
        }
        Ok(())
    }

    /// Makes the file end where the download is.
    fn cut(&mut self) -> Result<(), StoreError> {
        self.file.set_len(self.len).map_err(failed("truncate", &self.path))?;
        self.file.seek(SeekFrom::Start(self.len)).map_err(failed("rewind", &self.path))?;
        self.marks.begin(self.synced.min(self.len), self.store.boot())
    }

    /// Bytes of it have come, though they are not written yet.
    pub(crate) fn came(&self, bytes: usize) {
        self.store.0.received.fetch_add(bytes as u64, Ordering::Relaxed);
        self.store.beat();
    }

    /// It waits, and is not stuck.
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
        self.store.check_floor(bytes.len() as u64)?;
        if let Err(error) = self.file.write_all(bytes) {
            // Part of it may have been written, which the hash does not know of.
            let _ = self.file.set_len(self.len);
            let _ = self.file.seek(SeekFrom::Start(self.len));
            return Err(failed("write", &self.path)(error));
        }
        self.hasher.update(bytes);
        self.len = len;
        if self.len - self.synced >= SYNC_EVERY || self.synced_at.elapsed() >= SYNC_AFTER {
            self.sync()?;
        }
        Ok(())
    }

    /// Makes a power cut lose nothing of what is here.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(failed("sync", &self.path))?;
        let digest = Digest::from_bytes(self.hasher.clone().finalize().into());
        self.marks.add(Mark { len: self.len, digest })?;
        (self.synced, self.synced_at) = (self.len, Instant::now());
        Ok(())
    }

    /// Forgets what is here: the source starts from the first byte again.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        (self.hasher, self.len, self.synced) = (Sha256::new(), 0, 0);
        self.cut()
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
            self.marks.remove();
            return Err(StoreError::DigestMismatch { expected: self.digest, actual });
        }
        self.file.sync_all().map_err(failed("sync", &self.path))?;
        let blob = self.store.blob_path(&self.digest);
        match fs::rename(&self.path, &blob) {
            // A cancelled download of the same content came to its end first.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.store.contains(&self.digest) => {}
            renamed => renamed.map_err(failed("rename to", &blob))?,
        }
        self.store.sync("blobs/sha256")?;
        self.marks.remove();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
