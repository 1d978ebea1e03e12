//! How signatures are found in a registry's documents.

use serde_json::{Value, json};

use super::super::attached::{
    BUNDLE_MAX, Findings, MANIFESTS_MAX, SIGNATURES_MAX, referrers_tag, signature_tag,
};
use super::*;

const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

fn layer(kind: &str, content: &[u8], annotations: Value) -> Value {
    json!({ "mediaType": kind, "digest": Digest::of(content), "size": content.len(), "annotations": annotations })
}

fn manifest(layers: &[Value]) -> Vec<u8> {
    json!({ "schemaVersion": 2, "layers": layers }).to_string().into_bytes()
}

#[test]
fn signatures_lie_under_the_images_digest() {
    let hex = image().hex();
    assert_eq!(signature_tag(&image()).to_string(), format!("sha256-{hex}.sig"));
    assert_eq!(referrers_tag(&image()).to_string(), format!("sha256-{hex}"));
}

#[test]
fn a_signature_manifest_has_a_layer_for_each() {
    let payloads = ["one", "two"];
    let layers = payloads.map(|text| {
        layer(SIMPLE, text.as_bytes(), json!({ "dev.cosignproject.cosign/signature": format!("sig-{text}") }))
    });
    let mut findings = Findings::default();
    let parts = findings.parts(&manifest(&layers));
    assert_eq!(parts.len(), 2);
    for (part, text) in parts.iter().zip(payloads) {
        assert_eq!(part.blob.digest, Digest::of(text.as_bytes()));
        findings.add(part, text.as_bytes());
        // The same is listed twice by registries that have both ways.
        findings.add(part, text.as_bytes());
    }
    let found = findings.finish();
    let pairs: Vec<_> =
        found.found.iter().map(|found| (found.payload.as_str(), found.signature.as_str())).collect();
    assert_eq!(pairs, [("one", "sig-one"), ("two", "sig-two")]);
    assert!(found.passed_over.is_empty());
}

#[test]
fn a_bundle_is_taken_apart() {
    let signer = Signer::new();
    let signed = signer.sign_statement(statement(&image(), PREDICATE));
    let bundle = json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": { "publicKey": { "hint": "x" }, "tlogEntries": [] },
        "dsseEnvelope": {
            "payload": STANDARD.encode(&signed.payload),
            "payloadType": IN_TOTO,
            "signatures": [{ "sig": signed.signature }],
        },
    })
    .to_string();
    let mut findings = Findings::default();
    let layer = layer("application/vnd.dev.sigstore.bundle.v0.3+json", bundle.as_bytes(), json!({}));
    let parts = findings.parts(&manifest(&[layer]));
    findings.add(&parts[0], bundle.as_bytes());
    let found = findings.finish();
    assert_eq!(found.found, [signed]);
    assert!(keys(&[signer.key("k")]).verify(&found.found[0], &image()).is_ok());
}

#[test]
fn what_is_not_understood_is_named() {
    let bundle = |content: Value| {
        let content = content.to_string().into_bytes();
        let kind = "application/vnd.dev.sigstore.bundle.v0.3+json";
        let mut findings = Findings::default();
        let parts = findings.parts(&manifest(&[layer(kind, &content, json!({}))]));
        findings.add(&parts[0], &content);
        findings.finish()
    };
    for (content, says) in [
        (json!({ "messageSignature": {} }), "without a DSSE envelope"),
        (json!([]), "malformed"),
        (json!({ "dsseEnvelope": { "payload": "", "payloadType": "text/plain" } }), "of the kind text/plain"),
        (json!({ "dsseEnvelope": { "payload": "", "payloadType": IN_TOTO } }), "without a signature"),
        (json!({ "dsseEnvelope": { "payload": "/w==", "payloadType": IN_TOTO } }), "no text"),
    ] {
        let found = bundle(content);
        assert!(found.found.is_empty() && found.passed_over[0].contains(says), "{found:?}");
    }
    let mut findings = Findings::default();
    let large = json!({ "mediaType": SIMPLE, "digest": image(), "size": BUNDLE_MAX, "annotations": { "dev.cosignproject.cosign/signature": "x" } });
    let parts = findings.parts(&manifest(&[large, layer("application/pgp-signature", b"", json!({}))]));
    assert!(parts.is_empty());
    let passed_over = findings.finish().passed_over;
    assert!(passed_over[0].contains("of at most 8192") && passed_over[1].contains("pgp"), "{passed_over:?}");
}

#[test]
fn referrers_that_sign_are_looked_into() {
    let digest = |n: usize| Digest::of(n.to_string().as_bytes());
    let referrer = |n, kind: &str| json!({ "digest": digest(n), "artifactType": kind, "size": 1 });
    let index = json!({ "manifests": [
        referrer(1, "application/vnd.dev.cosign.artifact.sig.v1+json"),
        referrer(2, "application/spdx+json"),
        referrer(3, "application/vnd.dev.sigstore.bundle.v0.3+json"),
        referrer(4, "application/vnd.cncf.notary.signature"),
    ]});
    let mut findings = Findings::default();
    assert_eq!(findings.referrers(index.to_string().as_bytes()), [digest(1), digest(3)]);
    assert!(findings.finish().passed_over[0].contains("notary"));
}

#[test]
fn of_many_referrers_the_newest_are_looked_into() {
    let digest = |n: usize| Digest::of(n.to_string().as_bytes());
    let referrer = |n: usize| {
        let created = format!("2026-01-01T00:{:02}:{:02}Z", n / 60, n % 60);
        let annotations = json!({ "org.opencontainers.image.created": created });
        json!({ "digest": digest(n), "annotations": annotations })
    };
    let undated = json!({ "digest": digest(1000) });
    let manifests: Vec<_> = std::iter::once(undated).chain((0..100).map(referrer)).collect();
    let index = json!({ "manifests": manifests }).to_string();
    let newest: Vec<_> = (0..100).rev().map(digest).take(MANIFESTS_MAX).collect();
    assert_eq!(Findings::default().referrers(index.as_bytes()), newest);
}

#[test]
fn everything_is_bounded() {
    let mut findings = Findings::default();
    let referrers: Vec<_> =
        (0..100).map(|n: u32| json!({ "digest": Digest::of(&n.to_be_bytes()) })).collect();
    let index = json!({ "manifests": referrers }).to_string();
    assert_eq!(findings.referrers(index.as_bytes()).len(), MANIFESTS_MAX);
    let layers: Vec<_> = (0..100_u32)
        .map(|n| layer(SIMPLE, &n.to_be_bytes(), json!({ "dev.cosignproject.cosign/signature": "x" })))
        .collect();
    let parts = findings.parts(&manifest(&layers));
    assert_eq!(parts.len(), SIGNATURES_MAX);
    assert_eq!(parts.last().map(|part| part.blob.digest), Some(Digest::of(&99_u32.to_be_bytes())));
    // What refers to an image has as many.
    assert_eq!(findings.parts(&manifest(&layers)).len(), SIGNATURES_MAX);
    assert!(findings.parts(&manifest(&layers)).is_empty());
    // More than was announced.
    findings.add(&parts[0], &vec![b' '; PAYLOAD_MAX + 1]);
    for n in 0..20_u8 {
        findings.pass_over(n.to_string());
    }
    let found = findings.finish();
    assert!(found.found.is_empty() && found.passed_over.len() < 10, "{found:?}");
    for garbage in [&b""[..], b"[]", b"{", b"{\"layers\":1}"] {
        assert!(Findings::default().parts(garbage).is_empty());
        assert!(Findings::default().referrers(garbage).is_empty());
    }
}
