//! The supervisor: all its state, and the one loop that waits for whatever happens next.
//!
//! ```text
//! socket ─▶ call ─┬─▶ answered at once (start, signal, thaw, list, sockets)
//!                 └─▶ worker (create, freeze, delete, exec) ─▶ its message or its deadline ─▶ answer, the instance's next call
//! SIGCHLD, pidfd ─▶ exit ─▶ record, event          FIFO ─▶ log          memory has run out ─▶ look for kills
//! ```
//!
//! One thread and no blocking step but a short write of a file; whatever may take longer is a worker's.

mod adopt;
mod exits;
mod jobs;
mod memory;
mod requests;
mod sockets;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tombolo_agent_core::supervision::{Answer, InstanceId, MESSAGE_MAX, Message, Refusal, VERSION};

use crate::cgroup::{CgroupPath, Hierarchies};
use crate::connection::{Connection, Received, listen_in, remove_socket};
use crate::handover::{self, Handover, RunLock};
use crate::instance::{Caller, Instance};
use crate::limitations::{Abilities, probe};
use crate::output::{Progress, Stream};
use crate::record::InstanceDirectories;
use crate::sys;
use exits::Reaped;
use jobs::{Job, Planned};
use memory::Look;

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 64;

/// Connections that have not said hello yet; more push out the oldest.
const STRANGERS_MAX: usize = 8;

/// Reads of one stream before anything else gets its turn.
const READS_PER_TURN: usize = 4;

/// Everything there is.
pub(crate) struct Supervisor {
    run_dir: PathBuf,
    lock: RunLock,
    directories: InstanceDirectories,
    hierarchies: Hierarchies,
    /// Above those of the instances.
    cgroup: CgroupPath,
    abilities: Abilities,
    limitations: Vec<String>,
    epoll: Epoll,
    listener: OwnedFd,
    signals: SignalFd,
    connections: BTreeMap<u32, Connection>,
    /// The connection that is heard: the newest that has said hello.
    agent: Option<u32>,
    last_connection: u32,
    instances: BTreeMap<InstanceId, Instance>,
    /// Who has which range of host users; also how an event's token names an instance.
    slots: BTreeMap<u16, InstanceId>,
    jobs: BTreeMap<u32, Job>,
    last_job: u32,
    /// Instances that wait for a worker to be free.
    planned: VecDeque<Planned>,
    reaped: Reaped,
    /// Whose memory has run out, by their slots.
    looks: BTreeMap<u16, Look>,
    /// What agents listen on, kept open for the next agent.
    sockets: BTreeMap<String, OwnedFd>,
    ending: Option<Ending>,
    buffer: Vec<u8>,
}

/// What happens when nothing is under way any more.
#[derive(Clone, Debug)]
enum Ending {
    Shutdown { caller: Option<Caller>, failures: Vec<String> },
    Upgrade { caller: Caller, binary: PathBuf },
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Listener,
    Signals,
    Connection(u32),
    Job(u32),
    Process(u16),
    Output(u16, Stream),
    Memory(u16),
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, number) = match self {
            Self::Listener => (0, 0),
            Self::Signals => (1, 0),
            Self::Connection(number) => (2, number),
            Self::Job(number) => (3, number),
            Self::Process(slot) => (4, slot.into()),
            Self::Output(slot, Stream::Out) => (5, slot.into()),
            Self::Output(slot, Stream::Error) => (6, slot.into()),
            Self::Memory(slot) => (7, slot.into()),
        };
        kind << 32 | u64::from(number)
    }

    fn decode(token: u64) -> Option<Self> {
        let number = (token & u64::from(u32::MAX)) as u32;
        let slot = number as u16;
        Some(match token >> 32 {
            0 => Self::Listener,
            1 => Self::Signals,
            2 => Self::Connection(number),
            3 => Self::Job(number),
            4 => Self::Process(slot),
            5 => Self::Output(slot, Stream::Out),
            6 => Self::Output(slot, Stream::Error),
            7 => Self::Memory(slot),
            _ => return None,
        })
    }
}

/// Why the supervisor cannot work at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("the runtime supervisor must run as root: it makes namespaces, mounts and cgroups")]
    NotRoot,
    #[error("another runtime supervisor serves {0}")]
    Served(PathBuf),
    #[error("cannot use the run directory {path}")]
    RunDirectory { path: PathBuf, source: io::Error },
    #[error("cannot find the cgroup hierarchies below /sys/fs/cgroup")]
    Cgroups(#[source] io::Error),
    #[error("the kernel refuses what a supervisor needs")]
    Kernel(#[from] io::Error),
}

impl From<Errno> for StartError {
    fn from(error: Errno) -> Self {
        Self::Kernel(error.into())
    }
}

impl Supervisor {
    /// Takes over what there is in `run_dir`, from its predecessor's hands or from the records, and listens.
    pub(crate) fn start(run_dir: PathBuf, handover: Option<Handover>) -> Result<Self, StartError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(StartError::NotRoot);
        }
        let unusable = |source| StartError::RunDirectory { path: run_dir.clone(), source };
        std::fs::create_dir_all(&run_dir).map_err(unusable)?;
        let directories = InstanceDirectories::open(&run_dir).map_err(unusable)?;
        let mut handover = handover.unwrap_or_default();
        let lock = match handover.lock.take() {
            Some(lock) => lock,
            None => RunLock::acquire(&run_dir)
                .map_err(unusable)?
                .ok_or_else(|| StartError::Served(run_dir.clone()))?,
        };
        let signals = block_signals()?;
        sys::become_subreaper()?;
        let hierarchies = Hierarchies::detect().map_err(StartError::Cgroups)?;
        let (abilities, limitations) = probe(&hierarchies, handover.open_files);
        let listener = handover.listener.take();
        let mut supervisor = Self {
            lock,
            cgroup: CgroupPath::of_supervisor(directories.run_dir()),
            directories,
            hierarchies,
            abilities,
            limitations,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            // Found before anybody can connect, so that the first list is whole.
            listener: match listener {
                Some(listener) => listener,
                None => listen_in(&run_dir).map_err(unusable)?,
            },
            signals,
            run_dir,
            connections: BTreeMap::new(),
            agent: None,
            last_connection: 0,
            instances: BTreeMap::new(),
            slots: BTreeMap::new(),
            jobs: BTreeMap::new(),
            last_job: 0,
            planned: VecDeque::new(),
            reaped: Reaped::default(),
            looks: BTreeMap::new(),
            sockets: std::mem::take(&mut handover.sockets),
            ending: None,
            buffer: vec![0; MESSAGE_MAX],
        };
        supervisor.watch(&supervisor.listener, Token::Listener)?;
        supervisor.watch(&supervisor.signals, Token::Signals)?;
        // First, so that it is told of what has ended meanwhile.
        let agent = handover.agent.take().map(|(socket, seq)| supervisor.connect_after_upgrade(socket, seq));
        supervisor.adopt(&mut handover);
        supervisor.reap();
        if let Some(caller) = agent {
            let hello = supervisor.hello();
            supervisor.reply(caller, Ok(hello));
        }
        Ok(supervisor)
    }

    /// Serves until it is told to end. Whether everything could be removed.
    pub(crate) fn serve(mut self) -> io::Result<bool> {
        tracing::info!(
            run_dir = %self.run_dir.display(), instances = self.instances.len(), limitations = ?self.limitations,
            "ready"
        );
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        loop {
            self.settle();
            if let Some(clean) = self.end_if_due() {
                return Ok(clean);
            }
            let count = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for event in &events[..count] {
                if let Some(token) = Token::decode(event.data()) {
                    self.handle(token, event.events());
                }
            }
            let now = Instant::now();
            self.give_up_late_jobs(now);
            self.look_for_kills(now);
        }
    }

    fn handle(&mut self, token: Token, events: EpollFlags) {
        match token {
            Token::Listener => self.accept(),
            Token::Signals => self.read_signals(),
            Token::Connection(number) => {
                if events.contains(EpollFlags::EPOLLOUT) {
                    self.flush(number);
                }
                if events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
                    self.read(number);
                }
            }
            Token::Job(number) => self.take_outcome(number),
            Token::Process(slot) => self.collect(slot),
            Token::Output(slot, stream) => self.pump(slot, stream),
            Token::Memory(slot) => self.suspect_kill(slot),
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let looks = self.looks.values().map(|look| look.due);
        let Some(deadline) = self.jobs.values().map(|job| job.worker.deadline).chain(looks).min() else {
            return EpollTimeout::NONE;
        };
        // Rounded up, or the last millisecond would be spent turning round.
        let wait = deadline.saturating_duration_since(Instant::now()).as_millis() + 1;
        EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::MAX)
    }

    fn watch(&self, fd: &impl AsFd, token: Token) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token.encode()))?)
    }

    fn unwatch(&self, fd: &impl AsFd) {
        // One that is not watched is fine.
        let _ = self.epoll.delete(fd);
    }

    fn accept(&mut self) {
        let connection = match Connection::accept(&self.listener) {
            Ok(connection) => connection,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => return tracing::warn!(%error, "cannot accept a connection"),
        };
        let strangers = || {
            self.connections
                .iter()
                .filter(|(_, connection)| !connection.is_greeted)
                .map(|(number, _)| *number)
        };
        if strangers().count() >= STRANGERS_MAX
            && let Some(oldest) = strangers().next()
        {
            self.disconnect(oldest);
        }
        self.connect(connection);
    }

    fn connect(&mut self, connection: Connection) -> u32 {
        self.last_connection += 1;
        let number = self.last_connection;
        match self.watch(&connection, Token::Connection(number)) {
            Ok(()) => drop(self.connections.insert(number, connection)),
            Err(error) => tracing::warn!(%error, "cannot watch a connection"),
        }
        number
    }

    fn disconnect(&mut self, number: u32) {
        if let Some(connection) = self.connections.remove(&number) {
            self.unwatch(&connection);
        }
        if self.agent == Some(number) {
            self.agent = None;
        }
    }

    /// One message at a time: others get their turn in between.
    fn read(&mut self, number: u32) {
        let Some(connection) = self.connections.get(&number) else { return };
        match connection.receive(&mut self.buffer) {
            Received::Nothing => {}
            Received::Closed => self.disconnect(number),
            Received::Malformed { seq, reason } => {
                self.reply(Caller { connection: number, seq }, Err(Refusal::Malformed(reason)));
            }
            Received::Call(call, descriptor) => {
                self.call(Caller { connection: number, seq: call.seq }, call.request, descriptor);
            }
        }
    }

    fn reply(&mut self, caller: Caller, result: Result<Answer, Refusal>) {
        self.send(caller.connection, &Message::Reply { seq: caller.seq, result }, None);
    }

    /// Sends to a connection, unless it is gone; `descriptor` goes along.
    fn send(&mut self, number: u32, message: &Message, descriptor: Option<OwnedFd>) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        if connection.send(message, descriptor).is_err() {
            self.disconnect(number);
        } else {
            self.update_interest(number);
        }
    }

    fn flush(&mut self, number: u32) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        if connection.flush().is_err() {
            self.disconnect(number);
        } else {
            self.update_interest(number);
        }
    }

    /// Waits for room if there is something to send, and for calls unless the next program is to hear them.
    fn update_interest(&self, number: u32) {
        let Some(connection) = self.connections.get(&number) else { return };
        let mut interest = EpollFlags::empty();
        interest.set(EpollFlags::EPOLLOUT, connection.has_waiting());
        interest.set(EpollFlags::EPOLLIN, !matches!(self.ending, Some(Ending::Upgrade { .. })));
        let mut event = EpollEvent::new(interest, Token::Connection(number).encode());
        if let Err(error) = self.epoll.modify(connection, &mut event) {
            tracing::warn!(%error, "cannot watch a connection");
        }
    }

    fn hello(&self) -> Answer {
        Answer::Hello {
            version: VERSION,
            program: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id().cast_signed(),
            limitations: self.limitations.clone(),
        }
    }

    fn connect_after_upgrade(&mut self, socket: OwnedFd, seq: u64) -> Caller {
        let number = self.connect(Connection::from(socket, true));
        self.agent = Some(number);
        Caller { connection: number, seq }
    }

    fn pump(&mut self, slot: u16, stream: Stream) {
        let Some(instance) = self.slots.get(&slot).and_then(|id| self.instances.get_mut(id)) else { return };
        for _ in 0..READS_PER_TURN {
            match instance.pump(stream) {
                Progress::More => {}
                Progress::Empty => return,
                Progress::Ended => {
                    if let Some(source) = instance.source_mut(stream).take() {
                        self.unwatch(&source);
                    }
                    return;
                }
            }
        }
    }

    fn read_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            match Signal::try_from(signal.ssi_signo.cast_signed()) {
                Ok(Signal::SIGTERM | Signal::SIGINT)
                    if !matches!(self.ending, Some(Ending::Shutdown { .. })) =>
                {
                    tracing::info!("told to end");
                    self.shut_down(None);
                }
                Ok(Signal::SIGCHLD) => self.reap(),
                _ => {}
            }
        }
    }

    /// Ends, or becomes another program, once nothing is under way. None: it goes on.
    fn end_if_due(&mut self) -> Option<bool> {
        match self.ending.clone()? {
            Ending::Shutdown { caller, failures } if self.instances.is_empty() => {
                for failure in &failures {
                    tracing::error!("{failure}");
                }
                let result = if failures.is_empty() {
                    Ok(Answer::Done)
                } else {
                    Err(Refusal::Runtime(failures.join("; ")))
                };
                if let Some(caller) = caller {
                    self.reply(caller, result);
                }
                if let Err(error) = remove_socket(&self.run_dir) {
                    tracing::error!(%error, "cannot remove the socket");
                }
                self.lock.remove(&self.run_dir);
                Some(failures.is_empty())
            }
            Ending::Upgrade { caller, binary } if self.is_idle() && self.has_told(&caller) => {
                let error = self.become_program(caller, &binary);
                tracing::error!(binary = %binary.display(), %error, "cannot be replaced");
                self.ending = None;
                for number in self.connections.keys().copied().collect::<Vec<_>>() {
                    self.update_interest(number);
                }
                self.reply(
                    caller,
                    Err(Refusal::Runtime(format!("cannot execute {}: {error}", binary.display()))),
                );
                None
            }
            _ => None,
        }
    }

    /// Executes `binary` in this process. Returns only if that fails.
    fn become_program(&mut self, caller: Caller, binary: &std::path::Path) -> io::Error {
        for instance in self.instances.values_mut() {
            instance.drain();
            // The next program would not know whose child it is.
            instance.stop_reclaiming();
        }
        let agent =
            self.connections.get(&caller.connection).map(|connection| (connection.as_fd(), caller.seq));
        let instances = self.instances.values().map(handover::descriptors_of);
        let passed = handover::Passed {
            listener: self.listener.as_fd(),
            lock: self.lock.as_fd(),
            agent,
            open_files: self.abilities.open_files,
            sockets: &self.sockets,
            instances: instances.collect(),
        };
        handover::execute(binary, &passed)
    }
}

/// Signals come through a descriptor; nothing interrupts a half-done step.
fn block_signals() -> Result<SignalFd, Errno> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}
