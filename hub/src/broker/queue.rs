//! What waits to be sent to one client: messages, and which of them are in flight. Knows no socket.
//!
//! ```text
//! push ─▶ waiting ──take (window open)──▶ in flight ──acked──▶ gone
//! ```

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use rumqttc::{Publish, QoS};

/// Most content that waits for one client, bytes, beside what is retained anyway. A client further behind is cut off: it
/// connects again and gets the state as it is then.
pub(super) const WAITING_BYTES_MAX: usize = 16 << 20;

/// Most messages that wait for one client: a node's whole manifest of 20,000 objects, and more.
pub(super) const WAITING_MAX: usize = 50_000;

/// Most messages in flight to one client, whatever it allows.
const WINDOW_MAX: u16 = 64;

/// A message on its way to one client.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) topic: Bytes,
    pub(super) payload: Bytes,
    pub(super) qos: QoS,
    pub(super) retain: bool,
}

/// The queue of one client.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: VecDeque<Message>,
    waiting_bytes: usize,
    in_flight: BTreeSet<u16>,
    window: u16,
    last_id: u16,
}

/// The client is too far behind.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overflow;

impl Queue {
    /// `window`: how many unacknowledged messages the client takes.
    pub(super) fn new(window: u16) -> Self {
        Self {
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            in_flight: BTreeSet::new(),
            window: window.clamp(1, WINDOW_MAX),
            last_id: 0,
        }
    }

    pub(super) fn push(&mut self, message: Message) -> Result<(), Overflow> {
        let bytes = self.waiting_bytes + cost(&message);
        if self.waiting.len() >= WAITING_MAX || bytes > WAITING_BYTES_MAX {
            return Err(Overflow);
        }
        self.waiting_bytes = bytes;
        self.waiting.push_back(message);
        Ok(())
    }

    /// Whether so much waits that what need not be sent now should be refused.
    pub(super) fn is_behind(&self) -> bool {
        self.waiting_bytes > WAITING_BYTES_MAX / 2 || self.waiting.len() > WAITING_MAX / 2
    }

    /// The next packet to send, if there is one and the client may get it.
    pub(super) fn take(&mut self) -> Option<Publish> {
        let acked = self.waiting.front()?.qos != QoS::AtMostOnce;
        if acked && self.in_flight.len() >= usize::from(self.window) {
            return None;
        }
        let message = self.waiting.pop_front()?;
        self.waiting_bytes -= cost(&message);
        let pkid = if acked { self.next_id() } else { 0 };
        Some(Publish {
            dup: false,
            qos: message.qos,
            retain: message.retain,
            topic: message.topic,
            pkid,
            payload: message.payload,
            properties: None,
        })
    }

    /// The client has got the message with this id. Returns whether there was one.
    pub(super) fn acked(&mut self, id: u16) -> bool {
        self.in_flight.remove(&id)
    }

    fn next_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if self.in_flight.insert(self.last_id) {
                return self.last_id;
            }
        }
    }
}

/// What a waiting message costs. The content of a retained message is there anyway and shared.
fn cost(message: &Message) -> usize {
    if message.retain { message.topic.len() } else { message.topic.len() + message.payload.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(qos: QoS, size: usize) -> Message {
        Message { topic: "t".into(), payload: vec![0; size].into(), qos, retain: false }
    }

    #[test]
    fn the_window_bounds_what_is_in_flight() {
        let mut queue = Queue::new(2);
        for _ in 0..3 {
            queue.push(message(QoS::AtLeastOnce, 1)).unwrap();
        }
        let (first, second) = (queue.take().unwrap().pkid, queue.take().unwrap().pkid);
        assert_ne!(first, second);
        assert!(queue.take().is_none());
        assert!(!queue.acked(99));
        assert!(queue.acked(first));
        assert_eq!(queue.take().unwrap().pkid, 3);
    }

    #[test]
    fn ids_go_round_and_skip_those_in_flight() {
        let mut queue = Queue::new(2);
        queue.last_id = u16::MAX - 1;
        for _ in 0..4 {
            queue.push(message(QoS::AtLeastOnce, 1)).unwrap();
        }
        assert_eq!(queue.take().unwrap().pkid, u16::MAX);
        assert_eq!(queue.take().unwrap().pkid, 1);
        assert!(queue.acked(u16::MAX));
        queue.last_id = 0;
        assert_eq!(queue.take().unwrap().pkid, 2);
    }

    #[test]
    fn unacknowledged_kinds_need_no_window_and_bytes_are_bounded() {
        let mut queue = Queue::new(1);
        queue.push(message(QoS::AtLeastOnce, 1)).unwrap();
        queue.take().unwrap();
        queue.push(message(QoS::AtMostOnce, 1)).unwrap();
        assert_eq!(queue.take().unwrap().pkid, 0);
        queue.push(message(QoS::AtLeastOnce, WAITING_BYTES_MAX - 1)).unwrap();
        assert!(queue.is_behind());
        assert_eq!(queue.push(message(QoS::AtLeastOnce, 1)), Err(Overflow));
        assert!(queue.acked(1));
        queue.take().unwrap();
        assert!(!queue.is_behind());
        queue.push(message(QoS::AtLeastOnce, 1)).unwrap();
    }
}
