//! Uploads under way: bytes that are no blob yet. Bounded in number, size and time; none outlives the hub.
//!
//! An upload only grows by whole requests: of one that breaks off, nothing counts, and the client goes on from there.

use std::collections::BTreeMap;
use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use futures_util::StreamExt as _;
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};
use tombolo_oci::Repository;

use super::error::ApiError;

/// Uploads at one time: a client pushes a few layers at once, and a few clients push at once.
const UPLOADS_MAX: usize = 64;

/// An upload nobody adds to for this long is dropped.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// Longest silence within a request that sends content.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Largest blob, bytes: beyond the largest layers seen in the wild.
const BLOB_MAX: u64 = 32 << 30;

#[derive(Debug)]
pub(super) struct Uploads {
    directory: PathBuf,
    running: Mutex<BTreeMap<String, Slot>>,
}

#[derive(Debug)]
struct Slot {
    repository: Repository,
    touched: Instant,
    upload: Arc<tokio::sync::Mutex<Upload>>,
}

/// One upload. Its file is removed when it is dropped, unless it became a blob.
#[derive(Debug)]
pub(super) struct Upload {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Uploads {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::create_dir(directory)?,
        }
        Ok(Self { directory: directory.into(), running: Mutex::default() })
    }

    /// Begins an upload to a repository; its id.
    pub(super) async fn begin(&self, repository: &Repository) -> Result<String, ApiError> {
        let id = uuid::Uuid::new_v4().to_string();
        let path = self.directory.join(&id);
        let file = OpenOptions::new().write(true).create_new(true).open(&path).await;
        let file = file.map_err(|error| ApiError::io("create", &path, error))?;
        let upload = Upload { path, file, len: 0 };
        let mut running = self.running();
        running.retain(|_, slot| slot.touched.elapsed() < IDLE_MAX || Arc::strong_count(&slot.upload) > 1);
        if running.len() >= UPLOADS_MAX {
            return Err(ApiError::too_many_uploads());
        }
        let upload = Arc::new(tokio::sync::Mutex::new(upload));
        let repository = repository.clone();
        running.insert(id.clone(), Slot { repository, touched: Instant::now(), upload });
        Ok(id)
    }

    /// The repository's upload with this id, for one request at a time.
    pub(super) fn find(
        &self,
        repository: &Repository,
        id: &str,
    ) -> Result<tokio::sync::OwnedMutexGuard<Upload>, ApiError> {
        let mut running = self.running();
        let slot = running.get_mut(id).filter(|slot| slot.repository == *repository);
        let slot = slot.ok_or_else(ApiError::upload_unknown)?;
        slot.touched = Instant::now();
        Arc::clone(&slot.upload).try_lock_owned().map_err(|_| ApiError::upload_busy())
    }

    /// Ends an upload; whether there was one.
    pub(super) fn end(&self, id: &str) -> bool {
        self.running().remove(id).is_some()
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Upload {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a request's whole body, which must bring it to `end` where that is told.
    pub(super) async fn append(&mut self, body: Body, end: Option<u64>) -> Result<(), ApiError> {
        let failed = |path: &Path, error| ApiError::io("write", path, error);
        // Whatever an earlier request wrote before it broke off.
        self.file.set_len(self.len).await.map_err(|error| failed(&self.path, error))?;
        self.file.seek(SeekFrom::Start(self.len)).await.map_err(|error| failed(&self.path, error))?;
        let mut len = self.len;
        let mut chunks = body.into_data_stream();
        loop {
            let chunk =
                tokio::time::timeout(SILENCE_MAX, chunks.next()).await.map_err(|_| ApiError::too_slow())?;
            let Some(chunk) = chunk else { break };
            let chunk = chunk.map_err(|error| ApiError::broken_body(&error.to_string()))?;
            len += chunk.len() as u64;
            if len > BLOB_MAX {
                return Err(ApiError::too_large(BLOB_MAX));
            }
            self.file.write_all(&chunk).await.map_err(|error| failed(&self.path, error))?;
        }
        self.file.flush().await.map_err(|error| failed(&self.path, error))?;
        if let Some(end) = end.filter(|end| *end != len) {
            let (sent, told) = (len - self.len, end.saturating_sub(self.len));
            return Err(ApiError::size_invalid(format!(
                "the piece has {sent} bytes, but its range says {told}"
            )));
        }
        self.len = len;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Absent if it became a blob.
        let _ = std::fs::remove_file(&self.path);
    }
}
