//! One of the router's threads: it serves its share of the clients' connections from beginning to end.
//!
//! Every thread has a runtime, an epoll set and connections to instances of its own, so that a request never waits for another
//! thread. It must not know listeners or tables.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::io::{self, Write as _};
use std::net::TcpStream as StdTcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio_rustls::rustls::ServerConfig;

use crate::answer::Answer;
use crate::meter::Crowding;
use crate::session::Session;

/// Threads at most. An edge node's instances need the rest of its cores, and eight threads pass on 200,000 requests a second.
const THREADS_MAX: usize = 8;

/// Nice value of the threads: who passes requests on to all functions does not wait behind one that takes all processors. Five is
/// three times a function's weight (kernel, `sched_prio_to_weight`), so that functions get their turns still.
const NICE: i32 = -5;

/// How long open requests may go on once the router lets nobody in any more: whoever comes then waits for the next agent.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// How long a connection without a request keeps its place from a newcomer when there is no other: long enough for any client to
/// say what it wants, and few come back to one that is idle for longer.
const SPARED: Duration = Duration::from_secs(1);

/// Accepted connections that wait for their thread: as many as the kernel's own queue holds.
const ARRIVALS_MAX: usize = 4096;

thread_local! {
    static LANE: Cell<usize> = const { Cell::new(0) };
}

/// How many threads the router has: one for each core, within reason.
pub(crate) fn lanes() -> usize {
    static LANES: OnceLock<usize> = OnceLock::new();
    *LANES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX))
}

/// The number of the thread that asks, from 0; other threads than the router's count as the first.
pub(crate) fn lane() -> usize {
    LANE.get()
}

/// An accepted connection.
pub(crate) struct Arrival {
    pub(crate) stream: StdTcpStream,
    pub(crate) session: Arc<Session>,
    /// What to secure it with.
    pub(crate) tls: Option<Arc<ServerConfig>>,
}

/// What a thread is told.
enum Errand {
    Serve(Arrival),
    /// Let the connections there are end, and drop this when they have.
    Drain(oneshot::Sender<()>),
}

/// Handle of a thread, which lets its connections end and then ends itself when this is dropped.
pub(crate) struct Worker {
    errands: mpsc::Sender<Errand>,
    connections: Arc<AtomicUsize>,
    ended: oneshot::Receiver<()>,
}

impl Worker {
    pub(crate) fn start(lane: usize, connections_max: usize, crowding: Arc<Crowding>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (errands, coming) = mpsc::channel(ARRIVALS_MAX);
        let (end, ended) = oneshot::channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let served = Connections::new(connections_max, Arc::clone(&connections), crowding);
        std::thread::Builder::new().name(format!("router-{lane}")).spawn(move || {
            LANE.set(lane);
            hurry();
            runtime.block_on(work(coming, served));
            // Nobody may wait for the end.
            let _ = end.send(());
        })?;
        Ok(Self { errands, connections, ended })
    }

    /// Connections it has, those on their way to it included.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub(crate) async fn serve(&self, arrival: Arrival) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        if self.errands.send(Errand::Serve(arrival)).await.is_err() {
            tracing::error!("a thread of the router has ended, and with it a connection");
        }
    }

    /// Have the connections there are take no new requests, and wait until they have ended. New ones are served meanwhile.
    pub(crate) async fn drain(&self) {
        let (end, ended) = oneshot::channel();
        // A thread that has ended has no connections.
        let _ = self.errands.send(Errand::Drain(end)).await;
        let _ = ended.await;
    }

    /// Let open requests end, up to a bound.
    pub(crate) async fn stop(self) {
        drop(self.errands);
        // An error is a thread that ended before.
        drop(self.ended.await);
    }
}

/// Puts this thread, and on Linux no other of the process, before those of functions. Without the right to it, it is one of many.
fn hurry() {
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "the router's threads have no more of the processors than others");
    }
}

async fn work(mut coming: mpsc::Receiver<Errand>, mut connections: Connections) {
    loop {
        tokio::select! {
            errand = coming.recv() => match errand {
                Some(Errand::Serve(arrival)) => connections.add(arrival),
                Some(Errand::Drain(drained)) => connections.drain(drained),
                None => break,
            },
            Some(ended) = connections.tasks.join_next_with_id() => connections.remove(ended),
        }
    }
    connections.stop().await;
}

/// A thread's connections.
struct Connections {
    tasks: JoinSet<()>,
    /// Those that go on.
    served: HashMap<Id, Served>,
    /// Those that are to end, and who waits for that.
    leaving: HashSet<Id>,
    drained: Option<oneshot::Sender<()>>,
    max: usize,
    /// [`SPARED`].
    spared: Duration,
    /// Counted by whoever sends connections here, and down by this.
    count: Arc<AtomicUsize>,
    crowding: Arc<Crowding>,
}

/// A connection in progress.
struct Served {
    session: Arc<Session>,
    task: AbortHandle,
    /// Dropping it tells the connection to stop.
    stop: Option<oneshot::Sender<()>>,
}

impl Connections {
    fn new(max: usize, count: Arc<AtomicUsize>, crowding: Arc<Crowding>) -> Self {
        Self {
            tasks: JoinSet::new(),
            served: HashMap::new(),
            leaving: HashSet::new(),
            drained: None,
            max,
            spared: SPARED,
            count,
            crowding,
        }
    }

    fn add(&mut self, Arrival { mut stream, session, tls }: Arrival) {
        if self.served.len() >= self.max && !self.make_room() {
            self.crowding.refused.fetch_add(1, Ordering::Relaxed);
            // A few hundred bytes into an empty socket buffer; if they do not fit the client gets a closed connection.
            if tls.is_none() {
                drop(stream.write(&Answer::too_many_connections(self.max * lanes()).into_bytes()));
            }
            self.count.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot serve a connection");
                self.count.fetch_sub(1, Ordering::Relaxed);
                return;
            }
        };
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&session);
        let task = self.tasks.spawn(async move { serving.serve(stream, tls, stopped).await });
        self.served.insert(task.id(), Served { session, task, stop: Some(stop) });
    }

    /// Close the connection that has been without a request for longest, so that nobody keeps others out by connections alone.
    fn make_room(&mut self) -> bool {
        let free = self.served.iter().filter_map(|(id, served)| Some((served.session.free_since()?, *id)));
        let Some((since, id)) = free.min_by_key(|(since, _)| *since) else { return false };
        if Instant::now().saturating_duration_since(since) < self.spared {
            return false;
        }
        if let Some(closed) = self.served.remove(&id) {
            closed.task.abort();
        }
        self.crowding.displaced.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn remove(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            // It made room for another.
            Err(error) if error.is_cancelled() => error.id(),
            Err(error) => {
                tracing::error!(%error, "a connection's task failed");
                error.id()
            }
        };
        self.served.remove(&id);
        self.leaving.remove(&id);
        self.tell_drained();
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

    fn drain(&mut self, drained: oneshot::Sender<()>) {
        for (id, served) in &mut self.served {
            served.stop = None;
            self.leaving.insert(*id);
        }
        self.drained = Some(drained);
        self.tell_drained();
    }

    fn tell_drained(&mut self) {
        if self.leaving.is_empty() {
            self.drained = None;
        }
    }

    async fn stop(mut self) {
        // Tunnels have had their grace and do not end by themselves: whoever comes need not wait for them.
        let left = self.leaving.iter().filter_map(|id| self.served.get(id));
        left.filter(|served| served.session.is_tunnel()).for_each(|tunnel| tunnel.task.abort());
        self.served.clear();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_MAX, all).await.is_err() {
            tracing::warn!(
                connections = self.tasks.len(),
                "closed connections whose requests did not end in time"
            );
        }
    }
}

#[cfg(test)]
mod tests;
