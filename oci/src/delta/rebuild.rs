//! A layer being put together: from chunks of layers that are here, and from those that come.
//!
//! ```text
//! deltas/<diff id hex>        the uncompressed layer, each chunk at its place, the rest a hole
//! deltas/<diff id hex>.list   its chunk list
//! ```
//!
//! Both survive a restart; what of the content is whole then shows in the chunks' digests, so that nothing has to be written
//! down or synced on the way. The whole becomes a blob under its diff id once that is its digest. Blocks. Must not know where
//! chunks come from.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::iter::{Flatten, Peekable};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::vec;

use flate2::write::GzDecoder;
use tombolo_api::Digest;

use super::chunks::Chunks;
use super::list::{ChunkDigest, ChunkList, ListError, MAX_ENCODED};
use super::selection::Selection;
use crate::layer::Limits;
use crate::layer::decode::Content;
use crate::store::{Store, StoreError, failed};

/// The directory of layers being put together.
const DIRECTORY: &str = "deltas";

/// Bytes of a base without one wanted chunk among them, after which it is taken for another thing altogether.
const STRANGE_AFTER: u64 = 16 << 20;

/// Compressed bytes that are decompressed at once: a thousand times as many may come out.
const SLICE: usize = 2048;

/// A layer being put together. One at a time for each diff id: see [`Store::claim`].
#[derive(Debug)]
pub(crate) struct Rebuilding {
    store: Store,
    list: ChunkList,
    /// Where each chunk begins.
    offsets: Vec<u64>,
    /// The places of all chunks, by length and digest, equal ones in order.
    order: Vec<u32>,
    /// Of equal chunks all are here, or none.
    here: Vec<bool>,
    missing: u64,
    file: File,
    path: PathBuf,
}

/// Chunks on their way.
#[derive(Debug)]
pub(crate) struct Arriving {
    decoder: GzDecoder<Vec<u8>>,
    expected: Peekable<Flatten<vec::IntoIter<Range<u32>>>>,
}

/// Why a layer is not put together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RebuildError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("its chunk list is no good: {0}")]
    List(#[from] ListError),
    #[error("a chunk is not what the list says")]
    Chunk,
    #[error("more came than was asked for")]
    Surplus,
    #[error("what came cannot be decompressed: {0}")]
    Compression(io::Error),
}

impl Rebuilding {
    /// Goes on with the layer `diff_id`, if it was begun.
    pub(crate) fn resume(store: &Store, diff_id: &Digest) -> Result<Option<Self>, RebuildError> {
        let path = list_path(store, diff_id);
        let mut encoded = Vec::new();
        match File::open(&path).and_then(|file| file.take(MAX_ENCODED + 1).read_to_end(&mut encoded)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path)(error).into()),
        }
        match ChunkList::decode(&encoded) {
            Ok(list) if list.diff_id() == *diff_id => {
                let mut rebuilding = Self::open(store, list)?;
                rebuilding.look()?;
                Ok(Some(rebuilding))
            }
            // Written by another version, or damaged: it is asked for again.
            _ => discard(store, diff_id).map(|()| None).map_err(Into::into),
        }
    }

    /// Begins anew.
    pub(crate) fn begin(store: &Store, list: ChunkList) -> Result<Self, RebuildError> {
        store.check_floor(list.size())?;
        let directory = store.root().join(DIRECTORY);
        fs::create_dir_all(&directory).map_err(failed("create", &directory))?;
        discard(store, &list.diff_id())?;
        let path = list_path(store, &list.diff_id());
        let mut file = store.temporary_file()?;
        file.write_all(&list.encode()).map_err(failed("write", file.path()))?;
        file.persist(&path).map_err(|error| failed("rename to", &path)(error.error))?;
        Self::open(store, list)
    }

    fn open(store: &Store, list: ChunkList) -> Result<Self, RebuildError> {
        let path = content_path(store, &list.diff_id());
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(failed("open", &path))?;
        file.set_len(list.size()).map_err(failed("extend", &path))?;
        let mut at = 0;
        let offsets = list.lengths().map(|length| {
            let offset = at;
            at += u64::from(length);
            offset
        });
        let offsets = offsets.collect();
        let mut order: Vec<u32> = (0..).take(list.len()).collect();
        order.sort_unstable_by_key(|index| (key(&list, *index), *index));
        let (here, missing) = (vec![false; list.len()], list.size());
        Ok(Self { store: store.clone(), list, offsets, order, here, missing, file, path })
    }

    /// Looks which chunks are here already.
    fn look(&mut self) -> Result<(), RebuildError> {
        let mut content = Vec::new();
        for place in 0..self.list.len() {
            if self.here[place] {
                continue;
            }
            let chunk = self.list.chunks()[place];
            content.resize(chunk.length as usize, 0);
            self.file.read_exact_at(&mut content, self.offsets[place]).map_err(failed("read", &self.path))?;
            self.store.beat();
            if ChunkDigest::of(&content) == chunk.digest {
                self.place(chunk.digest, &content)?;
            }
        }
        Ok(())
    }

    /// Bytes of it have come, though they are not written yet.
    pub(crate) fn beat(&self) {
        self.store.beat();
    }

    /// Bytes of the uncompressed layer.
    pub(crate) fn size(&self) -> u64 {
        self.list.size()
    }

    /// Bytes of it that are not here.
    pub(crate) fn missing(&self) -> u64 {
        self.missing
    }

    /// The first chunks that are not here; `None`: all are.
    pub(crate) fn selection(&self) -> Option<Selection> {
        let absent = (0..).zip(&self.here).filter(|(_, here)| !**here);
        // Of equal ones the first is enough.
        let first = absent.filter(|(index, _)| {
            let at = self.position(key(&self.list, *index));
            self.order[at] == *index
        });
        Selection::of(first.map(|(index, _)| index))
    }

    /// Takes what another layer has of this one. A base that cannot be read to its end has given what it could.
    pub(crate) fn search(&mut self, base: &Digest) -> Result<(), RebuildError> {
        let Ok(blob) = self.store.open_blob(base) else { return Ok(()) };
        let Ok(content) = Content::new(blob, &Limits::default()) else { return Ok(()) };
        let mut content = Chunks::new(content);
        let (mut read, mut found) = (0, false);
        while self.missing > 0 && (found || read < STRANGE_AFTER.max(self.size() / 4)) {
            let chunk = match content.next_chunk() {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%base, %error, "a layer that may resemble another cannot be read");
                    break;
                }
            };
            self.store.beat();
            read += chunk.len() as u64;
            if self.wants(chunk.len()) {
                found |= self.place(ChunkDigest::of(chunk), chunk)?;
            }
        }
        Ok(())
    }

    /// Makes the layer a blob. Content with another digest is thrown away.
    pub(crate) fn finish(self) -> Result<(), RebuildError> {
        let Self { store, list, path, file, .. } = self;
        drop(file);
        let adopted = store.adopt(&path, &list.diff_id());
        // After the blob, before it or without it: a list that stays behind is no more than a file too many.
        discard(&store, &list.diff_id())?;
        Ok(adopted?)
    }

    /// Gives up.
    pub(crate) fn discard(self) -> Result<(), StoreError> {
        discard(&self.store, &self.list.diff_id())
    }

    /// Whether there is a chunk of this length: most of another layer's need not even be hashed.
    fn wants(&self, length: usize) -> bool {
        let at = self.order.partition_point(|index| (key(&self.list, *index).0 as usize) < length);
        self.order.get(at).is_some_and(|index| key(&self.list, *index).0 as usize == length)
    }

    /// Writes a chunk wherever it belongs, unless it is there; whether it belongs anywhere.
    fn place(&mut self, digest: ChunkDigest, chunk: &[u8]) -> Result<bool, RebuildError> {
        let wanted = (u32::try_from(chunk.len()).expect("chunks are short"), digest);
        let at = self.position(wanted);
        self.store.check_floor(chunk.len() as u64)?;
        let (list, order) = (&self.list, &self.order[at..]);
        let mut belongs = false;
        for index in order.iter().take_while(|index| key(list, **index) == wanted) {
            let place = *index as usize;
            belongs = true;
            if self.here[place] {
                break;
            }
            self.file.write_all_at(chunk, self.offsets[place]).map_err(failed("write", &self.path))?;
        }
        for index in order.iter().take_while(|index| key(list, **index) == wanted) {
            let place = *index as usize;
            if self.here[place] {
                break;
            }
            self.here[place] = true;
            self.missing -= chunk.len() as u64;
        }
        Ok(belongs)
    }

    /// Where chunks like this one begin in `order`.
    fn position(&self, wanted: (u32, ChunkDigest)) -> usize {
        self.order.partition_point(|index| key(&self.list, *index) < wanted)
    }
}

impl Arriving {
    pub(crate) fn new(selection: &Selection) -> Self {
        Self { decoder: GzDecoder::new(Vec::new()), expected: selection.indices().peekable() }
    }

    /// Takes the next piece of the stream.
    pub(crate) fn take(&mut self, piece: &[u8], to: &mut Rebuilding) -> Result<(), RebuildError> {
        for slice in piece.chunks(SLICE) {
            let decoded = self.decoder.write_all(slice).and_then(|()| self.decoder.flush());
            decoded.map_err(RebuildError::Compression)?;
            self.place(to)?;
        }
        Ok(())
    }

    /// Whether every chunk has come.
    pub(crate) fn is_complete(&mut self) -> bool {
        self.expected.peek().is_none()
    }

    fn place(&mut self, to: &mut Rebuilding) -> Result<(), RebuildError> {
        let content = self.decoder.get_mut();
        let mut taken = 0;
        while let Some(index) = self.expected.peek() {
            let expected = to.list.chunks()[*index as usize];
            let Some(chunk) = content.get(taken..taken + expected.length as usize) else { break };
            if ChunkDigest::of(chunk) != expected.digest {
                return Err(RebuildError::Chunk);
            }
            to.place(expected.digest, chunk)?;
            to.store.beat();
            taken += chunk.len();
            self.expected.next();
        }
        content.drain(..taken);
        if self.expected.peek().is_none() && !content.is_empty() {
            return Err(RebuildError::Surplus);
        }
        Ok(())
    }
}

/// Removes what was begun of layers that are not in `keep`, or are here by now in another way.
pub(crate) fn retain(store: &Store, keep: &BTreeSet<Digest>) -> Result<(), StoreError> {
    let directory = store.root().join(DIRECTORY);
    let Ok(entries) = fs::read_dir(&directory) else { return Ok(()) };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        let diff_id = format!("sha256:{name}").parse();
        let wanted = |diff_id| keep.contains(&diff_id) && store.layer_path(&diff_id).is_none();
        if !diff_id.is_ok_and(wanted) {
            remove(&path)?;
        }
    }
    Ok(())
}

fn discard(store: &Store, diff_id: &Digest) -> Result<(), StoreError> {
    remove(&content_path(store, diff_id))?;
    remove(&list_path(store, diff_id))
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn key(list: &ChunkList, index: u32) -> (u32, ChunkDigest) {
    let chunk = list.chunks()[index as usize];
    (chunk.length, chunk.digest)
}

fn content_path(store: &Store, diff_id: &Digest) -> PathBuf {
    store.root().join(DIRECTORY).join(diff_id.hex())
}

fn list_path(store: &Store, diff_id: &Digest) -> PathBuf {
    store.root().join(DIRECTORY).join(diff_id.hex() + ".list")
}
