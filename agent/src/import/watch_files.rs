//! Where bundles and requests for them appear: the agent's own import directory, and directories in which media are mounted.
//!
//! Costs nothing while nothing happens: the kernel tells of new names, and is asked for new mounts where there may be any. A
//! medium may be mounted on a directory of the configured ones or on one just below; bundles are its files `*.tombolo` and `*.tar`,
//! at its top.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::net::unix::pipe::Receiver;

use super::request::Request;

/// Room for what is read at once.
const EVENTS_BYTES: usize = 4096;

/// How often the kernel is asked whether anything was mounted, which takes it a microsecond.
const MOUNTS_LOOK: Duration = Duration::from_secs(2);

/// Directories that are watched: a machine has a few slots for media.
const DIRECTORIES_MAX: usize = 64;

/// Files that are looked at in one directory.
const FILES_MAX: usize = 1_024;

/// Whether a file is still the one that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// What is there.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) requests: Vec<Request>,
    pub(super) bundles: BTreeMap<PathBuf, Stamp>,
}

/// Watches. An inotify instance is read like a pipe.
pub(super) struct Watcher {
    notify: Arc<Receiver>,
    /// The table of mounts; only with directories for media.
    mounts: Option<File>,
    own: PathBuf,
    media: Vec<PathBuf>,
}

impl Watcher {
    /// Watches `own`, and `media` with the directories in them.
    pub(super) fn start(own: &Path, media: &[PathBuf]) -> io::Result<Self> {
        let notify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let notify = Arc::new(Receiver::from_file_unchecked(File::from(notify))?);
        let mounts = if media.is_empty() { None } else { Some(File::open("/proc/self/mountinfo")?) };
        Ok(Self { notify, mounts, own: own.to_owned(), media: media.to_vec() })
    }

    /// Returns when there may be something else than at the last look.
    pub(super) async fn changed(&self) {
        tokio::select! {
            () = noteworthy(&self.notify) => {}
            () = mounted(self.mounts.as_ref()) => {}
        }
    }

    /// What to look with, where it may block.
    pub(super) fn look(&self) -> impl FnOnce() -> Found + Send + 'static {
        let (notify, own, media) = (self.notify.clone(), self.own.clone(), self.media.clone());
        move || {
            let mut found = Found::default();
            let mut directories = BTreeSet::new();
            for directory in &media {
                // Watched before it is looked at: nothing comes unseen in between.
                watch(&notify, directory);
                let below = list(directory).filter(|path| path.is_dir());
                directories.extend(std::iter::once(directory.clone()).chain(below).take(DIRECTORIES_MAX));
            }
            directories.insert(own.clone());
            for directory in directories.into_iter().take(DIRECTORIES_MAX) {
                watch(&notify, &directory);
                for path in list(&directory) {
                    if directory == own && Request::is_one(&path) {
                        found.requests.extend(Request::read(&path));
                    } else if let Some(stamp) = is_bundle(&path).then(|| stamp(&path)).flatten() {
                        found.bundles.insert(path, stamp);
                    }
                }
            }
            found
        }
    }
}

/// Whether a file is called as bundles are.
fn is_bundle(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "tombolo" || extension == "tar")
}

/// Of a plain file only: a medium may hold links to anywhere.
fn stamp(path: &Path) -> Option<Stamp> {
    let about = path.symlink_metadata().ok().filter(fs::Metadata::is_file)?;
    Some(Stamp {
        device: about.dev(),
        inode: about.ino(),
        size: about.size(),
        modified: (about.mtime(), about.mtime_nsec()),
    })
}

/// What is in a directory, in order; nothing if it cannot be read.
fn list(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let paths: BTreeSet<PathBuf> = entries.take(FILES_MAX).map(|entry| entry.path()).collect();
    paths.into_iter()
}

/// Watches a directory, if it is there.
fn watch(notify: &Receiver, directory: &Path) {
    match inotify::add_watch(notify, directory, events()) {
        Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {}
        Err(error) => {
            tracing::warn!(directory = %directory.display(), %error, "bundles that appear there are not noticed");
        }
    }
}

/// What says that something has come or gone.
fn events() -> WatchFlags {
    WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::CREATE
        | WatchFlags::DELETE
}

/// Returns when inotify tells of something that may matter.
async fn noteworthy(notify: &Receiver) {
    let mut buffer = [0; EVENTS_BYTES];
    loop {
        let count = match notify.readable().await {
            Ok(()) => notify.try_read(&mut buffer),
            Err(error) => Err(error),
        };
        match count {
            Ok(count) if may_matter(&buffer[..count]) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, "bundles that appear are not noticed any more");
                return std::future::pending().await;
            }
        }
    }
}

/// Whether anything of these events may matter: not what the agent itself writes, nor a file that has only begun to be written.
fn may_matter(mut events: &[u8]) -> bool {
    // As inotify(7) has it: descriptor, mask, cookie, length of the name that follows.
    while let Some((head, rest)) = events.split_first_chunk::<16>() {
        let [_, _, _, _, a, b, c, d, _, _, _, _, length @ ..] = *head;
        let mask = ReadFlags::from_bits_retain(u32::from_ne_bytes([a, b, c, d]));
        let length = u32::from_ne_bytes(length) as usize;
        let (name, after) = rest.split_at(length.min(rest.len()));
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = Path::new(std::ffi::OsStr::from_bytes(name));
        let is_named = is_bundle(name) || Request::is_one(name) || name.as_os_str().is_empty();
        if mask.contains(ReadFlags::ISDIR) || (is_named && !mask.contains(ReadFlags::CREATE)) {
            return true;
        }
        events = after;
    }
    false
}

/// Returns when something was mounted or unmounted.
async fn mounted(table: Option<&File>) {
    let Some(table) = table else { return std::future::pending().await };
    loop {
        tokio::time::sleep(MOUNTS_LOOK).await;
        let mut asked = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
        if poll(&mut asked, PollTimeout::ZERO).is_ok_and(|changed| changed > 0) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn comes(watcher: &Watcher) -> bool {
        tokio::time::timeout(Duration::from_secs(10), watcher.changed()).await.is_ok()
    }

    async fn stays_quiet(watcher: &Watcher) -> bool {
        tokio::time::timeout(Duration::from_millis(300), watcher.changed()).await.is_err()
    }

    #[tokio::test]
    async fn finds_requests_and_bundles_and_nothing_else() {
        let (own, media) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let watcher = Watcher::start(own.path(), &[media.path().to_owned()]).unwrap();
        assert!(watcher.look()().bundles.is_empty());
        let request = Request::place(own.path(), Path::new("/x")).unwrap();
        assert!(comes(&watcher).await);
        assert_eq!(watcher.look()().requests, std::slice::from_ref(&request));
        // The agent's own words are no news.
        request.tell(&super::super::Report::default()).unwrap();
        assert!(stays_quiet(&watcher).await);
        let stick = media.path().join("stick");
        fs::create_dir(&stick).unwrap();
        assert!(comes(&watcher).await);
        watcher.look()();
        for name in ["a.tombolo", "b.tar", "c.txt"] {
            fs::write(stick.join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", stick.join("d.tar")).unwrap();
        fs::create_dir_all(stick.join("deeper/still")).unwrap();
        fs::write(stick.join("deeper/e.tar"), "e").unwrap();
        assert!(comes(&watcher).await);
        let found: Vec<PathBuf> = watcher.look()().bundles.into_keys().collect();
        assert_eq!(found, [stick.join("a.tombolo"), stick.join("b.tar")]);
        fs::remove_dir_all(&stick).unwrap();
        assert!(comes(&watcher).await);
        assert!(watcher.look()().bundles.is_empty());
    }
}
