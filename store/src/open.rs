//! Opening the store's directory: the lock, the guarded opening of the engine, the check of what it holds.
//!
//! ```text
//! lock ─▶ drop unfinished snapshots ─▶ open and check ─damaged─▶ drop all snapshots ─▶ open and check ─damaged─▶ move
//!                                          │                          │                            aside, start empty
//!                                          └────────────▶ repair the root record ─▶ done
//! ```
//!
//! A directory is only moved aside for what its files say, never because the disk is full or forbidden. Knows nothing of
//! commits in flight.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};

use crate::engine::{self, Engine, EngineError};
use crate::record::{self, ROOT_KEY, Root};
use crate::{OpenError, Recovery};

/// Size of a file that only keeps room, so that a store can be opened on a disk that is full to the last byte:
/// the engine writes a snapshot of a few kilobytes when it opens, and a segment of its log is 512 KiB.
const RESERVE_BYTES: i64 = 4 << 20;

const LOCK_FILE: &str = "lock";
const MARK_FILE: &str = "commits";
const RESERVE_FILE: &str = "reserve";

/// A store's directory, opened and checked.
pub(crate) struct Opened {
    pub(crate) dir: PathBuf,
    pub(crate) engine: Engine,
    pub(crate) root: Root,
    pub(crate) mark: File,
    /// Held for as long as the store is open.
    pub(crate) lock: Flock<File>,
}

/// Opens the store in `dir`.
pub(crate) fn open(dir: &Path) -> Result<(Opened, Recovery), OpenError> {
    make_dir(dir)?;
    let mut lock = take_lock(dir)?;
    let mut snapshots_dropped = false;
    let checked = match open_engine(dir) {
        Err(error) if speaks_of_damage(&error) => {
            tracing::warn!(dir = %dir.display(), %error, "the store's files are damaged: trying without snapshots");
            snapshots_dropped =
                engine::remove_all_snapshots(dir).map_err(|error| io_error("clear", dir, error))?;
            open_engine(dir)
        }
        result => result,
    };
    let (checked, mut recovery) = match checked {
        Ok(checked) => (checked, None),
        Err(error) if speaks_of_damage(&error) => {
            tracing::error!(dir = %dir.display(), %error, "the store's files cannot be read: starting empty");
            let moved_to = move_aside(dir)?;
            make_dir(dir)?;
            lock = take_lock(dir)?;
            let checked = open_engine(dir).map_err(|error| engine_error(dir, error))?;
            (checked, Some(Recovery::StartedEmpty { moved_to }))
        }
        Err(error) => return Err(engine_error(dir, error)),
    };
    let mark = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join(MARK_FILE))
        .map_err(|error| io_error("open", &dir.join(MARK_FILE), error))?;
    let (root, found) =
        settle(&checked, &mark, snapshots_dropped).map_err(|error| engine_error(dir, error))?;
    recovery.get_or_insert(found);
    keep_reserve(dir);
    let opened = Opened { dir: dir.into(), engine: checked.engine, root, mark, lock };
    Ok((opened, recovery.expect("set above")))
}

/// Opens the engine again after a failed write and reads what its root says. The lock is held already.
pub(crate) fn reopen(dir: &Path) -> Result<(Engine, Root), EngineError> {
    engine::remove_unfinished_snapshots(dir)?;
    let engine = Engine::open(dir)?;
    let checked = check(engine)?;
    if checked.damaged.is_empty() && checked.is_as_stored() {
        Ok((checked.engine, checked.found))
    } else {
        Err(EngineError::Failed("its contents changed while it was closed: restart to check them".into()))
    }
}

/// Writes the mark that `commit` has been made. It gives a lost end of the log away; it is not needed to find anything,
/// so nobody waits until it is on the disk.
pub(crate) fn write_mark(mark: &File, commit: u64) {
    if let Err(error) = mark.write_all_at(&record::encode_mark(commit), 0) {
        tracing::debug!(%error, "cannot write the commit mark");
    }
}

/// An engine and what was found in it.
struct Checked {
    engine: Engine,
    /// What the root record says; `None` if there is none or it is damaged.
    stored: Option<Root>,
    /// What the items say; `commit` as stored.
    found: Root,
    /// Keys of values whose checksum is wrong.
    damaged: Vec<Vec<u8>>,
}

impl Checked {
    fn is_as_stored(&self) -> bool {
        self.stored == Some(self.found) || (self.stored.is_none() && self.found == Root::default())
    }
}

fn open_engine(dir: &Path) -> Result<Checked, EngineError> {
    engine::remove_unfinished_snapshots(dir)?;
    let engine = match Engine::open(dir) {
        Err(EngineError::Io(error)) if error.kind() == io::ErrorKind::StorageFull => {
            tracing::warn!(dir = %dir.display(), "the disk is full: opening the store with its reserve");
            let _ = fs::remove_file(dir.join(RESERVE_FILE));
            engine::remove_unfinished_snapshots(dir)?;
            Engine::open(dir)?
        }
        result => result?,
    };
    check(engine)
}

fn check(engine: Engine) -> Result<Checked, EngineError> {
    let mut stored = None;
    let mut found = Root::default();
    let mut damaged = Vec::new();
    engine.visit(|key, value| {
        if key == ROOT_KEY {
            stored = Root::decode(value);
        } else if record::unseal(value).is_none() {
            damaged.push(key.to_vec());
        } else {
            found.add(key, value);
        }
    })?;
    found.commit = stored.map_or(0, |root| root.commit);
    Ok(Checked { engine, stored, found, damaged })
}

/// Compares what was found with what should be there, and makes what was found the truth from now on.
fn settle(checked: &Checked, mark: &File, snapshots_dropped: bool) -> Result<(Root, Recovery), EngineError> {
    let marked = read_mark(mark).unwrap_or(0);
    let commits_lost = marked.saturating_sub(checked.found.commit);
    let values_dropped = checked.damaged.len() as u64;
    let contents_differ = values_dropped == 0 && !checked.is_as_stored();
    if values_dropped == 0 && !contents_differ && commits_lost == 0 {
        let whole = Recovery::Repaired { snapshots_dropped, values_dropped, contents_differ, commits_lost };
        return Ok((checked.found, if snapshots_dropped { whole } else { Recovery::Clean }));
    }
    let root = Root { commit: marked.max(checked.found.commit) + 1, ..checked.found };
    let encoded = root.encode();
    let drops = checked.damaged.iter().map(|key| (key.as_slice(), None));
    checked.engine.apply(drops.chain([(ROOT_KEY, Some(encoded.as_slice()))]))?;
    write_mark(mark, root.commit);
    Ok((root, Recovery::Repaired { snapshots_dropped, values_dropped, contents_differ, commits_lost }))
}

fn read_mark(mut mark: &File) -> Option<u64> {
    let mut bytes = Vec::new();
    mark.read_to_end(&mut bytes).ok()?;
    record::decode_mark(&bytes)
}

/// Whether another try with fewer files, or none, can help.
fn speaks_of_damage(error: &EngineError) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error {
        EngineError::Corrupt(_) | EngineError::Failed(_) => true,
        EngineError::Io(error) => {
            !matches!(error.kind(), PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull)
        }
    }
}

fn make_dir(dir: &Path) -> Result<(), OpenError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(dir).map_err(|error| io_error("create", dir, error))
}

fn take_lock(dir: &Path) -> Result<Flock<File>, OpenError> {
    let path = dir.join(LOCK_FILE);
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = open.map_err(|error| io_error("open", &path, error))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            // Only for the message below: a full disk must not keep the store closed.
            let _ = lock.set_len(0).and_then(|()| lock.write_all(std::process::id().to_string().as_bytes()));
            Ok(lock)
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            Err(OpenError::InUse { dir: dir.into(), pid: if pid.is_empty() { "?".into() } else { pid } })
        }
        Err((_, error)) => Err(io_error("lock", &path, error.into())),
    }
}

/// Renames the directory to `store.corrupt-<unix time>`, beside it.
fn move_aside(dir: &Path) -> Result<PathBuf, OpenError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut target = dir.with_file_name(format!("{name}.corrupt-{now}"));
    let mut number = 1;
    while target.exists() {
        number += 1;
        target = dir.with_file_name(format!("{name}.corrupt-{now}-{number}"));
    }
    fs::rename(dir, &target).map_err(|error| io_error("move aside", dir, error))?;
    if let Some(parent) = dir.parent().and_then(|parent| File::open(parent).ok()) {
        let _ = parent.sync_all();
    }
    Ok(target)
}

/// Best effort: without it the store works, only not from a disk that was full when it was opened.
fn keep_reserve(dir: &Path) {
    let path = dir.join(RESERVE_FILE);
    let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let reserved =
        open.and_then(|file| Ok(fallocate(file.as_raw_fd(), FallocateFlags::empty(), 0, RESERVE_BYTES)?));
    if let Err(error) = reserved {
        tracing::debug!(%error, "cannot reserve room on the disk");
    }
}

fn io_error(act: &'static str, path: &Path, source: io::Error) -> OpenError {
    OpenError::Io { act, path: path.into(), source }
}

fn engine_error(dir: &Path, error: EngineError) -> OpenError {
    match error {
        EngineError::Io(source) => io_error("open the store in", dir, source),
        error => OpenError::Engine { dir: dir.into(), reason: error.to_string() },
    }
}
