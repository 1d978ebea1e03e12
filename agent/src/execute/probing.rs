//! Which instances are probed, and how probes get to them. It must not know what probes are or find.

use std::sync::Arc;

use tombolo_agent_core::supervision::InstanceId;

use super::{Inner, lock};
use crate::probe::{self, Finding, ProbeEvent, Probes, Reach, Unsupported};

impl Inner {
    /// Probes the instance until its guard is dropped; gives what to tell if that cannot be done.
    pub(super) fn probe(
        &self,
        instance: &InstanceId,
        probes: Result<Probes, Unsupported>,
        is_paused: bool,
    ) -> Option<ProbeEvent> {
        match probes {
            Ok(probes) => {
                let mut guards = lock(&self.probes);
                // One that was deleted meanwhile has been forgotten, and would be probed for ever.
                if lock(&self.in_use).contains_key(instance) {
                    let reach = self.reach(instance);
                    let guard = probe::watch(instance.clone(), probes, reach, self.outcomes.clone());
                    if is_paused {
                        guard.pause();
                    }
                    guards.insert(instance.clone(), guard);
                }
                None
            }
            Err(error) => {
                let finding = Finding::Failed { reason: "ProbeUnsupported", message: error.to_string() };
                Some(ProbeEvent { instance: instance.clone(), finding })
            }
        }
    }

    /// How probes get to an instance.
    pub(super) fn reach(&self, instance: &InstanceId) -> Reach {
        let (dialer, instance) = (self.tools.dialer.clone(), instance.clone());
        let socket = move || {
            let (dialer, instance) = (dialer.clone(), instance.clone());
            Box::pin(async move { dialer.socket(&instance).await }) as _
        };
        Reach { socket: Arc::new(socket), exec: None }
    }

    pub(super) fn probing(&self, instance: &InstanceId, order: fn(&probe::Guard)) {
        if let Some(guard) = lock(&self.probes).get(instance) {
            order(guard);
        }
    }

    pub(super) fn stop_probing(&self, instance: &InstanceId) {
        lock(&self.probes).remove(instance);
    }
}
