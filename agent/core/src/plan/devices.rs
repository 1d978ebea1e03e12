//! What of the wanted instances there are devices for, and which devices the next one gets. Who asks for none is not looked at.
//!
//! An instance that waits, primed or frozen, has its devices like one that runs, but gives way: where a revision has no instance
//! at all for want of devices, those that wait for nobody go.

use std::collections::{BTreeMap, BTreeSet};

use tombolo_api::RevisionKey;
use tombolo_api::desired::INSTANCES_PER_REVISION_MAX;

use super::turns::Turns;
use super::{Action, Draft, Pass, Scope, WakeReason};
use crate::actual::{InstanceActual, Moment, Phase};
use crate::devices::{self, Asked, Choice, Devices, Obstacle, Pool, ResourceName};
use crate::supervision::InstanceId;

impl<'a> Pass<'a> {
    /// Lowers what is wanted to what there are devices for; why, for those that get less. Has those give way that wait for nobody.
    pub(super) fn fit_devices(
        &self,
        scopes: &mut [(u32, Scope<'a>)],
        draft: &mut Draft,
    ) -> BTreeMap<RevisionKey, String> {
        let mut cuts = BTreeMap::new();
        let asks =
            |(index, (_, scope)): (usize, &(u32, Scope<'a>))| (!scope.asked.is_empty()).then_some(index);
        let mut order: Vec<usize> = scopes.iter().enumerate().filter_map(asks).collect();
        if order.is_empty() {
            return cuts;
        }
        let mut turns = self.turns(scopes, &order);
        order.retain(|index| turns.takes_part(*index));
        order.sort_by_key(|index| (turns.rank(*index), *index));
        self.find_returning(scopes, &order, &mut turns, draft);
        let allowed = self.share(scopes, &order, &turns, Pool::of(&draft.free), draft);
        for index in order {
            let (wanted, scope) = &mut scopes[index];
            let allowed = allowed.get(&index).copied().unwrap_or(0);
            // That others have their turn is nothing to tell.
            let waits_its_turn = turns.yields(index) || turns.awaits_its_own(index);
            if allowed < *wanted && !self.takeovers.blocked.contains(scope.key) && !waits_its_turn {
                cuts.insert(scope.key.clone(), self.why(scope, *wanted + scope.later, allowed, draft));
                if allowed == 0 {
                    draft.short.push(scope.asked.clone());
                }
            }
            *wanted = allowed.min(*wanted);
        }
        self.give_way(scopes, draft);
        cuts
    }

    /// How many instances each of `order` may have: what it has and wants, unless it yields that, then a first before anyone's second.
    fn share(
        &self,
        scopes: &[(u32, Scope<'a>)],
        order: &[usize],
        turns: &Turns<'a>,
        mut pool: Pool,
        draft: &mut Draft,
    ) -> BTreeMap<usize, u32> {
        let mut allowed: BTreeMap<usize, u32> = BTreeMap::new();
        let mut can_grow = BTreeSet::new();
        for index in order {
            let (wanted, scope) = &scopes[*index];
            let has_obstacle = self.obstacle(scope).is_some();
            let mut own = (*wanted).min(turns.keeps(*index));
            if turns.yields(*index) && !has_obstacle {
                let yielded = turns.has(*index).min(*wanted) as usize;
                self.holders(scope).take(yielded).for_each(|holder| pool.give(&holder.devices));
                own = 0;
            }
            allowed.insert(*index, own);
            let awaited_until = self.situation.actual.devices.awaited_until;
            if !has_obstacle {
                can_grow.insert(*index);
            } else if self.now < awaited_until {
                draft.wake_at(awaited_until, WakeReason::DevicesAwaited);
            }
        }
        let mut a_first_waits: BTreeSet<&ResourceName> = BTreeSet::new();
        for round in 0..INSTANCES_PER_REVISION_MAX {
            for index in order.iter().filter(|index| can_grow.contains(*index)) {
                let (wanted, scope) = &scopes[*index];
                let now = allowed[index];
                let yields = turns.yields(*index);
                // One that yields may have back what it has.
                let most = if yields { (*wanted).min(turns.keeps(*index)) } else { *wanted };
                let is_kept_out =
                    now > 0 && !yields && scope.asked.keys().any(|name| a_first_waits.contains(name));
                if now != round || now >= most || is_kept_out || turns.awaits_its_own(*index) {
                    continue;
                }
                // What it has or had is where it is; who is called may begin anew elsewhere.
                let own = self.holders(scope).chain(self.resting(scope)).nth(now as usize);
                let taken = match own {
                    Some(instance) if yields => pool.take_like(&instance.devices),
                    Some(instance) => pool.take_like(&instance.devices) || pool.take(&scope.asked),
                    None => pool.take(&scope.asked),
                };
                if taken {
                    allowed.insert(*index, now + 1);
                } else if now == 0 {
                    a_first_waits.extend(scope.asked.keys());
                }
            }
        }
        allowed
    }

    /// Instances of the present object that have their devices, and serve or can without being given any.
    pub(super) fn holders(&self, scope: &Scope<'a>) -> impl Iterator<Item = &'a InstanceActual> {
        let of_use = |instance: &InstanceActual| {
            let serves =
                instance.phase.is_up() || instance.phase.is_waiting() || instance.phase == Phase::Draining;
            serves && instance.phase != Phase::Suspended && !self.is_lost(instance)
        };
        self.current(scope).map(|(_, instance)| instance).filter(move |instance| of_use(instance))
    }

    /// Its suspended instances.
    fn resting(&self, scope: &Scope<'a>) -> impl Iterator<Item = &'a InstanceActual> {
        let instances = self.current(scope).map(|(_, instance)| instance);
        instances.filter(|instance| instance.held_devices().is_none() && !self.is_lost(instance))
    }

    pub(super) fn obstacle(&self, scope: &Scope<'a>) -> Option<Obstacle> {
        devices::obstacle(&scope.asked, &self.situation.actual.devices, self.now)
    }

    fn why(&self, scope: &Scope<'a>, wanted: u32, allowed: u32, draft: &Draft) -> String {
        if let Some(Obstacle { why, .. }) = self.obstacle(scope) {
            return format!("{}: {}", why.reason, why.message);
        }
        let pool = Pool::of(&draft.free);
        let free = |(name, count): (&ResourceName, &u32)| {
            let free = draft.free.get(name).map_or(0, BTreeSet::len);
            let most = pool.largest(name);
            let scattered =
                if most < free { format!(", {most} at most on one accelerator") } else { String::new() };
            format!("{count} of {name}, of which {free} are free here{scattered}")
        };
        let needs: Vec<String> = scope.asked.iter().map(free).collect();
        format!(
            "InsufficientDevices: {allowed} of {wanted} wanted instances; one needs {}: it starts when others let go of theirs",
            needs.join(" and "),
        )
    }

    /// Ends instances that wait for nobody where that is enough for those that are short: who was called longest ago goes first.
    fn give_way(&self, scopes: &[(u32, Scope<'a>)], draft: &mut Draft) {
        for asked in draft.short.clone() {
            let goes = |id: &InstanceId, instance: &InstanceActual| {
                matches!(instance.phase, Phase::Stopping { .. } | Phase::Ended { .. } | Phase::Deleting)
                    || draft.names(id)
            };
            let mut candidates = self.idle_holders(scopes, &asked);
            candidates.retain(|(_, id)| !draft.names(id));
            candidates.sort_unstable();
            let mut candidates = candidates.into_iter();
            let mut victims: Vec<&InstanceId> = Vec::new();
            let suffice = |victims: &[&InstanceId]| {
                let stays =
                    |id: &InstanceId, known: &InstanceActual| !goes(id, known) && !victims.contains(&id);
                self.free_beside(stays).covers(&asked)
            };
            let is_enough = loop {
                if suffice(&victims) {
                    break true;
                }
                let Some((_, id)) = candidates.next() else { break false };
                victims.push(id);
            };
            if is_enough {
                // Those on another accelerator than what is needed go for nothing.
                for index in (0..victims.len()).rev() {
                    let without: Vec<_> =
                        victims.iter().copied().filter(|victim| *victim != victims[index]).collect();
                    if suffice(&without) {
                        victims = without;
                    }
                }
                draft.removals.extend(victims.into_iter().map(|id| self.let_go(id.clone())));
            }
        }
    }

    /// What would be free if of all instances only those that `stays` names were there.
    fn free_beside(&self, stays: impl Fn(&InstanceId, &InstanceActual) -> bool) -> Pool {
        let actual = self.situation.actual;
        let staying = actual.instances.iter().filter(|(id, instance)| stays(id, instance));
        Pool::of(&actual.devices.inventory.free(staying.filter_map(|(_, instance)| instance.held_devices())))
    }

    /// Instances that have some of what is asked for and serve nobody: those of revisions of which none is wanted, and those of
    /// a former object in whose place one should be.
    fn idle_holders(&self, scopes: &[(u32, Scope<'a>)], asked: &Asked) -> Vec<(Moment, &'a InstanceId)> {
        let mut idle = Vec::new();
        for (wanted, scope) in
            scopes.iter().filter(|(_, scope)| scope.asked.keys().any(|name| asked.contains_key(name)))
        {
            for (id, instance) in self.index.of(scope.key).iter().copied() {
                let is_outdated = instance.object != *scope.digest;
                let waits = matches!(instance.phase, Phase::Primed | Phase::Frozen) && *wanted == 0;
                let serves_instead = is_outdated
                    && scope.asked == *asked
                    && matches!(instance.phase, Phase::Ready | Phase::Probing);
                let loaded = self.situation.traffic.instances.get(id).is_some_and(|load| *load > 0);
                if (waits && !loaded || serves_instead) && !self.is_lost(instance) {
                    idle.push((self.called(scope), id));
                }
            }
        }
        idle
    }

    pub(super) fn let_go(&self, instance: InstanceId) -> Action {
        match self.situation.actual.instances[&instance].phase {
            Phase::Primed => Action::Delete { instance },
            Phase::Probing => Action::Terminate { instance },
            _ => Action::Drain { instance },
        }
    }

    /// Whether an instance may be made to wait with the devices it needs.
    pub(super) fn may_hold_devices(&self, scope: &Scope<'a>, draft: &Draft) -> bool {
        let wants = |short: &Asked| scope.asked.keys().any(|name| short.contains_key(name));
        Pool::of(&draft.free).covers(&scope.asked) && !draft.short.iter().any(wants)
    }

    /// Takes the devices of one instance more out of what is free. `None`: there are too few, or a plugin's preference comes first.
    ///
    /// Those that suspended instances come back to are left, if others suffice, or else all those of one of them are taken, who was
    /// stopped first: so each instance that lets go makes room for another one whole.
    pub(super) fn take_devices(&self, scope: &Scope<'a>, draft: &mut Draft) -> Option<Devices> {
        let suspended: Vec<_> = self.suspended().collect();
        let mut unclaimed = draft.free.clone();
        for (_, instance) in &suspended {
            remove(&mut unclaimed, &instance.devices);
        }
        let taken = if suspended.is_empty() {
            self.pick(scope, &draft.free, &mut draft.choices, false).ok()?
        } else {
            let others = self.pick(scope, &unclaimed, &mut draft.choices, true);
            let as_asked = |devices: &Devices| {
                let count = |name| devices.get(name).map_or(0, BTreeSet::len);
                devices.len() == scope.asked.len()
                    && scope.asked.iter().all(|(name, asked)| count(name) == *asked as usize)
            };
            let mut whole = suspended.iter().map(|(_, instance)| *instance).collect::<Vec<_>>();
            whole.retain(|instance| as_asked(&instance.devices) && is_within(&instance.devices, &draft.free));
            let whole = whole.into_iter().min_by_key(|instance| instance.since);
            match (others, whole) {
                (Ok(others), _) => others,
                (Err(Unpicked::Asked), _) => return None,
                (Err(Unpicked::TooFew), Some(whole)) => whole.devices.clone(),
                (Err(Unpicked::TooFew), None) => {
                    self.pick(scope, &draft.free, &mut draft.choices, false).ok()?
                }
            }
        };
        remove(&mut draft.free, &taken);
        Some(taken)
    }

    /// The devices of one instance among `free`; if these `must_suit`, only such that their plugin prefers, should it have a preference.
    fn pick(
        &self,
        scope: &Scope<'a>,
        free: &Devices,
        choices: &mut BTreeSet<Choice>,
        must_suit: bool,
    ) -> Result<Devices, Unpicked> {
        let inventory = &self.situation.actual.devices.inventory;
        if !Pool::of(free).covers(&scope.asked) {
            return Err(Unpicked::TooFew);
        }
        let mut picked = Devices::new();
        let mut is_open = false;
        for (name, count) in &scope.asked {
            let (resource, free) =
                inventory.resources.get(name).zip(free.get(name)).ok_or(Unpicked::TooFew)?;
            let mut preferred = None;
            let spare = usize::from(!must_suit);
            if resource.has_preference && free.len() >= *count as usize + spare {
                let choice = Choice { resource: name.clone(), free: free.clone(), count: *count };
                preferred = inventory.preferences.get(&choice);
                if preferred.is_none() {
                    is_open = true;
                    choices.insert(choice);
                    continue;
                }
            }
            let suits = preferred.is_none_or(|ids| ids.len() == *count as usize);
            if must_suit && !suits {
                return Err(Unpicked::TooFew);
            }
            let chosen = devices::choose(name, resource, free, *count, preferred).ok_or(Unpicked::TooFew)?;
            picked.insert(name.clone(), chosen);
        }
        if is_open { Err(Unpicked::Asked) } else { Ok(picked) }
    }

    /// Instances that come back to their devices and have let go of them.
    fn suspended(&self) -> impl Iterator<Item = (&'a InstanceId, &'a InstanceActual)> {
        let rests = |(_, instance): &(&InstanceId, &InstanceActual)| instance.held_devices().is_none();
        self.situation.actual.instances.iter().filter(rests)
    }

    /// Whether one instance needs devices that there are, and that the revisions `before` have.
    pub(super) fn waits_for_devices_of(&self, scope: &Scope<'a>, before: &BTreeSet<RevisionKey>) -> bool {
        let holds = |instance: &InstanceActual| instance.held_devices().is_some_and(|held| !held.is_empty());
        if scope.asked.is_empty() || self.current(scope).any(|(_, instance)| holds(instance)) {
            return false;
        }
        let free = self.free_beside(|_, _| true);
        let without = self.free_beside(|_, instance| !before.contains(&instance.revision));
        !free.covers(&scope.asked) && without.covers(&scope.asked)
    }
}

impl Draft {
    /// Takes these devices out of what is free, if they all are.
    pub(super) fn take_back(&mut self, devices: &Devices) -> bool {
        let is_free = is_within(devices, &self.free);
        if is_free {
            remove(&mut self.free, devices);
        }
        is_free
    }
}

/// Why no devices were picked.
enum Unpicked {
    TooFew,
    /// A plugin's preference comes first.
    Asked,
}

fn is_within(devices: &Devices, free: &Devices) -> bool {
    devices.iter().all(|(name, ids)| free.get(name).is_some_and(|free| ids.is_subset(free)))
}

fn remove(free: &mut Devices, devices: &Devices) {
    for (name, ids) in devices {
        if let Some(free) = free.get_mut(name) {
            free.retain(|id| !ids.contains(id));
        }
    }
}
