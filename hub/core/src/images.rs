//! Which images have to be looked up, and what came out. Knows no registry.

use std::collections::{BTreeMap, BTreeSet};

use tombolo_api::serving::{Revision, RevisionSpec};

use crate::snapshot::Snapshot;

/// What is known of an image by the name a spec gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// `hub.tombolo/repository@sha256:…`
    Resolved(String),
    /// It is not there; the sentence says what to do. Not final: it may be pushed any time.
    Missing(String),
    /// It could not be looked up now.
    Unreachable(String),
}

/// Results by image name as written in specs.
pub type Images = BTreeMap<String, Resolution>;

/// The images whose resolution the next pass needs.
pub fn wanted(snapshot: &Snapshot) -> BTreeSet<String> {
    let behind = |observed: i64, generation: i64| observed != generation;
    let services = snapshot
        .services
        .values()
        .filter(|service| behind(service.status.observed_generation, service.metadata.generation))
        .map(|service| &service.spec.template.spec);
    let configurations = snapshot
        .configurations
        .values()
        .filter(|configuration| {
            behind(configuration.status.observed_generation, configuration.metadata.generation)
        })
        .map(|configuration| &configuration.spec.template.spec);
    let revisions =
        snapshot.revisions.values().filter(|revision| !is_pinned(revision)).map(|revision| &revision.spec);
    services.chain(configurations).chain(revisions).flat_map(images_of).collect()
}

/// Whether every container's image is known by digest.
pub fn is_pinned(revision: &Revision) -> bool {
    !revision.spec.containers.is_empty()
        && revision.spec.containers.iter().all(|container| pinned_image(revision, &container.name).is_some())
}

/// The image of one container by digest.
pub fn pinned_image<'a>(revision: &'a Revision, container: &str) -> Option<&'a str> {
    let found = revision.status.container_statuses.iter().find(|status| status.name == container)?;
    (!found.image_digest.is_empty()).then_some(found.image_digest.as_str())
}

fn images_of(spec: &RevisionSpec) -> impl Iterator<Item = String> + '_ {
    spec.containers.iter().map(|container| container.image.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Hub, spec};

    #[test]
    fn images_are_wanted_until_they_are_pinned() {
        let mut hub = Hub::with_node();
        hub.apply("a", spec("hub.tombolo/hello:1")).unwrap();
        assert_eq!(
            wanted(&hub.snapshot),
            BTreeSet::from(["hub.tombolo/hello:1".to_owned()]),
            "before the first pass"
        );
        hub.settle();
        assert_eq!(wanted(&hub.snapshot), BTreeSet::from(["hub.tombolo/hello:1".to_owned()]));
        hub.image("hub.tombolo/hello:1");
        hub.settle();
        assert_eq!(wanted(&hub.snapshot), BTreeSet::new());
        hub.apply("a", spec("hub.tombolo/hello:2")).unwrap();
        assert_eq!(wanted(&hub.snapshot), BTreeSet::from(["hub.tombolo/hello:2".to_owned()]));
    }
}
