//! What the autoscaler has given up, as the status and the events tell of it. Decides nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use tombolo_agent_core::actual::Targets;
use tombolo_agent_core::status;
use tombolo_api::RevisionKey;
use tombolo_api::report::{EventKind, RevisionReport};

use super::Reconciler;

impl Reconciler {
    pub(super) fn take_targets(&mut self, targets: Arc<Targets>) {
        if Arc::ptr_eq(&self.targets, &targets) {
            return;
        }
        // The plan may be the same for another reason.
        self.changed |= given_up(&self.targets) != given_up(&targets);
        self.targets = targets;
    }

    /// Adds to the reports which revisions are given up; told once, when it begins.
    pub(super) fn tell_timed_out(&self, reports: &mut [RevisionReport]) {
        status::note_timed_out(reports, &self.actual, &self.targets, self.now());
        let told = self.outputs.report.borrow();
        let were_told: BTreeSet<_> =
            told.revisions.iter().filter(|it| it.timed_out).map(|it| &it.uid).collect();
        for report in reports.iter().filter(|it| it.timed_out && !were_told.contains(&it.uid)) {
            let why =
                if report.message.is_empty() { "no instance was ready in time" } else { &report.message };
            let revision = RevisionKey::new(&report.namespace, &report.name);
            self.event(EventKind::Warning, "TimedOut", &revision, why.to_owned());
        }
    }
}

fn given_up(targets: &Targets) -> BTreeSet<&RevisionKey> {
    targets.iter().filter(|(_, target)| target.timed_out).map(|(key, _)| key).collect()
}
