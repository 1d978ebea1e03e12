//! What an image is made of: its documents, read through the hub's registry, and its layers, named.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use anyhow::Context as _;
use tombolo_api::Digest;
use tombolo_api::bundle::Descriptor;
use tombolo_oci::image::{self, Document, Entry, MAX_DOCUMENT, Manifest, OCI_INDEX, OCI_MANIFEST};
use tombolo_oci::{HUB_HOST, ImageReference, Platform};

use super::contents::Layer;
use super::fetch;
use crate::exit::WrongUse;
use crate::hub::Hub;

/// An image as it goes into a bundle.
pub(super) struct Image {
    pub(super) descriptor: Descriptor,
    pub(super) documents: BTreeMap<Digest, Vec<u8>>,
    pub(super) layers: BTreeMap<Digest, Layer>,
}

/// A platform as it is typed. `arm` alone is what a node of that kind calls itself.
pub(super) fn platform(text: &str) -> Result<Platform, WrongUse> {
    let parts: Vec<&str> = text.split('/').collect();
    let wrong = || WrongUse(format!("{text:?} is no platform: write it as linux/arm64 or linux/arm/v7"));
    if parts.iter().any(|part| part.is_empty()) {
        return Err(wrong());
    }
    let (os, architecture, variant) = match *parts.as_slice() {
        [os, "arm"] => (os, "arm", Some("v7".to_owned())),
        [os, architecture] => (os, architecture, None),
        [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
        _ => return Err(wrong()),
    };
    Ok(Platform { os: os.to_owned(), architecture: architecture.to_owned(), variant })
}

/// Reads the documents of an image, for these platforms or for all.
pub(super) async fn gather(
    hub: &Hub,
    reference: &ImageReference,
    platforms: Option<&BTreeSet<Platform>>,
) -> anyhow::Result<Image> {
    let digest = reference.target.digest().context("it is not named by digest")?;
    let mut image = Image {
        descriptor: Descriptor::of_image(&reference.to_string(), OCI_MANIFEST, digest, 0),
        documents: BTreeMap::new(),
        layers: BTreeMap::new(),
    };
    let mut next = VecDeque::from([digest]);
    while let Some(digest) = next.pop_front() {
        let path = path(reference, "manifests", &digest);
        let content = fetch::document(hub, &path, &digest, MAX_DOCUMENT).await?;
        let is_first = image.documents.is_empty();
        let kind = match Document::parse(&digest, &content)? {
            Document::Manifest(manifest) => {
                image.add(hub, reference, manifest).await?;
                OCI_MANIFEST
            }
            Document::Index(entries) => {
                // One within another is nothing that a node would run.
                next.extend(is_first.then(|| chosen(&entries, platforms)).transpose()?.unwrap_or_default());
                OCI_INDEX
            }
        };
        if is_first {
            image.descriptor.size = content.len() as u64;
            image.descriptor.media_type = media_type(&content).unwrap_or_else(|| kind.to_owned());
        }
        image.documents.insert(digest, content);
    }
    Ok(image)
}

impl Image {
    async fn add(&mut self, hub: &Hub, reference: &ImageReference, manifest: Manifest) -> anyhow::Result<()> {
        let config = manifest.config.digest;
        let content = fetch::document(hub, &path(reference, "blobs", &config), &config, MAX_DOCUMENT).await?;
        self.documents.insert(config, content);
        for layer in manifest.layers {
            let path = path(reference, "blobs", &layer.digest);
            self.layers.insert(layer.digest, Layer { size: layer.size, path });
        }
        Ok(())
    }
}

/// The manifests of an index that these platforms run.
fn chosen(entries: &[Entry], platforms: Option<&BTreeSet<Platform>>) -> anyhow::Result<BTreeSet<Digest>> {
    match platforms {
        None => Ok(entries.iter().map(|entry| entry.manifest.digest).collect()),
        Some(platforms) => {
            let choose = |platform| Ok(image::choose(entries, platform)?.manifest.digest);
            platforms.iter().map(choose).collect()
        }
    }
}

fn media_type(document: &[u8]) -> Option<String> {
    let document: serde_json::Value = serde_json::from_slice(document).ok()?;
    Some(document.get("mediaType")?.as_str()?.to_owned())
}

/// Images of other registries the hub has, or gets, under their registry's name.
fn path(reference: &ImageReference, what: &str, digest: &Digest) -> String {
    let repository = &reference.repository;
    let elsewhere =
        if reference.host == HUB_HOST { String::new() } else { format!("?ns={}", reference.host) };
    format!("/v2/{repository}/{what}/{digest}{elsewhere}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_as_typed() {
        for (text, shown) in
            [("linux/amd64", "linux/amd64"), ("linux/arm", "linux/arm/v7"), ("linux/arm/v6", "linux/arm/v6")]
        {
            assert_eq!(platform(text).unwrap().to_string(), shown);
        }
        for bad in ["", "linux", "linux/", "/arm64", "linux/arm/", "a/b/c/d"] {
            assert!(platform(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn other_registries_are_asked_through_the_hub() {
        let digest = Digest::of(b"x");
        let of = |name: &str| path(&format!("{name}@{digest}").parse().unwrap(), "blobs", &digest);
        assert_eq!(of("hub.tombolo/default/a"), format!("/v2/default/a/blobs/{digest}"));
        assert_eq!(of("r.example:5000/a/b"), format!("/v2/a/b/blobs/{digest}?ns=r.example:5000"));
    }
}
