//! One `up` per directory: a lock that lives as long as the process, and in the locked file who holds it.

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

/// The locked file in each directory.
pub(super) const FILE: &str = "up.lock";

/// Longest content that is read of it, bytes.
const CONTENT_MAX: u64 = 4096;

/// Names below may be walked through, as containers do; what is secret is closed by itself.
const MODE: u32 = 0o711;

/// Who holds a claim, once it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    pub(super) pid: u32,
    /// URL of its hub.
    pub(super) hub: String,
    /// Address of its router.
    pub(super) router: String,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ClaimError {
    #[error(
        "`tombolo up` is running already: pid {}, hub {}, services at {}; stop it with Ctrl-C there or `kill {}`, \
         or give this one directories and ports of its own (--state-dir, --run-dir, --http-port, …)",
        .0.pid, .0.hub, .0.router, .0.pid
    )]
    Running(Holder),
    #[error("another `tombolo up` is just starting or stopping: {} is locked", .0.display())]
    Changing(PathBuf),
    #[error("cannot claim {}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The locks, held until dropped.
#[derive(Debug)]
pub(super) struct Claims(Vec<Flock<File>>);

impl Claims {
    /// Claims the directories, which are made if absent.
    pub(super) fn take(dirs: &[&Path]) -> Result<Self, ClaimError> {
        dirs.iter().map(|dir| take(dir)).collect::<Result<_, _>>().map(Self)
    }

    /// Writes down who holds them, for a second `up` to tell.
    pub(super) fn tell(&mut self, holder: &Holder) -> anyhow::Result<()> {
        let text = serde_json::to_vec(holder)?;
        for file in &mut self.0 {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(&text)?;
        }
        Ok(())
    }
}

fn take(dir: &Path) -> Result<Flock<File>, ClaimError> {
    let path = dir.join(FILE);
    let failed = |source| ClaimError::Io { path: path.clone(), source };
    loop {
        DirBuilder::new().recursive(true).mode(MODE).create(dir).map_err(failed)?;
        let opened = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut lock = match Flock::lock(opened.map_err(failed)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
                return Err(holder(file).map_or(ClaimError::Changing(path), ClaimError::Running));
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        // The one before may have removed the file between opening and locking: then it is nobody's lock.
        let locked = lock.metadata().map_err(failed)?;
        if path.metadata().is_ok_and(|present| (present.dev(), present.ino()) == (locked.dev(), locked.ino()))
        {
            lock.set_len(0).map_err(failed)?;
            lock.rewind().map_err(failed)?;
            return Ok(lock);
        }
    }
}

fn holder(file: File) -> Option<Holder> {
    let mut text = String::new();
    file.take(CONTENT_MAX).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_of_the_first() {
        let root = tempfile::tempdir().unwrap();
        let (run, state) = (root.path().join("run"), root.path().join("a/state"));
        let mut first = Claims::take(&[&run, &state]).unwrap();
        assert!(matches!(Claims::take(&[&state]), Err(ClaimError::Changing(_))));
        let holder = Holder { pid: 7, hub: "http://127.0.0.1:7080".into(), router: "127.0.0.1:8080".into() };
        first.tell(&holder).unwrap();
        first.tell(&holder).unwrap();
        let error = Claims::take(&[&state]).unwrap_err();
        assert!(matches!(&error, ClaimError::Running(found) if *found == holder), "{error}");
        for told in ["pid 7", "http://127.0.0.1:7080", "kill 7"] {
            assert!(error.to_string().contains(told), "{error}");
        }
    }

    #[test]
    fn a_claim_ends_with_its_holder_and_its_words_with_it() {
        let root = tempfile::tempdir().unwrap();
        let mut first = Claims::take(&[root.path()]).unwrap();
        first.tell(&Holder { pid: 7, hub: String::new(), router: String::new() }).unwrap();
        drop(first);
        let _second = Claims::take(&[root.path()]).unwrap();
        assert!(matches!(Claims::take(&[root.path()]), Err(ClaimError::Changing(_))));
    }

    #[test]
    fn a_removed_directory_is_free() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("run");
        let _first = Claims::take(&[&dir]).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let _second = Claims::take(&[&dir]).unwrap();
        assert!(Claims::take(&[&dir]).is_err());
    }
}
