//! What a route's targets mean at this moment: which revisions may serve each, and which one does.

use std::sync::Arc;

use tombolo_api::serving::{Configuration, Revision, Route, TrafficTarget, keys};

use crate::conditions::Verdict;
use crate::images::is_pinned;
use crate::snapshot::{Key, Snapshot};

/// One target with its revisions.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    pub(crate) percent: i64,
    pub(crate) tag: String,
    /// `None` for targets that name a revision.
    pub(crate) latest: Option<bool>,
    /// The Configuration whose latest revision it follows; empty for targets that name a revision.
    pub(crate) configuration: String,
    /// Revisions that may serve it on nodes, the preferred first: the latest, then the one that is known to work.
    pub(crate) candidates: Vec<Arc<Revision>>,
    /// The revision that counts as serving it, once there is one.
    pub(crate) assigned: Option<String>,
}

/// A route's targets, and whether all of them are served.
pub(crate) struct Resolved {
    pub(crate) targets: Vec<Target>,
    pub(crate) assigned: Verdict,
}

/// Resolves `route` against the other resources.
pub(crate) fn resolve(route: &Route, snapshot: &Snapshot) -> Resolved {
    let mut targets = Vec::new();
    let mut verdicts = Vec::new();
    for target in &route.spec.traffic {
        let (candidates, assigned) = if target.revision_name.is_empty() {
            latest(&Key::new(&route.metadata.namespace, &target.configuration_name), snapshot)
        } else {
            pinned(&Key::new(&route.metadata.namespace, &target.revision_name), snapshot)
        };
        let (assigned, verdict) = match assigned {
            Ok(name) => (Some(name), Verdict::good()),
            Err(verdict) => (None, verdict),
        };
        verdicts.push(verdict);
        targets.push(Target {
            percent: target.percent.unwrap_or(0),
            tag: target.tag.clone(),
            latest: target.latest_revision,
            configuration: target.configuration_name.clone(),
            candidates,
            assigned,
        });
    }
    Resolved { targets, assigned: Verdict::all(&verdicts.iter().collect::<Vec<_>>()) }
}

/// The targets that nodes should serve: those of the spec if each that gets requests has a revision, else the last
/// assignment that was complete.
pub(crate) fn served(route: &Route, snapshot: &Snapshot) -> Vec<Target> {
    let resolved = resolve(route, snapshot).targets;
    let used = |target: &&Target| target.percent > 0 || !target.tag.is_empty();
    let targets: Vec<Target> = resolved.iter().filter(used).cloned().collect();
    if targets.iter().all(|target| !target.candidates.is_empty()) {
        return targets;
    }
    let last =
        route.status.traffic.iter().map(|target| last_assigned(target, route, snapshot)).collect::<Vec<_>>();
    last.iter().filter(used).filter(|target| !target.candidates.is_empty()).cloned().collect()
}

fn last_assigned(target: &TrafficTarget, route: &Route, snapshot: &Snapshot) -> Target {
    let key = Key::new(&route.metadata.namespace, &target.revision_name);
    let (candidates, assigned) = pinned(&key, snapshot);
    // A status names revisions only.
    let followed = candidates.first().filter(|_| target.latest_revision == Some(true));
    let configuration = followed.and_then(|revision| revision.metadata.label(keys::CONFIGURATION));
    Target {
        percent: target.percent.unwrap_or(0),
        tag: target.tag.clone(),
        latest: target.latest_revision,
        configuration: configuration.unwrap_or_default().to_owned(),
        candidates,
        assigned: assigned.ok(),
    }
}

/// The generation of the Configuration that a Revision was stamped out of, or that came back to it last.
pub(crate) fn generation(revision: &Revision) -> i64 {
    revision.metadata.label(keys::CONFIGURATION_GENERATION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

type Candidates = (Vec<Arc<Revision>>, Result<String, Verdict>);

fn latest(key: &Key, snapshot: &Snapshot) -> Candidates {
    let Some(configuration) = snapshot.configurations.get(key) else {
        let message = format!("Configuration \"{}\" referenced in traffic not found.", key.name);
        return (Vec::new(), Err(Verdict::bad("ConfigurationMissing", message)));
    };
    let status = &configuration.status;
    let mut candidates = Vec::new();
    for name in [&status.latest_created_revision_name, &status.latest_ready_revision_name] {
        let found = snapshot.revisions.get(&key.sibling(name)).filter(|revision| is_pinned(revision));
        if let Some(revision) =
            found.filter(|_| !candidates.iter().any(|known: &Arc<Revision>| known.metadata.name == *name))
        {
            candidates.push(Arc::clone(revision));
        }
    }
    let assigned = if status.latest_ready_revision_name.is_empty() {
        Err(not_assigned(configuration))
    } else {
        Ok(status.latest_ready_revision_name.clone())
    };
    (candidates, assigned)
}

fn not_assigned(configuration: &Configuration) -> Verdict {
    let name = &configuration.metadata.name;
    if Verdict::of(&configuration.status.conditions, "Ready").is_bad() {
        Verdict::bad("RevisionMissing", format!("Configuration \"{name}\" does not have any ready Revision."))
    } else {
        let message = format!("Configuration \"{name}\" is waiting for a Revision to become ready.");
        Verdict::unknown("RevisionMissing", message)
    }
}

fn pinned(key: &Key, snapshot: &Snapshot) -> Candidates {
    let name = &key.name;
    let Some(revision) = snapshot.revisions.get(key) else {
        let message = format!("Revision \"{name}\" referenced in traffic not found.");
        return (Vec::new(), Err(Verdict::bad("RevisionMissing", message)));
    };
    let candidates = if is_pinned(revision) { vec![Arc::clone(revision)] } else { Vec::new() };
    let ready = Verdict::of(&revision.status.conditions, "Ready");
    let assigned = if ready.is_good() {
        Ok(name.clone())
    } else if ready.is_bad() {
        Err(Verdict::bad("RevisionMissing", format!("Revision \"{name}\" failed to become ready.")))
    } else {
        Err(Verdict::unknown("RevisionMissing", format!("Revision \"{name}\" is not yet ready.")))
    };
    (candidates, assigned)
}
