//! Instances that leave their devices and come back to them: what is asked of the executor, and what its outcomes mean.

use tombolo_agent_core::actual::{Delay, Moment, Phase};
use tombolo_agent_core::limits;
use tombolo_agent_core::plan;
use tombolo_agent_core::supervision::InstanceId;
use tombolo_api::report::EventKind;

use super::Reconciler;
use crate::accepted::Accepted;
use crate::execute::{Doing, Occupant, RestoreError, SuspendError};

/// Before a move is tried again that could not be, milliseconds: a plugin that is replaced is soon back, and what others have to
/// make room for takes as long.
const RETRY_MS: u64 = 1_000;

impl Reconciler {
    pub(super) fn suspend(&mut self, instance: &InstanceId, accepted: &Accepted, now: Moment) {
        if let Some(occupant) = self.occupant(instance, accepted) {
            self.set_phase(instance, Phase::Suspending, now);
            let room = plan::room_for_moved(&accepted.desired, &self.actual, &self.settings);
            self.executor.suspend(occupant, room);
        }
    }

    pub(super) fn restore(&mut self, instance: &InstanceId, accepted: &Accepted, now: Moment) {
        if let Some(occupant) = self.occupant(instance, accepted) {
            self.executor.restore(occupant);
            self.set_phase(instance, Phase::Restoring, now);
            self.actual.last_start = now;
        }
    }

    fn occupant(&self, instance: &InstanceId, accepted: &Accepted) -> Option<Occupant> {
        let known = self.actual.instances.get(instance)?;
        let (_, object) = accepted.desired.revisions.get(&known.revision)?;
        Some(Occupant {
            instance: instance.clone(),
            pid: known.pid,
            devices: known.devices.clone(),
            memory_limit: limits::Limits::of(object).memory_bytes,
        })
    }

    /// A suspended one is about to be removed: others may have its devices by now.
    pub(super) fn let_go_of_devices(&mut self, instance: &InstanceId) {
        let known = self.actual.instances.get_mut(instance);
        if let Some(known) = known.filter(|known| known.held_devices().is_none()) {
            known.devices.clear();
        }
    }

    pub(super) fn suspended(&mut self, instance: InstanceId, result: Result<u64, SuspendError>, now: Moment) {
        if !self.is_in(&instance, &Phase::Suspending) {
            return;
        }
        let error = match result {
            Ok(bytes) => {
                self.set_phase(&instance, Phase::Suspended, now);
                return self.moved(&instance, bytes);
            }
            Err(SuspendError::NotNow(why)) => {
                self.set_phase(&instance, Phase::Draining, now);
                return self.delay(&instance, "NotSuspended", why, false, now);
            }
            Err(error) => error,
        };
        tracing::warn!(%instance, %error, "cannot suspend an instance, it ends instead");
        if let Some(revision) = self.actual.instances.get(&instance).map(|known| known.revision.clone()) {
            let message = format!("an idle instance ends and its next one begins anew: {error}");
            self.event(EventKind::Warning, "NotSuspended", &revision, message);
            if let (SuspendError::Cannot(why), Some(known)) =
                (error, self.actual.revisions.get_mut(&revision))
            {
                known.cannot_suspend = Some(why);
            }
        }
        self.set_phase(&instance, Phase::Stopping { killed: false }, now);
        self.executor.terminate(instance, Doing::Serving);
    }

    pub(super) fn restored(&mut self, instance: InstanceId, result: Result<(), RestoreError>, now: Moment) {
        if !self.is_in(&instance, &Phase::Restoring) {
            return;
        }
        let error = match result {
            Ok(()) => {
                self.set_phase(&instance, Phase::Ready, now);
                return self.moved(&instance, 0);
            }
            Err(RestoreError::NotNow { why, crowded }) => {
                self.set_phase(&instance, Phase::Suspended, now);
                return self.delay(&instance, "NotRestored", why, crowded, now);
            }
            Err(error) => error,
        };
        tracing::warn!(%instance, %error, "cannot let a suspended instance go on, it is killed");
        if let Some(revision) = self.actual.instances.get(&instance).map(|known| known.revision.clone()) {
            let message = format!("its instance is lost, and the next one begins anew: {error}");
            self.event(EventKind::Warning, "NotRestored", &revision, message);
        }
        self.set_phase(&instance, Phase::Stopping { killed: true }, now);
        self.executor.kill(instance);
    }

    fn moved(&mut self, instance: &InstanceId, bytes: u64) {
        if let Some(known) = self.actual.instances.get_mut(instance) {
            (known.moved_bytes, known.delayed, known.astray) = (bytes, None, false);
        }
    }

    /// It is tried again later; told once, not at each try.
    fn delay(&mut self, instance: &InstanceId, reason: &str, why: String, crowded: bool, now: Moment) {
        let Some(known) = self.actual.instances.get_mut(instance) else { return };
        let is_told = known.delayed.as_ref().is_some_and(|delay| delay.why == why);
        let delay = Delay { why: why.clone(), since: now, until: now.after(RETRY_MS), crowded };
        known.delayed = Some(delay);
        let revision = known.revision.clone();
        if !is_told {
            tracing::warn!(%instance, why, "an instance is not moved to or from its devices, trying again");
            self.event(EventKind::Warning, reason, &revision, format!("{why}; it is tried again"));
        }
    }
}
