//! The embedded MQTT 5 broker, for a hub that needs no other.
//!
//! ```text
//! listener ─▶ connection: TLS ─▶ identity ─▶ CONNECT ─▶ packets ─┐
//!                 ▲                                              ▼
//!                 └──────── queue of its session ◀──── Switch: sessions, retained messages
//! ```
//!
//! It speaks the part of MQTT 5 that Tombolo's protocol needs, and says so in CONNACK: QoS 0 and 1, retained messages, last
//! wills, wildcards. Of a session only its will outlives its connection, for as long as the client asked to be given to come
//! back: sync is state-based, so no message waits here for a client that is away. What is retained is in memory only: the hub
//! publishes it again when it starts. No topic aliases, shared subscriptions, subscription identifiers; properties of a
//! publish are not passed on.
//!
//! A client is who its certificate says (common name = client id); what it may do is [`tombolo_api::topics`]'s to say. Knows
//! no store and nothing of what messages mean.

mod connection;
mod queue;
mod retained;
mod switch;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tombolo_api::{Digest, NodeId};

use crate::broker::switch::Switch;

/// Most connections: a hub's fleet and room for reconnects. Each costs some 30 KB.
const CONNECTIONS_MAX: usize = 20_000;

/// Most connections that have not said CONNECT yet: bounds what strangers cost.
const STRANGERS_MAX: usize = 512;

/// How long connections get to say goodbye when the broker stops.
const GOODBYE: Duration = Duration::from_secs(2);

/// Pause after a failed accept (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Says whether a node with this key is welcome.
pub(crate) type Admits = Arc<dyn Fn(&NodeId, &Digest) -> bool + Send + Sync>;

/// A running broker. It stops when this is dropped, in an orderly way with [`Broker::stop`].
pub(crate) struct Broker {
    address: SocketAddr,
    switch: Arc<Switch>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// What it holds.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) sessions: usize,
    pub(crate) retained: usize,
    pub(crate) retained_bytes: usize,
}

/// What every connection needs.
struct Shared {
    tls: tokio_rustls::TlsAcceptor,
    switch: Arc<Switch>,
    admits: Admits,
    connections: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Broker {
    /// Listens at `address` (port 0: a free one).
    pub(crate) async fn start(
        address: SocketAddr,
        tls: Arc<ServerConfig>,
        admits: Admits,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let switch = Arc::new(Switch::default());
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let broker = Self {
            address: listener.local_addr()?,
            switch: switch.clone(),
            stop: stop.clone(),
            tasks: tasks.clone(),
        };
        let shared = Arc::new(Shared {
            tls: tls.into(),
            switch,
            admits,
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
            stop: stop.clone(),
        });
        tasks.spawn(stop.run_until_cancelled_owned(accept(listener, shared, tasks.clone())));
        Ok(broker)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    #[cfg(test)]
    pub(crate) fn load(&self) -> Load {
        self.switch.load()
    }

    /// Ends the sessions of nodes that are not welcome any more.
    pub(crate) fn retain_sessions(&self, welcome: impl Fn(&NodeId) -> bool) {
        self.switch.retain_sessions(welcome);
    }

    /// Stops listening, tells every client, and waits until all are gone.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(GOODBYE, self.tasks.wait()).await.is_err() {
            tracing::debug!("some clients did not read the broker's goodbye");
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, tasks: TaskTracker) {
    loop {
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%error, "the broker cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let places =
            (shared.connections.clone().try_acquire_owned(), shared.strangers.clone().try_acquire_owned());
        let (Ok(place), Ok(stranger)) = places else {
            tracing::debug!("too many connections to the broker, one is turned away");
            continue;
        };
        let shared = shared.clone();
        tasks.spawn(async move {
            let result = connection::serve(socket, &shared, stranger).await;
            if let Err(reason) = result {
                tracing::debug!(%reason, "a broker connection ended");
            }
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests;
