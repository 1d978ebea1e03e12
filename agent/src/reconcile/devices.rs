//! Devices, as the reconciler hears and tells of them. Gives none away: the plan does.

use std::collections::BTreeSet;
use std::sync::Arc;

use tombolo_agent_core::actual::{Moment, Phase};
use tombolo_agent_core::devices::{Choice, Inventory, PLUGIN_WAIT_MS};
use tombolo_agent_core::plan::Action;
use tombolo_api::report::EventKind;

use super::{Reconciler, traffic};

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
        self.actual.note_devices(inventory, self.now());
        if let Some(accepted) = &self.accepted {
            self.rollable = traffic::rollable(&accepted.desired, &self.actual.devices.inventory);
            self.routes_changed = true;
        }
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

    /// Tells that an instance ends because its device is lost.
    pub(super) fn tell_lost(&self, action: &Action, now: Moment) {
        let (Action::Terminate { instance } | Action::Delete { instance }) = action else { return };
        let Some(known) = self.actual.instances.get(instance) else { return };
        let had_a_life =
            matches!(known.phase, Phase::Probing | Phase::Ready | Phase::Draining | Phase::Primed);
        if had_a_life && known.ends_at().is_some_and(|at| now >= at) {
            let lost = self.actual.devices.inventory.lost(&known.devices);
            let lost: Vec<String> = lost.take(NAMED_MAX).map(ToString::to_string).collect();
            let message = format!("instance {instance} ends: unhealthy or gone: {}", lost.join(", "));
            self.event(EventKind::Warning, "DeviceUnhealthy", &known.revision, message);
        }
    }
}
