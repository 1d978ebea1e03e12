//! Devices, as the reconciler hears and tells of them. Gives none away: the plan does.

use std::collections::BTreeSet;
use std::sync::Arc;

use tombolo_agent_core::actual::{Moment, Phase};
use tombolo_agent_core::devices::{Choice, Devices, Inventory, PLUGIN_WAIT_MS};
use tombolo_agent_core::plan::Action;
use tombolo_agent_core::supervision::InstanceId;
use tombolo_api::report::EventKind;

use super::Reconciler;
use crate::execute::{NOT_READY, Trouble};

/// Devices that an event names, at most: of one GPU shared by memory an instance has hundreds.
const NAMED_MAX: usize = 4;

impl Reconciler {
    /// Says whether plugins may register, or why not. If they may, resources that are not known yet are waited for.
    pub(crate) fn expect_plugins(&mut self, may_register: Result<(), String>) {
        match may_register {
            Ok(()) => self.actual.devices.awaited_until = self.now().after(PLUGIN_WAIT_MS),
            Err(why) => {
                self.info.limitations.push(why.clone());
                self.limitations.push(why);
            }
        }
    }

    pub(super) fn note_devices(&mut self, inventory: Arc<Inventory>) {
        self.changed = true;
        (self.info.capacity, self.info.allocatable) = (inventory.capacity(), inventory.allocatable());
        self.info.largest_piece = inventory.largest_piece();
        self.actual.note_devices(inventory, self.now());
        // Fewer may be too few for two revisions beside each other.
        self.routes_changed = true;
    }

    /// The same for instances that were found only now.
    pub(super) fn note_devices_again(&mut self) {
        let inventory = self.actual.devices.inventory.clone();
        self.actual.note_devices(inventory, self.now());
        self.note_uses(self.actual.devices.uses.clone());
    }

    pub(super) fn ask_preferences(&self, choices: BTreeSet<Choice>) {
        self.outputs.choices.send_if_modified(|current| {
            let changed = *current != choices;
            if changed {
                *current = choices;
            }
            changed
        });
    }

    pub(super) fn refit(&mut self, instance: InstanceId, devices: Devices, now: Moment) {
        if let Some(known) = self.actual.instances.get_mut(&instance) {
            known.fit.begin(now);
            self.executor.refit(instance, devices);
        }
    }

    pub(super) fn nodes_changed(&mut self, instance: &InstanceId, now: Moment) {
        if let Some(known) = self.actual.instances.get_mut(instance) {
            known.fit.outdate(now);
        }
    }

    /// The end of a [`refit`](Self::refit).
    pub(super) fn refitted(&mut self, id: &InstanceId, result: Result<bool, Trouble>, now: Moment) {
        let Some(known) = self.actual.instances.get_mut(id) else { return };
        let had_failed = known.fit.has_failed();
        known.fit.end(result.as_ref().map(drop), now);
        let revision = known.revision.clone();
        match result {
            Ok(true) => {
                let message = format!("instance {id} has its devices with the nodes that they have now");
                self.event(EventKind::Normal, "DeviceReturned", &revision, message);
            }
            Ok(false) => {}
            Err(trouble) if trouble.reason == NOT_READY => known.fit.await_plugin(now),
            Err(_) if had_failed => {}
            Err(Trouble { reason, message }) => {
                tracing::warn!(instance = %id, reason, why = message, "cannot be given its devices anew");
                let message = format!("instance {id} cannot be given its devices anew: {message}");
                self.event(EventKind::Warning, &reason, &revision, message);
            }
        }
    }

    /// Tells that an instance ends because its device is lost.
    pub(super) fn tell_lost(&self, action: &Action, now: Moment) {
        let (Action::Terminate { instance } | Action::Delete { instance }) = action else { return };
        let Some(known) = self.actual.instances.get(instance) else { return };
        let had_a_life = matches!(
            known.phase,
            Phase::Probing | Phase::Ready | Phase::Draining | Phase::Primed | Phase::Suspended
        );
        if had_a_life && known.ends_at().is_some_and(|at| now >= at) {
            let lost = self.actual.devices.inventory.lost(&known.devices);
            let lost: Vec<String> = lost.take(NAMED_MAX).map(ToString::to_string).collect();
            let message = match lost.is_empty() {
                false => format!("instance {instance} ends: unhealthy or gone: {}", lost.join(", ")),
                true => format!(
                    "instance {instance} ends: its devices have come back with other nodes, which it could not be given"
                ),
            };
            self.event(EventKind::Warning, "DeviceUnhealthy", &known.revision, message);
        }
    }
}
