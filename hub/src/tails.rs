//! Following logs of instances: a request to every node concerned, renewed while somebody listens.
//!
//! ```text
//! follow ─▶ follower task ─ request, again each third of the lease ─▶ nodes
//!               ▲  owner's inbox: lines by the request's id ◀────────┘
//!               └─▶ the listener's channel
//! ```
//!
//! It ends when every node has sent everything, went offline or fell silent, or when nobody listens. Knows no store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tombolo_api::NodeId;
use tombolo_api::tail::{LEASE_S, TailChunk, TailRequest};
use tombolo_api::topics::NodeTopics;
use tombolo_hub_core::Fleet;

use crate::fleet::Tail;
use crate::link::Outbox;

/// Chunks that wait for one listener: 8 MB at most. One that is further behind is cut off: nothing is left out silently.
const WAITING_MAX: usize = 256;

/// Most listeners at once.
const FOLLOWERS_MAX: usize = 256;

/// How often requests are renewed.
const RENEWAL: Duration = Duration::from_secs(LEASE_S / 3);

/// How long a node may be silent before the end of what it was asked for once.
const SILENCE_MAX: Duration = Duration::from_secs(LEASE_S);

/// Follows logs.
#[derive(Clone)]
pub(crate) struct Tails {
    outbox: Outbox,
    fleet: watch::Receiver<Arc<Fleet>>,
    followers: Arc<Mutex<BTreeMap<String, Follower>>>,
}

/// Where lines for one request go.
struct Follower {
    nodes: BTreeSet<NodeId>,
    lines: mpsc::Sender<(NodeId, TailChunk)>,
    /// Pending nodes, and when the last line came.
    progress: watch::Sender<(BTreeSet<NodeId>, Instant)>,
}

impl Tails {
    pub(crate) fn new(outbox: Outbox, fleet: watch::Receiver<Arc<Fleet>>) -> Self {
        Self { outbox, fleet, followers: Arc::default() }
    }

    /// Asks `nodes` for the last `lines` of each instance of these revisions, and with `follow` for all that come.
    pub(crate) fn follow(
        &self,
        namespace: &str,
        revisions: Vec<String>,
        lines: u32,
        follow: bool,
        nodes: Vec<NodeId>,
    ) -> mpsc::Receiver<(NodeId, TailChunk)> {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let id = uuid::Uuid::new_v4().simple().to_string();
        let request =
            TailRequest { id: id.clone(), namespace: namespace.to_owned(), revisions, lines, follow };
        let nodes: BTreeSet<NodeId> = nodes.into_iter().collect();
        let (progress, pending) = watch::channel((nodes.clone(), Instant::now()));
        {
            let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
            if followers.len() >= FOLLOWERS_MAX {
                tracing::warn!(max = FOLLOWERS_MAX, "too many logs are followed, another one is refused");
                return receiver;
            }
            followers.insert(id, Follower { nodes, lines: sender.clone(), progress });
        }
        tokio::spawn(self.clone().renew(request, sender, pending));
        receiver
    }

    /// Passes lines that came in to who asked for them. Runs until nobody sends any more.
    pub(crate) async fn run(self, mut incoming: mpsc::Receiver<Tail>) {
        while let Some(tail) = incoming.recv().await {
            self.deliver(tail);
        }
    }

    fn deliver(&self, Tail { node, id, chunk }: Tail) {
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        // A node answers what it was asked, and only for itself.
        let Some(follower) = followers.get_mut(&id).filter(|follower| follower.nodes.contains(&node)) else {
            return;
        };
        let end = chunk.end;
        if follower.lines.try_send((node.clone(), chunk)).is_err() {
            tracing::debug!("a follower of a log does not read fast enough and is cut off");
            followers.remove(&id);
            return;
        }
        follower.progress.send_modify(|(pending, heard)| {
            *heard = Instant::now();
            if end {
                pending.remove(&node);
            }
        });
    }

    /// Keeps one request alive until it is over.
    async fn renew(
        mut self,
        request: TailRequest,
        listener: mpsc::Sender<(NodeId, TailChunk)>,
        mut progress: watch::Receiver<(BTreeSet<NodeId>, Instant)>,
    ) {
        let mut renewal = tokio::time::interval(RENEWAL);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let payload = serde_json::to_vec(&request).expect("a request is plain data");
        loop {
            let (pending, heard) = progress.borrow_and_update().clone();
            let online: Vec<NodeId> = {
                let fleet = self.fleet.borrow_and_update();
                let is_online = |node: &&NodeId| fleet.get(*node).is_some_and(|state| state.is_online());
                pending.iter().filter(is_online).cloned().collect()
            };
            let silent = !request.follow && heard.elapsed() >= SILENCE_MAX;
            if online.is_empty() || silent {
                break;
            }
            tokio::select! {
                _ = renewal.tick() => {
                    for node in &online {
                        self.outbox.send(NodeTopics::of(node).tail_request(), payload.clone());
                    }
                }
                changed = progress.changed() => if changed.is_err() { break },
                changed = self.fleet.changed() => if changed.is_err() { break },
                () = listener.closed() => break,
            }
        }
        self.followers.lock().unwrap_or_else(PoisonError::into_inner).remove(&request.id);
    }
}

#[cfg(test)]
mod tests;
