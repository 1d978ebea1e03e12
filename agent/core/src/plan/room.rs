//! What of the wanted instances the node has memory for. The order in which revisions get theirs is decided here, the
//! sharing in [`crate::autoscale::capacity`].

use std::collections::BTreeMap;

use tombolo_api::RevisionKey;
use tombolo_api::desired::{Desired, RevisionObject};

use super::{Draft, Pass, Scope, Settings, Situation};
use crate::actual::{Actual, ImageState, InstanceActual, InstanceClaim, Phase, RevisionActual};
use crate::autoscale::capacity::{self, Claim, Need, capacity, mebibytes};
use crate::limits;
use crate::memory::Footprint;
use crate::routes::Unavailable;

/// Why no instance of `object` can ever be on the node, whatever else runs there; `None`: one can.
pub fn misfit(object: &RevisionObject, settings: &Settings) -> Option<Unavailable> {
    let message = capacity::misfit(need(object, None).bytes(), settings.memory_bytes)?;
    Some(Unavailable { reason: "InsufficientMemory".into(), message })
}

/// What instances of `object` keep of it.
pub fn claim_of(object: &RevisionObject) -> InstanceClaim {
    let configuration = object.configuration.clone();
    InstanceClaim { configuration, memory_bytes: Some(need(object, None).bytes()) }
}

/// What one instance of `object` needs, of whose revision this is known.
pub(super) fn need(object: &RevisionObject, known: Option<&RevisionActual>) -> Need {
    if let Some(limit) = limits::memory_limit_bytes(object) {
        return Need::Limit(limit);
    }
    let requested = limits::memory_bytes(object);
    match (known.and_then(|known| known.memory.footprint()), requested) {
        (Some(Footprint { least_bytes, most_bytes, .. }), requested) => {
            let requested = requested.unwrap_or(0);
            Need::Seen { first: least_bytes.max(requested), most: most_bytes.max(requested) }
        }
        (None, Some(requested)) => Need::Limit(requested),
        (None, None) => Need::Assumed,
    }
}

/// Memory that instances may fill now, bytes.
fn budget(actual: &Actual, settings: &Settings) -> u64 {
    settings.memory_bytes.saturating_sub(actual.others_bytes)
}

/// The node's memory that may be filled with what instances had on their devices, bytes: all that these do not need themselves.
pub fn room_for_moved(desired: &Desired, actual: &Actual, settings: &Settings) -> u64 {
    let programs = actual.instances.values().filter(|instance| instance.phase.holds_memory());
    let held = programs.map(|instance| bytes_of(instance, desired));
    held.fold(budget(actual, settings), u64::saturating_sub)
}

/// What an instance is reckoned with, bytes: as the object says that it was made from, or else the present one of its revision; or
/// what it was seen to hold, where that is more.
pub(super) fn bytes_of(instance: &InstanceActual, desired: &Desired) -> u64 {
    let desired = || desired.revisions.get(&instance.revision).map(|(_, object)| need(object, None).bytes());
    let claimed = instance.claim.memory_bytes.or_else(desired).unwrap_or_else(|| Need::Assumed.bytes());
    claimed.max(instance.held_bytes)
}

impl<'a> Pass<'a> {
    /// Lowers what is wanted to what fits; why, for those that get less. Has those give way that wait for nobody.
    pub(super) fn fit(
        &self,
        scopes: &mut [(u32, Scope<'a>)],
        draft: &mut Draft,
    ) -> BTreeMap<RevisionKey, String> {
        let mut claims = Vec::new();
        let mut order = Vec::new();
        for (index, (wanted, scope)) in scopes.iter().enumerate() {
            let claim = self.claim(scope, *wanted);
            if claim.wanted + claim.running + claim.stopping > 0 {
                // Where somebody waits comes first.
                let demand = self.situation.traffic.of(scope.key);
                order.push((demand.held == 0, demand.in_flight == 0, index));
                claims.push((index, claim));
            }
        }
        order.sort_unstable();
        let by_index: BTreeMap<usize, Claim> = claims.into_iter().collect();
        let sorted: Vec<Claim> = order.iter().map(|(_, _, index)| by_index[index]).collect();
        let budget = self.budget().saturating_sub(self.apart_bytes());
        let mut cuts = BTreeMap::new();
        let (mut short, mut used) = (Vec::new(), 0_u64);
        for (((_, _, index), claim), grant) in order.iter().zip(&sorted).zip(capacity(budget, &sorted)) {
            let (wanted, scope) = &mut scopes[*index];
            let granted = grant.allowed.saturating_sub(claim.running) + claim.running + claim.stopping;
            used = used.saturating_add(claim.need.bytes().saturating_mul(granted.into()));
            if grant.allowed == 0 && *wanted > 0 && self.lacks_but_memory(scope) {
                short.push(claim.need.first_bytes());
            }
            *wanted = grant.allowed;
            if let Some(cut) = grant.cut {
                cuts.insert(scope.key.clone(), cut + &self.others() + &self.advice(scope));
            }
        }
        self.evict(scopes, &short, (budget, used), draft);
        cuts
    }

    /// Whether one instance more would fit beside everything that runs.
    pub(super) fn has_room_for(&self, scope: &Scope<'a>) -> bool {
        need(scope.object, Some(scope.known)).bytes() <= self.room_left()
    }

    /// What everything that runs leaves of the node's memory, bytes.
    pub(super) fn room_left(&self) -> u64 {
        let running = |scope: Scope<'a>| {
            let claim = self.claim(&scope, 0);
            claim.need.bytes().saturating_mul(u64::from(claim.running + claim.stopping))
        };
        let used = self.scopes().map(running).fold(self.apart_bytes(), u64::saturating_add);
        self.budget().saturating_sub(used)
    }

    fn budget(&self) -> u64 {
        budget(self.situation.actual, self.situation.settings)
    }

    /// What programs that are no instances have to do with it that there is not enough, for a message.
    fn others(&self) -> String {
        match self.situation.actual.others_bytes {
            0 => String::new(),
            bytes => format!(
                "; programs that are not Tombolo's have {} more than is left to them",
                mebibytes(bytes)
            ),
        }
    }

    /// Whether its instance could start at once, were there memory.
    fn lacks_but_memory(&self, scope: &Scope<'a>) -> bool {
        let known = scope.known;
        let is_blocked = self.takeovers.blocked.contains(scope.key) || known.misfit.is_some();
        !is_blocked && known.image == ImageState::Present && self.now >= known.crashes.retry_at
    }

    pub(super) fn claim(&self, scope: &Scope<'a>, wanted: u32) -> Claim {
        let (mut running, mut stopping) = (0, 0);
        for (_, instance) in self.index.of(scope.key) {
            match instance.phase {
                _ if !instance.phase.holds_memory() => {}
                // It may have been made with other limits, see `foreign_bytes`.
                _ if instance.object != *scope.digest => {}
                Phase::Draining | Phase::Stopping { .. } => stopping += 1,
                _ => running += 1,
            }
        }
        Claim { need: need(scope.object, Some(scope.known)), running, stopping, wanted, later: scope.later }
    }

    /// What instances hold beside the claims of desired revisions: all of it where their object is not desired any more, what is
    /// beyond the claim where one is not ready yet and so has taught nothing, and what was on their devices.
    fn apart_bytes(&self) -> u64 {
        let instances = self.situation.actual.instances.values();
        let apart = instances.map(|instance| {
            let (reckoned, held) = (self.reckoned(instance), instance.held_bytes);
            let apart = match (instance.phase.holds_memory(), reckoned) {
                (false, _) => 0,
                (true, Some(claimed)) => held.saturating_sub(claimed),
                (true, None) => bytes_of(instance, self.situation.desired),
            };
            apart.saturating_add(instance.moved_bytes)
        });
        apart.fold(0, u64::saturating_add)
    }

    /// What the claim of its revision has for an instance, bytes; `None`: its object is not desired any more.
    pub(super) fn reckoned(&self, instance: &InstanceActual) -> Option<u64> {
        let Situation { desired, actual, .. } = self.situation;
        let (digest, object) = desired.revisions.get(&instance.revision)?;
        let known = actual.revisions.get(&instance.revision);
        (*digest == instance.object).then(|| need(object, known).bytes())
    }
}
