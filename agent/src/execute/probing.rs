//! Which instances are probed, and how probes get to them. It must not know what is probed or what is found.

use std::sync::Arc;
use std::time::Duration;

use tombolo_agent_core::supervision::{Answer, EXEC_TIMEOUT_MS_MAX, InstanceId, Refusal, Request};
use tombolo_api::serving::Container;

use super::{Executor, Inner, lock};
use crate::probe::{self, Exit, Finding, Miss, Passed, ProbeEvent, Probes, Reach, Unsupported};
use crate::supervisor::{CallError, Supervisor};

/// Before the supervisor is asked again to let an instance go on.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl Executor {
    /// Probes an instance that was found running, or, if it is frozen, from its thaw on.
    pub(crate) fn probe(
        &self,
        instance: InstanceId,
        port: u16,
        container: Option<&Container>,
        is_frozen: bool,
    ) {
        let inner = self.inner.clone();
        let probes = Probes::of(container, port, &inner.reach(&instance));
        let unsupported = inner.probe(&instance, probes, true);
        self.inner.spawn(async move {
            match unsupported {
                Some(unsupported) => inner.tell(unsupported.into()).await,
                None if is_frozen => {}
                None => {
                    inner.take_freeze_back(&instance).await;
                    inner.probing(&instance, probe::Guard::resume);
                }
            }
        });
    }

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

    /// A former agent may have asked for a freeze that is under way while the supervisor still says that the instance runs. This
    /// call waits for it, and changes nothing where there is none.
    async fn take_freeze_back(&self, instance: &InstanceId) {
        while lock(&self.in_use).contains_key(instance) {
            match self.tools.supervisor.call(Request::Thaw { id: instance.clone() }).await {
                // One that has ended is told of by itself.
                Ok(_) | Err(CallError::Refused(Refusal::NotFound(_) | Refusal::WrongPhase { .. })) => return,
                Err(error) => tracing::warn!(%instance, %error, "cannot tell whether an instance runs"),
            }
            tokio::time::sleep(ASK_AGAIN).await;
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
    use std::os::fd::{AsRawFd as _, OwnedFd};
    use std::path::Path;

    use nix::sys::socket::{
        AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept, bind, listen, recv, send,
        socket,
    };
    use tokio::sync::{mpsc, watch};
    use tombolo_agent_core::supervision::{
        Call, InstancePhase, InstanceRecord, LogSpec, MESSAGE_MAX, Message, VERSION,
    };
    use tombolo_router::Dialer;

    use super::super::{Outcome, Tools};
    use super::*;
    use crate::config::ImagesConfig;
    use crate::import::Pins;
    use crate::supervisor::SupervisorConfig;
    use crate::tls::TimeFloor;

    /// A supervisor that holds nothing and answers as it is told.
    struct Fake(i32);

    impl Fake {
        /// Takes the one connection that comes, and greets it.
        fn meet(listener: &OwnedFd) -> Self {
            let fake = Self(accept(listener.as_raw_fd()).unwrap());
            let (seq, _) = fake.hear();
            let program = String::new();
            fake.say(seq, Ok(Answer::Hello { version: VERSION, program, pid: 1, limitations: vec![] }));
            let (seq, _) = fake.hear();
            fake.say(seq, Ok(Answer::Instances(vec![])));
            fake
        }

        fn hear(&self) -> (u64, Request) {
            let mut buffer = vec![0; MESSAGE_MAX];
            let length = recv(self.0, &mut buffer, MsgFlags::empty()).unwrap();
            let Call { seq, request } = serde_json::from_slice(&buffer[..length]).unwrap();
            (seq, request)
        }

        fn say(&self, seq: u64, result: Result<Answer, Refusal>) {
            let message = serde_json::to_vec(&Message::Reply { seq, result }).unwrap();
            send(self.0, &message, MsgFlags::empty()).unwrap();
        }
    }

    fn listen_in(run_dir: &Path) -> OwnedFd {
        let listener =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&run_dir.join("supervisor.sock")).unwrap()).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        listener
    }

    async fn executor(dir: &Path) -> (Executor, mpsc::Receiver<Outcome>) {
        let config = SupervisorConfig { run_dir: dir.into(), command: vec![], log: dir.join("log") };
        let (supervisor, _events) = Supervisor::start(config).await.unwrap();
        let tools = Tools {
            supervisor,
            dialer: Dialer::start().unwrap(),
            activations: Arc::default(),
            images: tombolo_oci::Store::open(&dir.join("images")).unwrap(),
            pins: Pins::default(),
            devices: None,
            identity: watch::Sender::new(None).subscribe(),
            floor: TimeFloor::default(),
            state_dir: dir.join("state"),
            run_dir: dir.into(),
            keeping: ImagesConfig::default(),
        };
        let (outcomes, receiver) = mpsc::channel(8);
        (Executor::new(tools, outcomes), receiver)
    }

    /// A freeze that a former agent asked for may be under way: until the supervisor has taken it back nothing is found of it, since
    /// the kernel answers a frozen program's clients, and a request would wait for ever.
    #[tokio::test]
    async fn what_is_found_running_is_probed_once_it_is_sure_to_run() {
        let dir = tempfile::tempdir().unwrap();
        let listener = listen_in(dir.path());
        let fake = std::thread::spawn(move || {
            let fake = Fake::meet(&listener);
            for result in [Err(Refusal::Runtime("the supervisor is ending".into())), Ok(Answer::Done)] {
                let (seq, request) = fake.hear();
                assert_eq!(request, Request::Thaw { id: InstanceId("a".into()) });
                fake.say(seq, result);
            }
            let (seq, request) = fake.hear();
            assert!(matches!(request, Request::Exec { .. }), "{request:?}");
            let output = String::new();
            fake.say(seq, Ok(Answer::Executed { code: Some(0), signal: None, timed_out: false, output }));
        });
        let (executor, mut outcomes) = executor(dir.path()).await;
        let record = InstanceRecord {
            id: InstanceId("a".into()),
            phase: InstancePhase::Running,
            pid: i32::try_from(std::process::id()).unwrap(),
            exit: None,
            log: LogSpec { path: dir.path().join("log"), max_bytes: 1, max_files: 1 },
            labels: Default::default(),
            moved_bytes: 0,
        };
        executor.adopt(&record).unwrap();
        let probe = serde_json::json!({"name": "c", "image": "i", "readinessProbe": {"exec": {"command": ["/ready"]}}});
        let container: Container = serde_json::from_value(probe).unwrap();
        executor.probe(record.id, 8080, Some(&container), false);
        let outcome = tokio::time::timeout(Duration::from_secs(60), outcomes.recv()).await;
        fake.join().expect("the calls come in this order");
        let outcome = outcome.expect("it is probed").unwrap();
        assert!(
            matches!(&outcome, Outcome::Probed(ProbeEvent { finding: Finding::Ready(_), .. })),
            "{outcome:?}"
        );
    }

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
