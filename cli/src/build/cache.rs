//! The build cache: layers that take long to make, by a digest of everything they are made of.
//!
//! ```text
//! {XDG_CACHE_HOME or ~/.cache}/tombolo/build/
//!   blobs/<hex>     a layer; complete and on the disk before it has its name
//!   layers/<hex>    a record by its key: which layer, and which other files it was made of
//!   tmp/            a directory of each build under way, removed at its end; emptied when nobody builds
//!   lock            held shared by every build; who gets it alone cleans up
//! ```
//!
//! A build that is killed by force leaves something in `tmp/` at most, and two that make the same layer put the same file in place.
//! Must not know what a layer is for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tempfile::{NamedTempFile, TempDir, TempPath};
use tombolo_api::Digest;
use tombolo_oci::Layer;

use super::interrupt;

/// Bytes of layers that are kept: some tens of bases and dependencies. What was not used for longest goes first.
const BYTES_MAX: u64 = 4 << 30;

/// Of the layout above, and of how layers are made: another number, and nothing from before is found.
const FORMAT: &str = "2";

/// The cache, open until it is dropped.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
    /// Whether what is there counts.
    reads: bool,
    /// Of this build, in `tmp/`.
    work: TempDir,
    _lock: File,
    /// Where there is no place for a cache: it goes with this build.
    _temporary: Option<TempDir>,
}

/// What tells that a file is the same as before without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    size: u64,
    inode: u64,
    seconds: i64,
    nanoseconds: i64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    layer: Layer,
    /// Files that are no part of the key, since they were found while the layer was made.
    depends: BTreeMap<PathBuf, Stamp>,
}

/// Collects what a layer is made of.
#[derive(Debug)]
pub(super) struct Key(Vec<u8>);

impl Key {
    /// `kind` keeps layers of different makers apart.
    pub(super) fn new(kind: &str) -> Self {
        let mut key = Self(Vec::new());
        key.add(FORMAT.as_bytes());
        key.add(kind.as_bytes());
        key
    }

    /// Adds one part; parts do not run into each other.
    pub(super) fn add(&mut self, part: &[u8]) {
        self.0.extend_from_slice(&(part.len() as u64).to_le_bytes());
        self.0.extend_from_slice(part);
    }

    /// Adds a file by its path and its stamp.
    pub(super) fn add_stamp(&mut self, path: &Path, stamp: Stamp) {
        self.add(format!("{}\0{stamp:?}", path.display()).as_bytes());
    }

    fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }
}

impl Stamp {
    pub(super) fn of(path: &Path) -> Option<Self> {
        let found = path.metadata().ok()?;
        Some(Self {
            size: found.size(),
            inode: found.ino(),
            seconds: found.mtime(),
            nanoseconds: found.mtime_nsec(),
        })
    }
}

impl Cache {
    /// The user's cache. With `fresh`, nothing that is in it counts, and what is made takes its place.
    pub(crate) fn open(fresh: bool) -> anyhow::Result<Self> {
        let variable =
            |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
        if let Some(base) = base
            && let Ok(cache) = Self::open_in(&base.join("tombolo/build"), fresh)
        {
            return Ok(cache);
        }
        let temporary =
            TempDir::with_prefix("tombolo-build-").context("no temporary directory can be made")?;
        interrupt::goes_with_us(temporary.path());
        let cache = Self::open_in(temporary.path(), fresh)?;
        Ok(Self { _temporary: Some(temporary), ..cache })
    }

    pub(super) fn open_in(dir: &Path, fresh: bool) -> anyhow::Result<Self> {
        let cannot = || format!("the build cache {} cannot be used", dir.display());
        for name in ["blobs", "layers", "tmp"] {
            fs::create_dir_all(dir.join(name)).with_context(cannot)?;
        }
        let lock = File::options().create(true).truncate(false).write(true).open(dir.join("lock"));
        let lock = lock.with_context(cannot)?;
        if lock.try_lock().is_ok() {
            trim(dir, BYTES_MAX);
            lock.unlock().with_context(cannot)?;
        }
        lock.lock_shared().with_context(cannot)?;
        let made = tempfile::Builder::new().prefix("work-").tempdir_in(dir.join("tmp"));
        let work = made.with_context(cannot)?;
        interrupt::goes_with_us(work.path());
        Ok(Self { dir: dir.to_owned(), reads: !fresh, work, _lock: lock, _temporary: None })
    }

    /// A directory that goes with its handle, and with a later build if this one is killed.
    pub(super) fn scratch(&self) -> anyhow::Result<TempDir> {
        let made = tempfile::Builder::new().prefix("scratch-").tempdir_in(self.work.path());
        made.with_context(|| format!("{} cannot be written", self.work.path().display()))
    }

    /// Where layers are written.
    pub(super) fn tmp(&self) -> PathBuf {
        self.work.path().to_owned()
    }

    /// The layer of this key, if it is here and what it was made of is as it was.
    pub(super) fn find(&self, key: &Key) -> Option<(Layer, PathBuf)> {
        if !self.reads {
            return None;
        }
        let path = self.record(key);
        let record: Record = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        if record.depends.iter().any(|(path, stamp)| Stamp::of(path) != Some(*stamp)) {
            return None;
        }
        let blob = self.blob(&record.layer.digest);
        if blob.metadata().ok()?.len() != record.layer.size {
            return None;
        }
        // It was used: others go first. Only a cleaner's choice depends on it.
        let _ = File::options().write(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Some((record.layer, blob))
    }

    /// Takes a layer that was written into [`Cache::tmp`].
    pub(super) fn keep(
        &self,
        key: &Key,
        file: TempPath,
        layer: &Layer,
        depends: BTreeMap<PathBuf, Stamp>,
    ) -> anyhow::Result<PathBuf> {
        let blob = self.blob(&layer.digest);
        let cannot = || format!("the build cache {} cannot be written", self.dir.display());
        File::open(&file).and_then(|file| file.sync_all()).with_context(cannot)?;
        file.persist(&blob).with_context(cannot)?;
        let record = Record { layer: layer.clone(), depends };
        let mut file = NamedTempFile::new_in(self.tmp()).with_context(cannot)?;
        file.write_all(&serde_json::to_vec(&record).context("a record is plain data")?)
            .with_context(cannot)?;
        file.as_file().sync_all().with_context(cannot)?;
        file.persist(self.record(key)).with_context(cannot)?;
        Ok(blob)
    }

    fn record(&self, key: &Key) -> PathBuf {
        self.dir.join("layers").join(key.digest().hex())
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs").join(digest.hex())
    }
}

/// Removes leftovers, and layers beyond the limit. Nobody else may be at it; what cannot be removed is left.
fn trim(dir: &Path, limit: u64) {
    let list = |name: &str| fs::read_dir(dir.join(name)).into_iter().flatten().flatten();
    for leftover in list("tmp") {
        let path = leftover.path();
        let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    }
    let mut records: Vec<(SystemTime, PathBuf, Option<Record>)> = list("layers")
        .filter_map(|entry| {
            let used = entry.metadata().ok()?.modified().ok()?;
            let record = serde_json::from_slice(&fs::read(entry.path()).ok()?).ok();
            Some((used, entry.path(), record))
        })
        .collect();
    records.sort_by_key(|(used, ..)| std::cmp::Reverse(*used));
    let (mut bytes, mut kept) = (0, BTreeSet::new());
    for (_, path, record) in records {
        let Some(record) = record else {
            let _ = fs::remove_file(path);
            continue;
        };
        let name = record.layer.digest.hex();
        let more = if kept.contains(&name) { 0 } else { record.layer.size };
        if bytes + more > limit {
            let _ = fs::remove_file(path);
            continue;
        }
        bytes += more;
        kept.insert(name);
    }
    for blob in list("blobs") {
        if !kept.contains(&*blob.file_name().to_string_lossy()) {
            let _ = fs::remove_file(blob.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use tombolo_oci::{Members, write_layer};

    fn put(cache: &Cache, name: &str, depends: &[&Path]) -> (Key, Layer) {
        let mut members = Members::default();
        members.add_content(name, name.repeat(1000).into_bytes(), false).unwrap();
        let (file, layer) = write_layer(&members, &cache.tmp()).unwrap();
        let mut key = Key::new("test");
        key.add(name.as_bytes());
        let depends = depends.iter().map(|path| ((*path).to_owned(), Stamp::of(path).unwrap())).collect();
        cache.keep(&key, file, &layer, depends).unwrap();
        (key, layer)
    }

    #[test]
    fn a_layer_is_found_while_what_it_was_made_of_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open_in(&dir.path().join("cache"), false).unwrap();
        let source = dir.path().join("source");
        fs::write(&source, "1").unwrap();
        let (key, layer) = put(&cache, "a", &[&source]);
        let (found, path) = cache.find(&key).unwrap();
        assert_eq!(found, layer);
        assert_eq!(Digest::of(&fs::read(&path).unwrap()), layer.digest);
        assert!(cache.find(&Key::new("test")).is_none());
        assert!(Cache::open_in(&dir.path().join("cache"), true).unwrap().find(&key).is_none());
        fs::write(&source, "12").unwrap();
        assert!(cache.find(&key).is_none());
        let (key, layer) = put(&cache, "b", &[]);
        // As after a power cut.
        File::options().write(true).open(cache.blob(&layer.digest)).unwrap().set_len(3).unwrap();
        assert!(cache.find(&key).is_none());
    }

    #[test]
    fn what_a_killed_build_left_goes_when_nobody_builds() {
        let dir = tempfile::tempdir().unwrap();
        let first = Cache::open_in(dir.path(), false).unwrap();
        let (key, _) = put(&first, "a", &[]);
        let half = dir.path().join("tmp/work-killed");
        fs::create_dir(&half).unwrap();
        let second = Cache::open_in(dir.path(), false).unwrap();
        assert!(half.exists(), "it may be the first one's");
        drop((first, second));
        assert_eq!(
            fs::read_dir(dir.path().join("tmp")).unwrap().count(),
            1,
            "what ends by itself leaves nothing"
        );
        let third = Cache::open_in(dir.path(), false).unwrap();
        assert!(!half.exists());
        assert!(third.find(&key).is_some());
    }

    #[test]
    fn the_oldest_layers_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open_in(dir.path(), false).unwrap();
        let made: Vec<_> = ["a", "b", "c"].map(|name| put(&cache, name, &[])).into_iter().collect();
        for (age, (key, _)) in [300, 100, 200].into_iter().zip(&made) {
            let file = File::options().write(true).open(cache.record(key)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        trim(dir.path(), made[1].1.size + made[2].1.size);
        let found: Vec<_> = made.iter().map(|(key, _)| cache.find(key).is_some()).collect();
        assert_eq!(found, [false, true, true]);
        assert_eq!(fs::read_dir(dir.path().join("blobs")).unwrap().count(), 2);
    }
}
