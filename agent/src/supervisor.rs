//! The agent's side of the runtime supervisor: finds or starts the process, keeps one connection, matches replies to calls,
//! passes on what the supervisor says by itself.
//!
//! Takes: calls through [`Supervisor`]. Gives: [`SupervisorEvent`]s. Must not know what instances are for.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tombolo_agent_core::supervision::{
    Answer, Call, ExitRecord, InstanceId, InstanceRecord, MESSAGE_MAX, Message, Refusal, Request, VERSION,
};

/// Longest wait for any reply. The supervisor gives up on its own workers well before.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// Calls waiting to be sent; the reconciler has one call per instance under way at most.
const QUEUE: usize = 256;

/// How long a supervisor may take from its start to its socket.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// Between attempts to connect.
const RETRY: Duration = Duration::from_millis(20);

/// How to find the supervisor, and how to start one.
#[derive(Clone, Debug)]
pub(crate) struct SupervisorConfig {
    pub(crate) run_dir: PathBuf,
    /// Program and leading arguments; `--run-dir DIR` is added.
    pub(crate) command: Vec<PathBuf>,
    /// Where a supervisor started here writes its own messages.
    pub(crate) log: PathBuf,
}

/// What the supervisor says unasked.
#[derive(Clone, Debug)]
pub(crate) enum SupervisorEvent {
    /// A supervisor is connected, the first or a new one: ask it for its instances.
    Connected {
        limitations: Vec<String>,
        instances: Vec<InstanceRecord>,
    },
    /// All that this machine turned out not to be able to do.
    Limitations(Vec<String>),
    Exited {
        id: InstanceId,
        exit: ExitRecord,
    },
    /// The connection broke; a new one is being made.
    Lost,
}

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error(transparent)]
    Refused(Refusal),
    #[error("the runtime supervisor went away during the call")]
    Lost,
    #[error("the runtime supervisor did not answer within {} s", CALL_DEADLINE.as_secs())]
    Timeout,
    #[error("the runtime supervisor answered something else")]
    Unexpected,
}

/// Why there is no supervisor.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("cannot start the runtime supervisor {program}: is it installed beside the agent?")]
    Spawn { program: String, source: io::Error },
    #[error("the runtime supervisor ended at once ({status}); its own words are in {log}")]
    Ended { status: String, log: String },
    #[error("cannot reach the runtime supervisor at {socket}")]
    Unreachable { socket: String, source: io::Error },
    #[error("the runtime supervisor refused the connection: {0}")]
    Refused(String),
}

type Pending = oneshot::Sender<Result<Answer, CallError>>;

/// Handle for calls. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Supervisor {
    calls: mpsc::Sender<(Request, Pending)>,
    task: AbortHandle,
}

impl Supervisor {
    /// Connects, starting a supervisor where there is none, and keeps the connection from then on.
    pub(crate) async fn start(
        config: SupervisorConfig,
    ) -> Result<(Self, mpsc::Receiver<SupervisorEvent>), ConnectError> {
        let connection = Connection::open(&config).await?;
        let (calls, queue) = mpsc::channel(QUEUE);
        let (events, receiver) = mpsc::channel(QUEUE);
        let task = tokio::spawn(keep(config, connection, queue, events)).abort_handle();
        Ok((Self { calls, task }, receiver))
    }

    /// Gives the connection up: calls fail from now on, the supervisor and its instances go on.
    pub(crate) fn close(&self) {
        self.task.abort();
    }

    /// Makes a call and waits for its answer.
    pub(crate) async fn call(&self, request: Request) -> Result<Answer, CallError> {
        let (sender, receiver) = oneshot::channel();
        self.calls.send((request, sender)).await.map_err(|_| CallError::Lost)?;
        match tokio::time::timeout(CALL_DEADLINE, receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(CallError::Lost),
            Err(_) => Err(CallError::Timeout),
        }
    }
}

/// The task that owns the connection: serves calls and events, connects again when it breaks. Ends when nobody can call any
/// more, and after a call that ended the supervisor.
async fn keep(
    config: SupervisorConfig,
    mut connection: Connection,
    mut queue: mpsc::Receiver<(Request, Pending)>,
    events: mpsc::Sender<SupervisorEvent>,
) {
    loop {
        let reason = match serve(&mut connection, &mut queue, &events).await {
            Ok(()) => return,
            Err(error) => error.to_string(),
        };
        tracing::warn!(reason, "lost the runtime supervisor");
        tell(&events, SupervisorEvent::Lost).await;
        connection = loop {
            match Connection::open(&config).await {
                Ok(connection) => break connection,
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "no runtime supervisor, trying again"
                    );
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
    }
}

/// Serves one connection until it breaks (`Err`), or until it is not needed any more (`Ok`).
async fn serve(
    connection: &mut Connection,
    queue: &mut mpsc::Receiver<(Request, Pending)>,
    events: &mpsc::Sender<SupervisorEvent>,
) -> io::Result<()> {
    let limitations = std::mem::take(&mut connection.limitations);
    let instances = std::mem::take(&mut connection.instances);
    tell(events, SupervisorEvent::Connected { limitations, instances }).await;
    let mut pending: BTreeMap<u64, Pending> = BTreeMap::new();
    let (mut last_call, mut greeting) = (None, None);
    loop {
        tokio::select! {
            call = queue.recv() => {
                let Some((request, reply)) = call else { return Ok(()) };
                let ends = matches!(request, Request::Shutdown);
                let seq = connection.send(request).await?;
                last_call = last_call.or(ends.then_some(seq));
                pending.insert(seq, reply);
            }
            message = connection.receive() => match message? {
                Message::Reply { seq, result: Ok(Answer::Hello { limitations, .. }) } if greeting == Some(seq) => {
                    tell(events, SupervisorEvent::Limitations(limitations)).await;
                }
                Message::Reply { seq, result } => {
                    if matches!(result, Ok(Answer::Created { .. })) {
                        // Some abilities of a machine are found absent with the first instance that wants them.
                        greeting = Some(connection.send(Request::Hello { version: VERSION }).await?);
                    }
                    if let Some(reply) = pending.remove(&seq) {
                        // The caller may have given up meanwhile.
                        drop(reply.send(result.map_err(CallError::Refused)));
                    }
                    if last_call == Some(seq) {
                        return Ok(());
                    }
                }
                Message::Exited { id, exit } => tell(events, SupervisorEvent::Exited { id, exit }).await,
            },
        }
    }
}

/// An agent that is stopping does not listen any more, and still calls.
async fn tell(events: &mpsc::Sender<SupervisorEvent>, event: SupervisorEvent) {
    let _ = events.send(event).await;
}

/// One connection, greeted.
struct Connection {
    /// A SEQPACKET socket, which tokio has no type for: only its readiness is used, messages go by `send` and `recv`.
    socket: UnixStream,
    buffer: Vec<u8>,
    seq: u64,
    limitations: Vec<String>,
    instances: Vec<InstanceRecord>,
}

impl Connection {
    async fn open(config: &SupervisorConfig) -> Result<Self, ConnectError> {
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
        match connection.ask(Request::List).await.map_err(unreachable)? {
            Ok(Answer::Instances(instances)) => connection.instances = instances,
            Ok(_) => return Err(ConnectError::Refused("it answered something else".into())),
            Err(refusal) => return Err(ConnectError::Refused(refusal.to_string())),
        }
        Ok(connection)
    }

    /// A call before the connection is shared. An exit told in between is in the record that `List` gives.
    async fn ask(&mut self, request: Request) -> io::Result<Result<Answer, Refusal>> {
        let ask = async {
            let mine = self.send(request).await?;
            loop {
                if let Message::Reply { seq, result } = self.receive().await?
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

    async fn send(&mut self, request: Request) -> io::Result<u64> {
        self.seq += 1;
        let call = Call { seq: self.seq, request };
        let bytes = serde_json::to_vec(&call).map_err(io::Error::other)?;
        self.socket
            .async_io(tokio::io::Interest::WRITABLE, || {
                Ok(send(self.socket.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL)?)
            })
            .await?;
        Ok(self.seq)
    }

    async fn receive(&mut self) -> io::Result<Message> {
        let Self { socket, buffer, .. } = self;
        let length = socket
            .async_io(tokio::io::Interest::READABLE, || {
                Ok(recv(socket.as_raw_fd(), buffer, MsgFlags::empty())?)
            })
            .await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_slice(&buffer[..length]).map_err(io::Error::other)
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
