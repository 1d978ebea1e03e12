//! How outcomes of actions and the supervisor's words change what the reconciler knows. Starts no action.

use std::collections::BTreeMap;

use tombolo_agent_core::actual::{InstanceActual, Moment, Phase};
use tombolo_agent_core::annotations::Scale;
use tombolo_agent_core::backoff;
use tombolo_agent_core::limits;
use tombolo_agent_core::plan::TERMINATION_GRACE_MS;
use tombolo_agent_core::supervision::{ExitRecord, InstanceId, InstancePhase, InstanceRecord};
use tombolo_api::report::EventKind;
use tombolo_api::serving::Container;
use tombolo_api::{Digest, RevisionKey};

use super::Reconciler;
use crate::accepted::Accepted;
use crate::execute::{
    Doing, LABEL_NAME, LABEL_NAMESPACE, LABEL_OBJECT, LABEL_PORT, Outcome, Trouble, claim_of, devices_of,
};
use crate::probe::{Finding, ProbeEvent};
use crate::supervisor::{CallError, SupervisorEvent};

/// After an instance could not be made to wait, or ended while it did, before the next is made: what is wrong with the node
/// passes slowly, and no request waits for it. Milliseconds.
const PRIME_RETRY_MS: u64 = 30_000;

impl Reconciler {
    pub(super) fn outcome(&mut self, outcome: Outcome) {
        self.changed = true;
        let now = self.now();
        match outcome {
            Outcome::ImagePrepared { object, digest, result } => {
                self.image_prepared(&object, digest, result, now)
            }
            Outcome::Primed { instance, result } => self.primed(instance, result, now),
            Outcome::Launched { instance, result: Ok(pid) } => self.launched(instance, pid, now),
            Outcome::Launched { instance, result: Err(trouble) } => {
                // One whose end was told meanwhile has been counted already.
                if self.is_in(&instance, &Phase::Launching)
                    && let Some(known) = self.actual.instances.remove(&instance)
                {
                    self.crashed(&known, false, trouble, now);
                }
            }
            Outcome::Frozen { instance, result } => self.frozen(instance, result, now),
            Outcome::Thawed { instance, result } => self.thawed(instance, result, now),
            Outcome::Suspended { instance, result } => self.suspended(instance, result, now),
            Outcome::Restored { instance, result } => self.restored(instance, result, now),
            Outcome::Refitted { instance, result } => self.refitted(&instance, result, now),
            Outcome::NodesChanged { instance } => self.nodes_changed(&instance, now),
            Outcome::Probed(event) => self.probed(event, now),
            Outcome::ExitExplained { instance, exit, last_words } => {
                self.ended(instance, exit, last_words, now)
            }
            Outcome::Deleted { instance } => {
                self.actual.instances.remove(&instance);
                self.collect_soon(now);
            }
            // What is left of it stays known and is asked to be deleted again.
            Outcome::DeleteFailed { instance, exit } => self.set_phase(&instance, Phase::Ended { exit }, now),
        }
    }

    pub(super) fn is_in(&self, id: &InstanceId, phase: &Phase) -> bool {
        self.actual.instances.get(id).is_some_and(|known| known.phase == *phase)
    }

    fn has_memory_limit(&self, known: &InstanceActual) -> bool {
        let desired = self.accepted.as_ref().map(|accepted| &accepted.desired.revisions);
        let object = desired.and_then(|revisions| revisions.get(&known.revision));
        object.is_some_and(|(_, object)| limits::memory_limit_bytes(object).is_some())
    }

    fn primed(&mut self, instance: InstanceId, result: Result<i32, Trouble>, now: Moment) {
        match (self.actual.instances.get_mut(&instance), result) {
            (Some(known), Ok(pid)) if known.phase == Phase::Priming => {
                known.pid = pid;
                known.phase = Phase::Primed;
                known.since = now;
            }
            (Some(known), Err(trouble)) if known.phase == Phase::Priming => {
                let revision = known.revision.clone();
                let Trouble { reason, message } = trouble;
                tracing::warn!(%revision, reason, message, "cannot make an instance to wait");
                self.actual.instances.remove(&instance);
                self.prime_later(&revision, now);
            }
            // Its end was told first.
            (Some(_), _) => {}
            // It was given up meanwhile.
            (None, Ok(_)) => self.executor.delete(instance),
            (None, Err(_)) => {}
        }
    }

    fn prime_later(&mut self, revision: &RevisionKey, now: Moment) {
        if let Some(known) = self.actual.revisions.get_mut(revision) {
            known.prime_retry_at = now.after(PRIME_RETRY_MS);
        }
    }

    fn launched(&mut self, instance: InstanceId, pid: i32, now: Moment) {
        match self.actual.instances.get_mut(&instance) {
            Some(known) if known.phase == Phase::Launching => {
                known.pid = pid;
                known.phase = Phase::Probing;
                known.since = now;
            }
            // Its end was told first.
            Some(_) => {}
            // It was given up meanwhile.
            None => self.executor.delete(instance),
        }
    }

    fn frozen(&mut self, instance: InstanceId, result: Result<(), CallError>, now: Moment) {
        if !self.is_in(&instance, &Phase::Freezing) {
            return;
        }
        match result {
            Ok(()) => self.set_phase(&instance, Phase::Frozen, now),
            Err(error) => {
                tracing::warn!(%instance, %error, "cannot freeze an instance, it ends instead");
                self.set_phase(&instance, Phase::Stopping { killed: false }, now);
                self.executor.terminate(instance, Doing::Frozen);
            }
        }
    }

    fn thawed(&mut self, instance: InstanceId, result: Result<(), CallError>, now: Moment) {
        if !self.is_in(&instance, &Phase::Thawing) {
            return;
        }
        match result {
            Ok(()) => self.set_phase(&instance, Phase::Ready, now),
            Err(error) => {
                tracing::warn!(%instance, %error, "cannot let a frozen instance go on, it is killed");
                self.set_phase(&instance, Phase::Stopping { killed: true }, now);
                self.executor.kill(instance);
            }
        }
    }

    pub(super) fn container(&self, revision: &RevisionKey) -> Option<&Container> {
        let (_, object) = self.accepted.as_ref()?.desired.revisions.get(revision)?;
        object.spec.serving_container()
    }

    fn probed(&mut self, event: ProbeEvent, now: Moment) {
        let ProbeEvent { instance, finding } = event;
        match finding {
            Finding::Ready(passed) => {
                self.executor.passed(&instance, passed);
                self.probe_passed(instance, now);
            }
            Finding::NotReady { message } => {
                tracing::warn!(%instance, message, "an instance is not ready");
                if let Some(known) = self.actual.instances.get_mut(&instance) {
                    known.unready = Some(message);
                }
                if self.is_in(&instance, &Phase::Ready) {
                    self.set_phase(&instance, Phase::Probing, now);
                }
            }
            Finding::Failed { reason, message } => {
                let Some(known) = self.actual.instances.get(&instance).cloned() else { return };
                let was_ready = known.phase == Phase::Ready;
                if was_ready || known.phase == Phase::Probing {
                    self.set_phase(&instance, Phase::Stopping { killed: false }, now);
                    let doing = if was_ready { Doing::Serving } else { Doing::Beginning };
                    self.executor.terminate(instance, doing);
                    self.crashed(&known, was_ready, Trouble::new(reason, message), now);
                }
            }
        }
    }

    fn probe_passed(&mut self, instance: InstanceId, now: Moment) {
        let Some(known) =
            self.actual.instances.get_mut(&instance).filter(|known| known.phase == Phase::Probing)
        else {
            return;
        };
        known.phase = Phase::Ready;
        known.since = now;
        let (key, object) = (known.revision.clone(), known.object);
        if let Some(revision) =
            self.actual.revisions.get_mut(&key).filter(|revision| revision.object == object)
        {
            revision.last_active = now;
            self.prove(&key, now);
        }
    }

    /// An instance's init has ended, and its last words are known.
    fn ended(&mut self, instance: InstanceId, exit: ExitRecord, last_words: Option<String>, now: Moment) {
        let Some(known) = self.actual.instances.get(&instance).cloned() else { return };
        if matches!(known.phase, Phase::Ended { .. } | Phase::Deleting) {
            return;
        }
        self.set_phase(&instance, Phase::Ended { exit: exit.clone() }, now);
        let was_ready = matches!(
            known.phase,
            Phase::Ready
                | Phase::Freezing
                | Phase::Frozen
                | Phase::Thawing
                | Phase::Suspending
                | Phase::Suspended
                | Phase::Restoring
        );
        match known.phase {
            Phase::Stopping { .. } | Phase::Draining => return,
            // Its program has not run: nothing is its fault.
            Phase::Priming | Phase::Primed => return self.prime_later(&known.revision, now),
            _ => {}
        }
        let trouble =
            explain(&exit, was_ready, (known.port, self.has_memory_limit(&known)), last_words.as_deref());
        self.crashed(&known, was_ready, trouble, now);
    }

    /// An instance that is stopped because it did not answer in time counts as a failed one.
    pub(super) fn note_missed_deadline(&mut self, id: &InstanceId, accepted: &Accepted, now: Moment) {
        let Some(instance) =
            self.actual.instances.get(id).filter(|known| known.phase == Phase::Probing).cloned()
        else {
            return;
        };
        let object = accepted
            .desired
            .revisions
            .get(&instance.revision)
            .filter(|(digest, _)| *digest == instance.object);
        let Some((_, object)) = object else { return };
        let deadline_ms = Scale::of(&object.annotations).progress_deadline_ms;
        if now.since(instance.since) >= deadline_ms {
            let (port, seconds) = (instance.port, deadline_ms / 1000);
            let what =
                format!("the program did not pass its readiness probe on port {port} within {seconds} s");
            let why = instance.unready.as_ref().map(|why| format!("; {why}")).unwrap_or_default();
            let trouble =
                Trouble::new("ProgressDeadlineExceeded", format!("{what}: it must listen on $PORT{why}"));
            self.crashed(&instance, false, trouble, now);
        }
    }

    /// Tells, once of each revision, of a program that is killed because it did not end when it was asked to.
    pub(super) fn tell_stubborn(&mut self, id: &InstanceId) {
        let Some(instance) = self.actual.instances.get(id) else { return };
        if instance.phase != (Phase::Stopping { killed: false }) {
            return;
        }
        if let Some(known) = self.actual.revisions.get_mut(&instance.revision)
            && std::mem::replace(&mut known.told_stubborn, true)
        {
            return;
        }
        let message = format!(
            "instance {id} is killed: its program did not end within {} s of SIGTERM, and must have a handler for it, as the \
             first process of a container ignores it otherwise",
            TERMINATION_GRACE_MS / 1000
        );
        tracing::warn!(revision = %instance.revision, message, "a program does not end when it is asked to");
        self.event(EventKind::Warning, "ExceededGracePeriod", &instance.revision, message);
    }

    /// An instance came to nothing by itself: counted, told, and not tried again before its time.
    pub(super) fn crashed(
        &mut self,
        instance: &InstanceActual,
        was_ready: bool,
        trouble: Trouble,
        now: Moment,
    ) {
        let Trouble { reason, message } = trouble;
        tracing::warn!(revision = %instance.revision, reason, message, "an instance came to nothing");
        self.event(EventKind::Warning, &reason, &instance.revision, message.clone());
        let known = self.actual.revisions.get_mut(&instance.revision);
        let Some(revision) = known.filter(|revision| revision.object == instance.object) else { return };
        let crashes = &mut revision.crashes;
        crashes.total += 1;
        crashes.recent += 1;
        crashes.retry_at = now.after(backoff::crash_retry_ms(crashes.recent, was_ready));
        crashes.reason = reason;
        crashes.message = message;
    }

    pub(super) fn supervisor_event(&mut self, event: SupervisorEvent) {
        self.changed = true;
        match event {
            SupervisorEvent::Connected { limitations, instances } => {
                self.limited(limitations);
                self.supervised = true;
                self.adopt_instances(instances);
            }
            SupervisorEvent::Limitations(limitations) => self.limited(limitations),
            SupervisorEvent::Lost => self.supervised = false,
            SupervisorEvent::Exited { id, exit } => self.explain_exit(id, exit),
            SupervisorEvent::Woken(id) if self.is_in(&id, &Phase::Frozen) => self.thaw(id, self.now()),
            SupervisorEvent::Woken(_) => {}
        }
    }

    fn limited(&mut self, by_supervisor: Vec<String>) {
        self.info.limitations = self.limitations.iter().cloned().chain(by_supervisor).collect();
    }

    fn explain_exit(&mut self, id: InstanceId, exit: ExitRecord) {
        if let Some(known) = self.actual.instances.get(&id) {
            self.executor.explain_exit(id, known.revision.clone(), exit);
        }
    }

    /// Brings what is known of instances in line with what the supervisor holds: after this agent's start, or its own.
    fn adopt_instances(&mut self, records: Vec<InstanceRecord>) {
        let now = self.now();
        let mut held = BTreeMap::new();
        for record in records {
            held.insert(record.id.clone(), record);
        }
        let lost: Vec<_> =
            self.actual.instances.keys().filter(|id| !held.contains_key(*id)).cloned().collect();
        for id in lost {
            // One that was being made or started reports its own failure.
            let reports = [Phase::Priming, Phase::Launching].iter().any(|phase| self.is_in(&id, phase));
            if !reports {
                self.actual.instances.remove(&id);
                self.executor.forget(&id);
            }
        }
        for (id, record) in held {
            if self.actual.instances.contains_key(&id) {
                if let Some(exit) = record.exit {
                    self.explain_exit(id, exit);
                }
            } else {
                self.adopt_instance(id, record, now);
            }
        }
        self.note_devices_again();
        self.collect();
    }

    fn adopt_instance(&mut self, id: InstanceId, record: InstanceRecord, now: Moment) {
        let label = |name: &str| record.labels.get(name).cloned().unwrap_or_default();
        let revision = RevisionKey::new(label(LABEL_NAMESPACE), label(LABEL_NAME));
        // Without readable labels it matches no desired revision, and so is drained and removed.
        let object = label(LABEL_OBJECT).parse().unwrap_or_else(|_| Digest::of(b""));
        let port = label(LABEL_PORT).parse().unwrap_or(0);
        let phase = match (&record.exit, record.phase) {
            (Some(exit), _) => Phase::Ended { exit: exit.clone() },
            (None, InstancePhase::Running) => Phase::Probing,
            (None, InstancePhase::Created) => Phase::Primed,
            (None, InstancePhase::Frozen) => Phase::Frozen,
            (None, InstancePhase::Suspended | InstancePhase::Moving) => Phase::Suspended,
            (None, InstancePhase::Creating | InstancePhase::Ended) => Phase::Stopping { killed: true },
        };
        let is_alive = matches!(phase, Phase::Probing | Phase::Primed | Phase::Frozen | Phase::Suspended);
        // One whose namespaces cannot be reached is of no use.
        let phase = match is_alive && self.executor.adopt(&record).is_err() {
            true => Phase::Stopping { killed: true },
            false => phase,
        };
        tracing::info!(instance = %id, %revision, pid = record.pid, ?phase, "adopted an instance");
        let devices = devices_of(&record);
        let made = InstanceActual::new(revision.clone(), object, port, phase, now);
        let astray = record.phase == InstancePhase::Moving;
        let moved_bytes = record.moved_bytes;
        if moved_bytes > 0 {
            self.executor.note_moved(&id, moved_bytes);
        }
        let claim = claim_of(&record);
        let instance = InstanceActual { pid: record.pid, devices, claim, moved_bytes, astray, ..made };
        let phase = instance.phase.clone();
        self.actual.instances.insert(id.clone(), instance);
        match phase {
            Phase::Probing | Phase::Frozen | Phase::Suspended => {
                // How long it has run nobody knows any more.
                self.note_start(&revision, now);
                self.executor.probe(id, port, self.container(&revision), phase != Phase::Probing);
            }
            Phase::Stopping { .. } => {
                self.set_phase(&id, Phase::Deleting, now);
                self.executor.delete(id);
            }
            _ => {}
        }
    }
}

/// A reason word and a message that says what happened and what to do.
fn explain(
    exit: &ExitRecord,
    was_ready: bool,
    (port, has_limit): (u16, bool),
    last_words: Option<&str>,
) -> Trouble {
    let how = match (exit.code, exit.signal) {
        (Some(code), _) => format!("ended with exit status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    };
    let words = last_words.map(|words| format!("; the last line it wrote: {words}")).unwrap_or_default();
    let (reason, message) = match (exit.out_of_memory, was_ready) {
        (true, _) => {
            let what = match has_limit {
                true => {
                    "the program used more than its memory limit and was killed: raise resources.limits.memory"
                }
                false => {
                    "the node had no memory left and the program was killed: give it, and others that take much, \
                     resources.limits.memory"
                }
            };
            ("OOMKilled", format!("{what}{words}"))
        }
        (false, true) => ("ContainerExited", format!("the program {how} while it was serving{words}")),
        (false, false) => {
            let what = format!("the program {how} before it answered on port {port}");
            ("ExitedBeforeReady", format!("{what}: it must listen on $PORT and keep running{words}"))
        }
    };
    Trouble::new(reason, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_explained_with_what_to_do() {
        let exit = |code, signal, out_of_memory| ExitRecord { code, signal, out_of_memory, time_ms: 0 };
        let early = explain(&exit(Some(3), None, false), false, (8080, true), Some("no config"));
        assert_eq!(early.reason, "ExitedBeforeReady");
        assert!(
            early.message.contains("status 3")
                && early.message.contains("8080")
                && early.message.ends_with("no config")
        );
        for (has_limit, what) in [(true, "its memory limit"), (false, "the node had no memory left")] {
            let killed = explain(&exit(None, Some(9), true), true, (1, has_limit), None);
            assert!(killed.reason == "OOMKilled" && killed.message.contains(what), "{}", killed.message);
        }
        let late = explain(&exit(None, Some(11), false), true, (1, true), None);
        assert!(late.reason == "ContainerExited" && late.message.contains("signal 11"));
    }
}
