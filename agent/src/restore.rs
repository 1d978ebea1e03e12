//! Desired state at the agent's start: whichever of store and export is newer and verifies. Afterwards both say the same.

use std::path::Path;

use ed25519_dalek::VerifyingKey;
use tombolo_api::NodeId;

use crate::accepted::Accepted;
use crate::export;
use crate::keep::{Keep, Kept};

/// The newest state that can be verified, of store and export, and makes both the same.
pub(crate) async fn load(keep: &Keep, state_dir: &Path, key: &VerifyingKey, me: &NodeId) -> Option<Accepted> {
    let verify = |kept: Option<Kept>, origin: &str| {
        let kept = kept?;
        match Accepted::verify(&kept.manifest, key, me, &kept.contents) {
            Ok(accepted) => Some((accepted, kept)),
            Err(reason) => {
                tracing::warn!(origin, reason, "kept desired state cannot be used");
                None
            }
        }
    };
    let stored = verify(keep.manifest(), "store");
    let exported = verify(export::read(state_dir), "export");
    let version =
        |found: &Option<(Accepted, Kept)>| found.as_ref().map(|(accepted, _)| accepted.serving.version);
    if version(&exported) > version(&stored) {
        let (accepted, kept) = exported?;
        tracing::warn!("the store lost the newest desired state: taken from the export");
        if let Err(error) = keep.accept(&kept).await {
            tracing::warn!(%error, "cannot put the exported desired state back into the store");
        }
        return Some(accepted);
    }
    let same = version(&exported) == version(&stored);
    let (accepted, kept) = stored?;
    if !same {
        export::write_behind(state_dir.to_owned(), kept).await;
    }
    Some(accepted)
}
