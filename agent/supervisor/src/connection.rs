//! The socket that agents talk on: framing, bounds, and who is heard. Knows messages, not what they mean.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{PeerCredentials, SndBuf};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    bind, getsockopt, listen, recvmsg, sendmsg, setsockopt, socket,
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
    /// With the descriptor that came along.
    Call(Call, Option<OwnedFd>),
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
    /// Messages, with the descriptors that go along.
    waiting: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
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
        let mut control = nix::cmsg_space!(RawFd);
        let mut parts = [IoSliceMut::new(buffer)];
        // MSG_TRUNC: the length is the message's, also when the buffer is shorter.
        let flags = MsgFlags::MSG_TRUNC | MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags);
        let (length, descriptor) = match received {
            // What does not fit beside one descriptor is closed by the kernel.
            Ok(message) => (message.bytes, message.cmsgs().ok().and_then(|mut all| all.find_map(descriptor))),
            Err(Errno::EAGAIN | Errno::EINTR) => return Received::Nothing,
            Err(_) => return Received::Closed,
        };
        if length == 0 {
            return Received::Closed;
        }
        match buffer.get(..length) {
            Some(message) => parse(message, descriptor),
            None => Received::Malformed { seq: 0, reason: format!("it is longer than {MESSAGE_MAX} bytes") },
        }
    }

    /// Sends now, or when the agent reads again; `descriptor` goes along.
    pub(crate) fn send(&mut self, message: &Message, descriptor: Option<OwnedFd>) -> Result<(), Broken> {
        let Ok(bytes) = serde_json::to_vec(message) else { return Err(Broken) };
        self.waiting.push_back((bytes, descriptor));
        self.flush()?;
        if self.waiting.len() > QUEUE_MAX { Err(Broken) } else { Ok(()) }
    }

    pub(crate) fn flush(&mut self) -> Result<(), Broken> {
        while let Some((message, descriptor)) = self.waiting.front() {
            let descriptor = descriptor.as_ref().map(|fd| [fd.as_raw_fd()]);
            let along = descriptor.as_ref().map(|fds| ControlMessage::ScmRights(fds));
            let (parts, flags) = ([IoSlice::new(message)], MsgFlags::MSG_NOSIGNAL);
            match sendmsg::<()>(self.socket.as_raw_fd(), &parts, along.as_slice(), flags, None) {
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

fn descriptor(control: ControlMessageOwned) -> Option<OwnedFd> {
    // All are owned, and so closed, whatever becomes of them.
    let ControlMessageOwned::ScmRights(fds) = control else { return None };
    fds.into_iter().map(sys::received_fd).collect::<Vec<_>>().pop()
}

fn parse(message: &[u8], descriptor: Option<OwnedFd>) -> Received {
    #[derive(Deserialize)]
    struct Numbered {
        seq: u64,
    }
    match serde_json::from_slice(message) {
        Ok(call) => Received::Call(call, descriptor),
        Err(error) => {
            let seq = serde_json::from_slice(message).map_or(0, |Numbered { seq }| seq);
            Received::Malformed { seq, reason: error.to_string() }
        }
    }
}
