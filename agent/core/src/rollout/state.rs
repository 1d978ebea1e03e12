//! What a node remembers of one target that follows a configuration, and how that goes on with time and health.
//!
//! ```text
//!               another revision is chosen              its health is bad
//!   Settled ─────────────────────────────▶ Rolling ─────────────────────▶ RolledBack
//!      ▲                                    │ ▲  ▲                             │
//!      ├──── has it all, or the others left ┘ └──┴─ another is chosen, or its ─┤
//!      └───────────── nothing else is left ◀──────  object is a new one ───────┘
//! ```
//!
//! Knows one target at a time, and no clock: time that the agent did not run is not counted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tombolo_api::desired::{Desired, HealthGate, RolloutSpec};
use tombolo_api::report::RolledBack;
use tombolo_api::{Digest, RevisionKey};

use super::gate::{Health, Watch};
use super::steps::Shift;
use crate::actual::Moment;

/// Longest time between two looks at the health of a revision, milliseconds.
pub(super) const LOOK_MS: u64 = 2_000;

/// Longest progress that a crash may cost, milliseconds: spares the flash a write at every look.
const SAVE_MS: u64 = 60_000;

const NANOS_PER_MS: i64 = 1_000_000;
const MS_PER_S: u64 = 1_000;

/// One target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Track {
    /// Its times count from the rollout's beginning.
    pub(super) shift: Shift,
    pub(super) phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Phase {
    /// One revision has it all.
    Settled,
    Rolling(Rolling),
    RolledBack(Undone),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Rolling {
    /// Of the revision that is moved to.
    object: Digest,
    elapsed_ms: u64,
    watch: Watch,
    /// When `elapsed_ms` was right; `None` after a start of the agent.
    #[serde(skip)]
    at: Option<Moment>,
    /// `elapsed_ms` when last stored.
    #[serde(skip)]
    saved_ms: u64,
    /// `elapsed_ms` when `watch` began to count.
    #[serde(skip)]
    watched_from_ms: u64,
}

/// A rollout that was undone: remembered until there is something else to try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Undone {
    pub(super) revision: String,
    pub(super) object: Digest,
    pub(super) why: RolledBack,
}

/// What one target should be.
pub(super) struct Goal<'a> {
    /// Of its configuration, of all requests of the route.
    pub(super) percent: u8,
    /// The most preferred first.
    pub(super) candidates: &'a [String],
    pub(super) rollout: Option<&'a RolloutSpec>,
}

impl Goal<'_> {
    fn rank(&self, revision: &str) -> Option<usize> {
        self.candidates.iter().position(|candidate| candidate == revision)
    }

    fn prefers(&self, revision: &str, other: &str) -> bool {
        self.rank(revision).zip(self.rank(other)).is_some_and(|(rank, other)| rank < other)
    }
}

/// What is, outside of the rollouts.
pub(super) struct Surroundings<'a, R> {
    pub(super) namespace: &'a str,
    pub(super) desired: &'a Desired,
    pub(super) ready: &'a R,
    pub(super) health: &'a BTreeMap<RevisionKey, Health>,
    pub(super) now: Moment,
}

/// What came of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stepped {
    /// When to step again even if nothing else changes.
    pub wake: Option<Moment>,
    /// Whether the state should be stored: anything but a bit of time has changed.
    pub save: bool,
}

impl<R: Fn(&RevisionKey) -> bool> Surroundings<'_, R> {
    fn key(&self, revision: &str) -> RevisionKey {
        RevisionKey::new(self.namespace, revision)
    }

    fn object(&self, revision: &str) -> Option<Digest> {
        self.desired.revisions.get(&self.key(revision)).map(|(digest, _)| *digest)
    }

    fn is_here(&self, revision: &str) -> bool {
        self.object(revision).is_some()
    }

    fn is_ready(&self, revision: &str) -> bool {
        self.is_here(revision) && (self.ready)(&self.key(revision))
    }

    fn health(&self, revision: &str) -> Health {
        self.health.get(&self.key(revision)).cloned().unwrap_or_default()
    }
}

impl Track {
    pub(super) fn settled(revision: &str, percent: u8) -> Self {
        Self { shift: Shift::settled(revision, percent), phase: Phase::Settled }
    }

    /// The track of a target that had none: the first that has been ready, or else is here, or else is named at all.
    pub(super) fn first<R>(goal: &Goal<'_>, around: &Surroundings<'_, R>) -> Option<Self>
    where
        R: Fn(&RevisionKey) -> bool,
    {
        let revision = newest_ready(goal, around).or_else(|| newest_here(goal, around));
        revision.or(goal.candidates.first()).map(|revision| Self::settled(revision, goal.percent))
    }

    /// Whether a track that was read back can be gone on with.
    pub(super) fn is_valid(&self) -> bool {
        self.shift.is_valid()
            && !self.shift.shares.is_empty()
            && (self.shift.is_done() || !matches!(self.phase, Phase::Settled))
            && (self.shift.next_ns().is_some() || !matches!(self.phase, Phase::Rolling(_)))
    }

    /// The revision that should have it all in the end.
    pub(super) fn goal(&self) -> &str {
        match &self.phase {
            Phase::RolledBack(undone) => &undone.revision,
            Phase::Settled | Phase::Rolling(_) => self.shift.goal().unwrap_or_default(),
        }
    }

    /// Goes on to `around.now`.
    pub(super) fn step<R>(&mut self, goal: &Goal<'_>, around: &Surroundings<'_, R>) -> Stepped
    where
        R: Fn(&RevisionKey) -> bool,
    {
        let Some(chosen) = self.choose(goal, around) else { return Stepped::default() };
        let settled = matches!(self.phase, Phase::Settled) && self.shift.is_done();
        if settled && self.shift.goal() == Some(chosen) && self.shift.percent == goal.percent {
            return Stepped::default();
        }
        let chosen = chosen.to_owned();
        let before = (self.shift.clone(), std::mem::discriminant(&self.phase));
        self.follow(&chosen, goal, around);
        let changed = before.0 != self.shift || before.1 != std::mem::discriminant(&self.phase);
        let Phase::Rolling(rolling) = &mut self.phase else { return Stepped { wake: None, save: changed } };
        let save = changed || rolling.elapsed_ms.saturating_sub(rolling.saved_ms) >= SAVE_MS;
        if save {
            rolling.saved_ms = rolling.elapsed_ms;
        }
        let wake = rolling.wake(&self.shift, goal.rollout, around.now);
        Stepped { wake, save }
    }

    /// The revision to move to; `None`: no candidate is named, and what is served is not here.
    fn choose<'a, R>(&'a self, goal: &Goal<'a>, around: &Surroundings<'_, R>) -> Option<&'a str>
    where
        R: Fn(&RevisionKey) -> bool,
    {
        let here = |revision: &&str| around.is_here(revision);
        if let Some(ready) = newest_ready(goal, around) {
            return Some(ready);
        }
        // None has been ready, perhaps for all objects are new. A rollout goes on; otherwise the newest is waited for.
        let going_on = match self.phase {
            Phase::Settled => None,
            Phase::Rolling(_) | Phase::RolledBack(_) => Some(self.goal()).filter(here),
        };
        let newest = || newest_here(goal, around).map(String::as_str);
        going_on.or_else(newest).or_else(|| self.shift.goal().filter(here)).or_else(|| {
            // What is served is not here either: as good as any.
            goal.candidates.first().map(String::as_str)
        })
    }

    fn follow<R>(&mut self, chosen: &str, goal: &Goal<'_>, around: &Surroundings<'_, R>)
    where
        R: Fn(&RevisionKey) -> bool,
    {
        let (Some(spec), Some(object)) = (goal.rollout, around.object(chosen)) else {
            *self = Self::settled(chosen, goal.percent);
            return;
        };
        let moving = self.shift.next_ns().is_some();
        self.shift.keep(|revision| around.is_here(revision));
        if moving && self.shift.next_ns().is_none() {
            self.phase = Phase::Settled;
        }
        if !self.shift.shares.is_empty() && self.stays_undone(chosen, goal, around) {
            self.shift.resize(goal.percent);
        } else if self.shift.goal() == Some(chosen) && !self.shift.is_done() {
            self.go_on(spec, object, goal.percent, around);
        } else if self.shift.goal() == Some(chosen) || self.goes_back(chosen, goal) {
            *self = Self::settled(chosen, goal.percent);
        } else {
            self.start(chosen, object, spec, goal.percent, around);
        }
    }

    /// Whether what was undone would be chosen again, or would be if it were ready.
    fn stays_undone<R>(&self, chosen: &str, goal: &Goal<'_>, around: &Surroundings<'_, R>) -> bool
    where
        R: Fn(&RevisionKey) -> bool,
    {
        let Phase::RolledBack(undone) = &self.phase else { return false };
        let waits = || self.shift.goal() == Some(chosen) && goal.prefers(&undone.revision, chosen);
        around.object(&undone.revision) == Some(undone.object) && (undone.revision == chosen || waits())
    }

    /// Whether `chosen` is what was moved away from, or less wanted than what is served: that is no time for small steps.
    fn goes_back(&self, chosen: &str, goal: &Goal<'_>) -> bool {
        let mut others = self.shift.shares.iter().rev().skip(1);
        others.any(|share| share.revision == chosen)
            || self.shift.goal().is_some_and(|served| goal.prefers(served, chosen))
    }

    /// Begins to move to `chosen` from those of the present ones that can serve; at once if none can.
    fn start<R>(
        &mut self,
        chosen: &str,
        object: Digest,
        spec: &RolloutSpec,
        percent: u8,
        around: &Surroundings<'_, R>,
    ) where
        R: Fn(&RevisionKey) -> bool,
    {
        self.shift.keep(|revision| revision != chosen && around.is_ready(revision));
        let mut shift = std::mem::take(&mut self.shift).step(chosen, percent, 0);
        // The router takes a new table at once, so the routes are ready as soon as they are made.
        shift.ready(spec.duration_s as f64, 0);
        let counters =
            shift.shares.iter().map(|share| (share.revision.as_str(), around.health(&share.revision)));
        let watch = Watch::begin(counters);
        let at = Some(around.now);
        let rolling = Rolling { object, elapsed_ms: 0, watch, at, saved_ms: 0, watched_from_ms: 0 };
        self.phase = if shift.is_done() { Phase::Settled } else { Phase::Rolling(rolling) };
        self.shift = shift;
    }

    fn go_on<R>(&mut self, spec: &RolloutSpec, object: Digest, percent: u8, around: &Surroundings<'_, R>)
    where
        R: Fn(&RevisionKey) -> bool,
    {
        let Phase::Rolling(rolling) = &mut self.phase else {
            // It shares with others after another's rollout was undone, and is now wanted for itself.
            let goal = self.shift.goal().unwrap_or_default();
            *self = Self::settled(goal, percent);
            return;
        };
        rolling.look(&self.shift, object, around);
        if let Some(why) = spec.gate.and_then(|gate| verdict(rolling, &self.shift, &gate)) {
            let revision = self.shift.withdraw().unwrap_or_default();
            self.shift.resize(percent);
            self.phase = Phase::RolledBack(Undone { revision, object, why });
            return;
        }
        let chosen = self.shift.goal().unwrap_or_default().to_owned();
        if rolling.held_until_ms(&self.shift, spec).is_some_and(|until_ms| rolling.elapsed_ms < until_ms) {
            self.shift.resize(percent);
        } else {
            self.shift = std::mem::take(&mut self.shift).step(&chosen, percent, rolling.now_ns());
        }
        if self.shift.is_done() {
            *self = Self::settled(&chosen, percent);
        }
    }
}

impl Rolling {
    fn now_ns(&self) -> i64 {
        i64::try_from(self.elapsed_ms).unwrap_or(i64::MAX).saturating_mul(NANOS_PER_MS)
    }

    /// Brings time and counts up to now.
    fn look<R>(&mut self, shift: &Shift, object: Digest, around: &Surroundings<'_, R>)
    where
        R: Fn(&RevisionKey) -> bool,
    {
        self.elapsed_ms = self.elapsed_ms.saturating_add(self.at.map_or(0, |at| around.now.since(at)));
        self.at = Some(around.now);
        self.watch.forget_waiting();
        for share in &shift.shares {
            let is_next = shift.goal() == Some(share.revision.as_str());
            self.watch.count(&share.revision, is_next, around.health(&share.revision));
        }
        if self.object != object {
            self.object = object;
            self.watch.restart();
            self.watched_from_ms = self.elapsed_ms;
        }
    }

    /// For how long the watch has been counting.
    fn counted_ms(&self) -> u64 {
        self.elapsed_ms.saturating_sub(self.watched_from_ms)
    }

    /// How long the next step waits for answers to judge by: the last one for one more duration from when it is due, another, if
    /// there are requests that should have been answered, up to twice the duration after the beginning.
    fn held_until_ms(&self, shift: &Shift, spec: &RolloutSpec) -> Option<u64> {
        let gate = spec.gate.filter(|gate| !self.watch.is_judged(gate, self.counted_ms()))?;
        let due_ms = due_ms(shift)?;
        let duration_ms = spec.duration_s.saturating_mul(MS_PER_S);
        if shift.is_last_step() {
            return Some(due_ms.saturating_add(duration_ms));
        }
        let in_doubt = self.watch.is_in_doubt(&gate, self.counted_ms());
        in_doubt.then(|| due_ms.max(duration_ms.saturating_mul(2)))
    }

    /// When something may change with time alone.
    fn wake(&self, shift: &Shift, rollout: Option<&RolloutSpec>, now: Moment) -> Option<Moment> {
        let spec = rollout?;
        let due_ms = self.held_until_ms(shift, spec).or(due_ms(shift))?;
        let step = now.after(due_ms.saturating_sub(self.elapsed_ms));
        Some(if spec.gate.is_some() { step.min(now.after(LOOK_MS)) } else { step })
    }
}

/// When the next step is due, milliseconds since the beginning.
fn due_ms(shift: &Shift) -> Option<u64> {
    let next_ns = shift.next_ns()?;
    Some(u64::try_from(next_ns).unwrap_or_default().div_ceil(NANOS_PER_MS.unsigned_abs()))
}

fn verdict(rolling: &Rolling, shift: &Shift, gate: &HealthGate) -> Option<RolledBack> {
    let (next, former) = shift.shares.split_last()?;
    let former: Vec<_> = former.iter().map(|share| share.revision.as_str()).collect();
    rolling.watch.verdict(gate, rolling.counted_ms(), &next.revision, &former.join(" and "))
}

fn newest_ready<'a, R>(goal: &Goal<'a>, around: &Surroundings<'_, R>) -> Option<&'a String>
where
    R: Fn(&RevisionKey) -> bool,
{
    goal.candidates.iter().find(|revision| around.is_ready(revision))
}

fn newest_here<'a, R>(goal: &Goal<'a>, around: &Surroundings<'_, R>) -> Option<&'a String>
where
    R: Fn(&RevisionKey) -> bool,
{
    goal.candidates.iter().find(|revision| around.is_here(revision))
}
