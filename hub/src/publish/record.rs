//! What the hub remembers of each node's manifest: in the store under `m/node/`, and in memory.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tombolo_api::manifest::{Entry, Manifest, SignedManifest, Version};
use tombolo_api::{Digest, NodeId};
use tombolo_store::{ReadError, Store};

use super::{Digests, OpenError, Published};

const PREFIX: &str = "m/node/";

/// In the store. A node that was removed keeps its version: under its name counting goes on.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub(super) version: Version,
    /// Digest of the signed manifest's bytes.
    pub(super) digest: Digest,
    /// The signed manifest's bytes; empty when the node was removed.
    pub(super) manifest: String,
    /// Blobs that the broker may have retained for the node.
    pub(super) blobs: Digests,
}

/// In memory.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) version: Version,
    pub(super) digest: Digest,
    /// Digest of the manifest's object list; `None` when the node was removed.
    pub(super) objects: Option<Digest>,
    /// Blobs that the broker may have retained for the node.
    pub(super) retained: Digests,
    /// Blobs of the manifest; `None` until they were looked at since the hub started.
    pub(super) needed: Option<Digests>,
    /// Blobs that the broker is known to have.
    pub(super) at_broker: Digests,
    /// Whether the broker is known to have the manifest.
    pub(super) is_published: bool,
}

impl Known {
    pub(super) fn published(&self) -> Published {
        Published { version: self.version, digest: self.digest }
    }

    /// Whether the node was removed and nothing of it is left at the broker.
    pub(super) fn is_forgotten(&self) -> bool {
        self.objects.is_none()
    }

    /// The node was removed.
    pub(super) fn forget(&mut self) {
        self.objects = None;
        self.needed = None;
        self.retained.clear();
        self.forget_broker();
    }

    /// Nobody knows what the broker has.
    pub(super) fn forget_broker(&mut self) {
        self.at_broker.clear();
        self.is_published = false;
    }
}

impl Record {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record is plain data")
    }
}

pub(super) fn key(node: &NodeId) -> String {
    format!("{PREFIX}{node}")
}

/// The digest of an object list.
pub(super) fn digest_of<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Digest {
    let entries: Vec<&Entry> = entries.into_iter().collect();
    Digest::of(&serde_json::to_vec(&entries).expect("entries are plain data"))
}

/// One node's record.
pub(super) fn read(store: &Store, node: &NodeId) -> Result<Option<Record>, ReadError> {
    let key = key(node);
    let Some(value) = store.get(&key)? else { return Ok(None) };
    serde_json::from_slice(&value).map(Some).map_err(|_| ReadError::Damaged { key })
}

/// All nodes' records, without the manifests themselves.
pub(super) fn load(store: &Store) -> Result<BTreeMap<NodeId, Known>, OpenError> {
    let mut nodes = BTreeMap::new();
    for (key, value) in store.scan(PREFIX)? {
        let Ok(node) = key[PREFIX.len()..].parse::<NodeId>() else { continue };
        let malformed = |reason: String| OpenError::Malformed { node: node.clone(), reason };
        let record: Record = serde_json::from_slice(&value).map_err(|error| malformed(error.to_string()))?;
        let objects = if record.manifest.is_empty() {
            None
        } else {
            let signed = SignedManifest::from_bytes(record.manifest.as_bytes());
            let signed = signed.map_err(|error| malformed(error.to_string()))?;
            // The hub's own, from its own store: the signature is the nodes' to check.
            let manifest: Manifest =
                serde_json::from_str(&signed.payload).map_err(|error| malformed(error.to_string()))?;
            Some(digest_of(&manifest.objects))
        };
        let known = Known {
            version: record.version,
            digest: record.digest,
            objects,
            retained: record.blobs,
            needed: None,
            at_broker: Digests::new(),
            is_published: false,
        };
        nodes.insert(node, known);
    }
    Ok(nodes)
}
