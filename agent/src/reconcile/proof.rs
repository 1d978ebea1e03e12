//! When a revision has proved itself on this node: enough of its instances are ready at once, and requests may go to it.

use tombolo_agent_core::actual::{Crashes, Moment, Phase, Takeover};
use tombolo_agent_core::annotations::Scale;
use tombolo_api::RevisionKey;
use tombolo_api::report::EventKind;

use super::Reconciler;

impl Reconciler {
    /// Another of its instances is ready, or the node has room for fewer than it had.
    pub(super) fn prove(&mut self, key: &RevisionKey, now: Moment) {
        let Some(accepted) = self.accepted.clone() else { return };
        let Some((digest, object)) = accepted.desired.revisions.get(key) else { return };
        let is_ready = |phase: &Phase| *phase == Phase::Ready;
        let current =
            self.actual.instances.values().filter(|one| one.revision == *key && one.object == *digest);
        let ready = current.filter(|one| is_ready(&one.phase)).count();
        let room = match self.cuts.contains_key(key) {
            true => self.wanted.get(key).copied().unwrap_or(0),
            false => u32::MAX,
        };
        let needed = Scale::of(&object.annotations).proof(room) as usize;
        let known = self.actual.revisions.get_mut(key);
        let Some(known) = known.filter(|known| known.object == *digest && !known.ready_once) else { return };
        if ready == 0 || ready < needed {
            return;
        }
        known.ready_once = true;
        known.takeover = Takeover::None;
        known.crashes = Crashes { total: known.crashes.total, ..Crashes::default() };
        self.routes_changed = true;
        self.changed = true;
        self.ready_record.insert(key, digest);
        self.executor.note_ready(object);
        self.collect_soon(now);
        tracing::info!(revision = %key, ready, "a revision has become ready");
        let message = format!("{ready} of its instances answer");
        self.event(EventKind::Normal, "RevisionReady", key, message);
    }

    /// The same of all that have not proved themselves: the room that there is has been found out, and instances come back to
    /// be ready that were on their way out. Whether any of them has.
    pub(super) fn prove_all(&mut self, now: Moment) -> bool {
        let is_unproved = |key: &RevisionKey| self.actual.revisions.get(key).is_some_and(|it| !it.ready_once);
        let unproved: Vec<_> = self.actual.revisions.keys().filter(|key| is_unproved(key)).cloned().collect();
        unproved.iter().for_each(|key| self.prove(key, now));
        let has_proved = |key: &RevisionKey| self.actual.revisions.get(key).is_some_and(|it| it.ready_once);
        unproved.iter().any(has_proved)
    }
}
