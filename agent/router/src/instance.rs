//! An instance as the router holds it: how many requests are at it, and its open connections.
//!
//! It must not know hosts, splits or queues.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::watch;
use tombolo_agent_core::routes::Endpoint;

use crate::body::{RequestBody, SEND_BUFFER_MAX};
use crate::dialer::Dialer;
use crate::http1::{HEAD_MAX, Upstream};
use crate::worker::{lane, lanes};

/// Idle connections that a thread keeps for one instance: as many as a busy front end has requests at once. One costs about 12 KiB.
const IDLE_CONNECTIONS_MAX: usize = 512;

/// How long an idle connection is kept. Below the 5 s after which Node.js closes one, since a new one costs only about 50 µs.
pub(crate) const IDLE_CONNECTION_MAX_AGE: Duration = Duration::from_secs(4);

/// What an HTTP/2 instance may send of an answer before it is read, bytes. Much more than one segment of the loopback device
/// (64 KiB): with as much a program that leaves Nagle's algorithm on would wait 40 ms for each to be acknowledged.
const WINDOW: u32 = 256 * 1024;

/// What an HTTP/2 instance may send of all answers of one thread together before they are read, bytes: 128 that nobody reads. With
/// less, few clients that do not read theirs would keep others from theirs; without bound they would fill a small node's memory.
const CONNECTION_WINDOW: u32 = 32 << 20;

/// Set in `requests` while the instance is not in the route table: takes no new requests, finishes those it has.
const RETIRED: u32 = 1 << 31;

/// A ready or leaving instance.
pub(crate) struct Instance {
    pub(crate) endpoint: Endpoint,
    requests: AtomicU32,
    /// It has brought an answer to its end, none of failure.
    served: AtomicBool,
    /// Whether it left the route table, for those who stay as long as they like.
    leaving: watch::Sender<bool>,
    /// Each thread uses connections that its own epoll set watches.
    lanes: Box<[Lane]>,
}

/// One thread's connections. The locks are for whoever closes them; the thread itself hardly ever waits.
#[derive(Default)]
struct Lane {
    /// With the moment since when. The one used last is at the end.
    idle: Mutex<Vec<(Box<Upstream>, Instant)>>,
    multiplexed: Mutex<Option<http2::SendRequest<RequestBody>>>,
    /// Held while the one HTTP/2 connection is made.
    connecting: tokio::sync::Mutex<()>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("cannot connect: {0}")]
    Dial(#[from] std::io::Error),
    #[error("cannot start to speak HTTP: {0}")]
    Handshake(#[from] hyper::Error),
}

impl Instance {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        let lanes = (0..lanes()).map(|_| Lane::default()).collect();
        let (requests, served) = (AtomicU32::new(0), AtomicBool::new(false));
        Self { endpoint, requests, served, leaving: watch::Sender::new(false), lanes }
    }

    /// It has served a request. Whether it is the first one.
    pub(crate) fn serve(&self) -> bool {
        !self.has_served() && !self.served.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn has_served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    fn lane(&self) -> &Lane {
        &self.lanes[lane()]
    }

    /// Requests in flight.
    pub(crate) fn load(&self) -> u32 {
        self.requests.load(Ordering::SeqCst) & !RETIRED
    }

    /// Requests in flight, `None` if it takes no new ones.
    pub(crate) fn open_load(&self) -> Option<u32> {
        let requests = self.requests.load(Ordering::SeqCst);
        (requests & RETIRED == 0).then_some(requests)
    }

    /// Count one more request, unless the instance leaves or has `limit` (0: none) already. Returns how many were there before:
    /// of those who enter at the same time exactly one finds none.
    pub(crate) fn enter(&self, limit: u32) -> Option<u32> {
        let admit = |requests: u32| {
            (requests & RETIRED == 0 && (limit == 0 || requests < limit)).then_some(requests + 1)
        };
        self.requests.fetch_update(Ordering::SeqCst, Ordering::SeqCst, admit).ok()
    }

    /// One request less. Returns whether this was the last one of a leaving instance.
    pub(crate) fn leave(&self) -> bool {
        self.requests.fetch_sub(1, Ordering::SeqCst) == RETIRED | 1
    }

    /// Take no new requests and close what is idle.
    pub(crate) fn retire(&self) {
        if self.requests.fetch_or(RETIRED, Ordering::SeqCst) & RETIRED == 0 {
            self.leaving.send_replace(true);
        }
        for lane in &self.lanes {
            lane.idle.lock().expect("no panic under this lock").clear();
            *lane.multiplexed.lock().expect("no panic under this lock") = None;
        }
    }

    pub(crate) fn revive(&self) {
        if self.requests.fetch_and(!RETIRED, Ordering::SeqCst) & RETIRED != 0 {
            self.leaving.send_replace(false);
        }
    }

    /// Wait until the instance has been leaving for `grace` without a break.
    pub(crate) async fn leaving_for(&self, grace: Duration) {
        let mut leaving = self.leaving.subscribe();
        loop {
            // The sender lives as long as this instance.
            drop(leaving.wait_for(|leaving| *leaving).await);
            if tokio::time::timeout(grace, leaving.wait_for(|leaving| !*leaving)).await.is_err() {
                return;
            }
        }
    }

    /// Left the route table and serves nobody.
    pub(crate) fn is_drained(&self) -> bool {
        self.requests.load(Ordering::SeqCst) == RETIRED
    }

    /// Close connections that were idle for too long.
    pub(crate) fn sweep(&self, now: Instant) {
        let fresh = |(_, since): &(Box<Upstream>, Instant)| {
            now.saturating_duration_since(*since) < IDLE_CONNECTION_MAX_AGE
        };
        for lane in &self.lanes {
            lane.idle.lock().expect("no panic under this lock").retain(fresh);
        }
    }

    /// An idle connection that is still alive, the one used last first.
    pub(crate) fn checkout(&self, now: Instant) -> Option<Box<Upstream>> {
        loop {
            let (connection, since) = self.lane().idle.lock().expect("no panic under this lock").pop()?;
            let idle = now.saturating_duration_since(since);
            if idle < IDLE_CONNECTION_MAX_AGE && connection.is_quiet() {
                return Some(connection);
            }
        }
    }

    /// Keep a connection whose exchange is over. One that still has to send or receive is closed.
    pub(crate) fn checkin(&self, mut connection: Box<Upstream>, now: Instant) {
        if !connection.is_free() {
            return;
        }
        connection.rest();
        let mut idle = self.lane().idle.lock().expect("no panic under this lock");
        // Looked at under the lock: an instance that leaves marks itself first and then empties the list.
        if idle.len() < IDLE_CONNECTIONS_MAX && self.open_load().is_some() {
            idle.push((connection, now));
        }
    }

    pub(crate) async fn connect(&self, dialer: &Dialer) -> Result<Box<Upstream>, ConnectError> {
        let stream = dialer.dial(&self.endpoint.instance, self.endpoint.port).await?;
        Ok(Box::new(Upstream::new(stream)))
    }

    /// The instance's HTTP/2 connection, made if there is none.
    pub(crate) async fn multiplexed(
        &self,
        dialer: &Dialer,
    ) -> Result<http2::SendRequest<RequestBody>, ConnectError> {
        let _connecting = self.lane().connecting.lock().await;
        if let Some(sender) = self.open_multiplexed() {
            return Ok(sender);
        }
        let stream = dialer.dial(&self.endpoint.instance, self.endpoint.port).await?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.max_header_list_size(HEAD_MAX as u32).max_send_buf_size(SEND_BUFFER_MAX);
        builder.initial_stream_window_size(WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
        let (sender, driver) = builder.handshake(TokioIo::new(stream)).await?;
        let instance = self.endpoint.instance.clone();
        tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%instance, %error, "HTTP/2 connection ended");
            }
        });
        let mut kept = self.lane().multiplexed.lock().expect("no panic under this lock");
        if self.open_load().is_some() {
            *kept = Some(sender.clone());
        }
        Ok(sender)
    }

    /// The HTTP/2 connection, if there is one.
    pub(crate) fn open_multiplexed(&self) -> Option<http2::SendRequest<RequestBody>> {
        let mut slot = self.lane().multiplexed.lock().expect("no panic under this lock");
        if slot.as_ref().is_some_and(http2::SendRequest::is_closed) {
            *slot = None;
        }
        slot.clone()
    }
}
