//! What the reconciler knows of images: whether a revision's is there and may be used, and which nobody wants any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use tombolo_agent_core::actual::{ImageState, Moment};
use tombolo_agent_core::backoff;
use tombolo_agent_core::routes::Unavailable;
use tombolo_agent_core::status::PULL_DEFERRED;
use tombolo_api::desired::{Desired, RevisionObject};
use tombolo_api::report::EventKind;
use tombolo_api::{Digest, RevisionKey};

use super::Reconciler;
use crate::execute::{Image, Trouble};

/// From the first end of an instance until what it leaves is collected, milliseconds, so that many ends are one collection.
const COLLECT_AFTER_MS: u64 = 500;

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

    /// Has collected what an instance leaves behind, with what else comes to that meanwhile.
    pub(super) fn collect_soon(&mut self, now: Moment) {
        self.collect_at.get_or_insert(now.after(COLLECT_AFTER_MS));
    }

    /// Has everything removed that belongs to no desired revision and no instance. Not before the instances are known.
    pub(super) fn collect(&mut self) {
        self.collect_at = None;
        if let Some(accepted) = self.accepted.as_ref().filter(|_| self.supervised) {
            let instances = self.actual.instances.iter();
            let instances: BTreeMap<_, _> =
                instances.map(|(id, instance)| (id.clone(), instance.revision.clone())).collect();
            let is_ready =
                |key: &RevisionKey| self.actual.revisions.get(key).is_some_and(|known| known.ready_once);
            self.executor.retain(&accepted.desired, &instances, is_ready);
        }
    }
}
