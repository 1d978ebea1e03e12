//! Chunk lists of layers, and single chunks: what a node asks for instead of a layer of which it has most already.
//!
//! ```text
//! GET  /v2/{name}/_tombolo/chunks/{digest}                 the blob's list, made when it is first asked for
//! POST /v2/{name}/_tombolo/chunks/{digest}   a selection   the chosen chunks, one gzip stream
//!
//! {state_dir}/registry/chunks/{hex of the blob}            a list; empty: there can be none
//! ```
//!
//! No part of a repository's name starts with an underscore, so these paths meet none of the specification's. Lists are a cache: one
//! that is lost or damaged is made again. Must not know what nodes have.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use http::{StatusCode, header};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tombolo_api::Digest;
use tombolo_oci::delta::{ChunkList, CutError, MAX_ENCODED, MAX_SELECTION, Selection, write_selected};
use tombolo_oci::layer::Limits;
use tombolo_oci::{Repository, Store, StoreError, UnpackError};

use super::Registry;
use super::error::ApiError;
use super::http::{blocking, empty};

/// Lists made at one time: the hub has other things to do.
const CUTTING_MAX: usize = 1;

/// Answers prepared or sent from the disk at one time; each holds a decompressor.
const SENDING_MAX: usize = 16;

/// Longest wait for a list or for one's turn: shorter than nodes wait for an answer.
const WAIT: Duration = Duration::from_secs(20);

/// Longest wait for the body of a request.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// A client that takes nothing for so long has gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Uncompressed bytes of an answer that is kept: a fleet asks for the same few chunks all at once.
const SMALL: u64 = 1 << 20;

/// Answers that are kept.
const KEPT_MAX: usize = 32;

/// Bytes sent at once.
const PIECE: usize = 64 * 1024;

/// Lists that are here or being made, and answers to what was asked last.
#[derive(Debug)]
pub(super) struct Chunks {
    directory: PathBuf,
    cutting: Mutex<BTreeMap<Digest, watch::Receiver<()>>>,
    cuts: Arc<Semaphore>,
    sends: Arc<Semaphore>,
    answers: Mutex<VecDeque<(Digest, Bytes)>>,
}

impl Chunks {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Self {
            directory: directory.into(),
            cutting: Mutex::default(),
            cuts: Arc::new(Semaphore::new(CUTTING_MAX)),
            sends: Arc::new(Semaphore::new(SENDING_MAX)),
            answers: Mutex::default(),
        })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.hex())
    }

    /// A list that was made; `Some(None)`: there can be none.
    fn read(&self, digest: &Digest) -> Option<Option<(ChunkList, Bytes)>> {
        let path = self.path(digest);
        if path.metadata().ok()?.len() > MAX_ENCODED {
            return None;
        }
        let encoded = fs::read(path).ok()?;
        if encoded.is_empty() {
            return Some(None);
        }
        let list = ChunkList::decode(&encoded).ok()?;
        Some(Some((list, encoded.into())))
    }

    /// Makes the list of a blob.
    fn cut(&self, images: &Store, digest: &Digest) -> Result<(), StoreError> {
        let limits = Limits::default();
        let encoded = match ChunkList::of(images.open_blob(digest)?, &limits) {
            Ok(list) => list.encode(),
            Err(CutError::Content(UnpackError::Store(error))) => return Err(error),
            Err(error) => {
                tracing::info!(%digest, %error, "a blob has no chunk list");
                Vec::new()
            }
        };
        let path = self.path(digest);
        // Whoever reads it sees all of it or nothing; what a crash leaves of it shows in its sum.
        let temporary = path.with_extension("new");
        let written = fs::write(&temporary, encoded).and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|source| StoreError::Io { act: "write", path, source })?;
        self.purge(images);
        Ok(())
    }

    /// Removes lists of blobs that are gone.
    fn purge(&self, images: &Store) {
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let digest = format!("sha256:{}", entry.file_name().to_string_lossy()).parse();
            if digest.is_ok_and(|digest| !images.contains(&digest)) {
                // The next one that is made is another chance.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn kept(&self, key: &Digest) -> Option<Bytes> {
        lock(&self.answers).iter().find(|(kept, _)| kept == key).map(|(_, answer)| answer.clone())
    }

    fn keep(&self, key: Digest, answer: Bytes) {
        let mut answers = lock(&self.answers);
        answers.truncate(KEPT_MAX - 1);
        answers.push_front((key, answer));
    }
}

/// Whether a request to this path only reads, whatever its method.
pub(super) fn is_read(path: &str) -> bool {
    path.rsplit_once('/').is_some_and(|(rest, _)| rest.ends_with("/_tombolo/chunks"))
}

/// Answers with a blob's chunk list.
pub(super) async fn list(registry: Registry, name: Repository, digest: Digest) -> Result<Response, ApiError> {
    let (_, encoded) = find(&registry, name, digest).await?;
    Ok(content("application/vnd.tombolo.chunks.list", Some(encoded.len()), Body::from(encoded)))
}

/// Answers with the chunks of a blob that the body selects.
pub(super) async fn select(
    registry: Registry,
    name: Repository,
    digest: Digest,
    body: Body,
) -> Result<Response, ApiError> {
    let read = tokio::time::timeout(BODY_DEADLINE, axum::body::to_bytes(body, MAX_SELECTION)).await;
    let encoded =
        read.map_err(|_| ApiError::too_slow())?.map_err(|_| ApiError::too_large(MAX_SELECTION as u64))?;
    let (list, whole) = find(&registry, name, digest).await?;
    let selection = Selection::decode(&encoded, list.len())
        .map_err(|error| ApiError::range_invalid(format!("the selection of chunks is no good: {error}")))?;
    let lengths: Vec<u32> = list.lengths().collect();
    let size: u64 = selection.indices().map(|index| u64::from(lengths[index as usize])).sum();
    // The list is a part of the key: another way of cutting gives the same selection another meaning.
    let key = Digest::of(&[Digest::of(&whole).as_bytes(), &encoded[..]].concat());
    if let Some(answer) = registry.0.chunks.kept(&key) {
        return Ok(chunks(Some(answer.len()), Body::from(answer)));
    }
    let turn = tokio::time::timeout(WAIT, registry.0.chunks.sends.clone().acquire_owned()).await;
    let turn = turn.ok().and_then(Result::ok).ok_or_else(|| ApiError::later("too many ask for chunks"))?;
    if size > SMALL {
        return Ok(chunks(None, stream(registry, digest, list, selection, turn)));
    }
    // Another one may have asked for it meanwhile.
    let answer = match registry.0.chunks.kept(&key) {
        Some(answer) => answer,
        None => {
            let answer = blocking(move || prepare(&registry, &digest, &list, &selection, key)).await?;
            drop(turn);
            answer
        }
    };
    Ok(chunks(Some(answer.len()), Body::from(answer)))
}

fn prepare(
    registry: &Registry,
    digest: &Digest,
    list: &ChunkList,
    selection: &Selection,
    key: Digest,
) -> Result<Bytes, ApiError> {
    let mut answer = Vec::new();
    write_selected(registry.0.images.open_blob(digest)?, list, selection, &mut answer)
        .map_err(|error| unreadable(digest, &error))?;
    let answer = Bytes::from(answer);
    registry.0.chunks.keep(key, answer.clone());
    Ok(answer)
}

/// The chunks as they are read and compressed, as fast as the client takes them.
fn stream(
    registry: Registry,
    digest: Digest,
    list: ChunkList,
    selection: Selection,
    turn: OwnedSemaphorePermit,
) -> Body {
    let (sender, mut receiver) = mpsc::channel(1);
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        let mut pieces = Pieces { sender, runtime, waiting: Vec::with_capacity(PIECE) };
        let written = registry.0.images.open_blob(&digest).map_err(UnpackError::from);
        let written = written.and_then(|blob| write_selected(blob, &list, &selection, &mut pieces));
        if let Err(error) = written {
            tracing::debug!(%digest, %error, "an answer with chunks ends early");
            // A body that ends in an error is cut off, which the client sees.
            let _ = pieces.send(Err(io::Error::other(error)));
        }
        drop(turn);
    });
    Body::from_stream(futures_util::stream::poll_fn(move |context| receiver.poll_recv(context)))
}

/// Writes what a body takes.
struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    runtime: Handle,
    waiting: Vec<u8>,
}

impl Pieces {
    fn send(&mut self, piece: io::Result<Bytes>) -> io::Result<()> {
        let sent = self.runtime.block_on(tokio::time::timeout(SILENCE_MAX, self.sender.send(piece)));
        match sent {
            Ok(Ok(())) => Ok(()),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.waiting, Vec::with_capacity(PIECE));
        self.send(Ok(piece.into()))
    }
}

/// The list of a blob that the repository has, made if need be.
async fn find(registry: &Registry, name: Repository, digest: Digest) -> Result<(ChunkList, Bytes), ApiError> {
    let look = || {
        let (registry, name) = (registry.clone(), name.clone());
        blocking(move || -> Result<_, ApiError> {
            if !registry.0.names.has_blob(&name, &digest) || !registry.0.images.contains(&digest) {
                return Err(ApiError::blob_unknown(&digest));
            }
            Ok(registry.0.chunks.read(&digest))
        })
    };
    if let Some(found) = look().await? {
        return found.ok_or_else(|| ApiError::no_chunks(&digest));
    }
    let mut made = join(registry, digest);
    // It changes only by ending.
    if tokio::time::timeout(WAIT, made.changed()).await.is_err() {
        return Err(ApiError::later("the chunk list is being made"));
    }
    match look().await? {
        Some(found) => found.ok_or_else(|| ApiError::no_chunks(&digest)),
        None => Err(ApiError::no_chunks(&digest)),
    }
}

/// Ends when the list is made, which goes on though nobody waits for it.
fn join(registry: &Registry, digest: Digest) -> watch::Receiver<()> {
    let mut cutting = lock(&registry.0.chunks.cutting);
    cutting.retain(|_, ended| ended.has_changed().is_ok());
    let start = || {
        let (sender, ended) = watch::channel(());
        let registry = registry.clone();
        tokio::spawn(async move {
            let _turn = registry.0.chunks.cuts.clone().acquire_owned().await;
            let work = registry.clone();
            let made = blocking(move || work.0.chunks.cut(&work.0.images, &digest)).await;
            if let Err(error) = made {
                tracing::warn!(%digest, ?error, "no chunk list can be made");
            }
            drop(sender);
        });
        ended
    };
    cutting.entry(digest).or_insert_with(start).clone()
}

fn unreadable(digest: &Digest, error: &UnpackError) -> ApiError {
    tracing::warn!(%digest, %error, "a blob whose chunk list is here cannot be read");
    ApiError::no_chunks(digest)
}

fn chunks(length: Option<usize>, body: Body) -> Response {
    content("application/vnd.tombolo.chunks+gzip", length, body)
}

fn content(media_type: &str, length: Option<usize>, body: Body) -> Response {
    let mut headers = vec![(header::CONTENT_TYPE, media_type.to_owned())];
    headers.extend(length.map(|length| (header::CONTENT_LENGTH, length.to_string())));
    let mut response = empty(StatusCode::OK, &headers);
    *response.body_mut() = body;
    response
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
