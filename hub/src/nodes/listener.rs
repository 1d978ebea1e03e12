//! TLS and HTTP under the node listener: bounded connections, deadlines, an orderly end. Knows no route.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::door::From;

/// Most connections: a fleet that pulls a new image, in turns.
const CONNECTIONS_MAX: usize = 1_024;

/// How long a TLS handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a request's head may take, and how long a connection may stay without one.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);

/// How long requests under way may take when the hub stops.
const GRACE: Duration = Duration::from_secs(2);

/// Pause after a failed accept (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A bound listener.
pub(crate) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds `address` (port 0: a free one); connections wait until [`Listener::serve`].
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self { address: listener.local_addr()?, listener })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `router` until `stop`, then lets requests under way end.
    pub(crate) async fn serve(self, tls: Arc<ServerConfig>, router: Router, stop: CancellationToken) {
        let tls = TlsAcceptor::from(tls);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            let (socket, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "the node listener cannot accept connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                tracing::debug!(%peer, "too many connections to the node listener, one is turned away");
                continue;
            };
            let (tls, router, stop) = (tls.clone(), router.clone(), stop.clone());
            tasks.spawn(async move {
                connection(socket, From(peer.ip()), tls, router, stop).await;
                drop(place);
            });
        }
        tasks.close();
        timeout(GRACE, tasks.wait()).await.ok();
    }
}

async fn connection(
    socket: TcpStream,
    from: From,
    tls: TlsAcceptor,
    router: Router,
    stop: CancellationToken,
) {
    socket.set_nodelay(true).ok();
    let stream = match timeout(HANDSHAKE_DEADLINE, tls.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(?from, %error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!(?from, "a TLS handshake took too long"),
    };
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(from);
        router.call(request)
    });
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE);
    http.http2().timer(TokioTimer::new()).keep_alive_interval(HEAD_DEADLINE);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(?from, %error, "a connection to the node listener broke");
    }
}
