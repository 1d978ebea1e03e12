//! A Configuration: stamps a Revision out of every generation of its template, and tells which is ready.

use std::sync::Arc;

use tombolo_api::Digest;
use tombolo_api::meta::ObjectMeta;
use tombolo_api::serving::{Configuration, ConfigurationStatus, Revision, keys};

use super::{Inputs, Write, Writes, controlled_by, is_owned};
use crate::conditions::{Conditions, Verdict};
use crate::placement::concerns_nodes;
use crate::snapshot::{Key, Kind, Object};
use crate::targets;

/// Longest name of a Revision: it stands in labels.
const NAME_MAX: usize = 63;
/// Digits of a digest in a name that was shortened, as many as Knative's.
const NAME_DIGITS: usize = 32;

pub(super) fn reconcile(configuration: &Arc<Configuration>, inputs: &Inputs<'_>, writes: &mut Writes) {
    let name = revision_name(configuration);
    let key = Key::of(&configuration.metadata).sibling(&name);
    let existing = inputs.snapshot.revisions.get(&key);
    let created = match existing {
        None => {
            writes.push(Write::Create(Object::Revision(Arc::new(stamp(configuration, &name, inputs.now)))));
            Verdict::unknown("", "")
        }
        Some(revision) if is_of(revision, configuration) => summary(revision),
        Some(_) => {
            let message = format!(
                "Revision \"{name}\" exists already and is of another template: give the template another name, or leave its name out."
            );
            Verdict::bad("RevisionNameTaken", message)
        }
    };
    let status = status(configuration, &name, &created, inputs);
    if status != configuration.status {
        let mut changed = Configuration::clone(configuration);
        changed.status = status;
        writes.push(Write::Update(Object::Configuration(Arc::new(changed))));
    }
}

/// The user's name for the Revision of the present generation, or `{configuration}-{generation}`.
fn revision_name(configuration: &Configuration) -> String {
    match configuration.spec.template.metadata.name.as_str() {
        "" => child_name(&configuration.metadata.name, &format!("-{:05}", configuration.metadata.generation)),
        chosen => chosen.to_owned(),
    }
}

/// `{parent}{suffix}`. If that is too long, a part of the parent and a digest of all of it stand for the parent, in Knative's
/// manner; `suffix` must leave room for the digest.
fn child_name(parent: &str, suffix: &str) -> String {
    if parent.len() + suffix.len() <= NAME_MAX {
        return format!("{parent}{suffix}");
    }
    let digits = &Digest::of(parent.as_bytes()).hex()[..NAME_DIGITS];
    let head = &parent[..NAME_MAX - NAME_DIGITS - suffix.len()];
    format!("{head}{digits}{suffix}")
}

/// Whether the Revision was stamped out of this template. A user who named Revisions may go back to one; then it is the content
/// that counts, all that nodes get to know of it.
fn is_of(revision: &Revision, configuration: &Configuration) -> bool {
    let template = &configuration.spec.template;
    // Its user may have changed the annotations of one that was stamped out of it.
    let runs_as_written = || for_nodes(&revision.metadata).eq(for_nodes(&template.metadata));
    is_owned(&revision.metadata, &configuration.metadata)
        && revision.spec == template.spec
        && (targets::generation(revision) == configuration.metadata.generation || runs_as_written())
}

fn for_nodes(metadata: &ObjectMeta) -> impl Iterator<Item = (&String, &String)> {
    metadata.annotations.iter().filter(|(key, _)| concerns_nodes(key))
}

fn stamp(configuration: &Configuration, name: &str, now: &str) -> Revision {
    let (template, owner) = (&configuration.spec.template, &configuration.metadata);
    let mut labels = template.metadata.labels.clone();
    labels.insert(keys::CONFIGURATION.into(), owner.name.clone());
    labels.insert(keys::CONFIGURATION_GENERATION.into(), owner.generation.to_string());
    labels.insert(keys::CONFIGURATION_UID.into(), owner.uid.clone());
    labels.insert(keys::ROUTING_STATE.into(), "pending".into());
    for key in [keys::SERVICE, keys::SERVICE_UID] {
        if let Some(value) = owner.label(key) {
            labels.insert(key.into(), value.to_owned());
        }
    }
    let mut annotations = template.metadata.annotations.clone();
    annotations.insert(keys::ROUTING_STATE_MODIFIED.into(), now.to_owned());
    // Whoever changed the Configuration last is who made this Revision.
    if let Some(modifier) = owner.annotation(keys::LAST_MODIFIER) {
        annotations.insert(keys::CREATOR.into(), modifier.to_owned());
    }
    let metadata = ObjectMeta {
        name: name.to_owned(),
        namespace: owner.namespace.clone(),
        labels,
        annotations,
        owner_references: vec![controlled_by(Kind::Configuration, owner)],
        ..ObjectMeta::default()
    };
    Revision::new(metadata, template.spec.clone())
}

/// What the latest Revision's readiness means for its Configuration.
fn summary(revision: &Revision) -> Verdict {
    let ready = Verdict::of(&revision.status.conditions, "Ready");
    if ready.is_bad() {
        let message = format!(
            "Revision \"{}\" failed with message: {}.",
            revision.metadata.name,
            ready.message.trim_end_matches('.')
        );
        return Verdict::bad("RevisionFailed", message);
    }
    if ready.is_good() { Verdict::good() } else { Verdict::unknown("", "") }
}

fn status(
    configuration: &Configuration,
    name: &str,
    created: &Verdict,
    inputs: &Inputs<'_>,
) -> ConfigurationStatus {
    let before = &configuration.status;
    let taken = created.reason == "RevisionNameTaken";
    let conditions = Conditions::new(&before.conditions, inputs.now).set("Ready", created).build();
    ConfigurationStatus {
        conditions,
        latest_created_revision_name: if taken {
            before.latest_created_revision_name.clone()
        } else {
            name.to_owned()
        },
        latest_ready_revision_name: latest_ready(configuration, inputs),
        observed_generation: configuration.metadata.generation,
    }
}

/// The newest Revision that is ready, the present one before all; the one known as such stays until a newer one is.
fn latest_ready(configuration: &Configuration, inputs: &Inputs<'_>) -> String {
    let owned = inputs
        .snapshot
        .revisions
        .values()
        .filter(|revision| is_owned(&revision.metadata, &configuration.metadata));
    let known = &configuration.status.latest_ready_revision_name;
    let usable = owned.filter(|revision| {
        revision.metadata.name == *known || Verdict::of(&revision.status.conditions, "Ready").is_good()
    });
    let newest =
        usable.max_by_key(|revision| (is_present(revision, configuration), targets::generation(revision)));
    newest.map_or(String::new(), |revision| revision.metadata.name.clone())
}

/// Whether a Revision is the one that its Configuration describes now.
pub(super) fn is_present(revision: &Revision, configuration: &Configuration) -> bool {
    revision.metadata.name == revision_name(configuration) && is_of(revision, configuration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_be_too_long_are_shortened_and_stay_different() {
        let parent = |length: usize| "a".repeat(length);
        assert_eq!(child_name("hello", "-00001"), "hello-00001");
        assert_eq!(child_name(&parent(57), "-00001"), parent(57) + "-00001");
        let digits = |parent: &str| Digest::of(parent.as_bytes()).hex()[..32].to_owned();
        for length in 58..=63 {
            let name = child_name(&parent(length), "-00001");
            assert_eq!(name, parent(25) + &digits(&parent(length)) + "-00001", "{length}");
            assert_eq!(name.len(), 63);
        }
        let other = parent(62) + "b";
        assert_ne!(child_name(&other, "-00001"), child_name(&parent(63), "-00001"));
        assert_ne!(child_name(&other, "-00001"), child_name(&other, "-00002"));
        assert_eq!(child_name(&other, "-9223372036854775807").len(), 63);
    }
}
