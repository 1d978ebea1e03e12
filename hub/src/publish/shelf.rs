//! What is published for a node, whole and as it is published: for bundles, which carry it without a link.
//!
//! The signed manifest is the store's, its objects are the placement's. While one of the two is ahead of the other, the
//! answer waits for the publisher, which brings them together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tombolo_api::bundle::Published as Whole;
use tombolo_api::manifest::{Manifest, SignedManifest};
use tombolo_api::{Digest, NodeId};
use tombolo_hub_core::Placement;
use tombolo_store::{ReadError, Store};

use super::record;

/// How long a change may be on its way to a new manifest; it takes one pass and one sync of the disk.
const SETTLE: Duration = Duration::from_secs(10);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Where it is found.
#[derive(Clone)]
pub(crate) struct Shelf {
    store: Store,
    placement: watch::Receiver<Arc<Placement>>,
}

/// Why there is nothing to give.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShelfError {
    #[error("the published manifest cannot be read: {0}")]
    Read(#[from] ReadError),
    #[error("what node {0} should have is being changed and has not been signed yet: try again in a moment")]
    Unsettled(NodeId),
}

impl Shelf {
    pub(crate) fn new(store: Store, placement: watch::Receiver<Arc<Placement>>) -> Self {
        Self { store, placement }
    }

    /// What `node` should have now.
    pub(crate) async fn of(&self, node: &NodeId) -> Result<Whole, ShelfError> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let (store, of) = (self.store.clone(), node.clone());
            let read = tokio::task::spawn_blocking(move || record::read(&store, &of)).await;
            let record = read.unwrap_or_else(|error| Err(ReadError::Engine(error.to_string())))?;
            if let Some(whole) = record.and_then(|record| self.complete(node, record.manifest)) {
                return Ok(whole);
            }
            if Instant::now() >= deadline {
                return Err(ShelfError::Unsettled(node.clone()));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The manifest with its objects, if the placement has all of them.
    fn complete(&self, node: &NodeId, manifest: String) -> Option<Whole> {
        let placement = self.placement.borrow().clone();
        let bytes: BTreeMap<Digest, &[u8]> = placement
            .get(node)?
            .iter()
            .map(|object| (object.entry.digest, object.bytes.as_slice()))
            .collect();
        // The hub's own, from its own store: the signature is the nodes' to check.
        let signed = SignedManifest::from_bytes(manifest.as_bytes()).ok()?;
        let listed: Manifest = serde_json::from_str(&signed.payload).ok()?;
        if listed.objects.len() != bytes.len() {
            return None;
        }
        let text = |digest: &Digest| String::from_utf8(bytes.get(digest)?.to_vec()).ok();
        let objects = listed.objects.iter().map(|entry| text(&entry.digest)).collect::<Option<_>>()?;
        Some(Whole { manifest, objects })
    }
}

#[cfg(test)]
mod tests {
    use tombolo_api::desired::{Encoded, RouteObject, encode_route};
    use tombolo_store::Batch;

    use super::*;

    fn route(name: &str) -> Encoded {
        encode_route(&RouteObject {
            namespace: "default".into(),
            name: name.into(),
            hosts: vec![],
            targets: vec![],
            steering: vec![],
            rollout: None,
        })
    }

    fn record_of(node: &NodeId, objects: &[&Encoded]) -> record::Record {
        let manifest = Manifest {
            format: 1,
            node: node.clone(),
            generation: 1,
            epoch: 1,
            hub_time_s: 1,
            objects: objects.iter().map(|object| object.entry.clone()).collect(),
        };
        let signed = SignedManifest::sign(&manifest, &ed25519_dalek::SigningKey::from_bytes(&[7; 32]));
        let manifest = String::from_utf8(signed.to_bytes()).unwrap();
        let digest = Digest::of(manifest.as_bytes());
        let version = tombolo_api::manifest::Version { epoch: 1, generation: 1 };
        record::Record { version, digest, manifest, blobs: super::super::Digests::new() }
    }

    #[tokio::test]
    async fn gives_only_what_belongs_together() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let node: NodeId = "press-7".parse().unwrap();
        let (a, b) = (route("a"), route("b"));
        let (changes, placement) =
            watch::channel(Arc::new(Placement::from([(node.clone(), vec![a.clone()])])));
        let shelf = Shelf::new(store.clone(), placement);
        let put = |record: &record::Record| {
            let mut batch = Batch::new();
            batch.put(record::key(&node), record.to_bytes());
            store.commit(batch).unwrap();
        };
        let (first, second) = (record_of(&node, &[&a]), record_of(&node, &[&a, &b]));
        put(&first);
        let whole = shelf.of(&node).await.unwrap();
        assert_eq!(whole.manifest, first.manifest);
        assert_eq!(whole.objects, [String::from_utf8(a.bytes.clone()).unwrap()]);
        // Changed and not signed yet: the answer is the new one, once there is one.
        changes.send_replace(Arc::new(Placement::from([(node.clone(), vec![a, b])])));
        let waiting = tokio::spawn({
            let (shelf, node) = (shelf.clone(), node.clone());
            async move { shelf.of(&node).await }
        });
        tokio::time::sleep(LOOK * 2).await;
        assert!(!waiting.is_finished());
        put(&second);
        assert_eq!(waiting.await.unwrap().unwrap().manifest, second.manifest);
    }
}
