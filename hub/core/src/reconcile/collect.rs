//! What nobody needs any more: old Revisions, and whatever outlived its owner.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tombolo_api::serving::{Revision, keys};

use super::configuration::generation_of;
use super::{Inputs, Write, Writes};
use crate::snapshot::{Key, Kind};

/// Old Revisions kept of each Configuration, to roll back to. Knative keeps as many, and those of the last 48 hours too.
const KEPT: usize = 20;

pub(super) fn reconcile(inputs: &Inputs<'_>, writes: &mut Writes) {
    orphans(inputs, writes);
    old_revisions(inputs, writes);
}

/// A deletion takes what is owned with it; this is for what was made of a resource that went meanwhile.
fn orphans(inputs: &Inputs<'_>, writes: &mut Writes) {
    let uids: BTreeSet<String> = inputs.snapshot.all().map(|object| object.metadata().uid.clone()).collect();
    for object in inputs.snapshot.all() {
        let metadata = object.metadata();
        if metadata.controller().is_some_and(|owner| !uids.contains(&owner.uid)) {
            writes.push(Write::Delete { kind: object.kind(), key: object.key(), uid: metadata.uid.clone() });
        }
    }
}

fn old_revisions(inputs: &Inputs<'_>, writes: &mut Writes) {
    let mut idle: BTreeMap<&str, Vec<&Arc<Revision>>> = BTreeMap::new();
    for (key, revision) in &inputs.snapshot.revisions {
        let Some(owner) = revision.metadata.controller() else { continue };
        if !is_needed(key, revision, inputs) {
            idle.entry(&owner.uid).or_default().push(revision);
        }
    }
    for revisions in idle.values_mut() {
        revisions.sort_by_key(|revision| std::cmp::Reverse(generation_of(revision)));
        for revision in revisions.iter().skip(KEPT) {
            let metadata = &revision.metadata;
            writes.push(Write::Delete {
                kind: Kind::Revision,
                key: Key::of(metadata),
                uid: metadata.uid.clone(),
            });
        }
    }
}

fn is_needed(key: &Key, revision: &Revision, inputs: &Inputs<'_>) -> bool {
    let latest = revision.metadata.controller().is_some_and(|owner| {
        inputs.snapshot.configurations.get(&key.sibling(&owner.name)).is_some_and(|configuration| {
            let status = &configuration.status;
            status.latest_created_revision_name == key.name || status.latest_ready_revision_name == key.name
        })
    });
    latest
        || revision.metadata.label(keys::ROUTING_STATE) == Some("pending")
        || revision.metadata.annotation(keys::NO_GC) == Some("true")
        || inputs.snapshot.revision_in_use(key).is_some()
}
