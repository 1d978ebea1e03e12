//! What cosign itself wrote into registries: `cosign.json` has manifests and blobs as they lay in the hub's registry, or where it says
//! so in one that has no API for referrers, each with the public key and the command it was made with. All are of one image.
//! Versions 2.5.0 and 3.1.1 are those of Debian 13 and of Debian's next release; their keys were made by `cosign generate-key-pair`
//! and, but for ECDSA with P-256, by OpenSSL and `cosign import-key-pair`.

use std::collections::BTreeMap;

use tombolo_api::verification::ImageSignatures;

use super::super::attached::Findings;
use super::*;

const IMAGE: &str = "sha256:c55627f850fe7c4c19d08e3bf87045fe0b8cb3eed0822dda0c64d035dfa5683a";

/// One image's signatures, by one call of cosign.
#[derive(Clone, Deserialize)]
struct Vector {
    name: String,
    made: String,
    key: String,
    /// Of the image's referrers, where it is found by them.
    #[serde(default)]
    index: String,
    manifest: String,
    blobs: Vec<String>,
}

fn vectors() -> Vec<Vector> {
    serde_json::from_str(include_str!("cosign.json")).unwrap()
}

fn vector(name: &str) -> Vector {
    vectors().into_iter().find(|vector| vector.name == name).unwrap_or_else(|| panic!("no vector {name}"))
}

impl Vector {
    /// All that is found from its index, or its tag, on.
    fn findings(&self) -> ImageSignatures {
        let mut findings = Findings::default();
        if !self.index.is_empty() {
            let manifests = findings.referrers(self.index.as_bytes());
            if manifests.is_empty() {
                return findings.finish();
            }
            assert_eq!(manifests, [Digest::of(self.manifest.as_bytes())], "{}", self.made);
        }
        self.parts(&mut findings);
        findings.finish()
    }

    /// Reads manifest and blobs.
    fn parts(&self, findings: &mut Findings) {
        let blobs: BTreeMap<Digest, &str> =
            self.blobs.iter().map(|blob| (Digest::of(blob.as_bytes()), blob.as_str())).collect();
        for part in findings.parts(self.manifest.as_bytes()) {
            findings.add(&part, blobs[&part.blob.digest].as_bytes());
        }
    }

    fn keys(&self) -> Keys {
        keys(&[Signer::new().key("another"), named("release", &self.key)])
    }
}

/// Whether the last signature is the key's, and of nothing else and with nothing changed.
fn is_believed(name: &str, signatures: usize, made_by: &str) {
    let vector = vector(name);
    assert!(vector.made.starts_with(made_by), "{}", vector.made);
    let found = vector.findings();
    assert_eq!((found.found.len(), &found.passed_over), (signatures, &vec![]), "{}: {found:?}", vector.made);
    let image = IMAGE.parse().unwrap();
    let signature = found.found.last().unwrap();
    let maker = vector.keys().verify(signature, &image).map(str::to_owned);
    assert!(maker.as_ref().is_ok_and(|maker| maker.starts_with("release (")), "{}: {maker:?}", vector.made);
    let strangers = keys(&[Signer::new().key("another")]);
    assert_eq!(strangers.verify(signature, &image), Err(Fault::OtherKey), "{}", vector.made);
    let other = vector.keys().verify(signature, &Digest::of(b"another")).map(str::to_owned);
    assert_eq!(other, Err(Fault::OtherImage(IMAGE.into())), "{}", vector.made);
    let (from, to) = ("\"optional\":null", "\"optional\":{}");
    let payload = signature.payload.replace(from, to).replace("predicate\":{}", "predicate\":{ }") + "\n";
    let changed = ImageSignature { payload, ..signature.clone() };
    assert_eq!(vector.keys().verify(&changed, &image), Err(Fault::OtherKey), "{}", vector.made);
}

#[test]
fn what_cosign_2_signs_is_believed() {
    for name in ["simple-signing", "annotated", "simple-signing-ed25519", "simple-signing-referrer"] {
        is_believed(name, 1, "cosign 2.5.0: ");
    }
    is_believed("several", 2, "cosign 2.5.0: ");
}

#[test]
fn what_cosign_3_signs_is_believed() {
    for name in ["bundle", "bundle-rsa", "bundle-p384", "simple-signing-of-3"] {
        is_believed(name, 1, "cosign 3.1.1: ");
    }
}

/// Cosign 3 makes Ed25519ph where cosign 2 makes Ed25519.
#[test]
fn ed25519_keys_are_believed_in_either_way_of_signing_with_them() {
    is_believed("simple-signing-ed25519", 1, "cosign 2.5.0: ");
    is_believed("bundle-ed25519", 1, "cosign 3.1.1: ");
    is_believed("simple-signing-ed25519-of-3", 1, "cosign 3.1.1: ");
}

/// The list of referrers is then under a tag, and says of a bundle that it is an artifact without a configuration.
#[test]
fn bundles_are_found_in_registries_without_an_api_for_referrers() {
    assert!(!vector("bundle-without-referrers-api").index.contains("sigstore"));
    is_believed("bundle-without-referrers-api", 1, "cosign 3.1.1: ");
}

#[test]
fn attestations_are_no_signatures() {
    for name in ["attestation-of-2", "attestation"] {
        let attestation = vector(name);
        let says = "an attestation (https://example.com/review)";
        let by_index = attestation.findings();
        let mut findings = Findings::default();
        attestation.parts(&mut findings);
        let by_manifest = findings.finish();
        // Nothing but the statement says so.
        let bare = Vector {
            manifest: attestation.manifest.replace("dev.sigstore.bundle.predicateType", "x"),
            index: String::new(),
            ..attestation.clone()
        };
        for found in [by_index, by_manifest, bare.findings()] {
            assert_eq!(found, ImageSignatures { found: vec![], passed_over: vec![says.into()] }, "{name}");
        }
    }
}

#[test]
fn each_of_several_keys_has_its_signature() {
    let (several, first) = (vector("several"), vector("simple-signing"));
    let image = IMAGE.parse().unwrap();
    let found = several.findings().found;
    let both = keys(&[named("first", &first.key), named("second", &several.key)]);
    let makers: Vec<_> = found.iter().map(|signature| both.verify(signature, &image).unwrap()).collect();
    assert!(makers[0].starts_with("first (") && makers[1].starts_with("second ("), "{makers:?}");
    assert_eq!(both.select(found.clone(), &image), found);
}
