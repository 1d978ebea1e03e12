//! The storage engine, sled 0.34.7, and all that is particular to it: this is the only file that names it.
//!
//! sled by itself survives kill -9 but not a power cut (its flush asks the kernel to write, not the disk to keep), leaves
//! large pages in files of their own which it never syncs, stays unusable after one failed write, and can panic on
//! damaged files. So here: one tree, one batch per commit, `fdatasync` of the log and of new page files after every flush,
//! and every call wrapped so that a panic is an error. Knows bytes only: not records, not recovery.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Bytes of pages kept in memory. sled's default is 1 GB.
const CACHE_BYTES: u64 = 8 << 20;

/// How long a reopened engine waits for the threads of the one before to let go of the file.
const RELEASE_WAIT: Duration = Duration::from_secs(5);

/// An open engine.
#[derive(Debug)]
pub(crate) struct Engine {
    db: sled::Db,
    /// An own handle of the log: syncing works per inode, whichever handle wrote.
    log: File,
    pages: PathBuf,
    /// Page files that are known to be on the disk.
    synced: Mutex<BTreeSet<OsString>>,
}

/// Why the engine could not do something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// The files say something that cannot be.
    #[error("the files are damaged: {0}")]
    Corrupt(String),
    /// The operating system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The engine failed in a way that says nothing about the files.
    #[error("the engine failed: {0}")]
    Failed(String),
}

impl From<sled::Error> for EngineError {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(error) => Self::Io(error),
            sled::Error::Corruption { .. } => Self::Corrupt(error.to_string()),
            error => Self::Failed(error.to_string()),
        }
    }
}

/// A key and its value.
pub(crate) type Item = (Vec<u8>, Vec<u8>);

impl Engine {
    /// Opens or makes the engine's files in `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self, EngineError> {
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(CACHE_BYTES)
            .mode(sled::Mode::LowSpace)
            .flush_every_ms(None);
        let give_up = Instant::now() + RELEASE_WAIT;
        let db = loop {
            match guarded(|| Ok(config.open()?)) {
                Err(EngineError::Io(error)) if held_by_a_late_thread(&error) && Instant::now() < give_up => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                result => break result?,
            }
        };
        let engine = Self {
            db,
            log: File::open(dir.join("db"))?,
            pages: dir.join("blobs"),
            synced: Mutex::new(BTreeSet::new()),
        };
        // Creating the files is itself something that has to last.
        engine.sync()?;
        File::open(dir)?.sync_all()?;
        Ok(engine)
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        guarded(|| Ok(self.db.get(key)?.map(|value| value.to_vec())))
    }

    /// Every item whose key starts with `prefix`, in the order of keys.
    pub(crate) fn scan(&self, prefix: &[u8]) -> Result<Vec<Item>, EngineError> {
        guarded(|| {
            self.db
                .scan_prefix(prefix)
                .map(|item| {
                    item.map(|(key, value)| (key.to_vec(), value.to_vec())).map_err(EngineError::from)
                })
                .collect()
        })
    }

    /// Calls `visit` with every item, in the order of keys.
    pub(crate) fn visit(&self, mut visit: impl FnMut(&[u8], &[u8])) -> Result<(), EngineError> {
        guarded(|| {
            for item in &*self.db {
                let (key, value) = item?;
                visit(&key, &value);
            }
            Ok(())
        })
    }

    /// Writes all of `changes` or, if the machine stops meanwhile, none. On the disk when this returns. After an error the
    /// engine may refuse everything: open it anew.
    pub(crate) fn apply<'a>(
        &self,
        changes: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    ) -> Result<(), EngineError> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        guarded(|| {
            self.db.apply_batch(batch)?;
            self.db.flush()?;
            Ok(())
        })?;
        self.sync()
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.sync_pages()?;
        Ok(self.log.sync_data()?)
    }

    /// Pages too large for the log are files of their own, each written once under a new name.
    fn sync_pages(&self) -> Result<(), EngineError> {
        let mut synced = self.synced.lock().expect("no thread panics while holding this lock");
        let mut present = BTreeSet::new();
        let mut new = false;
        for entry in std::fs::read_dir(&self.pages)? {
            let name = entry?.file_name();
            if !synced.contains(&name) {
                match File::open(self.pages.join(&name)) {
                    Ok(file) => file.sync_data()?,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error.into()),
                }
                new = true;
            }
            present.insert(name);
        }
        if new {
            File::open(&self.pages)?.sync_all()?;
        }
        *synced = present;
        Ok(())
    }
}

/// Removes what a stop while writing a snapshot leaves behind.
pub(crate) fn remove_unfinished_snapshots(dir: &Path) -> io::Result<()> {
    remove_snapshots(dir, |name| name.ends_with(".generating")).map(|_| ())
}

/// Removes all snapshots, so that the log is read from its beginning. Says whether there were any.
pub(crate) fn remove_all_snapshots(dir: &Path) -> io::Result<bool> {
    remove_snapshots(dir, |_| true)
}

fn remove_snapshots(dir: &Path, which: impl Fn(&str) -> bool) -> io::Result<bool> {
    let mut any = false;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("snap.") && which(name)) {
            std::fs::remove_file(entry.path())?;
            any = true;
        }
    }
    Ok(any)
}

fn held_by_a_late_thread(error: &io::Error) -> bool {
    // The store's own lock is held already, so this can only be this process.
    error.to_string().contains("could not acquire lock")
}

fn guarded<T>(act: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(EngineError::Corrupt(said.unwrap_or_else(|| "it panicked".into())))
    })
}
