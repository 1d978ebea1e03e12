//! How far a revision without a memory limit grows at once: by what its instances were seen to hold at work, for what they hold
//! before their first request says little. What fits of that is decided in [`super::room`].

use super::{Draft, Pass, Scope, WakeReason};
use crate::actual::{InstanceActual, Moment, Phase};
use crate::limits;

/// What an instance takes shows in so many milliseconds at work.
const SETTLED_MS: u64 = 1_000;

/// The same while none of its revision has answered a request: it may still be loading what it needs for that.
const UNSERVED_SETTLED_MS: u64 = 10_000;

/// Nobody is waited for where all could have so many times what one was seen to hold.
const AMPLE: u64 = 4;

/// When it is asked again whether an instance was looked at that should have been, milliseconds.
const ASK_AGAIN_MS: u64 = 100;

/// The node's memory that nobody has, bytes, once somebody asks.
#[derive(Default)]
struct Room {
    left_bytes: Option<u64>,
}

impl<'a> Pass<'a> {
    /// Lowers what is wanted of revisions without a memory limit to what may start before those that run are looked at: the first
    /// until an instance has answered a request, and then, where memory is not ample, as many again as were looked at. What is
    /// asked for by number, as a least scale, is not held back. Whether anybody is.
    pub(super) fn pace(&self, scopes: &mut [(u32, Scope<'a>)], draft: &mut Draft) -> bool {
        let mut paced = false;
        let mut room = Room::default();
        for (wanted, scope) in scopes.iter_mut().filter(|(wanted, _)| *wanted > 1) {
            let most = self.most_at_once(scope, *wanted, &mut room, draft);
            scope.later = wanted.saturating_sub(most);
            *wanted -= scope.later;
            paced |= scope.later > 0;
        }
        paced
    }

    fn most_at_once(&self, scope: &Scope<'a>, wanted: u32, room: &mut Room, draft: &mut Draft) -> u32 {
        // What rests has its memory already, and those of another object are to have as many successors.
        let has_memory = |phase: &Phase| phase.holds_memory() && !matches!(phase, Phase::Stopping { .. });
        let all = self.index.of(scope.key).iter();
        let there = all.filter(|(_, instance)| has_memory(&instance.phase)).count() as u32;
        let most = self.floor(scope).max(scope.scale.activation).max(there).max(1);
        if wanted <= most || limits::memory_limit_bytes(scope.object).is_some() {
            return wanted;
        }
        // Where the kernel does not say what an answer takes, nothing will be learnt.
        let answered = || self.current(scope).any(|(id, _)| self.situation.traffic.served.contains(id));
        let served = scope.known.memory.footprint().map_or_else(answered, |footprint| footprint.served);
        if served && self.takes_ample(scope, wanted - most, room) {
            return wanted;
        }
        let settled_ms = if served { SETTLED_MS } else { UNSERVED_SETTLED_MS };
        let settles_at = |instance: &InstanceActual| instance.since.after(settled_ms);
        let is_settled =
            |instance: &InstanceActual| instance.looked_at.is_some_and(|at| at >= settles_at(instance));
        let ready = || self.current(scope).filter(|(_, instance)| instance.phase == Phase::Ready);
        let settled = ready().filter(|(_, instance)| is_settled(instance)).count() as u32;
        let next =
            ready().filter(|(_, instance)| !is_settled(instance)).map(|(_, one)| settles_at(one)).min();
        if let Some(next) = next {
            draft.wake_at(next.max(self.soon()), WakeReason::Growth);
        }
        most.max(settled.saturating_mul(2))
    }

    /// Takes of `room` what so many more instances have where it is ample; whether it is.
    fn takes_ample(&self, scope: &Scope<'a>, more: u32, room: &mut Room) -> bool {
        let left = room.left_bytes.get_or_insert_with(|| self.room_left());
        let needed = self.claim(scope, 0).need.bytes().saturating_mul(AMPLE).saturating_mul(u64::from(more));
        let rest = left.checked_sub(needed);
        *left = rest.unwrap_or(*left);
        rest.is_some()
    }

    fn soon(&self) -> Moment {
        self.now.after(ASK_AGAIN_MS)
    }
}
