//! What nodes say, and what is kept of it.

use std::time::Duration;

use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tombolo_api::report::EventAck;

use super::*;
use crate::fixture::{NEVER, SOON};
use crate::link::{Incoming, Outbox, Request as Publish};

struct Bench {
    dir: tempfile::TempDir,
    fleet: FleetHandle,
    inbox: mpsc::Sender<Incoming>,
    sent: mpsc::Receiver<Publish>,
    tails: mpsc::Receiver<Tail>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn node() -> NodeId {
    "press-7".parse().unwrap()
}

fn credentials(key: &str, token: &str) -> Credentials {
    Credentials { key: Digest::of(key.as_bytes()), pull_token: Digest::of(token.as_bytes()) }
}

impl Bench {
    fn start(dir: tempfile::TempDir) -> Self {
        let (store, _) = Store::open(dir.path()).unwrap();
        let (fleet, owner) = open(&store).unwrap();
        let (inbox, incoming) = mpsc::channel(64);
        let (outbox, sent) = Outbox::channel();
        let (lines, tails) = mpsc::channel(8);
        let stop = CancellationToken::new();
        let task = tokio::spawn(owner.run(incoming, outbox, lines, stop.clone()));
        Self { dir, fleet, inbox, sent, tails, stop, task }
    }

    async fn with_node() -> Self {
        let bench = Self::start(tempfile::tempdir().unwrap());
        bench.fleet.admit(node(), credentials("k", "t")).await.unwrap();
        bench
    }

    async fn restart(self) -> Self {
        self.stop.cancel();
        self.task.await.unwrap();
        drop(self.fleet);
        Self::start(self.dir)
    }

    async fn say(&self, leaf: &str, message: serde_json::Value) {
        let topic = format!("tombolo/v1/press-7/{leaf}");
        self.inbox.send(Incoming::new(topic, message.to_string())).await.unwrap();
    }

    async fn presence(&self, session: &str, online: bool) {
        self.say("presence", json!({ "online": online, "session": session })).await;
    }

    async fn events(&self, outbox: &str, range: std::ops::RangeInclusive<u64>) {
        let event = |seq| {
            json!({ "seq": seq, "timeMs": 1, "reason": "R", "type": "Normal", "object": "node",
                    "message": format!("{outbox} {seq}") })
        };
        self.say("events", json!({ "outbox": outbox, "events": range.map(event).collect::<Vec<_>>() })).await;
    }

    async fn ack(&mut self) -> EventAck {
        let sent = timeout(SOON, self.sent.recv()).await.expect("no acknowledgement").unwrap();
        assert_eq!(sent.topic, "tombolo/v1/press-7/ack");
        serde_json::from_slice(&sent.payload).unwrap()
    }

    async fn messages(&self, limit: usize) -> Vec<String> {
        let events = self.fleet.events(limit).await.unwrap();
        events.into_iter().map(|stored| stored.event.message).collect()
    }

    async fn wait(&self, condition: impl Fn(&Fleet) -> bool) {
        let mut fleet = self.fleet.watch();
        timeout(SOON, fleet.wait_for(|fleet| condition(fleet))).await.expect("it did not happen").unwrap();
    }
}

#[tokio::test]
async fn events_are_kept_once_and_then_acknowledged() {
    let mut bench = Bench::with_node().await;
    bench.events("o", 1..=2).await;
    assert_eq!(bench.ack().await, EventAck { outbox: "o".into(), seq: 2 });
    assert_eq!(bench.messages(10).await, ["o 1", "o 2"]);
    // The acknowledgement was lost; the node says it again, and more.
    bench.events("o", 1..=3).await;
    assert_eq!(bench.ack().await.seq, 3);
    let mut bench = bench.restart().await;
    bench.events("o", 2..=4).await;
    assert_eq!(bench.ack().await.seq, 4);
    assert_eq!(bench.messages(10).await, ["o 1", "o 2", "o 3", "o 4"]);
    // The node's store was lost: a new outbox begins anew.
    bench.events("p", 1..=1).await;
    assert_eq!(bench.ack().await, EventAck { outbox: "p".into(), seq: 1 });
    assert_eq!(bench.messages(2).await, ["o 4", "p 1"]);
}

#[tokio::test]
async fn the_oldest_events_go() {
    let mut bench = Bench::with_node().await;
    bench.events("o", 1..=150).await;
    bench.events("o", 151..=300).await;
    while bench.ack().await.seq < 300 {}
    let kept = bench.messages(1_000).await;
    assert_eq!(kept.len() as u64, journal::PER_NODE_MAX);
    assert_eq!((kept[0].as_str(), kept.last().unwrap().as_str()), ("o 101", "o 300"));
}

#[tokio::test]
async fn strangers_and_nonsense_are_not_heard() {
    let mut bench = Bench::start(tempfile::tempdir().unwrap());
    bench.events("o", 1..=1).await;
    bench.presence("s", true).await;
    // What is admitted later must not be what these were said by: requests and messages come by two ways.
    while bench.inbox.capacity() < bench.inbox.max_capacity() {
        tokio::task::yield_now().await;
    }
    bench.fleet.admit(node(), credentials("k", "t")).await.unwrap();
    bench.say("presence", json!({ "online": "perhaps" })).await;
    bench.say("status", json!([])).await;
    bench.say("presence", json!({ "online": true, "session": "s2" })).await;
    bench.wait(|fleet| fleet[&node()].is_online()).await;
    assert!(timeout(NEVER, bench.sent.recv()).await.is_err());
    assert!(bench.messages(10).await.is_empty());
}

#[tokio::test]
async fn a_nodes_state_survives_a_restart() {
    let bench = Bench::with_node().await;
    bench.presence("s", true).await;
    bench
        .say(
            "status",
            json!({ "info": { "labels": { "line": "3" }, "agentVersion": "", "kernelVersion": "",
        "osImage": "", "architecture": "amd64", "bootId": "", "cpus": 1, "memoryBytes": 1, "address": "",
        "limitations": [] }, "revisions": [] }),
        )
        .await;
    bench.wait(|fleet| fleet[&node()].report.is_some()).await;
    let before = bench.fleet.watch().borrow().clone();
    let bench = bench.restart().await;
    assert_eq!(*bench.fleet.watch().borrow(), before);
    assert_eq!(bench.fleet.credentials().borrow()[&node()], credentials("k", "t"));
}

#[tokio::test]
async fn a_will_says_offline_and_nothing_else() {
    let bench = Bench::with_node().await;
    let serving = json!({ "epoch": 1, "generation": 2, "digest": Digest::of(b"x") });
    bench.say("presence", json!({ "online": true, "session": "b", "serving": serving })).await;
    bench.wait(|fleet| fleet[&node()].is_online()).await;
    // Of a session that was over before: late, and of no meaning.
    bench.presence("a", false).await;
    bench.say("presence", json!({ "online": true, "session": "b" })).await;
    bench.wait(|fleet| fleet[&node()].presence.as_ref().unwrap().serving.is_none()).await;
    assert!(bench.fleet.watch().borrow()[&node()].is_online());
    bench.say("presence", json!({ "online": true, "session": "b", "serving": serving })).await;
    bench.presence("b", false).await;
    bench.wait(|fleet| !fleet[&node()].is_online()).await;
    assert!(bench.fleet.watch().borrow()[&node()].presence.as_ref().unwrap().serving.is_some());
}

#[tokio::test]
async fn a_heartbeat_wakes_nobody() {
    let bench = Bench::with_node().await;
    bench.presence("s", true).await;
    bench.wait(|fleet| fleet[&node()].is_online()).await;
    let mut watch = bench.fleet.watch();
    watch.borrow_and_update();
    bench.presence("s", true).await;
    assert!(timeout(NEVER, watch.changed()).await.is_err());
}

#[tokio::test]
async fn figures_of_accelerators_wake_nobody_and_are_shown() {
    let bench = Bench::with_node().await;
    let report = |degrees: i32| {
        let info = json!({ "labels": {}, "agentVersion": "", "kernelVersion": "", "osImage": "", "architecture": "amd64",
            "bootId": "", "cpus": 1, "memoryBytes": 1, "address": "", "limitations": [] });
        json!({ "info": info, "revisions": [], "accelerators": [{ "id": "GPU-1", "temperatureCelsius": degrees }] })
    };
    let shown = |bench: &Bench| {
        let fleet = bench.fleet.watch().borrow().clone();
        fleet[&node()].report.as_ref().map(|report| report.accelerators[0].temperature_celsius)
    };
    bench.say("status", report(40)).await;
    bench.wait(|fleet| fleet[&node()].report.is_some()).await;
    let mut watch = bench.fleet.watch();
    watch.borrow_and_update();
    bench.say("status", report(50)).await;
    assert!(timeout(NEVER, watch.changed()).await.is_err());
    assert_eq!(shown(&bench), Some(Some(50)));
    let bench = bench.restart().await;
    assert_eq!(shown(&bench), Some(Some(50)), "written at the end");
}

#[tokio::test]
async fn two_agents_under_one_name_are_noticed_once() {
    let bench = Bench::with_node().await;
    for session in ["a", "b", "c"] {
        bench.presence(session, true).await;
    }
    bench
        .wait(|fleet| fleet[&node()].presence.as_ref().is_some_and(|presence| presence.session == "c"))
        .await;
    assert!(bench.messages(10).await.is_empty(), "an agent that starts again is nothing special");
    for session in ["b", "c", "b", "d"] {
        bench.presence(session, true).await;
    }
    bench.wait(|fleet| fleet[&node()].presence.as_ref().unwrap().session == "d").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let events = bench.fleet.events(10).await.unwrap();
    assert_eq!(
        events.iter().map(|stored| stored.event.reason.as_str()).collect::<Vec<_>>(),
        ["IdentityShared"]
    );
}

#[tokio::test]
async fn one_name_one_key_until_the_node_is_removed() {
    let mut bench = Bench::with_node().await;
    bench.fleet.admit(node(), credentials("k", "t2")).await.unwrap();
    let refused = bench.fleet.admit(node(), credentials("other", "t3")).await;
    assert!(matches!(refused, Err(AdmitError::OtherKey(_))));
    assert_eq!(bench.fleet.credentials().borrow()[&node()], credentials("k", "t2"));
    bench.events("o", 1..=3).await;
    bench.ack().await;
    assert!(bench.fleet.remove(&node()).await.unwrap());
    assert!(!bench.fleet.remove(&node()).await.unwrap());
    let bench = bench.restart().await;
    assert!(bench.fleet.watch().borrow().is_empty() && bench.fleet.credentials().borrow().is_empty());
    assert!(bench.messages(10).await.is_empty());
    bench.fleet.admit(node(), credentials("other", "t")).await.unwrap();
}

#[tokio::test]
async fn log_lines_go_to_who_asked() {
    let mut bench = Bench::with_node().await;
    bench.say("tail/t-1", json!({ "instance": "i", "revision": "r", "text": "x\n" })).await;
    let tail = timeout(SOON, bench.tails.recv()).await.unwrap().unwrap();
    assert_eq!((tail.node, tail.id.as_str(), tail.chunk.text.as_str()), (node(), "t-1", "x\n"));
}

#[tokio::test]
async fn a_report_that_did_not_get_here_is_asked_for() {
    let mut bench = Bench::with_node().await;
    let report = json!({ "info": { "labels": {}, "agentVersion": "1", "kernelVersion": "", "osImage": "", "architecture": "",
        "bootId": "", "cpus": 1, "memoryBytes": 1, "address": "", "limitations": [] }, "revisions": [] });
    let digest = Digest::of(report.to_string().as_bytes());
    let presence = json!({ "online": true, "session": "s", "report": digest });
    bench.say("presence", presence.clone()).await;
    let asked = timeout(SOON, bench.sent.recv()).await.expect("the report is asked for").unwrap();
    assert_eq!((asked.topic.as_str(), asked.payload.len()), ("tombolo/v1/press-7/report", 0));
    bench.say("status", report).await;
    bench.wait(|fleet| fleet[&node()].report.is_some()).await;
    // What is here is not asked for, not by a hub that was restarted either.
    let mut bench = bench.restart().await;
    bench.say("presence", presence).await;
    bench.events("o", 1..=1).await;
    assert_eq!(bench.ack().await.seq, 1, "the next message is the acknowledgement");
}
