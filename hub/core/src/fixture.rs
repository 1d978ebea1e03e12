//! A hub for tests: resources as the catalog would keep them, nodes and images as a test says.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tombolo_api::desired::{Encoded, RevisionObject, RouteObject};
use tombolo_api::manifest::ObjectKind;
use tombolo_api::meta::{Condition, ConditionStatus};
use tombolo_api::report::{
    InstanceReport, NodeInfo, Presence, Report, RevisionPhase, RevisionReport, RolledBack, RouteReport,
    ShareReport, TargetReport, Tier,
};
use tombolo_api::serving::admission::{self, Admission};
use tombolo_api::serving::{Configuration, Revision, Route, Service, keys};
use tombolo_api::{Digest, NodeId};

use crate::images::{Images, Resolution};
use crate::signatures::{Collection, Demands};
use crate::{
    Fleet, Inputs, Key, Kind, NodeState, Object, Outcome, Placement, Settings, Snapshot, Write, reconcile,
};

/// Passes after which the resources must have come to rest; a change takes four at most.
const PASSES_MAX: usize = 12;

pub(crate) struct Hub {
    pub(crate) snapshot: Snapshot,
    pub(crate) fleet: Fleet,
    pub(crate) images: Images,
    pub(crate) demands: Demands,
    pub(crate) signatures: Collection,
    pub(crate) settings: Settings,
    pub(crate) placement: Placement,
    /// Seconds since tests began.
    clock: u32,
    given: u64,
}

impl Hub {
    pub(crate) fn new() -> Self {
        Self {
            snapshot: Snapshot::default(),
            fleet: Fleet::new(),
            images: Images::new(),
            demands: Demands::new(),
            signatures: Collection::new(),
            settings: Settings { domain: "localhost".into(), http_port: 8080 },
            placement: Placement::new(),
            clock: 0,
            given: 0,
        }
    }

    /// One node that fits everything without a selector, and a resolved image for every name `hub.tombolo/hello:N`.
    pub(crate) fn with_node() -> Self {
        let mut hub = Self::new();
        hub.node("n1", &[]);
        hub
    }

    pub(crate) fn now(&self) -> String {
        let (day, s) = (self.clock / 86_400 + 1, self.clock % 86_400);
        assert!(day <= 31, "tests take place in January");
        format!("2026-01-{day:02}T{:02}:{:02}:{:02}Z", s / 3600, s / 60 % 60, s % 60)
    }

    /// Lets time pass.
    pub(crate) fn wait_hours(&mut self, hours: u32) {
        self.clock += hours * 3600;
    }

    /// Creates or replaces a Service through admission, as a client does that reads before it writes.
    pub(crate) fn apply(&mut self, name: &str, spec: Value) -> Result<(), String> {
        self.apply_with(json!({ "name": name }), spec)
    }

    pub(crate) fn apply_with(&mut self, mut metadata: Value, spec: Value) -> Result<(), String> {
        let key = Key::new("default", metadata["name"].as_str().unwrap());
        let current = self.snapshot.services.get(&key).cloned();
        if let Some(current) = &current {
            let signed = |name: &String| [keys::CREATOR, keys::LAST_MODIFIER].contains(&name.as_str());
            let kept = current.metadata.annotations.iter().filter(|(name, _)| signed(name));
            for (name, value) in kept {
                metadata["annotations"][name] = value.as_str().into();
            }
        }
        let input = json!({ "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": metadata, "spec": spec });
        let (now, uid) = (self.now(), self.next("uid"));
        let request =
            Admission { namespace: "default", user: "admin", now: &now, uid: &uid, name_suffix: "abcde" };
        let admitted = admission::admit_service(&input, current.as_deref(), &request)
            .map_err(|status| status.message)?;
        let mut service = admitted.object;
        service.metadata.resource_version = self.next("");
        self.snapshot.put(Object::Service(Arc::new(service)));
        Ok(())
    }

    /// Deletes a resource with what it owns, as the catalog does.
    pub(crate) fn delete(&mut self, kind: Kind, name: &str) {
        let key = Key::new("default", name);
        let Some(object) = self.snapshot.get(kind, &key) else { return };
        for owned in self.snapshot.owned_by(&object.metadata().uid) {
            self.snapshot.remove(owned.kind(), &owned.key());
        }
        self.snapshot.remove(kind, &key);
    }

    pub(crate) fn pass(&self) -> Outcome {
        reconcile(&Inputs {
            snapshot: &self.snapshot,
            fleet: &self.fleet,
            images: &self.images,
            demands: &self.demands,
            signatures: &self.signatures,
            settings: &self.settings,
            now: &self.now(),
        })
    }

    /// Makes passes until there is nothing to write.
    pub(crate) fn settle(&mut self) {
        for _ in 0..PASSES_MAX {
            self.clock += 1;
            let outcome = self.pass();
            if outcome.writes.is_empty() {
                self.placement = outcome.placement;
                return;
            }
            outcome.writes.into_iter().for_each(|write| self.write(write));
        }
        panic!("not at rest after {PASSES_MAX} passes: {:#?}", self.pass().writes);
    }

    /// Settles, has every node report what it holds as ready, and settles again.
    pub(crate) fn run(&mut self) {
        self.settle();
        self.report_all(RevisionPhase::Ready);
        self.settle();
    }

    pub(crate) fn write(&mut self, write: Write) {
        match write {
            Write::Create(mut object) => {
                assert!(self.snapshot.get(object.kind(), &object.key()).is_none(), "exists: {object:?}");
                let (uid, version, now) = (self.next("uid"), self.next(""), self.now());
                let metadata = object.metadata_mut();
                metadata.uid = uid;
                metadata.resource_version = version;
                metadata.generation = 1;
                metadata.creation_timestamp = Some(now);
                self.snapshot.put(object);
            }
            Write::Update(mut object) => {
                let before =
                    self.snapshot.get(object.kind(), &object.key()).expect("updates are of what there is");
                assert_eq!(
                    object.metadata().resource_version,
                    before.metadata().resource_version,
                    "one write each"
                );
                assert_ne!(object, before, "an update that changes nothing");
                let grows = i64::from(!object.same_spec(&before));
                let version = self.next("");
                let metadata = object.metadata_mut();
                metadata.generation = before.metadata().generation + grows;
                metadata.resource_version = version;
                self.snapshot.put(object);
            }
            Write::Delete { kind, key, uid } => {
                let found = self.snapshot.get(kind, &key).expect("deletions are of what there is");
                assert_eq!(found.metadata().uid, uid);
                self.delete(kind, &key.name);
            }
        }
    }

    /// Enrols a node that is connected and has these labels.
    pub(crate) fn node(&mut self, name: &str, labels: &[(&str, &str)]) {
        let id: NodeId = name.parse().unwrap();
        let state = self.fleet.entry(id.clone()).or_insert_with(|| NodeState::enrolled(id, 0));
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let report = state.report.take().unwrap_or_default();
        state.report = Some(Report { info: NodeInfo { labels, ..NodeInfo::default() }, ..report });
        self.connected(name, true);
    }

    pub(crate) fn connected(&mut self, name: &str, online: bool) {
        let presence = Presence { online, session: "s".into(), serving: None, report: None };
        self.fleet.get_mut(&name.parse::<NodeId>().unwrap()).unwrap().presence = Some(presence);
    }

    /// Has every connected node report all it holds in one phase.
    pub(crate) fn report_all(&mut self, phase: RevisionPhase) {
        let names: Vec<String> =
            self.fleet.values().filter(|node| node.is_online()).map(|node| node.id.to_string()).collect();
        for name in names {
            let revisions = self.revisions_on(&name);
            let phases: Vec<(&str, RevisionPhase)> =
                revisions.iter().map(|name| (name.as_str(), phase)).collect();
            self.report(&name, &phases);
        }
    }

    /// Has a node report what it holds: the named ones in these phases, others as they were, or preparing.
    pub(crate) fn report(&mut self, node: &str, phases: &[(&str, RevisionPhase)]) {
        let held: Vec<RevisionObject> = self.held(node).into_iter().filter_map(revision_of).collect();
        let state = self.fleet.get_mut(&node.parse::<NodeId>().unwrap()).unwrap();
        let report = state.report.as_mut().unwrap();
        let before = std::mem::take(&mut report.revisions);
        for object in held {
            let said = phases.iter().find(|(name, _)| *name == object.name).map(|(_, phase)| *phase);
            let known = before.iter().find(|report| report.uid == object.uid).map(|report| report.phase);
            let phase = said.or(known).unwrap_or(RevisionPhase::Preparing);
            let failed = phase == RevisionPhase::Failed;
            let instance =
                InstanceReport { id: format!("{}-1", object.name), tier: Tier::Running, pid: 1, restarts: 0 };
            report.revisions.push(RevisionReport {
                namespace: object.namespace,
                name: object.name,
                uid: object.uid,
                phase,
                reason: if failed { "ExitCode1".into() } else { String::new() },
                message: if failed { "the program ended with code 1.".into() } else { String::new() },
                instances: if phase == RevisionPhase::Ready { vec![instance] } else { Vec::new() },
                desired: 0,
                timed_out: false,
            });
        }
    }

    /// Has a node tell how far the target without a tag of a route is: the goal, and what each revision serves, in percent.
    pub(crate) fn moving(&mut self, node: &str, route: &str, goal: &str, shares: &[(&str, u8)]) {
        let share = |(revision, percent): &(&str, u8)| ShareReport {
            revision: (*revision).into(),
            percent: *percent,
        };
        let target = TargetReport {
            configuration: route.into(),
            tag: String::new(),
            goal: goal.into(),
            shares: shares.iter().map(share).collect(),
            rolled_back: None,
        };
        let said = RouteReport { namespace: "default".into(), name: route.into(), targets: vec![target] };
        let routes = &mut self.reported(node).routes;
        routes.retain(|known| known.name != route);
        routes.push(said);
    }

    /// Has a node tell that it went back to one revision for good.
    pub(crate) fn went_back(&mut self, node: &str, route: &str, from: &str, to: &str, reason: &str) {
        self.moving(node, route, from, &[(to, 100)]);
        let said = self.reported(node).routes.last_mut().unwrap();
        said.targets[0].rolled_back =
            Some(RolledBack { reason: reason.into(), message: "31 % of 40 answers were errors".into() });
    }

    pub(crate) fn reported(&mut self, node: &str) -> &mut Report {
        let state = self.fleet.get_mut(&node.parse::<NodeId>().unwrap()).unwrap();
        state.report.get_or_insert_default()
    }

    /// Resolves an image name, as long as it is not resolved yet, to a digest of its own.
    pub(crate) fn image(&mut self, name: &str) {
        self.images.entry(name.to_owned()).or_insert_with(|| Resolution::Resolved(digest_of(name)));
    }

    pub(crate) fn held(&self, node: &str) -> Vec<Encoded> {
        self.placement.get(&node.parse::<NodeId>().unwrap()).cloned().unwrap_or_default()
    }

    /// Names of the revisions a node holds.
    pub(crate) fn revisions_on(&self, node: &str) -> Vec<String> {
        self.held(node).into_iter().filter_map(revision_of).map(|object| object.name).collect()
    }

    pub(crate) fn revision_on(&self, node: &str, name: &str) -> Option<RevisionObject> {
        self.held(node).into_iter().filter_map(revision_of).find(|object| object.name == name)
    }

    pub(crate) fn route_on(&self, node: &str, name: &str) -> Option<RouteObject> {
        self.held(node).into_iter().filter_map(route_of).find(|object| object.name == name)
    }

    /// The candidates of every target of a route on a node.
    pub(crate) fn candidates_on(&self, node: &str, route: &str) -> Vec<Vec<String>> {
        let route = self.route_on(node, route);
        route.map_or(Vec::new(), |route| route.targets.into_iter().map(|target| target.candidates).collect())
    }

    pub(crate) fn service(&self, name: &str) -> Arc<Service> {
        self.snapshot.services[&Key::new("default", name)].clone()
    }

    pub(crate) fn configuration(&self, name: &str) -> Arc<Configuration> {
        self.snapshot.configurations[&Key::new("default", name)].clone()
    }

    pub(crate) fn route(&self, name: &str) -> Arc<Route> {
        self.snapshot.routes[&Key::new("default", name)].clone()
    }

    pub(crate) fn revision(&self, name: &str) -> Arc<Revision> {
        self.snapshot.revisions[&Key::new("default", name)].clone()
    }

    /// The Route's status: each target's revision and percentage.
    pub(crate) fn traffic(&self, name: &str) -> Vec<(String, i64)> {
        let traffic = &self.route(name).status.traffic;
        traffic.iter().map(|target| (target.revision_name.clone(), target.percent.unwrap_or(0))).collect()
    }

    fn next(&mut self, prefix: &str) -> String {
        self.given += 1;
        format!("{prefix}{}", self.given)
    }
}

/// `hub.tombolo/hello@sha256:…`, another one for every name.
pub(crate) fn digest_of(image: &str) -> String {
    format!("hub.tombolo/hello@{}", Digest::of(image.as_bytes()))
}

/// A spec with one container of `image`.
pub(crate) fn spec(image: &str) -> Value {
    json!({ "template": { "spec": { "containers": [{ "image": image }] } } })
}

pub(crate) fn with(mut spec: Value, pointer: &[&str], value: Value) -> Value {
    let at = pointer.iter().fold(&mut spec, |at, step| &mut at[*step]);
    *at = value;
    spec
}

pub(crate) fn revision_of(encoded: Encoded) -> Option<RevisionObject> {
    let read = || serde_json::from_slice(&encoded.bytes).unwrap();
    (encoded.entry.kind == ObjectKind::Revision).then(read)
}

pub(crate) fn route_of(encoded: Encoded) -> Option<RouteObject> {
    let read = || serde_json::from_slice(&encoded.bytes).unwrap();
    (encoded.entry.kind == ObjectKind::Route).then(read)
}

/// `(status, reason)` of a condition.
pub(crate) fn condition(conditions: &[Condition], kind: &str) -> (ConditionStatus, String) {
    let found =
        tombolo_api::meta::condition(conditions, kind).unwrap_or_else(|| panic!("no condition {kind}"));
    (found.status, found.reason.clone())
}

pub(crate) fn message(conditions: &[Condition], kind: &str) -> String {
    tombolo_api::meta::condition(conditions, kind).map(|found| found.message.clone()).unwrap_or_default()
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
