//! From a message's bytes to what a node said: bounded and checked. Pure but for the log.

use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use tombolo_api::frame::PACKET_MAX;
use tombolo_api::tail::CHUNK_TEXT_MAX;
use tombolo_api::topics::{self, Leaf};
use tombolo_api::{Digest, NodeId};
use tombolo_hub_core::fleet::FleetMessage;

/// Largest presence, bytes: two digests and some numbers.
const PRESENCE_MAX: usize = 4 * 1024;

/// Most events of one message.
const BATCH_MAX: usize = 1_000;

/// Longest text of an event's parts and of a session's name, bytes.
const TEXT_MAX: usize = 8 * 1024;

/// How often malformed messages are logged at most.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Why a message was not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("no node writes to this topic")]
    Topic,
    #[error("{0} bytes are too many")]
    TooLarge(usize),
    #[error("{0}")]
    Content(String),
}

/// What came in.
#[derive(Debug, PartialEq)]
pub(super) enum Taken {
    Said(FleetMessage),
    /// A retained message was cleared: nothing is said by it.
    Cleared,
}

/// Decodes a message.
pub(super) fn decode(topic: &str, payload: &[u8]) -> Result<Taken, Malformed> {
    let (node, leaf) = topics::parse(topic).ok_or(Malformed::Topic)?;
    if payload.is_empty() && matches!(leaf, Leaf::Presence | Leaf::Status) {
        return Ok(Taken::Cleared);
    }
    let max = if leaf == Leaf::Presence { PRESENCE_MAX } else { PACKET_MAX };
    if payload.len() > max {
        return Err(Malformed::TooLarge(payload.len()));
    }
    said(node, leaf, payload).map(Taken::Said)
}

fn said(node: NodeId, leaf: Leaf, payload: &[u8]) -> Result<FleetMessage, Malformed> {
    Ok(match leaf {
        Leaf::Presence => FleetMessage::Presence { node, presence: parse(payload)? },
        Leaf::Status => {
            FleetMessage::Report { node, report: Box::new(parse(payload)?), digest: Digest::of(payload) }
        }
        Leaf::Events => {
            let batch: tombolo_api::report::EventBatch = parse(payload)?;
            let long = |text: &String| text.len() > TEXT_MAX;
            if batch.events.len() > BATCH_MAX || batch.outbox.len() > TEXT_MAX {
                return Err(Malformed::TooLarge(payload.len()));
            }
            if batch
                .events
                .iter()
                .any(|event| long(&event.reason) || long(&event.object) || long(&event.message))
            {
                return Err(Malformed::Content(format!("an event has a text of more than {TEXT_MAX} bytes")));
            }
            if batch.events.windows(2).any(|pair| pair[0].seq >= pair[1].seq) {
                return Err(Malformed::Content("events are not in order".into()));
            }
            FleetMessage::Events { node, batch }
        }
        Leaf::Tail(id) => {
            let chunk: tombolo_api::tail::TailChunk = parse(payload)?;
            if chunk.text.len() > CHUNK_TEXT_MAX {
                return Err(Malformed::TooLarge(chunk.text.len()));
            }
            FleetMessage::Tail { node, id, chunk }
        }
        Leaf::Manifest | Leaf::Blob(_) | Leaf::Ack | Leaf::TailRequest | Leaf::ReportRequest => {
            return Err(Malformed::Topic);
        }
    })
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Malformed> {
    serde_json::from_slice(payload).map_err(|error| Malformed::Content(error.to_string()))
}

/// Counts what was malformed and logs some of it: a broken node must not fill the hub's log.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    count: u64,
    unsaid: u64,
    last: Option<Instant>,
}

impl Complaints {
    pub(super) fn add(&mut self, topic: &str, reason: &Malformed) {
        self.count += 1;
        if self.last.is_some_and(|last| last.elapsed() < LOG_EVERY) {
            self.unsaid += 1;
            return;
        }
        let topic: String = topic.chars().take(200).collect();
        tracing::warn!(topic, %reason, total = self.count, not_logged = self.unsaid, "a node's message is malformed");
        self.unsaid = 0;
        self.last = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_messages_are_refused() {
        let events = |events: &str| format!("{{\"outbox\":\"o\",\"events\":[{events}]}}");
        let event = |seq: u64, message: &str| {
            format!(
                "{{\"seq\":{seq},\"timeMs\":1,\"reason\":\"R\",\"type\":\"Normal\",\"object\":\"node\",\"message\":\"{message}\"}}"
            )
        };
        let cases = [
            ("tombolo/v1/a/manifest", "{}".to_owned()),
            ("tombolo/v1/A/presence", "{}".to_owned()),
            ("other", "{}".to_owned()),
            ("tombolo/v1/a/presence", "{".to_owned()),
            (
                "tombolo/v1/a/presence",
                format!("{{\"online\":true,\"session\":\"{}\"}}", "x".repeat(PRESENCE_MAX)),
            ),
            ("tombolo/v1/a/status", "x".repeat(PACKET_MAX + 1)),
            ("tombolo/v1/a/events", String::new()),
            ("tombolo/v1/a/events", events(&format!("{},{}", event(2, ""), event(2, "")))),
            ("tombolo/v1/a/events", events(&event(1, &"x".repeat(TEXT_MAX + 1)))),
            ("tombolo/v1/a/events", events(&vec![event(1, ""); BATCH_MAX + 1].join(","))),
            (
                "tombolo/v1/a/tail/t",
                format!(
                    "{{\"instance\":\"i\",\"revision\":\"r\",\"text\":\"{}\"}}",
                    "x".repeat(CHUNK_TEXT_MAX + 1)
                ),
            ),
        ];
        for (topic, payload) in cases {
            assert!(decode(topic, payload.as_bytes()).is_err(), "{topic} {:.60}", payload);
        }
    }

    #[test]
    fn what_nodes_say_is_read() {
        let presence = decode("tombolo/v1/a/presence", br#"{"online":true,"session":"s"}"#).unwrap();
        assert!(matches!(presence, Taken::Said(FleetMessage::Presence { presence, .. }) if presence.online));
        assert_eq!(decode("tombolo/v1/a/presence", b"").unwrap(), Taken::Cleared);
        let tail =
            decode("tombolo/v1/a/tail/t-1", br#"{"instance":"i","revision":"r","text":"x\n","end":true}"#);
        assert!(matches!(tail.unwrap(), Taken::Said(FleetMessage::Tail { id, .. }) if id == "t-1"));
    }
}
