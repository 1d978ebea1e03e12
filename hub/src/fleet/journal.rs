//! Nodes' events in the store: each once, the newest of every node. Knows no network.
//!
//! A node numbers its events within one outbox; what it sends again is recognised by that. The hub numbers them anew per
//! node, without gaps, so that the oldest can be found and dropped.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tombolo_api::NodeId;
use tombolo_api::report::{Event, EventAck, EventBatch};
use tombolo_store::{Batch, ReadError, Store};

use super::{StoredEvent, keys};

/// Events kept of each node: enough to see what happened lately; a fleet's history is for a log collector.
pub(super) const PER_NODE_MAX: u64 = 200;

/// How far one node's events have been taken, and which are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Position {
    outbox: String,
    /// The last one stored of `outbox`.
    seq: u64,
    /// Those from `first` up to before `next` are kept.
    first: u64,
    next: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    /// The hub's clock, milliseconds since 1970 (UTC).
    received_ms: u64,
    event: Event,
}

/// The positions of all nodes.
#[derive(Debug, Default)]
pub(super) struct Journal {
    positions: BTreeMap<NodeId, Position>,
}

/// Positions to return to when a commit fails.
#[derive(Debug, Default)]
pub(super) struct Undo(BTreeMap<NodeId, Option<Position>>);

impl Journal {
    /// Reads one node's position as the store has it.
    pub(super) fn load(&mut self, node: NodeId, value: &[u8]) -> serde_json::Result<()> {
        self.positions.insert(node, serde_json::from_slice(value)?);
        Ok(())
    }

    /// Adds what is new of `events` to `batch`. Returns what to acknowledge once that is on the disk.
    pub(super) fn take(
        &mut self,
        node: &NodeId,
        events: EventBatch,
        now_ms: u64,
        batch: &mut Batch,
        undo: &mut Undo,
    ) -> EventAck {
        undo.remember(node, self.positions.get(node));
        let position = self.positions.entry(node.clone()).or_default();
        if position.outbox != events.outbox {
            position.outbox = events.outbox;
            position.seq = 0;
        }
        for event in events.events {
            // Outboxes begin with 1.
            if event.seq > position.seq {
                position.seq = event.seq;
                position.put(node, now_ms, event, batch);
            }
        }
        position.save(node, batch);
        EventAck { outbox: position.outbox.clone(), seq: position.seq }
    }

    /// Adds an event that the hub itself has seen.
    pub(super) fn add(
        &mut self,
        node: &NodeId,
        event: Event,
        now_ms: u64,
        batch: &mut Batch,
        undo: &mut Undo,
    ) {
        undo.remember(node, self.positions.get(node));
        let position = self.positions.entry(node.clone()).or_default();
        position.put(node, now_ms, event, batch);
        position.save(node, batch);
    }

    pub(super) fn undo(&mut self, undo: Undo) {
        for (node, position) in undo.0 {
            match position {
                Some(position) => self.positions.insert(node, position),
                None => self.positions.remove(&node),
            };
        }
    }

    /// Deletes everything of a node.
    pub(super) fn remove(&self, node: &NodeId, batch: &mut Batch) {
        if let Some(position) = self.positions.get(node) {
            for number in position.first..position.next {
                batch.delete(keys::event(node, number));
            }
        }
        batch.delete(keys::position(node));
    }

    /// [`Journal::remove`] is on the disk.
    pub(super) fn forget(&mut self, node: &NodeId) {
        self.positions.remove(node);
    }
}

impl Position {
    fn put(&mut self, node: &NodeId, received_ms: u64, event: Event, batch: &mut Batch) {
        let record = Record { received_ms, event };
        let value = serde_json::to_vec(&record).expect("an event is plain data");
        batch.put(keys::event(node, self.next), value);
        self.next += 1;
        while self.next - self.first > PER_NODE_MAX {
            batch.delete(keys::event(node, self.first));
            self.first += 1;
        }
    }

    fn save(&self, node: &NodeId, batch: &mut Batch) {
        batch.put(keys::position(node), serde_json::to_vec(self).expect("a position is plain data"));
    }
}

impl Undo {
    fn remember(&mut self, node: &NodeId, position: Option<&Position>) {
        self.0.entry(node.clone()).or_insert_with(|| position.cloned());
    }
}

/// The newest events of all nodes in the order they came.
pub(super) fn newest(store: &Store, limit: usize) -> Result<Vec<StoredEvent>, ReadError> {
    let mut found = BTreeMap::new();
    for (key, value) in store.scan(keys::EVENTS)? {
        let damaged = || ReadError::Damaged { key: key.clone() };
        let (node, number) = key[keys::EVENTS.len()..].split_once('/').ok_or_else(damaged)?;
        let node: NodeId = node.parse().map_err(|_| damaged())?;
        let record: Record = serde_json::from_slice(&value).map_err(|_| damaged())?;
        found.insert((record.received_ms, node, number.to_owned()), record.event);
        if found.len() > limit {
            found.pop_first();
        }
    }
    let event = |((received_ms, node, number), event)| StoredEvent { node, number, received_ms, event };
    Ok(found.into_iter().map(event).collect())
}
