//! One pass over everything: what resources should change, and what every node should hold.
//!
//! ```text
//! Service ─▶ Configuration ─▶ Revision ─▶ placement ─▶ nodes
//!    └─────▶ Route ◀──────────────┘                      │
//!      statuses ◀─── conditions ◀──────── reports ◀──────┘
//! ```
//!
//! Level-triggered: a pass looks at all there is and writes only what differs, so passes over the outcome of a pass come to
//! rest. A child that a pass creates is looked at by the next one. Semantics are Knative's (`knative/specs`, serving).

mod collect;
mod configuration;
mod revision;
mod route;
mod service;

use std::collections::{BTreeMap, BTreeSet};

use tombolo_api::meta::{ObjectMeta, OwnerReference};
use tombolo_api::serving::API_VERSION;

use crate::fleet::{Fleet, Placement};
use crate::hosts::Hosts;
use crate::images::Images;
use crate::signatures::{Collection, Demands};
use crate::snapshot::{Key, Kind, Object, Snapshot};
use crate::{Settings, placement, rollout};

/// Everything a pass looks at.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub snapshot: &'a Snapshot,
    pub fleet: &'a Fleet,
    pub images: &'a Images,
    pub demands: &'a Demands,
    pub signatures: &'a Collection,
    pub settings: &'a Settings,
    /// RFC 3339, whole seconds, UTC.
    pub now: &'a str,
}

/// What comes out of a pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// In the order in which they should be made.
    pub writes: Vec<Write>,
    pub placement: Placement,
}

/// One change of the resources.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// A new resource; uid, resource version, generation and creation time are the writer's to set.
    Create(Object),
    /// The resource as it should be. Its resource version is that of the one it was made from: if another is stored by now,
    /// the next pass decides anew. The generation is the writer's to raise if the spec differs.
    Update(Object),
    /// The resource with this uid should go, with what it owns.
    Delete { kind: Kind, key: Key, uid: String },
}

/// Decides about everything once.
pub fn reconcile(inputs: &Inputs<'_>) -> Outcome {
    let mut writes = Writes::default();
    for service in inputs.snapshot.services.values() {
        service::reconcile(service, inputs, &mut writes);
    }
    for configuration in inputs.snapshot.configurations.values() {
        configuration::reconcile(configuration, inputs, &mut writes);
    }
    let hosts = Hosts::of(inputs.snapshot);
    let (placement, given) = placement::place(inputs, &hosts);
    let served = rollout::served(inputs.snapshot, inputs.fleet);
    for (key, revision) in &inputs.snapshot.revisions {
        let use_of = revision::Use { given: given.contains(key), served_by: served.get(key) };
        revision::reconcile(revision, use_of, inputs, &mut writes);
    }
    for route in inputs.snapshot.routes.values() {
        route::reconcile(route, &hosts, inputs, &mut writes);
    }
    collect::reconcile(inputs, |key| given.contains(key) || served.contains_key(key), &mut writes);
    Outcome { writes: writes.made, placement }
}

/// The writes of a pass: one of each resource, the first that was asked for. A later one rests on what the first is about
/// to change.
#[derive(Default)]
struct Writes {
    made: Vec<Write>,
    touched: BTreeSet<(Kind, Key)>,
}

impl Writes {
    fn push(&mut self, write: Write) {
        let place = match &write {
            Write::Create(object) | Write::Update(object) => (object.kind(), object.key()),
            Write::Delete { kind, key, .. } => (*kind, key.clone()),
        };
        if self.touched.insert(place) {
            self.made.push(write);
        }
    }
}

/// The reference that makes `owner` the controller of what carries it.
fn controlled_by(kind: Kind, owner: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: API_VERSION.into(),
        block_owner_deletion: true,
        controller: true,
        kind: kind.name().into(),
        name: owner.name.clone(),
        uid: owner.uid.clone(),
    }
}

fn is_owned(child: &ObjectMeta, owner: &ObjectMeta) -> bool {
    child.controller().is_some_and(|controller| controller.uid == owner.uid)
}

/// The owner's annotations as its children carry them: without what a client keeps for itself.
fn inherited(annotations: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    const CLIENTS_OWN: &str = "kubectl.kubernetes.io/last-applied-configuration";
    annotations
        .iter()
        .filter(|(key, _)| *key != CLIENTS_OWN)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests;
