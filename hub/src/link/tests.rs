//! The hub's own connection, over a broker that comes and goes.

use std::net::SocketAddr;

use tokio::task::JoinHandle;

use super::*;
use crate::broker::{Admits, Broker as OurBroker};
use crate::fixture::{self, Machine, NEVER, SOON, Session};
use crate::pki::Pki;

struct Bench {
    _dir: tempfile::TempDir,
    pki: Arc<Pki>,
    outbox: Outbox,
    inbox: mpsc::Receiver<Incoming>,
    connection: watch::Receiver<Connection>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

async fn broker(pki: &Pki, address: SocketAddr) -> OurBroker {
    let admits: Admits = Arc::new(|_, _| true);
    OurBroker::start(address, pki.broker().unwrap(), admits).await.unwrap()
}

async fn bench() -> (Bench, OurBroker) {
    let dir = tempfile::tempdir().unwrap();
    let pki = fixture::pki(dir.path());
    let broker = broker(&pki, ([127, 0, 0, 1], 0).into()).await;
    let options = Options { address: broker.address().to_string(), tls: pki.client().unwrap() };
    let (outbox, inbox, connection, worker) = Link::new(&options).split();
    let stop = CancellationToken::new();
    let task = tokio::spawn(worker.run(stop.clone()));
    let mut bench = Bench { _dir: dir, pki, outbox, inbox, connection, stop, task };
    bench.wait(Connection::Up(1)).await;
    (bench, broker)
}

impl Bench {
    async fn wait(&mut self, state: Connection) {
        timeout(SOON, self.connection.wait_for(|now| *now == state)).await.expect("not so").unwrap();
    }

    async fn node(&self, broker: &OurBroker) -> Session {
        let tls = Machine::new().signed(&self.pki, "press-7");
        Session::open(broker.address(), tls, "press-7", None).await.unwrap()
    }

    async fn publish(&self, topic: &str, payload: &[u8]) -> Result<(), PublishError> {
        self.outbox.publish(topic.to_owned(), payload.to_vec(), true).await
    }

    async fn next(&mut self) -> Incoming {
        timeout(SOON, self.inbox.recv()).await.expect("nothing came").unwrap()
    }
}

#[tokio::test]
async fn messages_go_both_ways() {
    let (mut bench, broker) = bench().await;
    let mut node = bench.node(&broker).await;
    bench.publish("tombolo/v1/press-7/manifest", b"m").await.unwrap();
    node.subscribe("tombolo/v1/press-7/manifest").await;
    assert_eq!(node.next().await.1, b"m");
    node.publish("tombolo/v1/press-7/status", b"s", true).await.unwrap();
    let incoming = bench.next().await;
    assert_eq!((incoming.topic.as_str(), &incoming.payload[..]), ("tombolo/v1/press-7/status", &b"s"[..]));
    incoming.done();
    let refused = bench.publish("elsewhere", b"x").await;
    assert!(matches!(refused, Err(PublishError::Refused(_))), "{refused:?}");
}

#[tokio::test]
async fn a_reader_that_is_behind_holds_the_broker_back() {
    let (mut bench, broker) = bench().await;
    let node = bench.node(&broker).await;
    let count = usize::from(WINDOW) + 10;
    for number in 0..count {
        node.publish("tombolo/v1/press-7/events", number.to_string().as_bytes(), false).await.unwrap();
    }
    let mut held = Vec::new();
    while let Ok(Some(incoming)) = timeout(NEVER, bench.inbox.recv()).await {
        held.push(incoming);
    }
    assert_eq!(held.len(), usize::from(WINDOW));
    held.into_iter().for_each(Incoming::done);
    for number in usize::from(WINDOW)..count {
        let incoming = bench.next().await;
        assert_eq!(&incoming.payload[..], number.to_string().as_bytes());
        incoming.done();
    }
}

#[tokio::test]
async fn it_finds_a_broker_that_was_gone() {
    let (mut bench, broker) = bench().await;
    let address = broker.address();
    let node = bench.node(&broker).await;
    node.publish("tombolo/v1/press-7/status", b"before", false).await.unwrap();
    let before = bench.next().await;
    broker.stop().await;
    bench.wait(Connection::Down).await;
    assert_eq!(bench.publish("tombolo/v1/press-7/manifest", b"m").await, Err(PublishError::Down));
    let broker = self::broker(&bench.pki, address).await;
    bench.wait(Connection::Up(2)).await;
    // Of a connection that is over: it must not acknowledge anything on this one.
    before.done();
    bench.publish("tombolo/v1/press-7/manifest", b"m").await.unwrap();
    let node = bench.node(&broker).await;
    node.publish("tombolo/v1/press-7/status", b"after", false).await.unwrap();
    assert_eq!(&bench.next().await.payload[..], b"after");
}

#[tokio::test]
async fn an_idle_connection_lasts() {
    let (mut bench, _broker) = bench().await;
    for _ in 0..20 {
        // Longer than the broker lets a client be that takes nothing of what is written to it: here nothing was.
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(31)).await;
        tokio::time::resume();
        bench.publish("tombolo/v1/press-7/manifest", b"m").await.unwrap();
    }
    assert_eq!(*bench.connection.borrow_and_update(), Connection::Up(1));
}

#[tokio::test]
async fn it_stops_at_once_and_says_goodbye() {
    let (bench, broker) = bench().await;
    bench.stop.cancel();
    timeout(SOON, bench.task).await.unwrap().unwrap();
    let gone = async {
        while broker.load().sessions > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, gone).await.unwrap();
}

#[test]
fn pauses_are_jittered_within_their_bounds() {
    for _ in 0..100 {
        let pause = jittered(Duration::from_secs(1));
        assert!((Duration::from_millis(500)..=Duration::from_secs(1)).contains(&pause), "{pause:?}");
    }
}
