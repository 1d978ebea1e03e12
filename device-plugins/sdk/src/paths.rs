//! Noticing that something changed below given paths, by inotify. It says that, and not what: whoever waits looks again.
//! Paths that are not there yet are waited for at their nearest ancestor. It must not know what the paths are for.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::net::unix::pipe::Receiver;

/// Room for what is read at once. What the events say is not looked at.
const EVENTS_BYTES: usize = 4096;

/// Directories and files that are watched.
pub(crate) struct Paths {
    wanted: Vec<PathBuf>,
    /// An inotify instance is read like a pipe.
    inotify: Receiver,
}

impl Paths {
    /// # Errors
    /// The system has no inotify instance left.
    pub(crate) fn watch(wanted: Vec<PathBuf>) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let paths = Self { wanted, inotify: Receiver::from_file_unchecked(File::from(inotify))? };
        paths.arm();
        Ok(paths)
    }

    /// Returns when something changed since the last time, or since the watch began.
    ///
    /// # Errors
    /// inotify cannot be read. Nothing will be noticed any more.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        loop {
            self.inotify.readable().await?;
            match self.inotify.try_read(&mut [0; EVENTS_BYTES]) {
                Ok(_) => {
                    // Before the caller looks: what comes into being after that look is then noticed.
                    self.arm();
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Watches every path, or what of it is there. Watching a second time what is watched already changes nothing.
    fn arm(&self) {
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        for path in &self.wanted {
            for there in path.ancestors() {
                match inotify::add_watch(&self.inotify, there, flags) {
                    Ok(_) => break,
                    Err(Errno::NOENT | Errno::NOTDIR) => {}
                    Err(error) => {
                        tell(there, error);
                        break;
                    }
                }
            }
        }
    }
}

fn tell(path: &Path, error: Errno) {
    tracing::warn!(path = %path.display(), %error, "cannot watch; looking at intervals only (see fs.inotify.max_user_watches)");
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    /// Far longer than any machine needs.
    const SOON: Duration = Duration::from_secs(20);

    async fn noticed(paths: &Paths) {
        tokio::time::timeout(SOON, paths.changed()).await.expect("noticed").unwrap();
    }

    #[tokio::test]
    async fn what_comes_into_being_below_a_path_that_was_not_there_is_noticed() {
        let root = tempfile::tempdir().unwrap();
        let wanted = root.path().join("a/b");
        let paths = Paths::watch(vec![wanted.clone()]).unwrap();
        fs::create_dir(root.path().join("a")).unwrap();
        noticed(&paths).await;
        fs::create_dir(&wanted).unwrap();
        noticed(&paths).await;
        fs::write(wanted.join("device"), "").unwrap();
        noticed(&paths).await;
        fs::remove_dir_all(root.path().join("a")).unwrap();
        noticed(&paths).await;
        fs::create_dir_all(&wanted).unwrap();
        noticed(&paths).await;
        fs::write(wanted.join("device"), "").unwrap();
        noticed(&paths).await;
    }
}
