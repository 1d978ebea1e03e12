//! Events that must reach the hub: kept on the disk until it says that it has them.
//!
//! ```text
//! push ─▶ memory, bounded ─▶ writer task: on the disk ─▶ next_batch ─▶ (link) ─▶ acknowledge ─▶ removed
//! ```
//!
//! Pushing never waits. An event is sent only once it is on the disk, so its number is never given to another one. When the
//! outbox is full the oldest `Normal` event makes room, then the oldest of all; they are counted. It must not know the link.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tombolo_api::report::{Event, EventAck, EventBatch, EventKind};

use crate::keep::{Keep, OutboxMeta};

/// Most events that wait: a day without the hub at one a minute, about 400 KiB.
const EVENTS_MAX: usize = 1_440;

/// Most events of one batch, and their bytes: far below a message's bound.
const BATCH_MAX: usize = 50;
const BATCH_BYTES_MAX: usize = 64 * 1024;

/// Longest message of an event, bytes.
const MESSAGE_MAX: usize = 1_024;

/// Between attempts to write while the disk refuses.
const RETRY: Duration = Duration::from_secs(5);

/// Handle of the outbox. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Grows with every change of what waits or is on the disk.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    meta: OutboxMeta,
    events: VecDeque<Event>,
    /// Numbers of the events that are on the disk.
    written: BTreeSet<u64>,
    dropped: u64,
}

impl Outbox {
    /// The outbox as it was left; a new one if there was none.
    pub(crate) fn load(keep: &Keep) -> Self {
        let fresh =
            || (OutboxMeta { id: uuid::Uuid::new_v4().simple().to_string(), next_seq: 1 }, Vec::new());
        let (mut meta, events) = keep.outbox().unwrap_or_else(fresh);
        let after_last = events.last().map_or(0, |event| event.seq + 1);
        meta.next_seq = meta.next_seq.max(after_last);
        let written = events.iter().map(|event| event.seq).collect();
        let state = State { meta, events: events.into(), written, dropped: 0 };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changes: watch::Sender::new(0) }) }
    }

    /// Takes an event about `object` (`revision/{namespace}/{name}` or `node`).
    pub(crate) fn push(&self, kind: EventKind, reason: &str, object: &str, message: String) {
        let mut state = self.lock();
        let seq = state.meta.next_seq;
        state.meta.next_seq += 1;
        let event = Event {
            seq,
            time_ms: now_ms(),
            reason: reason.to_owned(),
            kind,
            object: object.to_owned(),
            message: cut(message),
        };
        state.events.push_back(event);
        if state.events.len() > EVENTS_MAX {
            let normal = state.events.iter().position(|event| event.kind == EventKind::Normal);
            state.events.remove(normal.unwrap_or(0));
            state.dropped += 1;
        }
        drop(state);
        self.changed();
    }

    /// The first events that are on the disk, in order; `None` if there are none.
    pub(crate) fn next_batch(&self) -> Option<EventBatch> {
        let state = self.lock();
        let mut bytes = 0;
        let mut events = Vec::new();
        for event in
            state.events.iter().take_while(|event| state.written.contains(&event.seq)).take(BATCH_MAX)
        {
            bytes += event.message.len() + event.object.len() + 200;
            if bytes > BATCH_BYTES_MAX {
                break;
            }
            events.push(event.clone());
        }
        (!events.is_empty()).then(|| EventBatch { outbox: state.meta.id.clone(), events })
    }

    /// Removes what the hub has. An answer about another outbox is none.
    pub(crate) fn acknowledge(&self, ack: &EventAck) {
        let mut state = self.lock();
        if ack.outbox != state.meta.id {
            return;
        }
        state.events.retain(|event| event.seq > ack.seq);
        drop(state);
        self.changed();
    }

    /// Sees every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Events that wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().events.len()
    }

    /// Events that had to make room since this agent's start.
    pub(crate) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Returns when the disk has what memory has.
    pub(crate) async fn flushed(&self) {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            let (_, add, remove) = self.pending();
            if (add.is_empty() && remove.is_empty()) || changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// The task that keeps the disk in line; runs for ever.
    pub(crate) async fn write(self, keep: Keep) {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            let (meta, add, remove) = self.pending();
            if add.is_empty() && remove.is_empty() {
                if changes.changed().await.is_err() {
                    return;
                }
                continue;
            }
            match keep.change_outbox(&meta, &add, &remove).await {
                Ok(()) => {
                    let mut state = self.lock();
                    state.written.extend(add.iter().map(|event| event.seq));
                    for seq in &remove {
                        state.written.remove(seq);
                    }
                    drop(state);
                    self.changed();
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot keep events, trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// What the disk lacks, and what it has too much.
    fn pending(&self) -> (OutboxMeta, Vec<Event>, Vec<u64>) {
        let state = self.lock();
        let add = state.events.iter().filter(|event| !state.written.contains(&event.seq)).cloned().collect();
        let waiting: BTreeSet<u64> = state.events.iter().map(|event| event.seq).collect();
        let remove = state.written.difference(&waiting).copied().collect();
        (state.meta.clone(), add, remove)
    }

    fn changed(&self) {
        self.shared.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn cut(mut message: String) -> String {
    if message.len() > MESSAGE_MAX {
        let end = (0..=MESSAGE_MAX).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(state: &tempfile::TempDir) -> (Keep, Outbox) {
        let (keep, _) = Keep::open(state.path()).unwrap();
        let outbox = Outbox::load(&keep);
        (keep, outbox)
    }

    async fn batch_of(outbox: &Outbox, count: usize) -> EventBatch {
        loop {
            match outbox.next_batch() {
                Some(batch) if batch.events.len() == count => return batch,
                _ => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    #[tokio::test]
    async fn events_are_sent_once_written_and_stay_until_acknowledged() {
        let state = tempfile::tempdir().unwrap();
        let (keep, outbox) = opened(&state);
        outbox.push(EventKind::Normal, "A", "node", "first".into());
        outbox.push(EventKind::Warning, "B", "node", "second".into());
        assert_eq!(outbox.next_batch(), None);
        let writer = tokio::spawn(outbox.clone().write(keep.clone()));
        let batch = batch_of(&outbox, 2).await;
        outbox.acknowledge(&EventAck { outbox: "another".into(), seq: 99 });
        assert_eq!(outbox.len(), 2);
        outbox.acknowledge(&EventAck { outbox: batch.outbox.clone(), seq: batch.events[0].seq });
        while keep.outbox().unwrap().1.len() != 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        writer.abort();
        let again = Outbox::load(&keep);
        let left = again.next_batch().unwrap();
        assert_eq!(
            (left.outbox.as_str(), left.events.as_slice()),
            (batch.outbox.as_str(), &batch.events[1..])
        );
        again.push(EventKind::Normal, "C", "node", String::new());
        assert_eq!(again.lock().events.back().unwrap().seq, 3);
    }

    #[tokio::test]
    async fn numbers_are_not_used_again_after_all_was_acknowledged() {
        let state = tempfile::tempdir().unwrap();
        let (keep, outbox) = opened(&state);
        let writer = tokio::spawn(outbox.clone().write(keep.clone()));
        outbox.push(EventKind::Normal, "A", "node", String::new());
        let batch = batch_of(&outbox, 1).await;
        outbox.acknowledge(&EventAck { outbox: batch.outbox, seq: 1 });
        while !keep.outbox().unwrap().1.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        writer.abort();
        assert_eq!(Outbox::load(&keep).lock().meta.next_seq, 2);
    }

    #[tokio::test]
    async fn a_full_outbox_drops_the_oldest_normal_event_first() {
        let state = tempfile::tempdir().unwrap();
        let (_keep, outbox) = opened(&state);
        outbox.push(EventKind::Warning, "W", "node", String::new());
        for _ in 0..EVENTS_MAX {
            outbox.push(EventKind::Normal, "N", "node", String::new());
        }
        let seqs: Vec<_> = outbox.lock().events.iter().take(2).map(|event| event.seq).collect();
        assert_eq!((outbox.len(), outbox.dropped(), seqs), (EVENTS_MAX, 1, vec![1, 3]));
    }
}
