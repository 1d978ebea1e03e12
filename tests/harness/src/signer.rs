//! Somebody who signs images: makes what `cosign sign --key` makes, and pushes it where that does.

use anyhow::{Context as _, Result, ensure};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use tombolo_oci::ImageReference;

use crate::site::HUB;

/// The head of a P-256 key in DER (SubjectPublicKeyInfo); the point follows.
const P256_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// A key pair as `cosign generate-key-pair` makes one.
pub struct Signer {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    pub fn new() -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let secret = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("there is randomness");
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, secret.as_ref(), &random).expect("a key just made");
        Self { pair, random }
    }

    /// `cosign.pub`.
    pub fn public_key(&self) -> String {
        let der = [&P256_HEAD[..], self.pair.public_key().as_ref()].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", base64(&der))
    }

    /// Signs an image of the hub's registry, in place of what was signed before.
    pub async fn sign(&self, image: &str) -> Result<()> {
        let image: ImageReference = image.parse()?;
        let digest = image.target.digest().context("an image is signed by its digest")?;
        let payload = json!({
            "critical": {
                "identity": { "docker-reference": format!("{HUB}:7080/{}", image.repository) },
                "image": { "docker-manifest-digest": digest },
                "type": "cosign container image signature",
            },
            "optional": null,
        })
        .to_string();
        let signature =
            self.pair.sign(&self.random, payload.as_bytes()).ok().context("the payload can be signed")?;
        let registry = Registry { http: crate::load::client(), repository: image.repository.to_string() };
        let config = registry.blob(b"{}").await?;
        let mut layer = registry.blob(payload.as_bytes()).await?;
        layer["mediaType"] = "application/vnd.dev.cosign.simplesigning.v1+json".into();
        layer["annotations"] = json!({ "dev.cosignproject.cosign/signature": base64(signature.as_ref()) });
        registry.manifest(&format!("sha256-{}.sig", digest.hex()), &config, &[layer]).await
    }
}

impl Default for Signer {
    fn default() -> Self {
        Self::new()
    }
}

/// The hub's registry, as anybody pushes to it.
struct Registry {
    http: reqwest::Client,
    repository: String,
}

impl Registry {
    /// Pushes a blob; its descriptor.
    async fn blob(&self, content: &[u8]) -> Result<Value> {
        let digest = tombolo_api::Digest::of(content);
        let base = format!("http://{HUB}:7080");
        let begun = self.http.post(format!("{base}/v2/{}/blobs/uploads/", self.repository)).send().await?;
        let location = begun.headers().get("location").context("an upload has a place")?.to_str()?;
        let place = if location.starts_with('/') { format!("{base}{location}") } else { location.to_owned() };
        let mark = if place.contains('?') { '&' } else { '?' };
        let answer =
            self.http.put(format!("{place}{mark}digest={digest}")).body(content.to_vec()).send().await?;
        ensure!(answer.status() == 201, "the registry takes a blob: {}", answer.status());
        let kind = "application/vnd.oci.image.config.v1+json";
        Ok(json!({ "mediaType": kind, "digest": digest, "size": content.len() }))
    }

    async fn manifest(&self, tag: &str, config: &Value, layers: &[Value]) -> Result<()> {
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers });
        let url = format!("http://{HUB}:7080/v2/{}/manifests/{tag}", self.repository);
        let answer =
            self.http.put(url).header("Content-Type", kind).body(manifest.to_string()).send().await?;
        ensure!(answer.status() == 201, "the registry takes a manifest: {}", answer.status());
        Ok(())
    }
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
