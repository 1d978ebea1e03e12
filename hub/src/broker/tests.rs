//! The broker against real clients over TLS.

use rumqttc::{ConnectReturnCode, ConnectionError, LastWill, LastWillProperties, QoS, SubscribeReasonCode};
use tombolo_api::frame::{CHUNK_MAX, PACKET_MAX};

use super::*;
use crate::fixture::{self, Machine, Session};
use crate::pki::{HUB_NAME, Pki};

const PRESENCE: &str = "tombolo/v1/press-7/presence";
const MANIFEST: &str = "tombolo/v1/press-7/manifest";

struct Bench {
    _dir: tempfile::TempDir,
    pki: Arc<Pki>,
    broker: Broker,
}

/// A broker that welcomes every certified node but `banned`.
async fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let pki = fixture::pki(dir.path());
    let admits: Admits = Arc::new(|node, _| node.as_str() != "banned");
    let broker = Broker::start(([127, 0, 0, 1], 0).into(), pki.broker().unwrap(), admits).await.unwrap();
    Bench { _dir: dir, pki, broker }
}

impl Bench {
    async fn hub(&self) -> Session {
        let address = self.broker.address();
        Session::open(address, self.pki.client().unwrap(), HUB_NAME, None).await.unwrap()
    }

    async fn node(&self, id: &str) -> Session {
        self.node_with(id, id, None).await.unwrap()
    }

    async fn node_with(
        &self,
        certified: &str,
        id: &str,
        will: Option<LastWill>,
    ) -> Result<Session, ConnectionError> {
        let tls = Machine::new().signed(&self.pki, certified);
        Session::open(self.broker.address(), tls, id, will).await
    }
}

fn refusal(result: Result<Session, ConnectionError>) -> ConnectReturnCode {
    match result {
        Err(ConnectionError::ConnectionRefused(code)) => code,
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("it got in"),
    }
}

fn will(topic: &str) -> Option<LastWill> {
    Some(LastWill::new(topic, "gone", QoS::AtLeastOnce, true, None))
}

#[tokio::test]
async fn a_client_is_who_its_certificate_says() {
    let bench = bench().await;
    bench.node("press-7").await.leave().await;
    let other_id = bench.node_with("press-7", "press-8", None).await;
    assert_eq!(refusal(other_id), ConnectReturnCode::ClientIdentifierNotValid);
    let as_hub = bench.node_with("press-7", HUB_NAME, None).await;
    assert_eq!(refusal(as_hub), ConnectReturnCode::ClientIdentifierNotValid);
    assert_eq!(refusal(bench.node_with("banned", "banned", None).await), ConnectReturnCode::NotAuthorized);
    let foreign_will = bench.node_with("press-7", "press-7", will("tombolo/v1/press-8/presence")).await;
    assert_eq!(refusal(foreign_will), ConnectReturnCode::NotAuthorized);
}

#[tokio::test]
async fn strangers_do_not_get_in() {
    let bench = bench().await;
    let address = bench.broker.address();
    let anonymous = fixture::anonymous(bench.pki.ca_pem());
    assert!(Session::open(address, anonymous, "press-7", None).await.is_err());
    let elsewhere = tempfile::tempdir().unwrap();
    let other = fixture::pki(elsewhere.path());
    let machine = Machine::new();
    let certificate = other.sign(&"press-7".parse().unwrap(), &machine.csr).unwrap();
    let forged = machine.tls(&certificate.pem, bench.pki.ca_pem());
    assert!(Session::open(address, forged, "press-7", None).await.is_err());
    assert_eq!(bench.broker.load().sessions, 0);
}

#[tokio::test]
async fn a_node_keeps_to_its_own_topics() {
    let bench = bench().await;
    let mut hub = bench.hub().await;
    for filter in tombolo_api::topics::HUB_FILTERS {
        assert_eq!(hub.subscribe(filter).await, SubscribeReasonCode::Success(QoS::AtLeastOnce));
    }
    hub.publish("tombolo/v1/press-8/manifest", b"secret", true).await.unwrap();
    let mut node = bench.node("press-7").await;
    for filter in ["#", "tombolo/v1/#", "tombolo/v1/+/manifest", "tombolo/v1/press-8/manifest"] {
        assert_eq!(node.subscribe(filter).await, SubscribeReasonCode::NotAuthorized, "{filter}");
    }
    let shared = node.subscribe("$share/g/tombolo/v1/press-7/#").await;
    assert_eq!(shared, SubscribeReasonCode::SharedSubscriptionsNotSupported);
    assert_eq!(node.subscribe("tombolo/v1/press-7/#").await, SubscribeReasonCode::Success(QoS::AtLeastOnce));
    for topic in ["tombolo/v1/press-8/status", MANIFEST] {
        let refused = node.publish(topic, b"x", true).await.unwrap_err();
        assert!(refused.contains("NotAuthorized"), "{topic}: {refused}");
    }
    assert!(node.publish("elsewhere", b"x", false).await.unwrap_err().contains("TopicNameInvalid"));
    assert!(node.is_quiet().await && hub.is_quiet().await);
    node.publish("tombolo/v1/press-7/events", b"mine", false).await.unwrap();
    assert_eq!(hub.next().await, ("tombolo/v1/press-7/events".into(), b"mine".to_vec(), false));
}

#[tokio::test]
async fn retained_messages_wait_for_who_comes_later() {
    let bench = bench().await;
    let hub = bench.hub().await;
    let blob = tombolo_api::topics::NodeTopics::of(&"press-7".parse().unwrap());
    let blob = blob.blob(&Digest::of(b"x"));
    let content = vec![7; CHUNK_MAX + 1];
    hub.publish(&blob, &content, true).await.unwrap();
    hub.publish(MANIFEST, b"old", true).await.unwrap();
    hub.publish(MANIFEST, b"new", true).await.unwrap();
    assert_eq!(bench.broker.load().retained_bytes, content.len() + 3);
    let mut node = bench.node("press-7").await;
    node.subscribe(MANIFEST).await;
    assert_eq!(node.next().await, (MANIFEST.into(), b"new".to_vec(), true));
    node.subscribe(&blob).await;
    assert_eq!(node.next().await, (blob.clone(), content, true));
    hub.publish(MANIFEST, b"newer", true).await.unwrap();
    assert_eq!(node.next().await, (MANIFEST.into(), b"newer".to_vec(), false));
    node.client.unsubscribe(MANIFEST).await.unwrap();
    hub.publish(&blob, b"", true).await.unwrap();
    assert_eq!(node.next().await, (blob.clone(), Vec::new(), false));
    hub.publish(MANIFEST, b"", true).await.unwrap();
    assert_eq!(node.subscribe(&blob).await, SubscribeReasonCode::Success(QoS::AtLeastOnce));
    assert!(node.is_quiet().await);
    let load = bench.broker.load();
    assert_eq!((load.retained, load.retained_bytes), (0, 0));
}

#[tokio::test]
async fn a_blob_of_many_nodes_is_kept_once() {
    let bench = bench().await;
    let hub = bench.hub().await;
    let topic =
        |node: &str| tombolo_api::topics::NodeTopics::of(&node.parse().unwrap()).blob(&Digest::of(b"x"));
    for node in ["a", "b", "c"] {
        hub.publish(&topic(node), &[1; 1000], true).await.unwrap();
    }
    assert_eq!((bench.broker.load().retained, bench.broker.load().retained_bytes), (3, 1000));
    assert!(hub.publish(&topic("d"), b"other", true).await.is_err());
    for node in ["a", "c"] {
        hub.publish(&topic(node), b"", true).await.unwrap();
    }
    assert_eq!((bench.broker.load().retained, bench.broker.load().retained_bytes), (1, 1000));
    hub.publish(&topic("b"), b"", true).await.unwrap();
    assert_eq!((bench.broker.load().retained, bench.broker.load().retained_bytes), (0, 0));
}

#[tokio::test]
async fn a_will_is_published_unless_the_client_says_goodbye() {
    let bench = bench().await;
    let mut hub = bench.hub().await;
    hub.subscribe("tombolo/v1/+/presence").await;
    bench.node_with("press-7", "press-7", will(PRESENCE)).await.unwrap().leave().await;
    assert!(hub.is_quiet().await);
    bench.node_with("press-7", "press-7", will(PRESENCE)).await.unwrap().vanish().await;
    assert_eq!(hub.next().await, (PRESENCE.into(), b"gone".to_vec(), false));
    let mut late = bench.node("press-7").await;
    late.subscribe(PRESENCE).await;
    assert_eq!(late.next().await, (PRESENCE.into(), b"gone".to_vec(), true));
}

#[tokio::test]
async fn a_will_with_a_delay_waits_for_its_client() {
    let bench = bench().await;
    let mut hub = bench.hub().await;
    hub.subscribe("tombolo/v1/+/presence").await;
    let will = |delay| {
        let properties = LastWillProperties {
            delay_interval: Some(delay),
            payload_format_indicator: None,
            message_expiry_interval: None,
            content_type: None,
            response_topic: None,
            correlation_data: None,
            user_properties: Vec::new(),
        };
        Some(LastWill::new(PRESENCE, "gone", QoS::AtLeastOnce, true, Some(properties)))
    };
    let tls = Machine::new().signed(&bench.pki, "press-7");
    let open = |delay| Session::open(bench.broker.address(), tls.clone(), "press-7", will(delay));
    // Back in time, over a connection that broke and over one that was still there.
    open(1).await.unwrap().vanish().await;
    let second = open(1).await.unwrap();
    let third = open(1).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_300)).await;
    assert!(hub.is_quiet().await);
    drop(second);
    third.vanish().await;
    assert!(hub.is_quiet().await);
    assert_eq!(hub.next().await.1, b"gone");
    // Its owner is not welcome any more before the time is over.
    open(1).await.unwrap().vanish().await;
    while bench.broker.load().sessions > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bench.broker.retain_sessions(|_| false);
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    assert!(hub.is_quiet().await);
}

#[tokio::test]
async fn a_second_session_takes_over_after_the_firsts_will() {
    let bench = bench().await;
    let mut hub = bench.hub().await;
    hub.subscribe("tombolo/v1/+/presence").await;
    let mut first = bench.node_with("press-7", "press-7", will(PRESENCE)).await.unwrap();
    let second = bench.node_with("press-7", "press-7", will(PRESENCE)).await.unwrap();
    second.publish(PRESENCE, b"here", true).await.unwrap();
    assert!(first.end().await.contains("SessionTakenOver"));
    assert_eq!(hub.next().await.1, b"gone");
    assert_eq!(hub.next().await.1, b"here");
    assert!(hub.is_quiet().await, "the first session's end must not speak for the second");
    assert_eq!(bench.broker.load().sessions, 2);
}

#[tokio::test]
async fn a_node_that_is_not_welcome_any_more_is_put_out() {
    let bench = bench().await;
    let mut hub = bench.hub().await;
    hub.subscribe("tombolo/v1/+/presence").await;
    let mut node = bench.node_with("press-7", "press-7", will(PRESENCE)).await.unwrap();
    bench.broker.retain_sessions(|node| node.as_str() != "press-7");
    assert!(node.end().await.contains("NotAuthorized"));
    assert!(hub.is_quiet().await);
    assert_eq!(bench.broker.load().sessions, 1);
}

#[tokio::test]
async fn a_quiet_client_stays_and_a_dead_one_goes() {
    let bench = bench().await;
    let mut hub = bench.hub().await;
    hub.subscribe("tombolo/v1/+/presence").await;
    let quiet = bench.node_with("press-8", "press-8", will("tombolo/v1/press-8/presence")).await.unwrap();
    let dead = bench.node_with("press-7", "press-7", will(PRESENCE)).await.unwrap();
    dead.freeze();
    assert_eq!(hub.next().await.0, PRESENCE);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(bench.broker.load().sessions, 2);
    quiet.leave().await;
}

#[tokio::test]
async fn packets_are_bounded() {
    let bench = bench().await;
    let mut hub = bench.hub().await;
    hub.subscribe("tombolo/v1/+/status").await;
    let mut node = bench.node("press-7").await;
    let topic = "tombolo/v1/press-7/status";
    let fits = vec![1; PACKET_MAX - 100];
    node.publish(topic, &fits, false).await.unwrap();
    assert_eq!(hub.next().await.1, fits);
    // Written by hand: a proper client would not send it.
    let options = rumqttc::PublishOptions::new(QoS::AtLeastOnce);
    node.client.publish(topic, vec![1; PACKET_MAX + 1], options).await.unwrap();
    let end = node.end().await;
    assert!(end.contains("PacketTooLarge") || end.contains("OutgoingPacketTooLarge"), "{end}");
}

#[tokio::test]
async fn many_messages_arrive_in_order_through_a_small_window() {
    let bench = bench().await;
    let mut hub = bench.hub().await;
    hub.subscribe("tombolo/v1/+/events").await;
    let node = bench.node("press-7").await;
    for number in 0..500u32 {
        let options = rumqttc::PublishOptions::new(QoS::AtLeastOnce);
        let payload = number.to_be_bytes().to_vec();
        node.client.publish("tombolo/v1/press-7/events", payload, options).await.unwrap();
    }
    for number in 0..500u32 {
        assert_eq!(hub.next().await.1, number.to_be_bytes());
    }
}

#[tokio::test]
async fn it_stops_and_starts_again() {
    let Bench { _dir, pki, broker } = bench().await;
    let address = broker.address();
    let tls = Machine::new().signed(&pki, "press-7");
    let mut node = Session::open(address, tls.clone(), "press-7", None).await.unwrap();
    broker.stop().await;
    assert!(node.end().await.contains("ServerShuttingDown"));
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    let admits: Admits = Arc::new(|_, _| true);
    let again = Broker::start(address, pki.broker().unwrap(), admits).await.unwrap();
    Session::open(again.address(), tls, "press-7", None).await.unwrap().leave().await;
}
