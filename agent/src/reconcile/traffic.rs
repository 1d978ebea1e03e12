//! Where requests go: steps the rollouts, makes the route table, and says what the router counts. Starts no instance.

use std::collections::BTreeMap;
use std::sync::Arc;

use tombolo_agent_core::actual::{Moment, Phase, Traffic};
use tombolo_agent_core::plan;
use tombolo_agent_core::rollout::gate::Health;
use tombolo_agent_core::table;
use tombolo_agent_core::waits::Waits;
use tombolo_api::RevisionKey;
use tombolo_api::desired::Desired;
use tombolo_api::report::{EventKind, RouteReport};
use tombolo_router::RevisionMeter;

use super::Reconciler;

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
        let desired = plan::rollable(desired, &self.actual, &self.settings, &self.rollouts);
        let ready = |key: &RevisionKey| table::serves(&desired, &self.actual, key);
        let stepped = self.rollouts.step(&desired, ready, &health, now);
        if stepped.save {
            self.outputs.records.rollouts.send_replace(self.rollouts.encode());
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
        let known = |key: RevisionKey| {
            let health = health(&self.meter.revision(&key)?, self.meter.waits(&key));
            Some((key, health))
        };
        named.filter_map(known).collect()
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

/// Waiting for an instance is left out: a cold start is no fault of the code. So is what clients did not send.
fn health(meter: &RevisionMeter, waiting: Waits) -> Health {
    let others_us = meter.cold_starts.sum_us.saturating_add(meter.faults_of_clients.sum_us);
    let served_us = meter.latency.sum_us.saturating_sub(others_us);
    let answers: u64 = meter.answers.iter().sum();
    Health {
        answers: answers.saturating_sub(meter.faults_of_clients.count()),
        errors: meter.failed(),
        latency_sum_ms: served_us as f64 / 1000.0,
        abandoned: meter.given_up,
        waiting,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tombolo_router::Histogram;

    use super::*;

    #[test]
    fn health_is_what_the_code_does_and_not_what_starting_takes() {
        let times = |sum_us| Histogram { sum_us, ..Histogram::default() };
        let now = Instant::now();
        let meter = RevisionMeter {
            at: now,
            born: now,
            in_flight: 9,
            held: 4,
            held_bytes: 100,
            last_activity: None,
            arrived: 50,
            finished: 41,
            concurrency_us: 7,
            answers: [1, 20, 3, 5, 8],
            abandoned: 4,
            given_up: 3,
            broken: 2,
            latency: times(2_500_000),
            faults_of_clients: Histogram {
                counts: std::array::from_fn(|bucket| u64::from(bucket < 2)),
                sum_us: 200_000,
            },
            cold_starts: times(1_800_000),
            refused: [2; 6],
        };
        let waiting = Waits::new(vec![0, 0, 5]);
        let expected = Health {
            // Without the two whose clients sent nothing whole.
            answers: 35,
            // Of the class 5xx, and those broken off.
            errors: 10,
            latency_sum_ms: 500.0,
            // Not the one that waited for an instance.
            abandoned: 3,
            waiting: waiting.clone(),
        };
        assert_eq!(health(&meter, waiting), expected);

        // One that waited for its instance is not answered yet.
        let starting = RevisionMeter { latency: times(1_000), ..meter };
        assert_eq!(health(&starting, Waits::default()).latency_sum_ms, 0.0);
    }
}
