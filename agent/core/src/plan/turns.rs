//! Who lets go of devices for whom: revisions whose instances may be suspended take turns. It must not know how devices are
//! counted or chosen.
//!
//! A suspended instance has let go of its devices, and needs the very same to go on. Whoever is called and has none gets them
//! from those that nobody calls, who was called longest ago first; from one that is called without a pause when its turn is over.
//! No instance is moved under a request, and none comes back without one.

use std::collections::BTreeMap;

use super::{Draft, Pass, Scope, WakeReason};
use crate::actual::{Delay, ImageState, InstanceActual, Moment, Phase};
use crate::annotations::IdleTier;
use crate::devices::Devices;
use crate::supervision::InstanceId;

/// How long a revision that is called without a pause keeps its devices from others who wait, milliseconds: several times what a
/// move of some gigabytes takes, or moves would be all that is done.
pub const TURN_MS: u64 = 2_000;

/// How often it is looked whether requests have ended that keep devices from others, milliseconds: their ends are not told.
const POLL_MS: u64 = 25;

/// How a revision holds the devices that its instances have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grip {
    /// It cannot be suspended, or must not be.
    Firm,
    /// It is called, and its turn ends then; `None`: it has yet to begin.
    Turn(Option<Moment>),
    /// It is called, and its turn is over.
    Over,
    /// Nobody calls it.
    Loose,
}

/// One revision among those that ask for devices.
#[derive(Clone, Copy, Debug)]
struct Wish {
    grip: Grip,
    /// Instances that have their devices.
    has: u32,
    /// Of these, those that let go now.
    displaced: u32,
    /// It is called, or must be up, and has none: since when, as far as it matters for whose turn it is.
    waits_since: Option<Moment>,
    awaits_its_own: bool,
    takes_part: bool,
    rank: (u8, u64),
}

/// Who has devices, who waits for some.
pub(super) struct Turns<'a> {
    wishes: BTreeMap<usize, Wish>,
    by_revision: BTreeMap<&'a tombolo_api::RevisionKey, usize>,
}

/// What becomes of a holder of devices that a suspended instance needs.
enum Holder {
    /// It is leaving, or leaves now.
    Leaves {
        now: bool,
    },
    /// It will.
    Later,
    Never,
}

impl<'a> Turns<'a> {
    pub(super) fn takes_part(&self, index: usize) -> bool {
        self.wishes[&index].takes_part
    }

    /// Who comes first when devices are shared out.
    pub(super) fn rank(&self, index: usize) -> (u8, u64) {
        self.wishes[&index].rank
    }

    pub(super) fn has(&self, index: usize) -> u32 {
        self.wishes[&index].has
    }

    /// Instances that may keep their devices.
    pub(super) fn keeps(&self, index: usize) -> u32 {
        let wish = &self.wishes[&index];
        wish.has.saturating_sub(wish.displaced)
    }

    /// Whether others who wait may have its devices.
    pub(super) fn yields(&self, index: usize) -> bool {
        matches!(self.wishes[&index].grip, Grip::Over | Grip::Loose)
    }

    /// Whether it is to get nothing but what its suspended instance left, later.
    pub(super) fn awaits_its_own(&self, index: usize) -> bool {
        self.wishes[&index].awaits_its_own
    }

    fn is_awaited(&self) -> bool {
        self.wishes.values().any(|wish| wish.waits_since.is_some())
    }

    fn await_own(&mut self, index: usize) {
        if let Some(wish) = self.wishes.get_mut(&index) {
            wish.awaits_its_own = true;
        }
    }

    fn displace(&mut self, instance: &InstanceActual) {
        let index = self.by_revision.get(&instance.revision);
        if let Some(wish) = index.and_then(|index| self.wishes.get_mut(index)) {
            wish.displaced += 1;
        }
    }
}

impl<'a> Pass<'a> {
    /// Finds out who holds devices how. What nobody calls is not wanted beyond what it has.
    pub(super) fn turns(&self, scopes: &mut [(u32, Scope<'a>)], order: &[usize]) -> Turns<'a> {
        let mut turns = Turns { wishes: BTreeMap::new(), by_revision: BTreeMap::new() };
        for index in order {
            let (wanted, scope) = &mut scopes[*index];
            let (grip, has) = (self.grip(scope), self.holders(scope).count() as u32);
            if grip == Grip::Loose {
                *wanted = (*wanted).min(has);
            }
            let demand = self.situation.traffic.of(scope.key);
            let must_be_up = demand.held > 0 || !scope.known.ready_once || scope.scale.min > 0;
            let waits = has == 0 && *wanted > 0 && must_be_up;
            let waits_since =
                waits.then(|| self.comes_back(scope).map_or(Moment::default(), |(_, known)| known.since));
            let rank = match (waits_since, grip) {
                (Some(since), _) => (0, since.0),
                (None, Grip::Over) => (1, 0),
                (None, Grip::Turn(_)) => (2, 0),
                (None, Grip::Firm) if demand.held + demand.in_flight > 0 => (2, u64::from(demand.held == 0)),
                (None, Grip::Loose) => (3, u64::MAX - self.called(scope).0),
                (None, Grip::Firm) => (4, 0),
            };
            let takes_part = has > 0 || self.can_start(scope) || self.obstacle(scope).is_some();
            let wish = Wish { grip, has, displaced: 0, waits_since, awaits_its_own: false, takes_part, rank };
            turns.wishes.insert(*index, wish);
            turns.by_revision.insert(scope.key, *index);
        }
        turns
    }

    fn grip(&self, scope: &Scope<'a>) -> Grip {
        let takes_over = self.takeovers.is_leaving(scope.key) || self.takeovers.blocked.contains(scope.key);
        let known = scope.known;
        let may_go = scope.scale.tier == IdleTier::Suspended && scope.scale.min == 0 && !takes_over;
        if !may_go || !known.ready_once || known.cannot_suspend.is_some() {
            return Grip::Firm;
        }
        let demand = self.situation.traffic.of(scope.key);
        if demand.held == 0 && demand.in_flight == 0 {
            return Grip::Loose;
        }
        let up = self.current(scope).filter(|(_, instance)| instance.phase.is_up());
        let ends = up.map(|(_, instance)| match instance.phase {
            Phase::Ready => Some(instance.since.after(TURN_MS)),
            _ => None,
        });
        match ends.max_by_key(|end| end.unwrap_or(Moment(u64::MAX))) {
            // One that is made and not started has yet to begin, too.
            None if self.holders(scope).all(|known| known.phase == Phase::Primed) => Grip::Turn(None),
            None => Grip::Over,
            Some(Some(end)) if self.now >= end => Grip::Over,
            Some(end) => Grip::Turn(end),
        }
    }

    /// Whether an instance could be started now: nobody's device is taken for one that could not.
    fn can_start(&self, scope: &Scope<'a>) -> bool {
        let is_ready = scope.known.image == ImageState::Present && self.now >= scope.known.crashes.retry_at;
        is_ready || self.comes_back(scope).is_some()
    }

    /// The suspended instance that serves the revision's next request.
    fn comes_back(&self, scope: &Scope<'a>) -> Option<(&'a InstanceId, &'a InstanceActual)> {
        let rests = |instance: &InstanceActual| instance.held_devices().is_none() && !self.is_lost(instance);
        let suspended = self.current(scope).filter(|(_, instance)| rests(instance));
        suspended.min_by_key(|(id, instance)| (instance.since, *id))
    }

    /// Finds the suspended instances that get their devices back, in this order, and has those let go that hold these.
    pub(super) fn find_returning(
        &self,
        scopes: &[(u32, Scope<'a>)],
        order: &[usize],
        turns: &mut Turns<'a>,
        draft: &mut Draft,
    ) {
        let mut reserved = Devices::new();
        for index in order {
            let scope = &scopes[*index].1;
            let waits = turns.wishes[index].waits_since.is_some() && self.obstacle(scope).is_none();
            let Some((id, instance)) = self.comes_back(scope).filter(|_| waits) else { continue };
            if self.is_delayed(instance, scopes, turns, draft) || meet(&reserved, &instance.devices) {
                turns.await_own(*index);
                draft.returning.insert(id.clone());
                continue;
            }
            let held = |known: &InstanceActual| {
                known.held_devices().is_some_and(|held| meet(held, &instance.devices))
            };
            let holders = self.situation.actual.instances.iter().filter(|(_, known)| held(known));
            let holders: Vec<_> =
                holders.map(|(id, known)| (id, known, self.holder(id, known, scopes, turns))).collect();
            if holders.iter().any(|(.., holder)| matches!(holder, Holder::Never)) {
                // Better anew on other devices than not at all.
                continue;
            }
            draft.returning.insert(id.clone());
            if holders.iter().any(|(.., holder)| matches!(holder, Holder::Later)) {
                turns.await_own(*index);
                continue;
            }
            for (name, ids) in &instance.devices {
                reserved.entry(name.clone()).or_default().extend(ids.iter().cloned());
            }
            for (id, known, holder) in holders {
                turns.displace(known);
                if matches!(holder, Holder::Leaves { now: true }) && !draft.names(id) {
                    draft.removals.push(self.let_go(id.clone()));
                }
            }
        }
        self.watch_turns(turns, draft);
    }

    fn holder(
        &self,
        id: &InstanceId,
        known: &InstanceActual,
        scopes: &[(u32, Scope<'a>)],
        turns: &Turns<'a>,
    ) -> Holder {
        let index = turns.by_revision.get(&known.revision).copied();
        let current = index.filter(|index| *scopes[*index].1.digest == known.object);
        let is_firm = current.is_none_or(|index| turns.wishes[&index].grip == Grip::Firm);
        let yields = current.is_some_and(|index| turns.yields(index));
        let is_idle = || {
            let wanted = current.map_or(0, |index| scopes[index].0);
            let load = self.situation.traffic.instances.get(id).copied().unwrap_or(0);
            wanted == 0 && load == 0
        };
        match known.phase {
            Phase::Stopping { .. } | Phase::Ended { .. } | Phase::Deleting | Phase::Suspending => {
                Holder::Leaves { now: false }
            }
            Phase::Draining | Phase::Freezing if yields => Holder::Leaves { now: false },
            Phase::Ready if yields => Holder::Leaves { now: true },
            Phase::Primed | Phase::Frozen if is_idle() => Holder::Leaves { now: true },
            Phase::Draining | Phase::Freezing | Phase::Suspended => Holder::Later,
            _ if is_firm => Holder::Never,
            _ => Holder::Later,
        }
    }

    /// Whether a suspended instance that did not come back when it was tried waits still. Where others have taken its room, one
    /// more of them lets go: who was called longest ago.
    fn is_delayed(
        &self,
        instance: &InstanceActual,
        scopes: &[(u32, Scope<'a>)],
        turns: &mut Turns<'a>,
        draft: &mut Draft,
    ) -> bool {
        let Some(Delay { since, until, crowded, .. }) = instance.delayed else { return false };
        let is_beside =
            |known: &InstanceActual| known.devices.keys().any(|name| instance.devices.contains_key(name));
        if crowded {
            let all = self.situation.actual.instances.iter();
            let beside: Vec<_> = all.filter(|(_, known)| is_beside(known)).collect();
            let left = |known: &InstanceActual| known.phase == Phase::Suspended && known.since > since;
            if beside.iter().any(|(_, known)| left(known)) {
                return false;
            }
            let mut is_leaving = false;
            let mut candidates = Vec::new();
            for (id, known) in beside {
                match self.holder(id, known, scopes, turns) {
                    Holder::Leaves { now: true } => {
                        let index = turns.by_revision.get(&known.revision);
                        candidates.push((index.map(|index| self.called(&scopes[*index].1)), id, known));
                    }
                    Holder::Leaves { now: false } => {
                        is_leaving = true;
                        turns.displace(known);
                    }
                    Holder::Later | Holder::Never => {}
                }
            }
            candidates.sort_by_key(|(called, id, _)| (*called, *id));
            match candidates.first() {
                _ if is_leaving => return true,
                Some((_, id, known)) => {
                    turns.displace(known);
                    if !draft.names(id) {
                        draft.removals.push(self.let_go((*id).clone()));
                    }
                    return true;
                }
                None => {}
            }
        }
        if self.now < until {
            draft.wake_at(until, WakeReason::MoveRetry);
        }
        self.now < until
    }

    /// Sees to it that whoever waits gets devices when they are let go of.
    fn watch_turns(&self, turns: &Turns<'a>, draft: &mut Draft) {
        if !turns.is_awaited() {
            return;
        }
        for wish in turns.wishes.values() {
            if let Grip::Turn(Some(end)) = wish.grip {
                draft.wake_at(end, WakeReason::TurnOver);
                draft.wake_at(self.now.after(POLL_MS), WakeReason::TurnOver);
            }
        }
    }
}

fn meet(these: &Devices, those: &Devices) -> bool {
    these.iter().any(|(name, ids)| those.get(name).is_some_and(|others| !ids.is_disjoint(others)))
}
