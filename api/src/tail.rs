//! Following the log of instances through the hub.

use serde::{Deserialize, Serialize};

/// How long a node sends after one request; the hub repeats the request to go on. Seconds.
pub const LEASE_S: u64 = 15;

/// Largest text of one chunk, bytes.
pub const CHUNK_TEXT_MAX: usize = 32 * 1024;

/// Hub to node: send log lines. The same `id` again renews the lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TailRequest {
    /// Chosen by the hub: letters, digits and `-`.
    pub id: String,
    pub namespace: String,
    /// The revisions whose instances are meant.
    pub revisions: Vec<String>,
    /// Lines of the past to begin with, per instance.
    pub lines: u32,
    /// Go on with new lines until the lease ends.
    pub follow: bool,
}

/// Node to hub: some log lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TailChunk {
    pub instance: String,
    pub revision: String,
    /// Whole lines in the CRI log format: `time stream tag text`, newline included.
    pub text: String,
    /// Nothing follows: the request asked for the past only, and this node has sent all of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub end: bool,
}
