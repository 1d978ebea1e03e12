//! A built image: its manifest, and where each of its parts is. Written as an OCI layout, it needs no registry.
//!
//! Must not know how it was built.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use serde_json::json;
use tempfile::TempDir;
use tombolo_api::Digest;
use tombolo_oci::image::OCI_MANIFEST;
use tombolo_oci::{Composition, Layer, Members, RunConfig, write_layer};

use super::NOBODY;
use super::base::Place;
use super::cache::Cache;

#[derive(Debug)]
pub(crate) struct Image {
    pub(super) manifest: Vec<u8>,
    /// Layers, lowest first, and the configuration.
    pub(super) parts: Vec<Part>,
    /// It says itself what runs, told by whoever builds it or by its language.
    pub(crate) has_command: bool,
    /// Parts are in it; it goes with the image.
    scratch: TempDir,
    /// So that nothing is cleaned up that is a part.
    _cache: Option<Cache>,
}

#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) whence: Whence,
}

/// Where content is.
#[derive(Clone, Debug)]
pub(super) enum Whence {
    File(PathBuf),
    Memory(Bytes),
    Registry(Place, Layer),
}

impl Part {
    pub(super) fn is_away(&self) -> bool {
        matches!(self.whence, Whence::Registry(..))
    }
}

impl Image {
    /// Puts an image together from layers, lowest first, and where each is.
    pub(super) fn of_layers(
        layers: Vec<(Layer, Whence)>,
        composition: Composition,
        scratch: TempDir,
        cache: Option<Cache>,
    ) -> Self {
        let composition =
            Composition { layers: layers.iter().map(|(layer, _)| layer.clone()).collect(), ..composition };
        let documents = composition.documents();
        let mut parts: Vec<_> = layers
            .into_iter()
            .map(|(layer, whence)| Part { digest: layer.digest, size: layer.size, whence })
            .collect();
        parts.push(Part {
            digest: Digest::of(&documents.config),
            size: documents.config.len() as u64,
            whence: Whence::Memory(documents.config.into()),
        });
        Self { manifest: documents.manifest, parts, has_command: true, scratch, _cache: cache }
    }

    /// An image that somebody else put together.
    pub(super) fn of_manifest(manifest: Vec<u8>, parts: Vec<Part>, scratch: TempDir, cache: Cache) -> Self {
        Self { manifest, parts, has_command: false, scratch, _cache: Some(cache) }
    }

    /// An image of one static program that is in memory.
    pub(crate) fn of_program(name: &str, content: &[u8]) -> anyhow::Result<Self> {
        let scratch = TempDir::with_prefix("tombolo-build-").context("no temporary directory can be made")?;
        let mut members = Members::default();
        members.add_content(name, content.to_vec(), true)?;
        let config = RunConfig {
            entrypoint: vec![format!("/{name}")],
            user: NOBODY.to_owned(),
            ..RunConfig::default()
        };
        let composition = Composition { config, ..Composition::default() };
        let layer = layer(&members, scratch.path())?;
        Ok(Self::of_layers(vec![layer], composition, scratch, None))
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// Bytes of all parts, compressed.
    pub(crate) fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.size).sum()
    }

    /// Layers and configuration, each once: the same layer may stand in an image twice, as where its base has the same code.
    pub(super) fn blobs(&self) -> impl Iterator<Item = &Part> {
        let mut seen = BTreeSet::new();
        self.parts.iter().filter(move |part| seen.insert(part.digest))
    }

    pub(super) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Writes the image as an OCI layout into `dir`, which must not hold anything else. Blocks.
    pub(super) fn write_layout(&self, dir: &Path, name: &str) -> anyhow::Result<()> {
        let cannot = || format!("{} cannot be written", dir.display());
        let blobs = dir.join("blobs/sha256");
        let other = dir.exists() && !dir.join("oci-layout").is_file();
        if other && fs::read_dir(dir).with_context(cannot)?.next().is_some() {
            bail!("{} holds something that is no image: name an empty or new directory", dir.display());
        }
        fs::create_dir_all(&blobs).with_context(cannot)?;
        // First, so that a layout whose making was broken off is known again.
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).with_context(cannot)?;
        for part in &self.parts {
            let to = blobs.join(part.digest.hex());
            match &part.whence {
                Whence::File(from) => drop(fs::copy(from, &to).with_context(cannot)?),
                Whence::Memory(content) => fs::write(&to, content).with_context(cannot)?,
                Whence::Registry(..) => bail!("layer {} is at the hub only", part.digest),
            }
        }
        let digest = self.digest();
        fs::write(blobs.join(digest.hex()), &self.manifest).with_context(cannot)?;
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": OCI_MANIFEST, "digest": digest, "size": self.manifest.len(),
                "annotations": {"org.opencontainers.image.ref.name": name},
            }],
        });
        fs::write(dir.join("index.json"), index.to_string()).with_context(cannot)
    }
}

/// Writes a layer into a directory that outlives it.
pub(super) fn layer(members: &Members, scratch: &Path) -> anyhow::Result<(Layer, Whence)> {
    let (file, layer) = write_layer(members, scratch)?;
    // It goes with the directory.
    let path = file.keep().context("a layer cannot be kept")?;
    Ok((layer, Whence::File(path)))
}

/// Bytes for a person.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..1_048_576 => format!("{} KiB", bytes / 1024),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        for (bytes, text) in [(3, "3 bytes"), (2048, "2 KiB"), (1_572_864, "1.5 MiB")] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn the_same_program_is_the_same_image_and_has_a_layout() {
        let [one, two] = [(); 2].map(|()| Image::of_program("hello", b"\x7fELF").unwrap());
        assert_eq!(one.manifest, two.manifest);
        assert_ne!(one.digest(), Image::of_program("hello", b"\x7fELF2").unwrap().digest());
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        for _ in 0..2 {
            one.write_layout(&out, "hello:latest").unwrap();
        }
        assert_eq!(fs::read_dir(out.join("blobs/sha256")).unwrap().count(), 3);
        assert!(fs::read_to_string(out.join("index.json")).unwrap().contains(&one.digest().to_string()));
        fs::write(dir.path().join("other"), "").unwrap();
        assert!(one.write_layout(dir.path(), "x").is_err());
    }
}
