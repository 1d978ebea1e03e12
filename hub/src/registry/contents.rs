//! What a manifest or an index names, as far as a registry has to know. Must not know what it is for.

use serde::Deserialize;
use tombolo_api::Digest;
use tombolo_oci::image::{Document, ImageError, OCI_INDEX, OCI_MANIFEST};

/// What a document names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Its own word for what it is, else what its shape says.
    pub(crate) media_type: String,
    /// Whether it said so itself.
    pub(crate) states_type: bool,
    /// Configuration and layers, those left out that are had elsewhere by licence.
    pub(crate) blobs: Vec<Digest>,
    /// Manifests, of an index.
    pub(crate) manifests: Vec<Digest>,
    /// What it says it belongs to.
    pub(crate) subject: Option<Digest>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Wire {
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Vec<Descriptor>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
}

impl Contents {
    /// Reads a manifest or an index that nodes can read too.
    pub(crate) fn parse(digest: &Digest, content: &[u8]) -> Result<Self, ImageError> {
        Document::parse(digest, content)?;
        let malformed =
            |error: serde_json::Error| ImageError::Malformed { digest: *digest, reason: error.to_string() };
        let wire: Wire = serde_json::from_slice(content).map_err(malformed)?;
        let by_shape = if wire.manifests.is_some() { OCI_INDEX } else { OCI_MANIFEST };
        let here = |descriptor: &&Descriptor| !is_elsewhere(&descriptor.media_type);
        Ok(Self {
            states_type: wire.media_type.is_some(),
            media_type: wire.media_type.unwrap_or_else(|| by_shape.to_owned()),
            blobs: wire.config.iter().chain(wire.layers.iter().filter(here)).map(|it| it.digest).collect(),
            manifests: wire.manifests.iter().flatten().map(|it| it.digest).collect(),
            subject: wire.subject.map(|it| it.digest),
        })
    }
}

/// Layers that must not be passed on: their manifest says where they are.
fn is_elsewhere(media_type: &str) -> bool {
    media_type.contains(".nondistributable.") || media_type.contains(".foreign.")
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tombolo_oci::image::{DOCKER_LIST, DOCKER_MANIFEST};

    use super::*;

    fn parse(document: &serde_json::Value) -> Contents {
        Contents::parse(&Digest::of(b"x"), &serde_json::to_vec(document).unwrap()).unwrap()
    }

    #[test]
    fn tells_what_has_to_be_here() {
        let (a, b, c) = (Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"c"));
        let blob = |media_type: &str, digest: &Digest| json!({"mediaType": media_type, "digest": digest.to_string(), "size": 1});
        let found = parse(&json!({
            "schemaVersion": 2,
            "config": blob("application/vnd.oci.empty.v1+json", &a),
            "layers": [
                blob("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", &b),
                blob("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", &b),
                blob("application/vnd.example", &c),
            ],
            "subject": blob(OCI_MANIFEST, &b),
        }));
        let expected = Contents {
            media_type: OCI_MANIFEST.into(),
            states_type: false,
            blobs: vec![a, c],
            manifests: vec![],
            subject: Some(b),
        };
        assert_eq!(found, expected);
        let index = parse(
            &json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [blob(DOCKER_MANIFEST, &a)]}),
        );
        assert_eq!((index.media_type.as_str(), index.manifests), (DOCKER_LIST, vec![a]));
    }
}
