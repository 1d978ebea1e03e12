//! The reconciler: the one task that owns what is known of this node's revisions and instances, asks the planner, has its
//! actions executed, and tells router and hub what came of it.
//!
//! Takes: the accepted desired state, what the supervisor says, outcomes of actions, the router's demand. Gives: the route
//! table, the report, events. Decides nothing itself: `tombolo_agent_core::plan` does. Removals come first; an action under
//! way is part of what is, so nothing is started twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tombolo_agent_core::actual::{
    Actual, ImageState, InstanceActual, Moment, Phase, RevisionActual, Takeover, Targets,
};
use tombolo_agent_core::devices::overuse::Uses;
use tombolo_agent_core::devices::{Choice, Devices, Inventory};
use tombolo_agent_core::memory::Footprints;
use tombolo_agent_core::plan::{self, Action, Plan, Settings, Situation};
use tombolo_agent_core::rollout::Rollouts;
use tombolo_agent_core::routes::RouteTable;
use tombolo_agent_core::status;
use tombolo_agent_core::supervision::InstanceId;
use tombolo_agent_core::takeovers::Takeovers;
use tombolo_api::desired::RevisionObject;
use tombolo_api::report::{EventKind, NodeInfo, PullReport, Report};
use tombolo_api::{Digest, RevisionKey};
use tombolo_router::Meter;

use crate::accepted::Accepted;
use crate::clock::Clock;
use crate::execute::{Doing, Executor, Outcome};
use crate::gauge::Gauge;
use crate::outbox::Outbox;
use crate::progress::{Progress, Records};
use crate::ready::ReadyRecord;
use crate::supervisor::SupervisorEvent;
use crate::usage::Overuses;

mod devices;
mod given_up;
mod images;
mod memory;
mod outcomes;
mod proof;
mod suspending;
mod takeovers;
mod traffic;
mod usage;

/// While an instance drains, how often its requests are counted.
const DRAIN_POLL: Duration = Duration::from_millis(25);

/// Longest sleep: bounds what a missed notification could cost.
const IDLE_POLL: Duration = Duration::from_secs(60);

/// What the reconciler is given.
pub(crate) struct Inputs {
    pub(crate) accepted: watch::Receiver<Option<Arc<Accepted>>>,
    pub(crate) supervisor: mpsc::Receiver<SupervisorEvent>,
    /// Revisions for which the router holds a request.
    pub(crate) demand: mpsc::Receiver<RevisionKey>,
    /// What the autoscaler asks for.
    pub(crate) targets: watch::Receiver<Arc<Targets>>,
    pub(crate) outcomes: mpsc::Receiver<Outcome>,
    pub(crate) devices: watch::Receiver<Arc<Inventory>>,
    /// What instances hold of accelerators' memory.
    pub(crate) uses: watch::Receiver<Arc<Uses>>,
    /// Images that are being fetched.
    pub(crate) pulls: watch::Receiver<Vec<PullReport>>,
}

/// What the reconciler writes.
pub(crate) struct Outputs {
    pub(crate) table: watch::Sender<Arc<RouteTable>>,
    pub(crate) report: watch::Sender<Report>,
    pub(crate) outbox: Outbox,
    pub(crate) records: Records,
    /// Tells the autoscaler that a request is held.
    pub(crate) poke: Arc<Notify>,
    /// Which devices plugins should say their preference of.
    pub(crate) choices: watch::Sender<BTreeSet<Choice>>,
    /// Becomes true once desired state (if there is any) and instances are known, and stays so.
    pub(crate) ready: watch::Sender<bool>,
}

/// The task's state.
pub(crate) struct Reconciler {
    executor: Executor,
    outputs: Outputs,
    meter: Arc<Meter>,
    settings: Settings,
    memory: memory::Looks,
    overuses: Arc<Overuses>,
    ready_record: ReadyRecord,
    info: NodeInfo,
    /// What this agent itself lacks, beside what its supervisor says.
    limitations: Vec<String>,
    accepted: Option<Arc<Accepted>>,
    actual: Actual,
    pulls: Vec<PullReport>,
    targets: Arc<Targets>,
    rollouts: Rollouts,
    /// What a former agent left, until the desired state is known.
    left: (Takeovers, Footprints),
    /// Desired state or who serves is other than when rollouts were last stepped.
    routes_changed: bool,
    rollout_wake: Option<Moment>,
    /// When what instances have left behind is to be collected.
    collect_at: Option<Moment>,
    /// How many instances of each revision the last plan wanted, and why some get less.
    wanted: BTreeMap<RevisionKey, u32>,
    cuts: BTreeMap<RevisionKey, String>,
    /// Something is other than it was when table and report were last made.
    changed: bool,
    /// The supervisor is connected and has said what it holds.
    supervised: bool,
    clock: Clock,
}

impl Reconciler {
    pub(crate) fn new(
        executor: Executor,
        outputs: Outputs,
        meter: Arc<Meter>,
        ((settings, overuses), gauge): ((Settings, Arc<Overuses>), Gauge),
        (ready_record, Progress { rollouts, takeovers, footprints }): (ReadyRecord, Progress),
        clock: Clock,
    ) -> Self {
        let actual = Actual { incarnation: incarnation(), ..Actual::default() };
        Self {
            executor,
            outputs,
            meter,
            settings,
            memory: memory::Looks::new(gauge),
            overuses,
            ready_record,
            info: NodeInfo::default(),
            limitations: Vec::new(),
            accepted: None,
            actual,
            pulls: Vec::new(),
            targets: Arc::default(),
            rollouts,
            left: (takeovers, footprints),
            routes_changed: true,
            rollout_wake: None,
            collect_at: None,
            wanted: BTreeMap::new(),
            cuts: BTreeMap::new(),
            changed: true,
            supervised: false,
            clock,
        }
    }

    /// Says what the node is, for the report.
    pub(crate) fn describe(&mut self, info: NodeInfo) {
        self.info = info;
    }

    /// Publishes the routes of `accepted` before any instance is known: requests are held until they are, not refused.
    pub(crate) fn prime(&mut self, accepted: Option<Arc<Accepted>>) {
        self.adopt_desired(accepted);
        self.publish();
    }

    /// Runs until the supervisor's events end.
    pub(crate) async fn run(mut self, mut inputs: Inputs) {
        let accepted = inputs.accepted.borrow_and_update().clone();
        self.adopt_desired(accepted);
        loop {
            let sleep = self.pass().await;
            tokio::select! {
                changed = inputs.accepted.changed() => {
                    if changed.is_err() { return }
                    let accepted = inputs.accepted.borrow_and_update().clone();
                    self.adopt_desired(accepted);
                }
                event = inputs.supervisor.recv() => {
                    let Some(event) = event else { return };
                    self.supervisor_event(event);
                }
                Some(outcome) = inputs.outcomes.recv() => self.outcome(outcome),
                Some(_) = inputs.demand.recv() => self.outputs.poke.notify_one(),
                changed = inputs.targets.changed() => if changed.is_err() { return },
                changed = inputs.devices.changed() => {
                    if changed.is_err() { return }
                    self.note_devices(inputs.devices.borrow_and_update().clone());
                }
                changed = inputs.uses.changed() => {
                    if changed.is_err() { return }
                    self.note_uses(inputs.uses.borrow_and_update().clone());
                }
                changed = inputs.pulls.changed() => {
                    if changed.is_err() { return }
                    self.pulls = inputs.pulls.borrow_and_update().clone();
                    self.changed = true;
                }
                // What depends on time alone may be other now.
                () = tokio::time::sleep(sleep) => self.changed = true,
            }
            self.drain_inputs(&mut inputs);
        }
    }

    /// Takes what else has come meanwhile, so that a burst costs one pass.
    fn drain_inputs(&mut self, inputs: &mut Inputs) {
        while let Ok(event) = inputs.supervisor.try_recv() {
            self.supervisor_event(event);
        }
        while let Ok(outcome) = inputs.outcomes.try_recv() {
            self.outcome(outcome);
        }
        while inputs.demand.try_recv().is_ok() {}
        self.take_targets(inputs.targets.borrow_and_update().clone());
    }

    /// One pass: plan, start the actions, publish. Returns how long nothing need be done.
    ///
    /// What a request waits for comes first: instances that have become ready, then the calls that make one.
    async fn pass(&mut self) -> Duration {
        let now = self.now();
        if self.changed {
            self.publish_table(now);
        }
        if self.collect_at.is_some_and(|at| at <= now) {
            self.collect();
        }
        let Some(accepted) = self.accepted.clone().filter(|_| self.supervised) else {
            self.publish();
            return IDLE_POLL;
        };
        let traffic = self.traffic();
        self.look_at_memory(&traffic, now);
        self.forget_old_crashes(now);
        let table = self.outputs.table.borrow().clone();
        let situation = Situation {
            desired: &accepted.desired,
            actual: &self.actual,
            traffic: &traffic,
            table: &table,
            targets: &self.targets,
            settings: &self.settings,
        };
        let Plan { actions, wake, wanted, cuts, paced, choices } = plan::plan(&situation, now);
        self.ask_preferences(choices);
        self.changed |= !actions.is_empty() || self.wanted != wanted || self.cuts != cuts;
        (self.wanted, self.cuts) = (wanted, cuts);
        let proved = self.prove_all(now);
        let turns = |action: &Action| {
            matches!(action, Action::TakeOver { .. } | Action::StartDeadline { .. } | Action::Undo { .. })
        };
        let turned = actions.iter().any(turns);
        for action in actions {
            tracing::debug!(?action, "acting");
            self.act(action, &accepted, now);
        }
        if self.changed {
            // The calls just made are on their way before anything is told about them.
            tokio::task::yield_now().await;
            self.publish();
        }
        let looked = self.look_at_instances(&traffic, now);
        let again = looked.is_some_and(|changed| changed || paced) || turned || proved;
        let wakes = wake.map(|(at, _)| at).into_iter().chain(self.rollout_wake).chain(self.collect_at);
        let until_wake =
            wakes.map(|at| Duration::from_millis(at.since(now) + 1)).fold(IDLE_POLL, Duration::min);
        let until_wake = until_wake.min(self.until_look(&traffic));
        let draining = self.actual.instances.values().any(|instance| instance.phase == Phase::Draining);
        let turning = traffic.unsettled
            && self.actual.revisions.values().any(|known| matches!(known.takeover, Takeover::Begun { .. }));
        match (again, draining || turning) {
            // What follows from a changed route has no other event to wait for.
            (true, _) => Duration::ZERO,
            (false, true) => until_wake.min(DRAIN_POLL),
            (false, false) => until_wake,
        }
    }

    fn thaw(&mut self, instance: InstanceId, now: Moment) {
        self.executor.thaw(instance.clone());
        self.set_phase(&instance, Phase::Thawing, now);
        self.actual.last_start = now;
    }

    fn act(&mut self, action: Action, accepted: &Accepted, now: Moment) {
        self.tell_lost(&action, now);
        self.note_overuse(&action, now);
        match action {
            Action::Drain { instance } => {
                if self.actual.instances.get(&instance).is_some_and(|known| known.phase == Phase::Frozen) {
                    self.executor.thaw(instance.clone());
                }
                self.set_phase(&instance, Phase::Draining, now);
            }
            Action::Resume { instance } => self.set_phase(&instance, Phase::Ready, now),
            Action::Terminate { instance } => {
                self.note_missed_deadline(&instance, accepted, now);
                let doing = match self.actual.instances.get(&instance).map(|known| &known.phase) {
                    Some(Phase::Probing) => Doing::Beginning,
                    _ => Doing::Serving,
                };
                self.set_phase(&instance, Phase::Stopping { killed: false }, now);
                self.executor.terminate(instance, doing);
            }
            Action::Freeze { instance } => {
                self.set_phase(&instance, Phase::Freezing, now);
                self.executor.freeze(instance);
            }
            Action::Thaw { instance } => self.thaw(instance, now),
            Action::Suspend { instance } => self.suspend(&instance, accepted, now),
            Action::Restore { instance } => self.restore(&instance, accepted, now),
            Action::Refit { instance, devices } => self.refit(instance, devices, now),
            Action::Start { instance } => self.start(instance, now),
            Action::Kill { instance } => {
                self.tell_stubborn(&instance);
                self.set_phase(&instance, Phase::Stopping { killed: true }, now);
                self.executor.kill(instance);
            }
            Action::Delete { instance } => {
                self.let_go_of_devices(&instance);
                self.set_phase(&instance, Phase::Deleting, now);
                self.executor.delete(instance);
            }
            Action::PrepareImage { revision } => {
                let Some((digest, object)) = accepted.desired.revisions.get(&revision) else { return };
                if let Some(known) = self.actual.revisions.get_mut(&revision) {
                    match &mut known.image {
                        ImageState::Failed { retry_at, .. } => *retry_at = None,
                        image => *image = ImageState::Preparing,
                    }
                }
                self.executor.prepare_image(*digest, object.clone());
            }
            Action::Launch { instance, revision, devices } => {
                let Some((digest, object)) = accepted.desired.revisions.get(&revision) else { return };
                self.executor.launch(instance.clone(), *digest, object.clone(), devices.clone());
                self.add_instance((instance, devices), *digest, object, Phase::Launching, now);
                self.actual.last_start = now;
                self.note_start(&revision, now);
            }
            Action::Prime { instance, revision, devices } => {
                let Some((digest, object)) = accepted.desired.revisions.get(&revision) else { return };
                self.executor.prime(instance.clone(), *digest, object.clone(), devices.clone());
                self.add_instance((instance, devices), *digest, object, Phase::Priming, now);
            }
            Action::TakeOver { revision } => self.take_over(&revision),
            Action::StartDeadline { revision } => self.note_start(&revision, now),
            Action::Undo { revision, why } => self.undo(&revision, why),
        }
    }

    fn add_instance(
        &mut self,
        (instance, devices): (InstanceId, Devices),
        digest: Digest,
        object: &RevisionObject,
        phase: Phase,
        now: Moment,
    ) {
        self.actual.named += 1;
        let (revision, port) = (object.key(), object.spec.port());
        let made = InstanceActual::new(revision, digest, port, phase, now);
        let entry = InstanceActual { devices, claim: plan::claim_of(object), begins: true, ..made };
        self.actual.instances.insert(instance, entry);
    }

    fn start(&mut self, instance: InstanceId, now: Moment) {
        let Some(known) = self.actual.instances.get(&instance) else { return };
        let revision = known.revision.clone();
        self.executor.start(instance.clone(), known.pid, known.port, self.container(&revision));
        self.note_start(&revision, now);
        self.set_phase(&instance, Phase::Launching, now);
        self.actual.last_start = now;
    }

    /// Brings what is known of revisions in line with a new desired state.
    fn adopt_desired(&mut self, accepted: Option<Arc<Accepted>>) {
        self.changed = true;
        let Some(accepted) = accepted else { return };
        let now = self.now();
        let desired = &accepted.desired;
        let (takeovers, footprints) = std::mem::take(&mut self.left);
        self.actual.revisions.retain(|key, _| desired.revisions.contains_key(key));
        self.judge_anew(desired);
        for (key, (digest, object)) in &desired.revisions {
            if self.actual.revisions.get(key).is_some_and(|known| known.object == *digest) {
                continue;
            }
            let ready_once = self.ready_record.contains(key, digest);
            let misfit = plan::misfit(object, &self.settings);
            let takes_over = !ready_once && misfit.is_none();
            let takeover = if takes_over { takeovers.of(key, digest) } else { Takeover::None };
            let memory = footprints.of(key, digest, desired, &self.actual.revisions);
            let known = RevisionActual::new(*digest, ready_once, now);
            let fresh = RevisionActual { misfit, takeover, memory, ..known };
            self.actual.revisions.insert(key.clone(), fresh);
        }
        self.ready_record.retain(desired);
        self.routes_changed = true;
        self.accepted = Some(accepted);
        self.collect();
    }

    /// Publishes table and report if they changed.
    fn publish(&mut self) {
        self.publish_table(self.now());
        let (info, pulls) = (self.info.clone(), self.pulls.clone());
        let mut report = Report { info, pulls, ..Report::default() };
        if let Some(accepted) = &self.accepted {
            self.record_takeovers();
            report.routes = status::routes(&accepted.desired, &self.actual, &self.rollouts);
            self.tell_undone(&self.outputs.report.borrow().routes, &report.routes);
            let (desired, wanted, cuts) = (&accepted.desired, &self.wanted, &self.cuts);
            report.revisions = status::revisions(desired, &self.actual, wanted, cuts, self.now());
            self.tell_timed_out(&mut report.revisions);
        }
        self.outputs.report.send_if_modified(|current| {
            let changed = *current != report;
            if changed {
                *current = report;
            }
            changed
        });
        let ready = self.supervised;
        self.outputs
            .ready
            .send_if_modified(|current| !std::mem::replace(current, *current || ready) && ready);
        self.changed = false;
    }

    fn forget_old_crashes(&mut self, now: Moment) {
        for instance in self.actual.instances.values() {
            if let Some(revision) = self.actual.revisions.get_mut(&instance.revision)
                && plan::crashes_forgotten_at(revision, instance).is_some_and(|at| now >= at)
            {
                revision.crashes.recent = 0;
            }
        }
    }

    fn set_phase(&mut self, id: &InstanceId, phase: Phase, now: Moment) {
        if let Some(instance) = self.actual.instances.get_mut(id) {
            instance.begins &= !matches!(phase, Phase::Freezing | Phase::Suspending);
            instance.phase = phase;
            instance.since = now;
        }
    }

    fn event(&self, kind: EventKind, reason: &str, revision: &RevisionKey, message: String) {
        self.outputs.outbox.push(kind, reason, &object_of(revision), message);
    }

    fn now(&self) -> Moment {
        self.clock.now()
    }
}

fn object_of(revision: &RevisionKey) -> String {
    format!("revision/{}/{}", revision.namespace, revision.name)
}

/// Five random letters and digits: instances of different starts of the agent never share a name.
fn incarnation() -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut random = [0; 5];
    // Without randomness from the kernel the process id still tells this start from the last.
    if getrandom::fill(&mut random).is_err() {
        random[..4].copy_from_slice(&std::process::id().to_le_bytes());
    }
    random.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect()
}
