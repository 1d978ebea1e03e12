//! How a revision takes the place of the one before it where both must not run at a time: hand-over and stop-first. It must
//! not know how instances are started or stopped, only who may run.
//!
//! ```text
//!            primed (hand-over), image present (stop-first)      ready
//! waiting ───────────────────────────────────────────▶ begun ─────────▶ done
//!                                                        └─▶ undone: not ready in time; the one before serves again
//! ```
//!
//! From `begun` on requests wait for the new one; what waits for the old one is still served by it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use tombolo_api::RevisionKey;
use tombolo_api::desired::{Desired, RouteObject};
use tombolo_api::report::RolledBack;
use tombolo_api::serving::keys::UPDATE_STRATEGY;

use super::room::need;
use super::{Action, Draft, Pass, Scope, Settings, Situation, WakeReason};
use crate::actual::{Actual, ImageState, InstanceActual, Phase, Takeover};
use crate::annotations::{Scale, UpdateStrategy};
use crate::rollout::Rollouts;
use crate::routes::Unavailable;
use crate::{devices, table};

/// After so many ends in a row a revision that takes over counts as not ready in time: meanwhile nobody serves.
pub const TAKEOVER_CRASHES_MAX: u32 = 3;

/// Who may run, while some take over from others.
#[derive(Default)]
pub(super) struct Takeovers {
    /// They do not run: their time has not come, or they have failed.
    pub(super) idle: BTreeSet<RevisionKey>,
    /// They keep an instance primed, though they have never been ready.
    pub(super) primed: BTreeSet<RevisionKey>,
    /// They end, but for requests that wait for them; `true`: primed instances as well.
    pub(super) leaving: Vec<(RevisionKey, bool)>,
    /// Instances of what their object was before end, though none of the present one is ready.
    pub(super) replaced: BTreeSet<RevisionKey>,
    /// They start once others have ended.
    pub(super) blocked: BTreeSet<RevisionKey>,
}

impl Takeovers {
    pub(super) fn is_leaving(&self, key: &RevisionKey) -> bool {
        self.leaving.iter().any(|(leaving, _)| leaving == key)
    }

    pub(super) fn leaves_nothing(&self, key: &RevisionKey) -> bool {
        self.leaving.iter().any(|(leaving, wholly)| leaving == key && *wholly)
    }
}

/// `desired` without the rollouts that cannot be: where one revision takes the place of another at once, or the node has not the
/// memory or the devices for two beside each other. What is learnt of their memory ends none of `rollouts` that is under way or undone.
pub fn rollable<'a>(
    desired: &'a Desired,
    actual: &Actual,
    settings: &Settings,
    rollouts: &Rollouts,
) -> Cow<'a, Desired> {
    let at_once: Vec<_> = desired
        .routes
        .iter()
        .filter(|(_, route)| {
            let learns = !rollouts.holds_back(route);
            route.rollout.is_some() && moves_at_once(route, desired, actual, settings, learns)
        })
        .map(|(key, _)| key.clone())
        .collect();
    let mut rollable = Cow::Borrowed(desired);
    for key in at_once {
        if let Some(route) = rollable.to_mut().routes.get_mut(&key) {
            Arc::make_mut(route).rollout = None;
        }
    }
    rollable
}

/// Why the revision may run beside another one though it asked for the opposite: a route leads to that one for itself, say by a tag.
pub fn not_kept(desired: &Desired, actual: &Actual, key: &RevisionKey) -> Option<Unavailable> {
    let (_, object) = desired.revisions.get(key)?;
    if !is_alone(Scale::of(&object.annotations).strategy) {
        return None;
    }
    let routes = desired.routes.values().filter(|route| *route.namespace == *key.namespace);
    let mut targets = routes.flat_map(|route| route.targets.iter().map(move |target| (route, target)));
    targets.find_map(|(route, target)| {
        if target.candidates.iter().any(|name| **name == *key.name) {
            return None;
        }
        let other = table::choose(&route.namespace, target, desired, actual);
        let (_, of) = desired.revisions.get(&other)?;
        let by = if target.tag.is_empty() { String::new() } else { format!(", by tag {:?}", target.tag) };
        let strategy = object.annotations.get(UPDATE_STRATEGY)?;
        let message = format!(
            "{UPDATE_STRATEGY}: {strategy} is not kept: route {} leads to {} too{by}, which runs beside it",
            route.name, other.name
        );
        let reason = "UpdateStrategyNotKept".into();
        (of.configuration == object.configuration).then_some(Unavailable { reason, message })
    })
}

fn moves_at_once(
    route: &RouteObject,
    desired: &Desired,
    actual: &Actual,
    settings: &Settings,
    learns: bool,
) -> bool {
    let names: BTreeSet<&String> = route.targets.iter().flat_map(|target| &target.candidates).collect();
    let mut bytes = Vec::new();
    for name in names {
        let key = RevisionKey::new(&route.namespace, name);
        let Some((_, object)) = desired.revisions.get(&key) else { continue };
        let known = actual.revisions.get(&key);
        // Also one that could run beside others, were there not something else that has what it needs.
        let begun = known.is_some_and(|known| matches!(known.takeover, Takeover::Begun { .. }));
        let strategy = Scale::of(&object.annotations).strategy;
        let alone =
            is_alone(strategy) || actual.devices.inventory.is_too_few_for_two(&devices::asked(object));
        if begun || alone {
            return true;
        }
        bytes.push(need(object, known.filter(|_| learns)).bytes());
    }
    bytes.sort_unstable();
    let together = bytes.iter().rev().take(2).fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
    bytes.len() > 1 && together > settings.memory_bytes
}

/// Whether it still keeps the next one from starting. `wholly`: also by what it has without running.
fn stands(instance: &InstanceActual, wholly: bool) -> bool {
    match instance.phase {
        Phase::Priming | Phase::Primed | Phase::Ended { .. } | Phase::Deleting => wholly,
        _ => true,
    }
}

/// Whether never both may run.
fn is_alone(strategy: UpdateStrategy) -> bool {
    matches!(strategy, UpdateStrategy::HandOver | UpdateStrategy::StopFirst)
}

impl<'a> Pass<'a> {
    pub(super) fn find_takeovers(&self, draft: &mut Draft) -> Takeovers {
        let mut takeovers = Takeovers::default();
        for scope in self.scopes() {
            if scope.known.ready_once {
                self.succeed(&scope, &mut takeovers, draft);
            }
            // One that can never run here takes nobody's place.
            let stays_out = scope.known.ready_once || scope.known.misfit.is_some();
            if stays_out || scope.scale.strategy == UpdateStrategy::Overlap && scope.asked.is_empty() {
                continue;
            }
            if self.is_overtaken(&scope) {
                takeovers.idle.insert(scope.key.clone());
                continue;
            }
            let before = self.before(&scope);
            if before.is_empty() {
                self.succeed(&scope, &mut takeovers, draft);
            }
            let overlaps = self.standing(&scope, &before) == UpdateStrategy::Overlap
                && scope.known.takeover == Takeover::None
                && !self.waits_for_devices_of(&scope, &before);
            if !before.is_empty() && !overlaps {
                self.plan_takeover(&scope, before, &mut takeovers, draft);
            }
        }
        takeovers
    }

    fn plan_takeover(
        &self,
        scope: &Scope<'a>,
        before: BTreeSet<RevisionKey>,
        takeovers: &mut Takeovers,
        draft: &mut Draft,
    ) {
        let key = || scope.key.clone();
        match &scope.known.takeover {
            // Found running by an agent that was started again: it had begun.
            Takeover::None if self.current(scope).any(|(_, instance)| instance.phase.holds_memory()) => {
                if is_alone(self.standing(scope, &before)) {
                    draft.additions.push(Action::TakeOver { revision: key() });
                }
            }
            Takeover::None => match self.strategy(scope, &before) {
                UpdateStrategy::HandOver => {
                    takeovers.idle.insert(key());
                    takeovers.primed.insert(key());
                    if self.current(scope).any(|(_, instance)| instance.phase == Phase::Primed) {
                        draft.additions.push(Action::TakeOver { revision: key() });
                    } else {
                        self.prime_successor(scope, draft);
                    }
                }
                UpdateStrategy::StopFirst => {
                    takeovers.idle.insert(key());
                    if scope.known.image == ImageState::Present {
                        draft.additions.push(Action::TakeOver { revision: key() });
                    }
                }
                UpdateStrategy::Unsaid | UpdateStrategy::Overlap | UpdateStrategy::Auto => {}
            },
            Takeover::Begun { .. } => {
                // What waits has its devices, too.
                let wholly = scope.scale.strategy != UpdateStrategy::HandOver || !scope.asked.is_empty();
                let stands = |instance: &InstanceActual| stands(instance, wholly);
                let mut others = self.overtaken(scope);
                others.extend(before);
                takeovers.replaced.insert(key());
                if others.iter().any(|key| self.has(key, stands)) || self.has_former(scope, stands) {
                    takeovers.blocked.insert(key());
                } else if scope.known.takeover == (Takeover::Begun { started: None }) {
                    draft.additions.push(Action::StartDeadline { revision: key() });
                }
                // What waits for the one before is then left to wait until this one is ready or given up.
                if self.has(scope.key, |instance| instance.phase.holds_memory()) {
                    takeovers.blocked.extend(others.iter().cloned());
                }
                takeovers.primed.insert(key());
                takeovers.leaving.extend(others.into_iter().map(|key| (key, wholly)));
                self.undo_in_time(scope, draft);
            }
            Takeover::Undone(_) => {
                takeovers.idle.insert(key());
                if self.has(scope.key, |instance| !matches!(instance.phase, Phase::Priming | Phase::Primed)) {
                    takeovers.blocked.extend(before);
                }
            }
        }
    }

    /// One that takes nobody's place, and yet must not run beside others of its configuration, nor beside instances of what its
    /// object was before: it starts once they are gone. There is no way back to these.
    fn succeed(&self, scope: &Scope<'a>, takeovers: &mut Takeovers, draft: &mut Draft) {
        let has_former = self.has_former(scope, |_| true);
        if !has_former && !is_alone(scope.scale.strategy) {
            return;
        }
        let key = || scope.key.clone();
        let others = self.overtaken(scope);
        let beside: BTreeSet<_> = others.iter().cloned().chain(has_former.then(key)).collect();
        let strategy = match self.standing(scope, &beside) {
            UpdateStrategy::HandOver if self.waits_for_devices_of(scope, &beside) => {
                UpdateStrategy::StopFirst
            }
            UpdateStrategy::Auto if !self.has_room_for(scope) => UpdateStrategy::StopFirst,
            strategy => strategy,
        };
        if !is_alone(strategy) {
            return;
        }
        let wholly = strategy == UpdateStrategy::StopFirst || !scope.asked.is_empty();
        let stands = |instance: &InstanceActual| stands(instance, wholly);
        if others.iter().any(|key| self.has(key, stands)) || self.has_former(scope, stands) {
            takeovers.blocked.insert(key());
        }
        takeovers.leaving.extend(others.into_iter().map(|key| (key, wholly)));
        if !has_former {
            return;
        }
        let is_made = self.current(scope).any(|(_, instance)| instance.phase != Phase::Priming);
        match strategy {
            UpdateStrategy::HandOver if !is_made => self.prime_successor(scope, draft),
            UpdateStrategy::StopFirst if scope.known.image != ImageState::Present => return,
            _ => {}
        }
        takeovers.primed.extend((strategy == UpdateStrategy::HandOver).then(key));
        takeovers.replaced.extend((strategy == UpdateStrategy::StopFirst || is_made).then(key));
    }

    /// Whether another has taken its place before it was ever ready, and nothing waits for it.
    fn is_overtaken(&self, scope: &Scope<'a>) -> bool {
        let Situation { desired, actual, traffic, .. } = self.situation;
        if !is_alone(scope.scale.strategy)
            || traffic.unsettled
            || traffic.of(scope.key).held > 0
            || self.is_routed(scope.key)
        {
            return false;
        }
        let routes = desired.routes.values().filter(|route| *route.namespace == *scope.key.namespace);
        let mut targets = routes.flat_map(|route| &route.targets);
        targets.any(|target| {
            let own = target.candidates.iter().position(|name| **name == *scope.key.name);
            let mut preferred = target.candidates[..own.unwrap_or(0)].iter();
            let serves =
                |name: &String| table::serves(desired, actual, &RevisionKey::new(&scope.key.namespace, name));
            preferred.any(serves)
        })
    }

    /// Revisions of the same configuration that have instances and that no route leads to any more: those that have had their
    /// time, those less preferred, and those that are not even desired.
    fn overtaken(&self, scope: &Scope<'a>) -> BTreeSet<RevisionKey> {
        let Situation { desired, actual, .. } = self.situation;
        let (namespace, configuration) = (&scope.key.namespace, &scope.object.configuration);
        let is_of = |instance: &InstanceActual| {
            let present =
                || desired.revisions.get(&instance.revision).map(|(_, object)| &object.configuration);
            let of = Some(&instance.claim.configuration).filter(|of| !of.is_empty()).or_else(present);
            of == Some(configuration) && !configuration.is_empty()
        };
        let has_been = |key| actual.revisions.get(key).is_some_and(|known| known.ready_once);
        let is_behind = |name: &str| {
            let routes = desired.routes.values().filter(|route| *route.namespace == **namespace);
            let mut targets = routes.flat_map(|route| &route.targets);
            targets.any(|target| {
                let behind = target.candidates.iter().skip_while(|candidate| ***candidate != *scope.key.name);
                behind.skip(1).any(|candidate| **candidate == *name)
            })
        };
        let overtaken = actual.instances.values().filter(|instance| {
            let key = &instance.revision;
            key != scope.key
                && key.namespace == *namespace
                && is_of(instance)
                && !self.is_routed(key)
                && (!desired.revisions.contains_key(key) || has_been(key) || is_behind(&key.name))
        });
        overtaken.map(|instance| instance.revision.clone()).collect()
    }

    /// Goes back to the one before if this one does not answer.
    fn undo_in_time(&self, scope: &Scope<'a>, draft: &mut Draft) {
        let Takeover::Begun { started: Some(started) } = scope.known.takeover else { return };
        let deadline_ms = scope.scale.progress_deadline_ms;
        let crashes = &scope.known.crashes;
        let why = if crashes.recent >= TAKEOVER_CRASHES_MAX {
            format!("it came to nothing {} times in a row: {}", crashes.recent, crashes.message)
        } else if self.now >= started.after(deadline_ms) {
            format!("it was not ready within {} s", deadline_ms / 1000)
        } else {
            return draft.wake_at(started.after(deadline_ms), WakeReason::TakeoverDeadline);
        };
        let message = format!("{why}; the revision before it serves again");
        let why = RolledBack { reason: "NotReadyInTime".into(), message };
        draft.additions.push(Action::Undo { revision: scope.key.clone(), why });
    }

    fn prime_successor(&self, scope: &Scope<'a>, draft: &mut Draft) {
        let free = scope.known.prime_retry_at.max(scope.known.crashes.retry_at);
        let under_way = self.current(scope).any(|(_, instance)| instance.phase == Phase::Priming);
        if scope.known.image != ImageState::Present || under_way {
            return;
        }
        if self.now < free {
            return draft.wake_at(free, WakeReason::Refill);
        }
        let Some(devices) = self.take_devices(scope, draft) else { return };
        let instance = draft.name_instance(&scope.key.name, &self.situation.actual.incarnation);
        draft.additions.push(Action::Prime { instance, revision: scope.key.clone(), devices });
    }

    /// What its strategy comes to whatever runs now: without `Unsaid`, and stop first where the memory never does for both.
    fn standing(&self, scope: &Scope<'a>, before: &BTreeSet<RevisionKey>) -> UpdateStrategy {
        match scope.scale.strategy {
            UpdateStrategy::Unsaid | UpdateStrategy::Auto if self.is_too_large_beside(scope, before) => {
                UpdateStrategy::StopFirst
            }
            UpdateStrategy::Unsaid => UpdateStrategy::Overlap,
            strategy => strategy,
        }
    }

    /// Whether the node's memory can never hold one instance of it and one of `others` together. What was learnt of them counts only
    /// before it is tried: nobody ends for one that runs beside it, or has come to nothing.
    fn is_too_large_beside(&self, scope: &Scope<'a>, others: &BTreeSet<RevisionKey>) -> bool {
        let Situation { desired, actual, .. } = self.situation;
        let tried = scope.known.crashes.recent > 0
            || self.current(scope).any(|(_, instance)| instance.phase.holds_memory());
        let learnt = |key| actual.revisions.get(key).filter(|_| !tried);
        let needs = others.iter().filter_map(|key| {
            let (_, object) = desired.revisions.get(key)?;
            Some(need(object, learnt(key)).bytes())
        });
        let its = need(scope.object, learnt(scope.key)).bytes();
        let together = needs.max().map_or(0, |bytes| bytes.saturating_add(its));
        together > self.situation.settings.memory_bytes
    }

    /// What to do about one that has no memory because it was told to start beside the one before it, for the end of a message.
    pub(super) fn advice(&self, scope: &Scope<'a>) -> String {
        let waits = scope.scale.strategy == UpdateStrategy::Overlap && !scope.known.ready_once;
        if !waits || !self.is_too_large_beside(scope, &self.before(scope)) {
            return String::new();
        }
        format!(
            "; {UPDATE_STRATEGY}: overlap keeps the one before it running, and this node never holds both: let it be auto"
        )
    }

    /// `Auto` resolved: stop first where one more does not fit. So do all that need a device which those before have.
    fn strategy(&self, scope: &Scope<'a>, before: &BTreeSet<RevisionKey>) -> UpdateStrategy {
        match self.standing(scope, before) {
            _ if self.waits_for_devices_of(scope, before) => UpdateStrategy::StopFirst,
            UpdateStrategy::Auto if self.has_room_for(scope) => UpdateStrategy::Overlap,
            UpdateStrategy::Auto => UpdateStrategy::StopFirst,
            strategy => strategy,
        }
    }

    /// The revisions whose place this one takes: those that serve where it is preferred. None if one of them serves elsewhere
    /// too, and so has to stay.
    fn before(&self, scope: &Scope<'a>) -> BTreeSet<RevisionKey> {
        let (desired, actual) = (self.situation.desired, self.situation.actual);
        let mut before = BTreeSet::new();
        let mut stays = BTreeSet::new();
        for route in desired.routes.values() {
            for target in &route.targets {
                let mut others =
                    target.candidates.iter().skip_while(|name| ***name != *scope.key.name).skip(1);
                let is_ours = *route.namespace == *scope.key.namespace;
                let candidate = others.find_map(|name| {
                    let key = RevisionKey::new(&route.namespace, name);
                    let known = actual.revisions.get(&key)?;
                    known.ready_once.then_some(key)
                });
                match candidate.filter(|_| is_ours) {
                    Some(key) => drop(before.insert(key)),
                    None => drop(stays.insert(table::choose(&route.namespace, target, desired, actual))),
                }
            }
        }
        if before.is_disjoint(&stays) { before } else { BTreeSet::new() }
    }

    /// Whether there is such an instance of what its object was before.
    fn has_former(&self, scope: &Scope<'a>, matches: impl Fn(&InstanceActual) -> bool) -> bool {
        self.has(scope.key, |instance| instance.object != *scope.digest && matches(instance))
    }

    fn has(&self, key: &RevisionKey, matches: impl Fn(&InstanceActual) -> bool) -> bool {
        self.index.of(key).iter().any(|(_, instance)| matches(instance))
    }
}
