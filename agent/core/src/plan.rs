//! What to do next on this node, computed from nothing at each pass: `plan(situation, now)`.
//!
//! Removals come before additions. The plan leaves no choice to its execution. Every deadline that would change the answer
//! is in `wake`. Executing all actions and planning again gives an empty plan (`plan/tests.rs`).
//!
//! [`scale`]: how many instances a revision has. [`growth`]: how fast it gets them. [`devices`]: what of that there are devices
//! for, and which. [`turns`]: who lets go of devices for whom. [`room`]: what of that fits. [`eviction`]: who gives way for it.
//! [`life`]: what becomes of one instance. [`slots`]: those that wait. [`takeover`]: revisions that must not run
//! beside the one before them.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use tombolo_api::desired::{Desired, RevisionObject};
use tombolo_api::report::RolledBack;
use tombolo_api::{Digest, RevisionKey};

use crate::actual::{Actual, ByRevision, InstanceActual, Moment, Phase, RevisionActual, Targets, Traffic};
use crate::annotations::Scale;
use crate::devices::{self as inventory, Asked, Choice, Devices};
use crate::routes::RouteTable;
use crate::supervision::InstanceId;

mod devices;
mod eviction;
mod growth;
mod life;
mod overuse;
mod room;
mod scale;
mod slots;
mod takeover;
mod turns;

pub use room::{claim_of, misfit, room_for_moved};
pub use scale::given_up_until;
use takeover::Takeovers;
pub use takeover::{TAKEOVER_CRASHES_MAX, not_kept, rollable};
pub use turns::TURN_MS;

/// How long requests in a draining instance may take before it is stopped all the same, when the revision's own request
/// timeout is shorter. Milliseconds. The router ends every request by its own timeout before that, and tunnels once their grace is
/// over: a second later than it should have.
pub const DRAIN_MIN_MS: u64 = crate::limits::TUNNEL_GRACE_MS + 1_000;

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

/// After the last start on the node, before an instance is made to wait, milliseconds: a burst of requests to several
/// functions comes within this, and whoever comes next must not find the node busy with something nobody waits for.
pub const REFILL_QUIET_MS: u64 = 1_000;

/// How long starts of others, one after the other, keep a revision without an instance that waits, milliseconds: on a node that is
/// always called somewhere there is no quiet, and its functions would all start from nothing for ever.
pub const REFILL_LATEST_MS: u64 = 10_000;

/// How long a revision that was given up before it was ever ready is left alone when no request comes for it, milliseconds: what it
/// needs may have been out of reach, a node at the edge has nobody to deploy it again, and an earlier one may have all its requests.
pub const TRY_AGAIN_MS: u64 = 3_600_000;

/// How long a starting instance keeps others from being made to wait, milliseconds: a program that never answers must not
/// leave the whole node without.
pub const STARTING_MAX_MS: u64 = 10_000;

/// Instances on a node that are made and not started: half of what a supervisor holds, so that there is always room for
/// those that run.
pub const PRIMED_MAX: usize = 250;

/// What the node says to the planner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Memory for instances, bytes.
    pub memory_bytes: u64,
    /// Of instances that hold more of an accelerator's memory than they declared, where their revision says nothing.
    pub overuse: inventory::overuse::Rule,
}

/// All that a plan is made from.
#[derive(Clone, Copy)]
pub struct Situation<'a> {
    pub desired: &'a Desired,
    pub actual: &'a Actual,
    pub traffic: &'a Traffic,
    /// The route table in force, for where requests may come to.
    pub table: &'a RouteTable,
    pub targets: &'a Targets,
    pub settings: &'a Settings,
}

/// One step. Steps about one instance come in separate plans: each waits for the outcome of the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send SIGKILL.
    Kill { instance: InstanceId },
    /// Send SIGTERM.
    Terminate { instance: InstanceId },
    /// Take it out of the route table, and let it go on if it is frozen: it may have been given a request.
    Drain { instance: InstanceId },
    /// Stop its processes where they are.
    Freeze { instance: InstanceId },
    /// Move what it has on its devices to the host's memory, and stop its processes where they are.
    Suspend { instance: InstanceId },
    /// Remove what is left of an ended one, or one that was never started.
    Delete { instance: InstanceId },
    /// Look the image up; fetch and unpack what is missing.
    PrepareImage { revision: RevisionKey },
    /// Put a draining one back into the route table.
    Resume { instance: InstanceId },
    /// Let a frozen one go on.
    Thaw { instance: InstanceId },
    /// Let a suspended one go on, and give it back what it had on its devices, which are its own again.
    Restore { instance: InstanceId },
    /// Give its container anew what it has of its devices: they have come back, or have other nodes.
    Refit { instance: InstanceId, devices: Devices },
    /// Start the program of a primed one.
    Start { instance: InstanceId },
    /// Create and start an instance.
    Launch { instance: InstanceId, revision: RevisionKey, devices: Devices },
    /// Create an instance, to wait.
    Prime { instance: InstanceId, revision: RevisionKey, devices: Devices },
    /// Requests are for this revision from now on, and wait for it; those before it end.
    TakeOver { revision: RevisionKey },
    /// Nothing of those before it is left: from now on it has its progress deadline to get ready.
    StartDeadline { revision: RevisionKey },
    /// It did not get ready: requests are for the one before again.
    Undo { revision: RevisionKey, why: RolledBack },
}

impl Action {
    /// The instance that it is about.
    pub fn instance(&self) -> Option<&InstanceId> {
        match self {
            Self::Kill { instance }
            | Self::Terminate { instance }
            | Self::Drain { instance }
            | Self::Freeze { instance }
            | Self::Suspend { instance }
            | Self::Delete { instance }
            | Self::Resume { instance }
            | Self::Thaw { instance }
            | Self::Restore { instance }
            | Self::Refit { instance, .. }
            | Self::Start { instance }
            | Self::Launch { instance, .. }
            | Self::Prime { instance, .. } => Some(instance),
            Self::PrepareImage { .. }
            | Self::TakeOver { .. }
            | Self::StartDeadline { .. }
            | Self::Undo { .. } => None,
        }
    }

    /// Whether it takes something away.
    pub fn is_removal(&self) -> bool {
        matches!(
            self,
            Self::Kill { .. }
                | Self::Terminate { .. }
                | Self::Drain { .. }
                | Self::Freeze { .. }
                | Self::Suspend { .. }
                | Self::Delete { .. }
        )
    }
}

/// Why the planner wants to be asked again at a certain time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WakeReason {
    DrainDeadline,
    TerminationGrace,
    KillAgain,
    OutcomeLost,
    ProgressDeadline,
    CrashBackoff,
    ImageRetry,
    CrashForget,
    TryAgain,
    Refill,
    TakeoverDeadline,
    DeviceLost,
    DeviceStale,
    DevicesAwaited,
    MoveRetry,
    TurnOver,
    MemoryOveruse,
    Growth,
}

/// What to do now, and when to ask again if nothing changes before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub wake: Option<(Moment, WakeReason)>,
    /// How many instances of a revision should run; absent: none.
    pub wanted: BTreeMap<RevisionKey, u32>,
    /// Why a revision gets fewer than it should have.
    pub cuts: BTreeMap<RevisionKey, String>,
    /// Some revision grows no further before its instances are looked at.
    pub paced: bool,
    /// Which devices to give is left to their plugins' preference: asked for and not known yet.
    pub choices: BTreeSet<Choice>,
}

/// Plans the next steps.
pub fn plan(situation: &Situation<'_>, now: Moment) -> Plan {
    let index = situation.actual.by_revision();
    let mut pass = Pass {
        situation: *situation,
        index: &index,
        takeovers: Takeovers::default(),
        routed: OnceCell::new(),
        now,
    };
    let held = situation.actual.instances.values().filter_map(InstanceActual::held_devices);
    let free = situation.actual.devices.inventory.free(held);
    let mut draft = Draft { named: situation.actual.named, free, ..Draft::default() };
    pass.takeovers = pass.find_takeovers(&mut draft);
    let mut scopes: Vec<_> = pass.scopes().map(|scope| (pass.wanted(&scope), scope)).collect();
    let mut cuts = pass.fit_count(&mut scopes);
    let paced = pass.pace(&mut scopes, &mut draft);
    cuts.extend(pass.fit_devices(&mut scopes, &mut draft));
    cuts.extend(pass.fit(&mut scopes, &mut draft));
    for (want, scope) in &scopes {
        pass.supply(scope, *want, &mut draft);
        pass.retire_surplus(scope, *want, &mut draft);
    }
    let wanted: BTreeMap<_, _> =
        scopes.iter().filter(|(want, _)| *want > 0).map(|(want, scope)| (scope.key.clone(), *want)).collect();
    for (id, instance) in &situation.actual.instances {
        pass.plan_instance(id, instance, &wanted, &mut draft);
    }
    pass.keep_slots(&scopes, &mut draft);
    let Draft { mut removals, additions, wake, choices, .. } = draft;
    removals.extend(additions);
    Plan { actions: removals, wake, wanted, cuts, paced, choices }
}

/// When `instance` will have been ready long enough for its revision's crashes to be forgotten; `None` if there is nothing
/// to forget, or not because of this one. Counted from the last crash: an instance that is well says nothing of one beside
/// it that is not.
pub fn crashes_forgotten_at(revision: &RevisionActual, instance: &InstanceActual) -> Option<Moment> {
    let speaks = instance.phase == Phase::Ready && instance.object == revision.object;
    let since = instance.since.max(revision.crashes.retry_at);
    (speaks && revision.crashes.recent > 0).then(|| since.after(CRASH_FORGET_MS))
}

/// One planning.
struct Pass<'a> {
    situation: Situation<'a>,
    index: &'a ByRevision<'a>,
    takeovers: Takeovers,
    /// Found out when it is first asked for: not on the way of a request.
    routed: OnceCell<BTreeSet<&'a RevisionKey>>,
    now: Moment,
}

/// One desired revision that is known here with its present object.
struct Scope<'a> {
    key: &'a RevisionKey,
    digest: &'a Digest,
    object: &'a RevisionObject,
    known: &'a RevisionActual,
    scale: Scale,
    asked: Asked,
    /// Of the instances that are wanted, those that come later: see [`growth`].
    later: u32,
}

/// A plan in the making.
#[derive(Default)]
struct Draft {
    removals: Vec<Action>,
    additions: Vec<Action>,
    wake: Option<(Moment, WakeReason)>,
    /// Instances named so far, those of this plan included.
    named: u64,
    /// Devices that nobody has, those given in this plan taken out.
    free: Devices,
    choices: BTreeSet<Choice>,
    /// What those ask for that have no instance for want of devices.
    short: Vec<Asked>,
    /// Somebody has no instance for want of memory.
    is_short_of_memory: bool,
    /// Suspended instances that get their devices back, now or as soon as these are free.
    returning: BTreeSet<InstanceId>,
}

impl Draft {
    fn wake_at(&mut self, at: Moment, reason: WakeReason) {
        if self.wake.is_none_or(|(earliest, _)| at < earliest) {
            self.wake = Some((at, reason));
        }
    }

    /// Whether an instance has something done to it already.
    fn names(&self, id: &InstanceId) -> bool {
        self.removals.iter().chain(&self.additions).any(|action| action.instance() == Some(id))
    }

    /// Whether somebody has no instance for want of such devices.
    fn is_short_of(&self, devices: &Devices) -> bool {
        self.short.iter().any(|asked| asked.keys().any(|name| devices.contains_key(name)))
    }

    fn name_instance(&mut self, revision: &str, incarnation: &str) -> InstanceId {
        self.named += 1;
        instance_id(revision, incarnation, self.named)
    }
}

impl<'a> Pass<'a> {
    fn scopes(&self) -> impl Iterator<Item = Scope<'a>> {
        let actual = self.situation.actual;
        self.situation.desired.revisions.iter().filter_map(|(key, (digest, object))| {
            let known = actual.revisions.get(key).filter(|known| known.object == *digest)?;
            let (scale, asked) = (Scale::of(&object.annotations), inventory::asked(object));
            Some(Scope { key, digest, object, known, scale, asked, later: 0 })
        })
    }

    /// The instances of a revision's present object.
    fn current(&self, scope: &Scope<'a>) -> impl Iterator<Item = (&'a InstanceId, &'a InstanceActual)> {
        let digest = *scope.digest;
        self.index.of(scope.key).iter().copied().filter(move |(_, instance)| instance.object == digest)
    }

    /// When the revision was last called, as far as this agent knows.
    fn called(&self, scope: &Scope<'a>) -> Moment {
        let last = self.situation.traffic.of(scope.key).last_request;
        scope.known.last_active.max(last.unwrap_or_default())
    }

    /// Whether it has been without a device for too long.
    fn is_lost(&self, instance: &InstanceActual) -> bool {
        instance.ends_at().is_some_and(|at| self.now >= at)
    }

    /// Whether a route leads to the revision now.
    fn is_routed(&self, key: &RevisionKey) -> bool {
        self.routed.get_or_init(|| self.situation.table.routed()).contains(key)
    }

    /// Instances of this very object that serve or are on the way to.
    fn up(&self, scope: &Scope<'a>) -> u32 {
        self.current(scope).filter(|(_, instance)| instance.phase.is_up()).count() as u32
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
