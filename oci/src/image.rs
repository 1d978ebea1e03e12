//! Image documents: manifests, indexes and configurations, of OCI and of Docker's schema 2, and what an image in the
//! store is made of.
//!
//! Must not know registries. Nothing is asked of any network here: [`summary`] answers from the store alone.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;
use tombolo_api::Digest;

use crate::store::{Store, StoreError};

/// The distribution specification's bound of a manifest, which a configuration keeps too.
pub const MAX_DOCUMENT: u64 = 4 << 20;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Layers of one image: overlayfs takes 500 lower directories.
const MAX_LAYERS: usize = 500;

/// What a machine runs, or an image is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Platform {
    pub os: String,
    /// In Go's spelling: `amd64`, `arm64`, `arm`.
    pub architecture: String,
    /// Such as `v7` of `arm`; none means the architecture's baseline.
    pub variant: Option<String>,
}

/// How an image wants to be run. Names follow the image specification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// `user`, `uid`, or either with `:group`; empty means root.
    pub user: String,
    /// Empty means `/`.
    pub workdir: String,
    /// `8080/tcp`.
    pub exposed_ports: Vec<String>,
    pub stop_signal: Option<String>,
}

/// An image that is complete in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSummary {
    /// The digest by which the image was asked for: of its manifest, or of an index that leads to it.
    pub digest: Digest,
    /// The digest of the manifest for this platform.
    pub manifest: Digest,
    pub config: RunConfig,
    pub platform: Platform,
    /// Overlay lower directories, topmost first, each once, as in overlayfs's `lowerdir`.
    pub layers: Vec<PathBuf>,
    /// Diff ids, in the order of `layers`.
    pub diff_ids: Vec<Digest>,
    /// Every blob of the image, documents included: what must not be collected while it is wanted.
    pub blobs: BTreeSet<Digest>,
}

/// A manifest or an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    Manifest(Manifest),
    Index(Vec<Entry>),
}

/// A manifest: a configuration and layers, lowest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub config: Blob,
    pub layers: Vec<Blob>,
}

/// A blob as a document names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    pub digest: Digest,
    pub size: u64,
}

/// A manifest as an index names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub manifest: Blob,
    pub platform: Option<Platform>,
}

/// What a configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub platform: Platform,
    pub run: RunConfig,
    /// Lowest first.
    pub diff_ids: Vec<Digest>,
}

/// Why content is not an image for this machine.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("{digest} is not a valid image document: {reason}")]
    Malformed { digest: Digest, reason: String },
    #[error(
        "the image is for {} but this machine is {node}: build it for {node}, or choose a node of the image's platform",
        list(.image)
    )]
    Platform { node: Platform, image: Vec<Platform> },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Platform {
    /// The machine this program was compiled for.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            other => other,
        };
        let variant = (architecture == "arm").then(|| "v7".to_string());
        Self { os: std::env::consts::OS.into(), architecture: architecture.into(), variant }
    }

    /// Whether this machine runs images for `image`, and how well: higher is better.
    fn runs(&self, image: &Self) -> Option<u32> {
        if self.os != image.os || self.architecture != image.architecture {
            return None;
        }
        let (node, wanted) = (level(self), level(image));
        (wanted <= node).then_some(wanted)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl Document {
    /// Reads a manifest or an index. A document that could be both is refused: two readers would see two images.
    pub fn parse(digest: &Digest, content: &[u8]) -> Result<Self, ImageError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape {
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
            config: Option<serde::de::IgnoredAny>,
            fs_layers: Option<serde::de::IgnoredAny>,
        }
        let malformed = |reason: String| ImageError::Malformed { digest: *digest, reason };
        let shape: Shape = serde_json::from_slice(content).map_err(|error| malformed(error.to_string()))?;
        let is_manifest = shape.layers.is_some() || shape.config.is_some();
        match (is_manifest, shape.manifests.is_some(), shape.fs_layers.is_some()) {
            (true, false, false) => {
                let manifest: ImageManifest =
                    serde_json::from_slice(content).map_err(|error| malformed(error.to_string()))?;
                if manifest.layers().len() > MAX_LAYERS {
                    return Err(malformed(format!("more than {MAX_LAYERS} layers")));
                }
                let layers = manifest.layers().iter().map(blob).collect::<Result<_, _>>();
                Ok(Self::Manifest(Manifest {
                    config: blob(manifest.config()).map_err(malformed)?,
                    layers: layers.map_err(malformed)?,
                }))
            }
            (false, true, false) => {
                let index: ImageIndex =
                    serde_json::from_slice(content).map_err(|error| malformed(error.to_string()))?;
                let entry = |descriptor: &Descriptor| {
                    let platform = descriptor.platform().as_ref().map(|platform| {
                        normal(
                            platform.os().to_string(),
                            platform.architecture().to_string(),
                            platform.variant(),
                        )
                    });
                    Ok(Entry { manifest: blob(descriptor)?, platform })
                };
                let entries = index.manifests().iter().map(entry).collect::<Result<_, _>>();
                Ok(Self::Index(entries.map_err(malformed)?))
            }
            (_, _, true) => Err(malformed("Docker's schema 1 is not supported: push the image again".into())),
            (true, true, _) => Err(malformed("it is a manifest and an index at once".into())),
            (false, false, _) => Err(malformed("it is neither a manifest nor an index".into())),
        }
    }
}

impl Config {
    /// Reads an image configuration.
    pub fn parse(digest: &Digest, content: &[u8]) -> Result<Self, ImageError> {
        let malformed = |reason: String| ImageError::Malformed { digest: *digest, reason };
        let image: ImageConfiguration =
            serde_json::from_slice(content).map_err(|error| malformed(error.to_string()))?;
        let diff_id = |text: &String| text.parse().map_err(|error| malformed(format!("diff id: {error}")));
        let run = image.config().clone().unwrap_or_default();
        Ok(Self {
            platform: normal(image.os().to_string(), image.architecture().to_string(), image.variant()),
            diff_ids: image.rootfs().diff_ids().iter().map(diff_id).collect::<Result<_, _>>()?,
            run: RunConfig {
                entrypoint: run.entrypoint().clone().unwrap_or_default(),
                cmd: run.cmd().clone().unwrap_or_default(),
                env: run.env().clone().unwrap_or_default(),
                user: run.user().clone().unwrap_or_default(),
                workdir: run.working_dir().clone().unwrap_or_default(),
                exposed_ports: run.exposed_ports().clone().unwrap_or_default(),
                stop_signal: run.stop_signal().clone(),
            },
        })
    }

    /// Whether the configuration is for `node` and goes with `manifest`.
    pub fn check(&self, digest: &Digest, manifest: &Manifest, node: &Platform) -> Result<(), ImageError> {
        if node.runs(&self.platform).is_none() {
            return Err(ImageError::Platform { node: node.clone(), image: vec![self.platform.clone()] });
        }
        if self.diff_ids.len() != manifest.layers.len() {
            let (layers, diff_ids) = (manifest.layers.len(), self.diff_ids.len());
            let reason = format!("the manifest has {layers} layers, its configuration {diff_ids}");
            return Err(ImageError::Malformed { digest: *digest, reason });
        }
        Ok(())
    }
}

/// The entry of an index that suits `node` best.
pub fn choose<'a>(entries: &'a [Entry], node: &Platform) -> Result<&'a Entry, ImageError> {
    entries
        .iter()
        .filter_map(|entry| node.runs(entry.platform.as_ref()?).map(|level| (level, entry)))
        // The first of equals, as the specification wants.
        .rev()
        .max_by_key(|(level, _)| *level)
        .map(|(_, entry)| entry)
        .ok_or_else(|| ImageError::Platform {
            node: node.clone(),
            image: entries.iter().filter_map(|entry| entry.platform.clone()).collect(),
        })
}

/// The image `digest` for `node`, if the store has all of it; `None` if something is missing.
pub fn summary(store: &Store, digest: &Digest, node: &Platform) -> Result<Option<ImageSummary>, ImageError> {
    let mut blobs = BTreeSet::from([*digest]);
    let mut manifest_digest = *digest;
    let manifest = loop {
        let Some(content) = document(store, &manifest_digest)? else { return Ok(None) };
        match Document::parse(&manifest_digest, &content)? {
            Document::Manifest(manifest) => break manifest,
            Document::Index(entries) if manifest_digest == *digest => {
                manifest_digest = choose(&entries, node)?.manifest.digest;
                blobs.insert(manifest_digest);
            }
            Document::Index(_) => return Err(nested(&manifest_digest)),
        }
    };
    let Some(content) = document(store, &manifest.config.digest)? else { return Ok(None) };
    let config = Config::parse(&manifest.config.digest, &content)?;
    config.check(&manifest_digest, &manifest, node)?;
    blobs.insert(manifest.config.digest);
    blobs.extend(manifest.layers.iter().map(|layer| layer.digest));
    // A layer that an image has twice is mounted once, which overlayfs insists on: the upper one hides all of the lower.
    let mut seen = BTreeSet::new();
    let diff_ids: Vec<_> =
        config.diff_ids.iter().rev().copied().filter(|diff_id| seen.insert(*diff_id)).collect();
    let layers: Option<Vec<_>> = diff_ids.iter().map(|diff_id| store.layer_path(diff_id)).collect();
    Ok(layers.map(|layers| ImageSummary {
        digest: *digest,
        manifest: manifest_digest,
        config: config.run,
        platform: config.platform,
        layers,
        diff_ids,
        blobs,
    }))
}

/// An index inside an index, which the specification allows and nobody writes for platforms.
pub(crate) fn nested(digest: &Digest) -> ImageError {
    ImageError::Malformed {
        digest: *digest,
        reason: "an index that leads to another index is not supported".into(),
    }
}

/// A document of the store; a damaged one counts as missing, and is fetched again.
fn document(store: &Store, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
    match store.read_blob(digest, MAX_DOCUMENT) {
        Ok(content) => Ok(Some(content)),
        Err(StoreError::Missing(_)) => Ok(None),
        Err(StoreError::DigestMismatch { .. }) => {
            tracing::warn!(%digest, "a document in the image store is damaged, removing it");
            store.remove_blob(digest)?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn blob(descriptor: &Descriptor) -> Result<Blob, String> {
    let digest = descriptor.digest().to_string().parse().map_err(|error| format!("{error}"))?;
    Ok(Blob { digest, size: descriptor.size() })
}

fn normal(os: String, architecture: String, variant: &Option<String>) -> Platform {
    Platform { os, architecture, variant: variant.clone().filter(|variant| !variant.is_empty()) }
}

/// A variant as a number; the baseline of each architecture where none is stated.
fn level(platform: &Platform) -> u32 {
    let baseline = match platform.architecture.as_str() {
        "arm64" => 8,
        "arm" => 5,
        _ => 1,
    };
    let stated = platform.variant.as_deref().map(|variant| variant.trim_start_matches('v'));
    match stated.map(|number| number.split('.').next().unwrap_or_default().parse()) {
        Some(Ok(number)) => number,
        // A variant that is not a version: only an equal one would do, and there is none known.
        Some(Err(_)) => u32::MAX,
        None => baseline,
    }
}

fn list(platforms: &[Platform]) -> String {
    match platforms {
        [] => "no platform at all".into(),
        some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests;
