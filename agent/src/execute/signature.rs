//! Whether a revision's image may be used, by the keys and signatures that came with it. Asks nobody. Must not know how an image is
//! fetched: what is signed is its digest, so this is decided before a byte of it is.

use tombolo_api::Digest;
use tombolo_api::desired::RevisionObject;
use tombolo_api::verification::{ImageSignatures, Policy, Verification};
use tombolo_oci::signature::Keys;

use super::{Trouble, image};

/// Refuses an image that has to be signed and is not. `Ok(Some)`: it is not, and its namespace wants to be told only.
pub(super) fn check(object: &RevisionObject) -> Result<Option<Trouble>, Trouble> {
    let Some(verification) = &object.verification else { return Ok(None) };
    let (_, digest) = image::reference(object)?;
    match (judge(&object.namespace, verification, &digest), verification.policy) {
        (Ok(()), _) => Ok(None),
        (Err(trouble), Policy::Require) => Err(Trouble {
            message: format!("{}; no instance of it is started, those that run go on", trouble.message),
            ..trouble
        }),
        (Err(trouble), Policy::Warn) => {
            let message =
                format!("{}; it runs all the same, since the namespace only warns", trouble.message);
            Ok(Some(Trouble { message, ..trouble }))
        }
    }
}

fn judge(namespace: &str, verification: &Verification, image: &Digest) -> Result<(), Trouble> {
    let keys = Keys::of(&verification.keys).map_err(|error| {
        Trouble::new("SignatureKeysInvalid", format!("a key of namespace {namespace}: {error}"))
    })?;
    let ImageSignatures { found, passed_over } = &verification.signatures;
    let Err(fault) = keys.judge(found, image) else { return Ok(()) };
    let expected = keys.names();
    let noted = match passed_over.as_slice() {
        [] => String::new(),
        noted => format!("; passed over: {}", noted.join(", ")),
    };
    let sign = "sign it with `cosign sign --key`";
    Err(match fault {
        None => Trouble::new(
            "ImageNotSigned",
            format!(
                "image {image} has no signature; namespace {namespace} expects one of key {expected}: {sign}{noted}"
            ),
        ),
        Some(fault) => Trouble::new(
            "ImageSignatureInvalid",
            format!(
                "image {image} has no good signature of key {expected}, which namespace {namespace} expects: {fault}: {sign}{noted}"
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    use tombolo_api::serving::{Container, RevisionSpec};
    use tombolo_api::verification::{ImageSignature, TrustedKey};

    use super::*;

    // Made with OpenSSL.
    const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAsZTyV6tPwRcc4DZ2LtwaHy0ikC8UeQIQ1SCLmvS+6IU=\n-----END PUBLIC KEY-----\n";
    const SIGNATURE: &str =
        "P+9ikZbcP/z782ec0w1/OydzH6f8q1e5tpyyNeiDDbA3kVuuPpGdAeRxLjcyNs2mG+U68fSnpG6uMDXfE1ZTDQ==";

    fn payload(image: &Digest) -> String {
        format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"hub/hello"}},
"image":{{"docker-manifest-digest":"{image}"}},"type":"cosign container image signature"}},"optional":null}}"#
        )
        .replace('\n', "")
    }

    fn good() -> ImageSignature {
        let payload = payload(&Digest::of(b"x"));
        ImageSignature { payload, signature: SIGNATURE.into(), payload_type: String::new() }
    }

    fn object(image: &Digest, verification: Option<Verification>) -> RevisionObject {
        let container = Container { image: format!("hub.tombolo/a@{image}"), ..Container::default() };
        RevisionObject {
            namespace: "shop".into(),
            name: "a-00001".into(),
            uid: "u".into(),
            service: "a".into(),
            configuration: "a".into(),
            annotations: Default::default(),
            spec: RevisionSpec { containers: vec![container], ..RevisionSpec::default() },
            verification,
        }
    }

    fn with(policy: Policy, found: Vec<ImageSignature>, passed_over: &[&str]) -> Option<Verification> {
        let passed_over = passed_over.iter().map(|what| (*what).into()).collect();
        let keys = vec![TrustedKey { name: "release".into(), pem: KEY.into() }];
        Some(Verification { policy, keys, signatures: ImageSignatures { found, passed_over } })
    }

    #[test]
    fn only_what_is_signed_may_be_used_where_that_is_required() {
        let image = Digest::of(b"x");
        assert_eq!(check(&object(&image, None)), Ok(None));
        assert_eq!(check(&object(&image, with(Policy::Require, vec![good()], &[]))), Ok(None));
        let tampered = ImageSignature { payload: good().payload.replace("hello", "hallo"), ..good() };
        let other = Digest::of(b"y");
        for (image, found, passed_over, reason, says) in [
            (&image, vec![], &[][..], "ImageNotSigned", "has no signature"),
            (&image, vec![], &["a sigstore bundle"], "ImageNotSigned", "passed over: a sigstore bundle"),
            (&image, vec![tampered.clone()], &[], "ImageSignatureInvalid", "another key"),
            (&other, vec![good()], &[], "ImageSignatureInvalid", "it is of sha256:"),
        ] {
            let refused =
                check(&object(image, with(Policy::Require, found.clone(), passed_over))).unwrap_err();
            assert_eq!(refused.reason, reason);
            for part in
                [says, "release (sha256:", "namespace shop", "cosign sign --key", "those that run go on"]
            {
                assert!(refused.message.contains(part), "{part}: {}", refused.message);
            }
            let warned = check(&object(image, with(Policy::Warn, found, passed_over))).unwrap().unwrap();
            assert_eq!(warned.reason, reason);
            assert!(warned.message.contains("it runs all the same"), "{}", warned.message);
        }
        assert_eq!(check(&object(&image, with(Policy::Require, vec![tampered, good()], &[]))), Ok(None));
    }

    #[test]
    fn keys_that_cannot_be_read_let_nothing_pass() {
        let mut verification = with(Policy::Require, vec![good()], &[]).unwrap();
        verification.keys[0].pem = "x".into();
        let refused = check(&object(&Digest::of(b"x"), Some(verification))).unwrap_err();
        assert_eq!(refused.reason, "SignatureKeysInvalid");
    }
}
