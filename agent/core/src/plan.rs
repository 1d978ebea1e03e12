//! What to do next on this node, computed from nothing at each pass: `plan(desired, actual, traffic, now)`.
//!
//! Removals come before additions. The plan leaves no choice to its execution. Every deadline that would change the answer
//! is in `wake`. Executing all actions and planning again gives an empty plan (`plan/tests.rs`).

use std::collections::BTreeMap;

use tombolo_api::desired::{Desired, INSTANCES_PER_REVISION_MAX, RevisionObject};
use tombolo_api::{Digest, RevisionKey};

use crate::actual::{Actual, Demand, ImageState, InstanceActual, Moment, Phase, RevisionActual, Traffic};
use crate::annotations::Scale;
use crate::supervision::InstanceId;

/// How long requests in a draining instance may take before it is stopped all the same, when the revision's own request
/// timeout is shorter. Milliseconds.
pub const DRAIN_MIN_MS: u64 = 1_000;

/// The same where the revision is no longer desired and its time-out not known: the longest that the API takes.
pub const DRAIN_MAX_MS: u64 = 600_000;

/// Between SIGTERM and SIGKILL, milliseconds. Kubernetes' default `terminationGracePeriodSeconds`.
pub const TERMINATION_GRACE_MS: u64 = 30_000;

/// Between one SIGKILL and the next, milliseconds: the first may have been lost with the connection to the supervisor.
pub const KILL_AGAIN_MS: u64 = 10_000;

/// What an instance's making or removal may take, milliseconds; then its outcome counts as lost and what there is of it is
/// removed. Far above the deadlines of both, which wait their turn behind others.
pub const OUTCOME_MAX_MS: u64 = 600_000;

/// An instance that stayed ready this long clears its revision's crash count, milliseconds. As the kubelet's.
pub const CRASH_FORGET_MS: u64 = 600_000;

/// What the node's configuration says to the planner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Without a request for this long, a revision goes to zero instances. Milliseconds.
    pub idle_timeout_ms: u64,
}

/// One step. Steps about one instance come in separate plans: each waits for the outcome of the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send SIGKILL.
    Kill { instance: InstanceId },
    /// Send SIGTERM.
    Terminate { instance: InstanceId },
    /// Take it out of the route table.
    Drain { instance: InstanceId },
    /// Remove what is left of an ended one.
    Delete { instance: InstanceId },
    /// Look the image up; fetch and unpack what is missing.
    PrepareImage { revision: RevisionKey },
    /// Create and start an instance.
    Launch { instance: InstanceId, revision: RevisionKey },
}

/// Why the planner wants to be asked again at a certain time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WakeReason {
    IdleTimeout,
    DrainDeadline,
    TerminationGrace,
    KillAgain,
    OutcomeLost,
    ProgressDeadline,
    CrashBackoff,
    ImageRetry,
    CrashForget,
}

/// What to do now, and when to ask again if nothing changes before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub wake: Option<(Moment, WakeReason)>,
}

impl Plan {
    fn wake_at(&mut self, at: Moment, reason: WakeReason) {
        if self.wake.is_none_or(|(earliest, _)| at < earliest) {
            self.wake = Some((at, reason));
        }
    }
}

/// Plans the next steps.
pub fn plan(desired: &Desired, actual: &Actual, traffic: &Traffic, settings: &Settings, now: Moment) -> Plan {
    let mut plan = Plan::default();
    let mut wanted = BTreeMap::new();
    for (key, (object_digest, object)) in &desired.revisions {
        let Some(revision) = actual.revisions.get(key).filter(|revision| revision.object == *object_digest)
        else {
            continue;
        };
        let pass =
            RevisionPass { key, object, digest: object_digest, actual: revision, demand: traffic.of(key) };
        wanted.insert(key, pass.wanted_instances(actual, settings, now, &mut plan));
    }
    let inputs = Inputs { desired, actual, traffic, wanted: &wanted, now };
    for (id, instance) in &actual.instances {
        inputs.plan_instance(id, instance, &mut plan);
    }
    for (key, want) in &wanted {
        retire_surplus(key, *want, desired, actual, &mut plan);
    }
    let mut named = actual.named;
    for (key, want) in &wanted {
        inputs.launch_missing(key, *want, &mut named, &mut plan);
    }
    plan
}

/// When `instance` will have been ready long enough for its revision's crashes to be forgotten; `None` if there is nothing
/// to forget, or not because of this one. Counted from the last crash: an instance that is well says nothing of one beside
/// it that is not.
pub fn crashes_forgotten_at(revision: &RevisionActual, instance: &InstanceActual) -> Option<Moment> {
    let speaks = instance.phase == Phase::Ready && instance.object == revision.object;
    let since = instance.since.max(revision.crashes.retry_at);
    (speaks && revision.crashes.recent > 0).then(|| since.after(CRASH_FORGET_MS))
}

/// What a plan is made from.
struct Inputs<'a> {
    desired: &'a Desired,
    actual: &'a Actual,
    traffic: &'a Traffic,
    /// How many instances each revision should have.
    wanted: &'a BTreeMap<&'a RevisionKey, u32>,
    now: Moment,
}

/// One revision while it is being planned.
struct RevisionPass<'a> {
    key: &'a RevisionKey,
    object: &'a RevisionObject,
    digest: &'a Digest,
    actual: &'a RevisionActual,
    demand: Demand,
}

impl RevisionPass<'_> {
    /// How many instances the revision should have now.
    fn wanted_instances(&self, actual: &Actual, settings: &Settings, now: Moment, plan: &mut Plan) -> u32 {
        let scale = Scale::of(&self.object.annotations);
        let cap = |count: u32| count.min(scale.max.unwrap_or(u32::MAX)).min(INSTANCES_PER_REVISION_MAX);
        let floor = if self.actual.ready_once { scale.min } else { scale.min.max(1) };
        let requests = self.demand.in_flight + self.demand.held;
        let per_instance = crate::limits::container_concurrency(self.object);
        let for_requests = match (requests, per_instance) {
            (0, _) => 0,
            (_, 0) => 1,
            (requests, limit) => requests.div_ceil(limit),
        };
        let last_active = self.demand.last_request.unwrap_or_default().max(self.actual.last_active);
        let idle_at = last_active.after(settings.idle_timeout_ms);
        let up = actual.up(self.key, self.digest);
        let kept = if requests > 0 || now < idle_at { up } else { 0 };
        if up > floor && requests > 0 {
            // Their end is not told; idle it is a whole timeout from now at the earliest.
            plan.wake_at(now.after(settings.idle_timeout_ms), WakeReason::IdleTimeout);
        } else if up > floor && now < idle_at {
            plan.wake_at(idle_at, WakeReason::IdleTimeout);
        }
        cap(floor.max(for_requests).max(kept))
    }
}

impl Actual {
    /// Instances of this very object that serve or are on the way to.
    fn up(&self, key: &RevisionKey, object: &Digest) -> u32 {
        let up = |instance: &&InstanceActual| {
            instance.revision == *key && instance.object == *object && instance.phase.is_up()
        };
        self.instances.values().filter(up).count() as u32
    }

    /// Whether an instance of this very object is on the way to serve.
    fn is_starting(&self, key: &RevisionKey, object: &Digest) -> bool {
        self.instances.values().any(|instance| {
            instance.revision == *key
                && instance.object == *object
                && matches!(instance.phase, Phase::Launching | Phase::Probing)
        })
    }
}

impl Inputs<'_> {
    fn plan_instance(&self, id: &InstanceId, instance: &InstanceActual, plan: &mut Plan) {
        let object = self.desired.revisions.get(&instance.revision);
        let current = object.is_some_and(|(digest, _)| *digest == instance.object);
        let instance_id = || id.clone();
        let due = match &instance.phase {
            Phase::Launching | Phase::Deleting => {
                let delete = Action::Delete { instance: instance_id() };
                Some((instance.since.after(OUTCOME_MAX_MS), WakeReason::OutcomeLost, delete))
            }
            Phase::Probing => {
                let limit =
                    object.map_or(0, |(_, object)| Scale::of(&object.annotations).progress_deadline_ms);
                let deadline = if current { instance.since.after(limit) } else { self.now };
                let terminate = Action::Terminate { instance: instance_id() };
                Some((deadline, WakeReason::ProgressDeadline, terminate))
            }
            Phase::Ready => {
                if !current && !self.is_still_needed(instance) {
                    plan.actions.push(Action::Drain { instance: instance_id() });
                }
                let revision = self.actual.revisions.get(&instance.revision);
                if let Some(at) = revision.and_then(|revision| crashes_forgotten_at(revision, instance)) {
                    plan.wake_at(at, WakeReason::CrashForget);
                }
                None
            }
            Phase::Draining => {
                let timeout = object
                    .map_or(DRAIN_MAX_MS, |(_, object)| crate::limits::request_timeouts(object).request_ms);
                let busy = self.traffic.instances.get(id).copied().unwrap_or(0) > 0;
                let deadline = if busy { instance.since.after(timeout.max(DRAIN_MIN_MS)) } else { self.now };
                let terminate = Action::Terminate { instance: instance_id() };
                Some((deadline, WakeReason::DrainDeadline, terminate))
            }
            Phase::Stopping { killed } => {
                let (patience, reason) = match killed {
                    false => (TERMINATION_GRACE_MS, WakeReason::TerminationGrace),
                    true => (KILL_AGAIN_MS, WakeReason::KillAgain),
                };
                Some((instance.since.after(patience), reason, Action::Kill { instance: instance_id() }))
            }
            Phase::Ended { .. } => {
                plan.actions.push(Action::Delete { instance: instance_id() });
                None
            }
        };
        match due {
            Some((deadline, _, action)) if self.now >= deadline => plan.actions.push(action),
            Some((deadline, reason, _)) => plan.wake_at(deadline, reason),
            None => {}
        }
    }

    /// Whether an instance of an outdated object keeps serving: while instances are wanted and the new object has none that
    /// is ready.
    fn is_still_needed(&self, outdated: &InstanceActual) -> bool {
        let Some((digest, _)) = self.desired.revisions.get(&outdated.revision) else { return false };
        let replaces = |other: &InstanceActual| {
            other.revision == outdated.revision && other.object == *digest && other.phase == Phase::Ready
        };
        self.wanted.get(&outdated.revision) != Some(&0) && !self.actual.instances.values().any(replaces)
    }

    fn launch_missing(&self, key: &RevisionKey, want: u32, named: &mut u64, plan: &mut Plan) {
        let Self { desired, actual, now, .. } = *self;
        let Some((digest, _)) = desired.revisions.get(key) else { return };
        let Some(revision) = actual.revisions.get(key) else { return };
        let crashes = &revision.crashes;
        if now < crashes.retry_at {
            // Also if none is missing: until then requests are refused, and afterwards held again.
            plan.wake_at(crashes.retry_at, WakeReason::CrashBackoff);
        }
        match &revision.image {
            // Prepared whether instances are wanted or not: a cold start must not wait for the network.
            ImageState::Unknown => return plan.actions.push(Action::PrepareImage { revision: key.clone() }),
            ImageState::Failed { retry_at: Some(retry_at), .. } if now >= *retry_at => {
                return plan.actions.push(Action::PrepareImage { revision: key.clone() });
            }
            ImageState::Failed { retry_at: Some(retry_at), .. } => {
                return plan.wake_at(*retry_at, WakeReason::ImageRetry);
            }
            ImageState::Preparing | ImageState::Failed { retry_at: None, .. } => return,
            ImageState::Present => {}
        }
        let missing = want.saturating_sub(actual.up(key, digest));
        if now < crashes.retry_at {
            return;
        }
        // After a crash one at a time: a program that cannot start must not be started twenty times over.
        let batch = match crashes.recent {
            0 => missing,
            _ if actual.is_starting(key, digest) => 0,
            _ => missing.min(1),
        };
        for _ in 0..batch {
            *named += 1;
            let instance = instance_id(&key.name, &actual.incarnation, *named);
            plan.actions.push(Action::Launch { instance, revision: key.clone() });
        }
    }
}

/// Drains what a revision has beyond `want`, those not ready yet first, then the youngest.
fn retire_surplus(key: &RevisionKey, want: u32, desired: &Desired, actual: &Actual, plan: &mut Plan) {
    let Some((digest, _)) = desired.revisions.get(key) else { return };
    let mut up: Vec<_> = actual
        .instances
        .iter()
        .filter(|(_, instance)| {
            instance.revision == *key && instance.object == *digest && instance.phase.is_up()
        })
        .collect();
    up.sort_by_key(|(id, instance)| {
        (instance.phase == Phase::Ready, std::cmp::Reverse(instance.since), (*id).clone())
    });
    let surplus = up.len().saturating_sub(want as usize);
    for (id, instance) in up.into_iter().take(surplus) {
        let already = plan
            .actions
            .iter()
            .any(|action| matches!(action, Action::Terminate { instance } if instance == id));
        match instance.phase {
            Phase::Ready => plan.actions.push(Action::Drain { instance: id.clone() }),
            Phase::Probing if !already => plan.actions.push(Action::Terminate { instance: id.clone() }),
            _ => {}
        }
    }
}

/// Longest part of a revision's name in an instance's: the whole must stay a DNS label.
const NAME_PART_MAX: usize = 40;

fn instance_id(revision: &str, incarnation: &str, number: u64) -> InstanceId {
    let name = &revision[..revision.len().min(NAME_PART_MAX)];
    InstanceId(format!("{}-{incarnation}-{number}", name.trim_end_matches(['-', '.']).replace('.', "-")))
}

#[cfg(test)]
mod tests;
