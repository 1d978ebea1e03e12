//! What the reconciler learns of memory, at most once a second and at a revision's first answer, and only when there is something
//! else to do: at rest nothing is looked at. What it means for the plan is decided by that.

use std::collections::BTreeSet;
use std::time::Duration;

use tombolo_agent_core::actual::{Actual, InstanceActual, Moment, Phase, Traffic};
use tombolo_agent_core::memory::{Footprint, Footprints, Learnt};
use tombolo_agent_core::supervision::InstanceId;

use super::Reconciler;
use crate::gauge::Gauge;

/// Between one look and the next, milliseconds.
const LOOK_MS: u64 = 1_000;

/// While somebody waits for memory, how often it is looked whether there is some.
const WAITING_POLL: Duration = Duration::from_secs(2);

/// While requests are served, how often it is looked what that takes.
const SERVING_POLL: Duration = Duration::from_secs(10);

/// When memory was last looked at.
pub(super) struct Looks {
    gauge: Gauge,
    node_at: Option<Moment>,
    instances_at: Option<Moment>,
    /// The kernel says what instances hold, as far as is known.
    tells: bool,
}

impl Looks {
    pub(super) fn new(gauge: Gauge) -> Self {
        Self { gauge, node_at: None, instances_at: None, tells: true }
    }
}

impl Reconciler {
    /// Before anything is planned on it. While a request waits only what is new is looked at, the rest once nobody waits for it.
    pub(super) fn look_at_memory(&mut self, traffic: &Traffic, now: Moment) {
        if !traffic.is_held() {
            self.look_at_instances(traffic, now);
        }
        self.note_first_answers(traffic, now);
        if self.memory.node_at.is_none_or(|at| now.since(at) >= LOOK_MS) {
            self.note_held(traffic, now, |_, known| known.held_bytes == 0);
            self.note_node(now);
        }
    }

    /// What all instances hold. Whether it changes what a plan is made from; `None`: none was looked at.
    pub(super) fn look_at_instances(&mut self, traffic: &Traffic, now: Moment) -> Option<bool> {
        if self.memory.instances_at.is_some_and(|at| now.since(at) < LOOK_MS) {
            return None;
        }
        let changed = self.note_held(traffic, now, |_, _| true)?;
        self.memory.instances_at = Some(now);
        let before = self.actual.others_bytes;
        self.note_node(now);
        Some(changed || self.actual.others_bytes != before)
    }

    /// What instances hold that have answered, where that is not known of their revision: more of them may wait for it.
    fn note_first_answers(&mut self, traffic: &Traffic, now: Moment) {
        let Actual { instances, revisions, .. } = &self.actual;
        let is_news = |id: &InstanceId| {
            let instance = instances.get(id).filter(|instance| instance.phase == Phase::Ready)?;
            let known = revisions.get(&instance.revision).filter(|known| known.object == instance.object)?;
            Some(!matches!(known.memory, Learnt::Seen(Footprint { served: true, .. })))
        };
        let answered = traffic.served.iter().filter(|id| is_news(id) == Some(true));
        let answered: BTreeSet<_> = answered.cloned().collect();
        if self.memory.tells && !answered.is_empty() {
            self.note_held(traffic, now, |id, _| answered.contains(id));
        }
    }

    /// Looks at those that `pass`. Whether their revisions are reckoned with something else now; `None`: there were none.
    fn note_held(
        &mut self,
        traffic: &Traffic,
        now: Moment,
        pass: impl Fn(&InstanceId, &InstanceActual) -> bool,
    ) -> Option<bool> {
        // One that rests has what it had; of one that was found resting that is not known.
        let is_asked = |known: &InstanceActual| match known.phase {
            Phase::Probing | Phase::Ready | Phase::Draining | Phase::Stopping { .. } => known.pid > 0,
            Phase::Frozen | Phase::Suspended => known.pid > 0 && known.held_bytes == 0,
            _ => false,
        };
        let instances = &self.actual.instances;
        let asked = instances.iter().filter(|(id, known)| is_asked(known) && pass(id, known));
        let asked: Vec<_> = asked.collect();
        if asked.is_empty() {
            return None;
        }
        let serves = asked.iter().any(|(_, known)| known.phase == Phase::Ready);
        self.memory.gauge.retain(|id| instances.contains_key(id));
        let held = self.memory.gauge.held(asked.into_iter().map(|(id, known)| (id, known.pid)));
        // What leaves may have ended.
        match held.iter().any(|(_, bytes)| bytes.is_some()) {
            true => self.memory.tells = true,
            false if serves => self.memory.tells = false,
            false => {}
        }
        let changed = self.actual.note_held(held, traffic, now);
        if changed {
            self.log_footprints();
            let footprints = Footprints::among(&self.actual.revisions).encode();
            self.outputs.records.footprints.send_replace(footprints);
        }
        Some(changed)
    }

    fn note_node(&mut self, now: Moment) {
        if let Some(node) = self.memory.gauge.node() {
            self.actual.note_node(&node, self.memory.tells);
        }
        self.memory.node_at = Some(now);
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
            if let Some(Footprint { least_bytes, most_bytes, .. }) = known.memory.footprint() {
                let (least_mebibytes, most_mebibytes) = (least_bytes >> 20, most_bytes >> 20);
                tracing::debug!(%revision, least_mebibytes, most_mebibytes, "what its instances were seen to hold");
            }
        }
    }
}
