//! What a hub decides, as pure functions of what it knows: no clock, no files, no sockets, no tokio.
//!
//! ```text
//! Snapshot (resources) ─┐
//! Fleet (reports)       ├─▶ reconcile ─▶ writes, Placement
//! Images (digests)      ┘
//! ```

pub mod conditions;
#[cfg(test)]
mod fixture;
pub mod fleet;
pub mod hosts;
pub mod images;
mod moment;
pub mod placement;
pub mod reconcile;
mod rollout;
pub mod signatures;
pub mod snapshot;
mod targets;

pub use fleet::{Fleet, NodeState, Placement};
pub use reconcile::{Inputs, Outcome, Write, reconcile};
pub use snapshot::{Key, Kind, Object, Snapshot};

/// How routes are named to the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Last part of every host: `{name}.{namespace}.{domain}`.
    pub domain: String,
    /// Port of the nodes' routers as clients see it; not shown in URLs if 80.
    pub http_port: u16,
}

impl Settings {
    /// The host of a route, or of one of its tags.
    pub fn host(&self, tag: &str, name: &str, namespace: &str) -> String {
        let dash = if tag.is_empty() { "" } else { "-" };
        format!("{tag}{dash}{name}.{namespace}.{}", self.domain).to_lowercase()
    }

    /// The URL of a route, or of one of its tags.
    pub fn url(&self, tag: &str, name: &str, namespace: &str) -> String {
        let host = self.host(tag, name, namespace);
        if self.http_port == 80 {
            format!("http://{host}")
        } else {
            format!("http://{host}:{}", self.http_port)
        }
    }
}
