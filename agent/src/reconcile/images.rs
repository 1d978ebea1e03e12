//! What the reconciler knows of images: whether a revision's is there and may be used.

use std::sync::Arc;

use tombolo_agent_core::actual::{ImageState, Moment};
use tombolo_agent_core::backoff;
use tombolo_agent_core::routes::Unavailable;
use tombolo_agent_core::status::PULL_DEFERRED;
use tombolo_api::Digest;
use tombolo_api::desired::{Desired, RevisionObject};
use tombolo_api::report::EventKind;

use super::Reconciler;
use crate::execute::{Image, Trouble};

impl Reconciler {
    pub(super) fn image_prepared(
        &mut self,
        object: &RevisionObject,
        digest: Digest,
        result: Result<Image, Trouble>,
        now: Moment,
    ) {
        let revision = object.key();
        let desired = self.accepted.as_ref().and_then(|accepted| accepted.desired.revisions.get(&revision));
        if desired.is_none_or(|(_, desired)| desired.verification != object.verification) {
            // Judged by other keys or signatures than hold now: it is being prepared once more.
            return;
        }
        let known = self.actual.revisions.get_mut(&revision);
        let Some(known) = known.filter(|known| known.object == digest) else { return };
        match result {
            Ok(Image { fetched, caution }) => {
                known.image = ImageState::Present;
                let caution = caution.map(|Trouble { reason, message }| Unavailable { reason, message });
                let told = std::mem::replace(&mut known.caution, caution.clone()) == caution;
                if let Some(Unavailable { reason, message }) = caution.filter(|_| !told) {
                    tracing::warn!(%revision, reason, message, "an image is not signed");
                    self.event(EventKind::Warning, &reason, &revision, message);
                }
                if fetched {
                    let message = "its image is on this node".to_owned();
                    self.event(EventKind::Normal, "ImagePulled", &revision, message);
                }
            }
            Err(trouble) => {
                let attempts = known.image_attempts() + 1;
                let retry_at = now.after(backoff::image_retry_ms(attempts));
                let waits = trouble.reason == PULL_DEFERRED;
                if !waits {
                    tracing::warn!(%revision, reason = trouble.reason, message = trouble.message, "image cannot be had");
                }
                known.image = ImageState::Failed {
                    reason: trouble.reason.clone(),
                    message: trouble.message.clone(),
                    attempts,
                    retry_at: Some(retry_at),
                };
                if attempts == 1 {
                    let kind = if waits { EventKind::Normal } else { EventKind::Warning };
                    self.event(kind, &trouble.reason, &revision, trouble.message);
                }
            }
        }
    }

    /// Has images judged anew whose keys or signatures are others than before. What runs goes on; no further instance is started
    /// until then.
    pub(super) fn judge_anew(&mut self, desired: &Desired) {
        let Some(before) = self.accepted.clone() else { return };
        for (key, (digest, object)) in &desired.revisions {
            let same = |(_, known): &(Digest, Arc<RevisionObject>)| known.verification == object.verification;
            if before.desired.revisions.get(key).is_none_or(same) {
                continue;
            }
            if let Some(known) = self.actual.revisions.get_mut(key).filter(|known| known.object == *digest) {
                known.image = ImageState::Unknown;
            }
        }
    }
}
