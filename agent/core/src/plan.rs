//! What to do next on this node, computed from nothing at each pass: `plan(desired, actual, traffic, now)`.
//!
//! Removals come before additions. The plan leaves no choice to its execution. Every deadline that would change the answer
//! is in `wake`. Executing all actions and planning again gives an empty plan (`plan/tests.rs`).

use std::collections::BTreeMap;

use tombolo_api::desired::{Desired, RevisionObject};
use tombolo_api::{Digest, RevisionKey};

use crate::actual::{Actual, Demand, ImageState, InstanceActual, Moment, Phase, RevisionActual, Traffic};
use crate::annotations::Scale;
use crate::supervision::InstanceId;

/// How long requests in a draining instance may take before it is stopped all the same, when the revision's own request
/// timeout is shorter. Milliseconds.
pub const DRAIN_MIN_MS: u64 = 1_000;

/// Between SIGTERM and SIGKILL, milliseconds. Kubernetes' default `terminationGracePeriodSeconds`.
pub const TERMINATION_GRACE_MS: u64 = 30_000;

/// An instance that stayed ready this long clears its revision's crash count, milliseconds. As the kubelet's.
pub const CRASH_FORGET_MS: u64 = 600_000;

/// Most instances of one revision in this release, whatever the demand: bounds a burst on a small machine.
pub const INSTANCES_PER_REVISION_MAX: u32 = 20;

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
    let inputs = Inputs { desired, actual, traffic, now };
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
    for (id, instance) in &actual.instances {
        inputs.plan_instance(id, instance, &mut plan);
    }
    for (key, want) in &wanted {
        retire_surplus(key, *want, desired, actual, &mut plan);
    }
    let mut named = actual.named;
    for (key, want) in wanted {
        inputs.launch_missing(key, want, &mut named, &mut plan);
    }
    plan
}

/// What a plan is made from.
struct Inputs<'a> {
    desired: &'a Desired,
    actual: &'a Actual,
    traffic: &'a Traffic,
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
}

impl Inputs<'_> {
    fn plan_instance(&self, id: &InstanceId, instance: &InstanceActual, plan: &mut Plan) {
        let Self { desired, actual, traffic, now } = *self;
        let object = desired.revisions.get(&instance.revision);
        let current = object.is_some_and(|(digest, _)| *digest == instance.object);
        let instance_id = || id.clone();
        match &instance.phase {
            Phase::Launching | Phase::Deleting => {}
            Phase::Probing => {
                let limit =
                    object.map_or(0, |(_, object)| Scale::of(&object.annotations).progress_deadline_ms);
                let deadline = instance.since.after(limit);
                if !current || now >= deadline {
                    plan.actions.push(Action::Terminate { instance: instance_id() });
                } else {
                    plan.wake_at(deadline, WakeReason::ProgressDeadline);
                }
            }
            Phase::Ready => {
                if !current && !has_ready_successor_pending(instance, object, actual) {
                    plan.actions.push(Action::Drain { instance: instance_id() });
                }
                let recent =
                    actual.revisions.get(&instance.revision).map_or(0, |revision| revision.crashes.recent);
                if recent > 0 {
                    plan.wake_at(instance.since.after(CRASH_FORGET_MS), WakeReason::CrashForget);
                }
            }
            Phase::Draining => {
                let timeout =
                    object.map_or(0, |(_, object)| crate::limits::request_timeouts(object).request_ms);
                let deadline = instance.since.after(timeout.max(DRAIN_MIN_MS));
                let busy = traffic.instances.get(id).copied().unwrap_or(0) > 0;
                if !busy || now >= deadline {
                    plan.actions.push(Action::Terminate { instance: instance_id() });
                } else {
                    plan.wake_at(deadline, WakeReason::DrainDeadline);
                }
            }
            Phase::Stopping { killed: false } => {
                let deadline = instance.since.after(TERMINATION_GRACE_MS);
                if now >= deadline {
                    plan.actions.push(Action::Kill { instance: instance_id() });
                } else {
                    plan.wake_at(deadline, WakeReason::TerminationGrace);
                }
            }
            Phase::Stopping { killed: true } => {}
            Phase::Ended { .. } => plan.actions.push(Action::Delete { instance: instance_id() }),
        }
    }

    fn launch_missing(&self, key: &RevisionKey, want: u32, named: &mut u64, plan: &mut Plan) {
        let Self { desired, actual, now, .. } = *self;
        let Some((digest, _)) = desired.revisions.get(key) else { return };
        let Some(revision) = actual.revisions.get(key) else { return };
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
        if missing == 0 {
            return;
        }
        if now < revision.crashes.retry_at {
            return plan.wake_at(revision.crashes.retry_at, WakeReason::CrashBackoff);
        }
        // After a crash one at a time: a program that cannot start must not be started twenty times over.
        let batch = if revision.crashes.recent > 0 { 1 } else { missing };
        for _ in 0..batch {
            *named += 1;
            let instance = instance_id(&key.name, &actual.incarnation, *named);
            plan.actions.push(Action::Launch { instance, revision: key.clone() });
        }
    }
}

/// An instance of an outdated object keeps serving while the new object's first instance is still on the way.
fn has_ready_successor_pending(
    instance: &InstanceActual,
    object: Option<&(Digest, RevisionObject)>,
    actual: &Actual,
) -> bool {
    let Some((digest, _)) = object else { return false };
    !actual.instances.values().any(|other| {
        other.revision == instance.revision && other.object == *digest && other.phase == Phase::Ready
    })
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
