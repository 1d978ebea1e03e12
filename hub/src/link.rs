//! The hub as an MQTT client, of the embedded broker or of another one: the only file that names the client.
//!
//! ```text
//! requests ─▶ feeder ─▶ client ══▶ broker          answered when the broker has acknowledged
//! inbox    ◀────────── poller ◀══                  acknowledged when its reader says `done`
//! connection (watch) ◀─┘
//! ```
//!
//! The broker sends at most [`WINDOW`] messages that are not `done`, so a slow reader slows the nodes and never fills memory.
//! Nothing is kept over a reconnect: whoever published knows from its answer, or from the connection's new number, what to
//! do again. Knows no message's meaning and no store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rumqttc::{
    AckMode, AsyncClient, Broker, ConnectionError, Event, EventLoop, MqttOptions, NetworkOptions, Packet,
    Publish, PublishOptions, QoS, SubscribeFilter, SubscribeReasonCode, TlsConfiguration, Transport,
};
use rustls::ClientConfig;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tombolo_api::frame::PACKET_MAX;
use tombolo_api::topics;

use crate::pki::HUB_NAME;

/// Most messages that the broker may have sent and that are not `done`.
const WINDOW: u16 = 64;

/// Room of the inbox: the window, and as much for messages that need no acknowledgement.
const INBOX_MAX: usize = 2 * WINDOW as usize;

/// Requests that may wait; more callers wait to be let in.
const REQUESTS_MAX: usize = 64;

/// Most publishes that the broker has not acknowledged.
const UNACKED_MAX: u16 = 64;

/// Room of the client's own queue: everything of the two limits above, so that an acknowledgement always finds a place.
const CLIENT_QUEUE_MAX: usize = 4 * WINDOW as usize;

/// How long the broker may take to acknowledge a publish.
const ACK_DEADLINE: Duration = Duration::from_secs(10);

/// Keep-alive, seconds.
const KEEP_ALIVE_S: u16 = 30;

/// Pauses between attempts to connect.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// How long the goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Where the broker is, and as whom to speak to it.
#[derive(Clone)]
pub(crate) struct Options {
    /// `host:port`.
    pub(crate) address: String,
    pub(crate) tls: Arc<ClientConfig>,
}

/// Whether the broker is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connection {
    Down,
    /// Connected and subscribed. Every connection has a number of its own, from 1.
    Up(u64),
}

/// Something to publish.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) retain: bool,
    /// Told when the broker has it; a request without is dropped when the broker cannot be reached.
    pub(crate) done: Option<oneshot::Sender<Result<(), PublishError>>>,
}

/// Why the broker does not have a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PublishError {
    #[error("the broker cannot be reached")]
    Down,
    #[error("the broker did not acknowledge within {} s", ACK_DEADLINE.as_secs())]
    Deadline,
    #[error("the broker did not take it: {0}")]
    Refused(String),
    #[error("the hub stops")]
    Stopped,
}

/// Sends requests to the link.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    requests: mpsc::Sender<Request>,
}

/// A message that came in. Its sender's broker holds it until [`Incoming::done`].
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    ack: Option<Ack>,
}

#[derive(Debug)]
struct Ack {
    client: AsyncClient,
    publish: Publish,
    number: u64,
    current: Arc<AtomicU64>,
}

/// What the rest of the hub holds of a link.
pub(crate) struct Link {
    pub(crate) outbox: Outbox,
    pub(crate) inbox: mpsc::Receiver<Incoming>,
    pub(crate) connection: watch::Receiver<Connection>,
    feeder: Feeder,
    poller: Poller,
}

struct Feeder {
    client: AsyncClient,
    requests: mpsc::Receiver<Request>,
    connection: watch::Receiver<Connection>,
}

struct Poller {
    client: AsyncClient,
    events: EventLoop,
    inbox: mpsc::Sender<Incoming>,
    connection: watch::Sender<Connection>,
    /// Of the connection there is or was last.
    number: u64,
    /// Of the connection there is; 0 if none.
    current: Arc<AtomicU64>,
    pause: Duration,
    dropped: u64,
}

impl Outbox {
    /// An outbox and what is put into it.
    pub(crate) fn channel() -> (Self, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        (Self { requests }, receiver)
    }

    /// Publishes; returns when the broker has it.
    pub(crate) async fn publish(
        &self,
        topic: String,
        payload: Vec<u8>,
        retain: bool,
    ) -> Result<(), PublishError> {
        let (done, answer) = oneshot::channel();
        let request = Request { topic, payload, retain, done: Some(done) };
        self.requests.send(request).await.map_err(|_| PublishError::Stopped)?;
        answer.await.unwrap_or(Err(PublishError::Stopped))
    }

    /// Publishes if that is possible now. For messages whose loss the protocol heals.
    pub(crate) fn send(&self, topic: String, payload: Vec<u8>) {
        let request = Request { topic, payload, retain: false, done: None };
        if self.requests.try_send(request).is_err() {
            tracing::debug!("a message to a node was dropped: the link is busy");
        }
    }
}

impl Incoming {
    /// As if it had come from a broker.
    #[cfg(test)]
    pub(crate) fn new(topic: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self { topic: topic.into(), payload: payload.into(), ack: None }
    }

    /// It has been dealt with: another one may come.
    pub(crate) fn done(self) {
        let Some(Ack { client, publish, number, current }) = self.ack else { return };
        // An acknowledgement must not reach another connection, where its id means another message.
        if current.load(Ordering::Relaxed) == number
            && let Err(error) = client.try_ack(&publish)
        {
            tracing::warn!(%error, "a message cannot be acknowledged to the broker");
        }
    }
}

impl Link {
    /// A link that does nothing until [`Link::split`] and [`Worker::run`].
    pub(crate) fn new(options: &Options) -> Self {
        let (client, events) = AsyncClient::builder(mqtt_options(options)).capacity(CLIENT_QUEUE_MAX).build();
        let (outbox, requests) = Outbox::channel();
        let (inbox_in, inbox) = mpsc::channel(INBOX_MAX);
        let (state, connection) = watch::channel(Connection::Down);
        let feeder = Feeder { client: client.clone(), requests, connection: connection.clone() };
        let poller = Poller {
            client,
            events,
            inbox: inbox_in,
            connection: state,
            number: 0,
            current: Arc::default(),
            pause: PAUSE_MIN,
            dropped: 0,
        };
        Self { outbox, inbox, connection, feeder, poller }
    }

    /// Takes the work apart from what others hold.
    pub(crate) fn split(self) -> (Outbox, mpsc::Receiver<Incoming>, watch::Receiver<Connection>, Worker) {
        (self.outbox, self.inbox, self.connection, Worker { feeder: self.feeder, poller: self.poller })
    }
}

/// The link's work.
pub(crate) struct Worker {
    feeder: Feeder,
    poller: Poller,
}

impl Worker {
    /// Keeps the connection until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let Self { feeder, poller } = self;
        tokio::select! {
            () = feeder.run() => {}
            () = poller.run(stop) => {}
        }
    }
}

fn mqtt_options(options: &Options) -> MqttOptions {
    // The broker shows a certificate for the hub's name wherever it is; the address is only dialled.
    let mut mqtt = MqttOptions::new(HUB_NAME, Broker::tcp(HUB_NAME, 8883));
    let address = options.address.clone();
    mqtt.set_socket_connector(move |_, network| {
        let address = address.clone();
        async move { rumqttc::default_socket_connect(address, network).await }
    });
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    mqtt.set_network_options(network);
    mqtt.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(options.tls.clone())));
    mqtt.set_keep_alive(KEEP_ALIVE_S);
    mqtt.set_clean_start(true);
    mqtt.set_ack_mode(AckMode::Manual);
    mqtt.set_receive_maximum(Some(WINDOW));
    // The client reserves room for every message that may be in flight: some 17 MB for the 65,535 it would allow.
    mqtt.set_outgoing_inflight_upper_limit(UNACKED_MAX);
    mqtt.set_max_packet_size(Some(PACKET_MAX as u32));
    mqtt
}

impl Feeder {
    async fn run(mut self) {
        let mut unacked = FuturesUnordered::new();
        loop {
            tokio::select! {
                request = self.requests.recv(), if unacked.len() < usize::from(UNACKED_MAX) => match request {
                    Some(request) => unacked.extend(self.pass_on(request).await),
                    // Everybody who could ask is gone; the poller goes on until it is told to stop.
                    None => std::future::pending().await,
                },
                Some(()) = unacked.next(), if !unacked.is_empty() => {}
            }
        }
    }

    /// Gives a request to the client. Returns the waiting for its answer.
    async fn pass_on(&self, request: Request) -> Option<impl Future<Output = ()> + use<>> {
        let Request { topic, payload, retain, done } = request;
        if *self.connection.borrow() == Connection::Down {
            done.map(|done| done.send(Err(PublishError::Down)));
            return None;
        }
        let options = PublishOptions::new(QoS::AtLeastOnce).retain(retain);
        let notice = match self.client.publish_tracked(topic, payload, options).await {
            Ok(notice) => notice,
            Err(error) => {
                done.map(|done| done.send(Err(PublishError::Refused(error.to_string()))));
                return None;
            }
        };
        Some(async move {
            let result = match timeout(ACK_DEADLINE, notice.wait_completion_async()).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(PublishError::Refused(error.to_string())),
                Err(_) => Err(PublishError::Deadline),
            };
            match done {
                Some(done) => drop(done.send(result)),
                None => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "a message to a node was not taken");
                    }
                }
            }
        })
    }
}

impl Poller {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            let polled = tokio::select! {
                polled = self.events.poll() => polled,
                () = stop.cancelled() => return self.leave().await,
            };
            match polled {
                Ok(Event::Incoming(packet)) => self.take(packet),
                Ok(_) => {}
                Err(error) => {
                    self.lost(&error);
                    let pause = jittered(self.pause);
                    self.pause = (self.pause * 2).min(PAUSE_MAX);
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = stop.cancelled() => return,
                    }
                }
            }
        }
    }

    fn take(&mut self, packet: Packet) {
        match packet {
            Packet::ConnAck(_) => {
                self.number += 1;
                self.current.store(self.number, Ordering::Relaxed);
                let filters =
                    topics::HUB_FILTERS.map(|filter| SubscribeFilter::new(filter, QoS::AtLeastOnce));
                if let Err(error) = self.client.try_subscribe_many(filters) {
                    tracing::warn!(%error, "the hub cannot subscribe to its nodes' topics");
                }
            }
            Packet::SubAck(ack) => {
                let refused =
                    ack.return_codes.iter().find(|code| !matches!(code, SubscribeReasonCode::Success(_)));
                if let Some(code) = refused {
                    tracing::error!(
                        ?code,
                        "the broker does not let the hub subscribe: check its access rules"
                    );
                    return;
                }
                tracing::info!("connected to the broker");
                self.pause = PAUSE_MIN;
                self.connection.send_replace(Connection::Up(self.number));
            }
            Packet::Publish(publish) => self.pass_on(publish),
            Packet::Disconnect(disconnect) => {
                tracing::warn!(reason = ?disconnect.reason_code, "the broker ends the connection");
            }
            _ => {}
        }
    }

    fn pass_on(&mut self, publish: Publish) {
        let topic = String::from_utf8_lossy(&publish.topic).into_owned();
        let payload = publish.payload.clone();
        let ack =
            Ack { client: self.client.clone(), publish, number: self.number, current: self.current.clone() };
        if let Err(error) = self.inbox.try_send(Incoming { topic, payload, ack: Some(ack) }) {
            self.dropped += 1;
            tracing::warn!(dropped = self.dropped, %error, "a message of a node was dropped");
        }
    }

    fn lost(&mut self, error: &ConnectionError) {
        self.current.store(0, Ordering::Relaxed);
        let was_up = self.connection.send_if_modified(|connection| {
            std::mem::replace(connection, Connection::Down) != Connection::Down
        });
        if was_up || self.pause == PAUSE_MIN {
            tracing::warn!(%error, "the broker cannot be reached, the hub tries again");
        } else {
            tracing::debug!(%error, "the broker cannot be reached");
        }
    }

    async fn leave(mut self) {
        if self.connection.send_replace(Connection::Down) == Connection::Down {
            return;
        }
        let goodbye = async {
            if self.client.try_disconnect_now().is_ok() {
                while self.events.poll().await.is_ok() {}
            }
        };
        timeout(GOODBYE, goodbye).await.ok();
    }
}

/// Half to all of `pause`, so that many do not try at once.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0; 2];
    // Without random numbers all try at once: no reason not to try.
    let _ = getrandom::fill(&mut random);
    pause / 2 + pause.mul_f64(f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX) / 2.0)
}

#[cfg(test)]
mod tests;
