//! The probes of running instances, as Kubernetes and Knative define them: startup, readiness and liveness, by HTTP, TCP, gRPC
//! or a command. It must not know the supervisor, the router or the plan: how an instance is reached comes as functions, and
//! what was found goes out as [`ProbeEvent`]s.
//!
//! ```text
//! watch: startup ─▶ readiness ─▶ Ready ⇄ NotReady        schedule: when, and what it adds up to
//!           │     └▶ liveness ─▶ Failed                  check: one attempt ─▶ connect ─▶ http, grpc ─▶ h2
//!           └▶ Failed                                                      └▶ exec
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch as state};
use tokio::task::AbortHandle;
use tombolo_agent_core::supervision::InstanceId;
use tombolo_api::serving::{Container, Probe};

mod check;
mod connect;
mod exec;
mod grpc;
mod h2;
mod http;
mod pause;
mod schedule;
#[cfg(test)]
mod tests;
mod watch;

use check::Check;
pub(crate) use check::Unsupported;
pub(crate) use exec::{Exec, Exit};
use schedule::Timing;

/// How an instance is reached.
#[derive(Clone)]
pub(crate) struct Reach {
    /// Makes TCP sockets in its network namespace: not connected, not blocking.
    pub(crate) socket: MakeSocket,
    /// Runs commands in it, if that can be done.
    pub(crate) exec: Option<Exec>,
}

pub(crate) type MakeSocket =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<OwnedFd>> + Send>> + Send + Sync>;

/// What probing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProbeEvent {
    pub(crate) instance: InstanceId,
    pub(crate) finding: Finding,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// It answers: requests may come.
    Ready(Passed),
    /// It does not answer, any more or for longer than its probe allows: no requests until it is `Ready`.
    NotReady { message: String },
    /// It must be restarted; nothing is probed any more. `reason`: one CamelCase word.
    Failed { reason: &'static str, message: String },
}

/// The attempt that a probe passed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    pub(crate) began: Instant,
    pub(crate) took: Duration,
}

/// Why an attempt did not pass, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Miss {
    /// The instance did not answer as it should.
    Failed(String),
    /// Nothing was found out of the instance: the attempt itself could not be made. It counts as none.
    Unknown(String),
}

/// All probes of one instance.
pub(crate) struct Probes {
    startup: Option<Plan>,
    readiness: Plan,
    liveness: Option<Plan>,
}

/// One probe.
struct Plan {
    check: Check,
    timing: Timing,
}

impl Probes {
    /// The probes a container asks for; without any it is ready when its serving port is open.
    pub(crate) fn of(
        container: Option<&Container>,
        serving_port: u16,
        reach: &Reach,
    ) -> Result<Self, Unsupported> {
        let plan = |probe: Option<&Probe>, field| {
            probe.map(|probe| Plan::of(probe, field, container, serving_port, reach)).transpose()
        };
        let probe = |which: fn(&Container) -> Option<&Probe>| container.and_then(which);
        let readiness = probe(|container| container.readiness_probe.as_ref()).cloned().unwrap_or_default();
        Ok(Self {
            startup: plan(probe(|container| container.startup_probe.as_ref()), "startupProbe")?,
            readiness: Plan::of(&readiness, "readinessProbe", container, serving_port, reach)?,
            liveness: plan(probe(|container| container.liveness_probe.as_ref()), "livenessProbe")?,
        })
    }
}

impl Plan {
    fn of(
        probe: &Probe,
        field: &'static str,
        container: Option<&Container>,
        serving_port: u16,
        reach: &Reach,
    ) -> Result<Self, Unsupported> {
        let check = Check::of(probe, field, container, serving_port, reach.exec.as_ref())?;
        let pace = check.pace(probe.period_seconds > 0);
        let timing =
            Timing::new(probe.initial_delay_seconds, probe.period_seconds, probe.timeout_seconds, pace)
                .thresholds(probe.success_threshold, probe.failure_threshold);
        Ok(Self { check, timing })
    }
}

/// An instance is probed until this is dropped.
pub(crate) struct Guard {
    task: AbortHandle,
    paused: state::Sender<bool>,
}

impl Guard {
    /// The instance does not run for a while, so it cannot answer; an attempt under way is forgotten.
    pub(crate) fn pause(&self) {
        self.paused.send_replace(true);
    }

    /// It runs again.
    pub(crate) fn resume(&self) {
        self.paused.send_replace(false);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Probes an instance whose program begins about now. May begin before it: what is not there yet is looked for again.
pub(crate) fn watch<E>(instance: InstanceId, probes: Probes, reach: Reach, events: mpsc::Sender<E>) -> Guard
where
    E: From<ProbeEvent> + Send + 'static,
{
    let (paused, receiver) = state::channel(false);
    let watch = watch::run(probes, reach, receiver, async move |finding| {
        // Without a listener the agent is stopping, and nobody wants to know.
        let _ = events.send(ProbeEvent { instance: instance.clone(), finding }.into()).await;
    });
    Guard { task: tokio::spawn(watch).abort_handle(), paused }
}
