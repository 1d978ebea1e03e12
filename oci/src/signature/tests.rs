//! What is a signature of an image, and what is none: tables, every bit, and what other makers made.

use proptest::prelude::*;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::json;

use super::*;

mod attached;
mod cosign;
mod vectors;

use vectors::*;

/// Signs as `cosign sign --key` does.
struct Signer {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let secret = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, secret.as_ref(), &random).unwrap();
        Self { pair, random }
    }

    fn key(&self, name: &str) -> TrustedKey {
        let head = [
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
            0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ];
        let der = [&head[..], self.pair.public_key().as_ref()].concat();
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
        TrustedKey { name: name.into(), pem }
    }

    fn over(&self, message: &[u8]) -> String {
        STANDARD.encode(self.pair.sign(&self.random, message).unwrap())
    }

    fn sign(&self, payload: String) -> ImageSignature {
        ImageSignature { signature: self.over(payload.as_bytes()), payload, payload_type: String::new() }
    }

    fn sign_statement(&self, statement: String) -> ImageSignature {
        let mut signature =
            ImageSignature { payload: statement, signature: String::new(), payload_type: IN_TOTO.into() };
        signature.signature = self.over(&signed_bytes(&signature));
        signature
    }
}

fn image() -> Digest {
    Digest::of(b"x")
}

fn payload(image: &Digest) -> String {
    format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"hub/hello"}},
"image":{{"docker-manifest-digest":"{image}"}},"type":"cosign container image signature"}},"optional":null}}"#
    )
    .replace('\n', "")
}

fn statement(image: &Digest, predicate: &str) -> String {
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{ "name": "hub/hello", "digest": { "sha256": image.hex() } }],
        "predicateType": predicate,
        "predicate": {},
    })
    .to_string()
}

fn keys(keys: &[TrustedKey]) -> Keys {
    Keys::of(keys).unwrap()
}

fn named(name: &str, pem: &str) -> TrustedKey {
    TrustedKey { name: name.into(), pem: pem.into() }
}

#[test]
fn an_image_that_cosign_signed_is_believed() {
    let host = ["ghcr", "io"].join(".");
    let payload = payload(&COSIGN_IMAGE.parse().unwrap())
        .replace("hub/hello", &format!("{host}/freedomofpress/dangerzone/v1"));
    assert_eq!(
        Digest::of(payload.as_bytes()).to_string(),
        COSIGN_PAYLOAD_DIGEST,
        "it is the one that was signed"
    );
    let signature =
        ImageSignature { payload, signature: COSIGN_SIGNATURE.into(), payload_type: String::new() };
    let keys = keys(&[Signer::new().key("other"), named("dangerzone", COSIGN_KEY)]);
    let maker = keys.verify(&signature, &COSIGN_IMAGE.parse().unwrap()).unwrap();
    assert!(maker.starts_with("dangerzone (sha256:"), "{maker}");
    assert!(matches!(keys.verify(&signature, &image()), Err(Fault::OtherImage(_))));
}

#[test]
fn every_kind_of_key_that_cosign_takes_is_understood() {
    for (kind, key, signature) in [
        ("RSA", RSA_KEY, RSA_SIGNATURE),
        ("P-384 as cosign", P384_KEY, P384_SHA256_SIGNATURE),
        ("P-384 as its curve", P384_KEY, P384_SHA384_SIGNATURE),
        ("Ed25519", ED25519_KEY, ED25519_SIGNATURE),
    ] {
        let made = ImageSignature {
            payload: payload(&image()),
            signature: signature.into(),
            payload_type: String::new(),
        };
        assert!(keys(&[named(kind, key)]).verify(&made, &image()).is_ok(), "{kind}");
        let changed = ImageSignature { payload: made.payload.replace("hello", "hallo"), ..made };
        assert_eq!(keys(&[named(kind, key)]).verify(&changed, &image()), Err(Fault::OtherKey), "{kind}");
    }
}

#[test]
fn any_one_of_several_keys_suffices() {
    let (old, new) = (Signer::new(), Signer::new());
    let both = keys(&[old.key("2025"), new.key("2026")]);
    for (signer, name) in [(&old, "2025"), (&new, "2026")] {
        let signed = signer.sign(payload(&image()));
        assert!(both.verify(&signed, &image()).unwrap().starts_with(name));
    }
    let signed = old.sign(payload(&image()));
    assert_eq!(keys(&[new.key("2026")]).verify(&signed, &image()), Err(Fault::OtherKey));
}

#[test]
fn what_is_no_signature_of_the_image_is_refused_with_the_reason() {
    let signer = Signer::new();
    let good = signer.sign(payload(&image()));
    let keys = keys(&[signer.key("k")]);
    assert!(keys.verify(&good, &image()).is_ok());
    let with = |signature: &str| ImageSignature { signature: signature.into(), ..good.clone() };
    let der = STANDARD.decode(&good.signature).unwrap();
    let mut longer = der.clone();
    longer.push(0);
    for (case, made, says) in [
        ("another image", signer.sign(payload(&Digest::of(b"y"))), "it is of sha256:"),
        (
            "another type",
            signer.sign(payload(&image()).replace("cosign container", "my")),
            "of the type my image",
        ),
        ("no JSON", signer.sign("hello".into()), "no simple signing"),
        (
            "a payload without a digest",
            signer.sign(r#"{"critical":{"type":"x"}}"#.into()),
            "no simple signing",
        ),
        ("too large", signer.sign(payload(&image()) + &" ".repeat(PAYLOAD_MAX)), "more than 8192"),
        ("no base64", with("MEUC*"), "not base64"),
        ("base64 with a line break", with(&good.signature.replacen('E', "E\n", 1)), "not base64"),
        ("no DER", with("AAAA"), "another key"),
        ("empty", with(""), "another key"),
        ("cut off", with(&STANDARD.encode(&der[..der.len() - 1])), "another key"),
        ("with something behind it", with(&STANDARD.encode(longer)), "another key"),
        ("far too long", with(&"A".repeat(4096)), "more than 1024"),
        (
            "an envelope of another kind",
            ImageSignature { payload_type: "text/plain".into(), ..good.clone() },
            "not understood",
        ),
        (
            "simple signing that says it is a statement",
            ImageSignature { payload_type: IN_TOTO.into(), ..good.clone() },
            "no statement",
        ),
    ] {
        let fault = keys.verify(&made, &image()).unwrap_err().to_string();
        assert!(fault.contains(says), "{case}: {fault}");
    }
}

#[test]
fn a_statement_in_an_envelope_signs_the_image_it_names() {
    let signer = Signer::new();
    let keys = keys(&[signer.key("k")]);
    let good = signer.sign_statement(statement(&image(), PREDICATE));
    assert!(keys.verify(&good, &image()).is_ok());
    for (case, made, says) in [
        ("of another", signer.sign_statement(statement(&Digest::of(b"y"), PREDICATE)), "it is of sha256:"),
        (
            "an attestation, by the same key",
            signer.sign_statement(statement(&image(), "https://slsa.dev/provenance/v1")),
            "attests https://slsa.dev",
        ),
        (
            "without the envelope's prefix",
            {
                let bare = signer.sign(good.payload.clone());
                ImageSignature { payload_type: IN_TOTO.into(), ..bare }
            },
            "another key",
        ),
    ] {
        let fault = keys.verify(&made, &image()).unwrap_err().to_string();
        assert!(fault.contains(says), "{case}: {fault}");
    }
}

#[test]
fn of_many_signatures_one_suffices_and_of_bad_ones_the_most_telling_fault_is_said() {
    let (mine, stranger) = (Signer::new(), Signer::new());
    let keys = keys(&[mine.key("mine")]);
    let elsewhere = || mine.sign(payload(&Digest::of(b"y")));
    let by = |signer: &Signer| signer.sign(payload(&image()));
    assert_eq!(keys.judge(&[], &image()), Err(None));
    assert!(keys.judge(&[elsewhere(), by(&stranger), by(&mine)], &image()).unwrap().starts_with("mine ("));
    assert!(matches!(keys.judge(&[elsewhere()], &image()), Err(Some(Fault::OtherImage(_)))));
    for bad in [[elsewhere(), by(&stranger)], [by(&stranger), elsewhere()]] {
        assert_eq!(keys.judge(&bad, &image()), Err(Some(Fault::OtherKey)));
    }
}

#[test]
fn what_is_kept_is_one_signature_of_each_key_or_else_a_witness() {
    let (mine, next, stranger) = (Signer::new(), Signer::new(), Signer::new());
    let keys = keys(&[mine.key("mine"), next.key("next")]);
    let by = |signer: &Signer| signer.sign(payload(&image()));
    let (first, second, theirs) = (by(&mine), by(&next), by(&stranger));
    let all = vec![theirs.clone(), first.clone(), by(&mine), second.clone()];
    assert_eq!(keys.select(all, &image()), [first, second]);
    assert_eq!(keys.select(vec![theirs.clone(), by(&stranger), by(&stranger)], &image()).len(), 2);
    assert_eq!(keys.select(vec![], &image()), []);
}

#[test]
fn keys_that_cannot_be_used_are_refused_with_what_to_use() {
    let good = Signer::new().key("k").pem;
    for (pem, fault) in [
        ("", KeyError::Pem),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", KeyError::Pem),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", KeyError::Der),
        ("-----BEGIN PUBLIC KEY-----\nA\n-----END PUBLIC KEY-----", KeyError::Der),
        (&good.replacen("MFkw", "MFkx", 1), KeyError::Der),
        (&good.replacen("\n-----END", "AAAA\n-----END", 1), KeyError::Der),
        (P521_KEY, KeyError::Unsupported),
        (RSA_1024_KEY, KeyError::Unsupported),
    ] {
        assert_eq!(PublicKey::from_pem(pem).unwrap_err(), fault, "{pem}");
    }
    assert!(KeyError::Unsupported.to_string().contains("cosign generate-key-pair"));
}

#[test]
fn a_key_is_named_with_its_fingerprint() {
    let unnamed = keys(&[named("", COSIGN_KEY)]).names();
    assert!(unnamed.starts_with("sha256:") && unnamed.len() == 23, "{unnamed}");
    assert_eq!(keys(&[named("release", COSIGN_KEY)]).names(), format!("release ({unnamed})"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_bit_of_payload_or_signature_can_be_other(at in any::<prop::sample::Index>(), bit in 0..8_u8, statement_form: bool) {
        let signer = Signer::new();
        let keys = keys(&[signer.key("k")]);
        let good = match statement_form {
            false => signer.sign(payload(&image())),
            true => signer.sign_statement(statement(&image(), PREDICATE)),
        };
        prop_assert!(keys.verify(&good, &image()).is_ok());
        let flip = |bytes: &mut [u8]| bytes[at.index(bytes.len())] ^= 1 << bit;
        let mut payload = good.payload.clone().into_bytes();
        flip(&mut payload);
        if let Ok(payload) = String::from_utf8(payload) {
            let changed = ImageSignature { payload, ..good.clone() };
            prop_assert!(keys.verify(&changed, &image()).is_err());
        }
        // The bytes of the signature, and the text that they are written as.
        let mut bytes = STANDARD.decode(&good.signature).unwrap();
        flip(&mut bytes);
        let changed = ImageSignature { signature: STANDARD.encode(bytes), ..good.clone() };
        prop_assert!(keys.verify(&changed, &image()).is_err());
        let mut text = good.signature.clone().into_bytes();
        flip(&mut text);
        if let Ok(signature) = String::from_utf8(text) {
            let changed = ImageSignature { signature, ..good.clone() };
            prop_assert!(keys.verify(&changed, &image()).is_err());
        }
    }

    #[test]
    fn nothing_that_is_read_as_a_key_or_a_signature_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----", STANDARD.encode(&bytes));
        let _ = PublicKey::from_pem(&pem);
        let signature = ImageSignature {
            payload: payload(&image()),
            signature: STANDARD.encode(&bytes),
            payload_type: String::new(),
        };
        for key in [COSIGN_KEY, RSA_KEY, P384_KEY, ED25519_KEY] {
            prop_assert!(keys(&[named("", key)]).verify(&signature, &image()).is_err());
        }
    }
}
