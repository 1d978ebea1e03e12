//! What the hub knows of its nodes, and what nodes' messages change in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tombolo_api::NodeId;
use tombolo_api::desired::Encoded;
use tombolo_api::report::{EventBatch, Presence, Report};
use tombolo_api::tail::TailChunk;

/// A node as the hub knows it. Kept in the hub's store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    pub id: NodeId,
    /// Seconds since 1970 (UTC).
    pub enrolled_s: u64,
    /// Last message of any kind, seconds since 1970 (UTC).
    pub last_seen_s: u64,
    pub presence: Option<Presence>,
    pub report: Option<Report>,
}

/// What a node said, checked and decoded.
#[derive(Clone, Debug, PartialEq)]
pub enum FleetMessage {
    Enrolled { node: NodeId },
    Presence { node: NodeId, presence: Presence },
    Report { node: NodeId, report: Box<Report> },
    Events { node: NodeId, batch: EventBatch },
    Tail { node: NodeId, id: String, chunk: TailChunk },
}

/// What every node should hold: each list sorted as a manifest's entries are. A node absent here gets an empty manifest
/// if it has had one.
pub type Placement = BTreeMap<NodeId, Vec<Encoded>>;
