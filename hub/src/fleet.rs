//! The fleet: which nodes there are, what they last said, the events they sent. One task owns it.
//!
//! ```text
//! inbox ─▶ intake: bounds, decode ─▶ owner ─▶ fleet (watch) ─▶ reconcile, publish, API
//!                                      │ ├──▶ credentials (watch) ─▶ node listener, broker
//!          admit, remove ─────────────▶│ └──▶ tails
//!                                      ▼
//!                                    store, then EventAck
//! ```
//!
//! Kept in the store under `n/{node}/` (state, credentials, position in the node's outbox) and `e/{node}/` (events). Events
//! and credentials are on the disk before anybody is told; states follow within [`owner::FLUSH`]: a node says its state
//! again.

mod intake;
mod journal;
mod owner;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tombolo_api::report::Event;
use tombolo_api::tail::TailChunk;
use tombolo_api::{Digest, NodeId};
use tombolo_hub_core::Fleet;
use tombolo_store::{CommitError, ReadError, Store};

pub(crate) use owner::Owner;

/// Requests that may wait for the owner.
const REQUESTS_MAX: usize = 64;

/// How a node proves who it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Credentials {
    /// Digest of its public key.
    pub(crate) key: Digest,
    /// Digest of its pull token.
    pub(crate) pull_token: Digest,
}

/// The credentials of every node that is enrolled.
pub(crate) type AllCredentials = BTreeMap<NodeId, Credentials>;

/// Log lines of a node, for who asked with this id.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tail {
    pub(crate) node: NodeId,
    pub(crate) id: String,
    pub(crate) chunk: TailChunk,
}

/// An event of a node as the hub keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredEvent {
    pub(crate) node: NodeId,
    /// The hub's own number of it, unique for as long as the node is enrolled.
    pub(crate) number: String,
    /// The hub's clock, milliseconds since 1970 (UTC).
    pub(crate) received_ms: u64,
    pub(crate) event: Event,
}

/// What others hold of the fleet.
#[derive(Clone, Debug)]
pub(crate) struct FleetHandle {
    fleet: watch::Receiver<Arc<Fleet>>,
    credentials: watch::Receiver<Arc<AllCredentials>>,
    requests: mpsc::Sender<Request>,
    store: Store,
}

/// Why a node was not admitted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdmitError {
    #[error(
        "node {0} is enrolled with another key: choose another name, or delete the node at the hub first if its \
         machine was replaced"
    )]
    OtherKey(NodeId),
    #[error("the node cannot be stored")]
    Store(#[source] CommitError),
    #[error("the hub stops")]
    Stopped,
}

/// Why a node was not removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoveError {
    #[error("the node cannot be removed from the store")]
    Store(#[source] CommitError),
    #[error("the hub stops")]
    Stopped,
}

#[derive(Debug)]
enum Request {
    Admit { node: NodeId, credentials: Credentials, done: oneshot::Sender<Result<(), AdmitError>> },
    Remove { node: NodeId, done: oneshot::Sender<Result<bool, RemoveError>> },
}

/// The fleet as the store has it, and the task that goes on from there.
pub(crate) fn open(store: &Store) -> Result<(FleetHandle, Owner), ReadError> {
    let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
    let owner = Owner::load(store.clone(), receiver)?;
    let handle = FleetHandle {
        fleet: owner.watch(),
        credentials: owner.credentials(),
        requests,
        store: store.clone(),
    };
    Ok((handle, owner))
}

impl FleetHandle {
    /// The fleet as it is. Signs of life alone change it without waking anybody.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Fleet>> {
        self.fleet.clone()
    }

    pub(crate) fn credentials(&self) -> watch::Receiver<Arc<AllCredentials>> {
        self.credentials.clone()
    }

    /// Enrols a node, or gives an enrolled one with the same key a new pull token. Durable when it returns.
    pub(crate) async fn admit(&self, node: NodeId, credentials: Credentials) -> Result<(), AdmitError> {
        let (done, answer) = oneshot::channel();
        let request = Request::Admit { node, credentials, done };
        self.requests.send(request).await.map_err(|_| AdmitError::Stopped)?;
        answer.await.map_err(|_| AdmitError::Stopped)?
    }

    /// Forgets a node: what it said, its events and its credentials, so that it is let in nowhere any more. Returns whether
    /// there was one.
    pub(crate) async fn remove(&self, node: &NodeId) -> Result<bool, RemoveError> {
        let (done, answer) = oneshot::channel();
        let request = Request::Remove { node: node.clone(), done };
        self.requests.send(request).await.map_err(|_| RemoveError::Stopped)?;
        answer.await.map_err(|_| RemoveError::Stopped)?
    }

    /// The newest events, in the order they came, the newest last.
    pub(crate) async fn events(&self, limit: usize) -> Result<Vec<StoredEvent>, ReadError> {
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || journal::newest(&store, limit)).await;
        read.unwrap_or_else(|error| Err(ReadError::Engine(error.to_string())))
    }
}

/// Where the fleet's data stands in the store.
mod keys {
    use tombolo_api::NodeId;

    pub(super) const NODES: &str = "n/";
    pub(super) const EVENTS: &str = "e/";

    pub(super) fn state(node: &NodeId) -> String {
        format!("{NODES}{node}/state")
    }

    pub(super) fn credentials(node: &NodeId) -> String {
        format!("{NODES}{node}/credentials")
    }

    pub(super) fn position(node: &NodeId) -> String {
        format!("{NODES}{node}/events")
    }

    pub(super) fn event(node: &NodeId, number: u64) -> String {
        format!("{EVENTS}{node}/{number:016x}")
    }
}

#[cfg(test)]
mod tests;
