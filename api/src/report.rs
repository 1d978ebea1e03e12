//! What a node tells the hub: its presence, its status, its events.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::manifest::Version;

mod accelerators;

pub use accelerators::{AcceleratorReport, AcceleratorUse, MemoryErrors};

/// The smallest sign of life. Sent on every connect and as a heartbeat; the last will is the same with `online: false`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Presence {
    pub online: bool,
    /// Differs between two agents that claim one identity, and after each start.
    pub session: String,
    /// The manifest served; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<Serving>,
    /// Digest of the last [`Report`] sent, so that the hub asks for nothing when it has that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Digest>,
}

/// Which manifest a node has accepted, fsynced and serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Serving {
    #[serde(flatten)]
    pub version: Version,
    /// Digest of the signed manifest's bytes.
    pub digest: Digest,
}

/// A node's whole state as the hub should see it. Sent when it changed, retained.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub info: NodeInfo,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<Serving>,
    /// The last manifest that was refused, until one is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
    pub revisions: Vec<RevisionReport>,
    /// Routes with a [rollout](crate::desired::RolloutSpec).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RouteReport>,
    /// Images that are being fetched, those that take long enough to be told of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pulls: Vec<PullReport>,
    /// Accelerators whose plugins tell of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accelerators: Vec<AcceleratorReport>,
}

/// How far one image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullReport {
    /// By digest.
    pub image: String,
    /// Bytes of its layers that are on the node, and of all of them, compressed. Both 0 while that is not known.
    pub done_bytes: u64,
    pub total_bytes: u64,
    /// When it was begun, by the node's clock, seconds since 1970 (UTC).
    pub since_s: u64,
}

/// How far the traffic of one route has moved on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteReport {
    pub namespace: String,
    pub name: String,
    /// Its targets that follow a configuration.
    pub targets: Vec<TargetReport>,
}

/// One target of a route that follows a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetReport {
    pub configuration: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tag: String,
    /// The revision that should get all of it in the end.
    pub goal: String,
    /// What is served now, the oldest first; percent of the target's share, 100 in all.
    pub shares: Vec<ShareReport>,
    /// Why the goal is not tried any more, if its health made the node go back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back: Option<RolledBack>,
}

/// Part of a target's share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShareReport {
    pub revision: String,
    pub percent: u8,
}

/// Why a rollout was undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolledBack {
    /// One CamelCase word: `ErrorRateTooHigh`, `LatencyTooHigh`, `NoAnswers`, `NotReadyInTime`.
    pub reason: String,
    pub message: String,
}

/// What a node is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    /// From the agent's configuration, with `kubernetes.io/hostname`, `kubernetes.io/os` and `kubernetes.io/arch` added.
    pub labels: BTreeMap<String, String>,
    pub agent_version: String,
    pub kernel_version: String,
    pub os_image: String,
    /// As OCI names it: `amd64`, `arm64`.
    pub architecture: String,
    pub boot_id: String,
    /// Logical processors.
    pub cpus: u32,
    /// Bytes.
    pub memory_bytes: u64,
    /// Where the node's router answers, `host:port`.
    pub address: String,
    /// Abilities of the kernel or machine that are absent, and what is done without: one sentence each.
    pub limitations: Vec<String>,
    /// Devices by resource: all that there are, and those that instances may have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub capacity: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub allocatable: BTreeMap<String, u64>,
    /// Of resources whose devices are pieces of several accelerators: the most of them that are of one, healthy or not. No
    /// instance can have more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub largest_piece: BTreeMap<String, u64>,
}

/// A manifest that was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// One CamelCase word, see `agent-core`'s acceptance rule.
    pub reason: String,
    pub message: String,
    /// Refusals since the agent's store was made.
    pub count: u64,
}

/// One revision on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevisionReport {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub phase: RevisionPhase,
    /// One CamelCase word: why it is not ready, or why it works worse than asked. Empty when all is well.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    pub instances: Vec<InstanceReport>,
    /// Instances that should be running now.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub desired: u32,
    /// None is tried any more until a request comes: none became ready in the time that an activation may take.
    #[serde(default, skip_serializing_if = "is_false")]
    pub timed_out: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// How far a revision is on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RevisionPhase {
    /// Its image is being fetched or its first instance has not answered yet.
    Preparing,
    /// It has been ready since its object last changed; it may be at zero instances now.
    Ready,
    /// It cannot be run, see reason and message; tried again with back-off.
    Failed,
}

/// One instance on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceReport {
    pub id: String,
    pub tier: Tier,
    /// Process id of the instance's init, in the host's pid namespace; 0 when there is none.
    pub pid: i32,
    /// Times this revision's program ended by itself on this node since its object last changed.
    pub restarts: u32,
}

/// What an instance is doing, see the tiers in ARCHITECTURE.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    Starting,
    Running,
    Stopping,
    /// Made, but its program was not started.
    Primed,
    /// Its processes are stopped where they were.
    Frozen,
    /// As frozen, and what it had on accelerators is in the host's memory.
    Suspended,
}

/// Something that happened and must not be lost. Waits in the node's outbox until the hub has stored it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Position in the outbox, growing by one.
    pub seq: u64,
    /// The node's clock, milliseconds since 1970 (UTC).
    pub time_ms: u64,
    /// One CamelCase word: `InstanceExited`, `ManifestRefused`, `ImagePulled`, …
    pub reason: String,
    /// `Normal` or `Warning`, as Kubernetes' events.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// What it is about: `revision/{namespace}/{name}`, `node`.
    pub object: String,
    pub message: String,
}

/// Kubernetes' two types of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    Normal,
    Warning,
}

/// Events in order, from one outbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventBatch {
    /// Made when the node's outbox was; a new one starts counting anew.
    pub outbox: String,
    pub events: Vec<Event>,
}

/// The hub has stored every event of `outbox` up to and including `seq`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventAck {
    pub outbox: String,
    pub seq: u64,
}
