//! Instances that wait for nobody give their memory to a revision that has no instance at all for want of it: who was called
//! longest ago goes first. Devices are given way for in [`super::devices`].

use crate::actual::{InstanceActual, Moment, Phase};
use crate::autoscale::capacity::Claim;
use crate::supervision::InstanceId;

use super::room::bytes_of;
use super::{Action, Draft, Pass, Scope};

impl<'a> Pass<'a> {
    /// Ends instances that wait for nobody where that is enough for one of `short`, of which each is what a first instance needs,
    /// bytes. `used` of `budget` is what instances have or are granted; more than there is where other programs have taken some.
    pub(super) fn evict(
        &self,
        scopes: &[(u32, Scope<'a>)],
        short: &[u64],
        (budget, used): (u64, u64),
        draft: &mut Draft,
    ) {
        draft.is_short_of_memory = !short.is_empty();
        if short.is_empty() {
            return;
        }
        let mut candidates = self.evictable(scopes);
        candidates.retain(|(_, id, _)| !draft.names(id));
        candidates.sort_unstable();
        let mut candidates = candidates.as_slice();
        let budget = budget.saturating_add(self.coming_bytes());
        let (mut free, mut lack) = (budget.saturating_sub(used), used.saturating_sub(budget));
        for needed in short {
            let mut freed = 0_u64;
            let needed = needed.saturating_add(lack);
            let is_enough = |freed: u64| free.saturating_add(freed) >= needed;
            let victims = candidates.iter().take_while(|(_, _, bytes)| {
                let goes = !is_enough(freed);
                freed = freed.saturating_add(if goes { *bytes } else { 0 });
                goes
            });
            let (victims, rest) = candidates.split_at(victims.count());
            // Were all of them not enough, none goes for nothing.
            if is_enough(freed) {
                (free, lack) = (free.saturating_add(freed) - needed, 0);
                draft.removals.extend(victims.iter().map(|(_, id, _)| self.evicted(id)));
                candidates = rest;
            }
        }
    }

    /// Frozen and suspended instances of revisions of which none is wanted: when the revision was called, and what its end frees.
    fn evictable(&self, scopes: &[(u32, Scope<'a>)]) -> Vec<(Moment, &'a InstanceId, u64)> {
        let mut resting = Vec::new();
        for (_, scope) in scopes.iter().filter(|(wanted, _)| *wanted == 0) {
            let Claim { need, .. } = self.claim(scope, 0);
            for (id, instance) in self.index.of(scope.key).iter().copied() {
                let rests = matches!(instance.phase, Phase::Frozen | Phase::Suspended);
                if rests && !instance.astray && self.load(id) == 0 {
                    let bytes = need.bytes().max(instance.held_bytes).saturating_add(instance.moved_bytes);
                    resting.push((self.called(scope), id, bytes));
                }
            }
        }
        resting
    }

    /// Memory of instances that are on their way out, bytes.
    fn coming_bytes(&self) -> u64 {
        let leaves = |id: &InstanceId, instance: &InstanceActual| match instance.phase {
            Phase::Stopping { .. } => true,
            // No longer to be frozen, see `is_short_of_memory`.
            Phase::Draining => self.load(id) == 0,
            _ => false,
        };
        let instances = self.situation.actual.instances.iter();
        let leaving = instances.filter(|(id, instance)| leaves(id, instance));
        let bytes = |instance: &InstanceActual| {
            let reckoned = self.reckoned(instance).map(|claimed| claimed.max(instance.held_bytes));
            let bytes = reckoned.unwrap_or_else(|| bytes_of(instance, self.situation.desired));
            bytes.saturating_add(instance.moved_bytes)
        };
        leaving.map(|(_, instance)| bytes(instance)).fold(0, u64::saturating_add)
    }

    fn evicted(&self, instance: &InstanceId) -> Action {
        let instance = instance.clone();
        match self.situation.actual.instances[&instance].phase {
            // Its program cannot end as it would like to: what it had is not where it was.
            Phase::Suspended => Action::Delete { instance },
            // It may have been given a request.
            _ => Action::Drain { instance },
        }
    }
}
