//! Instances that leave their devices and come back to them: what is asked of the executor, and what its outcomes mean.

use tombolo_agent_core::actual::{Moment, Phase};
use tombolo_agent_core::limits;
use tombolo_agent_core::supervision::InstanceId;
use tombolo_api::report::EventKind;

use super::Reconciler;
use crate::accepted::Accepted;
use crate::execute::{Doing, Occupant, RestoreError, SuspendError};

impl Reconciler {
    pub(super) fn suspend(&mut self, instance: &InstanceId, accepted: &Accepted, now: Moment) {
        if let Some(occupant) = self.occupant(instance, accepted) {
            self.set_phase(instance, Phase::Freezing, now);
            self.executor.suspend(occupant);
        }
    }

    pub(super) fn restore(&mut self, instance: &InstanceId, accepted: &Accepted, now: Moment) {
        if let Some(occupant) = self.occupant(instance, accepted) {
            self.executor.restore(occupant);
            self.set_phase(instance, Phase::Thawing, now);
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
        if let Some(known) = known.filter(|known| known.phase == Phase::Suspended) {
            known.devices.clear();
        }
    }

    pub(super) fn suspended(&mut self, instance: InstanceId, result: Result<(), SuspendError>, now: Moment) {
        if !self.is_in(&instance, &Phase::Freezing) {
            return;
        }
        let Err(error) = result else { return self.set_phase(&instance, Phase::Suspended, now) };
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
        if !self.is_in(&instance, &Phase::Thawing) {
            return;
        }
        let Err(error) = result else { return self.set_phase(&instance, Phase::Ready, now) };
        tracing::warn!(%instance, %error, "cannot let a suspended instance go on, it is killed");
        if let Some(revision) = self.actual.instances.get(&instance).map(|known| known.revision.clone()) {
            self.event(EventKind::Warning, "NotRestored", &revision, error.to_string());
        }
        self.set_phase(&instance, Phase::Stopping { killed: true }, now);
        self.executor.kill(instance);
    }
}
