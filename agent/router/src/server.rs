//! The router as a server: a listener, its connections, and the table in force.
//!
//! Takes route tables, gives demand for instances. Stops by letting open requests end, up to a bound. It must not know what a
//! request is.

use std::collections::HashMap;
use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinSet};
use tombolo_agent_core::routes::RouteTable;
use tombolo_api::RevisionKey;

use crate::answer::Answer;
use crate::dialer::Dialer;
use crate::meter::Meter;
use crate::session::Session;
use crate::table::Routes;

/// Connections at a time: one for each request that may be held on the node. An idle one costs about 10 KiB.
const CONNECTIONS_MAX: usize = 10_000;

/// How long a connection may be without a request: idle, or slow to say what it wants. nginx's default for the latter.
const QUIET_MAX: Duration = Duration::from_secs(60);

/// Connections the kernel holds until they are accepted: what a burst brings in the milliseconds in which nobody accepts.
const BACKLOG: u32 = 4096;

/// Read and write buffer of a client's connection, and so the largest head of a request. nginx allows 32 KiB.
const CONNECTION_BUFFER_MAX: usize = 64 * 1024;

/// Requests at a time on one HTTP/2 connection; more wait at the client. The usual value.
const STREAMS_MAX: u32 = 200;

/// How long open requests may go on after the router was told to stop. Restarting an agent should not take longer.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// How often idle connections to instances are looked at: a quarter of the age at which they are closed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Pause after a failed accept: too many open files, most likely, and one of them must be closed first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A node's HTTP router, listening.
pub struct Router {
    listener: TcpListener,
    address: SocketAddr,
    tables: watch::Receiver<Arc<RouteTable>>,
    demand: mpsc::Sender<RevisionKey>,
    dialer: Dialer,
    meter: Arc<Meter>,
    routes: Arc<Routes>,
}

/// The clients' connections.
struct Connections {
    tasks: JoinSet<()>,
    /// Dropping one tells its connection to stop.
    stops: HashMap<Id, oneshot::Sender<()>>,
    builder: Arc<auto::Builder<TokioExecutor>>,
    max: usize,
}

impl Router {
    /// Listen, and put the table there is in force. Must be called inside a tokio runtime.
    pub fn bind(
        listen: SocketAddr,
        mut tables: watch::Receiver<Arc<RouteTable>>,
        demand: mpsc::Sender<RevisionKey>,
        dialer: Dialer,
        meter: Arc<Meter>,
    ) -> io::Result<Self> {
        let socket = if listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(listen)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        let routes = Arc::new(Routes::default());
        let table = Arc::clone(&tables.borrow_and_update());
        routes.apply(table, &meter, &demand);
        Ok(Self { listener, address, tables, demand, dialer, meter, routes })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serve until `shutdown`, then let open requests end within ten seconds.
    pub async fn run<F: Future>(self, shutdown: F) {
        let Self { listener, mut tables, demand, dialer, meter, routes, .. } = self;
        let upkeep = async {
            tokio::join!(follow(&mut tables, &routes, &meter, &demand), sweep(&meter));
        };
        let serving = async {
            let mut connections = Connections::new(CONNECTIONS_MAX);
            {
                let mut shutdown = pin!(shutdown);
                loop {
                    tokio::select! {
                        _ = &mut shutdown => break,
                        accepted = listener.accept() => match accepted {
                            Ok((stream, peer)) => {
                                let routes = Arc::clone(&routes);
                                connections.add(stream, Session::new(routes, dialer.clone(), peer.ip(), QUIET_MAX));
                            }
                            Err(error) => {
                                tracing::warn!(%error, "cannot accept a connection");
                                tokio::time::sleep(ACCEPT_PAUSE).await;
                            }
                        },
                        Some(ended) = connections.tasks.join_next_with_id() => connections.remove(ended),
                    }
                }
            }
            drop(listener);
            connections.stop().await;
        };
        tokio::select! {
            () = upkeep => {}
            () = serving => {}
        }
    }
}

impl Connections {
    fn new(max: usize) -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // The session watches the time itself.
        builder.http1().max_buf_size(CONNECTION_BUFFER_MAX).header_read_timeout(None);
        builder
            .http2()
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(CONNECTION_BUFFER_MAX as u32);
        Self { tasks: JoinSet::new(), stops: HashMap::new(), builder: Arc::new(builder), max }
    }

    fn add(&mut self, stream: TcpStream, session: Arc<Session>) {
        if self.stops.len() >= self.max {
            // A few hundred bytes into an empty socket buffer; if they do not fit the client gets a closed connection.
            drop(stream.try_write(&Answer::too_many_connections(self.max).into_bytes()));
            return;
        }
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "client left at once");
            return;
        }
        let (stop, stopped) = oneshot::channel();
        let builder = Arc::clone(&self.builder);
        let task = self.tasks.spawn(async move { session.serve(stream, &builder, stopped).await });
        self.stops.insert(task.id(), stop);
    }

    fn remove(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                tracing::error!(%error, "a connection's task failed");
                error.id()
            }
        };
        self.stops.remove(&id);
    }

    async fn stop(mut self) {
        self.stops.clear();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_MAX, all).await.is_err() {
            tracing::warn!(
                connections = self.tasks.len(),
                "closed connections whose requests did not end in time"
            );
        }
    }
}

/// Put every new table in force. Once no more can come the last one stays.
async fn follow(
    tables: &mut watch::Receiver<Arc<RouteTable>>,
    routes: &Routes,
    meter: &Meter,
    demand: &mpsc::Sender<RevisionKey>,
) {
    while tables.changed().await.is_ok() {
        let table = Arc::clone(&tables.borrow_and_update());
        routes.apply(table, meter, demand);
    }
    pending().await
}

/// Close connections to instances that are not used.
async fn sweep(meter: &Meter) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let now = Instant::now();
        for instance in meter.instances() {
            instance.sweep(now);
        }
    }
}

#[cfg(test)]
mod tests;
