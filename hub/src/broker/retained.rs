//! The retained messages: by node and topic, each blob once. Knows no session.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use rumqttc::PubAckReason;
use tombolo_api::topics::{self, Leaf};
use tombolo_api::{Digest, NodeId};

/// Most content altogether, bytes. Shared content counts once.
const BYTES_MAX: usize = 256 << 20;

/// Most messages of one node: 20,000 objects, the chunks of their manifest, and more.
const PER_NODE_MAX: usize = 40_000;

#[derive(Default)]
pub(super) struct Retained {
    by_node: BTreeMap<NodeId, BTreeMap<Bytes, Bytes>>,
    /// One copy of each blob, and how many nodes have it retained.
    blobs: HashMap<Digest, (Bytes, usize)>,
    bytes: usize,
}

impl Retained {
    /// Retains a message, or forgets it if it is empty. Returns its content, shared where it can be.
    pub(super) fn keep(
        &mut self,
        owner: &NodeId,
        leaf: &Leaf,
        topic: &Bytes,
        payload: &Bytes,
    ) -> Result<Bytes, PubAckReason> {
        if payload.is_empty() {
            self.forget(owner, leaf, topic);
            return Ok(Bytes::new());
        }
        let of_node = self.by_node.get(owner);
        let known = of_node.and_then(|of_node| of_node.get(topic)).cloned();
        let full = known.is_none() && of_node.is_some_and(|of_node| of_node.len() >= PER_NODE_MAX);
        if full || self.bytes + payload.len() > BYTES_MAX {
            tracing::warn!(node = %owner, "a message is not retained: the broker holds too much already");
            return Err(PubAckReason::QuotaExceeded);
        }
        if let Some(known) = known.filter(|known| known == payload) {
            return Ok(known);
        }
        self.forget(owner, leaf, topic);
        let content = match leaf {
            Leaf::Blob(digest) => self.share(*digest, payload)?,
            _ => {
                self.bytes += payload.len();
                Bytes::copy_from_slice(payload)
            }
        };
        self.by_node.entry(owner.clone()).or_default().insert(topic.clone(), content.clone());
        Ok(content)
    }

    /// The one copy of a blob, with one more node that has it.
    fn share(&mut self, digest: Digest, payload: &Bytes) -> Result<Bytes, PubAckReason> {
        if let Some((blob, holders)) = self.blobs.get_mut(&digest) {
            if blob != payload {
                return Err(PubAckReason::PayloadFormatInvalid);
            }
            *holders += 1;
            return Ok(blob.clone());
        }
        let blob = Bytes::copy_from_slice(payload);
        self.bytes += blob.len();
        self.blobs.insert(digest, (blob.clone(), 1));
        Ok(blob)
    }

    fn forget(&mut self, owner: &NodeId, leaf: &Leaf, topic: &Bytes) {
        let Some(of_node) = self.by_node.get_mut(owner) else { return };
        let Some(content) = of_node.remove(topic) else { return };
        if of_node.is_empty() {
            self.by_node.remove(owner);
        }
        if let Leaf::Blob(digest) = leaf
            && let Some((_, holders)) = self.blobs.get_mut(digest)
        {
            *holders -= 1;
            if *holders > 0 {
                return;
            }
            self.blobs.remove(digest);
        }
        self.bytes -= content.len();
    }

    /// What matches `filter` of one node's messages, or of everybody's.
    pub(super) fn matching<'a>(
        &'a self,
        node: Option<&NodeId>,
        filter: &'a str,
    ) -> Vec<(&'a Bytes, &'a Bytes)> {
        if !rumqttc::has_wildcards(filter) {
            let Some((owner, _)) = topics::parse(filter) else { return Vec::new() };
            let of_node = self.by_node.get(&owner);
            return of_node
                .and_then(|of_node| of_node.get_key_value(filter.as_bytes()))
                .into_iter()
                .collect();
        }
        let of_nodes: Vec<_> = match node {
            Some(node) => self.by_node.get(node).into_iter().collect(),
            None => self.by_node.values().collect(),
        };
        let matches =
            |topic: &Bytes| std::str::from_utf8(topic).is_ok_and(|topic| rumqttc::matches(topic, filter));
        of_nodes.into_iter().flatten().filter(|(topic, _)| matches(topic)).collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_node.values().map(BTreeMap::len).sum()
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
