//! A manifest with all its objects, verified: what this node serves. Made here from bytes and nowhere else; it must not know
//! where the bytes come from.

use std::collections::BTreeMap;

use ed25519_dalek::VerifyingKey;
use tombolo_agent_core::accept::{Held, Reason, Refusal};
use tombolo_api::desired::Desired;
use tombolo_api::manifest::{Manifest, SignedManifest};
use tombolo_api::report::Serving;
use tombolo_api::{Digest, NodeId};

/// Desired state in force.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Accepted {
    pub(crate) desired: Desired,
    pub(crate) serving: Serving,
    /// The hub's clock when it signed, seconds since 1970 (UTC): the node's own clock should not be before it.
    pub(crate) hub_time_s: u64,
}

impl Accepted {
    /// Puts a manifest that has been judged already together with its objects' contents; what is the same `before` is shared.
    pub(crate) fn assemble(
        manifest: &Manifest,
        digest: Digest,
        contents: &BTreeMap<Digest, Vec<u8>>,
        before: &Desired,
    ) -> Result<Self, Refusal> {
        let mut desired = Desired::default();
        for entry in &manifest.objects {
            let content = contents.get(&entry.digest).ok_or_else(|| Refusal {
                reason: Reason::ObjectsMissing,
                message: format!(
                    "{:?} {}/{} ({}) is missing",
                    entry.kind, entry.namespace, entry.name, entry.digest
                ),
            })?;
            desired
                .add(entry, content, before)
                .map_err(|error| Refusal { reason: Reason::BadObject, message: error.to_string() })?;
        }
        let serving = Serving { version: manifest.version(), digest };
        Ok(Self { desired, serving, hub_time_s: manifest.hub_time_s })
    }

    /// Verifies what was kept on this node: as strictly as what comes from outside, since disks err too.
    pub(crate) fn verify(
        bytes: &[u8],
        trusted: &VerifyingKey,
        me: &NodeId,
        contents: &BTreeMap<Digest, Vec<u8>>,
    ) -> Result<Self, String> {
        let manifest = SignedManifest::from_bytes(bytes)
            .and_then(|signed| signed.verify(trusted, me))
            .map_err(|error| error.to_string())?;
        Self::assemble(&manifest, Digest::of(bytes), contents, &Desired::default())
            .map_err(|refusal| refusal.message)
    }

    /// As the generation rule wants it.
    pub(crate) fn held(&self) -> Held {
        Held { version: self.serving.version, digest: self.serving.digest }
    }
}

/// A signed manifest's content without any check of who signed it: for finding the objects that belong to kept bytes.
pub(crate) fn unverified(bytes: &[u8]) -> Option<Manifest> {
    let signed = SignedManifest::from_bytes(bytes).ok()?;
    serde_json::from_str(&signed.payload).ok()
}
