//! Instances that hold more of accelerators' memory than they declared, as the reconciler hears and tells of them. Ends none: the
//! plan does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tombolo_agent_core::actual::{InstanceActual, Moment, Phase};
use tombolo_agent_core::devices::overuse::{Overuse, Policy, REASON, Rule, Uses};
use tombolo_agent_core::plan::Action;
use tombolo_agent_core::supervision::InstanceId;
use tombolo_api::report::EventKind;

use super::Reconciler;
use crate::execute::Trouble;

/// Before it is told of an instance again that it holds too much, milliseconds: one that takes and gives back has no news.
const TELL_AGAIN_MS: u64 = 600_000;

impl Reconciler {
    pub(super) fn note_uses(&mut self, uses: Arc<Uses>) {
        let now = self.now();
        self.actual.note_uses(uses, self.settings.overuse.context_bytes, now);
        let is_news = |known: &InstanceActual| {
            let told = known.overuse_told.is_some_and(|told| now < told.after(TELL_AGAIN_MS));
            known.overuse.as_ref().is_some_and(|overuse| overuse.since == now) && !told
        };
        let news = self.actual.instances.iter().filter(|(_, known)| is_news(known));
        let news: Vec<InstanceId> = news.map(|(id, _)| id.clone()).collect();
        for id in news {
            self.tell_overuse(&id, now);
        }
    }

    fn tell_overuse(&mut self, id: &InstanceId, now: Moment) {
        let Some(known) = self.actual.instances.get(id) else { return };
        let Some(Overuse { excess, .. }) = &known.overuse else { return };
        let rule = self.overuse_rule(known);
        let what = match rule.policy {
            Policy::Off => return,
            Policy::Stop => format!("instance {id} ends in {} s if it keeps that", rule.grace_ms / 1000),
            Policy::Warn => {
                self.overuses.warned.fetch_add(1, Ordering::Relaxed);
                format!("instance {id} goes on")
            }
        };
        let message = format!("{what}: {excess}: raise its limit of tombolo.dev/gpu-memory");
        tracing::warn!(revision = %known.revision, message, "more memory is held than was declared");
        self.event(EventKind::Warning, REASON, &known.revision, message);
        if let Some(known) = self.actual.instances.get_mut(id) {
            known.overuse_told = Some(now);
        }
    }

    fn overuse_rule(&self, known: &InstanceActual) -> Rule {
        let general = self.settings.overuse;
        let accepted = self.accepted.as_ref();
        let object = accepted.and_then(|accepted| accepted.desired.revisions.get(&known.revision));
        object.map_or(general, |(_, object)| general.of(&object.annotations))
    }

    /// One that is killed for what it holds counts as a failed one.
    pub(super) fn note_overuse(&mut self, action: &Action, now: Moment) {
        let Action::Kill { instance } = action else { return };
        let Some(known) = self.actual.instances.get(instance).cloned() else { return };
        // Others that are killed have been asked to end before.
        if matches!(known.phase, Phase::Stopping { .. }) {
            return;
        }
        let Some(Overuse { excess, .. }) = &known.overuse else { return };
        self.overuses.stopped.fetch_add(1, Ordering::Relaxed);
        let message = format!("the program was killed: {excess}: raise its limit of tombolo.dev/gpu-memory");
        let was_ready = known.phase != Phase::Probing;
        self.crashed(&known, was_ready, Trouble::new(REASON, message), now);
    }
}
