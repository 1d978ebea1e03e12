//! From desired routes and what is ready: the router's table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tombolo_api::desired::{Desired, RevisionObject, RouteObject, RouteTarget};
use tombolo_api::serving::ProtocolName;
use tombolo_api::{Digest, RevisionKey};

use crate::actual::{Actual, ImageState, InstanceActual, Moment, Phase, RevisionActual, Takeover};
use crate::devices;
use crate::limits::request_timeouts;
use crate::rollout::Rollouts;
use crate::rollout::steps::Share;
use crate::routes::{Backend, Endpoint, HostRoutes, RouteTable, Split, Unavailable};
use crate::supervision::InstanceId;

/// Builds the table. `rollouts`: [stepped](Rollouts::step) to now. `now` decides whether a failed revision is still waiting
/// before it is tried again. What is as it was in the table `before` is shared with it.
pub fn build(
    desired: &Desired,
    actual: &Actual,
    rollouts: &Rollouts,
    before: &RouteTable,
    now: Moment,
) -> RouteTable {
    let index = actual.by_revision();
    let mut making = Making { desired, actual, rollouts, before, table: RouteTable::default() };
    let mut named = BTreeSet::new();
    for route in desired.routes.values() {
        making.add_route(route, &mut named);
    }
    let mut table = making.table;
    // Those that no route leads to any more have requests that wait for them.
    for (key, (digest, object)) in &desired.revisions {
        let backend = backend(key, digest, object, actual, index.of(key), now);
        table.revisions.insert(key.clone(), kept(before.revisions.get(key), backend));
    }
    for key in named {
        let known = before.revisions.get(&key);
        table.revisions.entry(key).or_insert_with_key(|key| kept(known, missing(key)));
    }
    table
}

/// `now`, or what was before if that is the same.
fn kept<T: PartialEq>(before: Option<&Arc<T>>, now: T) -> Arc<T> {
    before.filter(|before| ***before == now).map_or_else(|| Arc::new(now), Arc::clone)
}

/// A table whose hosts are being made.
struct Making<'a> {
    desired: &'a Desired,
    actual: &'a Actual,
    rollouts: &'a Rollouts,
    before: &'a RouteTable,
    table: RouteTable,
}

/// Whether requests may wait for a revision: it has been ready here, or is taking over.
pub fn serves(desired: &Desired, actual: &Actual, key: &RevisionKey) -> bool {
    let digest = desired.revisions.get(key).map(|(digest, _)| digest);
    let known = actual.revisions.get(key).filter(|known| Some(&known.object) == digest);
    known.is_some_and(|known| known.ready_once || matches!(known.takeover, Takeover::Begun { .. }))
}

impl Making<'_> {
    fn add_route(&mut self, route: &RouteObject, named: &mut BTreeSet<RevisionKey>) {
        let mut splits: BTreeMap<RevisionKey, u8> = BTreeMap::new();
        let mut tags = BTreeMap::new();
        for target in &route.targets {
            let own: Vec<Split> = self.splits(self.rollouts.shares(route, target), route, target, 100);
            named.extend(own.iter().map(|split| split.revision.clone()));
            if !target.tag.is_empty() {
                tags.insert(target.tag.clone(), own.clone());
            }
            if !target.hosts.is_empty() {
                self.lead(&target.hosts, HostRoutes { splits: own, ..HostRoutes::default() });
            }
            if target.percent > 0 {
                let points = self.rollouts.points(route, target);
                for Split { percent, revision } in self.splits(points, route, target, target.percent) {
                    named.insert(revision.clone());
                    let share = splits.entry(revision).or_default();
                    *share = share.saturating_add(percent);
                }
            }
        }
        let splits = splits.into_iter().map(|(revision, percent)| Split { percent, revision }).collect();
        self.lead(&route.hosts, HostRoutes { splits, tags, steering: route.steering.clone() });
    }

    /// As the rollout shares it, or else all to the revision that should have it.
    fn splits(
        &self,
        shares: Option<Vec<Share>>,
        route: &RouteObject,
        target: &RouteTarget,
        percent: u8,
    ) -> Vec<Split> {
        let split = |share: Share| Split {
            percent: share.percent,
            revision: RevisionKey::new(&route.namespace, &share.revision),
        };
        match shares {
            Some(shares) if !shares.is_empty() => shares.into_iter().map(split).collect(),
            _ => {
                let revision = choose(&route.namespace, target, self.desired, self.actual);
                vec![Split { percent, revision }]
            }
        }
    }

    fn lead(&mut self, hosts: &[String], routes: HostRoutes) {
        let known = hosts.iter().find_map(|host| self.before.hosts.get(&**host));
        let routes = kept(known, routes);
        for host in hosts {
            let name = self.before.hosts.get_key_value(&**host).map(|(name, _)| Arc::clone(name));
            self.table.hosts.insert(name.unwrap_or_else(|| host.as_str().into()), Arc::clone(&routes));
        }
    }
}

/// The first candidate that has been ready here, or is taking over; until any was, the first that is here at all, can run
/// here and has not failed to take over.
pub(crate) fn choose(
    namespace: &str,
    target: &RouteTarget,
    desired: &Desired,
    actual: &Actual,
) -> RevisionKey {
    let keys: Vec<_> = target.candidates.iter().map(|name| RevisionKey::new(namespace, name)).collect();
    let current = |key: &&RevisionKey| -> Option<&RevisionActual> {
        let (digest, _) = desired.revisions.get(*key)?;
        actual.revisions.get(*key).filter(|revision| revision.object == *digest)
    };
    let serves =
        |known: &RevisionActual| known.ready_once || matches!(known.takeover, Takeover::Begun { .. });
    let failed =
        |known: &RevisionActual| known.misfit.is_some() || matches!(known.takeover, Takeover::Undone(_));
    let ready = keys.iter().find(|key| current(key).is_some_and(serves));
    let of_use =
        || keys.iter().find(|key| desired.revisions.contains_key(key) && !current(key).is_some_and(failed));
    let here = || keys.iter().find(|key| desired.revisions.contains_key(key));
    let chosen = ready.or_else(of_use).or_else(here).or(keys.first());
    chosen.cloned().unwrap_or_else(|| RevisionKey::new(namespace, ""))
}

fn backend(
    key: &RevisionKey,
    digest: &Digest,
    object: &RevisionObject,
    actual: &Actual,
    instances: &[(&InstanceId, &InstanceActual)],
    now: Moment,
) -> Backend {
    let ready = || instances.iter().filter(|(_, instance)| instance.phase == Phase::Ready);
    let fresh = ready().any(|(_, instance)| instance.object == *digest);
    let ready: Vec<Endpoint> = ready()
        // An instance of the object's former content serves until one of the present content does.
        .filter(|(_, instance)| !fresh || instance.object == *digest)
        .map(|(id, instance)| Endpoint { instance: (*id).clone(), port: instance.port })
        .collect();
    let waits = |phase: &Phase| matches!(phase, Phase::Frozen | Phase::Thawing);
    let standby = instances
        .iter()
        .filter(|(_, instance)| ready.is_empty() && instance.object == *digest && waits(&instance.phase))
        .map(|(id, instance)| Endpoint { instance: (*id).clone(), port: instance.port })
        .collect();
    let unavailable = if ready.is_empty() {
        let known = actual.revisions.get(key).and_then(|revision| why_not(revision, now));
        let rests = |(_, instance): &(&InstanceId, &InstanceActual)| instance.phase == Phase::Suspended;
        known.or_else(|| without_devices(object, actual, now).filter(|_| instances.iter().all(rests)))
    } else {
        None
    };
    let awaits = if ready.is_empty() { awaited(object, actual, instances, now) } else { None };
    let timeouts = request_timeouts(object);
    Backend {
        ready,
        standby,
        unavailable,
        awaits,
        h2c: object.spec.protocol() == ProtocolName::H2c,
        container_concurrency: crate::limits::container_concurrency(object),
        timeout_ms: timeouts.request_ms,
        response_start_timeout_ms: timeouts.response_start_ms,
        idle_timeout_ms: timeouts.idle_ms,
    }
}

/// Why holding requests for a revision would be in vain at this moment.
pub(crate) fn why_not(revision: &RevisionActual, now: Moment) -> Option<Unavailable> {
    if revision.misfit.is_some() {
        return revision.misfit.clone();
    }
    if let ImageState::Failed { reason, message, .. } = &revision.image {
        return Some(Unavailable { reason: reason.clone(), message: message.clone() });
    }
    let crashes = &revision.crashes;
    (crashes.recent > 0 && now < crashes.retry_at)
        .then(|| Unavailable { reason: crashes.reason.clone(), message: crashes.message.clone() })
}

/// Why waiting for devices would be in vain.
fn without_devices(object: &RevisionObject, actual: &Actual, now: Moment) -> Option<Unavailable> {
    let obstacle = devices::obstacle(&devices::asked(object), &actual.devices, now)?;
    (!obstacle.passes).then_some(obstacle.why)
}

/// What requests wait for beside an instance: a device plugin, or a suspended instance that does not come back.
fn awaited(
    object: &RevisionObject,
    actual: &Actual,
    instances: &[(&InstanceId, &InstanceActual)],
    now: Moment,
) -> Option<Unavailable> {
    let delayed = instances.iter().find_map(|(_, instance)| {
        let delay = instance.delayed.as_ref().filter(|_| instance.phase == Phase::Suspended)?;
        Some(Unavailable { reason: "NotRestored".into(), message: delay.why.clone() })
    });
    let obstacle = || devices::obstacle(&devices::asked(object), &actual.devices, now);
    delayed.or_else(|| obstacle().map(|obstacle| obstacle.why))
}

/// A route to a revision that is not among the node's objects: nothing to wait for until the next manifest.
fn missing(key: &RevisionKey) -> Backend {
    Backend {
        ready: Vec::new(),
        standby: Vec::new(),
        unavailable: Some(Unavailable {
            reason: "RevisionMissing".into(),
            message: format!("the route names revision {key}, which this node was not given"),
        }),
        awaits: None,
        h2c: false,
        container_concurrency: 0,
        timeout_ms: crate::limits::REQUEST_TIMEOUT_MS,
        response_start_timeout_ms: 0,
        idle_timeout_ms: 0,
    }
}

#[cfg(test)]
mod tests;
