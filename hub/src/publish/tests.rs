//! What goes out when something changed, and that nothing goes out when nothing did.

use std::sync::Mutex;

use tokio::task::JoinHandle;
use tombolo_api::desired::{RouteObject, encode_route};
use tombolo_api::frame::{self, Frame};
use tombolo_api::report::{Presence, Serving};
use tombolo_api::topics::{self, Leaf};
use tombolo_hub_core::NodeState;

use super::*;
use crate::fixture::{NEVER, SOON};
use crate::link::Request;

type Log = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A publisher with everything around it that it can hear and say.
struct Bench {
    dir: tempfile::TempDir,
    placement: watch::Sender<Arc<Placement>>,
    fleet: watch::Sender<Arc<Fleet>>,
    connection: watch::Sender<Connection>,
    log: Log,
    published: watch::Receiver<Arc<AllPublished>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    memory: BrokerMemory,
}

fn node() -> NodeId {
    "press-7".parse().unwrap()
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn route(name: &str, host: &str) -> Encoded {
    encode_route(&RouteObject {
        namespace: "default".into(),
        name: name.into(),
        hosts: vec![host.into()],
        targets: vec![],
        steering: vec![],
        rollout: None,
    })
}

fn placement(objects: &[Encoded]) -> Arc<Placement> {
    Arc::new(Placement::from([(node(), objects.to_vec())]))
}

fn fleet(serving: Option<Serving>) -> Arc<Fleet> {
    let mut state = NodeState::enrolled(node(), 1);
    let presence = Presence { online: true, session: "s".into(), serving, report: None };
    state.presence = Some(presence);
    Arc::new(Fleet::from([(node(), state)]))
}

/// A broker that takes everything and notes it.
async fn take(mut requests: tokio::sync::mpsc::Receiver<Request>, log: Log) {
    while let Some(request) = requests.recv().await {
        assert!(request.retain);
        log.lock().unwrap().push((request.topic, request.payload));
        request.done.unwrap().send(Ok(())).unwrap();
    }
}

impl Bench {
    fn start(first: Arc<Placement>, memory: BrokerMemory) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), first, memory, true)
    }

    fn start_in(dir: tempfile::TempDir, first: Arc<Placement>, memory: BrokerMemory, complete: bool) -> Self {
        let (store, _) = Store::open(dir.path()).unwrap();
        let publisher = Publisher::open(store, key(), complete).unwrap();
        let published = publisher.watch();
        let (placement, fleet) = (watch::Sender::new(first), watch::Sender::new(fleet(None)));
        let connection = watch::Sender::new(Connection::Up(1));
        let (outbox, requests) = Outbox::channel();
        let log = Log::default();
        tokio::spawn(take(requests, log.clone()));
        let inputs = Inputs {
            placement: placement.subscribe(),
            fleet: fleet.subscribe(),
            connection: connection.subscribe(),
            outbox,
            memory,
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(publisher.run(inputs, stop.clone()));
        Self { dir, placement, fleet, connection, log, published, stop, task, memory }
    }

    async fn restart(self, first: Arc<Placement>, complete: bool) -> Self {
        self.stop.cancel();
        self.task.await.unwrap();
        Self::start_in(self.dir, first, self.memory, complete)
    }

    /// Everything published until a manifest, which is the last.
    async fn until_manifest(&self) -> (Vec<Leaf>, Manifest) {
        let deadline = tokio::time::Instant::now() + SOON;
        while !self.log.lock().unwrap().iter().any(|(topic, _)| topic.ends_with("/manifest")) {
            assert!(tokio::time::Instant::now() < deadline, "no manifest came");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut log = std::mem::take(&mut *self.log.lock().unwrap());
        let (topic, payload) = log.pop().unwrap();
        assert_eq!(topics::parse(&topic), Some((node(), Leaf::Manifest)), "the manifest must be the last");
        let Frame::Inline(signed) = frame::decode(&payload).unwrap() else { panic!("not inline") };
        let manifest =
            SignedManifest::from_bytes(signed).unwrap().verify(&key().verifying_key(), &node()).unwrap();
        assert_eq!(self.published.borrow()[&node()].digest, Digest::of(signed));
        (log.into_iter().map(|(topic, _)| topics::parse(&topic).unwrap().1).collect(), manifest)
    }

    async fn is_quiet(&self) -> bool {
        tokio::time::sleep(NEVER).await;
        self.log.lock().unwrap().is_empty()
    }

    fn serve(&self, version: Version) {
        let digest = self.published.borrow()[&node()].digest;
        self.fleet.send_replace(fleet(Some(Serving { version, digest })));
    }

    /// The topics cleared next.
    async fn cleared(&self, count: usize) -> BTreeSet<String> {
        let deadline = tokio::time::Instant::now() + SOON;
        while self.log.lock().unwrap().len() < count {
            assert!(tokio::time::Instant::now() < deadline, "too few topics were cleared");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let log = std::mem::take(&mut *self.log.lock().unwrap());
        log.into_iter()
            .map(|(topic, payload)| {
                assert!(payload.is_empty(), "{topic}");
                topic
            })
            .collect()
    }
}

fn blob(object: &Encoded) -> Leaf {
    Leaf::Blob(object.entry.digest)
}

#[tokio::test]
async fn objects_come_before_the_manifest_that_names_them() {
    let (a, b) = (route("a", "a.x"), route("b", "b.x"));
    let bench = Bench::start(placement(&[a.clone(), b.clone()]), BrokerMemory::Ours);
    let (mut blobs, manifest) = bench.until_manifest().await;
    blobs.sort_by_key(|leaf| format!("{leaf:?}"));
    let mut expected = vec![blob(&a), blob(&b)];
    expected.sort_by_key(|leaf| format!("{leaf:?}"));
    assert_eq!(blobs, expected);
    assert_eq!((manifest.generation, manifest.node), (1, node()));
    assert_eq!(manifest.objects, [a.entry, b.entry]);
}

#[tokio::test]
async fn nothing_new_means_no_message_and_a_change_costs_only_itself() {
    let (a, b) = (route("a", "a.x"), route("b", "b.x"));
    let bench = Bench::start(placement(std::slice::from_ref(&a)), BrokerMemory::Ours);
    let (_, first) = bench.until_manifest().await;
    bench.placement.send_replace(placement(std::slice::from_ref(&a)));
    bench.serve(first.version());
    bench.connection.send_replace(Connection::Down);
    bench.connection.send_replace(Connection::Up(2));
    assert!(bench.is_quiet().await);
    bench.placement.send_replace(placement(&[a, b.clone()]));
    let (blobs, second) = bench.until_manifest().await;
    assert_eq!(blobs, [blob(&b)]);
    assert_eq!((second.epoch, second.generation), (first.epoch, 2));
}

#[tokio::test]
async fn objects_go_when_the_node_serves_the_newer_manifest() {
    let (a, b) = (route("a", "a.x"), route("b", "b.x"));
    let bench = Bench::start(placement(&[a.clone(), b.clone()]), BrokerMemory::Ours);
    let (_, first) = bench.until_manifest().await;
    bench.serve(first.version());
    bench.placement.send_replace(placement(&[b]));
    let (_, second) = bench.until_manifest().await;
    assert!(bench.is_quiet().await, "the node still serves the older one");
    bench.serve(second.version());
    assert_eq!(bench.cleared(1).await, BTreeSet::from([NodeTopics::of(&node()).blob(&a.entry.digest)]));
    assert!(bench.is_quiet().await);
}

#[tokio::test]
async fn a_restart_publishes_the_same_again() {
    let a = route("a", "a.x");
    let bench = Bench::start(placement(std::slice::from_ref(&a)), BrokerMemory::Ours);
    let (_, before) = bench.until_manifest().await;
    let published = bench.published.borrow()[&node()];
    let bench = bench.restart(placement(std::slice::from_ref(&a)), true).await;
    let (blobs, after) = bench.until_manifest().await;
    assert_eq!((blobs, after), (vec![blob(&a)], before));
    assert_eq!(bench.published.borrow()[&node()], published);
}

#[tokio::test]
async fn a_store_that_lost_something_begins_a_new_epoch() {
    let a = route("a", "a.x");
    let bench = Bench::start(placement(std::slice::from_ref(&a)), BrokerMemory::Ours);
    let (_, before) = bench.until_manifest().await;
    let bench = bench.restart(placement(&[a]), false).await;
    let (_, after) = bench.until_manifest().await;
    assert!(after.version() > before.version() && after.epoch > before.epoch, "{after:?}");
}

#[tokio::test]
async fn a_node_that_knows_more_than_the_hub_is_overtaken() {
    let a = route("a", "a.x");
    let bench = Bench::start(placement(&[a]), BrokerMemory::Ours);
    let (_, before) = bench.until_manifest().await;
    let ahead = Version { epoch: before.epoch, generation: 41 };
    bench.serve(ahead);
    let (_, after) = bench.until_manifest().await;
    assert_eq!(after.version(), Version { epoch: before.epoch, generation: 42 });
    assert!(bench.is_quiet().await);
}

#[tokio::test]
async fn a_node_without_a_place_gets_an_empty_manifest_once() {
    let bench = Bench::start(placement(&[route("a", "a.x")]), BrokerMemory::Ours);
    bench.until_manifest().await;
    bench.placement.send_replace(Arc::default());
    let (blobs, manifest) = bench.until_manifest().await;
    assert_eq!((blobs.len(), manifest.objects.len(), manifest.generation), (0, 0, 2));
    bench.placement.send_replace(Arc::default());
    assert!(bench.is_quiet().await);
}

#[tokio::test]
async fn a_removed_node_leaves_nothing_and_counts_on_when_it_returns() {
    let a = route("a", "a.x");
    let bench = Bench::start(placement(std::slice::from_ref(&a)), BrokerMemory::Ours);
    bench.until_manifest().await;
    bench.fleet.send_replace(Arc::default());
    let topics = NodeTopics::of(&node());
    let expected = [topics.manifest(), topics.presence(), topics.status(), topics.blob(&a.entry.digest)];
    assert_eq!(bench.cleared(4).await, BTreeSet::from(expected));
    assert!(bench.is_quiet().await);
    assert!(bench.published.borrow().is_empty());
    let bench = bench.restart(Arc::default(), true).await;
    assert!(bench.is_quiet().await);
    bench.placement.send_replace(placement(std::slice::from_ref(&a)));
    let (blobs, manifest) = bench.until_manifest().await;
    assert_eq!((blobs, manifest.generation), (vec![blob(&a)], 2));
}

#[tokio::test]
async fn a_broker_that_may_have_forgotten_gets_everything_again() {
    let a = route("a", "a.x");
    let bench = Bench::start(placement(std::slice::from_ref(&a)), BrokerMemory::Unknown);
    let (_, before) = bench.until_manifest().await;
    bench.connection.send_replace(Connection::Down);
    assert!(bench.is_quiet().await);
    bench.connection.send_replace(Connection::Up(2));
    let (blobs, after) = bench.until_manifest().await;
    assert_eq!((blobs, after), (vec![blob(&a)], before));
}
