//! A Revision: its images by digest, and its conditions from what nodes report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tombolo_api::meta::ConditionStatus;
use tombolo_api::report::{RevisionPhase, RevisionReport, Tier};
use tombolo_api::serving::{Revision, RevisionStatus, Route, keys};

use super::{Inputs, Write, Writes, configuration};
use crate::conditions::{Conditions, Graded, Verdict};
use crate::fleet::{Lack, NodeState};
use crate::images::{Resolution, is_pinned, pinned_image};
use crate::signatures;
use crate::snapshot::{Key, Object};

/// What a Revision is to nodes.
#[derive(Clone, Copy)]
pub(super) struct Use<'a> {
    /// Nodes are given it, so what they say of it is news.
    pub(super) given: bool,
    /// Routes that send requests to it on some node while traffic moves.
    pub(super) served_by: Option<&'a BTreeSet<String>>,
}

pub(super) fn reconcile(revision: &Arc<Revision>, use_of: Use<'_>, inputs: &Inputs<'_>, writes: &mut Writes) {
    let mut changed = Revision::clone(revision);
    routing(&mut changed, use_of, inputs);
    pin(&mut changed, inputs);
    changed.status = status(&changed, use_of, inputs);
    if changed != **revision {
        writes.push(Write::Update(Object::Revision(Arc::new(changed))));
    }
}

/// Labels and annotations that say what leads to a Revision: its Configuration's present generation, Routes.
fn routing(revision: &mut Revision, use_of: Use<'_>, inputs: &Inputs<'_>) {
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
        .chain(use_of.served_by.into_iter().flatten().map(String::as_str))
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

/// Takes over digests and signatures that have been found. Once pinned, an image never changes.
fn pin(revision: &mut Revision, inputs: &Inputs<'_>) {
    let statuses = revision.spec.containers.iter();
    let statuses = statuses.filter_map(|container| signatures::container_status(revision, container, inputs));
    revision.status.container_statuses = statuses.collect();
}

fn status(revision: &Revision, use_of: Use<'_>, inputs: &Inputs<'_>) -> RevisionStatus {
    let reports = Reports::of(revision, inputs);
    let known = |kind| Graded::of(&revision.status.conditions, kind);
    let (healthy, available) = if !is_pinned(revision) {
        let resolving = Verdict::unknown("ResolvingDigests", "");
        (Graded::error(resolution(revision, inputs)), Graded::error(resolving))
    } else if use_of.given {
        (reports.health(&known("ContainerHealthy")), reports.resources(revision))
    } else {
        // Nodes do not have it any more: what was found out about it stays true.
        let healthy = at_rest(revision, known("ContainerHealthy"));
        (Graded::error(healthy), Graded::error(known("ResourcesAvailable")))
    };
    let ready = Verdict::all(&[&healthy.for_ready(), &available.for_ready()]);
    let (running, desired) = (reports.running(), reports.desired());
    let before = &revision.status;
    let conditions = Conditions::new(&before.conditions, inputs.now)
        .info("Active", &active(&ready, running, desired, reports.have_timed_out()))
        .graded("ContainerHealthy", &healthy)
        .set("Ready", &ready)
        .graded("ResourcesAvailable", &available)
        .build();
    RevisionStatus {
        actual_replicas: Some(running),
        conditions,
        container_statuses: before.container_statuses.clone(),
        desired_replicas: Some(desired),
        log_url: before.log_url.clone(),
        observed_generation: revision.metadata.generation,
    }
}

/// Whether instances run, in Knative's words.
fn active(ready: &Verdict, running: i32, desired: i32, timed_out: bool) -> Verdict {
    if timed_out && running == 0 && desired == 0 {
        return Verdict::bad("TimedOut", "The target could not be activated.");
    }
    if !ready.is_good() {
        return Verdict { status: ConditionStatus::Unknown, ..ready.clone() };
    }
    match (running, desired) {
        (1.., _) => Verdict::good(),
        (_, 1..) => Verdict::unknown(
            "Queued",
            "Requests to the target are being buffered as resources are provisioned.",
        ),
        _ => Verdict::bad("NoTraffic", "The target is not receiving traffic."),
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
            Some(Resolution::Resolved(image)) => signatures::awaited(image, inputs),
            None => Verdict::unknown("ResolvingDigests", ""),
        })
        .collect();
    Verdict::all(&verdicts.iter().collect::<Vec<_>>())
}

/// What the nodes that should run a Revision say of it.
struct Reports<'a> {
    nodes: Vec<(&'a NodeState, Option<&'a RevisionReport>)>,
    /// A node has been enrolled and has not told its labels yet.
    awaited: bool,
    /// What a node with the right labels has too little of: the one that comes nearest.
    lacking: Option<(&'a NodeState, Lack)>,
}

impl<'a> Reports<'a> {
    fn of(revision: &Revision, inputs: &Inputs<'a>) -> Self {
        let metadata = &revision.metadata;
        let placed = inputs.fleet.values().filter(|node| node.should_have(revision));
        let nodes = placed
            .map(|node| (node, node.revision(&metadata.namespace, &metadata.name, &metadata.uid)))
            .collect();
        let selected = inputs.fleet.values().filter(|node| node.matches(&revision.spec.node_selector));
        let lacking = selected.filter_map(|node| Some((node, node.lacking(&revision.spec)?)));
        let lacking = lacking.max_by_key(|(_, lack)| lack.most);
        Self { nodes, awaited: inputs.fleet.values().any(|node| node.report.is_none()), lacking }
    }

    /// What nodes that are connected say, with a reason that `is_of_interest`.
    fn said(
        &self,
        phase: RevisionPhase,
        is_of_interest: impl Fn(&RevisionReport) -> bool,
    ) -> Option<(&'a NodeState, &'a RevisionReport)> {
        let connected = self.nodes.iter().filter(|(node, _)| node.is_online());
        let reports = connected.filter_map(|(node, report)| Some((*node, (*report)?)));
        reports.filter(|(_, report)| report.phase == phase).find(|(_, report)| is_of_interest(report))
    }

    fn any_in(&self, phase: RevisionPhase) -> Option<(&'a NodeState, &'a RevisionReport)> {
        let reports = self.nodes.iter().filter_map(|(node, report)| Some((*node, (*report)?)));
        reports.filter(|(_, report)| report.phase == phase).find(|(_, report)| !is_shortage(report))
    }

    /// Good as soon as one node has it ready; bad as soon as a connected one says that it cannot run it. Until they say
    /// anything, one that was good is: nodes may be getting it anew. One that works and crashes now and then is told of.
    fn health(&self, known: &Verdict) -> Graded {
        if let Some((node, report)) = self.said(RevisionPhase::Failed, |report| !is_shortage(report)) {
            return Graded::error(on_node(node, report));
        }
        let is_in_trouble = |report: &RevisionReport| !report.reason.is_empty() && !is_shortage(report);
        if let Some((node, report)) = self.said(RevisionPhase::Ready, is_in_trouble) {
            return Graded::warning(on_node(node, report));
        }
        if self.is_ready_somewhere() {
            return Graded::error(Verdict::good());
        }
        if let Some((node, report)) = self.any_in(RevisionPhase::Failed) {
            let message = format!("On node {}, when it was last heard of: {}", node.id, report.message);
            return Graded::error(Verdict::bad(&report.reason, message));
        }
        // Nothing is wrong there, and it says what it waits for.
        let waits = |report: &RevisionReport| !report.reason.is_empty() && !is_shortage(report);
        let waiting = self.said(RevisionPhase::Preparing, waits);
        let offline = !self.nodes.is_empty() && !self.nodes.iter().any(|(node, _)| node.is_online());
        Graded::error(if known.is_good() {
            Verdict::good()
        } else if offline {
            Verdict::unknown("NodesOffline", "No node that should run this Revision is connected.")
        } else if let Some((node, report)) = waiting {
            Verdict::unknown(&report.reason, format!("On node {}: {}", node.id, report.message))
        } else {
            Verdict::unknown("Deploying", "")
        })
    }

    fn is_ready_somewhere(&self) -> bool {
        self.nodes.iter().any(|(_, report)| report.is_some_and(|it| it.phase == RevisionPhase::Ready))
    }

    /// Whether there is a node to run it, with what it needs. One that runs, on a node that cannot run more of it, is ready.
    fn resources(&self, revision: &Revision) -> Graded {
        let phases = [RevisionPhase::Failed, RevisionPhase::Preparing, RevisionPhase::Ready];
        let short = phases.into_iter().find_map(|phase| self.said(phase, is_shortage));
        if let Some((node, report)) = short {
            let verdict = on_node(node, report);
            return match self.is_ready_somewhere() {
                true => Graded::warning(verdict),
                false => Graded::error(verdict),
            };
        }
        if !self.nodes.is_empty() {
            return Graded::error(Verdict::good());
        }
        if let Some((node, lack)) = &self.lacking {
            return Graded::error(self.unless_awaited("InsufficientDevices", shortage(node, lack)));
        }
        let message = match revision.spec.node_selector.is_empty() {
            true => "No node is enrolled at this hub: start an agent with the join token that `tombolo-hub token` prints.".to_owned(),
            false => format!(
                "No node has the labels {} of the template's nodeSelector: `tombolo get nodes -o wide` shows the labels there are.",
                selector(&revision.spec.node_selector)
            ),
        };
        Graded::error(self.unless_awaited("NoNodeMatches", message))
    }

    fn unless_awaited(&self, reason: &str, message: String) -> Verdict {
        if self.awaited { Verdict::unknown(reason, message) } else { Verdict::bad(reason, message) }
    }

    fn desired(&self) -> i32 {
        let wanted = self.nodes.iter().filter_map(|(_, report)| *report).map(|report| report.desired);
        wanted.fold(0, |sum, desired| sum.saturating_add(i32::try_from(desired).unwrap_or(i32::MAX)))
    }

    /// Whether a node has given up an activation.
    fn have_timed_out(&self) -> bool {
        self.nodes.iter().any(|(_, report)| report.is_some_and(|it| it.timed_out))
    }

    /// Instances whose program runs; those that are primed or frozen wait.
    fn running(&self) -> i32 {
        let instances =
            self.nodes.iter().filter_map(|(_, report)| *report).flat_map(|report| &report.instances);
        i32::try_from(instances.filter(|instance| instance.tier == Tier::Running).count()).unwrap_or(i32::MAX)
    }
}

/// Whether a node lacks something to run it: `InsufficientMemory`, `InsufficientDevices`, `InsufficientInstances`, a device that works.
fn is_shortage(report: &RevisionReport) -> bool {
    report.reason.starts_with("Insufficient")
        || matches!(report.reason.as_str(), "DeviceUnhealthy" | "DevicesNotReady")
}

/// Why no node is given it, by the one that comes nearest.
fn shortage(node: &NodeState, lack: &Lack) -> String {
    let Lack { resource, needed, most, all } = lack;
    let shows = "`tombolo get nodes -o yaml` shows what each has";
    if *most == 0 {
        return format!(
            "No node that may run it has enough of {resource}: start its device plugin on one; {shows}."
        );
    }
    let (node, whose) =
        (&node.id, if most < all { "all of one accelerator: the largest piece is" } else { "the most is" });
    let sum = if most < all { format!(" (of {all} in all)") } else { String::new() };
    format!(
        "No node that may run it has enough of {resource}: one instance needs {needed}, {whose} {most}{sum}, on node {node}: lower \
         its limit, or add a node or a device that has more; {shows}."
    )
}

fn on_node(node: &NodeState, report: &RevisionReport) -> Verdict {
    Verdict::bad(&report.reason, format!("On node {}: {}", node.id, report.message))
}

fn selector(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}
