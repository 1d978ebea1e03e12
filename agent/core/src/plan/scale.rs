//! How many instances a revision should have, and by which steps it gets there. It must not know what becomes of an
//! instance once it is surplus.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use tombolo_api::RevisionKey;
use tombolo_api::desired::INSTANCES_PER_REVISION_MAX;

use super::{Action, Draft, Pass, Scope, TRY_AGAIN_MS, WakeReason};
use crate::actual::{ImageState, InstanceActual, Moment, Phase, RevisionActual, Takeover, Target};
use crate::supervision::InstanceId;

impl<'a> Pass<'a> {
    /// How many instances the revision should have now: what the autoscaler asks for, but at least one while a request is
    /// here or as long as the revision has not proved itself and is not given up. Whether the node gives so many is not asked yet.
    pub(super) fn wanted(&self, scope: &Scope<'a>) -> u32 {
        if self.takeovers.idle.contains(scope.key) {
            return 0;
        }
        let demand = self.situation.traffic.of(scope.key);
        let up = self.up(scope);
        let leaves = self.takeovers.is_leaving(scope.key);
        let asked = match self.situation.targets.get(scope.key) {
            // Not while a request may still come to it: nobody would serve it.
            _ if leaves && self.situation.traffic.unsettled => up,
            _ if leaves => 0,
            None => up,
            // What no route leads to gets no request, whatever was measured before.
            Some(target) if target.want > up && scope.known.ready_once && !self.is_routed(scope.key) => up,
            // A request came since: the last instance stays until it is counted. Of more, fewer serve as well: where requests come
            // all the time one came since every decision.
            Some(target) if target.want == 0 && demand.last_request.is_some_and(|last| last > target.at) => {
                up
            }
            Some(target) => target.want,
        };
        let for_requests = match (demand.held, demand.in_flight) {
            (0, 0) => 0,
            (0, _) if leaves => 0,
            // What serves them stays; for those in instances that drain no other is needed.
            (0, _) => up.min(1),
            _ => 1,
        };
        let most = scope.scale.max.unwrap_or(u32::MAX);
        let floor = if leaves { 0 } else { self.floor(scope) };
        asked.max(floor).max(for_requests).min(most)
    }

    /// Lowers what is wanted to the most that one revision gets; why, for those that get less and have proved themselves: what
    /// proves them is held to it too.
    pub(super) fn fit_count(&self, scopes: &mut [(u32, Scope<'a>)]) -> BTreeMap<RevisionKey, String> {
        let mut cuts = BTreeMap::new();
        for (wanted, scope) in scopes.iter_mut().filter(|(wanted, _)| *wanted > INSTANCES_PER_REVISION_MAX) {
            if scope.known.ready_once {
                let why = format!(
                    "InsufficientInstances: {INSTANCES_PER_REVISION_MAX} of {wanted} wanted instances, the most of one revision on \
                     one node: have one instance take more requests at a time, or use more nodes"
                );
                cuts.insert(scope.key.clone(), why);
            }
            *wanted = INSTANCES_PER_REVISION_MAX;
        }
        cuts
    }

    /// The fewest instances, whatever the traffic. A revision that no route leads to needs none.
    pub(super) fn floor(&self, scope: &Scope<'a>) -> u32 {
        let floor = scope.scale.floor();
        match scope.known.ready_once || self.given_up_until(scope).is_some() {
            false => floor.max(scope.scale.initial),
            true if floor > 0 && self.is_routed(scope.key) => floor,
            true => 0,
        }
    }

    fn given_up_until(&self, scope: &Scope<'a>) -> Option<Moment> {
        given_up_until(scope.known, self.situation.targets.get(scope.key)?, self.now)
    }

    /// Gives the revision what it lacks: what is quickest first.
    pub(super) fn supply(&self, scope: &Scope<'a>, want: u32, draft: &mut Draft) {
        if scope.known.misfit.is_some() {
            return;
        }
        if let Some(until) = self.given_up_until(scope) {
            draft.wake_at(until, WakeReason::TryAgain);
        }
        let now = self.now;
        let crashes = &scope.known.crashes;
        if now < crashes.retry_at {
            // Also if none is missing: until then requests are refused, and afterwards held again.
            draft.wake_at(crashes.retry_at, WakeReason::CrashBackoff);
        }
        let blocked = self.takeovers.blocked.contains(scope.key);
        let mut missing = if blocked { 0 } else { want.saturating_sub(self.up(scope)) };
        missing = self.wake_waiting(scope, missing, draft);
        missing = self.restore_suspended(scope, missing, draft);
        if !self.is_image_present(scope, draft) || now < crashes.retry_at {
            return;
        }
        // After a crash one at a time: a program that cannot start must not be started twenty times over.
        missing = match crashes.recent {
            0 => missing,
            _ if self.is_starting(scope) => 0,
            _ => missing.min(1),
        };
        missing = self.start_primed(scope, missing, draft);
        for _ in 0..missing {
            let Some(devices) = self.take_devices(scope, draft) else { return };
            let instance = draft.name_instance(&scope.key.name, &self.situation.actual.incarnation);
            draft.additions.push(Action::Launch { instance, revision: scope.key.clone(), devices });
        }
    }

    /// Drains what a revision has beyond `want`, those not ready yet first, then the youngest.
    pub(super) fn retire_surplus(&self, scope: &Scope<'a>, want: u32, draft: &mut Draft) {
        let mut up: Vec<_> = self.current(scope).filter(|(_, instance)| instance.phase.is_up()).collect();
        up.sort_by_key(|(id, instance)| (instance.phase == Phase::Ready, Reverse(instance.since), *id));
        let surplus = up.len().saturating_sub(want as usize);
        let goes = |id: &InstanceId| draft.removals.iter().any(|action| action.instance() == Some(id));
        // What goes already is of the surplus, and the first of it.
        up.sort_by_key(|(id, _)| !goes(id));
        let gone = up.iter().filter(|(id, _)| goes(id)).count();
        for (id, instance) in up.into_iter().take(surplus).skip(gone) {
            let instance_id = id.clone();
            match instance.phase {
                Phase::Ready => draft.removals.push(Action::Drain { instance: instance_id }),
                Phase::Probing => draft.removals.push(Action::Terminate { instance: instance_id }),
                _ => {}
            }
        }
    }

    /// Draining instances serve again, frozen ones go on; how many are missing still.
    fn wake_waiting(&self, scope: &Scope<'a>, missing: u32, draft: &mut Draft) -> u32 {
        let quickest = |instance: &InstanceActual| match instance.phase {
            Phase::Draining => Some(0),
            Phase::Frozen => Some(1),
            Phase::Freezing | Phase::Suspending => Some(2),
            _ => None,
        };
        let of_use = self.current(scope).filter(|(_, instance)| !self.is_lost(instance));
        let of_use = of_use.filter_map(|(id, instance)| Some((quickest(instance)?, id)));
        take(of_use.collect(), missing, |rank, instance| match rank {
            0 => draft.additions.push(Action::Resume { instance }),
            1 => draft.additions.push(Action::Thaw { instance }),
            // It goes on once it is known to have stopped.
            _ => {}
        })
    }

    /// Suspended instances whose devices nobody has go on; how many are missing still. Where others are to let go of them, that is
    /// waited for: it is shorter than to begin anew.
    fn restore_suspended(&self, scope: &Scope<'a>, mut missing: u32, draft: &mut Draft) -> u32 {
        for (id, instance) in self.current(scope) {
            let rests = instance.phase == Phase::Suspended && !instance.astray && !self.is_lost(instance);
            if missing == 0 || !rests || draft.names(id) {
                continue;
            }
            let returns = draft.returning.contains(id);
            if (returns || self.now >= instance.delayed_until()) && draft.take_back(&instance.devices) {
                draft.additions.push(Action::Restore { instance: id.clone() });
                missing -= 1;
            } else if returns {
                missing -= 1;
            }
        }
        missing
    }

    /// Primed instances are started; how many are missing still.
    fn start_primed(&self, scope: &Scope<'a>, missing: u32, draft: &mut Draft) -> u32 {
        let rank = |instance: &InstanceActual| match instance.phase {
            Phase::Primed => Some(0),
            Phase::Priming => Some(1),
            _ => None,
        };
        let of_use = self.current(scope).filter(|(_, instance)| !self.is_lost(instance));
        let of_use = of_use.filter_map(|(id, instance)| Some((rank(instance)?, id)));
        take(of_use.collect(), missing, |rank, instance| {
            // One that is being made is started once it is.
            if rank == 0 {
                draft.additions.push(Action::Start { instance });
            }
        })
    }

    /// Whether the revision's image is there; sees to it that it will be, whether instances are wanted or not: a cold start
    /// must not wait for the network.
    fn is_image_present(&self, scope: &Scope<'a>, draft: &mut Draft) -> bool {
        let prepare = || Action::PrepareImage { revision: scope.key.clone() };
        match &scope.known.image {
            ImageState::Present => return true,
            ImageState::Unknown => draft.additions.push(prepare()),
            ImageState::Failed { retry_at: Some(retry_at), .. } if self.now >= *retry_at => {
                draft.additions.push(prepare());
            }
            ImageState::Failed { retry_at: Some(retry_at), .. } => {
                draft.wake_at(*retry_at, WakeReason::ImageRetry);
            }
            ImageState::Preparing | ImageState::Failed { retry_at: None, .. } => {}
        }
        false
    }

    /// Whether an instance of this very object is on the way to serve.
    fn is_starting(&self, scope: &Scope<'a>) -> bool {
        self.current(scope).any(|(_, instance)| matches!(instance.phase, Phase::Launching | Phase::Probing))
    }
}

/// Until when nothing is tried of a revision that has never been ready, unless requests come: its program was tried, and came to
/// nothing for as long as an activation may take.
pub fn given_up_until(known: &RevisionActual, target: &Target, now: Moment) -> Option<Moment> {
    let until = target.at.after(TRY_AGAIN_MS);
    let was_tried = !known.ready_once && known.takeover == Takeover::None && known.crashes.recent > 0;
    (target.timed_out && was_tried && now < until).then_some(until)
}

/// Gives the first of `candidates` to `each`, at most `missing` of them; how many are missing still.
fn take(mut candidates: Vec<(u8, &InstanceId)>, missing: u32, mut each: impl FnMut(u8, InstanceId)) -> u32 {
    candidates.sort_unstable();
    candidates.truncate(missing as usize);
    let taken = candidates.len() as u32;
    candidates.into_iter().for_each(|(rank, id)| each(rank, id.clone()));
    missing - taken
}
