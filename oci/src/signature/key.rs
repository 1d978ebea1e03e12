//! Public keys: PEM, the little of DER that a SubjectPublicKeyInfo has, and which algorithm belongs to each. Must not know what
//! is signed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Digest as _, Sha512, Signature, VerifyingKey};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519,
    RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use tombolo_api::Digest;

/// Largest key, bytes of DER: RSA with 8192 bits has 1,050.
const KEY_MAX: usize = 2048;

const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const ED_25519: &[u8] = &[0x2b, 0x65, 0x70];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

/// Tags of DER.
const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
const OBJECT_IDENTIFIER: u8 = 0x06;

/// A key that can tell its signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    algorithm: Algorithm,
    /// As the algorithm has it: a point, 32 bytes, or RSA's two numbers.
    key: Vec<u8>,
    /// Of the whole SubjectPublicKeyInfo.
    digest: Digest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    P256,
    P384,
    Ed25519,
    Rsa,
}

/// Why a text is not a key that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("it is no block of PEM that begins with -----BEGIN PUBLIC KEY-----, as cosign.pub does")]
    Pem,
    #[error("it is no public key: what is between its first and its last line is damaged")]
    Der,
    #[error(
        "keys of its kind are not supported: use ECDSA with P-256 (what `cosign generate-key-pair` makes) or P-384, Ed25519, or RSA with 2048 to 8192 bits"
    )]
    Unsupported,
}

impl PublicKey {
    /// Reads one PEM block.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let body = pem.trim().strip_prefix("-----BEGIN PUBLIC KEY-----").ok_or(KeyError::Pem)?;
        let body = body.strip_suffix("-----END PUBLIC KEY-----").ok_or(KeyError::Pem)?;
        let text: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        if text.len() > KEY_MAX * 4 / 3 + 4 {
            return Err(KeyError::Unsupported);
        }
        let der = STANDARD.decode(text).map_err(|_| KeyError::Der)?;
        Self::from_der(&der)
    }

    fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        let (info, rest) = value(der, SEQUENCE).ok_or(KeyError::Der)?;
        let (algorithm, key) = value(info, SEQUENCE).ok_or(KeyError::Der)?;
        let (kind, parameters) = value(algorithm, OBJECT_IDENTIFIER).ok_or(KeyError::Der)?;
        let (bits, after) = value(key, BIT_STRING).ok_or(KeyError::Der)?;
        let [0, key @ ..] = bits else { return Err(KeyError::Der) };
        if !rest.is_empty() || !after.is_empty() {
            return Err(KeyError::Der);
        }
        let curve = value(parameters, OBJECT_IDENTIFIER).map(|(curve, _)| curve);
        let (algorithm, fits) = match (kind, curve) {
            (EC_PUBLIC_KEY, Some(P256)) => (Algorithm::P256, key.len() == 65),
            (EC_PUBLIC_KEY, Some(P384)) => (Algorithm::P384, key.len() == 97),
            (ED_25519, None) => (Algorithm::Ed25519, key.len() == 32),
            (RSA, None) => (Algorithm::Rsa, value(key, SEQUENCE).is_some_and(|(_, rest)| rest.is_empty())),
            _ => return Err(KeyError::Unsupported),
        };
        if !fits {
            return Err(KeyError::Der);
        }
        let bits =
            value(key, SEQUENCE).and_then(|(numbers, _)| value(numbers, 0x02)).map(|(n, _)| n.len() * 8);
        if algorithm == Algorithm::Rsa && !bits.is_some_and(|bits| (2048..=8192 + 8).contains(&bits)) {
            return Err(KeyError::Unsupported);
        }
        Ok(Self { algorithm, key: key.to_vec(), digest: Digest::of(der) })
    }

    /// The beginning of the SHA-256 of the key in DER: `openssl pkey -pubin -in cosign.pub -outform DER | sha256sum`.
    pub fn fingerprint(&self) -> String {
        format!("sha256:{}", &self.digest.hex()[..16])
    }

    /// Whether `signature` was made over `message` with this key's secret half.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithms: &[&'static dyn VerificationAlgorithm] = match self.algorithm {
            Algorithm::P256 => &[&ECDSA_P256_SHA256_ASN1],
            // Cosign hashes with SHA-256 whatever the curve; others do as the curve suggests.
            Algorithm::P384 => &[&ECDSA_P384_SHA256_ASN1, &ECDSA_P384_SHA384_ASN1],
            Algorithm::Ed25519 => &[&ED25519],
            Algorithm::Rsa => &[&RSA_PKCS1_2048_8192_SHA256],
        };
        let good = |algorithm: &&'static dyn VerificationAlgorithm| {
            UnparsedPublicKey::new(*algorithm, &self.key).verify(message, signature).is_ok()
        };
        algorithms.iter().any(good)
            || self.algorithm == Algorithm::Ed25519 && self.verifies_ph(message, signature)
    }

    /// Ed25519ph, which signs the message's SHA-512: what cosign 3 makes with an Ed25519 key, where cosign 2 makes Ed25519.
    fn verifies_ph(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = self.key.as_slice().try_into().ok().and_then(|key| VerifyingKey::from_bytes(key).ok());
        let (Some(key), Ok(signature)) = (key, Signature::from_slice(signature)) else { return false };
        key.verify_prehashed_strict(Sha512::new_with_prefix(message), None, &signature).is_ok()
    }
}

/// The content of the value of this tag at the beginning of `der`, and what follows it. Lengths are the shortest possible.
fn value(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (head, rest) = der.split_at_checked(2)?;
    if head[0] != tag {
        return None;
    }
    let (length, rest) = match head[1] {
        short @ 0..=0x7f => (usize::from(short), rest),
        0x81 => {
            let (long, rest) = rest.split_first()?;
            (usize::from(*long), rest)
        }
        0x82 => {
            let (long, rest) = rest.split_at_checked(2)?;
            (usize::from(u16::from_be_bytes([long[0], long[1]])), rest)
        }
        _ => return None,
    };
    let shortest = match head[1] {
        0x81 => 0x80,
        0x82 => 0x100,
        _ => 0,
    };
    if length < shortest { None } else { rest.split_at_checked(length) }
}
