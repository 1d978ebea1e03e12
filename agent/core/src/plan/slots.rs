//! Instances that wait at no cost but memory, so that a request need not: which revisions keep one, which go, and when the
//! next is made. It must not know how many instances run.
//!
//! None is made at a request's expense: not while an instance starts that one may be held for, or just after one did, unless there is
//! always one that just did. Requests that wait for others to end, or for an image, want nothing that a slot would take.

use std::cmp::Reverse;

use super::{
    Action, Draft, PRIMED_MAX, Pass, REFILL_LATEST_MS, REFILL_QUIET_MS, STARTING_MAX_MS, Scope, WakeReason,
};
use crate::actual::{ImageState, Moment, Phase};
use crate::annotations::IdleTier;

impl<'a> Pass<'a> {
    /// Removes what waits for nothing, and makes the next one that should wait.
    pub(super) fn keep_slots(&self, scopes: &[(u32, Scope<'a>)], draft: &mut Draft) {
        let mut next: Option<&Scope<'a>> = None;
        for (want, scope) in scopes {
            let keeps = self.keeps_primed(scope, *want);
            self.retire_frozen(scope, draft);
            let has = self.retire_primed(scope, keeps, draft);
            if !keeps || has || !self.may_prime(scope, draft) || !self.is_due(scope, draft) {
                continue;
            }
            // Who was called last will be called next.
            let order = |scope: &Scope<'a>| (self.called(scope), Reverse(scope.key));
            if next.is_none_or(|best| order(scope) > order(best)) {
                next = Some(scope);
            }
        }
        if let Some(scope) = next
            && self.starts_nothing(draft)
            && let Some(devices) = self.take_devices(scope, draft)
        {
            let instance = draft.name_instance(&scope.key.name, &self.situation.actual.incarnation);
            draft.additions.push(Action::Prime { instance, revision: scope.key.clone(), devices });
        }
    }

    /// Whether a primed instance belongs beside what the revision has.
    fn keeps_primed(&self, scope: &Scope<'a>, want: u32) -> bool {
        if self.takeovers.primed.contains(scope.key) {
            return true;
        }
        if self.takeovers.idle.contains(scope.key) || self.takeovers.leaves_nothing(scope.key) {
            return false;
        }
        let tier_keeps = match scope.scale.tier {
            IdleTier::Cold | IdleTier::Running => false,
            // Devices are not kept for what may never come.
            IdleTier::Primed if scope.asked.is_empty() => true,
            // One that runs or is about to be frozen takes the place.
            IdleTier::Primed | IdleTier::Frozen | IdleTier::Suspended => {
                let holds = |phase: &Phase| {
                    let kept = matches!(
                        phase,
                        Phase::Freezing | Phase::Frozen | Phase::Suspending | Phase::Suspended
                    );
                    phase.is_up() || kept || *phase == Phase::Draining
                };
                want == 0 && !self.current(scope).any(|(_, instance)| holds(&instance.phase))
            }
        };
        tier_keeps && scope.scale.min == 0 && self.is_routed(scope.key)
    }

    /// Ends frozen and suspended instances beyond the one that is kept, if one is, the youngest first.
    fn retire_frozen(&self, scope: &Scope<'a>, draft: &mut Draft) {
        let rests = |phase: &Phase| matches!(phase, Phase::Frozen | Phase::Suspended);
        let mut frozen: Vec<_> = self.current(scope).filter(|(_, instance)| rests(&instance.phase)).collect();
        if frozen.is_empty() {
            return;
        }
        frozen.retain(|(id, _)| !draft.names(id));
        frozen.sort_by_key(|(id, instance)| (instance.since, *id));
        let keeps = matches!(scope.scale.tier, IdleTier::Frozen | IdleTier::Suspended);
        let surplus = frozen.iter().skip(usize::from(keeps && self.is_routed(scope.key)));
        draft.removals.extend(surplus.map(|(id, instance)| match instance.phase {
            // It may have been given a request.
            Phase::Frozen => Action::Drain { instance: (*id).clone() },
            _ => Action::Delete { instance: (*id).clone() },
        }));
    }

    /// Removes primed instances beyond the one that is kept, the youngest first; whether one is kept.
    fn retire_primed(&self, scope: &Scope<'a>, keeps: bool, draft: &mut Draft) -> bool {
        let waits = |phase: &Phase| matches!(phase, Phase::Priming | Phase::Primed);
        let mut primed: Vec<_> = self.current(scope).filter(|(_, instance)| waits(&instance.phase)).collect();
        if primed.is_empty() {
            return false;
        }
        primed.retain(|(id, _)| !draft.names(id));
        primed.sort_by_key(|(id, instance)| (instance.phase == Phase::Priming, instance.since, *id));
        for (id, instance) in primed.iter().skip(usize::from(keeps)) {
            // One that is still being made is removed once it is.
            if instance.phase == Phase::Primed {
                draft.removals.push(Action::Delete { instance: (*id).clone() });
            }
        }
        keeps && !primed.is_empty()
    }

    fn may_prime(&self, scope: &Scope<'a>, draft: &mut Draft) -> bool {
        let known = scope.known;
        let traffic = self.situation.traffic;
        // Who is called needs one that runs, and devices may be what a request waits for.
        if traffic.of(scope.key).held > 0
            || (!scope.asked.is_empty() && traffic.is_held())
            || !known.ready_once
            || known.image != ImageState::Present
            || !self.may_hold_devices(scope, draft)
        {
            return false;
        }
        let free = known.prime_retry_at.max(known.crashes.retry_at);
        if self.now < free {
            draft.wake_at(free, WakeReason::Refill);
            return false;
        }
        true
    }

    /// Whether nothing has just started on the node, or its own last start is long ago.
    fn is_due(&self, scope: &Scope<'a>, draft: &mut Draft) -> bool {
        let quiet = self.situation.actual.last_start.after(REFILL_QUIET_MS);
        let at = quiet.min(scope.known.last_active.after(REFILL_LATEST_MS));
        if self.now < at {
            draft.wake_at(at, WakeReason::Refill);
        }
        self.now >= at
    }

    /// Whether nothing on the node starts.
    fn starts_nothing(&self, draft: &mut Draft) -> bool {
        let starts = |action: &Action| {
            matches!(
                action,
                Action::Launch { .. }
                    | Action::Prime { .. }
                    | Action::Start { .. }
                    | Action::Thaw { .. }
                    | Action::Restore { .. }
                    | Action::TakeOver { .. }
            )
        };
        if !self.takeovers.leaving.is_empty() || draft.additions.iter().any(starts) {
            return false;
        }
        let mut at = Moment::default();
        let mut primed = 0;
        for instance in self.situation.actual.instances.values() {
            match instance.phase {
                Phase::Launching | Phase::Thawing | Phase::Restoring | Phase::Probing | Phase::Priming => {
                    at = at.max(instance.since.after(STARTING_MAX_MS));
                }
                Phase::Primed => primed += 1,
                _ => {}
            }
        }
        if self.now < at {
            draft.wake_at(at, WakeReason::Refill);
        }
        self.now >= at && primed < PRIMED_MAX
    }
}
