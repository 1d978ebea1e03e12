//! The router as a server: its listeners, the threads that serve what they accept, and the table in force.
//!
//! Takes route tables, gives demand for instances. Stops by letting open requests end, up to a bound. It must not know what a
//! request is.

use std::future::{Future, pending};
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, watch};
use tokio_rustls::rustls::ServerConfig;
use tombolo_agent_core::routes::RouteTable;
use tombolo_api::RevisionKey;

use crate::dialer::Dialer;
use crate::headers::Client;
use crate::meter::Meter;
use crate::session::Session;
use crate::table::Routes;
use crate::wake::Wake;
use crate::worker::{Arrival, Worker, lanes};

/// Connections at a time: one for each request that may be held on the node. An idle one costs about 10 KiB. Beyond these, one
/// without a request makes room.
const CONNECTIONS_MAX: usize = 10_000;

/// How long a connection may be without a request: idle, or slow to say what it wants. nginx's default for the latter.
const QUIET_MAX: Duration = Duration::from_secs(60);

/// Connections the kernel holds until they are accepted: what a burst brings in the milliseconds in which nobody accepts.
const BACKLOG: u32 = 4096;

/// How often idle connections to instances are looked at: a quarter of the age at which they are closed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Pause after a failed accept: too many open files, most likely, and one of them must be closed first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A node's HTTP router, listening.
pub struct Router {
    listener: StdTcpListener,
    address: SocketAddr,
    tables: watch::Receiver<Arc<RouteTable>>,
    demand: mpsc::Sender<RevisionKey>,
    dialer: Dialer,
    meter: Arc<Meter>,
    routes: Arc<Routes>,
    workers: Vec<Worker>,
    tls: Option<Tls>,
}

/// The second listener, and the certificate in force.
struct Tls {
    listener: StdTcpListener,
    configs: watch::Receiver<Arc<ServerConfig>>,
}

impl Router {
    /// Serve on a socket that listens (see [`Router::listen`]), start the threads, and put the table there is in force. Must be
    /// called inside a tokio runtime.
    pub fn on(
        listener: StdTcpListener,
        mut tables: watch::Receiver<Arc<RouteTable>>,
        demand: mpsc::Sender<RevisionKey>,
        dialer: Dialer,
        meter: Arc<Meter>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let workers = (0..lanes())
            .map(|lane| Worker::start(lane, CONNECTIONS_MAX.div_ceil(lanes()), Arc::clone(&meter.crowding)));
        let workers = workers.collect::<io::Result<_>>()?;
        let routes = Arc::new(Routes::default());
        let table = Arc::clone(&tables.borrow_and_update());
        routes.apply(table, &meter, &demand);
        Ok(Self { listener, address, tables, demand, dialer, meter, routes, workers, tls: None })
    }

    /// A listener as the router needs it, which a socket of the past that still closes does not prevent. Must be called inside
    /// a tokio runtime.
    pub fn listen(address: SocketAddr) -> io::Result<StdTcpListener> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        // Connections inherit it.
        socket.set_nodelay(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)?.into_std()
    }

    /// Serve HTTPS too, on a listener of [`Router::listen`]. A new certificate is a new `ServerConfig`, which new connections
    /// get at once; see [`crate::server_config`].
    pub fn with_tls(
        mut self,
        listener: StdTcpListener,
        configs: watch::Receiver<Arc<ServerConfig>>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        self.tls = Some(Tls { listener, configs });
        Ok(self)
    }

    /// Wake frozen instances at the first request for them, and not only tell of demand.
    pub fn with_wake(self, wake: Arc<dyn Wake>) -> Self {
        // One router for one meter: nothing was set before.
        drop(self.meter.node.wake.set(wake));
        self
    }

    /// Both: listen and serve.
    pub fn bind(
        listen: SocketAddr,
        tables: watch::Receiver<Arc<RouteTable>>,
        demand: mpsc::Sender<RevisionKey>,
        dialer: Dialer,
        meter: Arc<Meter>,
    ) -> io::Result<Self> {
        Self::on(Self::listen(listen)?, tables, demand, dialer, meter)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serve until `shutdown`. Then the connections there are end, tunnels at the latest after their grace, while others are let
    /// in still; and then those within ten seconds, while whoever comes waits for the next to listen.
    pub async fn run<F: Future>(self, shutdown: F) {
        let Self { listener, mut tables, demand, dialer, meter, routes, workers, tls, .. } = self;
        let upkeep = async {
            tokio::join!(follow(&mut tables, &routes, &meter, &demand), sweep(&meter));
        };
        let serving = async {
            {
                let entry = Entry { routes: Arc::clone(&routes), dialer, workers: &workers };
                let plain = entry.accept(listener, None);
                let secure = async {
                    match tls {
                        Some(tls) => entry.accept(tls.listener, Some(tls.configs)).await,
                        None => pending().await,
                    }
                };
                let until_drained = async {
                    shutdown.await;
                    let drained = join_all(workers.iter().map(Worker::drain));
                    // What is left after that is told of by its thread.
                    drop(tokio::time::timeout(meter.node.tunnel_grace, drained).await);
                };
                tokio::select! {
                    () = until_drained => {}
                    () = plain => {}
                    () = secure => {}
                }
            }
            join_all(workers.into_iter().map(Worker::stop)).await;
        };
        tokio::select! {
            () = upkeep => {}
            () = serving => {}
        }
    }
}

/// What a connection needs to begin.
struct Entry<'a> {
    routes: Arc<Routes>,
    dialer: Dialer,
    workers: &'a [Worker],
}

impl Entry<'_> {
    /// Give every connection to the thread that has the fewest.
    async fn accept(&self, listener: StdTcpListener, tls: Option<watch::Receiver<Arc<ServerConfig>>>) {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "the router cannot listen");
                return pending().await;
            }
        };
        loop {
            let accepted = listener.accept().await;
            let accepted = accepted.and_then(|(stream, peer)| Ok((stream.into_std()?, peer)));
            match accepted {
                Ok((stream, peer)) => {
                    let tls = tls.as_ref().map(|configs| Arc::clone(&configs.borrow()));
                    let client = Client::new(peer.ip(), tls.is_some());
                    let session =
                        Session::new(Arc::clone(&self.routes), self.dialer.clone(), client, QUIET_MAX);
                    let freest = self.workers.iter().min_by_key(|worker| worker.connections());
                    let worker = freest.expect("there is at least one");
                    worker.serve(Arrival { stream, session, tls }).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
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
