//! Bundles: one or more nodes' desired state, objects and images in one file that travels without a network.
//!
//! A bundle is an OCI image layout as a tar: `oci-layout`, `index.json`, then `blobs/sha256/<hex>`, each once, the small
//! documents before the layers. `index.json` lists the nodes' signed manifests, their objects, and the images' own manifests.
//! The hub's signature of a node's manifest is the bundle's: objects hang from it by digest, images from the objects, so that
//! nothing else in the file has to be believed. Must not know where a bundle is read from or written to.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::manifest::{Entry, Manifest, Version};
use crate::{Digest, NodeId};

pub mod member;

pub use member::Member;

/// Media type of a signed manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.tombolo.manifest.v1+json";
/// Media type of an object that a manifest names.
pub const OBJECT_TYPE: &str = "application/vnd.tombolo.object.v1+json";
/// Media type of `index.json` itself.
pub const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// Whose manifest it is.
pub const NODE: &str = "dev.tombolo.node";
pub const EPOCH: &str = "dev.tombolo.epoch";
pub const GENERATION: &str = "dev.tombolo.generation";
/// What an object is, as `Kind/namespace/name`.
pub const OBJECT: &str = "dev.tombolo.object";
/// Of the whole: the digest of the `index.json` of the bundle that must have been imported before.
pub const BASE: &str = "dev.tombolo.base";
/// An image's name, by which `skopeo` finds it in an `oci-archive`.
pub const REFERENCE: &str = "org.opencontainers.image.ref.name";

/// The file `oci-layout`.
pub const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// Largest `index.json`: what it takes for a manifest of the most entries.
pub const INDEX_MAX: u64 = 16 * 1024 * 1024;

/// Most members of one bundle: bounds the memory of whoever reads it.
pub const MEMBERS_MAX: usize = 65_536;

/// What `GET /apis/tombolo.dev/v1/nodes/{node}/desired` answers: what is published for a node, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Published {
    /// The signed manifest.
    pub manifest: String,
    /// Its objects, each once, in the manifest's order.
    pub objects: Vec<String>,
}

/// `index.json`. Fields that others add are none of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What `index.json` says of one blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// A node's signed manifest.
    pub fn of_manifest(manifest: &Manifest, signed: &[u8]) -> Self {
        let annotations = [
            (NODE, manifest.node.to_string()),
            (EPOCH, manifest.epoch.to_string()),
            (GENERATION, manifest.generation.to_string()),
        ];
        Self {
            media_type: MANIFEST_TYPE.into(),
            digest: Digest::of(signed),
            size: signed.len() as u64,
            annotations: owned(annotations),
        }
    }

    /// An object that manifests name.
    pub fn of_object(entry: &Entry) -> Self {
        let name = format!("{:?}/{}/{}", entry.kind, entry.namespace, entry.name);
        Self {
            media_type: OBJECT_TYPE.into(),
            digest: entry.digest,
            size: entry.size,
            annotations: owned([(OBJECT, name)]),
        }
    }

    /// An image, by the manifest or index that its digest names.
    pub fn of_image(reference: &str, media_type: &str, digest: Digest, size: u64) -> Self {
        let annotations = owned([(REFERENCE, reference.to_owned())]);
        Self { media_type: media_type.into(), digest, size, annotations }
    }

    /// Whose manifest it says to be, if it is one.
    pub fn node(&self) -> Option<NodeId> {
        (self.media_type == MANIFEST_TYPE).then(|| self.annotations.get(NODE)?.parse().ok()).flatten()
    }

    /// Where the manifest says to stand in the order of manifests.
    pub fn version(&self) -> Option<Version> {
        let number = |key| self.annotations.get(key)?.parse().ok();
        Some(Version { epoch: number(EPOCH)?, generation: number(GENERATION)? })
    }
}

impl Index {
    /// What is inside, in the order given; no blob is listed twice under one name.
    pub fn new(descriptors: impl IntoIterator<Item = Descriptor>, base: Option<&Digest>) -> Self {
        let mut seen = BTreeSet::new();
        let mut manifests: Vec<Descriptor> = descriptors.into_iter().collect();
        manifests.retain(|descriptor| seen.insert((descriptor.digest, descriptor.annotations.clone())));
        let annotations = base.map(|base| (BASE.to_owned(), base.to_string())).into_iter().collect();
        Self { schema_version: 2, media_type: INDEX_TYPE.into(), manifests, annotations }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an index is plain data")
    }

    /// The signed manifest for `node`.
    pub fn manifest_of(&self, node: &NodeId) -> Option<&Descriptor> {
        self.manifests.iter().find(|descriptor| descriptor.node().as_ref() == Some(node))
    }

    /// The nodes it is for.
    pub fn nodes(&self) -> BTreeSet<NodeId> {
        self.manifests.iter().filter_map(Descriptor::node).collect()
    }

    /// The bundle that this one goes on from.
    pub fn base(&self) -> Option<&str> {
        self.annotations.get(BASE).map(String::as_str)
    }
}

fn owned<const N: usize>(pairs: [(&str, String); N]) -> BTreeMap<String, String> {
    pairs.map(|(key, value)| (key.to_owned(), value)).into()
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::manifest::{FORMAT, ObjectKind, SignedManifest};

    fn index() -> Index {
        let entry = Entry {
            kind: ObjectKind::Route,
            namespace: "default".into(),
            name: "a".into(),
            digest: Digest::of(b"object"),
            size: 6,
        };
        let manifest = Manifest {
            format: FORMAT,
            node: "press-7".parse().unwrap(),
            generation: 3,
            epoch: 1,
            hub_time_s: 1_700_000_000,
            objects: vec![entry.clone()],
        };
        let signed = SignedManifest::sign(&manifest, &SigningKey::from_bytes(&[7; 32])).to_bytes();
        let image = Digest::of(b"image");
        let image =
            Descriptor::of_image(&format!("hub.tombolo/default/a@{image}"), "application/x", image, 5);
        let manifest = Descriptor::of_manifest(&manifest, &signed);
        Index::new([manifest, Descriptor::of_object(&entry), Descriptor::of_object(&entry), image], None)
    }

    #[test]
    fn the_encoding_is_stable_and_says_who_it_is_for() {
        let index = index();
        let text = String::from_utf8(index.to_bytes()).unwrap();
        let start =
            r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"#;
        assert!(text.starts_with(start), "{text}");
        assert_eq!(Digest::of(text.as_bytes()).short(), "73af33416623", "{text}");
        assert_eq!(serde_json::from_str::<Index>(&text).unwrap(), index);
        assert_eq!(index.manifests.len(), 3, "an object that two nodes have is listed once");
        let node = "press-7".parse().unwrap();
        let found = index.manifest_of(&node).unwrap();
        assert_eq!(found.version(), Some(Version { epoch: 1, generation: 3 }));
        assert_eq!(index.nodes(), BTreeSet::from([node]));
        assert!(index.manifest_of(&"press-8".parse().unwrap()).is_none());
    }
}
