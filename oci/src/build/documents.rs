//! The documents of an image that is put together from layers: its configuration and its manifest, written so that the same
//! parts give the same bytes.

use std::collections::BTreeMap;

use serde::Serialize;
use tombolo_api::Digest;

use super::layer::Layer;
use crate::image::{OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST, Platform, RunConfig};

/// When every image was made, as far as its configuration says.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// Everything an image consists of.
#[derive(Clone, Debug)]
pub struct Composition {
    /// Lowest first, those of the image below included.
    pub layers: Vec<Layer>,
    pub config: RunConfig,
    pub platform: Platform,
    /// Labels of the configuration, and annotations of the manifest.
    pub labels: BTreeMap<String, String>,
}

impl Default for Composition {
    fn default() -> Self {
        Self {
            layers: Vec::new(),
            config: RunConfig::default(),
            platform: Platform::host(),
            labels: BTreeMap::new(),
        }
    }
}

/// An image's documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Documents {
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

impl Composition {
    pub fn documents(&self) -> Documents {
        let config = json(&self.config_document());
        let manifest = ManifestDocument {
            schema_version: 2,
            media_type: OCI_MANIFEST,
            config: Descriptor {
                media_type: OCI_CONFIG,
                digest: Digest::of(&config),
                size: config.len() as u64,
            },
            layers: self
                .layers
                .iter()
                .map(|layer| Descriptor {
                    media_type: &layer.media_type,
                    digest: layer.digest,
                    size: layer.size,
                })
                .collect(),
            annotations: &self.labels,
        };
        let manifest = json(&manifest);
        Documents { config, manifest }
    }

    fn config_document(&self) -> ConfigDocument<'_> {
        let (run, platform) = (&self.config, &self.platform);
        ConfigDocument {
            created: CREATED,
            architecture: &platform.architecture,
            variant: platform.variant.as_deref(),
            os: &platform.os,
            config: RunDocument {
                user: &run.user,
                exposed_ports: run.exposed_ports.iter().map(|port| (port.as_str(), Empty {})).collect(),
                env: &run.env,
                entrypoint: &run.entrypoint,
                cmd: &run.cmd,
                working_dir: &run.workdir,
                labels: &self.labels,
                stop_signal: run.stop_signal.as_deref(),
            },
            rootfs: RootFs {
                kind: "layers",
                diff_ids: self.layers.iter().map(|layer| layer.diff_id).collect(),
            },
        }
    }
}

/// What an OCI manifest calls a layer that another manifest calls so: Docker has names of its own for the same things.
pub fn oci_layer_type(media_type: &str) -> &str {
    match media_type {
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => OCI_LAYER_GZIP,
        "application/vnd.docker.image.rootfs.diff.tar" => "application/vnd.oci.image.layer.v1.tar",
        other => other,
    }
}

// The documents, in the order in which their members are written: a digest depends on it.

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ManifestDocument<'a> {
    schema_version: u32,
    media_type: &'static str,
    config: Descriptor<'a>,
    layers: Vec<Descriptor<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    media_type: &'a str,
    digest: Digest,
    size: u64,
}

#[derive(Serialize)]
struct ConfigDocument<'a> {
    created: &'static str,
    architecture: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a str>,
    os: &'a str,
    config: RunDocument<'a>,
    rootfs: RootFs,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RunDocument<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    user: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    exposed_ports: BTreeMap<&'a str, Empty>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    env: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    entrypoint: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    cmd: &'a [String],
    #[serde(skip_serializing_if = "str::is_empty")]
    working_dir: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_signal: Option<&'a str>,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: &'static str,
    diff_ids: Vec<Digest>,
}

fn json(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("a document is plain data")
}
