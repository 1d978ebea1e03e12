//! The content store: a directory of blobs and unpacked layers, each named by its digest.
//!
//! ```text
//! blobs/sha256/<hex>      verified content, immutable
//! partial/<hex>           a download under way; survives restarts, verified as a whole before it becomes a blob
//! partial/<hex>.marks     what of it a power cut leaves
//! deltas/<hex>            a layer being put together from chunks, see `crate::delta`
//! layers/<diff id hex>/   fs/ is an overlay lower directory, `unpacked` its record; renamed into place when complete
//! tmp/                    emptied at every opening
//! lock                    held by the one process that owns the store
//! ```
//!
//! Whatever has its final name is complete and on the disk, at any instant of a crash or power cut: content is written
//! under another name, synced, renamed, and the directory synced. All calls block; async callers use `spawn_blocking`.
//! Must not know manifests, registries, or which content is wanted: [`Store::retain`] is told.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::FlockOperation;
use sha2::{Digest as _, Sha256};
use tombolo_api::Digest;

mod keep;
mod marks;
mod partial;
mod room;

pub use keep::{Keep, Removed};
pub use partial::Partial;
pub use room::Reservation;

use crate::layer::{self, UnpackError};

/// Read and hash in pieces of this size: large enough to be fast, small enough to be nothing beside the process.
const PIECE: usize = 128 * 1024;

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A content store. Cloning gives another handle of the same store.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    /// Who fetches or unpacks which content right now, so that two images that share a layer do it once.
    claims: Mutex<BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    beats: AtomicU64,
    /// Bytes of blobs that came from elsewhere.
    received: AtomicU64,
    room: room::Room,
    /// Which boot of the machine this is.
    boot: String,
    _lock: File,
}

/// A file of the store, every piece of which that is read counts as a beat.
struct Beating {
    store: Store,
    file: File,
}

impl Read for Beating {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.store.beat();
        Ok(count)
    }
}

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the image store {path} is in use by another process")]
    InUse { path: PathBuf },
    #[error("the disk under {path} is full: free space there, or move the state directory to a larger disk")]
    DiskFull { path: PathBuf },
    #[error(
        "{} are needed, but of the {} free under {path} {} stay free for what runs{}: free space there, or move the state directory to a larger disk",
        size(*needed), size(*free), size(*kept), promises(*promised)
    )]
    NoRoom { path: PathBuf, needed: u64, free: u64, kept: u64, promised: u64 },
    #[error("{expected} was expected, but the content is {actual}")]
    DigestMismatch { expected: Digest, actual: Digest },
    #[error("{digest} should be {expected} bytes long, but {actual} bytes came")]
    SizeMismatch { digest: Digest, expected: u64, actual: u64 },
    #[error("{0} is not in the store")]
    Missing(Digest),
    #[error("{digest} is {size} bytes long, more than the {limit} allowed for a document")]
    TooLarge { digest: Digest, size: u64, limit: u64 },
    #[error("cannot {act} {path}")]
    Io {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// Bytes that have to be free before the same may succeed, if it was room on the disk that was wanting; 0 where nobody knows.
    pub fn room_needed(&self) -> Option<u64> {
        match self {
            Self::NoRoom { needed, kept, promised, .. } => {
                Some(needed.saturating_add(*kept).saturating_add(*promised))
            }
            Self::DiskFull { .. } => Some(0),
            _ => None,
        }
    }
}

impl Store {
    /// Opens the store in `root`, made if absent. Leftovers of a crash are removed; downloads under way are kept.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        // Where the kernel does not say, every start is a boot of its own: what was synced is kept.
        let boot = fs::read_to_string(BOOT_ID).unwrap_or_else(|_| format!("unknown {}", std::process::id()));
        Self::open_in_boot(root, &boot)
    }

    /// The same, where `boot` tells one boot of the machine from another.
    pub fn open_in_boot(root: &Path, boot: &str) -> Result<Self, StoreError> {
        for directory in ["blobs/sha256", "partial", "layers", "tmp"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).map_err(failed("create", &path))?;
        }
        let lock_path = root.join("lock");
        let lock = File::create(&lock_path).map_err(failed("create", &lock_path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StoreError::InUse { path: root.into() }),
            Err(error) => return Err(failed("lock", &lock_path)(error.into())),
        }
        for directory in ["blobs", "."] {
            sync_directory(&root.join(directory))?;
        }
        let store = Self(Arc::new(Inner {
            root: root.into(),
            claims: Mutex::default(),
            beats: AtomicU64::new(0),
            received: AtomicU64::new(0),
            room: room::Room::default(),
            boot: boot.trim().replace(char::is_whitespace, "-"),
            _lock: lock,
        }));
        for leftover in store.list("tmp")? {
            remove_tree(&leftover)?;
        }
        Ok(store)
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    fn boot(&self) -> &str {
        &self.0.boot
    }

    fn room(&self) -> &room::Room {
        &self.0.room
    }

    /// Grows with every piece of content that is received, read, unpacked or removed: while it stands still, whoever fetches or
    /// unpacks is stuck.
    pub fn beats(&self) -> u64 {
        self.0.beats.load(Ordering::Relaxed)
    }

    /// Bytes of blobs that came for downloads since the store was opened, those that were of no use included.
    pub fn received(&self) -> u64 {
        self.0.received.load(Ordering::Relaxed)
    }

    /// Something of the content has moved.
    pub(crate) fn beat(&self) {
        self.0.beats.fetch_add(1, Ordering::Relaxed);
    }

    fn beating(&self, file: File) -> Beating {
        Beating { store: self.clone(), file }
    }

    /// Whether the blob is present, complete and verified when it came.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.blob_path(digest).is_file()
    }

    /// Where the blob is, or would be.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.0.root.join("blobs/sha256").join(digest.hex())
    }

    /// The blob's size, if it is present.
    pub fn blob_size(&self, digest: &Digest) -> Option<u64> {
        self.blob_path(digest).metadata().ok().map(|metadata| metadata.len())
    }

    /// Opens a blob for reading.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, StoreError> {
        let path = self.blob_path(digest);
        File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::Missing(*digest),
            _ => failed("open", &path)(error),
        })
    }

    /// Reads a document of at most `limit` bytes, verifying it again.
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let file = self.open_blob(digest)?;
        let path = self.blob_path(digest);
        let size = file.metadata().map_err(failed("read", &path))?.len();
        if size > limit {
            return Err(StoreError::TooLarge { digest: *digest, size, limit });
        }
        let mut content = Vec::new();
        file.take(limit).read_to_end(&mut content).map_err(failed("read", &path))?;
        match Digest::of(&content) {
            actual if actual == *digest => Ok(content),
            actual => Err(StoreError::DigestMismatch { expected: *digest, actual }),
        }
    }

    /// Whether a blob on the disk is still what its name says. Reads all of it.
    pub fn verify(&self, digest: &Digest) -> Result<bool, StoreError> {
        let mut file = self.beating(self.open_blob(digest)?);
        let (actual, _) = digest_of(&mut file).map_err(failed("read", &self.blob_path(digest)))?;
        Ok(actual == *digest)
    }

    /// Stores a small blob.
    pub fn put(&self, content: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(content);
        if self.contains(&digest) {
            return Ok(digest);
        }
        let mut file = self.temporary_file()?;
        file.write_all(content).map_err(failed("write", file.path()))?;
        file.as_file().sync_all().map_err(failed("sync", file.path()))?;
        let path = self.blob_path(&digest);
        file.persist(&path).map_err(|error| failed("rename to", &path)(error.error))?;
        self.sync("blobs/sha256")?;
        Ok(digest)
    }

    /// Makes a complete file on the store's file system the blob `expected`, if that is what it holds. The file is
    /// gone afterwards, unless an error is returned.
    pub fn adopt(&self, path: &Path, expected: &Digest) -> Result<(), StoreError> {
        let mut file = self.beating(File::open(path).map_err(failed("open", path))?);
        let (actual, _) = digest_of(&mut file).map_err(failed("read", path))?;
        if actual != *expected {
            return Err(StoreError::DigestMismatch { expected: *expected, actual });
        }
        file.file.sync_all().map_err(failed("sync", path))?;
        let blob = self.blob_path(expected);
        fs::rename(path, &blob).map_err(failed("rename to", &blob))?;
        self.sync("blobs/sha256")
    }

    /// Starts or goes on with the download of a blob of `size` bytes. Only one at a time per digest: see
    /// [`Store::claim`].
    pub fn partial(&self, digest: &Digest, size: u64) -> Result<Partial, StoreError> {
        Partial::open(self.clone(), digest, size)
    }

    /// Bytes that are here of a download under way, sound or not.
    pub fn partial_size(&self, digest: &Digest) -> u64 {
        self.partial_path(digest).metadata().map_or(0, |metadata| metadata.len())
    }

    /// Waits until no other task fetches or unpacks this content; the claim ends when the guard is dropped.
    pub async fn claim(&self, digest: &Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut claims = self.0.claims.lock().unwrap_or_else(PoisonError::into_inner);
            claims.retain(|_, lock| Arc::strong_count(lock) > 1);
            claims.entry(*digest).or_default().clone()
        };
        lock.lock_owned().await
    }

    /// The lower directory of an unpacked layer, if it is complete.
    pub fn layer_path(&self, diff_id: &Digest) -> Option<PathBuf> {
        let directory = self.layer_directory(diff_id);
        directory.join(layer::RECORD).is_file().then(|| directory.join(layer::ROOT))
    }

    /// Unpacks the layer blob `digest`, whose uncompressed content must be `diff_id`, and gives its lower directory.
    pub fn unpack(&self, digest: &Digest, diff_id: &Digest) -> Result<PathBuf, UnpackError> {
        if let Some(path) = self.layer_path(diff_id) {
            return Ok(path);
        }
        let blob = self.beating(self.open_blob(digest)?);
        let staging = tempfile::Builder::new()
            .prefix("layer-")
            .tempdir_in(self.0.root.join("tmp"))
            .map_err(failed("create", &self.0.root.join("tmp")))?;
        let disk = self.clone();
        let room = layer::RoomLeft(Arc::new(move || disk.check_floor(0).is_ok()));
        let limits = layer::Limits { room, ..layer::Limits::default() };
        layer::unpack(blob, diff_id, staging.path(), &limits)?;
        let directory = File::open(staging.path()).map_err(failed("open", staging.path()))?;
        // One call for the whole file system: a layer has up to a million files, a sync of each would take minutes.
        rustix::fs::syncfs(directory.as_fd())
            .map_err(|error| failed("sync", staging.path())(error.into()))?;
        let target = self.layer_directory(diff_id);
        if let Err(error) = fs::rename(staging.path(), &target) {
            match error.kind() {
                // Another one was faster, or what is there was never complete.
                io::ErrorKind::DirectoryNotEmpty if self.layer_path(diff_id).is_some() => {
                    return Ok(target.join(layer::ROOT));
                }
                io::ErrorKind::DirectoryNotEmpty => {
                    self.remove_layer(diff_id)?;
                    fs::rename(staging.path(), &target).map_err(failed("rename to", &target))?;
                }
                _ => return Err(failed("rename to", &target)(error).into()),
            }
        }
        // The directory has moved: there is nothing left to clean up under the old name.
        let _ = staging.keep();
        self.sync("layers")?;
        Ok(target.join(layer::ROOT))
    }

    /// All blobs with their sizes.
    pub fn blobs(&self) -> Result<BTreeMap<Digest, u64>, StoreError> {
        self.sizes("blobs/sha256")
    }

    /// All downloads under way with the bytes that are here.
    pub fn partials(&self) -> Result<BTreeMap<Digest, u64>, StoreError> {
        self.sizes("partial")
    }

    /// All unpacked layers with the bytes of their files.
    pub fn layers(&self) -> Result<BTreeMap<Digest, u64>, StoreError> {
        let mut layers = BTreeMap::new();
        for path in self.list("layers")? {
            if let Some(diff_id) = digest_in_name(&path) {
                layers.insert(diff_id, layer::recorded_bytes(&path).unwrap_or(0));
            }
        }
        Ok(layers)
    }

    /// Removes a blob, if it is present.
    pub fn remove_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        self.beat();
        remove_tree(&self.blob_path(digest))
    }

    /// Removes an unpacked layer, if it is present: what says that it is complete first, so that a half-removed one is never used.
    /// Takes no room: a full disk can be helped by it.
    pub fn remove_layer(&self, diff_id: &Digest) -> Result<(), StoreError> {
        self.beat();
        let directory = self.layer_directory(diff_id);
        let record = directory.join(layer::RECORD);
        match fs::remove_file(&record) {
            Ok(()) => sync_directory(&directory)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("remove", &record)(error)),
        }
        remove_tree(&directory)
    }

    fn layer_directory(&self, diff_id: &Digest) -> PathBuf {
        self.0.root.join("layers").join(diff_id.hex())
    }

    fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.0.root.join("partial").join(digest.hex())
    }

    /// A file on the store's file system that goes when its handle is dropped.
    pub(crate) fn temporary_file(&self) -> Result<tempfile::NamedTempFile, StoreError> {
        let directory = self.0.root.join("tmp");
        tempfile::NamedTempFile::new_in(&directory).map_err(failed("create a file in", &directory))
    }

    fn sync(&self, directory: &str) -> Result<(), StoreError> {
        sync_directory(&self.0.root.join(directory))
    }

    fn list(&self, directory: &str) -> Result<Vec<PathBuf>, StoreError> {
        let path = self.0.root.join(directory);
        let entries = fs::read_dir(&path).map_err(failed("list", &path))?;
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(entry.map_err(failed("list", &path))?.path());
        }
        Ok(paths)
    }

    fn sizes(&self, directory: &str) -> Result<BTreeMap<Digest, u64>, StoreError> {
        let mut sizes = BTreeMap::new();
        for path in self.list(directory)? {
            // Gone between listing and looking is not an error: a download may just have been completed.
            if let (Some(digest), Ok(metadata)) = (digest_in_name(&path), path.metadata()) {
                sizes.insert(digest, metadata.len());
            }
        }
        Ok(sizes)
    }
}

/// The digest and size of everything a reader still gives.
pub fn digest_of(reader: &mut impl Read) -> io::Result<(Digest, u64)> {
    let mut hasher = Sha256::new();
    let size = hash_into(reader, &mut hasher)?;
    Ok((Digest::from_bytes(hasher.finalize().into()), size))
}

fn hash_into(reader: &mut impl Read, hasher: &mut Sha256) -> io::Result<u64> {
    let mut piece = vec![0; PIECE];
    let mut size = 0;
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return Ok(size),
            Ok(count) => {
                hasher.update(&piece[..count]);
                size += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Makes the names in a directory durable.
pub fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(failed("sync", path))
}

fn remove_tree(path: &Path) -> Result<(), StoreError> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn digest_in_name(path: &Path) -> Option<Digest> {
    format!("sha256:{}", path.file_name()?.to_str()?).parse().ok()
}

/// Bytes for a person.
fn size(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

fn promises(bytes: u64) -> String {
    if bytes == 0 { String::new() } else { format!(" and other downloads need {}", size(bytes)) }
}

/// Names the act and the object of an input or output error, and tells a full disk apart.
pub(crate) fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::DiskFull { path },
        _ => StoreError::Io { act, path, source },
    }
}

#[cfg(test)]
mod tests;
