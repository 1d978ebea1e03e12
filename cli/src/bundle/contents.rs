//! What goes into a bundle: the nodes' signed manifests and objects as the hub publishes them, and what their images are made of.
//!
//! Everything is checked by digest as it comes; the signature is the nodes' to check. Small things are held in memory, layers are
//! only named. Must not know the file.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use tombolo_api::bundle::{Descriptor, Index, Published, REFERENCE};
use tombolo_api::manifest::{Manifest, ObjectKind, SignedManifest};
use tombolo_api::{Digest, NodeId};
use tombolo_oci::{Archive, ImageReference, Platform};

use super::images::{self, Image};
use crate::hub::Hub;
use crate::kinds::{Kind, segment};

/// A node the bundle is for.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    /// What it runs; `None`: it was never seen.
    platform: Option<Platform>,
}

/// A layer, and where it is had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) size: u64,
    /// At the hub's registry.
    pub(super) path: String,
}

/// Everything, in the order of the file.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) index: Index,
    /// Manifests, then objects, then images' documents.
    pub(super) documents: Vec<(Digest, Vec<u8>)>,
    pub(super) layers: BTreeMap<Digest, Layer>,
    /// Layers that are left to another bundle.
    pub(super) left_out: usize,
}

/// Of a revision's object, what is needed here: newer fields are no concern.
#[derive(Deserialize)]
struct Revision {
    spec: Spec,
}

#[derive(Deserialize)]
struct Spec {
    containers: Vec<Container>,
}

#[derive(Deserialize)]
struct Container {
    image: String,
}

/// Platforms of which an image is needed; `None`: of all.
type Platforms = Option<BTreeSet<Platform>>;

/// The nodes that are named, and those with the labels.
pub(super) async fn nodes(hub: &Hub, names: &[String], selector: Option<&str>) -> anyhow::Result<Vec<Node>> {
    let mut found = BTreeMap::new();
    for name in names {
        let node = hub.get(&Kind::Node.item("", name)).await.with_context(|| format!("node {name}"))?;
        let node = Node::of(&node)?;
        found.insert(node.id.clone(), node);
    }
    if let Some(selector) = selector {
        let path = format!("{}?labelSelector={}", Kind::Node.collection(None), segment(selector));
        let list = hub.get(&path).await.with_context(|| format!("nodes with {selector}"))?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        ensure!(!items.is_empty(), "no node has the labels {selector}: `tombolo get nodes` lists them");
        for node in &items {
            let node = Node::of(node)?;
            found.insert(node.id.clone(), node);
        }
    }
    Ok(found.into_values().collect())
}

impl Node {
    fn of(node: &Value) -> anyhow::Result<Self> {
        let id = node["metadata"]["name"].as_str().unwrap_or_default().parse()?;
        let architecture = node["status"]["info"]["architecture"].as_str().filter(|text| !text.is_empty());
        let platform = architecture.map(|architecture| images::platform(&format!("linux/{architecture}")));
        Ok(Self { id, platform: platform.transpose()? })
    }
}

/// What is gathered, before it is put in order.
#[derive(Default)]
struct Gathered {
    listed: Vec<Descriptor>,
    manifests: Vec<(Digest, Vec<u8>)>,
    objects: BTreeMap<Digest, (Descriptor, Vec<u8>)>,
    images: BTreeMap<String, Platforms>,
}

impl Contents {
    pub(super) async fn gather(
        hub: &Hub,
        nodes: &[Node],
        platforms: &[Platform],
        base: Option<&Archive>,
    ) -> anyhow::Result<Self> {
        let mut gathered = Gathered::default();
        for node in nodes {
            gathered.add(hub, node, platforms).await?;
        }
        let Gathered { mut listed, manifests, objects, images } = gathered;
        let (mut image_documents, mut layers) = (BTreeMap::new(), BTreeMap::new());
        listed.extend(objects.values().map(|(descriptor, _)| descriptor.clone()));
        for (name, platforms) in images {
            let image = async {
                let reference: ImageReference = name.parse()?;
                images::gather(hub, &reference, platforms.as_ref()).await
            };
            let Image { descriptor, documents, layers: of_image } =
                image.await.with_context(|| format!("image {name}"))?;
            listed.push(descriptor);
            image_documents.extend(documents);
            layers.extend(of_image);
        }
        let all = layers.len();
        if let Some(base) = base {
            layers.retain(|digest, layer: &mut Layer| base.size(digest) != Some(layer.size));
        }
        let left_out = all - layers.len();
        let index = Index::new(listed, base.filter(|_| left_out > 0).map(|base| &base.id));
        let objects = objects.into_iter().map(|(digest, (_, bytes))| (digest, bytes));
        let documents = manifests.into_iter().chain(objects).chain(image_documents).collect();
        Ok(Self { index, documents, layers, left_out })
    }

    /// For a person.
    pub(super) fn summary(&self) -> String {
        let is_image = |listed: &&Descriptor| listed.annotations.contains_key(REFERENCE);
        let images = self.index.manifests.iter().filter(is_image).count();
        let bytes = super::file::size(self.layers.values().map(|layer| layer.size).sum());
        let left_out = match self.left_out {
            0 => String::new(),
            some => format!(", {some} left to the other bundle"),
        };
        format!("{images} images, {} layers of {bytes}{left_out}", self.layers.len())
    }
}

impl Gathered {
    async fn add(&mut self, hub: &Hub, node: &Node, platforms: &[Platform]) -> anyhow::Result<()> {
        let (signed, manifest, published) = desired(hub, node).await?;
        self.listed.push(Descriptor::of_manifest(&manifest, &signed));
        self.manifests.push((Digest::of(&signed), signed));
        for (entry, text) in manifest.objects.iter().zip(published) {
            if entry.kind == ObjectKind::Revision {
                let revision: Revision = serde_json::from_str(&text)
                    .with_context(|| format!("revision {}/{}", entry.namespace, entry.name))?;
                for container in revision.spec.containers {
                    want(&mut self.images, container.image, node, platforms);
                }
            }
            self.objects.insert(entry.digest, (Descriptor::of_object(entry), text.into_bytes()));
        }
        Ok(())
    }
}

fn want(wanted: &mut BTreeMap<String, Platforms>, image: String, node: &Node, platforms: &[Platform]) {
    let of_node = match platforms {
        [] => node.platform.clone().map(|platform| BTreeSet::from([platform])),
        some => Some(some.iter().cloned().collect()),
    };
    let here = wanted.entry(image).or_insert_with(|| Some(BTreeSet::new()));
    *here = match (here.take(), of_node) {
        (Some(mut here), Some(of_node)) => {
            here.extend(of_node);
            Some(here)
        }
        _ => None,
    };
}

/// The signed manifest of a node, what it says, and its objects' texts, which are what it says.
async fn desired(hub: &Hub, node: &Node) -> anyhow::Result<(Vec<u8>, Manifest, Vec<String>)> {
    let path = format!("{}/desired", Kind::Node.item("", node.id.as_str()));
    let answer = hub.get(&path).await.with_context(|| format!("what node {} should have", node.id))?;
    let published: Published = serde_json::from_value(answer).context("the hub's answer cannot be read")?;
    let signed = SignedManifest::from_bytes(published.manifest.as_bytes())?;
    let manifest: Manifest = serde_json::from_str(&signed.payload).context("the manifest cannot be read")?;
    if manifest.node != node.id || manifest.objects.len() != published.objects.len() {
        bail!("the hub's answer for node {} is not its manifest with its objects", node.id);
    }
    for (entry, text) in manifest.objects.iter().zip(&published.objects) {
        ensure!(
            Digest::of(text.as_bytes()) == entry.digest,
            "the hub gave another {}/{} than the manifest names: try again",
            entry.namespace,
            entry.name
        );
    }
    Ok((published.manifest.into_bytes(), manifest, published.objects))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_was_never_seen_needs_all_variants() {
        let node = |architecture: Option<&str>| {
            let info = architecture.map(|architecture| serde_json::json!({"architecture": architecture}));
            Node::of(&serde_json::json!({"metadata": {"name": "a"}, "status": {"info": info}})).unwrap()
        };
        let (arm, amd, unseen) = (node(Some("arm64")), node(Some("amd64")), node(None));
        let needed = |nodes: &[&Node], platforms: &[Platform]| {
            let mut wanted = BTreeMap::new();
            nodes.iter().for_each(|node| want(&mut wanted, "i".into(), node, platforms));
            wanted.remove("i").unwrap().map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(needed(&[&arm], &[]), Some(vec!["linux/arm64".into()]));
        assert_eq!(needed(&[&arm, &amd, &arm], &[]), Some(vec!["linux/amd64".into(), "linux/arm64".into()]));
        assert_eq!(needed(&[&arm, &unseen, &amd], &[]), None);
        let chosen = [images::platform("linux/arm/v7").unwrap()];
        assert_eq!(needed(&[&unseen, &arm], &chosen), Some(vec!["linux/arm/v7".into()]));
    }
}
