//! Fetching blobs: each by one task, whoever and however many ask for it, resumed by range where it breaks off.
//!
//! A fetch goes on to its end when those who asked for it have gone: the next one will ask again.

use std::collections::BTreeMap;
use std::io::SeekFrom;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::{Semaphore, watch};
use tombolo_api::Digest;
use tombolo_oci::store::Partial;
use tombolo_oci::{BlobStream, Client, Repository, Store, StoreError, TransferError};

use super::{UpstreamError, Upstreams, blocking};

/// Blobs fetched at one time: more gain nothing on a site's uplink.
const FETCHES_MAX: usize = 6;

/// Attempts in a row that brought no byte.
const ATTEMPTS_MAX: u32 = 5;

/// Before the second attempt; doubled for each further one.
const RETRY_FIRST: Duration = Duration::from_millis(500);

/// Longest wait for a blob's beginning: shorter than a node's patience, so that it hears why.
const START_DEADLINE: Duration = Duration::from_secs(25);

/// Largest blob, bytes: beyond the largest layers seen in the wild.
const BLOB_MAX: u64 = 32 << 30;

/// Bytes handed to the disk at once.
const WRITE_PIECE: usize = 256 * 1024;

/// Bytes read from it at once.
const READ_PIECE: usize = 64 * 1024;

/// What is fetched now.
#[derive(Debug)]
pub(super) struct Fetches {
    running: Mutex<BTreeMap<Digest, watch::Receiver<Stage>>>,
    places: Arc<Semaphore>,
}

/// How far a fetch is.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    Asking,
    Coming {
        size: u64,
        here: u64,
    },
    /// Verified, and kept.
    Done {
        size: u64,
    },
    Failed(Arc<TransferError>),
}

/// A blob that comes or has come, to be passed on.
pub(crate) struct Coming {
    cache: Store,
    digest: Digest,
    size: u64,
    stage: watch::Receiver<Stage>,
}

impl Default for Fetches {
    fn default() -> Self {
        Self { running: Mutex::default(), places: Arc::new(Semaphore::new(FETCHES_MAX)) }
    }
}

impl Fetches {
    pub(super) fn running(&self) -> MutexGuard<'_, BTreeMap<Digest, watch::Receiver<Stage>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Upstreams {
    /// The fetch of a blob, begun if nobody did.
    pub(super) fn fetch(
        &self,
        host: &str,
        repository: &Repository,
        digest: Digest,
        name: &str,
    ) -> watch::Receiver<Stage> {
        let mut running = self.0.fetches.running();
        if let Some(stage) = running.get(&digest) {
            return stage.clone();
        }
        let (sender, stage) = watch::channel(Stage::Asking);
        running.insert(digest, stage.clone());
        let (upstreams, host, repository, name) =
            (self.clone(), host.to_owned(), repository.clone(), name.to_owned());
        tokio::spawn(async move {
            let place = upstreams.0.fetches.places.clone().acquire_owned().await;
            let fetched = upstreams.bring(&host, &repository, digest, &sender).await;
            upstreams.learn(&host, &repository, fetched.as_ref().err());
            // From here on it is found in the store, or asked for anew.
            upstreams.0.fetches.running().remove(&digest);
            drop(place);
            let last = match fetched {
                Ok(size) => {
                    tracing::info!(name, %digest, size, "fetched from another registry");
                    upstreams.0.grown.notify_one();
                    Stage::Done { size }
                }
                Err(error) => {
                    tracing::warn!(name, %digest, %error, "cannot fetch from another registry");
                    Stage::Failed(Arc::new(error))
                }
            };
            sender.send_replace(last);
        });
        stage
    }

    /// Brings the whole blob, over as many attempts as it takes while each gets further. Returns its size.
    async fn bring(
        &self,
        host: &str,
        repository: &Repository,
        digest: Digest,
        stage: &watch::Sender<Stage>,
    ) -> Result<u64, TransferError> {
        let (client, there) = self.client(host, repository).await?;
        let (mut attempts, mut furthest, mut mismatched) = (0, 0, false);
        loop {
            let error = match self.attempt(&client, &there, digest, stage).await {
                Ok(size) => return Ok(size),
                // What was here from before may have been damaged: once more, from the first byte.
                Err(error @ TransferError::Store(StoreError::DigestMismatch { .. })) if !mismatched => {
                    mismatched = true;
                    error
                }
                Err(error) if error.is_retryable() => error,
                Err(error) => return Err(error),
            };
            let here = match *stage.borrow() {
                Stage::Coming { here, .. } => here,
                _ => 0,
            };
            attempts = if here > furthest { 1 } else { attempts + 1 };
            furthest = furthest.max(here);
            if attempts >= ATTEMPTS_MAX {
                return Err(error);
            }
            tracing::debug!(%digest, here, %error, "a fetch broke off");
            tokio::time::sleep(RETRY_FIRST * 2u32.pow(attempts - 1)).await;
        }
    }

    /// Appends what is missing, verifies, keeps.
    async fn attempt(
        &self,
        client: &Client,
        repository: &Repository,
        digest: Digest,
        stage: &watch::Sender<Stage>,
    ) -> Result<u64, TransferError> {
        let cache = self.0.cache.clone();
        let here = blocking(move || Ok(cache.partials()?.get(&digest).copied().unwrap_or(0))).await?;
        let mut source = client.open_blob(repository, &digest, here).await?;
        let size = source.size();
        if size > BLOB_MAX {
            return Err(StoreError::TooLarge { digest, size, limit: BLOB_MAX }.into());
        }
        let cache = self.0.cache.clone();
        let mut partial = blocking(move || cache.partial(&digest, size)).await?;
        if partial.len() < here {
            // Not all of it survived a power cut.
            source = client.open_blob(repository, &digest, partial.len()).await?;
        }
        if source.start() == 0 && !partial.is_empty() {
            partial = blocking(move || partial.restart().map(|()| partial)).await?;
        }
        if partial.len() != source.start() || size != source.size() {
            let (wanted, begins) = (partial.len(), source.start());
            let cause = format!("it was asked for the rest from byte {wanted}, and begins at {begins}");
            return Err(TransferError::Broken { what: digest.to_string(), cause });
        }
        stage.send_replace(Stage::Coming { size, here: partial.len() });
        let partial = receive(&mut source, partial, size, stage).await?;
        blocking(move || partial.commit()).await?;
        Ok(size)
    }
}

async fn receive(
    source: &mut BlobStream,
    mut partial: Partial,
    size: u64,
    stage: &watch::Sender<Stage>,
) -> Result<Partial, TransferError> {
    let mut waiting = Vec::with_capacity(WRITE_PIECE);
    let mut end = None;
    while end.is_none() {
        match source.next().await {
            Ok(Some(piece)) => waiting.extend_from_slice(&piece),
            Ok(None) => end = Some(Ok(())),
            // What came before a break is kept for the next attempt.
            Err(error) => end = Some(Err(error)),
        }
        if waiting.len() >= WRITE_PIECE || end.is_some() || partial.is_empty() {
            let piece = std::mem::replace(&mut waiting, Vec::with_capacity(WRITE_PIECE));
            partial = blocking(move || partial.write(&piece).map(|()| partial)).await?;
            stage.send_replace(Stage::Coming { size, here: partial.len() });
        }
    }
    match end {
        Some(Err(error)) => Err(error),
        _ if !partial.is_complete() => {
            Err(TransferError::Interrupted { what: "a blob".into(), cause: "it ended too early".into() })
        }
        _ => Ok(partial),
    }
}

impl Coming {
    /// Waits until it is known how large the blob is.
    pub(super) async fn start(
        cache: Store,
        digest: Digest,
        name: String,
        mut stage: watch::Receiver<Stage>,
    ) -> Result<Self, UpstreamError> {
        let begun = stage.wait_for(|stage| !matches!(stage, Stage::Asking));
        let begun = match tokio::time::timeout(START_DEADLINE, begun).await {
            Ok(Ok(stage)) => stage.clone(),
            _ => return Err(UpstreamError::Slow(name)),
        };
        match begun {
            Stage::Coming { size, .. } | Stage::Done { size } => Ok(Self { cache, digest, size, stage }),
            Stage::Failed(source) => Err(UpstreamError::Transfer { name, source }),
            Stage::Asking => Err(UpstreamError::Slow(name)),
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Its bytes from `start` up to `end`, as they come. The blob's last byte comes when the whole is verified.
    pub(crate) async fn bytes(
        self,
        start: u64,
        end: u64,
    ) -> Result<impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static, StoreError> {
        let file = self.open().await?;
        let state = (file, start, self.stage, self.size);
        Ok(stream::try_unfold(state, move |(mut file, at, mut stage, size)| async move {
            if at >= end {
                return Ok(None);
            }
            let until = ready(&mut stage, at, end, size).await?;
            let wanted = usize::try_from(until - at).unwrap_or(READ_PIECE).min(READ_PIECE);
            let mut piece = vec![0; wanted];
            file.seek(SeekFrom::Start(at)).await?;
            file.read_exact(&mut piece).await?;
            Ok(Some((Bytes::from(piece), (file, at + wanted as u64, stage, size))))
        }))
    }

    /// The file that grows, or that has grown.
    async fn open(&self) -> Result<File, StoreError> {
        let growing: PathBuf = self.cache.root().join("partial").join(self.digest.hex());
        match File::open(&growing).await {
            Ok(file) => Ok(file),
            Err(_) => {
                let (cache, digest) = (self.cache.clone(), self.digest);
                Ok(File::from_std(blocking(move || cache.open_blob(&digest)).await?))
            }
        }
    }
}

/// Waits until there is something to read behind `at`; up to where.
async fn ready(
    stage: &mut watch::Receiver<Stage>,
    at: u64,
    end: u64,
    size: u64,
) -> Result<u64, std::io::Error> {
    loop {
        let until = match &*stage.borrow_and_update() {
            Stage::Asking => at,
            Stage::Coming { here, .. } => (*here).min(size - 1).min(end),
            Stage::Done { .. } => end,
            Stage::Failed(error) => return Err(std::io::Error::other(error.to_string())),
        };
        if until > at {
            return Ok(until);
        }
        // Its task has been ended with the hub.
        stage.changed().await.map_err(std::io::Error::other)?;
    }
}
