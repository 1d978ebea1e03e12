//! What nodes say of the traffic they move from one revision to the next, and what follows from it: which revisions a
//! node still needs, and how a route is. The moving itself is the node's, which does it without the hub too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tombolo_api::report::TargetReport;
use tombolo_api::serving::{Revision, Route, keys, rollout};

use crate::conditions::Verdict;
use crate::fleet::{Fleet, NodeState};
use crate::images::is_pinned;
use crate::snapshot::{Key, Snapshot};
use crate::targets::{self, Target};

/// Whether traffic moves in steps at all: the route says so, and the target follows a configuration.
pub(crate) fn moves(target: &Target, route: &Route) -> bool {
    !target.configuration.is_empty() && rollout::spec(&route.metadata.annotations).is_some()
}

/// The candidates of a target that moves in steps on `node`, from those it would have otherwise: the preferred one, and
/// every one that still serves a share there. A node that went back keeps what it went back to.
pub(crate) fn candidates(
    target: &Target,
    route: &Route,
    otherwise: Vec<Arc<Revision>>,
    node: &NodeState,
    snapshot: &Snapshot,
) -> Vec<Arc<Revision>> {
    let Some(goal) = otherwise.first() else { return otherwise };
    let usable = |revision: &Arc<Revision>| {
        is_pinned(revision)
            && node.should_have(revision)
            && revision.metadata.label(keys::CONFIGURATION) == Some(&target.configuration)
    };
    let mut reports = reports(node, route, target).peekable();
    if reports.peek().is_none() {
        return with_former(otherwise, node, snapshot, usable);
    }
    let key = Key::of(&route.metadata);
    let shares = reports.flat_map(|report| report.shares.iter().rev()).filter(|share| share.percent > 0);
    let serving: Vec<Arc<Revision>> = shares
        .filter_map(|share| snapshot.revisions.get(&key.sibling(&share.revision)))
        .filter(|revision| usable(revision))
        .cloned()
        .collect();
    if serving.is_empty() {
        return otherwise;
    }
    let mut kept = vec![Arc::clone(goal)];
    for revision in serving {
        if kept.iter().all(|known| known.metadata.name != revision.metadata.name) {
            kept.push(revision);
        }
    }
    kept
}

/// A node that has not told how far it is may be anywhere between the preferred revision and the one before it.
fn with_former(
    mut candidates: Vec<Arc<Revision>>,
    node: &NodeState,
    snapshot: &Snapshot,
    usable: impl Fn(&Arc<Revision>) -> bool,
) -> Vec<Arc<Revision>> {
    let [goal] = candidates.as_slice() else { return candidates };
    let namespace = &goal.metadata.namespace;
    let of_target = snapshot.revisions.values().filter(|revision| revision.metadata.namespace == *namespace);
    let former = of_target
        .filter(|revision| revision.metadata.name != goal.metadata.name)
        .filter(|revision| usable(revision) && node.has_ready(revision))
        .max_by_key(|revision| targets::generation(revision));
    candidates.extend(former.cloned());
    candidates
}

/// The routes that send requests to a revision on some node, whatever their status says. A revision that is in here is
/// in use.
pub(crate) fn served(snapshot: &Snapshot, fleet: &Fleet) -> BTreeMap<Key, BTreeSet<String>> {
    let mut served: BTreeMap<Key, BTreeSet<String>> = BTreeMap::new();
    let reports = fleet.values().filter_map(|node| node.report.as_ref()).flat_map(|report| &report.routes);
    for report in reports {
        let key = Key::new(&report.namespace, &report.name);
        let Some(route) = snapshot.routes.get(&key) else { continue };
        if rollout::spec(&route.metadata.annotations).is_none() {
            continue;
        }
        for share in report.targets.iter().flat_map(|target| &target.shares).filter(|share| share.percent > 0)
        {
            served.entry(key.sibling(&share.revision)).or_default().insert(report.name.clone());
        }
    }
    served
}

/// How far the nodes are: good when every one that is connected has all traffic where it should be; bad when one went
/// back, even if it has been away since.
pub(crate) fn progress(route: &Route, targets: &[Target], snapshot: &Snapshot, fleet: &Fleet) -> Verdict {
    let mut verdicts = Vec::new();
    for target in targets.iter().filter(|target| moves(target, route)) {
        let wanted = |name: &str| is_wanted(name, target, route, snapshot);
        for (node, report) in
            fleet.values().flat_map(|node| reports(node, route, target).map(move |report| (node, report)))
        {
            let tag = if target.tag.is_empty() { String::new() } else { format!(" of tag {:?}", target.tag) };
            let goal = &report.goal;
            if let Some(back) = report.rolled_back.as_ref().filter(|_| wanted(goal)) {
                let message = format!(
                    "On node {} the traffic{tag} was taken back from Revision {goal:?}: {}",
                    node.id, back.message
                );
                verdicts.push(Verdict::bad(&back.reason, message));
            } else if node.is_online()
                && let Some(assigned) = target.assigned.as_deref()
            {
                let percent: u32 = report
                    .shares
                    .iter()
                    .filter(|it| it.revision == assigned)
                    .map(|it| u32::from(it.percent))
                    .sum();
                if percent < 100 {
                    let message = format!(
                        "On node {} Revision {assigned:?} has {percent} percent of the traffic{tag} so far.",
                        node.id
                    );
                    verdicts.push(Verdict::unknown("RolloutInProgress", message));
                }
            }
        }
    }
    Verdict::all(&verdicts.iter().collect::<Vec<_>>())
}

/// Whether a revision is the one that traffic should be on. While a newer one is on its way, that one is.
fn is_wanted(name: &str, target: &Target, route: &Route, snapshot: &Snapshot) -> bool {
    let key = Key::of(&route.metadata).sibling(&target.configuration);
    let Some(configuration) = snapshot.configurations.get(&key) else { return false };
    let failed = || Verdict::of(&configuration.status.conditions, "Ready").is_bad();
    configuration.status.latest_created_revision_name == name
        || (target.assigned.as_deref() == Some(name) && failed())
}

fn reports<'a>(
    node: &'a NodeState,
    route: &'a Route,
    target: &'a Target,
) -> impl Iterator<Item = &'a TargetReport> {
    let metadata = &route.metadata;
    let routes = node.report.iter().flat_map(|report| &report.routes);
    routes
        .filter(move |report| report.namespace == metadata.namespace && report.name == metadata.name)
        .flat_map(|report| &report.targets)
        .filter(move |report| report.configuration == target.configuration && report.tag == target.tag)
}

#[cfg(test)]
mod tests;
