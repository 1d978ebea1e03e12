//! What a manifest or an index names, as far as a registry has to know. Must not know what it is for.

use serde::Deserialize;
use serde_json::Value;
use tombolo_api::Digest;
use tombolo_oci::image::{Document, ImageError, OCI_INDEX, OCI_MANIFEST};

use super::digests::{AnyDigest, Sha512};

/// How digests begin that are not sha256.
const PREFIX: &str = "sha512:";

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
    pub(super) subject: Option<AnyDigest>,
    /// Configuration and layers by digests that name nothing here.
    pub(super) unknown: Vec<Sha512>,
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
            subject: wire.subject.map(|it| it.digest.into()),
            unknown: Vec::new(),
        })
    }

    /// The same for one that may name things by sha512: `resolve` tells what that is here.
    pub(super) fn parse_named(
        digest: &Digest,
        content: &[u8],
        mut resolve: impl FnMut(&Sha512) -> Option<Digest>,
    ) -> Result<Self, ImageError> {
        if !content.windows(PREFIX.len()).any(|window| window == PREFIX.as_bytes()) {
            return Self::parse(digest, content);
        }
        let malformed =
            |error: serde_json::Error| ImageError::Malformed { digest: *digest, reason: error.to_string() };
        let mut document: Value = serde_json::from_slice(content).map_err(malformed)?;
        let mut unknown = Vec::new();
        // Whether the descriptor names something by sha256 now. What is no digest at all is refused later, as it is.
        let mut translate = |descriptor: &mut Value, must_be_here: bool| {
            let Some(other) = other_digest(descriptor) else { return true };
            let here = resolve(&other);
            if let Some(here) = here {
                descriptor["digest"] = here.to_string().into();
            } else if must_be_here {
                unknown.push(other);
            }
            here.is_some()
        };
        if let Some(config) = document.get_mut("config")
            && !translate(config, true)
        {
            config["digest"] = Digest::of(b"").to_string().into();
        }
        let of = |descriptor: &Value| descriptor["mediaType"].as_str().unwrap_or_default().to_owned();
        if let Some(layers) = document.get_mut("layers").and_then(Value::as_array_mut) {
            layers.retain_mut(|layer| {
                let here = !is_elsewhere(&of(layer));
                translate(layer, here)
            });
        }
        if let Some(manifests) = document.get_mut("manifests").and_then(Value::as_array_mut) {
            manifests.retain_mut(|manifest| translate(manifest, false));
        }
        let subject = document.get("subject").and_then(other_digest);
        if let (Some(_), Some(document)) = (subject, document.as_object_mut()) {
            document.remove("subject");
        }
        let contents = Self::parse(digest, &serde_json::to_vec(&document).map_err(malformed)?)?;
        Ok(Self { subject: subject.map(AnyDigest::Sha512).or(contents.subject), unknown, ..contents })
    }
}

fn other_digest(descriptor: &Value) -> Option<Sha512> {
    descriptor.get("digest").and_then(Value::as_str)?.parse().ok()
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

    fn parse(document: &Value) -> Contents {
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
            subject: Some(b.into()),
            unknown: vec![],
        };
        assert_eq!(found, expected);
        let index = parse(
            &json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [blob(DOCKER_MANIFEST, &a)]}),
        );
        assert_eq!((index.media_type.as_str(), index.manifests), (DOCKER_LIST, vec![a]));
    }
    #[test]
    fn other_digests_are_known_or_missing_or_elsewhere() {
        let known = (Sha512::of(b"known"), Digest::of(b"known"));
        let unknown = Sha512::of(b"unknown");
        let read = |document: &Value| {
            let content = serde_json::to_vec(document).unwrap();
            Contents::parse_named(&Digest::of(b"x"), &content, |other| (*other == known.0).then_some(known.1))
        };
        let blob = |media_type: &str, digest: &Sha512| json!({"mediaType": media_type, "digest": digest.to_string(), "size": 1});
        let found = read(&json!({
            "schemaVersion": 2,
            "config": blob("application/vnd.oci.empty.v1+json", &known.0),
            "layers": [
                blob("application/vnd.oci.image.layer.nondistributable.v1.tar", &unknown),
                blob("application/vnd.example", &unknown),
                blob("application/vnd.example", &known.0),
            ],
            "subject": blob(OCI_MANIFEST, &unknown),
        }))
        .unwrap();
        assert_eq!((found.blobs, found.unknown), (vec![known.1; 2], vec![unknown]));
        assert_eq!(found.subject, Some(AnyDigest::Sha512(unknown)));
        let index = json!({"schemaVersion": 2, "manifests": [blob(OCI_MANIFEST, &known.0), blob(OCI_MANIFEST, &unknown)]});
        let found = read(&index).unwrap();
        assert_eq!((found.manifests, found.unknown), (vec![known.1], vec![]));
        let mut wrong = index;
        wrong["manifests"][0]["digest"] = json!("sha512:00");
        assert!(read(&wrong).is_err(), "no digest at all");
    }
}
