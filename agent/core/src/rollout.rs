//! Gradual rollouts on a node: what part of a route's requests each revision of a configuration gets, moved from the former one
//! to the next with time and undone when that one's health is bad. Works without a hub; its state outlives the agent.
//!
//! Knows neither the router nor where the state is stored. `steps` is Knative's stepping, `gate` the judgement of health,
//! `state` what is remembered of one target, `stored` how all of it is written.

pub mod gate;
mod state;
pub mod steps;
mod stored;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tombolo_api::RevisionKey;
use tombolo_api::desired::{Desired, RouteObject, RouteTarget};
use tombolo_api::report::{RouteReport, ShareReport, TargetReport};

use crate::actual::Moment;
use gate::Health;
use state::{Goal, Phase, Surroundings, Track};
use steps::Share;

pub use state::Stepped;

/// How many undone rollouts of targets that a route does not name now are remembered for each route.
const UNNAMED_MAX: usize = 8;

/// All rollouts of a node, finished ones too: who served before is where the next one starts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rollouts {
    targets: BTreeMap<TargetKey, Track>,
}

/// One configuration in one route, as Knative counts: all that a route's own hosts send to it is one target, and every tag is
/// another, whose shares are of the requests to the tag.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetKey {
    pub namespace: String,
    pub route: String,
    pub configuration: String,
    /// Empty: the route's own hosts.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tag: String,
}

impl TargetKey {
    fn new(route: &RouteObject, configuration: &str, tag: &str) -> Self {
        Self {
            namespace: route.namespace.clone(),
            route: route.name.clone(),
            configuration: configuration.to_owned(),
            tag: tag.to_owned(),
        }
    }
}

impl Rollouts {
    /// Goes on with all rollouts: to be called whenever `desired`, or what is ready, changed, before routes are made of it, and at
    /// the moment that it returns.
    ///
    /// `ready` says whether a revision has been ready here with its present object; the first such candidate of a target is the
    /// one that should get all of it. `health` counts since the agent's start.
    pub fn step(
        &mut self,
        desired: &Desired,
        ready: impl Fn(&RevisionKey) -> bool,
        health: &BTreeMap<RevisionKey, Health>,
        now: Moment,
    ) -> Stepped {
        let mut stepped = Stepped::default();
        let mut named = BTreeSet::new();
        for route in desired.routes.values() {
            let around = Surroundings { namespace: &route.namespace, desired, ready: &ready, health, now };
            for (key, goal) in goals(route) {
                let one = match self.targets.get_mut(&key) {
                    Some(track) => track.step(&goal, &around),
                    None => {
                        let track = Track::first(&goal, &around);
                        let save = track.is_some();
                        self.targets.extend(track.map(|track| (key.clone(), track)));
                        Stepped { wake: None, save }
                    }
                };
                stepped.save |= one.save;
                stepped.wake = stepped.wake.into_iter().chain(one.wake).min();
                named.insert(key);
            }
        }
        stepped.save |= self.forget(desired, &named);
        stepped
    }

    /// Forgets targets that no route names, and says whether there were any. What was undone stays so as long as the route is
    /// there, to be gone on with when it is named again: a route that was fixed to a revision for a while must not give all to the
    /// one that failed before.
    fn forget(&mut self, desired: &Desired, named: &BTreeSet<TargetKey>) -> bool {
        let before = self.targets.len();
        let mut unnamed: BTreeMap<(String, String), usize> = BTreeMap::new();
        self.targets.retain(|key, track| {
            if named.contains(key) {
                return true;
            }
            let route = (key.namespace.clone(), key.route.clone());
            if !matches!(track.phase, Phase::RolledBack(_)) || !desired.routes.contains_key(&route) {
                return false;
            }
            let count = unnamed.entry(route).or_default();
            *count += 1;
            *count <= UNNAMED_MAX
        });
        self.targets.len() != before
    }

    /// Who gets `target.percent` of the requests to the route's own hosts, in parts that sum to it; `None`: the target is fixed to
    /// a revision, or was never stepped.
    pub fn points(&self, route: &RouteObject, target: &RouteTarget) -> Option<Vec<Share>> {
        self.apportioned(&TargetKey::new(route, &target.configuration, ""), target.percent)
    }

    /// Who gets the requests that ask for this target alone, by its host or its tag, in parts that sum to 100; without a tag, as
    /// the route's own hosts share it. `None` as in [`Rollouts::points`].
    pub fn shares(&self, route: &RouteObject, target: &RouteTarget) -> Option<Vec<Share>> {
        self.apportioned(&TargetKey::new(route, &target.configuration, &target.tag), 100)
    }

    /// Whether a target of the route is on its way from one revision to the next, or that was undone.
    pub fn holds_back(&self, route: &RouteObject) -> bool {
        let of_route = |key: &TargetKey| key.namespace == route.namespace && key.route == route.name;
        let mut tracks = self.targets.iter().filter(|(key, _)| of_route(key)).map(|(_, track)| track);
        tracks.any(|track| matches!(track.phase, Phase::Rolling(_) | Phase::RolledBack(_)))
    }

    /// What the hub should know of the routes with a rollout.
    pub fn report(&self, desired: &Desired) -> Vec<RouteReport> {
        let with_rollout = desired.routes.values().filter(|route| route.rollout.is_some());
        let reports = with_rollout.map(|route| RouteReport {
            namespace: route.namespace.clone(),
            name: route.name.clone(),
            targets: goals(route)
                .into_keys()
                .filter_map(|key| Some(target_report(&key, self.targets.get(&key)?)))
                .collect(),
        });
        reports.filter(|report| !report.targets.is_empty()).collect()
    }

    fn apportioned(&self, key: &TargetKey, percent: u8) -> Option<Vec<Share>> {
        let track = self.targets.get(key).filter(|_| !key.configuration.is_empty())?;
        Some(steps::apportion(&track.shift.shares, percent))
    }
}

/// The targets of a route that follow a configuration and get requests.
fn goals(route: &RouteObject) -> BTreeMap<TargetKey, Goal<'_>> {
    let mut goals: BTreeMap<TargetKey, Goal<'_>> = BTreeMap::new();
    for target in route.targets.iter().filter(|target| !target.configuration.is_empty()) {
        let goal =
            |percent| Goal { percent, candidates: &target.candidates, rollout: route.rollout.as_ref() };
        if target.percent > 0 {
            let own = goals.entry(TargetKey::new(route, &target.configuration, ""));
            let own = own.or_insert_with(|| goal(0));
            own.percent = own.percent.saturating_add(target.percent).min(100);
        }
        if !target.tag.is_empty() {
            goals.insert(TargetKey::new(route, &target.configuration, &target.tag), goal(100));
        }
    }
    goals
}

fn target_report(key: &TargetKey, track: &Track) -> TargetReport {
    let shares = steps::apportion(&track.shift.shares, 100).into_iter();
    TargetReport {
        configuration: key.configuration.clone(),
        tag: key.tag.clone(),
        goal: track.goal().to_owned(),
        shares: shares
            .map(|share| ShareReport { revision: share.revision, percent: share.percent })
            .collect(),
        rolled_back: match &track.phase {
            Phase::RolledBack(undone) => Some(undone.why.clone()),
            Phase::Settled | Phase::Rolling(_) => None,
        },
    }
}

#[cfg(test)]
mod tests;
