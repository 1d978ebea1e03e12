//! Which instances are probed, and how probes get to them. It must not know what is probed or what is found.

use std::sync::Arc;
use std::time::Duration;

use tombolo_agent_core::supervision::{Answer, EXEC_TIMEOUT_MS_MAX, InstanceId, Refusal, Request};

use super::{Executor, Inner, lock};
use crate::probe::{self, Exit, Finding, Miss, Passed, ProbeEvent, Probes, Reach, Unsupported};
use crate::supervisor::{CallError, Supervisor};

impl Executor {
    /// The instance has passed its readiness probe.
    pub(crate) fn passed(&self, instance: &InstanceId, passed: Passed) {
        self.inner.tools.activations.passed(instance, passed.began, passed.took);
    }
}

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
        let (supervisor, id) = (self.tools.supervisor.clone(), instance.clone());
        let (dialer, instance) = (self.tools.dialer.clone(), instance.clone());
        let socket = move || {
            let (dialer, instance) = (dialer.clone(), instance.clone());
            Box::pin(async move { dialer.socket(&instance).await }) as _
        };
        let exec = move |args, timeout| Box::pin(run(supervisor.clone(), id.clone(), args, timeout)) as _;
        Reach { socket: Arc::new(socket), exec: Some(Arc::new(exec)) }
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

/// Runs a command in an instance, for as long as it may take.
async fn run(
    supervisor: Supervisor,
    id: InstanceId,
    args: Vec<String>,
    timeout: Duration,
) -> Result<Exit, Miss> {
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).min(EXEC_TIMEOUT_MS_MAX);
    told(supervisor.call(Request::Exec { id, args, timeout_ms }).await, timeout)
}

/// What the supervisor's answer says of the instance. That there is no supervisor, or that it cannot enter the container, is
/// nothing that a restart of the instance would mend.
fn told(answer: Result<Answer, CallError>, timeout: Duration) -> Result<Exit, Miss> {
    match answer {
        Ok(Answer::Executed { timed_out: true, .. }) => {
            Err(Miss::Failed(format!("did not end within {timeout:?}")))
        }
        Ok(Answer::Executed { code: Some(status), output, .. }) => Ok(Exit { status, output }),
        Ok(Answer::Executed { signal, .. }) => {
            Err(Miss::Failed(format!("was ended by signal {}", signal.unwrap_or(0))))
        }
        Ok(_) => Err(Miss::Unknown(CallError::Unexpected.to_string())),
        // The command itself cannot be: asking again does not help.
        Err(error @ CallError::Refused(Refusal::Malformed(_))) => Err(Miss::Failed(error.to_string())),
        Err(error) => Err(Miss::Unknown(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_commands_own_end_is_held_against_an_instance() {
        let ended = |code, signal, timed_out| {
            let output = String::new();
            Ok(Answer::Executed { code, signal, timed_out, output })
        };
        let refused = |refusal| Err(CallError::Refused(refusal));
        let word = |answer| match told(answer, Duration::from_secs(1)) {
            Ok(exit) => format!("exit {}", exit.status),
            Err(Miss::Failed(_)) => "failed".to_owned(),
            Err(Miss::Unknown(_)) => "unknown".to_owned(),
        };
        let id = InstanceId("a".into());
        for (answer, expected) in [
            (ended(Some(0), None, false), "exit 0"),
            (ended(Some(127), None, false), "exit 127"),
            (ended(None, Some(9), false), "failed"),
            (ended(None, None, true), "failed"),
            (refused(Refusal::Malformed("there is no command".into())), "failed"),
            (Ok(Answer::Done), "unknown"),
            (Err(CallError::Lost), "unknown"),
            (Err(CallError::Timeout), "unknown"),
            (refused(Refusal::NotFound(id)), "unknown"),
            (refused(Refusal::Runtime("the worker died".into())), "unknown"),
            (refused(Refusal::Timeout(20)), "unknown"),
        ] {
            assert_eq!(word(answer), expected);
        }
    }
}
