//! One connection to the supervisor: found or started, greeted, and its messages with the descriptors beside them. Must not
//! know who calls and why.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::net::UnixStream;
use tombolo_agent_core::supervision::{
    Answer, Call, InstanceRecord, MESSAGE_MAX, Message, Refusal, Request, VERSION,
};

use super::{ConnectError, Sockets, SupervisorConfig};

/// How long a supervisor may take from its start to its socket.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// Between attempts to connect.
const RETRY: Duration = Duration::from_millis(20);

/// Room for one descriptor beside a message.
const CONTROL_SPACE: usize = rustix::cmsg_space!(ScmRights(1));

/// One connection, greeted.
pub(super) struct Connection {
    /// A SEQPACKET socket, which tokio has no type for: only its readiness is used, messages go by `send` and `recv`.
    socket: UnixStream,
    buffer: Vec<u8>,
    seq: u64,
    pub(super) limitations: Vec<String>,
    pub(super) instances: Vec<InstanceRecord>,
}

impl Connection {
    /// Finds or starts a supervisor, has it keep `sockets`, and asks what it holds.
    pub(super) async fn open(config: &SupervisorConfig, sockets: &Sockets) -> Result<Self, ConnectError> {
        let path = config.run_dir.join("supervisor.sock");
        let socket = match dial(&path) {
            Ok(socket) => socket,
            Err(_) => start_and_dial(config, &path).await?,
        };
        let unreachable = |source| ConnectError::Unreachable { socket: path.display().to_string(), source };
        let socket = UnixStream::from_std(socket.into()).map_err(unreachable)?;
        let mut connection = Self {
            socket,
            buffer: vec![0; MESSAGE_MAX],
            seq: 0,
            limitations: Vec::new(),
            instances: Vec::new(),
        };
        match connection.ask(Request::Hello { version: VERSION }).await.map_err(unreachable)? {
            Ok(Answer::Hello { limitations, .. }) => connection.limitations = limitations,
            Ok(_) => return Err(ConnectError::Refused("it answered something else".into())),
            Err(refusal) => return Err(ConnectError::Refused(refusal.to_string())),
        }
        for (name, socket) in sockets {
            let request = Request::Keep { name: name.clone() };
            if let Err(refusal) =
                connection.ask_with(request, Some(socket.as_fd())).await.map_err(unreachable)?
            {
                tracing::warn!(name, %refusal, "the runtime supervisor does not keep a listening socket");
            }
        }
        match connection.ask(Request::List).await.map_err(unreachable)? {
            Ok(Answer::Instances(instances)) => connection.instances = instances,
            Ok(_) => return Err(ConnectError::Refused("it answered something else".into())),
            Err(refusal) => return Err(ConnectError::Refused(refusal.to_string())),
        }
        Ok(connection)
    }

    /// A call before the connection is shared. An exit told in between is in the record that `List` gives.
    async fn ask(&mut self, request: Request) -> io::Result<Result<Answer, Refusal>> {
        self.ask_with(request, None).await
    }

    /// The same, with a descriptor that goes along.
    async fn ask_with(
        &mut self,
        request: Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<Result<Answer, Refusal>> {
        let ask = async {
            let mine = self.send(request, descriptor).await?;
            loop {
                if let (Message::Reply { seq, result }, _) = self.receive().await?
                    && seq == mine
                {
                    return Ok(result);
                }
            }
        };
        match tokio::time::timeout(START_DEADLINE, ask).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// The socket, on which whole messages may be sent beside those sent here.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) async fn send(
        &mut self,
        request: Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<u64> {
        self.seq += 1;
        let call = Call { seq: self.seq, request };
        let bytes = serde_json::to_vec(&call).map_err(io::Error::other)?;
        let descriptors = descriptor.as_slice();
        self.socket
            .async_io(tokio::io::Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); CONTROL_SPACE];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !descriptors.is_empty() {
                    control.push(SendAncillaryMessage::ScmRights(descriptors));
                }
                Ok(sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?)
            })
            .await?;
        Ok(self.seq)
    }

    /// The next message, with the descriptor that came along.
    pub(super) async fn receive(&mut self) -> io::Result<(Message, Option<OwnedFd>)> {
        let Self { socket, buffer, .. } = self;
        let (length, descriptor) = socket
            .async_io(tokio::io::Interest::READABLE, || {
                let mut space = [MaybeUninit::uninit(); CONTROL_SPACE];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let mut parts = [IoSliceMut::new(buffer)];
                let received = recvmsg(&*socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
                let descriptor = control.drain().find_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
                    _ => None,
                });
                Ok((received.bytes, descriptor))
            })
            .await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let message = serde_json::from_slice(&buffer[..length]).map_err(io::Error::other)?;
        Ok((message, descriptor))
    }
}

fn dial(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

/// Starts a supervisor in a process group of its own, so that what ends the agent does not end it, and connects to it.
async fn start_and_dial(config: &SupervisorConfig, path: &Path) -> Result<OwnedFd, ConnectError> {
    let program = config.command[0].display().to_string();
    let spawn_error = |source| ConnectError::Spawn { program: program.clone(), source };
    std::fs::create_dir_all(&config.run_dir).map_err(spawn_error)?;
    let log = std::fs::File::options().create(true).append(true).open(&config.log).map_err(spawn_error)?;
    let mut command = std::process::Command::new(&config.command[0]);
    command
        .args(&config.command[1..])
        .arg("--run-dir")
        .arg(&config.run_dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(spawn_error)?)
        .stderr(log)
        .process_group(0);
    let mut child = tokio::process::Command::from(command).spawn().map_err(spawn_error)?;
    let deadline = tokio::time::Instant::now() + START_DEADLINE;
    loop {
        match dial(path) {
            Ok(socket) => {
                // Reaped here for as long as this agent lives, by init afterwards.
                tokio::spawn(async move { child.wait().await });
                return Ok(socket);
            }
            Err(source) if tokio::time::Instant::now() >= deadline => {
                return Err(ConnectError::Unreachable { socket: path.display().to_string(), source });
            }
            Err(_) => {}
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(ConnectError::Ended {
                status: status.to_string(),
                log: config.log.display().to_string(),
            });
        }
        tokio::time::sleep(RETRY).await;
    }
}
