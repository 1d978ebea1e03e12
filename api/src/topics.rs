//! The MQTT topic tree: `tombolo/v1/{node}/…`, the only place that spells it.
//!
//! | topic | direction | retained | payload |
//! |---|---|---|---|
//! | `manifest` | hub → node | yes | a [`crate::frame`] of a signed manifest |
//! | `blob/{hex}` | hub → node | yes | a frame of the object (or part of one) with that SHA-256 |
//! | `ack` | hub → node | no | [`crate::report::EventAck`]: events the hub has stored |
//! | `report` | hub → node | no | empty: the hub has not the report that the presence names, send it again |
//! | `tail` | hub → node | no | [`crate::tail::TailRequest`]: send log lines |
//! | `presence` | node → hub | yes, and last will | [`crate::report::Presence`] |
//! | `status` | node → hub | yes | [`crate::report::Report`] |
//! | `events` | node → hub | no | [`crate::report::EventBatch`] |
//! | `tail/{id}` | node → hub | no | [`crate::tail::TailChunk`] |
//!
//! A node reads and writes its own subtree only; the hub reads and writes all of it.

use crate::{Digest, NodeId};

/// What every topic starts with.
pub const PREFIX: &str = "tombolo/v1/";

/// The topics of one node.
#[derive(Clone, Debug)]
pub struct NodeTopics {
    root: String,
}

impl NodeTopics {
    pub fn of(node: &NodeId) -> Self {
        Self { root: format!("{PREFIX}{node}/") }
    }

    pub fn manifest(&self) -> String {
        format!("{}manifest", self.root)
    }

    pub fn blob(&self, digest: &Digest) -> String {
        format!("{}blob/{}", self.root, digest.hex())
    }

    pub fn ack(&self) -> String {
        format!("{}ack", self.root)
    }

    pub fn tail_request(&self) -> String {
        format!("{}tail", self.root)
    }

    pub fn report_request(&self) -> String {
        format!("{}report", self.root)
    }

    pub fn presence(&self) -> String {
        format!("{}presence", self.root)
    }

    pub fn status(&self) -> String {
        format!("{}status", self.root)
    }

    pub fn events(&self) -> String {
        format!("{}events", self.root)
    }

    pub fn tail(&self, id: &str) -> String {
        format!("{}tail/{id}", self.root)
    }
}

/// What the hub subscribes to: everything nodes write.
pub const HUB_FILTERS: [&str; 4] =
    ["tombolo/v1/+/presence", "tombolo/v1/+/status", "tombolo/v1/+/events", "tombolo/v1/+/tail/+"];

/// A topic taken apart again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leaf {
    Manifest,
    Blob(Digest),
    Ack,
    TailRequest,
    ReportRequest,
    Presence,
    Status,
    Events,
    Tail(String),
}

/// The node and the leaf that `topic` names, or `None` for a topic that is not of this tree.
pub fn parse(topic: &str) -> Option<(NodeId, Leaf)> {
    let (node, leaf) = topic.strip_prefix(PREFIX)?.split_once('/')?;
    let leaf = match leaf {
        "manifest" => Leaf::Manifest,
        "ack" => Leaf::Ack,
        "tail" => Leaf::TailRequest,
        "report" => Leaf::ReportRequest,
        "presence" => Leaf::Presence,
        "status" => Leaf::Status,
        "events" => Leaf::Events,
        _ => match leaf.split_once('/')? {
            ("blob", hex) => Leaf::Blob(format!("sha256:{hex}").parse().ok()?),
            ("tail", id) if !id.is_empty() && !id.contains('/') => Leaf::Tail(id.to_owned()),
            _ => return None,
        },
    };
    Some((node.parse().ok()?, leaf))
}

/// Whether the client that is `node` may publish to `topic`.
pub fn node_may_publish(node: &NodeId, topic: &str) -> bool {
    matches!(parse(topic), Some((owner, Leaf::Presence | Leaf::Status | Leaf::Events | Leaf::Tail(_))) if owner == *node)
}

/// Whether the client that is `node` may subscribe to `filter`: anything below its own root, wildcards included.
pub fn node_may_subscribe(node: &NodeId, filter: &str) -> bool {
    filter
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split_once('/'))
        .is_some_and(|(owner, _)| owner == node.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_parses_back() {
        let node: NodeId = "press-7".parse().unwrap();
        let topics = NodeTopics::of(&node);
        let digest = Digest::of(b"x");
        for (topic, leaf) in [
            (topics.manifest(), Leaf::Manifest),
            (topics.blob(&digest), Leaf::Blob(digest)),
            (topics.ack(), Leaf::Ack),
            (topics.tail_request(), Leaf::TailRequest),
            (topics.report_request(), Leaf::ReportRequest),
            (topics.presence(), Leaf::Presence),
            (topics.status(), Leaf::Status),
            (topics.events(), Leaf::Events),
            (topics.tail("t1"), Leaf::Tail("t1".into())),
        ] {
            assert_eq!(parse(&topic), Some((node.clone(), leaf)), "{topic}");
        }
    }

    #[test]
    fn a_node_keeps_to_its_own_subtree() {
        let me: NodeId = "a".parse().unwrap();
        assert!(node_may_publish(&me, "tombolo/v1/a/status"));
        assert!(node_may_subscribe(&me, "tombolo/v1/a/#"));
        for topic in [
            "tombolo/v1/b/status",
            "tombolo/v1/a/manifest",
            "tombolo/v1/a/blob/x",
            "tombolo/v1/+/status",
            "x",
            "$SYS/a",
        ] {
            assert!(!node_may_publish(&me, topic), "{topic}");
        }
        for filter in [
            "#",
            "tombolo/#",
            "tombolo/v1/#",
            "tombolo/v1/+/manifest",
            "tombolo/v1/b/#",
            "tombolo/v1/ab/#",
            "$share/g/tombolo/v1/a/#",
        ] {
            assert!(!node_may_subscribe(&me, filter), "{filter}");
        }
    }
}
