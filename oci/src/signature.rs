//! Signatures of images as cosign makes them with a key: what counts as one, and whether it was made with a certain key.
//!
//! Two forms are understood: *simple signing*, where the payload is JSON that names the image's digest, and a *sigstore bundle* with
//! a DSSE envelope, where it is an in-toto statement whose subject is the digest. Everything is bounded. It asks nobody: no
//! transparency log, no certificate authority. Must not know where signatures come from ([`attached`] knows how they lie in a
//! registry), nor what becomes of an image without one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tombolo_api::Digest;
use tombolo_api::verification::{ImageSignature, TrustedKey};

pub mod attached;
mod key;

pub use key::{KeyError, PublicKey};

/// Longest payload, bytes. Those of cosign have about 300, and more where somebody annotated what he signed.
pub const PAYLOAD_MAX: usize = 8 * 1024;

/// Longest signature, bytes: of the largest RSA key.
const SIGNATURE_MAX: usize = 1024;

/// What cosign calls its payloads.
const SIMPLE_TYPES: [&str; 2] = ["cosign container image signature", PREDICATE];

/// What says of a statement that it signs an image, and does not merely tell something of it.
const PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";

/// The payload type of statements in DSSE envelopes.
pub const IN_TOTO: &str = "application/vnd.in-toto+json";

/// Why something is no signature of an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("it is malformed: {0}")]
    Malformed(String),
    #[error("it is of {0}")]
    OtherImage(String),
    #[error("it was made with another key, or what was signed has been changed")]
    OtherKey,
}

/// The keys that are believed, with their names.
#[derive(Clone, Debug)]
pub struct Keys(Vec<(String, PublicKey)>);

impl Keys {
    /// Reads the keys.
    pub fn of<'a>(keys: impl IntoIterator<Item = &'a TrustedKey>) -> Result<Self, KeyError> {
        let read = |key: &TrustedKey| {
            let public = PublicKey::from_pem(&key.pem)?;
            let name = match key.name.as_str() {
                "" => public.fingerprint(),
                name => format!("{name} ({})", public.fingerprint()),
            };
            Ok((name, public))
        };
        keys.into_iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// Name and fingerprint of each, for a person.
    pub fn names(&self) -> String {
        self.0.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// The name of the key with which `signature` was made, over `image`.
    pub fn verify(&self, signature: &ImageSignature, image: &Digest) -> Result<&str, Fault> {
        let bytes = checked(signature, image)?;
        let message = signed_bytes(signature);
        let maker = self.0.iter().find(|(_, key)| key.verifies(&message, &bytes));
        maker.map(|(name, _)| name.as_str()).ok_or(Fault::OtherKey)
    }

    /// The name of a key with which one of `signatures` was made over `image`; else what is wrong with them, `None` if there are none.
    pub fn judge(&self, signatures: &[ImageSignature], image: &Digest) -> Result<&str, Option<Fault>> {
        let mut telling = None;
        for signature in signatures {
            match self.verify(signature, image) {
                Ok(maker) => return Ok(maker),
                // One that only lacks the right key says most.
                Err(fault) if telling.is_none() || fault == Fault::OtherKey => telling = Some(fault),
                Err(_) => {}
            }
        }
        Err(telling)
    }

    /// Those of `signatures` that are worth keeping: one of each key, or else, where none is by any key, some that show what there is.
    pub fn select(&self, signatures: Vec<ImageSignature>, image: &Digest) -> Vec<ImageSignature> {
        let mut makers = std::collections::BTreeSet::new();
        let (good, others): (Vec<_>, Vec<_>) = signatures.into_iter().partition(|signature| {
            self.verify(signature, image).is_ok_and(|maker| makers.insert(maker.to_owned()))
        });
        if good.is_empty() { others.into_iter().take(WITNESSES_MAX).collect() } else { good }
    }
}

/// Signatures by other keys that are kept where there is none by the right one: so that a node can say "wrongly signed".
const WITNESSES_MAX: usize = 2;

/// The signature's bytes, once everything about it is right but who made it.
fn checked(signature: &ImageSignature, image: &Digest) -> Result<Vec<u8>, Fault> {
    let malformed = |what: &str| Fault::Malformed(what.to_owned());
    if signature.payload.len() > PAYLOAD_MAX {
        return Err(Fault::Malformed(format!("its payload has more than {PAYLOAD_MAX} bytes")));
    }
    if signature.signature.len() > SIGNATURE_MAX * 4 / 3 + 4 {
        return Err(Fault::Malformed(format!("it has more than {SIGNATURE_MAX} bytes")));
    }
    let bytes = STANDARD.decode(&signature.signature).map_err(|_| malformed("it is not base64"))?;
    match signature.payload_type.as_str() {
        "" => names_in_simple_signing(&signature.payload, image)?,
        IN_TOTO => is_subject(&signature.payload, image)?,
        other => return Err(Fault::Malformed(format!("payloads of type {other:?} are not understood"))),
    }
    Ok(bytes)
}

/// What the key signs.
fn signed_bytes(signature: &ImageSignature) -> Vec<u8> {
    let (kind, payload) = (&signature.payload_type, &signature.payload);
    if kind.is_empty() {
        return payload.clone().into_bytes();
    }
    // DSSE's pre-authentication encoding.
    format!("DSSEv1 {} {kind} {} {payload}", kind.len(), payload.len()).into_bytes()
}

fn names_in_simple_signing(payload: &str, image: &Digest) -> Result<(), Fault> {
    #[derive(Deserialize)]
    struct Payload {
        critical: Critical,
    }
    #[derive(Deserialize)]
    struct Critical {
        image: Image,
        r#type: String,
    }
    #[derive(Deserialize)]
    struct Image {
        #[serde(rename = "docker-manifest-digest")]
        digest: String,
    }
    let payload: Payload = serde_json::from_str(payload)
        .map_err(|error| Fault::Malformed(format!("its payload is no simple signing: {error}")))?;
    let Critical { image: named, r#type } = payload.critical;
    if !SIMPLE_TYPES.contains(&r#type.as_str()) {
        return Err(Fault::Malformed(format!("its payload is of the type {}", excerpt(&r#type))));
    }
    if named.digest == image.to_string() { Ok(()) } else { Err(Fault::OtherImage(excerpt(&named.digest))) }
}

fn is_subject(payload: &str, image: &Digest) -> Result<(), Fault> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Statement {
        subject: Vec<Subject>,
        predicate_type: String,
    }
    #[derive(Deserialize)]
    struct Subject {
        digest: std::collections::BTreeMap<String, String>,
    }
    let statement: Statement = serde_json::from_str(payload)
        .map_err(|error| Fault::Malformed(format!("its payload is no statement: {error}")))?;
    if statement.predicate_type != PREDICATE {
        let kind = excerpt(&statement.predicate_type);
        return Err(Fault::Malformed(format!("it attests {kind}, which is not that the image is signed")));
    }
    let hex = image.hex();
    if statement.subject.iter().any(|subject| subject.digest.get("sha256") == Some(&hex)) {
        return Ok(());
    }
    let named = statement.subject.first().and_then(|subject| subject.digest.get("sha256"));
    Err(Fault::OtherImage(named.map_or("nothing".into(), |hex| excerpt(&format!("sha256:{hex}")))))
}

/// What a statement says of its subjects.
fn predicate_type(payload: &str) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Statement {
        predicate_type: String,
    }
    serde_json::from_str(payload).ok().map(|statement: Statement| statement.predicate_type)
}

/// As much of a stranger's text as a message may hold.
fn excerpt(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

#[cfg(test)]
mod tests;
