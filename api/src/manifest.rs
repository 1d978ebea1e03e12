//! The manifest: what one node should hold and run, signed by the hub.
//!
//! The signature covers the exact bytes of the payload, never a re-serialisation (ed25519, RFC 8032, strict verification).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::{Digest, NodeId};

/// Version of the manifest's format; a node refuses another one by name.
pub const FORMAT: u32 = 1;

/// Most objects in one manifest: bounds a node's memory and start-up.
pub const ENTRIES_MAX: usize = 20_000;

/// What one node should hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The node it is for; any other node refuses it.
    pub node: NodeId,
    /// Grows by at least one whenever `objects` changes; orders manifests within one `epoch`.
    pub generation: u64,
    /// Grows when the hub's store is restored or lost, so that a hub that begins to count anew is still believed. Orders
    /// before `generation`.
    pub epoch: u64,
    /// The hub's clock when it signed, seconds since 1970 (UTC): a floor for the node's own clock.
    pub hub_time_s: u64,
    /// Sorted by kind, namespace, name; no duplicates.
    pub objects: Vec<Entry>,
}

/// One object of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub kind: ObjectKind,
    pub namespace: String,
    pub name: String,
    /// Digest of the object's bytes.
    pub digest: Digest,
    /// Size of the object's bytes.
    pub size: u64,
}

/// What kinds of objects a node is told about; their contents are in [`crate::desired`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectKind {
    Revision,
    Route,
}

/// Where a manifest stands in the order of manifests: epoch first, then generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    pub epoch: u64,
    pub generation: u64,
}

impl Manifest {
    pub fn version(&self) -> Version {
        Version { epoch: self.epoch, generation: self.generation }
    }
}

/// A manifest as it travels and as it is stored: the bytes that were signed, and the signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignedManifest {
    /// The manifest, JSON, exactly as signed.
    pub payload: String,
    /// The signing key's id: the first 16 hexadecimal digits of the SHA-256 of its public key.
    pub key_id: String,
    /// ed25519 signature of `payload`, base64.
    pub signature: String,
}

/// Why a manifest is not to be believed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest is malformed: {0}")]
    Malformed(String),
    #[error("the manifest is signed by key {found}, this node trusts {trusted}")]
    UnknownKey { found: String, trusted: String },
    #[error("the manifest's signature does not match its content")]
    BadSignature,
    #[error("the manifest is for node {found}, this is {me}")]
    WrongNode { found: NodeId, me: NodeId },
    #[error("the manifest has format {0}, this program reads {FORMAT}: update the older of hub and agent")]
    UnknownFormat(u32),
}

/// The id of a public key, see [`SignedManifest::key_id`].
pub fn key_id(key: &VerifyingKey) -> String {
    Digest::of(key.as_bytes()).hex()[..16].to_owned()
}

impl SignedManifest {
    /// Signs `manifest`.
    pub fn sign(manifest: &Manifest, key: &SigningKey) -> Self {
        let payload = serde_json::to_string(manifest).expect("a manifest is plain data");
        let signature = BASE64.encode(key.sign(payload.as_bytes()).to_bytes());
        Self { payload, key_id: key_id(&key.verifying_key()), signature }
    }

    /// The bytes that travel and are stored; their digest names this very manifest in status reports.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a signed manifest is plain data")
    }

    /// Reads [`SignedManifest::to_bytes`]; says nothing about whether it is to be believed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ManifestError> {
        serde_json::from_slice(bytes).map_err(|error| ManifestError::Malformed(error.to_string()))
    }

    /// The manifest within, after checking that `trusted` signed it, that it is for `me` and well-formed.
    pub fn verify(&self, trusted: &VerifyingKey, me: &NodeId) -> Result<Manifest, ManifestError> {
        let trusted_id = key_id(trusted);
        if self.key_id != trusted_id {
            return Err(ManifestError::UnknownKey { found: self.key_id.clone(), trusted: trusted_id });
        }
        let signature = BASE64.decode(&self.signature).map_err(|_| ManifestError::BadSignature)?;
        let signature = Signature::from_slice(&signature).map_err(|_| ManifestError::BadSignature)?;
        trusted
            .verify_strict(self.payload.as_bytes(), &signature)
            .map_err(|_| ManifestError::BadSignature)?;
        let manifest: Manifest = serde_json::from_str(&self.payload)
            .map_err(|error| ManifestError::Malformed(error.to_string()))?;
        if manifest.format != FORMAT {
            return Err(ManifestError::UnknownFormat(manifest.format));
        }
        if manifest.node != *me {
            return Err(ManifestError::WrongNode { found: manifest.node, me: me.clone() });
        }
        let sorted = manifest.objects.windows(2).all(|pair| {
            let key = |entry: &Entry| (entry.kind, entry.namespace.clone(), entry.name.clone());
            key(&pair[0]) < key(&pair[1])
        });
        if !sorted || manifest.objects.len() > ENTRIES_MAX {
            return Err(ManifestError::Malformed("objects are unsorted, duplicate or too many".into()));
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(node: &str) -> Manifest {
        Manifest {
            format: FORMAT,
            node: node.parse().unwrap(),
            generation: 3,
            epoch: 1,
            hub_time_s: 1_700_000_000,
            objects: vec![],
        }
    }

    #[test]
    fn signed_by_the_trusted_key_for_this_node_only() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let other = SigningKey::from_bytes(&[8; 32]);
        let me = "a".parse().unwrap();
        let signed = SignedManifest::sign(&manifest("a"), &key);
        assert_eq!(signed.verify(&key.verifying_key(), &me).unwrap(), manifest("a"));
        assert!(matches!(signed.verify(&other.verifying_key(), &me), Err(ManifestError::UnknownKey { .. })));
        assert!(matches!(
            signed.verify(&key.verifying_key(), &"b".parse().unwrap()),
            Err(ManifestError::WrongNode { .. })
        ));
        let mut forged = signed.clone();
        forged.payload = forged.payload.replace("\"generation\":3", "\"generation\":4");
        assert!(matches!(forged.verify(&key.verifying_key(), &me), Err(ManifestError::BadSignature)));
        let mut forged = SignedManifest::sign(&manifest("a"), &other);
        forged.key_id = key_id(&key.verifying_key());
        assert!(matches!(forged.verify(&key.verifying_key(), &me), Err(ManifestError::BadSignature)));
        assert!(SignedManifest::from_bytes(&signed.to_bytes()[..40]).is_err());
    }

    #[test]
    fn the_encoding_is_stable() {
        let signed = SignedManifest::sign(&manifest("a"), &SigningKey::from_bytes(&[7; 32]));
        assert_eq!(
            signed.payload,
            r#"{"format":1,"node":"a","generation":3,"epoch":1,"hubTimeS":1700000000,"objects":[]}"#
        );
    }

    #[test]
    fn epochs_order_before_generations() {
        assert!(Version { epoch: 2, generation: 1 } > Version { epoch: 1, generation: 9 });
    }
}
