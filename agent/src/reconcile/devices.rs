//! Devices, as the reconciler hears and tells of them. Gives none away: the plan does.

use std::collections::BTreeSet;
use std::sync::Arc;

use tombolo_agent_core::actual::{Moment, Phase};
use tombolo_agent_core::devices::{Choice, Inventory, PLUGIN_WAIT_MS};
use tombolo_agent_core::plan::Action;
use tombolo_api::report::EventKind;

use super::{Reconciler, traffic};

impl Reconciler {
    /// Plugins may register: resources that are not known yet are waited for.
    pub(crate) fn await_plugins(&mut self) {
        self.actual.devices.awaited_until = self.now().after(PLUGIN_WAIT_MS);
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
            let devices: Vec<String> = known.devices.values().flatten().map(ToString::to_string).collect();
            let message = format!(
                "instance {instance} ends: of its devices {} one is unhealthy or gone",
                devices.join(", ")
            );
            self.event(EventKind::Warning, "DeviceUnhealthy", &known.revision, message);
        }
    }
}
