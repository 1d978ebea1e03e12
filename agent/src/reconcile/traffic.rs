//! Where requests go: steps the rollouts, makes the route table, and says what the router counts. Starts no instance.

use std::collections::BTreeMap;
use std::sync::Arc;

use tombolo_agent_core::actual::{Moment, Phase, Traffic};
use tombolo_agent_core::plan;
use tombolo_agent_core::rollout::gate::Health;
use tombolo_agent_core::table;
use tombolo_agent_core::takeovers::Takeovers;
use tombolo_api::RevisionKey;
use tombolo_api::desired::Desired;
use tombolo_api::report::{EventKind, RouteReport};
use tombolo_router::RevisionMeter;

use super::Reconciler;

/// 5xx among the digits of [`RevisionMeter::answers`].
const SERVER_ERRORS: usize = 4;

impl Reconciler {
    pub(super) fn publish_table(&mut self, now: Moment) {
        let Some(accepted) = self.accepted.clone() else { return };
        if self.routes_changed || self.rollout_wake.is_some_and(|wake| wake <= now) {
            self.step_rollouts(&accepted.desired, now);
        }
        let before = self.outputs.table.borrow().clone();
        let table = table::build(&accepted.desired, &self.actual, &self.rollouts, &before, now);
        self.outputs.table.send_if_modified(|current| {
            let changed = **current != table;
            if changed {
                *current = Arc::new(table);
            }
            changed
        });
    }

    fn step_rollouts(&mut self, desired: &Desired, now: Moment) {
        let health = self.health(desired);
        let desired = plan::rollable(desired, &self.actual, &self.settings);
        let ready = |key: &RevisionKey| table::serves(&desired, &self.actual, key);
        let stepped = self.rollouts.step(&desired, ready, &health, now);
        if stepped.save {
            self.outputs.rollouts.send_replace(self.rollouts.encode());
        }
        self.rollout_wake = stepped.wake;
        self.routes_changed = false;
    }

    /// How those do that a gate may judge.
    fn health(&self, desired: &Desired) -> BTreeMap<RevisionKey, Health> {
        let gated = desired.routes.values().filter(|route| route.rollout.is_some());
        let named = gated.flat_map(|route| {
            let candidates = route.targets.iter().flat_map(|target| &target.candidates);
            candidates.map(|name| RevisionKey::new(&route.namespace, name))
        });
        named.filter_map(|key| Some((key.clone(), health(&self.meter.revision(&key)?)))).collect()
    }

    pub(super) fn traffic(&self) -> Traffic {
        let mut traffic = self.meter.traffic(|instant| self.clock.moment(instant));
        let in_force = self.meter.is_in_force(&self.outputs.table.borrow());
        traffic.unsettled = !in_force;
        for (id, instance) in &self.actual.instances {
            // Until the router has let go of it, a draining instance may get one request more.
            if instance.phase == Phase::Draining && !(in_force && self.meter.is_released(id)) {
                traffic.instances.entry(id.clone()).or_insert(1);
            }
        }
        traffic
    }

    /// Has written what changed of takeovers.
    pub(super) fn record_takeovers(&self) {
        let takeovers = Takeovers::among(&self.actual.revisions).encode();
        self.outputs.takeovers.send_if_modified(|current| {
            let changed = *current != takeovers;
            if changed {
                *current = takeovers;
            }
            changed
        });
    }

    /// Tells of rollouts that were undone since the last report.
    pub(super) fn tell_undone(&self, before: &[RouteReport], after: &[RouteReport]) {
        let undone = |routes: &[RouteReport]| -> BTreeMap<(String, String, String), (String, String)> {
            let targets =
                routes.iter().flat_map(|route| route.targets.iter().map(move |target| (route, target)));
            let undone = targets.filter_map(|(route, target)| {
                let why = target.rolled_back.as_ref()?;
                let key = (route.namespace.clone(), target.goal.clone(), why.reason.clone());
                Some((key, (route.namespace.clone(), why.message.clone())))
            });
            undone.collect()
        };
        let before = undone(before);
        for ((namespace, revision, reason), (_, message)) in undone(after) {
            let key = (namespace.clone(), revision.clone(), reason.clone());
            // The planner's own are told when they are made.
            if !before.contains_key(&key) && reason != "NotReadyInTime" {
                self.event(EventKind::Warning, &reason, &RevisionKey::new(&namespace, &revision), message);
            }
        }
    }
}

/// Waiting for an instance is left out: a cold start is no fault of the code.
fn health(meter: &RevisionMeter) -> Health {
    let served_us = meter.latency.sum_us.saturating_sub(meter.cold_starts.sum_us);
    Health {
        answers: meter.answers.iter().sum(),
        errors: meter.answers[SERVER_ERRORS],
        latency_sum_ms: served_us as f64 / 1000.0,
    }
}
