//! How signatures lie in a registry: under the tag `sha256-<hex>.sig` in the image's own repository, or as manifests that name the
//! image as their subject. Reads documents; fetches nothing.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tombolo_api::Digest;
use tombolo_api::verification::{ImageSignature, ImageSignatures};

use super::{IN_TOTO, PAYLOAD_MAX, PREDICATE, excerpt, predicate_type};
use crate::image::{Blob, MAX_DOCUMENT};
use crate::reference::{Tag, Target};

/// Manifests that refer to one image and are looked into, the newest: signatures, beside lists of contents and attestations.
pub const MANIFESTS_MAX: usize = 64;

/// Signatures of one manifest that are looked at, the last: cosign adds one each time it is asked to.
pub const SIGNATURES_MAX: usize = 64;

/// Signatures of one image that are looked at: as many under its tag as in what refers to it.
const ALL_SIGNATURES_MAX: usize = 2 * SIGNATURES_MAX;

/// Largest bundle, bytes: a statement, and what a transparency log says of it.
pub const BUNDLE_MAX: u64 = 64 * 1024;

/// What was passed over, as far as it is told.
const PASSED_OVER_MAX: usize = 4;

const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";
/// On the manifest of a bundle, what its statement says of the image.
const PREDICATE_TYPE: &str = "dev.sigstore.bundle.predicateType";
/// What a manifest without a configuration has in its place. Where a registry has no API for referrers, cosign lists this as what
/// a bundle is.
const EMPTY_CONFIG: &str = "application/vnd.oci.empty.v1+json";
/// When something was made, RFC 3339.
const CREATED: &str = "org.opencontainers.image.created";

/// Where cosign puts an image's signatures.
pub fn signature_tag(image: &Digest) -> Target {
    tag(format!("sha256-{}.sig", image.hex()))
}

/// Where referrers are listed by registries that have no API for it.
pub fn referrers_tag(image: &Digest) -> Target {
    tag(format!("sha256-{}", image.hex()))
}

fn tag(text: String) -> Target {
    Target::Tag(text.parse::<Tag>().expect("digits and letters, and not many"))
}

/// A signature whose content is in a blob that is still to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub blob: Blob,
    form: Form,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// The blob is the payload; this is its signature.
    Simple(String),
    Bundle,
}

impl Part {
    /// Most bytes that its blob may have.
    pub fn limit(&self) -> u64 {
        match self.form {
            Form::Simple(_) => PAYLOAD_MAX as u64,
            Form::Bundle => BUNDLE_MAX,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    artifact_type: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// What is found of one image's signatures, piece by piece.
#[derive(Debug, Default)]
pub struct Findings {
    signatures: Vec<ImageSignature>,
    passed_over: Vec<String>,
    parts: usize,
}

impl Findings {
    /// The manifests that an index of referrers lists and that may have signatures.
    pub fn referrers(&mut self, index: &[u8]) -> Vec<Digest> {
        #[derive(Deserialize)]
        struct Index {
            #[serde(default)]
            manifests: Vec<Descriptor>,
        }
        // What is no index lists nothing.
        let Ok(index) = serde_json::from_slice::<Index>(index) else { return Vec::new() };
        let may_sign = |referrer: &Descriptor| {
            self.note_unknown(&referrer.artifact_type);
            // Some registries leave the type out.
            let may = ["", EMPTY_CONFIG].contains(&referrer.artifact_type.as_str())
                || is_known(&referrer.artifact_type);
            may && !self.attests(&referrer.annotations)
        };
        let mut signing: Vec<_> = index.manifests.into_iter().filter(may_sign).collect();
        // With a key that is new: the newest.
        signing.sort_by(|a, b| b.annotations.get(CREATED).cmp(&a.annotations.get(CREATED)));
        let signing = signing.into_iter();
        signing.map(|referrer| referrer.digest).take(MANIFESTS_MAX).collect()
    }

    /// Whether a manifest calls itself a bundle that tells something of the image, and not that it is signed.
    fn attests(&mut self, annotations: &BTreeMap<String, String>) -> bool {
        let other = annotations.get(PREDICATE_TYPE).filter(|kind| *kind != PREDICATE);
        other.inspect(|kind| self.pass_over(attestation(kind))).is_some()
    }

    /// Notes what calls itself a signature and is of another kind.
    fn note_unknown(&mut self, artifact_type: &str) {
        if artifact_type.contains("signature") && !is_known(artifact_type) {
            self.pass_over(format!("a signature of the kind {}", excerpt(artifact_type)));
        }
    }

    /// What has to be read of the signatures in a manifest.
    pub fn parts(&mut self, manifest: &[u8]) -> Vec<Part> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Manifest {
            #[serde(default)]
            artifact_type: String,
            #[serde(default)]
            annotations: BTreeMap<String, String>,
            #[serde(default)]
            layers: Vec<Descriptor>,
        }
        let Ok(manifest) = serde_json::from_slice::<Manifest>(manifest) else { return Vec::new() };
        self.note_unknown(&manifest.artifact_type);
        if self.attests(&manifest.annotations) {
            return Vec::new();
        }
        let mut parts = Vec::new();
        for layer in manifest.layers {
            let kind = layer.media_type.as_str();
            let form = match (layer.annotations.get(SIGNATURE), kind) {
                (Some(signature), SIMPLE_SIGNING) => Form::Simple(signature.clone()),
                _ if kind.starts_with(BUNDLE) => Form::Bundle,
                _ if kind.contains("sign") => {
                    self.pass_over(format!("a signature of the kind {}", excerpt(kind)));
                    continue;
                }
                // A list of contents, an attestation.
                _ => continue,
            };
            let part = Part { blob: Blob { digest: layer.digest, size: layer.size }, form };
            if part.blob.size > part.limit() {
                self.pass_over(format!(
                    "a signature of {} bytes, of at most {}",
                    part.blob.size,
                    part.limit()
                ));
            } else {
                parts.push(part);
            }
        }
        let room = SIGNATURES_MAX.min(ALL_SIGNATURES_MAX - self.parts);
        let parts = parts.split_off(parts.len().saturating_sub(room));
        self.parts += parts.len();
        parts
    }

    /// Takes in the content of a part's blob.
    pub fn add(&mut self, part: &Part, content: &[u8]) {
        let read = match &part.form {
            _ if content.len() as u64 > part.limit().min(MAX_DOCUMENT) => {
                Err("a signature that is too large".into())
            }
            Form::Simple(signature) => simple(signature, content),
            Form::Bundle => bundle(content),
        };
        match read {
            Ok(signature) if self.signatures.contains(&signature) => {}
            Ok(signature) => self.signatures.push(signature),
            Err(what) => self.pass_over(what),
        }
    }

    /// A part whose blob cannot be had.
    pub fn pass_over(&mut self, what: String) {
        if self.passed_over.len() < PASSED_OVER_MAX && !self.passed_over.contains(&what) {
            self.passed_over.push(what);
        }
    }

    /// All that was found.
    pub fn finish(self) -> ImageSignatures {
        ImageSignatures { found: self.signatures, passed_over: self.passed_over }
    }
}

fn is_known(artifact_type: &str) -> bool {
    artifact_type.contains("cosign") || artifact_type.starts_with(BUNDLE)
}

fn attestation(kind: &str) -> String {
    format!("an attestation ({})", excerpt(kind))
}

fn simple(signature: &str, content: &[u8]) -> Result<ImageSignature, String> {
    let payload = std::str::from_utf8(content).map_err(|_| "a payload that is no text")?;
    Ok(ImageSignature {
        payload: payload.to_owned(),
        signature: signature.to_owned(),
        payload_type: String::new(),
    })
}

fn bundle(content: &[u8]) -> Result<ImageSignature, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Bundle {
        dsse_envelope: Option<Envelope>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Envelope {
        payload: String,
        payload_type: String,
        #[serde(default)]
        signatures: Vec<Signature>,
    }
    #[derive(Deserialize)]
    struct Signature {
        sig: String,
    }
    let bundle: Bundle =
        serde_json::from_slice(content).map_err(|_| "a sigstore bundle that is malformed")?;
    let envelope = bundle.dsse_envelope.ok_or("a sigstore bundle without a DSSE envelope")?;
    if envelope.payload_type != IN_TOTO {
        return Err(format!(
            "a sigstore bundle with a payload of the kind {}",
            excerpt(&envelope.payload_type)
        ));
    }
    let payload = STANDARD.decode(&envelope.payload).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let payload = payload.ok_or("a sigstore bundle with a payload that is no text")?;
    if let Some(other) = predicate_type(&payload).filter(|kind| kind != PREDICATE) {
        return Err(attestation(&other));
    }
    // An envelope may have several; cosign makes one.
    let signature =
        envelope.signatures.into_iter().next().ok_or("a sigstore bundle without a signature")?.sig;
    Ok(ImageSignature { payload, signature, payload_type: envelope.payload_type })
}
