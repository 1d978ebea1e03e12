//! A Revision: its images by digest, and its conditions from what nodes report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tombolo_api::meta::ConditionStatus;
use tombolo_api::report::{RevisionPhase, RevisionReport, Tier};
use tombolo_api::serving::{ContainerStatus, Revision, RevisionStatus, Route, keys};

use super::{Inputs, Write, Writes, configuration};
use crate::conditions::{Conditions, Verdict};
use crate::fleet::NodeState;
use crate::images::{Resolution, is_pinned, pinned_image};
use crate::snapshot::{Key, Object};

/// `wanted`: nodes are given it, so what they say of it is news.
pub(super) fn reconcile(revision: &Arc<Revision>, wanted: bool, inputs: &Inputs<'_>, writes: &mut Writes) {
    let mut changed = Revision::clone(revision);
    routing(&mut changed, inputs);
    pin(&mut changed, inputs);
    changed.status = status(&changed, wanted, inputs);
    if changed != **revision {
        writes.push(Write::Update(Object::Revision(Arc::new(changed))));
    }
}

/// Labels and annotations that say what leads to a Revision: its Configuration's present generation, Routes.
fn routing(revision: &mut Revision, inputs: &Inputs<'_>) {
    let key = Key::of(&revision.metadata);
    let owner = revision.metadata.controller().map(|owner| key.sibling(&owner.name));
    let owner = owner.and_then(|owner| inputs.snapshot.configurations.get(&owner));
    let present = owner.filter(|owner| configuration::is_present(revision, owner));
    let metadata = &mut revision.metadata;
    if let Some(owner) = present {
        metadata.labels.insert(keys::CONFIGURATION_GENERATION.into(), owner.metadata.generation.to_string());
    }
    let leads_here = |route: &&Arc<Route>| {
        route.metadata.namespace == key.namespace
            && route
                .status
                .traffic
                .iter()
                .chain(&route.spec.traffic)
                .any(|target| target.revision_name == key.name)
    };
    let routes: BTreeSet<&str> = inputs
        .snapshot
        .routes
        .values()
        .filter(leads_here)
        .map(|route| route.metadata.name.as_str())
        .collect();
    let fresh = metadata.label(keys::ROUTING_STATE) == Some("pending") && present.is_some();
    let state = match (routes.is_empty(), fresh) {
        (false, _) => "active",
        (true, true) => "pending",
        (true, false) => "reserve",
    };
    if metadata.label(keys::ROUTING_STATE) != Some(state) {
        metadata.labels.insert(keys::ROUTING_STATE.into(), state.into());
        metadata.annotations.insert(keys::ROUTING_STATE_MODIFIED.into(), inputs.now.to_owned());
    }
    if routes.is_empty() {
        metadata.annotations.remove(keys::ROUTES);
    } else {
        let names = routes.into_iter().collect::<Vec<_>>().join(",");
        metadata.annotations.insert(keys::ROUTES.into(), names);
    }
}

/// Takes over digests that have been found. Once pinned, an image never changes.
fn pin(revision: &mut Revision, inputs: &Inputs<'_>) {
    let mut statuses = Vec::new();
    for container in &revision.spec.containers {
        let known = pinned_image(revision, &container.name).map(str::to_owned);
        let digest = known.or_else(|| match inputs.images.get(&container.image) {
            Some(Resolution::Resolved(digest)) => Some(digest.clone()),
            _ => None,
        });
        statuses.extend(
            digest.map(|image_digest| ContainerStatus { name: container.name.clone(), image_digest }),
        );
    }
    revision.status.container_statuses = statuses;
}

fn status(revision: &Revision, wanted: bool, inputs: &Inputs<'_>) -> RevisionStatus {
    let reports = Reports::of(revision, inputs);
    let known = |kind| Verdict::of(&revision.status.conditions, kind);
    let (healthy, available) = if !is_pinned(revision) {
        (resolution(revision, inputs), Verdict::unknown("ResolvingDigests", ""))
    } else if wanted {
        (reports.health(&known("ContainerHealthy")), reports.resources(revision))
    } else {
        // Nodes do not have it any more: what was found out about it stays true.
        (at_rest(revision, known("ContainerHealthy")), known("ResourcesAvailable"))
    };
    let ready = Verdict::all(&[&healthy, &available]);
    let running = reports.running();
    let active = match (ready.is_good(), running) {
        (true, 0) => Verdict::bad("NoTraffic", "The target is not receiving traffic."),
        (true, _) => Verdict::good(),
        (false, _) => Verdict { status: ConditionStatus::Unknown, ..ready.clone() },
    };
    let before = &revision.status;
    let conditions = Conditions::new(&before.conditions, inputs.now)
        .info("Active", &active)
        .set("ContainerHealthy", &healthy)
        .set("Ready", &ready)
        .set("ResourcesAvailable", &available)
        .build();
    RevisionStatus {
        actual_replicas: Some(running),
        conditions,
        container_statuses: before.container_statuses.clone(),
        desired_replicas: Some(running),
        log_url: before.log_url.clone(),
        observed_generation: revision.metadata.generation,
    }
}

/// The health of a Revision that nodes do not have, from what was known of it. One that others overtook says so.
fn at_rest(revision: &Revision, known: Verdict) -> Verdict {
    let overtaken = revision.metadata.label(keys::ROUTING_STATE) == Some("reserve");
    if overtaken && !known.is_good() && !known.is_bad() {
        let message = "No node has it any more: a newer Revision took its place before it was ready.";
        return Verdict::unknown("Superseded", message);
    }
    known
}

/// What is known of the images of a Revision that is not pinned.
fn resolution(revision: &Revision, inputs: &Inputs<'_>) -> Verdict {
    let unknown =
        revision.spec.containers.iter().filter(|container| pinned_image(revision, &container.name).is_none());
    let verdicts: Vec<Verdict> = unknown
        .map(|container| match inputs.images.get(&container.image) {
            Some(Resolution::Missing(message)) => Verdict::bad("ContainerMissing", message.clone()),
            Some(Resolution::Unreachable(message)) => Verdict::unknown("ResolvingDigests", message.clone()),
            Some(Resolution::Resolved(_)) | None => Verdict::unknown("ResolvingDigests", ""),
        })
        .collect();
    Verdict::all(&verdicts.iter().collect::<Vec<_>>())
}

/// What the nodes that should run a Revision say of it.
struct Reports<'a> {
    nodes: Vec<(&'a NodeState, Option<&'a RevisionReport>)>,
    /// A node has been enrolled and has not told its labels yet.
    awaited: bool,
}

impl<'a> Reports<'a> {
    fn of(revision: &Revision, inputs: &Inputs<'a>) -> Self {
        let metadata = &revision.metadata;
        let placed = inputs.fleet.values().filter(|node| node.matches(&revision.spec.node_selector));
        let nodes = placed
            .map(|node| (node, node.revision(&metadata.namespace, &metadata.name, &metadata.uid)))
            .collect();
        Self { nodes, awaited: inputs.fleet.values().any(|node| node.report.is_none()) }
    }

    /// Good as soon as one node has it ready; bad as soon as a connected one says that it cannot run it. Until they say
    /// anything, one that was good is: nodes may be getting it anew.
    fn health(&self, known: &Verdict) -> Verdict {
        let in_phase = |phase: RevisionPhase| {
            self.nodes.iter().find_map(move |(node, report)| {
                report.filter(|report| report.phase == phase).map(|report| (*node, report))
            })
        };
        let failed = self.nodes.iter().find_map(|(node, report)| {
            let report = (*report)?;
            (node.is_online() && report.phase == RevisionPhase::Failed).then_some((node, report))
        });
        if let Some((node, report)) = failed {
            return Verdict::bad(&report.reason, format!("On node {}: {}", node.id, report.message));
        }
        if in_phase(RevisionPhase::Ready).is_some() {
            return Verdict::good();
        }
        if let Some((node, report)) = in_phase(RevisionPhase::Failed) {
            return Verdict::bad(
                &report.reason,
                format!("On node {}, when it was last heard of: {}", node.id, report.message),
            );
        }
        if known.is_good() {
            return Verdict::good();
        }
        if !self.nodes.is_empty() && !self.nodes.iter().any(|(node, _)| node.is_online()) {
            return Verdict::unknown("NodesOffline", "No node that should run this Revision is connected.");
        }
        Verdict::unknown("Deploying", "")
    }

    /// Whether there is a node to run it.
    fn resources(&self, revision: &Revision) -> Verdict {
        if !self.nodes.is_empty() {
            return Verdict::good();
        }
        let message = match revision.spec.node_selector.is_empty() {
            true => "No node is enrolled at this hub: start an agent with the join token that `tombolo-hub token` prints.".to_owned(),
            false => format!(
                "No node has the labels {} of the template's nodeSelector: `tombolo get nodes -o wide` shows the labels there are.",
                selector(&revision.spec.node_selector)
            ),
        };
        if self.awaited {
            Verdict::unknown("NoNodeMatches", message)
        } else {
            Verdict::bad("NoNodeMatches", message)
        }
    }

    fn running(&self) -> i32 {
        let instances =
            self.nodes.iter().filter_map(|(_, report)| *report).flat_map(|report| &report.instances);
        i32::try_from(instances.filter(|instance| instance.tier == Tier::Running).count()).unwrap_or(i32::MAX)
    }
}

fn selector(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}
