//! Room on the disk: what is left to others, and what downloads under way were promised, so that several at once are counted
//! together. Must not know what is downloaded, nor how its size was guessed.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::{Store, StoreError, failed};

/// The store's books of the room it has.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Bytes that stay free whatever is downloaded.
    floor: AtomicU64,
    /// Bytes that were promised and are not written yet.
    promised: Mutex<u64>,
}

/// Room for one download. What is left of it is given back when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    store: Store,
    left: AtomicU64,
}

impl Store {
    /// From now on downloads and unpacking leave so many bytes of the disk free, for what runs.
    pub fn keep_free(&self, bytes: u64) {
        self.room().floor.store(bytes, Ordering::Relaxed);
    }

    /// Bytes of the disk that are free.
    pub fn free(&self) -> Result<u64, StoreError> {
        free(self.root())
    }

    /// Bytes of the whole disk.
    pub fn size(&self) -> Result<u64, StoreError> {
        let disk = disk(self.root())?;
        Ok(disk.f_blocks.saturating_mul(disk.f_frsize))
    }

    /// Promises room for `needed` bytes, if there is that much beside what was promised before and what stays free.
    pub fn reserve(&self, needed: u64) -> Result<Reservation, StoreError> {
        let mut promised = self.promised();
        let (free, kept) = (self.free()?, self.room().floor.load(Ordering::Relaxed));
        let usable = free.saturating_sub(kept).saturating_sub(*promised);
        if needed > usable {
            let path = self.root().to_owned();
            return Err(StoreError::NoRoom { path, needed, free, kept, promised: *promised });
        }
        *promised += needed;
        Ok(Reservation { store: self.clone(), left: AtomicU64::new(needed) })
    }

    /// Whether the disk still has what stays free after `bytes` more.
    pub(crate) fn check_floor(&self, bytes: u64) -> Result<(), StoreError> {
        match self.room().floor.load(Ordering::Relaxed) {
            0 => Ok(()),
            kept => {
                let free = self.free()?;
                if free >= kept.saturating_add(bytes) {
                    return Ok(());
                }
                let path = self.root().to_owned();
                Err(StoreError::NoRoom { path, needed: bytes, free, kept, promised: 0 })
            }
        }
    }

    fn promised(&self) -> std::sync::MutexGuard<'_, u64> {
        self.room().promised.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation {
    /// So much of it is on the disk now, or is not needed after all.
    pub fn used(&self, bytes: u64) {
        let mut promised = self.store.promised();
        let left = self.left.load(Ordering::Relaxed);
        let used = bytes.min(left);
        self.left.store(left - used, Ordering::Relaxed);
        *promised -= used;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.used(u64::MAX);
    }
}

/// Bytes of the disk under `path` that anybody may fill.
fn free(path: &Path) -> Result<u64, StoreError> {
    let disk = disk(path)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn disk(path: &Path) -> Result<rustix::fs::StatVfs, StoreError> {
    rustix::fs::statvfs(path).map_err(|error| failed("look at the disk of", path)(error.into()))
}
