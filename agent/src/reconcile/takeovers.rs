//! Revisions that take the place of the one before them, as the plan has them do: what is noted of it, told and written down.

use tombolo_agent_core::actual::{Moment, Takeover};
use tombolo_agent_core::takeovers::Takeovers;
use tombolo_api::RevisionKey;
use tombolo_api::report::{EventKind, RolledBack};

use super::{Reconciler, object_of};

impl Reconciler {
    /// Has written what changed of takeovers.
    pub(super) fn record_takeovers(&self) {
        let takeovers = Takeovers::among(&self.actual.revisions).encode();
        self.outputs.records.takeovers.send_if_modified(|current| {
            let changed = *current != takeovers;
            if changed {
                *current = takeovers;
            }
            changed
        });
    }

    pub(super) fn take_over(&mut self, revision: &RevisionKey) {
        // It may have proved itself since this was planned.
        let known = self.actual.revisions.get_mut(revision).filter(|known| !known.ready_once);
        if let Some(known) = known {
            known.takeover = Takeover::Begun { started: None };
            self.routes_changed = true;
            let message = "requests wait for it; the revision before it ends first".to_owned();
            self.event(EventKind::Normal, "TakingOver", revision, message);
        }
    }

    pub(super) fn undo(&mut self, revision: &RevisionKey, why: RolledBack) {
        if let Some(known) = self.actual.revisions.get_mut(revision).filter(|known| !known.ready_once) {
            self.outputs.outbox.push(
                EventKind::Warning,
                &why.reason,
                &object_of(revision),
                why.message.clone(),
            );
            known.takeover = Takeover::Undone(why);
            self.routes_changed = true;
        }
    }

    pub(super) fn note_start(&mut self, revision: &RevisionKey, now: Moment) {
        let known = self.actual.revisions.get_mut(revision);
        if let Some(Takeover::Begun { started }) = known.map(|known| &mut known.takeover) {
            started.get_or_insert(now);
        }
    }
}
