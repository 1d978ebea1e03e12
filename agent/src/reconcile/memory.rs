//! What the reconciler learns of memory, at most once a second and only when there is something else to do: at rest nothing is
//! looked at. What it means for the plan is decided by that.

use std::time::Duration;

use tombolo_agent_core::actual::{InstanceActual, Moment, Phase, Traffic};
use tombolo_agent_core::memory::{Footprint, Footprints, NodeMemory};

use super::Reconciler;
use crate::gauge::Gauge;

/// Between one look and the next, milliseconds.
const LOOK_MS: u64 = 1_000;

/// While somebody waits for memory, how often it is looked whether there is some.
const WAITING_POLL: Duration = Duration::from_secs(2);

/// While requests are served, how often it is looked what that takes.
const SERVING_POLL: Duration = Duration::from_secs(10);

/// What was last seen of memory, and when.
pub(super) struct Looks {
    gauge: Gauge,
    node: Option<(Moment, NodeMemory)>,
    instances_at: Option<Moment>,
    /// The kernel says what instances hold.
    tells: bool,
}

impl Looks {
    pub(super) fn new(gauge: Gauge) -> Self {
        Self { gauge, node: None, instances_at: None, tells: false }
    }
}

impl Reconciler {
    /// Before anything is planned on it. While a request waits only the node is asked, and what its instances hold comes after.
    pub(super) fn look_at_memory(&mut self, traffic: &Traffic, now: Moment) {
        if !traffic.is_held() || self.memory.node.is_none() {
            self.look_at_instances(now);
        }
        let is_due = self.memory.node.is_none_or(|(at, _)| now.since(at) >= LOOK_MS);
        if let Some(node) = self.memory.gauge.node().filter(|_| is_due) {
            self.memory.node = Some((now, node));
            self.actual.note_node(&node);
        }
    }

    /// What instances hold. Whether it changes what a plan is made from.
    pub(super) fn look_at_instances(&mut self, now: Moment) -> bool {
        if self.memory.instances_at.is_some_and(|at| now.since(at) < LOOK_MS) {
            return false;
        }
        // One that rests has what it had; of one that was found resting that is not known.
        let is_asked = |known: &InstanceActual| match known.phase {
            Phase::Probing | Phase::Ready | Phase::Draining | Phase::Stopping { .. } => true,
            Phase::Frozen | Phase::Suspended => known.held_bytes == 0,
            _ => false,
        };
        let asked = self.actual.instances.iter().filter(|(_, known)| known.pid > 0 && is_asked(known));
        let held = self.memory.gauge.held(asked.map(|(id, known)| (id, known.pid)));
        (self.memory.instances_at, self.memory.tells) = (Some(now), !held.is_empty());
        let changed = self.actual.note_held(held);
        if changed {
            self.log_footprints();
            let footprints = Footprints::among(&self.actual.revisions).encode();
            self.outputs.records.footprints.send_replace(footprints);
        }
        let before = self.actual.others_bytes;
        if let Some((_, node)) = &self.memory.node {
            self.actual.note_node(node);
        }
        changed || self.actual.others_bytes != before
    }

    /// How long no look at memory is due.
    pub(super) fn until_look(&self, traffic: &Traffic) -> Duration {
        if self.memory.tells && self.has_unseen() {
            Duration::from_millis(LOOK_MS)
        } else if !self.cuts.is_empty() {
            WAITING_POLL
        } else if traffic.revisions.values().any(|demand| demand.in_flight > 0) {
            SERVING_POLL
        } else {
            Duration::MAX
        }
    }

    /// Whether one is ready of whose revision none was looked at.
    fn has_unseen(&self) -> bool {
        let mut ready = self.actual.instances.values().filter(|known| known.phase == Phase::Ready);
        ready.any(|instance| {
            let known = self.actual.revisions.get(&instance.revision);
            known.is_some_and(|known| known.object == instance.object && !known.memory.is_seen())
        })
    }

    fn log_footprints(&self) {
        for (revision, known) in &self.actual.revisions {
            if let Some(Footprint { least_bytes, most_bytes }) = known.memory.footprint() {
                let (least_mebibytes, most_mebibytes) = (least_bytes >> 20, most_bytes >> 20);
                tracing::debug!(%revision, least_mebibytes, most_mebibytes, "what its instances were seen to hold");
            }
        }
    }
}
