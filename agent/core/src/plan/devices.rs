//! What of the wanted instances there are devices for, and which devices the next one gets. Who asks for none is not looked at.
//!
//! An instance that waits, primed or frozen, has its devices like one that runs, but gives way: where a revision has no instance
//! at all for want of devices, those that wait for nobody go.
//!
//! A suspended instance has let go of its devices, and needs the very same to go on. Revisions that may be suspended take turns:
//! those with no request now have only what others leave, who was called last first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use tombolo_api::RevisionKey;
use tombolo_api::desired::INSTANCES_PER_REVISION_MAX;

use super::{Action, Draft, Pass, Scope, WakeReason};
use crate::actual::{InstanceActual, Moment, Phase};
use crate::annotations::IdleTier;
use crate::devices::{self, Asked, Choice, DeviceId, Devices, Obstacle, ResourceName};
use crate::supervision::InstanceId;

/// How many devices of each resource.
type Counts = BTreeMap<ResourceName, usize>;

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
        order.sort_by_key(|index| {
            let scope = &scopes[*index].1;
            // Where somebody waits comes first.
            let demand = self.situation.traffic.of(scope.key);
            let called = self.yields(scope).then_some(Reverse(scope.known.last_active));
            (demand.held == 0, demand.in_flight == 0, called, *index)
        });
        let has: BTreeMap<usize, u32> =
            order.iter().map(|index| (*index, self.has_devices(&scopes[*index].1))).collect();
        let allowed = self.share(scopes, &order, &has, counts(&draft.free), draft);
        for index in order {
            let (wanted, scope) = &mut scopes[index];
            let allowed = allowed.get(&index).copied().unwrap_or(0);
            if allowed < *wanted && !self.takeovers.blocked.contains(scope.key) && !self.yields(scope) {
                cuts.insert(scope.key.clone(), self.why(scope, *wanted, allowed, draft));
                if allowed == 0 {
                    draft.short.push(scope.asked.clone());
                }
            }
            *wanted = allowed.min(*wanted);
        }
        self.give_way(scopes, draft);
        cuts
    }

    /// How many instances each of `order` may have: what it has and wants, unless it yields, then a first before anyone's second.
    fn share(
        &self,
        scopes: &[(u32, Scope<'a>)],
        order: &[usize],
        has: &BTreeMap<usize, u32>,
        mut pool: Counts,
        draft: &mut Draft,
    ) -> BTreeMap<usize, u32> {
        let mut allowed: BTreeMap<usize, u32> = BTreeMap::new();
        let mut can_grow = BTreeSet::new();
        for index in order {
            let (wanted, scope) = &scopes[*index];
            let mut own = (*wanted).min(has[index]);
            if self.yields(scope) && self.obstacle(scope).is_none() {
                for (name, count) in &scope.asked {
                    *pool.entry(name.clone()).or_default() += (own * count) as usize;
                }
                own = 0;
            }
            allowed.insert(*index, own);
            let awaited_until = self.situation.actual.devices.awaited_until;
            if self.obstacle(scope).is_none() {
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
                // One that yields may have back what it has.
                let would_grow = now > 0 || self.yields(scope) && now >= (*wanted).min(has[index]);
                let is_kept_out = would_grow && scope.asked.keys().any(|name| a_first_waits.contains(name));
                if now != round || now >= *wanted || is_kept_out {
                    continue;
                }
                if take(&mut pool, &scope.asked) {
                    allowed.insert(*index, now + 1);
                } else if now == 0 {
                    a_first_waits.extend(scope.asked.keys());
                }
            }
        }
        allowed
    }

    /// Instances of the present object that have their devices, and serve or can without being given any.
    fn has_devices(&self, scope: &Scope<'a>) -> u32 {
        let of_use = |instance: &InstanceActual| {
            let serves =
                instance.phase.is_up() || instance.phase.is_waiting() || instance.phase == Phase::Draining;
            serves && instance.phase != Phase::Suspended && !self.is_lost(instance)
        };
        self.current(scope).filter(|(_, instance)| of_use(instance)).count() as u32
    }

    /// Whether its instances can be suspended and nobody calls them: others who are called may have the devices.
    fn yields(&self, scope: &Scope<'a>) -> bool {
        let demand = self.situation.traffic.of(scope.key);
        scope.scale.tier == IdleTier::Suspended
            && scope.scale.min == 0
            && scope.known.ready_once
            && scope.known.cannot_suspend.is_none()
            && demand.held == 0
            && demand.in_flight == 0
    }

    fn obstacle(&self, scope: &Scope<'a>) -> Option<Obstacle> {
        devices::obstacle(&scope.asked, &self.situation.actual.devices, self.now)
    }

    fn why(&self, scope: &Scope<'a>, wanted: u32, allowed: u32, draft: &Draft) -> String {
        if let Some(Obstacle { why, .. }) = self.obstacle(scope) {
            return format!("{}: {}", why.reason, why.message);
        }
        let free = |(name, count): (&ResourceName, &u32)| {
            let free = draft.free.get(name).map_or(0, BTreeSet::len);
            format!("{count} of {name}, of which {free} are free here")
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
            let mut victims: BTreeSet<&InstanceId> = BTreeSet::new();
            loop {
                let free = self.free_beside(|id, instance| !goes(id, instance) && !victims.contains(id));
                if covers(&free, &asked) {
                    draft.removals.extend(victims.into_iter().map(|id| self.let_go(id.clone())));
                    break;
                }
                match candidates.next() {
                    Some((_, id)) => drop(victims.insert(id)),
                    None => break,
                }
            }
        }
    }

    /// What would be free if of all instances only those that `stays` names were there.
    fn free_beside(&self, stays: impl Fn(&InstanceId, &InstanceActual) -> bool) -> Counts {
        let actual = self.situation.actual;
        let staying = actual.instances.iter().filter(|(id, instance)| stays(id, instance));
        counts(&actual.devices.inventory.free(staying.filter_map(|(_, instance)| instance.held_devices())))
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
                    idle.push((scope.known.last_active, id));
                }
            }
        }
        idle
    }

    fn let_go(&self, instance: InstanceId) -> Action {
        match self.situation.actual.instances[&instance].phase {
            Phase::Primed => Action::Delete { instance },
            Phase::Probing => Action::Terminate { instance },
            _ => Action::Drain { instance },
        }
    }

    /// Whether an instance may be made to wait with the devices it needs.
    pub(super) fn may_hold_devices(&self, scope: &Scope<'a>, draft: &Draft) -> bool {
        let wants = |short: &Asked| scope.asked.keys().any(|name| short.contains_key(name));
        covers(&counts(&draft.free), &scope.asked) && !draft.short.iter().any(wants)
    }

    /// Takes the devices of one instance more out of what is free. `None`: there are too few, or a plugin's preference comes first.
    pub(super) fn take_devices(&self, scope: &Scope<'a>, draft: &mut Draft) -> Option<Devices> {
        let inventory = &self.situation.actual.devices.inventory;
        let mut taken = Devices::new();
        let mut is_open = false;
        for (name, count) in &scope.asked {
            let (resource, free) = (inventory.resources.get(name)?, draft.free.get(name)?);
            let mut preferred = None;
            if resource.has_preference && free.len() > *count as usize {
                let choice = Choice { resource: name.clone(), free: free.clone(), count: *count };
                preferred = inventory.preferences.get(&choice);
                if preferred.is_none() {
                    is_open = true;
                    draft.choices.insert(choice);
                    continue;
                }
            }
            taken.insert(name.clone(), devices::choose(resource, free, *count, preferred)?);
        }
        if is_open {
            return None;
        }
        for (name, ids) in &taken {
            draft.free.entry(name.clone()).or_default().retain(|id| !ids.contains(id));
        }
        Some(taken)
    }

    /// Whether one instance needs devices that there are, and that the revisions `before` have.
    pub(super) fn waits_for_devices_of(&self, scope: &Scope<'a>, before: &BTreeSet<RevisionKey>) -> bool {
        let holds = |instance: &InstanceActual| instance.held_devices().is_some_and(|held| !held.is_empty());
        if scope.asked.is_empty() || self.current(scope).any(|(_, instance)| holds(instance)) {
            return false;
        }
        let free = self.free_beside(|_, _| true);
        let without = self.free_beside(|_, instance| !before.contains(&instance.revision));
        !covers(&free, &scope.asked) && covers(&without, &scope.asked)
    }
}

impl Draft {
    /// Takes these devices out of what is free, if they all are.
    pub(super) fn take_back(&mut self, devices: &Devices) -> bool {
        let is_free = |(name, ids): (&ResourceName, &BTreeSet<DeviceId>)| {
            self.free.get(name).is_some_and(|free| ids.is_subset(free))
        };
        if !devices.iter().all(is_free) {
            return false;
        }
        for (name, ids) in devices {
            self.free.entry(name.clone()).or_default().retain(|id| !ids.contains(id));
        }
        true
    }
}

fn counts(devices: &Devices) -> Counts {
    devices.iter().map(|(name, ids)| (name.clone(), ids.len())).collect()
}

fn covers(pool: &Counts, asked: &Asked) -> bool {
    asked.iter().all(|(name, count)| pool.get(name).is_some_and(|free| *free >= *count as usize))
}

fn take(pool: &mut Counts, asked: &Asked) -> bool {
    if !covers(pool, asked) {
        return false;
    }
    for (name, count) in asked {
        if let Some(free) = pool.get_mut(name) {
            *free -= *count as usize;
        }
    }
    true
}
