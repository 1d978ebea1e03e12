//! The connection to the hub's broker, and the only file that names the MQTT client.
//!
//! ```text
//! driver: polls the client always ─▶ manifests and blobs to sync, acks to the outbox, log requests to tail
//! speaker: on connect and on change ─▶ subscriptions, presence, report, events, log chunks
//! ```
//!
//! Sync is state-based: what is sent says what is, and is said again when the broker has forgotten it. The driver never
//! waits for anybody, so the connection lives; the speaker may wait for the driver. Nothing that serves waits for either.
//! The session outlives a broken connection for a while, so that the will of a connection that is taken over is not sent.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rumqttc::{
    AsyncClient, Broker, BrokerSessionResumePolicy, ConnectionError, Event, EventLoop, LastWill,
    LastWillProperties, MqttOptions, NetworkOptions, Packet, PublishOptions, QoS, SubscribeFilterInput,
    TlsConfiguration, Transport,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tombolo_agent_core::accelerators::Measurements;
use tombolo_agent_core::backoff::RECONNECT;
use tombolo_api::frame::PACKET_MAX;
use tombolo_api::report::{EventAck, Presence, Report};
use tombolo_api::tail::TailRequest;
use tombolo_api::topics::{self, Leaf, NodeTopics};
use tombolo_api::{Digest, NodeId};

use crate::accepted::Accepted;
use crate::enrol::random;
use crate::identity::Identity;
use crate::keep::Refusals;
use crate::outbox::Outbox;
use crate::sync::Received;
use crate::tail::Tagged;
use crate::tls::{self, TimeFloor};

mod speaker;

use speaker::Speaker;

/// Between pings on an idle connection, seconds: a cut link is noticed within half a minute.
const KEEP_ALIVE_S: u16 = 20;

/// To a connection, TLS and MQTT included, seconds. Satellite links take several round trips of a second.
const CONNECT_TIMEOUT_S: u64 = 15;

/// How long the broker remembers subscriptions and what was sent meanwhile, seconds.
const SESSION_EXPIRY_S: u32 = 120;

/// How long the broker waits for the node to come back before it tells that it is gone, seconds.
const WILL_DELAY_S: u32 = 2;

/// Requests waiting to be put on the wire.
const REQUESTS: usize = 64;

/// Messages on their way and not acknowledged. The client reserves memory for each: its default of 65,535 costs 17 MB.
const IN_FLIGHT_MAX: u16 = 64;

/// To hand a request to the driver; longer means that the connection does not move.
const HAND_OVER: Duration = Duration::from_secs(10);

/// A connection that lasted this long clears the count of failures.
const STABLE: Duration = Duration::from_secs(10);

/// Failures in a row after which the hub is asked where its broker is now.
const FAILURES_BEFORE_RENEWAL: u32 = 6;

/// Longest wait for the farewell when the agent stops.
const FAREWELL: Duration = Duration::from_secs(2);

/// Where the connection stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// There is no identity to connect with.
    Waiting,
    Down {
        /// Of the last attempt; empty before the first.
        reason: String,
        failures: u32,
    },
    Up {
        /// Counts connections of this start.
        connection: u64,
        /// The broker remembers the session.
        resumed: bool,
    },
}

/// Connections, and messages of either direction, since this start.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// With whatever identity: a renewal does not begin anew.
    connections: AtomicU64,
    pub(crate) sent: Direction,
    pub(crate) received: Direction,
}

/// Messages with their payloads' bytes.
#[derive(Debug, Default)]
pub(crate) struct Direction {
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl Traffic {
    /// Counts a connection; how many there are now.
    fn connected(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Direction {
    fn count(&self, payload: usize) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(payload as u64, Ordering::Relaxed);
    }

    /// Messages, and bytes of their payloads.
    pub(crate) fn total(&self) -> (u64, u64) {
        (self.messages.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

/// What the link works with.
pub(crate) struct Link {
    pub(crate) me: NodeId,
    /// Distinguishes this start of this agent from every other.
    pub(crate) session: String,
    pub(crate) floor: TimeFloor,
    pub(crate) identity: watch::Receiver<Option<Arc<Identity>>>,
    pub(crate) accepted: watch::Receiver<Option<Arc<Accepted>>>,
    pub(crate) report: watch::Receiver<Report>,
    /// What is told of accelerators, as a part of the report.
    pub(crate) accelerators: watch::Receiver<Arc<Measurements>>,
    /// What is wrong with the specifications of devices, for the node's limitations.
    pub(crate) specifications: watch::Receiver<Arc<Vec<String>>>,
    /// Whether the report says what is: not before the agent has found its instances.
    pub(crate) ready: watch::Receiver<bool>,
    pub(crate) refusals: watch::Receiver<Refusals>,
    pub(crate) wanted: watch::Receiver<BTreeSet<Digest>>,
    pub(crate) outbox: Outbox,
    pub(crate) chunks: mpsc::Receiver<Tagged>,
    pub(crate) received: mpsc::Sender<Received>,
    pub(crate) tail_requests: mpsc::Sender<TailRequest>,
    pub(crate) state: watch::Sender<LinkState>,
    pub(crate) traffic: Arc<Traffic>,
    /// Asks for a fresh identity: the hub may have moved.
    pub(crate) renew: Arc<Notify>,
}

impl Link {
    /// Runs until `stop`, then says goodbye.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let identity = self.identity.borrow_and_update().clone();
            let Some(identity) = identity else {
                self.state.send_replace(LinkState::Waiting);
                tokio::select! {
                    changed = self.identity.changed() => if changed.is_err() { return },
                    () = stop.cancelled() => return,
                }
                continue;
            };
            if self.with_identity(&identity, &stop).await {
                return;
            }
        }
    }

    /// Keeps a connection with one identity; `true` when the agent stops, `false` when the identity changed.
    async fn with_identity(&mut self, identity: &Identity, stop: &CancellationToken) -> bool {
        let options = match options(identity, &self.me, &self.session, self.floor.clone()) {
            Ok(options) => options,
            Err(reason) => {
                tracing::error!(reason, "cannot connect to the hub");
                self.state.send_replace(LinkState::Down { reason, failures: 1 });
                self.renew.notify_one();
                tokio::select! {
                    changed = self.identity.changed() => return changed.is_err(),
                    () = stop.cancelled() => return true,
                }
            }
        };
        let (client, eventloop) = AsyncClient::builder(options).capacity(REQUESTS).build();
        let report_wanted = Arc::<Notify>::default();
        let driver = Driver {
            me: self.me.clone(),
            received: self.received.clone(),
            tail_requests: self.tail_requests.clone(),
            outbox: self.outbox.clone(),
            state: self.state.clone(),
            traffic: self.traffic.clone(),
            report_wanted: report_wanted.clone(),
            renew: self.renew.clone(),
        };
        self.state.send_replace(LinkState::Down { reason: String::new(), failures: 0 });
        let mut driver = tokio::spawn(driver.run(eventloop));
        let mut identities = self.identity.clone();
        let wire = Wire { client, traffic: self.traffic.clone() };
        let mut speaker = Speaker::new(wire, &self.me, &self.session, self.state.subscribe(), report_wanted);
        let stops = tokio::select! {
            () = speaker.run(self) => true,
            changed = identities.changed() => changed.is_err(),
            () = stop.cancelled() => true,
        };
        if stops {
            let farewell = async {
                speaker.farewell().await;
                let _ = (&mut driver).await;
            };
            let _ = tokio::time::timeout(FAREWELL, farewell).await;
        }
        driver.abort();
        let _ = self.received.try_send(Received::Connected(false));
        stops
    }
}

fn options(identity: &Identity, me: &NodeId, session: &str, floor: TimeFloor) -> Result<MqttOptions, String> {
    let (host, port) = address(&identity.enrolment.mqtt_url)?;
    let config = tls::mutual(identity, floor).map_err(|error| error.to_string())?;
    let mut options = MqttOptions::new(me.as_str(), Broker::tcp(host, port));
    let gone = Presence { online: false, session: session.to_owned(), serving: None, report: None };
    let properties = LastWillProperties {
        delay_interval: Some(WILL_DELAY_S),
        payload_format_indicator: None,
        message_expiry_interval: None,
        content_type: None,
        response_topic: None,
        correlation_data: None,
        user_properties: Vec::new(),
    };
    let will =
        LastWill::new(NodeTopics::of(me).presence(), json(&gone), QoS::AtLeastOnce, true, Some(properties));
    let mut network = NetworkOptions::new();
    network.set_connection_timeout(CONNECT_TIMEOUT_S);
    network.set_tcp_nodelay(true);
    let packet_max = u32::try_from(PACKET_MAX).expect("a small constant");
    options
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(config))))
        .set_network_options(network)
        .set_keep_alive(KEEP_ALIVE_S)
        .set_clean_start(false)
        .set_broker_session_resume_policy(BrokerSessionResumePolicy::AllowBrokerOnly)
        .set_session_expiry_interval(Some(SESSION_EXPIRY_S))
        .set_max_packet_size(Some(packet_max))
        .set_outgoing_inflight_upper_limit(IN_FLIGHT_MAX)
        .set_last_will(will);
    Ok(options)
}

/// Host and port of `mqtts://host:port`.
fn address(url: &str) -> Result<(String, u16), String> {
    let bad = || format!("{url:?} is not an address of the form mqtts://host:port");
    let rest = url.strip_prefix("mqtts://").ok_or_else(bad)?.trim_end_matches('/');
    let (host, port) = rest.rsplit_once(':').ok_or_else(bad)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = port.parse().map_err(|_| bad())?;
    if host.is_empty() { Err(bad()) } else { Ok((host.to_owned(), port)) }
}

/// Polls the client, whatever happens, and passes on what comes in. Waits for nobody.
struct Driver {
    me: NodeId,
    received: mpsc::Sender<Received>,
    tail_requests: mpsc::Sender<TailRequest>,
    outbox: Outbox,
    state: watch::Sender<LinkState>,
    traffic: Arc<Traffic>,
    report_wanted: Arc<Notify>,
    renew: Arc<Notify>,
}

impl Driver {
    async fn run(self, mut eventloop: EventLoop) {
        let mut failures = 0;
        let mut connected: Option<Instant> = None;
        loop {
            match eventloop.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(ack))) => {
                    let connection = self.traffic.connected();
                    connected = Some(Instant::now());
                    tracing::info!(resumed = ack.session_present, "connected to the hub");
                    self.state.send_replace(LinkState::Up { connection, resumed: ack.session_present });
                    self.pass_on(Received::Connected(true));
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    self.traffic.received.count(publish.payload.len());
                    self.publish(&publish.topic, publish.payload)
                }
                Ok(Event::Incoming(Packet::SubAck(ack))) => {
                    let refused = ack
                        .return_codes
                        .iter()
                        .any(|code| !matches!(code, rumqttc::SubscribeReasonCode::Success(_)));
                    if refused {
                        tracing::warn!(codes = ?ack.return_codes, "the broker refused a subscription");
                    }
                }
                Ok(_) => {}
                Err(ConnectionError::RequestsDone) => return,
                Err(error) => {
                    let lasted = connected.take().is_some_and(|since| since.elapsed() >= STABLE);
                    failures = if lasted { 1 } else { failures + 1 };
                    self.failed(&error, failures);
                    let pause = RECONNECT.jittered_ms(failures, random());
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
            }
        }
    }

    fn failed(&self, error: &ConnectionError, failures: u32) {
        let reason = error.to_string();
        if failures == 1 {
            tracing::warn!(reason, "not connected to the hub, trying again");
        }
        self.state.send_replace(LinkState::Down { reason, failures });
        self.pass_on(Received::Connected(false));
        if failures.is_multiple_of(FAILURES_BEFORE_RENEWAL) {
            self.renew.notify_one();
        }
    }

    fn publish(&self, topic: &Bytes, payload: Bytes) {
        let parsed = std::str::from_utf8(topic).ok().and_then(topics::parse);
        let Some((node, leaf)) = parsed.filter(|(node, _)| *node == self.me) else { return };
        match leaf {
            Leaf::Manifest => self.pass_on(Received::Manifest(payload)),
            Leaf::Blob(digest) => self.pass_on(Received::Blob(digest, payload)),
            Leaf::Ack => match serde_json::from_slice::<EventAck>(&payload) {
                Ok(ack) => self.outbox.acknowledge(&ack),
                Err(error) => tracing::warn!(%error, "an acknowledgement cannot be read"),
            },
            Leaf::TailRequest => match serde_json::from_slice(&payload) {
                // With too many requests already, this one is repeated by the hub.
                Ok(request) => drop(self.tail_requests.try_send(request)),
                Err(error) => tracing::warn!(%error, "a request for logs cannot be read"),
            },
            Leaf::ReportRequest => self.report_wanted.notify_one(),
            Leaf::Presence | Leaf::Status | Leaf::Events | Leaf::Tail(_) => {
                tracing::debug!(%node, ?leaf, "a message nobody asked for");
            }
        }
    }

    /// What cannot be taken now is asked for again by whoever misses it.
    fn pass_on(&self, received: Received) {
        if self.received.try_send(received).is_err() {
            tracing::warn!("more came from the hub than could be taken in, dropped a message");
        }
    }
}

/// The client, for whoever speaks: topics and payloads go in, nothing of MQTT comes out.
struct Wire {
    client: AsyncClient,
    traffic: Arc<Traffic>,
}

/// The driver takes no request: the connection does not move, or is being made anew.
struct Stuck;

impl Wire {
    async fn subscribe(&self, topics: impl Iterator<Item = String>) -> Result<(), Stuck> {
        let filters: Vec<_> =
            topics.map(|topic| SubscribeFilterInput::new(topic, QoS::AtLeastOnce)).collect();
        if filters.is_empty() { Ok(()) } else { hand_over(self.client.subscribe_many(filters)).await }
    }

    async fn unsubscribe(&self, topics: impl Iterator<Item = String>) -> Result<(), Stuck> {
        let filters: Vec<_> = topics.collect();
        if filters.is_empty() { Ok(()) } else { hand_over(self.client.unsubscribe_many(filters)).await }
    }

    async fn publish(&self, topic: String, payload: Vec<u8>, retain: bool) -> Result<(), Stuck> {
        self.traffic.sent.count(payload.len());
        hand_over(self.client.publish(topic, payload, PublishOptions::at_least_once().retain(retain))).await
    }

    async fn disconnect(&self) -> Result<(), Stuck> {
        hand_over(self.client.disconnect()).await
    }
}

/// Waits for the driver to take a request, not for ever.
async fn hand_over<E>(request: impl Future<Output = Result<(), E>>) -> Result<(), Stuck> {
    match tokio::time::timeout(HAND_OVER, request).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Stuck),
    }
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("messages are plain data")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_addresses() {
        assert_eq!(address("mqtts://127.0.0.1:7883").unwrap(), ("127.0.0.1".into(), 7883));
        assert_eq!(address("mqtts://[::1]:7883/").unwrap(), ("::1".into(), 7883));
        assert_eq!(address("mqtts://hub.example:1").unwrap(), ("hub.example".into(), 1));
        for bad in ["", "mqtt://h:1", "mqtts://h", "mqtts://:1", "mqtts://h:x"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
