//! The kubelet's socket: whose it is, and how it is taken over. Speaks with nobody.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};
use tombolo_device_api::{Incoming, KUBELET_SOCKET, incoming};

use crate::StartError;

/// Root's alone: whoever registers decides what containers get of the host.
const DIRECTORY_MODE: u32 = 0o750;

/// The socket, listening.
pub(crate) struct Socket {
    listener: UnixListener,
    file: SocketFile,
}

/// The socket's file, which goes with this: a plugin would wait at one where nobody answers.
pub(crate) struct SocketFile {
    path: PathBuf,
    mark: Mark,
}

/// What tells one file at a path from the next: a number may be used again at once, with a later time.
#[derive(Debug, PartialEq, Eq)]
struct Mark {
    inode: u64,
    born: (i64, i64),
}

impl Mark {
    fn of(path: &Path) -> io::Result<Self> {
        let file = std::fs::symlink_metadata(path)?;
        Ok(Self { inode: file.ino(), born: (file.ctime(), file.ctime_nsec()) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another agent or a kubelet may have put its own there.
        if Mark::of(&self.path).is_ok_and(|mark| mark == self.mark) {
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// Removes every socket in `directory`, as a kubelet that starts does, and listens at its own.
pub(crate) async fn take_over(directory: &Path) -> Result<Socket, StartError> {
    let path = directory.join(KUBELET_SOCKET);
    if UnixStream::connect(&path).await.is_ok() {
        return Err(StartError::Occupied(path));
    }
    let listen = || {
        std::fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory)?;
        remove_sockets(directory)?;
        let listener = UnixListener::bind(&path)?;
        let mark = Mark::of(&path)?;
        Ok(Socket { listener, file: SocketFile { path: path.clone(), mark } })
    };
    listen().map_err(|source| StartError::Listen { path: path.clone(), source })
}

fn remove_sockets(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_socket() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

impl Socket {
    /// Who connects, and the file that has to stay meanwhile.
    pub(crate) fn connections(self) -> (Incoming, SocketFile) {
        (incoming(self.listener), self.file)
    }
}
