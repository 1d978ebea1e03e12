//! When an instance that holds more of an accelerator's memory than it declared is killed: at once it would be for a moment's
//! peak, and whoever shares the accelerator cannot wait for it to end by itself.

use super::{Action, Draft, Pass, WakeReason};
use crate::actual::{InstanceActual, Moment, Phase};
use crate::devices::overuse::Policy;
use crate::supervision::InstanceId;

impl Pass<'_> {
    /// What is done with an instance that has held too much for too long.
    pub(super) fn end_of_overuse(
        &self,
        id: &InstanceId,
        instance: &InstanceActual,
        draft: &mut Draft,
    ) -> Option<Action> {
        let at = self.overuse_ends_at(instance)?;
        if self.now < at {
            draft.wake_at(at, WakeReason::MemoryOveruse);
            return None;
        }
        match instance.phase {
            Phase::Probing | Phase::Ready | Phase::Draining => Some(Action::Kill { instance: id.clone() }),
            // It hears of its end when it runs.
            Phase::Frozen => Some(Action::Drain { instance: id.clone() }),
            _ => None,
        }
    }

    fn overuse_ends_at(&self, instance: &InstanceActual) -> Option<Moment> {
        let overuse = instance.overuse.as_ref()?;
        let object = self.situation.desired.revisions.get(&instance.revision);
        let general = self.situation.settings.overuse;
        let rule = object.map_or(general, |(_, object)| general.of(&object.annotations));
        (rule.policy == Policy::Stop).then(|| overuse.since.after(rule.grace_ms))
    }
}
