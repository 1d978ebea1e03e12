//! Manifests that a bundle brings: judged as those of the link are, and put in force with everything they name at once.
//!
//! The two may come at the same time. Whatever comes second is judged by what the first left, so that no older state follows a
//! newer one. Must not know what a bundle looks like.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::oneshot;
use tombolo_agent_core::accept::{Refusal, Verdict as Judged};
use tombolo_api::Digest;
use tombolo_api::manifest::{Manifest, Version};

use super::{Stage, Task};

/// What somebody who imports a bundle wants.
#[derive(Debug)]
pub(crate) enum Offer {
    /// To know whether the manifest would be accepted, before anything is made ready for it.
    Judge { manifest: Vec<u8>, answer: oneshot::Sender<Verdict> },
    /// To put it in force; `contents` are the objects that the node lacks.
    Take {
        manifest: Vec<u8>,
        contents: BTreeMap<Digest, Vec<u8>>,
        answer: oneshot::Sender<Result<(), Refusal>>,
    },
}

/// What the generation rule says.
#[derive(Debug)]
pub(crate) enum Verdict {
    Newer(Manifest),
    /// It is in force.
    Same,
    Refused(Refusal),
    /// This node knows no key to verify it by.
    NoKey,
}

impl Task {
    pub(super) async fn offer(&mut self, offer: Offer) {
        // Whoever has gone meanwhile wants no answer.
        match offer {
            Offer::Judge { manifest, answer } => drop(answer.send(self.judge_offer(&manifest))),
            Offer::Take { manifest, contents, answer } => {
                let taken = match self.judge_offer(&manifest) {
                    Verdict::Newer(listed) => self.take(&manifest, &listed, contents).await,
                    Verdict::Same | Verdict::NoKey => Ok(()),
                    Verdict::Refused(refusal) => Err(refusal),
                };
                let _ = answer.send(taken);
            }
        }
    }

    /// Refusals are counted here, and told by whoever imports: that one knows which file it was.
    fn judge_offer(&mut self, bytes: &[u8]) -> Verdict {
        match self.verdict(bytes) {
            None => Verdict::NoKey,
            Some(Judged::Same) => Verdict::Same,
            Some(Judged::Accept(manifest)) => Verdict::Newer(manifest),
            Some(Judged::Refuse(refusal)) => {
                self.count(Digest::of(bytes), &refusal);
                Verdict::Refused(refusal)
            }
        }
    }

    async fn take(
        &mut self,
        bytes: &[u8],
        manifest: &Manifest,
        contents: BTreeMap<Digest, Vec<u8>>,
    ) -> Result<(), Refusal> {
        if let Err(refusal) = self.commit(bytes, manifest, contents).await {
            self.count(Digest::of(bytes), &refusal);
            return Err(refusal);
        }
        self.overtaken(manifest.version());
        Ok(())
    }

    /// What the link is gathering was judged before: it must not follow something newer.
    fn overtaken(&mut self, by: Version) {
        let older = self.under_way.as_ref().is_some_and(|under_way| match &under_way.stage {
            Stage::Objects { manifest, .. } => manifest.version() <= by,
            // It is judged when it is whole.
            Stage::Manifest { .. } => false,
        });
        if older {
            self.under_way = None;
            self.want(BTreeSet::new());
        }
    }
}
