//! The task that owns the fleet: takes what nodes say, keeps it, tells everybody.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tombolo_api::NodeId;
use tombolo_api::report::{Event, EventAck, EventKind, Presence};
use tombolo_api::topics::NodeTopics;
use tombolo_hub_core::fleet::{Change, FleetMessage, observe};
use tombolo_hub_core::{Fleet, NodeState};
use tombolo_store::{Batch, CommitError, ReadError, Store};

use super::intake::{self, Complaints, Taken};
use super::journal::{Journal, Undo};
use super::{AdmitError, AllCredentials, Credentials, RemoveError, Request, Tail, keys};
use crate::clock::now_s;
use crate::link::{Incoming, Outbox};

/// How long a node's changed state may wait for the disk: many changes make one write.
pub(super) const FLUSH: Duration = Duration::from_secs(1);

/// Most messages dealt with as one: bounds how long the first one's answer waits.
const GROUP_MAX: usize = 64;

/// How long after a start nodes that were online count as online without having said so: they connect again meanwhile.
const GRACE: Duration = Duration::from_secs(30);

/// Sessions remembered of a node, to notice that two agents claim its name.
const SESSIONS_MAX: usize = 8;

/// How often that is said.
const SHARED_EVERY: Duration = Duration::from_secs(600);

/// The fleet's owner before it runs.
pub(crate) struct Owner {
    store: Store,
    requests: mpsc::Receiver<Request>,
    fleet: watch::Sender<Arc<Fleet>>,
    credentials: watch::Sender<Arc<AllCredentials>>,
    journal: Journal,
    /// Changed, not on the disk yet.
    dirty: BTreeSet<NodeId>,
    /// Gave a sign of life, or told figures, since the state was written last.
    seen: BTreeSet<NodeId>,
    sessions: BTreeMap<NodeId, Sessions>,
    complaints: Complaints,
}

/// The sessions a node had lately.
#[derive(Default)]
struct Sessions {
    past: VecDeque<String>,
    said: Option<Instant>,
}

impl Owner {
    pub(super) fn load(store: Store, requests: mpsc::Receiver<Request>) -> Result<Self, ReadError> {
        let (mut fleet, mut credentials, mut journal) =
            (Fleet::new(), AllCredentials::new(), Journal::default());
        for (key, value) in store.scan(keys::NODES)? {
            let damaged = |_| ReadError::Damaged { key: key.clone() };
            let Some((node, what)) = key[keys::NODES.len()..].split_once('/') else { continue };
            let Ok(node) = node.parse::<NodeId>() else { continue };
            match what {
                "state" => {
                    let state: NodeState = serde_json::from_slice(&value).map_err(damaged)?;
                    fleet.insert(node, state);
                }
                "credentials" => {
                    let read: Credentials = serde_json::from_slice(&value).map_err(damaged)?;
                    credentials.insert(node, read);
                }
                "events" => journal.load(node, &value).map_err(damaged)?,
                _ => {}
            }
        }
        Ok(Self {
            store,
            requests,
            fleet: watch::Sender::new(Arc::new(fleet)),
            credentials: watch::Sender::new(Arc::new(credentials)),
            journal,
            dirty: BTreeSet::new(),
            seen: BTreeSet::new(),
            sessions: BTreeMap::new(),
            complaints: Complaints::default(),
        })
    }

    pub(super) fn watch(&self) -> watch::Receiver<Arc<Fleet>> {
        self.fleet.subscribe()
    }

    pub(super) fn credentials(&self) -> watch::Receiver<Arc<AllCredentials>> {
        self.credentials.subscribe()
    }

    /// Runs until `stop`, then writes what is not on the disk yet.
    pub(crate) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Incoming>,
        outbox: Outbox,
        tails: mpsc::Sender<Tail>,
        stop: CancellationToken,
    ) {
        let mut grace_ends = Some(Instant::now() + GRACE);
        let mut flush_at: Option<Instant> = None;
        loop {
            if flush_at.is_none() && !self.dirty.is_empty() {
                flush_at = Some(Instant::now() + FLUSH);
            }
            tokio::select! {
                Some(first) = inbox.recv() => {
                    let mut group = vec![first];
                    while group.len() < GROUP_MAX && let Ok(next) = inbox.try_recv() {
                        group.push(next);
                    }
                    self.take(group, &outbox, &tails).await;
                }
                Some(request) = self.requests.recv() => self.serve(request).await,
                () = until(flush_at) => {
                    flush_at = None;
                    self.flush().await;
                }
                () = until(grace_ends) => {
                    grace_ends = None;
                    self.silent_are_offline();
                }
                () = stop.cancelled() => break,
            }
        }
        let seen = std::mem::take(&mut self.seen);
        self.dirty.extend(seen);
        self.flush().await;
    }

    /// Deals with some messages; what must be durable becomes so in one write.
    async fn take(&mut self, group: Vec<Incoming>, outbox: &Outbox, tails: &mpsc::Sender<Tail>) {
        let (mut batch, mut undo, mut acks) = (Batch::new(), Undo::default(), Vec::new());
        for incoming in &group {
            match intake::decode(&incoming.topic, &incoming.payload) {
                Ok(Taken::Said(FleetMessage::Tail { node, id, chunk })) => {
                    // Whoever sorts them never waits for anybody, so this never waits long.
                    let _ = tails.send(Tail { node, id, chunk }).await;
                }
                Ok(Taken::Said(message)) => {
                    self.ask_for_report(&message, outbox);
                    acks.extend(self.said(message, &mut batch, &mut undo));
                }
                Ok(Taken::Cleared) => {}
                Err(reason) => self.complaints.add(&incoming.topic, &reason),
            }
        }
        if !batch.is_empty() {
            let written = self.add_dirty(&mut batch);
            match self.store.commit_async(batch).await {
                Ok(()) => {
                    for (node, ack) in acks {
                        let payload = serde_json::to_vec(&ack).expect("an acknowledgement is plain data");
                        outbox.send(NodeTopics::of(&node).ack(), payload);
                    }
                }
                Err(error) => {
                    // Not acknowledged, so nodes send their events again.
                    tracing::error!(%error, "nodes' events cannot be stored");
                    self.journal.undo(undo);
                    self.dirty.extend(written);
                }
            }
        }
        group.into_iter().for_each(Incoming::done);
    }

    /// A presence that names a report which never came is answered with a request for it.
    fn ask_for_report(&self, message: &FleetMessage, outbox: &Outbox) {
        let FleetMessage::Presence { node, presence } = message else { return };
        if self.fleet.borrow().get(node).is_some_and(|state| state.lacks_report(presence)) {
            outbox.send(NodeTopics::of(node).report_request(), Vec::new());
        }
    }

    /// Takes one message in. Events go to `batch`, with what to acknowledge once that is on the disk.
    fn said(
        &mut self,
        message: FleetMessage,
        batch: &mut Batch,
        undo: &mut Undo,
    ) -> Option<(NodeId, EventAck)> {
        let now = now_s();
        let node = node_of(&message).clone();
        if !self.fleet.borrow().contains_key(&node) {
            tracing::debug!(%node, "a node that is not enrolled says something");
            return None;
        }
        let message = match message {
            FleetMessage::Presence { node, presence } => {
                let presence = self.merge(&node, presence)?;
                if presence.online && self.is_shared(&node, &presence) {
                    self.journal.add(&node, identity_shared(now), now * 1_000, batch, undo);
                }
                FleetMessage::Presence { node, presence }
            }
            other => other,
        };
        self.apply(&message, now);
        let FleetMessage::Events { batch: events, .. } = message else { return None };
        let ack = self.journal.take(&node, events, now * 1_000, batch, undo);
        Some((node, ack))
    }

    /// Changes the fleet where it stands: readers hold it for moments only, so that it is seldom copied.
    fn apply(&mut self, message: &FleetMessage, now: u64) {
        let node = node_of(message);
        let mut change = Change::None;
        self.fleet.send_if_modified(|fleet| {
            change = observe(Arc::make_mut(fleet), message, now);
            change == Change::State
        });
        if change == Change::State {
            self.dirty.insert(node.clone());
        } else {
            self.seen.insert(node.clone());
        }
    }

    /// What a presence means after the last one: a will says nothing of what is served, and a late one nothing at all.
    fn merge(&self, node: &NodeId, presence: Presence) -> Option<Presence> {
        let fleet = self.fleet.borrow();
        let before = fleet.get(node).and_then(|state| state.presence.as_ref());
        match before {
            Some(before) if !presence.online && before.online && before.session != presence.session => None,
            Some(before) if !presence.online => {
                Some(Presence { serving: before.serving, report: before.report, ..presence })
            }
            _ => Some(presence),
        }
    }

    /// Whether this presence shows that two agents claim the name: a session that was over is back.
    fn is_shared(&mut self, node: &NodeId, presence: &Presence) -> bool {
        let sessions = self.sessions.entry(node.clone()).or_default();
        if sessions.past.back() == Some(&presence.session) {
            return false;
        }
        let back = sessions.past.contains(&presence.session);
        sessions.past.push_back(presence.session.clone());
        if sessions.past.len() > SESSIONS_MAX {
            sessions.past.pop_front();
        }
        if !back || sessions.said.is_some_and(|said| said.elapsed() < SHARED_EVERY) {
            return false;
        }
        sessions.said = Some(Instant::now());
        tracing::warn!(%node, "two agents take turns under one name: give each machine its own identity");
        true
    }

    async fn serve(&mut self, request: Request) {
        match request {
            Request::Admit { node, credentials, done } => {
                let result = self.admit(node, credentials).await;
                let _ = done.send(result);
            }
            Request::Remove { node, done } => {
                let result = self.remove(&node).await;
                let _ = done.send(result);
            }
        }
    }

    async fn admit(&mut self, node: NodeId, credentials: Credentials) -> Result<(), AdmitError> {
        if self.credentials.borrow().get(&node).is_some_and(|known| known.key != credentials.key) {
            return Err(AdmitError::OtherKey(node));
        }
        let now = now_s();
        let known = self.fleet.borrow().get(&node).cloned();
        let state = known.unwrap_or_else(|| NodeState::enrolled(node.clone(), now));
        let mut batch = Batch::new();
        batch.put(keys::state(&node), to_json(&state));
        batch.put(keys::credentials(&node), to_json(&credentials));
        self.store.commit_async(batch).await.map_err(AdmitError::Store)?;
        self.credentials.send_modify(|all| {
            Arc::make_mut(all).insert(node.clone(), credentials);
        });
        self.apply(&FleetMessage::Enrolled { node }, now);
        Ok(())
    }

    async fn remove(&mut self, node: &NodeId) -> Result<bool, RemoveError> {
        let known = self.fleet.borrow().contains_key(node) || self.credentials.borrow().contains_key(node);
        if !known {
            return Ok(false);
        }
        let mut batch = Batch::new();
        batch.delete(keys::state(node)).delete(keys::credentials(node));
        self.journal.remove(node, &mut batch);
        self.store.commit_async(batch).await.map_err(RemoveError::Store)?;
        self.journal.forget(node);
        self.dirty.remove(node);
        self.seen.remove(node);
        self.sessions.remove(node);
        self.credentials.send_modify(|all| {
            Arc::make_mut(all).remove(node);
        });
        self.fleet.send_modify(|fleet| {
            Arc::make_mut(fleet).remove(node);
        });
        Ok(true)
    }

    async fn flush(&mut self) {
        let mut batch = Batch::new();
        let written = self.add_dirty(&mut batch);
        if batch.is_empty() {
            return;
        }
        let result: Result<(), CommitError> = self.store.commit_async(batch).await;
        if let Err(error) = result {
            tracing::error!(%error, "nodes' states cannot be stored");
            self.dirty.extend(written);
        }
    }

    /// Moves the states that wait for the disk into `batch`. Returns whose they are.
    fn add_dirty(&mut self, batch: &mut Batch) -> BTreeSet<NodeId> {
        let dirty = std::mem::take(&mut self.dirty);
        let fleet = self.fleet.borrow();
        for node in &dirty {
            if let Some(state) = fleet.get(node) {
                batch.put(keys::state(node), to_json(state));
            }
            self.seen.remove(node);
        }
        dirty
    }

    /// Those who were online when the hub stopped, and have not said so again.
    fn silent_are_offline(&mut self) {
        let heard = |node: &NodeId| self.sessions.contains_key(node);
        let silent: Vec<NodeId> = {
            let fleet = self.fleet.borrow();
            let silent = fleet.values().filter(|state| state.is_online() && !heard(&state.id));
            silent.map(|state| state.id.clone()).collect()
        };
        if silent.is_empty() {
            return;
        }
        self.fleet.send_modify(|fleet| {
            let fleet = Arc::make_mut(fleet);
            for node in &silent {
                if let Some(presence) = fleet.get_mut(node).and_then(|state| state.presence.as_mut()) {
                    presence.online = false;
                }
            }
        });
        self.dirty.extend(silent);
    }
}

fn node_of(message: &FleetMessage) -> &NodeId {
    let (FleetMessage::Enrolled { node }
    | FleetMessage::Presence { node, .. }
    | FleetMessage::Report { node, .. }
    | FleetMessage::Events { node, .. }
    | FleetMessage::Tail { node, .. }) = message;
    node
}

fn identity_shared(now: u64) -> Event {
    Event {
        seq: 0,
        time_ms: now * 1_000,
        reason: "IdentityShared".into(),
        kind: EventKind::Warning,
        object: "node".into(),
        message: "two agents take turns under this node's name: give each machine an identity of its own"
            .into(),
    }
}

fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("what the fleet keeps is plain data")
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
