//! Following logs of nodes that answer, go silent, or leave.

use tokio::time::timeout;
use tombolo_api::report::Presence;
use tombolo_hub_core::NodeState;

use super::*;
use crate::fixture::{NEVER, SOON};
use crate::link::Request;

struct Bench {
    tails: Tails,
    lines: mpsc::Sender<Tail>,
    sent: mpsc::Receiver<Request>,
    fleet: watch::Sender<Arc<Fleet>>,
}

fn node(id: &str) -> NodeId {
    id.parse().unwrap()
}

fn fleet(online: &[&str]) -> Arc<Fleet> {
    let state = |id: &&str| {
        let mut state = NodeState::enrolled(node(id), 1);
        state.presence = Some(Presence { online: true, session: "s".into(), serving: None, report: None });
        (node(id), state)
    };
    Arc::new(online.iter().map(state).collect())
}

fn bench(online: &[&str]) -> Bench {
    let (outbox, sent) = Outbox::channel();
    let fleet = watch::Sender::new(fleet(online));
    let tails = Tails::new(outbox, fleet.subscribe());
    let (lines, incoming) = mpsc::channel(16);
    tokio::spawn(tails.clone().run(incoming));
    Bench { tails, lines, sent, fleet }
}

impl Bench {
    fn follow(&self, follow: bool, nodes: &[&str]) -> mpsc::Receiver<(NodeId, TailChunk)> {
        let nodes = nodes.iter().map(|id| node(id)).collect();
        self.tails.follow("default", vec!["hello-00001".into()], 10, follow, nodes)
    }

    async fn request(&mut self) -> (String, TailRequest) {
        let sent = timeout(SOON, self.sent.recv()).await.expect("nobody was asked").unwrap();
        assert!(!sent.retain);
        (sent.topic, serde_json::from_slice(&sent.payload).unwrap())
    }

    async fn nobody_follows(&self) {
        let gone = async {
            while !self.tails.followers.lock().unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, gone).await.expect("somebody still follows");
    }

    async fn say(&self, id: &str, request: &TailRequest, text: &str, end: bool) {
        let chunk = TailChunk { instance: "i".into(), revision: "r".into(), text: text.into(), end };
        self.lines.send(Tail { node: node(id), id: request.id.clone(), chunk }).await.unwrap();
    }
}

async fn text(lines: &mut mpsc::Receiver<(NodeId, TailChunk)>) -> Option<(String, String)> {
    let line = timeout(SOON, lines.recv()).await.expect("neither a line nor the end");
    line.map(|(node, chunk)| (node.to_string(), chunk.text))
}

#[tokio::test]
async fn the_past_ends_when_every_node_has_sent_it() {
    let mut bench = bench(&["a", "b", "c"]);
    let mut lines = bench.follow(false, &["a", "b"]);
    let (topic, request) = bench.request().await;
    assert_eq!((topic.as_str(), request.lines, request.follow), ("tombolo/v1/a/tail", 10, false));
    assert_eq!(bench.request().await.0, "tombolo/v1/b/tail");
    bench.say("c", &request, "not asked\n", false).await;
    bench.say("a", &request, "1\n", true).await;
    bench.say("b", &request, "2\n", false).await;
    bench.say("b", &request, "3\n", true).await;
    for (node, line) in [("a", "1\n"), ("b", "2\n"), ("b", "3\n")] {
        assert_eq!(text(&mut lines).await.unwrap(), (node.to_owned(), line.to_owned()));
    }
    assert_eq!(text(&mut lines).await, None);
    bench.say("a", &request, "late\n", false).await;
}

#[tokio::test]
async fn following_goes_on_until_the_nodes_are_gone() {
    let mut bench = bench(&["a"]);
    let mut lines = bench.follow(true, &["a", "offline"]);
    let (_, request) = bench.request().await;
    bench.say("a", &request, "1\n", false).await;
    assert_eq!(text(&mut lines).await.unwrap().1, "1\n");
    let (_, renewed) = bench.request().await;
    assert_eq!(renewed, request);
    assert!(timeout(NEVER, lines.recv()).await.is_err());
    bench.fleet.send_replace(fleet(&[]));
    assert_eq!(text(&mut lines).await, None);
}

#[tokio::test]
async fn nobody_is_asked_for_a_listener_that_left() {
    let mut bench = bench(&["a"]);
    let lines = bench.follow(true, &["a"]);
    bench.request().await;
    drop(lines);
    bench.nobody_follows().await;
}

#[tokio::test]
async fn a_listener_that_does_not_read_is_cut_off() {
    let mut bench = bench(&["a"]);
    let mut lines = bench.follow(true, &["a"]);
    let (_, request) = bench.request().await;
    for _ in 0..=WAITING_MAX {
        bench.say("a", &request, "x\n", false).await;
    }
    bench.nobody_follows().await;
    let mut count = 0;
    while text(&mut lines).await.is_some() {
        count += 1;
    }
    assert_eq!(count, WAITING_MAX);
}
