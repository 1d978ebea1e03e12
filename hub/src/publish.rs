//! From placement to manifests: what every node should hold, signed, and at the broker for it to find.
//!
//! ```text
//! placement ─▶ decide: new version? ─▶ sign ─▶ store ─▶ blobs, then manifest ─▶ broker
//! fleet ─────▶ (what a node serves: which blobs may go; whether it is there at all)
//! ```
//!
//! A manifest is made only when a node's object list changed, and is on the hub's disk before anybody sees it: no crash makes
//! two of one version. Each pass looks at everything and does what is missing, so a failure only means another pass. It must
//! not know why a node should run something.

mod messages;
mod record;
mod shelf;
mod version;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tombolo_api::desired::Encoded;
use tombolo_api::manifest::{ENTRIES_MAX, FORMAT, Manifest, SignedManifest, Version};
use tombolo_api::topics::NodeTopics;
use tombolo_api::{Digest, NodeId};
use tombolo_hub_core::{Fleet, Placement};
use tombolo_store::{Batch, CommitError, ReadError, Store};

use crate::clock::now_s;
use crate::link::{Connection, Outbox, PublishError};
use crate::publish::messages::Message;
use crate::publish::record::{Known, Record};
pub(crate) use crate::publish::shelf::{Shelf, ShelfError};

/// Most publishes of one pass under way at once.
const CONCURRENT_MAX: usize = 32;

/// Pause before another attempt after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// The manifest a node should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) version: Version,
    /// Digest of the signed manifest's bytes.
    pub(crate) digest: Digest,
}

/// The manifest of every node that has had one.
pub(crate) type AllPublished = BTreeMap<NodeId, Published>;

/// What the broker keeps over a reconnect of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BrokerMemory {
    /// It lives as long as this process and starts empty.
    Ours,
    /// It may have been restarted in the meantime, with its retained messages or without.
    Unknown,
}

/// What it takes.
pub(crate) struct Inputs {
    pub(crate) placement: watch::Receiver<Arc<Placement>>,
    pub(crate) fleet: watch::Receiver<Arc<Fleet>>,
    pub(crate) connection: watch::Receiver<Connection>,
    pub(crate) outbox: Outbox,
    pub(crate) memory: BrokerMemory,
}

/// Signs and publishes.
pub(crate) struct Publisher {
    store: Store,
    key: SigningKey,
    epoch: u64,
    nodes: BTreeMap<NodeId, Known>,
    published: watch::Sender<Arc<AllPublished>>,
    /// The placement that `nodes` answers to.
    done: Option<Arc<Placement>>,
}

/// Why the publisher could not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("the published manifests cannot be read")]
    Read(#[from] ReadError),
    #[error("the epoch cannot be stored")]
    Commit(#[from] CommitError),
    #[error("the published manifest of node {node} cannot be read: {reason}")]
    Malformed { node: NodeId, reason: String },
}

/// Why a pass has to be repeated.
#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error("the store: {0}")]
    Read(#[from] ReadError),
    #[error("the store: {0}")]
    Commit(#[from] CommitError),
    #[error("node {node}: {source}")]
    Publish { node: NodeId, source: PublishError },
}

impl Publisher {
    /// Reads what has been published. `complete`: whether the store has everything that was ever written to it.
    pub(crate) fn open(store: Store, key: SigningKey, complete: bool) -> Result<Self, OpenError> {
        let epoch = version::epoch(&store, complete, now_s())?;
        let nodes = record::load(&store)?;
        let publisher =
            Self { store, key, epoch, nodes, published: watch::Sender::new(Arc::default()), done: None };
        publisher.tell();
        Ok(publisher)
    }

    /// What every node should have, as soon as it is on the hub's disk.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<AllPublished>> {
        self.published.subscribe()
    }

    /// Runs until `stop`. The placement that `inputs` hold at this moment counts already.
    pub(crate) async fn run(mut self, mut inputs: Inputs, stop: CancellationToken) {
        let mut number = 0;
        loop {
            let connection = *inputs.connection.borrow_and_update();
            if let Connection::Up(now) = connection
                && now != number
            {
                if inputs.memory == BrokerMemory::Unknown {
                    self.nodes.values_mut().for_each(Known::forget_broker);
                }
                number = now;
            }
            let placement = inputs.placement.borrow_and_update().clone();
            let fleet = inputs.fleet.borrow_and_update().clone();
            let pass = async {
                self.sign(&placement, &fleet).await?;
                if connection != Connection::Down {
                    self.bring(&placement, &fleet, &inputs.outbox).await?;
                    self.clear(&fleet, &inputs.outbox).await?;
                }
                Ok::<(), PassError>(())
            };
            let failed = tokio::select! {
                result = pass => result.err(),
                () = stop.cancelled() => return,
            };
            if let Some(error) = &failed {
                tracing::warn!(%error, "not everything could be published, the hub tries again");
            }
            drop(fleet);
            tokio::select! {
                Ok(()) = inputs.placement.changed() => {}
                Ok(()) = inputs.fleet.changed() => {}
                Ok(()) = inputs.connection.changed() => {}
                () = tokio::time::sleep(RETRY), if failed.is_some() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Makes the manifests that are due, and stores them.
    async fn sign(&mut self, placement: &Arc<Placement>, fleet: &Fleet) -> Result<(), PassError> {
        let seen = self.done.as_ref().is_some_and(|done| Arc::ptr_eq(done, placement));
        let mut batch = Batch::new();
        let mut made = BTreeMap::new();
        for (node, state) in fleet {
            let serving = state.presence.as_ref().and_then(|presence| presence.serving);
            let known = self.nodes.get(node);
            let ahead = known.is_some_and(|known| version::is_ahead(serving, known.published()));
            let stale = known.is_some_and(|known| known.version.epoch < self.epoch);
            if seen && !ahead && !stale && known.is_some_and(|known| !known.is_forgotten()) {
                continue;
            }
            let wanted = match (placement.get(node), known) {
                (Some(wanted), _) => wanted.as_slice(),
                (None, Some(known)) if !known.is_forgotten() => &[],
                (None, _) => continue,
            };
            if wanted.len() > ENTRIES_MAX {
                tracing::error!(%node, objects = wanted.len(), "more objects than a manifest holds, the node keeps its last one");
                continue;
            }
            let objects = record::digest_of(wanted.iter().map(|object| &object.entry));
            if let Some(known) = known
                && known.objects == Some(objects)
                && !ahead
                && !stale
            {
                continue;
            }
            let version = version::next(known.map(|known| known.version), self.epoch, serving);
            let (record, next) = self.make(node, wanted, version, known);
            batch.put(record::key(node), record.to_bytes());
            made.insert(node.clone(), next);
        }
        if !batch.is_empty() {
            self.store.commit_async(batch).await?;
            for (node, known) in made {
                tracing::info!(%node, generation = known.version.generation, "a node's manifest changed");
                self.nodes.insert(node, known);
            }
            self.tell();
        }
        self.done = Some(placement.clone());
        Ok(())
    }

    fn make(
        &self,
        node: &NodeId,
        wanted: &[Encoded],
        version: Version,
        known: Option<&Known>,
    ) -> (Record, Known) {
        let manifest = Manifest {
            format: FORMAT,
            node: node.clone(),
            generation: version.generation,
            epoch: version.epoch,
            hub_time_s: now_s(),
            objects: wanted.iter().map(|object| object.entry.clone()).collect(),
        };
        let signed = SignedManifest::sign(&manifest, &self.key).to_bytes();
        let digest = Digest::of(&signed);
        let needed = messages::blobs_of(wanted, &signed);
        let retained =
            known.map(|known| &known.retained).into_iter().flatten().chain(&needed).copied().collect();
        let next = Known {
            version,
            digest,
            objects: Some(record::digest_of(&manifest.objects)),
            retained,
            needed: Some(needed),
            at_broker: known.map(|known| known.at_broker.clone()).unwrap_or_default(),
            is_published: false,
        };
        let manifest = String::from_utf8(signed).expect("a signed manifest is JSON");
        (Record { version, digest, manifest, blobs: next.retained.clone() }, next)
    }

    /// Publishes what the broker does not have: blobs, then the manifest that names them.
    async fn bring(
        &mut self,
        placement: &Placement,
        fleet: &Fleet,
        outbox: &Outbox,
    ) -> Result<(), PassError> {
        let is_due = |node: &NodeId, known: &Known| {
            !known.is_published && !known.is_forgotten() && fleet.contains_key(node)
        };
        let due: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|(node, known)| is_due(node, known))
            .map(|(node, _)| node.clone())
            .collect();
        for node in due {
            let wanted = placement.get(&node).map(Vec::as_slice).unwrap_or_default();
            let Some(record) = record::read(&self.store, &node)? else { continue };
            let known = self.nodes.get_mut(&node).expect("just listed");
            if known.objects != Some(record::digest_of(wanted.iter().map(|object| &object.entry))) {
                continue;
            }
            let (blobs, manifest) = messages::of(&node, wanted, record.manifest.as_bytes());
            known.needed = Some(blobs.iter().map(|blob| blob.digest).collect());
            let missing: Vec<_> =
                blobs.into_iter().filter(|blob| !known.at_broker.contains(&blob.digest)).collect();
            let sending = missing.into_iter().map(|blob| async move {
                let digest = blob.digest;
                send(outbox, blob.message).await.map(|()| digest)
            });
            let mut sending = futures_util::stream::iter(sending).buffer_unordered(CONCURRENT_MAX);
            while let Some(sent) = sending.next().await {
                let digest = sent.map_err(|source| PassError::Publish { node: node.clone(), source })?;
                known.at_broker.insert(digest);
            }
            drop(sending);
            send(outbox, manifest)
                .await
                .map_err(|source| PassError::Publish { node: node.clone(), source })?;
            known.is_published = true;
        }
        Ok(())
    }

    /// Takes away from the broker what nobody needs any more.
    async fn clear(&mut self, fleet: &Fleet, outbox: &Outbox) -> Result<(), PassError> {
        let nodes: Vec<NodeId> = self.nodes.keys().cloned().collect();
        for node in nodes {
            let known = self.nodes.get_mut(&node).expect("just listed");
            let topics = NodeTopics::of(&node);
            let mut empty: Vec<String> = Vec::new();
            let unneeded: Vec<Digest> = match fleet.get(&node) {
                Some(state) => {
                    let serving = state.presence.as_ref().and_then(|presence| presence.serving);
                    let there =
                        known.is_published && serving.is_some_and(|serving| serving.version >= known.version);
                    let Some(needed) = known.needed.as_ref().filter(|_| there) else { continue };
                    known.retained.difference(needed).copied().collect()
                }
                None if known.is_forgotten() => continue,
                None => {
                    empty.extend([topics.manifest(), topics.presence(), topics.status()]);
                    known.retained.iter().copied().collect()
                }
            };
            empty.extend(unneeded.iter().map(|digest| topics.blob(digest)));
            if empty.is_empty() {
                continue;
            }
            let clearing =
                empty.into_iter().map(|topic| send(outbox, Message { topic, payload: Vec::new() }));
            let mut clearing = futures_util::stream::iter(clearing).buffer_unordered(CONCURRENT_MAX);
            while let Some(cleared) = clearing.next().await {
                cleared.map_err(|source| PassError::Publish { node: node.clone(), source })?;
            }
            drop(clearing);
            for digest in &unneeded {
                known.retained.remove(digest);
                known.at_broker.remove(digest);
            }
            if !fleet.contains_key(&node) {
                known.forget();
            }
            let manifest = match record::read(&self.store, &node)? {
                Some(record) if !known.is_forgotten() => record.manifest,
                _ => String::new(),
            };
            let blobs = known.retained.clone();
            let record = Record { version: known.version, digest: known.digest, manifest, blobs };
            let mut batch = Batch::new();
            batch.put(record::key(&node), record.to_bytes());
            self.store.commit_async(batch).await?;
        }
        if self.published.borrow().keys().any(|node| self.nodes.get(node).is_none_or(Known::is_forgotten)) {
            self.tell();
        }
        Ok(())
    }

    fn tell(&self) {
        let current = self.nodes.iter().filter(|(_, known)| !known.is_forgotten());
        let all = current.map(|(node, known)| (node.clone(), known.published())).collect();
        self.published.send_replace(Arc::new(all));
    }
}

async fn send(outbox: &Outbox, message: Message) -> Result<(), PublishError> {
    outbox.publish(message.topic, message.payload, true).await
}

/// The digests that name a list of blobs.
type Digests = BTreeSet<Digest>;

#[cfg(test)]
mod tests;
