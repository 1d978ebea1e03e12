//! Which node gets which revisions and routes: every node whose labels match a revision's `nodeSelector` and that has the devices
//! it asks for, and the routes that lead to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tombolo_api::desired::{
    Encoded, RevisionObject, RouteObject, RouteTarget, Steer, encode_revision, encode_route,
};
use tombolo_api::serving::{Revision, Route, keys, steering};

use crate::fleet::{NodeState, Placement};
use crate::hosts::Hosts;
use crate::images::{is_pinned, pinned_image};
use crate::signatures::{self, Demands};
use crate::snapshot::{Key, Snapshot};
use crate::targets::{self, Target};
use crate::{Inputs, Settings, rollout};

/// What every node should hold, and the revisions that are given to nodes, whether there is one for them or not.
pub(crate) fn place(inputs: &Inputs<'_>, hosts: &Hosts) -> (Placement, BTreeSet<Key>) {
    let Inputs { snapshot, fleet, settings, demands, .. } = *inputs;
    let routes = snapshot.routes.values().map(|route| (route, targets::served(route, snapshot))).collect();
    let wanted = wanted(snapshot);
    let mut given: BTreeSet<Key> = wanted.keys().cloned().collect();
    let mut pass = Pass { snapshot, settings, demands, hosts, routes, wanted, encoded: BTreeMap::new() };
    let placement = fleet.values().map(|node| (node.id.clone(), pass.on_node(node))).collect();
    given.extend(pass.encoded.into_keys());
    (placement, given)
}

/// The revisions that nodes with the right labels are given: those that routes may lead to, and the latest of every
/// Configuration, which has to be tried or it would never be known to work.
fn wanted(snapshot: &Snapshot) -> BTreeMap<Key, Arc<Revision>> {
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
    demands: &'a Demands,
    hosts: &'a Hosts,
    routes: Vec<(&'a Arc<Route>, Vec<Target>)>,
    wanted: BTreeMap<Key, Arc<Revision>>,
    /// Revisions as nodes get them, made once.
    encoded: BTreeMap<Key, Encoded>,
}

impl Pass<'_> {
    fn on_node(&mut self, node: &NodeState) -> Vec<Encoded> {
        let fits = |revision: &&Arc<Revision>| node.should_have(revision);
        let mut here: BTreeMap<Key, Arc<Revision>> = BTreeMap::new();
        for revision in self.wanted.values().filter(fits) {
            here.insert(Key::of(&revision.metadata), Arc::clone(revision));
        }
        let mut encoded = Vec::new();
        for (route, targets) in &self.routes {
            encoded.extend(self.route(route, targets, &mut here, node).map(|object| encode_route(&object)));
        }
        for (key, revision) in here {
            let object = self
                .encoded
                .entry(key)
                .or_insert_with(|| encode_revision(&revision_object(&revision, self.demands)));
            encoded.push(object.clone());
        }
        encoded.sort_by(|a, b| a.entry.cmp(&b.entry));
        encoded
    }

    /// A route for a node that has the revisions `here`, to which those are added that serve it there beside its own; none
    /// if the node has none of the route's, or no host for it.
    fn route(
        &self,
        route: &Route,
        targets: &[Target],
        here: &mut BTreeMap<Key, Arc<Revision>>,
        node: &NodeState,
    ) -> Option<RouteObject> {
        let mut kept = Vec::new();
        for target in targets {
            let is_here = |revision: &&Arc<Revision>| here.contains_key(&Key::of(&revision.metadata));
            let mut candidates: Vec<Arc<Revision>> =
                target.candidates.iter().filter(is_here).cloned().collect();
            if candidates.is_empty() {
                continue;
            }
            if rollout::moves(target, route) {
                candidates = rollout::candidates(target, route, candidates, node, self.snapshot);
            }
            candidates.extend(stand_in(target, &candidates, node, self.snapshot));
            for revision in &candidates {
                here.entry(Key::of(&revision.metadata)).or_insert_with(|| Arc::clone(revision));
            }
            kept.push(RouteTarget {
                percent: u8::try_from(target.percent.clamp(0, 100)).unwrap_or(0),
                candidates: candidates.iter().map(|revision| revision.metadata.name.clone()).collect(),
                hosts: if target.tag.is_empty() { Vec::new() } else { self.hosts(&target.tag, route) },
                tag: target.tag.clone(),
                configuration: target.configuration.clone(),
            });
        }
        let own = self.hosts("", route);
        let hosts = if !own.is_empty() && rescale(&mut kept) { own } else { Vec::new() };
        if hosts.is_empty() {
            // Only tags lead to it here.
            kept.iter_mut().for_each(|target| target.percent = 0);
        }
        let reachable = !hosts.is_empty() || kept.iter().any(|target| !target.hosts.is_empty());
        reachable.then(|| RouteObject {
            namespace: route.metadata.namespace.clone(),
            name: route.metadata.name.clone(),
            hosts,
            steering: steering(route, &kept),
            targets: kept,
            rollout: tombolo_api::serving::rollout::spec(&route.metadata.annotations),
        })
    }

    /// The host of a route, or of one of its tags, unless another route has it.
    fn hosts(&self, tag: &str, route: &Route) -> Vec<String> {
        let metadata = &route.metadata;
        match self.hosts.holder(tag, metadata) {
            None => vec![self.settings.host(tag, &metadata.name, &metadata.namespace)],
            Some(_) => Vec::new(),
        }
    }
}

/// The rules that lead to targets which are there.
fn steering(route: &Route, targets: &[RouteTarget]) -> Vec<Steer> {
    let text = route.metadata.annotation(keys::STEERING).unwrap_or("[]");
    // Admission has read them; rules that were kept before it could are nobody's loss.
    let rules = steering::parse(text).unwrap_or_default();
    rules.into_iter().filter(|rule| targets.iter().any(|target| target.tag == rule.tag)).collect()
}

/// A revision that serves on this node while none of a target's candidates is ready on it: the newest of the same
/// Configuration that is. Others may have moved on long ago; a node that is slow, or was away, does so without a gap.
fn stand_in(
    target: &Target,
    candidates: &[Arc<Revision>],
    node: &NodeState,
    snapshot: &Snapshot,
) -> Option<Arc<Revision>> {
    let names_revision = target.latest != Some(true);
    // The host of a tag on a revision must never answer with another one.
    if candidates.iter().any(|revision| node.has_ready(revision))
        || (names_revision && !target.tag.is_empty())
    {
        return None;
    }
    let owner = candidates.first()?.metadata.controller()?;
    let of_owner = |revision: &&Arc<Revision>| {
        revision.metadata.controller().is_some_and(|other| other.uid == owner.uid)
    };
    let fits = |revision: &&Arc<Revision>| is_pinned(revision) && node.should_have(revision);
    let owned = snapshot.revisions.values().filter(of_owner);
    let ready = owned.filter(fits).filter(|revision| node.has_ready(revision));
    ready.max_by_key(|revision| targets::generation(revision)).cloned()
}

/// A revision as nodes get it: only what says how to run it.
fn revision_object(revision: &Revision, demands: &Demands) -> RevisionObject {
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
        verification: signatures::verification(revision, demands),
    }
}

/// Whether an annotation says how to run a revision. All others may change without a new object.
pub(crate) fn concerns_nodes(key: &str) -> bool {
    let group = key.split('/').next().unwrap_or_default();
    group == keys::AUTOSCALING || key.starts_with(keys::TOMBOLO_PREFIX) || key == keys::PROGRESS_DEADLINE
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
