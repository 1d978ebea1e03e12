//! What becomes of one instance, by its phase and its age. It must not know how many its revision should have.

use std::collections::BTreeMap;

use tombolo_api::RevisionKey;

use super::{
    Action, DRAIN_MAX_MS, DRAIN_MIN_MS, Draft, KILL_AGAIN_MS, OUTCOME_MAX_MS, Pass, TERMINATION_GRACE_MS,
    WakeReason, crashes_forgotten_at,
};
use crate::actual::{InstanceActual, Moment, Phase};
use crate::annotations::{IdleTier, Scale};
use crate::supervision::InstanceId;

/// A step that comes due.
type Due = (Moment, WakeReason, Action);

impl Pass<'_> {
    pub(super) fn plan_instance(
        &self,
        id: &InstanceId,
        instance: &InstanceActual,
        wanted: &BTreeMap<RevisionKey, u32>,
        draft: &mut Draft,
    ) {
        if draft.names(id) {
            return;
        }
        match instance.ends_at() {
            Some(at) if self.now < at => draft.wake_at(at, WakeReason::DeviceLost),
            Some(_) => {
                if let Some(action) = end_of_lost(id, instance) {
                    return draft.removals.push(action);
                }
            }
            None => {}
        }
        if let Some(action) = self.end_of_overuse(id, instance, draft) {
            return draft.removals.push(action);
        }
        self.plan_phase(id, instance, wanted, draft);
        self.refit(id, instance, draft);
    }

    /// Gives a container its devices anew, where they are there and nothing else happens to it.
    fn refit(&self, id: &InstanceId, instance: &InstanceActual, draft: &mut Draft) {
        let Some(due) = instance.fit.due() else { return };
        let has_container = matches!(
            instance.phase,
            Phase::Primed | Phase::Probing | Phase::Ready | Phase::Draining | Phase::Frozen
        );
        let inventory = &self.situation.actual.devices.inventory;
        let can_be = instance.lost_since.is_none() && inventory.has_plugins_of(&instance.devices);
        if !has_container || !can_be || draft.names(id) {
            return;
        }
        if self.now < due {
            return draft.wake_at(due, WakeReason::DeviceStale);
        }
        let devices = instance.devices.clone();
        draft.additions.push(Action::Refit { instance: id.clone(), devices });
    }

    fn plan_phase(
        &self,
        id: &InstanceId,
        instance: &InstanceActual,
        wanted: &BTreeMap<RevisionKey, u32>,
        draft: &mut Draft,
    ) {
        let instance_id = || id.clone();
        let due = match &instance.phase {
            Phase::Priming
            | Phase::Launching
            | Phase::Freezing
            | Phase::Thawing
            | Phase::Suspending
            | Phase::Restoring
            | Phase::Deleting => {
                let delete = Action::Delete { instance: instance_id() };
                Some((instance.since.after(OUTCOME_MAX_MS), WakeReason::OutcomeLost, delete))
            }
            Phase::Primed | Phase::Frozen | Phase::Suspended => {
                self.plan_waiting(id, instance, draft);
                None
            }
            Phase::Probing => Some(self.probing(id, instance)),
            Phase::Ready => {
                if !self.is_current(instance) && !self.is_still_needed(instance, wanted) {
                    draft.removals.push(Action::Drain { instance: instance_id() });
                }
                let revision = self.situation.actual.revisions.get(&instance.revision);
                if let Some(at) = revision.and_then(|revision| crashes_forgotten_at(revision, instance)) {
                    draft.wake_at(at, WakeReason::CrashForget);
                }
                None
            }
            Phase::Draining => Some(self.draining(id, instance, wanted, draft)),
            Phase::Stopping { killed } => {
                let (patience, reason) = match killed {
                    false => (TERMINATION_GRACE_MS, WakeReason::TerminationGrace),
                    true => (KILL_AGAIN_MS, WakeReason::KillAgain),
                };
                Some((instance.since.after(patience), reason, Action::Kill { instance: instance_id() }))
            }
            Phase::Ended { .. } => {
                draft.removals.push(Action::Delete { instance: instance_id() });
                None
            }
        };
        match due {
            Some((deadline, _, action)) if self.now >= deadline => draft.removals.push(action),
            Some((deadline, reason, _)) => draft.wake_at(deadline, reason),
            None => {}
        }
    }

    fn plan_waiting(&self, id: &InstanceId, instance: &InstanceActual, draft: &mut Draft) {
        let is_current = self.is_current(instance);
        let leaves = self.takeovers.is_leaving(&instance.revision);
        let instance_id = id.clone();
        match instance.phase {
            Phase::Primed if !is_current || self.takeovers.leaves_nothing(&instance.revision) => {
                draft.removals.push(Action::Delete { instance: instance_id });
            }
            Phase::Frozen if !is_current || leaves => {
                draft.removals.push(Action::Drain { instance: instance_id });
            }
            Phase::Frozen if self.load(id) > 0 => {
                draft.additions.push(Action::Thaw { instance: instance_id });
            }
            // Its program cannot end as it would like to: what it had is not where it was.
            Phase::Suspended if !is_current || leaves => {
                draft.removals.push(Action::Delete { instance: instance_id });
            }
            Phase::Suspended if instance.astray && self.now >= instance.delayed_until() => {
                draft.additions.push(Action::Restore { instance: instance_id });
            }
            Phase::Suspended if instance.astray => {
                draft.wake_at(instance.delayed_until(), WakeReason::MoveRetry);
            }
            _ => {}
        }
    }

    fn probing(&self, id: &InstanceId, instance: &InstanceActual) -> Due {
        let object = self.situation.desired.revisions.get(&instance.revision);
        let limit = object.map_or(0, |(_, object)| Scale::of(&object.annotations).progress_deadline_ms);
        let deadline = if self.is_current(instance) { instance.since.after(limit) } else { self.now };
        (deadline, WakeReason::ProgressDeadline, Action::Terminate { instance: id.clone() })
    }

    fn draining(
        &self,
        id: &InstanceId,
        instance: &InstanceActual,
        wanted: &BTreeMap<RevisionKey, u32>,
        draft: &Draft,
    ) -> Due {
        let object = self.situation.desired.revisions.get(&instance.revision);
        let timeout =
            object.map_or(DRAIN_MAX_MS, |(_, object)| crate::limits::request_timeouts(object).request_ms);
        if self.load(id) > 0 {
            let deadline = instance.since.after(timeout.max(DRAIN_MIN_MS));
            return (deadline, WakeReason::DrainDeadline, Action::Terminate { instance: id.clone() });
        }
        let keeps = !wanted.contains_key(&instance.revision) && self.is_last_to_drain(id, instance);
        let instance_id = id.clone();
        let action = match keeps.then(|| self.kept_as(instance)).flatten() {
            // Its memory is needed.
            Some(_) if draft.is_short_of_memory => Action::Terminate { instance: instance_id },
            // It lets go of its devices.
            Some(IdleTier::Suspended) => Action::Suspend { instance: instance_id },
            Some(_) if !draft.is_short_of(&instance.devices) => Action::Freeze { instance: instance_id },
            _ => Action::Terminate { instance: instance_id },
        };
        match action {
            Action::Suspend { .. } if instance.delayed_until() > self.now => {
                (instance.delayed_until(), WakeReason::MoveRetry, action)
            }
            _ => (self.now, WakeReason::DrainDeadline, action),
        }
    }

    /// Requests at an instance. The router wakes a frozen one by itself to give it one.
    pub(super) fn load(&self, id: &InstanceId) -> u32 {
        self.situation.traffic.instances.get(id).copied().unwrap_or(0)
    }

    /// The tier in which an idle instance that has run is kept; `None`: it is not.
    fn kept_as(&self, instance: &InstanceActual) -> Option<IdleTier> {
        let (_, object) = self.situation.desired.revisions.get(&instance.revision)?;
        let known = self.situation.actual.revisions.get(&instance.revision)?;
        match Scale::of(&object.annotations).tier {
            IdleTier::Suspended if instance.devices.is_empty() || known.cannot_suspend.is_some() => None,
            tier @ (IdleTier::Frozen | IdleTier::Suspended) => Some(tier),
            IdleTier::Cold | IdleTier::Primed | IdleTier::Running => None,
        }
    }

    /// Whether this draining instance is the one that its revision keeps when it is idle.
    fn is_last_to_drain(&self, id: &InstanceId, instance: &InstanceActual) -> bool {
        let leaves = self.takeovers.is_leaving(&instance.revision);
        if leaves
            || self.is_lost(instance)
            || !self.is_current(instance)
            || !self.is_routed(&instance.revision)
        {
            return false;
        }
        let beside = self.index.of(&instance.revision).iter().filter(|(other, _)| *other != id);
        let mut beside = beside.filter(|(_, other)| other.object == instance.object);
        !beside.any(|(other, known)| match known.phase {
            Phase::Freezing | Phase::Frozen | Phase::Suspending | Phase::Suspended => true,
            Phase::Draining => (known.since, *other) < (instance.since, id),
            _ => false,
        })
    }

    /// Whether it was made from the object that is desired now.
    fn is_current(&self, instance: &InstanceActual) -> bool {
        let object = self.situation.desired.revisions.get(&instance.revision);
        object.is_some_and(|(digest, _)| *digest == instance.object)
    }

    /// Whether an instance of an outdated object keeps serving: while instances are wanted and the new object has none that
    /// is ready.
    fn is_still_needed(&self, outdated: &InstanceActual, wanted: &BTreeMap<RevisionKey, u32>) -> bool {
        let Some((digest, _)) = self.situation.desired.revisions.get(&outdated.revision) else {
            return false;
        };
        let mut beside = self.index.of(&outdated.revision).iter();
        let replaced = self.takeovers.replaced.contains(&outdated.revision)
            || beside.any(|(_, other)| other.object == *digest && other.phase == Phase::Ready);
        wanted.contains_key(&outdated.revision) && !replaced
    }
}

/// How an instance whose device is lost ends, if it is not on its way out already.
fn end_of_lost(id: &InstanceId, instance: &InstanceActual) -> Option<Action> {
    let instance_id = || id.clone();
    match instance.phase {
        // Requests in it may wait for the device for ever.
        Phase::Probing | Phase::Ready | Phase::Draining => {
            Some(Action::Terminate { instance: instance_id() })
        }
        Phase::Frozen => Some(Action::Drain { instance: instance_id() }),
        Phase::Primed | Phase::Suspended => Some(Action::Delete { instance: instance_id() }),
        _ => None,
    }
}
