//! What is on the node right now: the planner's second input, kept by the agent's reconciler, changed by
//! the outcomes of actions and by what the supervisor, the probes and the router report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tombolo_api::report::RolledBack;
use tombolo_api::{Digest, RevisionKey};

use crate::devices::overuse::{self, Overuse, Uses};
use crate::devices::{Devices, Fit, Inventory, Known, LOST_GRACE_MS};
use crate::memory::Learnt;
use crate::routes::Unavailable;
use crate::supervision::{ExitRecord, InstanceId};

/// A point on the node's monotonic clock, milliseconds since an arbitrary start. Passed in, never read here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl Moment {
    /// The moment `ms` milliseconds later.
    pub fn after(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to this; 0 if that is not earlier.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Everything that is, work in flight included: planning twice starts nothing twice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Actual {
    pub revisions: BTreeMap<RevisionKey, RevisionActual>,
    pub instances: BTreeMap<InstanceId, InstanceActual>,
    /// Distinguishes this agent's start from every other in the names of new instances: random, `[a-z0-9]`.
    pub incarnation: String,
    /// Instances named so far by this incarnation.
    pub named: u64,
    /// When an instance was last started or thawed.
    pub last_start: Moment,
    pub devices: Known,
    /// What other programs have of the memory that is for instances, bytes.
    pub others_bytes: u64,
}

/// Instances by the revision they are of.
pub struct ByRevision<'a>(BTreeMap<&'a RevisionKey, Vec<(&'a InstanceId, &'a InstanceActual)>>);

impl Actual {
    pub fn by_revision(&self) -> ByRevision<'_> {
        let mut index: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (id, instance) in &self.instances {
            index.entry(&instance.revision).or_default().push((id, instance));
        }
        ByRevision(index)
    }
}

impl Actual {
    /// Takes in what the node's devices are now: since when which instances have lost theirs, and whose have come back.
    pub fn note_devices(&mut self, inventory: Arc<Inventory>, now: Moment) {
        for instance in self.instances.values_mut() {
            let lost = inventory.lost(&instance.devices).next().is_some();
            instance.lost_since = lost.then(|| instance.lost_since.unwrap_or(now));
            if inventory.has_returned(&instance.devices, &self.devices.inventory) {
                instance.fit.outdate(now);
            }
            if !inventory.has_plugins_of(&instance.devices) {
                instance.fit.await_plugin(now);
            }
        }
        self.devices.inventory = inventory;
    }

    /// Takes in what instances hold of accelerators now: since when which hold more than they declared.
    pub fn note_uses(&mut self, uses: Arc<Uses>, context_bytes: u64, now: Moment) {
        for (id, instance) in &mut self.instances {
            let excess =
                uses.get(id).and_then(|held| overuse::excess(&instance.devices, held, context_bytes));
            let since = instance.overuse.as_ref().map_or(now, |overuse| overuse.since);
            instance.overuse = excess.map(|excess| Overuse { since, excess });
        }
        self.devices.uses = uses;
    }
}

impl<'a> ByRevision<'a> {
    pub fn of(&self, revision: &RevisionKey) -> &[(&'a InstanceId, &'a InstanceActual)] {
        self.0.get(revision).map_or(&[], Vec::as_slice)
    }
}

/// What the node knows of one desired revision. Reset when the revision's object changes.
#[derive(Clone, Debug, PartialEq)]
pub struct RevisionActual {
    /// Digest of the object this is about.
    pub object: Digest,
    pub image: ImageState,
    /// What its namespace wants to be told of its image, which may be used all the same.
    pub caution: Option<Unavailable>,
    /// An instance has passed its readiness probe since the object last changed. Durable.
    pub ready_once: bool,
    /// When the object came or an instance last became ready. Requests since then: [`Demand::last_request`].
    pub last_active: Moment,
    pub crashes: Crashes,
    /// No instance is made to wait before this: the last one could not be, or came to an end.
    pub prime_retry_at: Moment,
    pub takeover: Takeover,
    /// Why no instance of it can ever be on this node, see [`crate::plan::misfit`].
    pub misfit: Option<Unavailable>,
    /// Why its instances cannot be suspended here, once that is known: they end when they are idle.
    pub cannot_suspend: Option<String>,
    /// What its instances hold of the node's memory. Durable.
    pub memory: Learnt,
    /// It was told that its program does not end when it is asked to.
    pub told_stubborn: bool,
}

impl RevisionActual {
    /// What is known of a revision when its object has just come.
    pub fn new(object: Digest, ready_once: bool, now: Moment) -> Self {
        Self {
            object,
            image: ImageState::Unknown,
            caution: None,
            ready_once,
            last_active: now,
            crashes: Crashes::default(),
            prime_retry_at: Moment::default(),
            takeover: Takeover::None,
            misfit: None,
            cannot_suspend: None,
            memory: Learnt::Nothing,
            told_stubborn: false,
        }
    }

    /// Attempts to have the image that failed in a row.
    pub fn image_attempts(&self) -> u32 {
        match &self.image {
            ImageState::Failed { attempts, .. } => *attempts,
            ImageState::Unknown | ImageState::Preparing | ImageState::Present => 0,
        }
    }
}

/// How far a revision is in taking the place of the one before it, where both must not run at a time.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Takeover {
    /// There is none, or it has not begun.
    #[default]
    None,
    /// Requests wait for this one; the one before ends. `started`: when nothing of that was left any more, and this one's time began.
    Begun { started: Option<Moment> },
    /// It did not answer in time, and the one before serves again.
    Undone(RolledBack),
}

/// How far the revision's image is on this node.
#[derive(Clone, Debug, PartialEq)]
pub enum ImageState {
    /// Not looked at yet.
    Unknown,
    /// Being looked up, fetched or unpacked for the first time.
    Preparing,
    Present,
    /// Tried again at `retry_at`, being tried again if `None`; a reason word and a message for the status.
    Failed {
        reason: String,
        message: String,
        attempts: u32,
        retry_at: Option<Moment>,
    },
}

/// Instances of a revision that ended without being asked to, or could not be made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Crashes {
    /// In all, since the object last changed.
    pub total: u32,
    /// Since they were last forgotten, see [`crate::plan::crashes_forgotten_at`].
    pub recent: u32,
    /// No new instance before this.
    pub retry_at: Moment,
    /// Of the last one: a reason word and a message for the status.
    pub reason: String,
    pub message: String,
}

/// One instance.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceActual {
    pub revision: RevisionKey,
    /// Digest of the revision object it was made from.
    pub object: Digest,
    /// What that says of those it must not run beside, and of its memory: it may be desired no more.
    pub claim: InstanceClaim,
    pub port: u16,
    /// In the host's pid namespace; 0 until created.
    pub pid: i32,
    pub phase: Phase,
    /// When it entered `phase`.
    pub since: Moment,
    /// Why its readiness probe failed last, in words.
    pub unready: Option<String>,
    /// They are its own until it is gone, whatever its phase.
    pub devices: Devices,
    /// Since when a device of it is unhealthy or not there.
    pub lost_since: Option<Moment>,
    /// Memory that it was last seen to hold and that cannot be taken back, bytes; 0: not looked at yet.
    pub held_bytes: u64,
    /// When it was last looked at for that.
    pub looked_at: Option<Moment>,
    /// It has not been looked at since it was ready, and has never been frozen.
    pub begins: bool,
    /// Bytes that it had on its devices and has in the node's memory now.
    pub moved_bytes: u64,
    /// The last move of these to or from its devices did not come about.
    pub delayed: Option<Delay>,
    /// A former agent ended in the middle of a move: where they are nobody knows until it is [restored](crate::plan::Action::Restore).
    pub astray: bool,
    /// It holds more of an accelerator's memory than it declared.
    pub overuse: Option<Overuse>,
    /// When that was last told.
    pub overuse_told: Option<Moment>,
    /// Whether what its container has of its devices is theirs.
    pub fit: Fit,
}

/// What an instance keeps of the object it was made from. Empty where a release made it that wrote none of this down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstanceClaim {
    pub configuration: String,
    /// What it is reckoned with, bytes.
    pub memory_bytes: Option<u64>,
}

/// Why what an instance has on its devices stays where it is for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delay {
    pub why: String,
    pub since: Moment,
    /// It is tried again from then on.
    pub until: Moment,
    /// Others have taken the room that it needs on its devices.
    pub crowded: bool,
}

impl InstanceActual {
    /// The devices that nobody else may have now.
    pub fn held_devices(&self) -> Option<&Devices> {
        (self.phase != Phase::Suspended || self.astray).then_some(&self.devices)
    }

    /// Until when nothing that it has is moved.
    pub fn delayed_until(&self) -> Moment {
        self.delayed.as_ref().map(|delay| delay.until).unwrap_or_default()
    }

    /// One without devices that is not made yet.
    pub fn new(revision: RevisionKey, object: Digest, port: u16, phase: Phase, now: Moment) -> Self {
        Self {
            revision,
            object,
            claim: InstanceClaim::default(),
            port,
            pid: 0,
            phase,
            since: now,
            unready: None,
            devices: Devices::new(),
            lost_since: None,
            held_bytes: 0,
            looked_at: None,
            begins: false,
            moved_bytes: 0,
            delayed: None,
            astray: false,
            overuse: None,
            overuse_told: None,
            fit: Fit::Fits,
        }
    }

    /// When it has been without a device for so long that it ends; `None`: it has what it was given.
    pub fn ends_at(&self) -> Option<Moment> {
        let lost = self.lost_since.map(|since| since.after(LOST_GRACE_MS));
        lost.into_iter().chain(self.fit.ends_at()).min()
    }
}

/// Where an instance is in its life on this node.
///
/// ```text
/// Priming ─▶ Primed ─▶ Launching ─▶ Probing ─▶ Ready ⇄ Draining ─▶ Stopping ─▶ Ended ─▶ Deleting ─▶ (gone)
///                                                ▲       ▲ ├─▶ Freezing ─▶ Frozen ─▶ Thawing ──────┐
///                                                │       └─│──────────────────┘                    │
///                                                │         └─▶ Suspending ─▶ Suspended ─▶ Restoring ┤
///                                                └─────────────────────────────────────────────────┘
/// ```
///
/// `Launching` is also a beginning of its own. From everywhere it can come to `Ended`; where an outcome is lost or a step
/// fails, what there is of it goes by `Deleting`.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// The supervisor is creating it, to wait.
    Priming,
    /// It is made, and its program has not been started.
    Primed,
    /// The supervisor is starting it, and creating it before if it was not primed.
    Launching,
    /// Its program runs; it has not answered its readiness probe.
    Probing,
    /// It answers and takes requests.
    Ready,
    /// It takes no new requests; those it has may finish.
    Draining,
    /// The supervisor is stopping its processes where they are.
    Freezing,
    /// Its processes are stopped where they were.
    Frozen,
    /// What it has on its devices is being moved to the node's memory; then its processes stop.
    Suspending,
    /// As frozen, and what it had on its devices is in the node's memory: others may have them meanwhile, and it goes on with the
    /// same ones.
    Suspended,
    /// What it has on its devices is being moved back; then it goes on.
    Restoring,
    /// The supervisor is letting its processes go on.
    Thawing,
    /// It was sent SIGTERM; `killed`: SIGKILL as well.
    Stopping { killed: bool },
    /// Its init has ended.
    Ended { exit: ExitRecord },
    /// What is left of it is being removed.
    Deleting,
}

impl Phase {
    /// Whether the instance counts towards what a revision has: it serves, or is on the way to.
    pub fn is_up(&self) -> bool {
        matches!(self, Phase::Launching | Phase::Probing | Phase::Ready | Phase::Thawing | Phase::Restoring)
    }

    /// Whether its program may have memory.
    pub fn holds_memory(&self) -> bool {
        !matches!(self, Phase::Priming | Phase::Primed | Phase::Ended { .. } | Phase::Deleting)
    }

    /// Whether it is made and waits for a request, or will soon.
    pub fn is_waiting(&self) -> bool {
        matches!(
            self,
            Phase::Priming
                | Phase::Primed
                | Phase::Freezing
                | Phase::Frozen
                | Phase::Suspending
                | Phase::Suspended
        )
    }
}

/// What the router says of one revision at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Requests in instances.
    pub in_flight: u32,
    /// Requests waiting for an instance.
    pub held: u32,
    /// When a request last came or ended.
    pub last_request: Option<Moment>,
}

/// What the router says of the node at this moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    pub revisions: BTreeMap<RevisionKey, Demand>,
    /// Requests in each instance; absent means none.
    pub instances: BTreeMap<InstanceId, u32>,
    /// Those that have brought an answer to its end that was none of failure: they have loaded what they need for it.
    pub served: BTreeSet<InstanceId>,
    /// Requests may still go where an older route table sent them.
    pub unsettled: bool,
}

impl Traffic {
    pub fn of(&self, revision: &RevisionKey) -> Demand {
        self.revisions.get(revision).copied().unwrap_or_default()
    }

    /// Whether any request waits for an instance.
    pub fn is_held(&self) -> bool {
        self.revisions.values().any(|demand| demand.held > 0)
    }
}

/// What the autoscaler asks for of one revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Instances that should run.
    pub want: u32,
    /// When this was decided: it says nothing of requests that came later.
    pub at: Moment,
    /// It was given up: no instance became ready in the time that an activation may take.
    pub timed_out: bool,
}

/// What the autoscaler asks for. A revision that is absent stays as it is.
pub type Targets = BTreeMap<RevisionKey, Target>;
