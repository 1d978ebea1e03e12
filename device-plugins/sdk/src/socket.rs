//! A plugin's socket: made, recognised, removed. It must not know what is served there.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tombolo_device_api::{Incoming, incoming};

/// How long a socket that lies in the way is asked whether somebody is behind it.
const PROBE_MAX: Duration = Duration::from_secs(2);

/// The longest path of a socket: what the kernel's address has room for, without its closing zero.
pub(crate) const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Tells a file from another one that has taken its name. The number of the inode alone may be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl FileId {
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let meta = fs::symlink_metadata(path).ok()?;
        let changed = (meta.ctime(), meta.ctime_nsec());
        Some(Self { device: meta.dev(), inode: meta.ino(), changed })
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error("there is no directory {}; waiting for it (--directory gives another one)", .0.display())]
    NoDirectory(PathBuf),
    #[error("another program serves this resource at {}; waiting for its end", .0.display())]
    Taken(PathBuf),
    #[error("cannot make the socket {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The socket of this program. It is removed with this.
pub(crate) struct Bound {
    path: PathBuf,
    id: FileId,
}

impl Bound {
    pub(crate) async fn bind(path: &Path) -> Result<(Self, Incoming), BindError> {
        let failed = |source| BindError::Io { path: path.to_owned(), source };
        if FileId::of(path).is_some() {
            if let Ok(Ok(_)) = timeout(PROBE_MAX, UnixStream::connect(path)).await {
                return Err(BindError::Taken(path.to_owned()));
            }
            // Left by one that was killed.
            fs::remove_file(path).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => BindError::NoDirectory(path.parent().unwrap_or(path).to_owned()),
            _ => failed(error),
        })?;
        let id = FileId::of(path).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        Ok((Self { path: path.to_owned(), id }, incoming(listener)))
    }

    /// Whether the socket is still there, and the same.
    pub(crate) fn is_there(&self) -> bool {
        FileId::of(&self.path) == Some(self.id)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if self.is_there() {
            // If it cannot be removed, the next program finds that nobody is behind it.
            let _ = fs::remove_file(&self.path);
        }
    }
}
