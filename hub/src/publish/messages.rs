//! The messages that carry a node's manifest and its objects. Pure.

use tombolo_api::desired::Encoded;
use tombolo_api::frame::{self, Framed};
use tombolo_api::topics::NodeTopics;
use tombolo_api::{Digest, NodeId};

use super::Digests;

/// A retained message; without content it takes away the one that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
}

/// A message that is found by the digest of its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) message: Message,
}

/// The blobs of a manifest, each once, and the manifest itself.
pub(super) fn of(node: &NodeId, objects: &[Encoded], signed: &[u8]) -> (Vec<Blob>, Message) {
    let topics = NodeTopics::of(node);
    let Framed { payload, chunks } = frame::encode(signed);
    let mut parts = chunks;
    for object in objects {
        let framed = frame::encode_blob(&object.bytes);
        parts.push((object.entry.digest, framed.payload));
        parts.extend(framed.chunks);
    }
    let mut seen = Digests::new();
    parts.retain(|(digest, _)| seen.insert(*digest));
    let blob = |(digest, payload)| Blob { digest, message: Message { topic: topics.blob(&digest), payload } };
    (parts.into_iter().map(blob).collect(), Message { topic: topics.manifest(), payload })
}

/// The digests of the blobs of a manifest.
pub(super) fn blobs_of(objects: &[Encoded], signed: &[u8]) -> Digests {
    let mut digests: Digests = frame::encode(signed).chunks.into_iter().map(|(digest, _)| digest).collect();
    for object in objects {
        digests.insert(object.entry.digest);
        if object.bytes.len() > frame::CHUNK_MAX {
            digests.extend(frame::encode_blob(&object.bytes).chunks.into_iter().map(|(digest, _)| digest));
        }
    }
    digests
}
