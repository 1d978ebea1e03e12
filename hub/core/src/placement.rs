//! Which node gets which revisions and routes: every node whose labels match a revision's `nodeSelector`, and the routes
//! that lead to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tombolo_api::desired::{
    Encoded, RevisionObject, RouteObject, RouteTarget, encode_revision, encode_route,
};
use tombolo_api::report::RevisionPhase;
use tombolo_api::serving::{Revision, Route, keys};

use crate::Settings;
use crate::fleet::{Fleet, NodeState, Placement};
use crate::images::{is_pinned, pinned_image};
use crate::snapshot::{Key, Snapshot};
use crate::targets::{self, Target};

/// What every node should hold.
pub fn place(snapshot: &Snapshot, fleet: &Fleet, settings: &Settings) -> Placement {
    let routes = snapshot.routes.values().map(|route| (route, targets::served(route, snapshot))).collect();
    let mut pass = Pass { snapshot, settings, routes, wanted: wanted(snapshot), encoded: BTreeMap::new() };
    fleet.values().map(|node| (node.id.clone(), pass.on_node(node))).collect()
}

/// The revisions that nodes with the right labels are given: those that routes may lead to, and the latest of every
/// Configuration, which has to be tried or it would never be known to work.
pub(crate) fn wanted(snapshot: &Snapshot) -> BTreeMap<Key, Arc<Revision>> {
    let mut wanted = BTreeMap::new();
    let served = snapshot.routes.values().flat_map(|route| targets::served(route, snapshot));
    for revision in served.flat_map(|target| target.candidates) {
        wanted.insert(Key::of(&revision.metadata), revision);
    }
    for configuration in snapshot.configurations.values() {
        let key =
            Key::of(&configuration.metadata).sibling(&configuration.status.latest_created_revision_name);
        if let Some(revision) = snapshot.revisions.get(&key).filter(|revision| is_pinned(revision)) {
            wanted.insert(key, Arc::clone(revision));
        }
    }
    wanted
}

struct Pass<'a> {
    snapshot: &'a Snapshot,
    settings: &'a Settings,
    routes: Vec<(&'a Arc<Route>, Vec<Target>)>,
    wanted: BTreeMap<Key, Arc<Revision>>,
    /// Revisions as nodes get them, made once.
    encoded: BTreeMap<Key, Encoded>,
}

impl Pass<'_> {
    fn on_node(&mut self, node: &NodeState) -> Vec<Encoded> {
        let fits = |revision: &&Arc<Revision>| node.matches(&revision.spec.node_selector);
        let mut here: BTreeMap<Key, Arc<Revision>> = BTreeMap::new();
        for revision in self.wanted.values().filter(fits) {
            here.insert(Key::of(&revision.metadata), Arc::clone(revision));
        }
        let mut encoded = Vec::new();
        for (route, targets) in &self.routes {
            let object = route_object(route, targets, &mut here, self.settings, |target, candidates| {
                stand_in(target, candidates, node, self.snapshot)
            });
            encoded.extend(object.map(|object| encode_route(&object)));
        }
        for (key, revision) in here {
            let object =
                self.encoded.entry(key).or_insert_with(|| encode_revision(&revision_object(&revision)));
            encoded.push(object.clone());
        }
        encoded.sort_by(|a, b| a.entry.cmp(&b.entry));
        encoded
    }
}

/// A revision that serves on this node while none of a target's candidates is ready on it: the newest of the same
/// Configuration that is. Others may have moved on long ago; a node that is slow, or was away, does so without a gap.
fn stand_in(
    target: &Target,
    candidates: &[Arc<Revision>],
    node: &NodeState,
    snapshot: &Snapshot,
) -> Option<Arc<Revision>> {
    let is_ready = |revision: &Revision| {
        let metadata = &revision.metadata;
        let report = node.revision(&metadata.namespace, &metadata.name, &metadata.uid);
        report.is_some_and(|report| report.phase == RevisionPhase::Ready)
    };
    let names_revision = target.latest != Some(true);
    // The host of a tag on a revision must never answer with another one.
    if candidates.iter().any(|revision| is_ready(revision)) || (names_revision && !target.tag.is_empty()) {
        return None;
    }
    let owner = candidates.first()?.metadata.controller()?;
    let of_owner = |revision: &&Arc<Revision>| {
        revision.metadata.controller().is_some_and(|other| other.uid == owner.uid)
    };
    let generation = |revision: &&Arc<Revision>| {
        revision.metadata.label(keys::CONFIGURATION_GENERATION).and_then(|text| text.parse::<i64>().ok())
    };
    let fits = |revision: &&Arc<Revision>| is_pinned(revision) && node.matches(&revision.spec.node_selector);
    let ready =
        snapshot.revisions.values().filter(of_owner).filter(fits).filter(|revision| is_ready(revision));
    ready.max_by_key(generation).cloned()
}

/// A revision as nodes get it: only what says how to run it.
fn revision_object(revision: &Revision) -> RevisionObject {
    let metadata = &revision.metadata;
    let mut spec = revision.spec.clone();
    for container in &mut spec.containers {
        if let Some(image) = pinned_image(revision, &container.name) {
            image.clone_into(&mut container.image);
        }
    }
    let label = |key: &str| metadata.label(key).unwrap_or_default().to_owned();
    RevisionObject {
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        service: label(keys::SERVICE),
        configuration: label(keys::CONFIGURATION),
        annotations: metadata
            .annotations
            .iter()
            .filter(|(key, _)| concerns_nodes(key))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
        spec,
    }
}

/// Whether an annotation says how to run a revision. All others may change without a new object.
fn concerns_nodes(key: &str) -> bool {
    let group = key.split('/').next().unwrap_or_default();
    group == keys::AUTOSCALING || group == "tombolo.dev" || key == keys::PROGRESS_DEADLINE
}

/// The route for a node that has the revisions `here`, to which those that stand in for others are added; none if it has
/// none of the route's.
fn route_object(
    route: &Route,
    targets: &[Target],
    here: &mut BTreeMap<Key, Arc<Revision>>,
    settings: &Settings,
    stand_in: impl Fn(&Target, &[Arc<Revision>]) -> Option<Arc<Revision>>,
) -> Option<RouteObject> {
    let (name, namespace) = (&route.metadata.name, &route.metadata.namespace);
    let mut kept = Vec::new();
    for target in targets {
        let is_here = |revision: &&Arc<Revision>| here.contains_key(&Key::of(&revision.metadata));
        let mut candidates: Vec<Arc<Revision>> = target.candidates.iter().filter(is_here).cloned().collect();
        if candidates.is_empty() {
            continue;
        }
        if let Some(revision) = stand_in(target, &candidates) {
            here.insert(Key::of(&revision.metadata), Arc::clone(&revision));
            candidates.push(revision);
        }
        let hosts = if target.tag.is_empty() {
            Vec::new()
        } else {
            vec![settings.host(&target.tag, name, namespace)]
        };
        let percent = u8::try_from(target.percent.clamp(0, 100)).unwrap_or(0);
        let candidates = candidates.iter().map(|revision| revision.metadata.name.clone()).collect();
        kept.push(RouteTarget {
            percent,
            candidates,
            hosts,
            tag: String::new(),
            configuration: String::new(),
        });
    }
    if kept.is_empty() {
        return None;
    }
    let split = rescale(&mut kept);
    let hosts = if split { vec![settings.host("", name, namespace)] } else { Vec::new() };
    Some(RouteObject {
        namespace: namespace.clone(),
        name: name.clone(),
        hosts,
        targets: kept,
        steering: vec![],
        rollout: None,
    })
}

/// Makes the percentages of the targets that are on a node sum to 100 again, in proportion. False if all are 0: then only
/// tags lead to the route there.
fn rescale(targets: &mut [RouteTarget]) -> bool {
    let sum: u32 = targets.iter().map(|target| u32::from(target.percent)).sum();
    if sum == 0 {
        return false;
    }
    let exact: Vec<u32> = targets.iter().map(|target| u32::from(target.percent) * 100).collect();
    let mut left = 100;
    for (target, exact) in targets.iter_mut().zip(&exact) {
        target.percent = u8::try_from(exact / sum).unwrap_or(100);
        left -= u32::from(target.percent);
    }
    // What rounding down left goes to the largest remainders, the first of equals.
    let mut order: Vec<usize> = (0..targets.len()).collect();
    order.sort_by_key(|index| (std::cmp::Reverse(exact[*index] % sum), *index));
    for index in order.into_iter().take(left as usize) {
        targets[index].percent += 1;
    }
    true
}

#[cfg(test)]
mod tests;
