//! The agent's side of the runtime supervisor: finds or starts the process, keeps one connection, matches replies to calls,
//! passes on what the supervisor says by itself.
//!
//! Takes: calls through [`Supervisor`]. Gives: [`SupervisorEvent`]s. Must not know what instances are for.

mod connection;
mod wake;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tombolo_agent_core::supervision::{
    Answer, ExitRecord, InstanceId, InstanceRecord, Message, Refusal, Request, VERSION,
};

use connection::Connection;

pub(crate) use wake::Waker;

/// Longest wait for any reply. The supervisor gives up on its own workers well before.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// Calls waiting to be sent; the reconciler has one call per instance under way at most.
const QUEUE: usize = 256;

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
    /// A request has let this frozen instance go on.
    Woken(InstanceId),
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

/// An answer with the descriptor that came along.
type Pending = oneshot::Sender<Result<(Answer, Option<OwnedFd>), CallError>>;

/// A call to be made, with the descriptor that goes along.
type Order = (Request, Option<Arc<OwnedFd>>, Pending);

/// What the supervisor keeps for this agent, by name: it is offered to each new supervisor.
type Sockets = BTreeMap<String, Arc<OwnedFd>>;

/// Handle for calls. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Supervisor {
    calls: mpsc::Sender<Order>,
    waker: Waker,
    task: AbortHandle,
}

impl Supervisor {
    /// Connects, starting a supervisor where there is none, and keeps the connection from then on.
    pub(crate) async fn start(
        config: SupervisorConfig,
    ) -> Result<(Self, mpsc::Receiver<SupervisorEvent>), ConnectError> {
        let connection = Connection::open(&config, &Sockets::new()).await?;
        let (calls, queue) = mpsc::channel(QUEUE);
        let (events, receiver) = mpsc::channel(QUEUE);
        let waker = Waker::default();
        let task = tokio::spawn(keep(config, connection, queue, events, waker.clone())).abort_handle();
        Ok((Self { calls, waker, task }, receiver))
    }

    /// What has frozen instances go on without waiting, over the same connection.
    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Gives the connection up: calls fail from now on, the supervisor and its instances go on.
    pub(crate) fn close(&self) {
        self.task.abort();
    }

    /// Makes a call and waits for its answer.
    pub(crate) async fn call(&self, request: Request) -> Result<Answer, CallError> {
        Ok(self.call_with(request, None).await?.0)
    }

    /// Has the supervisor keep the listening `socket`, this one and every later one: who connects while there is no agent
    /// waits for the next.
    pub(crate) async fn keep_socket(&self, name: &str, socket: OwnedFd) -> Result<(), CallError> {
        let request = Request::Keep { name: name.into() };
        self.call_with(request, Some(Arc::new(socket))).await.map(drop)
    }

    /// The socket that a former agent left with the supervisor.
    pub(crate) async fn take_socket(&self, name: &str) -> Result<Option<OwnedFd>, CallError> {
        match self.call_with(Request::Take { name: name.into() }, None).await? {
            (Answer::Taken { .. }, socket) => Ok(socket),
            _ => Err(CallError::Unexpected),
        }
    }

    /// Ends the keeping: without an agent nobody listens any more.
    pub(crate) async fn release_socket(&self, name: &str) -> Result<(), CallError> {
        self.call(Request::Release { name: name.into() }).await.map(drop)
    }

    async fn call_with(
        &self,
        request: Request,
        descriptor: Option<Arc<OwnedFd>>,
    ) -> Result<(Answer, Option<OwnedFd>), CallError> {
        let (sender, receiver) = oneshot::channel();
        self.calls.send((request, descriptor, sender)).await.map_err(|_| CallError::Lost)?;
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
    mut queue: mpsc::Receiver<Order>,
    events: mpsc::Sender<SupervisorEvent>,
    waker: Waker,
) {
    let mut sockets = Sockets::new();
    loop {
        if let Err(error) = waker.attach(connection.as_fd()) {
            tracing::warn!(%error, "requests cannot wake frozen instances by themselves");
        }
        let reason = match serve(&mut connection, &mut queue, (&events, &waker), &mut sockets).await {
            Ok(()) => return,
            Err(error) => error.to_string(),
        };
        tracing::warn!(reason, "lost the runtime supervisor");
        waker.detach();
        tell(&events, SupervisorEvent::Lost).await;
        connection = loop {
            match Connection::open(&config, &sockets).await {
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
    queue: &mut mpsc::Receiver<Order>,
    (events, waker): (&mpsc::Sender<SupervisorEvent>, &Waker),
    sockets: &mut Sockets,
) -> io::Result<()> {
    let limitations = std::mem::take(&mut connection.limitations);
    let instances = std::mem::take(&mut connection.instances);
    tell(events, SupervisorEvent::Connected { limitations, instances }).await;
    let mut pending: BTreeMap<u64, Pending> = BTreeMap::new();
    let (mut last_call, mut greeting) = (None, None);
    loop {
        tokio::select! {
            call = queue.recv() => {
                let Some((request, descriptor, reply)) = call else { return Ok(()) };
                let ends = matches!(request, Request::Shutdown);
                match (&request, &descriptor) {
                    (Request::Keep { name }, Some(socket)) => {
                        sockets.insert(name.clone(), Arc::clone(socket));
                    }
                    (Request::Release { name }, _) => drop(sockets.remove(name)),
                    _ => {}
                }
                let seq = connection.send(request, descriptor.as_deref().map(AsFd::as_fd)).await?;
                last_call = last_call.or(ends.then_some(seq));
                pending.insert(seq, reply);
            }
            message = connection.receive() => match message? {
                (Message::Reply { seq, result: Ok(Answer::Hello { limitations, .. }) }, _) if greeting == Some(seq) => {
                    tell(events, SupervisorEvent::Limitations(limitations)).await;
                }
                (Message::Reply { seq: wake::NOBODY, .. }, _) => {
                    for id in waker.take_woken() {
                        tell(events, SupervisorEvent::Woken(id)).await;
                    }
                }
                (Message::Reply { seq, result }, descriptor) => {
                    if matches!(result, Ok(Answer::Created { .. })) {
                        // Some abilities of a machine are found absent with the first instance that wants them.
                        greeting = Some(connection.send(Request::Hello { version: VERSION }, None).await?);
                    }
                    if let Some(reply) = pending.remove(&seq) {
                        // The caller may have given up meanwhile.
                        drop(reply.send(result.map(|answer| (answer, descriptor)).map_err(CallError::Refused)));
                    }
                    if last_call == Some(seq) {
                        return Ok(());
                    }
                }
                (Message::Exited { id, exit }, _) => tell(events, SupervisorEvent::Exited { id, exit }).await,
            },
        }
    }
}

/// An agent that is stopping does not listen any more, and still calls.
async fn tell(events: &mpsc::Sender<SupervisorEvent>, event: SupervisorEvent) {
    let _ = events.send(event).await;
}
