//! The store of hub and agent: keys to small values, durable when `commit` returns, truthful after a crash.
//!
//! ```text
//! commit ─▶ queue ─▶ writer thread: group, apply as one batch, flush, fdatasync ─▶ answer everyone
//! get, scan ───────▶ the engine, with what is not yet on the disk hidden
//! ```
//!
//! What is checked at [`Store::open`]: every value's checksum; the number of items and the sum of their fingerprints
//! against the root record written with every commit; the number of the last commit against a mark kept outside the
//! engine's files. So a value that is damaged, vanished or went back to an older one is noticed and said
//! ([`Recovery`]), as is a log that lost its end. Files that cannot be read at all are moved aside and the store
//! starts empty. It must not know what its users keep in it; it never repairs contents by guessing.

mod engine;
mod open;
mod record;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::writer::Writer;

/// Longest key, bytes.
pub const KEY_MAX: usize = 1024;

/// Largest value, bytes. Large values are for the rare whole manifest; images, layers and logs belong into files.
pub const VALUE_MAX: usize = 16 << 20;

/// How long a commit may take before its caller is told that the disk does not answer.
pub const COMMIT_DEADLINE: Duration = Duration::from_secs(60);

/// A handle of an open store; clones share it. The store closes when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Store {
    writer: Arc<Writer>,
}

/// Changes that take effect together or not at all. Of several changes of one key the last counts.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    changes: BTreeMap<String, Option<Vec<u8>>>,
}

/// What opening found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Everything committed is there.
    Clean,
    /// The files were damaged; what could be read is there.
    Repaired {
        /// A snapshot was unreadable and the log was read from its beginning instead: by itself no loss.
        snapshots_dropped: bool,
        /// Values whose checksum was wrong; they are gone.
        values_dropped: u64,
        /// Items vanished or have an older value than the last commit gave them.
        contents_differ: bool,
        /// Commits at the log's end that are missing.
        commits_lost: u64,
    },
    /// The files could not be read at all. The store is empty; the files are in `moved_to`.
    StartedEmpty { moved_to: PathBuf },
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the store in {dir} is in use by process {pid}")]
    InUse { dir: PathBuf, pid: String },
    #[error("cannot {act} {path}")]
    Io {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the store in {dir} cannot be opened: {reason}")]
    Engine { dir: PathBuf, reason: String },
}

/// Why something could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the value of {key:?} is damaged")]
    Damaged { key: String },
    #[error("the store cannot be read: {0}")]
    Engine(String),
    /// The store could not be opened again after a failed commit; the next commit tries to.
    #[error("the store is closed until it can be written again: {0}")]
    Closed(String),
}

/// Why a commit failed. Nothing of the batch is visible; every later commit tries again to bring the store back to work.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    #[error("{key:?} is no key: 1 to {KEY_MAX} bytes, not starting with NUL")]
    Key { key: String },
    #[error("the value of {key:?} has {size} bytes, the most is {VALUE_MAX}")]
    TooLarge { key: String, size: usize },
    #[error("the disk of {dir} is full: {free} bytes free, {need} needed")]
    DiskFull { dir: PathBuf, free: u64, need: u64 },
    #[error("the store cannot be written: {0}")]
    Engine(String),
    /// It may or may not take effect later.
    #[error("the disk did not answer within {} s", COMMIT_DEADLINE.as_secs())]
    Deadline,
    #[error("the store is closed")]
    Closed,
}

impl Store {
    /// Opens the store in `dir`, made if absent, for this process alone. See [`Recovery`] for what damage does.
    pub fn open(dir: &Path) -> Result<(Self, Recovery), OpenError> {
        let (opened, recovery) = open::open(dir)?;
        if recovery != Recovery::Clean {
            tracing::warn!(dir = %dir.display(), %recovery, "the store was damaged");
        }
        let writer = Writer::start(opened).map_err(|source| OpenError::Io {
            act: "start the writer of",
            path: dir.into(),
            source,
        })?;
        Ok((Self { writer: Arc::new(writer) }, recovery))
    }

    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, ReadError> {
        self.writer.get(key)
    }

    /// Every item whose key starts with `prefix`, in the order of keys, as of one moment between commits.
    pub fn scan(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, ReadError> {
        self.writer.scan(prefix)
    }

    /// Makes `batch` durable: on the disk when this returns. Blocks; commits of several threads share one write.
    pub fn commit(&self, batch: Batch) -> Result<(), CommitError> {
        self.writer.commit(batch.checked()?)
    }

    /// [`Store::commit`] for async callers: waits without blocking the thread.
    pub async fn commit_async(&self, batch: Batch) -> Result<(), CommitError> {
        self.writer.commit_async(batch.checked()?).await
    }
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn put(&mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> &mut Self {
        self.changes.insert(key.into(), Some(value.into()));
        self
    }

    pub fn delete(&mut self, key: impl Into<String>) -> &mut Self {
        self.changes.insert(key.into(), None);
        self
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    fn checked(self) -> Result<Self, CommitError> {
        for (key, value) in &self.changes {
            if key.is_empty() || key.len() > KEY_MAX || key.starts_with('\0') {
                return Err(CommitError::Key { key: key.chars().take(100).collect() });
            }
            let size = value.as_ref().map_or(0, Vec::len);
            if size > VALUE_MAX {
                return Err(CommitError::TooLarge { key: key.clone(), size });
            }
        }
        Ok(self)
    }
}

impl Recovery {
    /// Whether everything that was ever committed is there.
    pub fn is_complete(&self) -> bool {
        match self {
            Self::Clean => true,
            Self::Repaired { values_dropped, contents_differ, commits_lost, .. } => {
                *values_dropped == 0 && !contents_differ && *commits_lost == 0
            }
            Self::StartedEmpty { .. } => false,
        }
    }
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => f.write_str("everything committed is there"),
            Self::Repaired { snapshots_dropped, values_dropped, contents_differ, commits_lost } => {
                let mut parts = Vec::new();
                if *snapshots_dropped {
                    parts.push("an unreadable snapshot was dropped".to_owned());
                }
                if *values_dropped > 0 {
                    parts.push(format!("{values_dropped} damaged values were dropped"));
                }
                if *contents_differ {
                    parts.push("items are missing or older than they were".to_owned());
                }
                if *commits_lost > 0 {
                    parts.push(format!("the last {commits_lost} commits are missing"));
                }
                f.write_str(&parts.join(", "))
            }
            Self::StartedEmpty { moved_to } => {
                write!(f, "it could not be read, was moved to {} and started empty", moved_to.display())
            }
        }
    }
}
