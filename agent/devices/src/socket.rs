//! The kubelet's socket: whose it is, and how it is taken over. Speaks with nobody.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _};
use std::path::Path;

use tokio::net::{UnixListener, UnixStream};
use tombolo_device_api::{Incoming, KUBELET_SOCKET, incoming};

use crate::StartError;

/// Root's alone: whoever registers decides what containers get of the host.
const DIRECTORY_MODE: u32 = 0o750;

/// The socket, listening.
pub(crate) struct Socket(UnixListener);

/// Removes every socket in `directory`, as a kubelet that starts does, and listens at its own.
pub(crate) async fn take_over(directory: &Path) -> Result<Socket, StartError> {
    let path = directory.join(KUBELET_SOCKET);
    if UnixStream::connect(&path).await.is_ok() {
        return Err(StartError::Occupied(path));
    }
    let listen = || {
        std::fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory)?;
        remove_sockets(directory)?;
        UnixListener::bind(&path)
    };
    listen().map(Socket).map_err(|source| StartError::Listen { path, source })
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
    pub(crate) fn connections(self) -> Incoming {
        incoming(self.0)
    }
}
