//! The socket that agents talk on: framing, bounds, and who is heard. Knows messages, not what they mean.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{PeerCredentials, SndBuf};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, recv, send,
    setsockopt, socket,
};
use serde::Deserialize;
use tombolo_agent_core::supervision::{Call, MESSAGE_MAX, Message};

use crate::sys;

/// Messages waiting for an agent that does not read. One that lets this many wait is cut off; it connects again and asks.
const QUEUE_MAX: usize = 1024;

/// Name of the socket below the run directory.
const SOCKET: &str = "supervisor.sock";

/// Makes the socket. Only this user reaches it.
pub(crate) fn listen_in(run_dir: &Path) -> io::Result<OwnedFd> {
    let path = run_dir.join(SOCKET);
    // Left by one that is gone; the lock on the run directory says that no other supervisor serves it.
    remove_socket(run_dir)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(&path)?)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    listen(&fd, Backlog::new(16)?)?;
    Ok(fd)
}

pub(crate) fn remove_socket(run_dir: &Path) -> io::Result<()> {
    match fs::remove_file(run_dir.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What came from a connection.
#[derive(Debug)]
pub(crate) enum Received {
    Call(Call),
    /// Not a call; the number it wants its answer to have, 0 if it has none.
    Malformed {
        seq: u64,
        reason: String,
    },
    Nothing,
    Closed,
}

/// One agent's connection.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    waiting: VecDeque<Vec<u8>>,
    /// It has said hello in the right version.
    pub(crate) is_greeted: bool,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The agent does not read, or is gone.
#[derive(Debug)]
pub(crate) struct Broken;

impl Connection {
    pub(crate) fn accept(listener: &OwnedFd) -> io::Result<Self> {
        let connection = Self::from(sys::accept(listener.as_fd())?, false);
        let peer = getsockopt(&connection.socket, PeerCredentials)?.uid();
        if peer != nix::unistd::geteuid().as_raw() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("user {peer} is not heard")));
        }
        // So that the largest message fits at once; the kernel may grant less, which is only slower.
        let _ = setsockopt(&connection.socket, SndBuf, &(2 * MESSAGE_MAX));
        Ok(connection)
    }

    pub(crate) fn from(socket: OwnedFd, is_greeted: bool) -> Self {
        Self { socket, waiting: VecDeque::new(), is_greeted }
    }

    pub(crate) fn receive(&self, buffer: &mut [u8]) -> Received {
        // MSG_TRUNC: the length is the message's, also when the buffer is shorter.
        match recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC) {
            Ok(0) => Received::Closed,
            Ok(length) => match buffer.get(..length) {
                Some(message) => parse(message),
                None => {
                    Received::Malformed { seq: 0, reason: format!("it is longer than {MESSAGE_MAX} bytes") }
                }
            },
            Err(Errno::EAGAIN | Errno::EINTR) => Received::Nothing,
            Err(_) => Received::Closed,
        }
    }

    /// Sends now, or when the agent reads again.
    pub(crate) fn send(&mut self, message: &Message) -> Result<(), Broken> {
        let Ok(bytes) = serde_json::to_vec(message) else { return Err(Broken) };
        self.waiting.push_back(bytes);
        self.flush()?;
        if self.waiting.len() > QUEUE_MAX { Err(Broken) } else { Ok(()) }
    }

    pub(crate) fn flush(&mut self) -> Result<(), Broken> {
        while let Some(message) = self.waiting.front() {
            match send(self.socket.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => drop(self.waiting.pop_front()),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(_) => return Err(Broken),
            }
        }
        Ok(())
    }

    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

fn parse(message: &[u8]) -> Received {
    #[derive(Deserialize)]
    struct Numbered {
        seq: u64,
    }
    match serde_json::from_slice(message) {
        Ok(call) => Received::Call(call),
        Err(error) => {
            let seq = serde_json::from_slice(message).map_or(0, |Numbered { seq }| seq);
            Received::Malformed { seq, reason: error.to_string() }
        }
    }
}
