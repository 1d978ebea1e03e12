//! Signatures of images: whose have to be looked up, what of them goes to nodes. Knows no registry and no cryptography.
//!
//! A Revision's status keeps what was found, beside the digest it belongs to: a registry that is away takes nothing back. In a
//! namespace that demands signatures a new Revision's image counts as known only when they have been looked up, so that no
//! node judges an image by what nobody has asked for yet.

use std::collections::{BTreeMap, BTreeSet};

use tombolo_api::serving::{Container, ContainerStatus, Revision};
use tombolo_api::verification::{ImageSignatures, Policy, Trust, TrustedKey, Verification};

use crate::conditions::Verdict;
use crate::images::{Images, Resolution, pinned_image};
use crate::reconcile::Inputs;
use crate::snapshot::Snapshot;

/// What namespaces demand; those that demand nothing are not in it.
pub type Demands = BTreeMap<String, Trust>;

/// What came of looking for one image's signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Collected {
    /// There may be none.
    Found(ImageSignatures),
    /// They could not be looked up now, in words.
    Unreachable(String),
}

/// By image, with its digest.
pub type Collection = BTreeMap<String, Collected>;

/// An image whose signatures are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Of all namespaces that have it.
    pub keys: BTreeSet<TrustedKey>,
    /// What was found before.
    pub known: ImageSignatures,
}

/// The images whose signatures the next pass needs, by digest.
pub fn wanted(snapshot: &Snapshot, images: &Images, demands: &Demands) -> BTreeMap<String, Wanted> {
    let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
    for revision in snapshot.revisions.values() {
        let Some(trust) = demands.get(&revision.metadata.namespace) else { continue };
        for container in &revision.spec.containers {
            let Some(image) = image_of(revision, container, images) else { continue };
            let entry = wanted.entry(image).or_default();
            entry.keys.extend(trust.keys.iter().cloned());
            if let Some(known) = known(revision, &container.name) {
                entry.known = known.clone();
            }
        }
    }
    wanted
}

/// What a Revision says of one container's image, after what has been looked up.
pub(crate) fn container_status(
    revision: &Revision,
    container: &Container,
    inputs: &Inputs<'_>,
) -> Option<ContainerStatus> {
    let is_pinned = pinned_image(revision, &container.name).is_some();
    let image_digest = image_of(revision, container, inputs.images)?;
    let before = known(revision, &container.name).cloned();
    let policy = inputs.demands.get(&revision.metadata.namespace).map(|trust| trust.policy);
    let signatures = match (policy, inputs.signatures.get(&image_digest)) {
        (None, _) => before,
        (Some(_), Some(Collected::Found(found))) => Some(found.clone()),
        (Some(policy), Some(Collected::Unreachable(_))) if is_pinned || policy == Policy::Warn => {
            Some(before.unwrap_or_default())
        }
        (Some(_), _) if is_pinned => before,
        (Some(_), _) => return None,
    };
    Some(ContainerStatus { name: container.name.clone(), image_digest, signatures })
}

/// Why an image whose digest has been found does not count as known yet.
pub(crate) fn awaited(image: &str, inputs: &Inputs<'_>) -> Verdict {
    match inputs.signatures.get(image) {
        Some(Collected::Unreachable(why)) => {
            Verdict::unknown("SignaturesUnreachable", format!("its namespace requires signatures: {why}"))
        }
        _ => Verdict::unknown("ResolvingDigests", ""),
    }
}

/// What nodes are given to judge a Revision's images by; nothing where nothing is demanded, or was looked up yet.
pub(crate) fn verification(revision: &Revision, demands: &Demands) -> Option<Verification> {
    let Trust { policy, keys } = demands.get(&revision.metadata.namespace)?.clone();
    let mut signatures = ImageSignatures::default();
    for status in &revision.status.container_statuses {
        let ImageSignatures { found, passed_over } = status.signatures.clone()?;
        signatures.found.extend(found);
        signatures.passed_over.extend(passed_over);
    }
    Some(Verification { policy, keys, signatures })
}

fn image_of(revision: &Revision, container: &Container, images: &Images) -> Option<String> {
    if let Some(pinned) = pinned_image(revision, &container.name) {
        return Some(pinned.to_owned());
    }
    match images.get(&container.image) {
        Some(Resolution::Resolved(digest)) => Some(digest.clone()),
        _ => None,
    }
}

fn known<'a>(revision: &'a Revision, container: &str) -> Option<&'a ImageSignatures> {
    let mut statuses = revision.status.container_statuses.iter();
    statuses.find(|status| status.name == container)?.signatures.as_ref()
}

#[cfg(test)]
mod tests {
    use tombolo_api::meta::ConditionStatus;
    use tombolo_api::report::RevisionPhase;
    use tombolo_api::verification::ImageSignature;

    use super::*;
    use crate::fixture::{Hub, condition, message, spec};

    fn key(name: &str) -> TrustedKey {
        TrustedKey { name: name.into(), pem: name.into() }
    }

    fn trust(policy: Policy, keys: &[&str]) -> Trust {
        Trust { policy, keys: keys.iter().map(|name| key(name)).collect() }
    }

    fn found(signatures: &[&str]) -> Collected {
        let signature = |text: &&str| ImageSignature {
            payload: (*text).into(),
            signature: "s".into(),
            payload_type: String::new(),
        };
        let found = signatures.iter().map(signature).collect();
        Collected::Found(ImageSignatures { found, passed_over: vec![] })
    }

    fn deployed(demand: Option<Trust>) -> Hub {
        let mut hub = Hub::with_node();
        hub.image("hub.tombolo/hello:1");
        hub.demands.extend(demand.map(|trust| ("default".to_owned(), trust)));
        hub.apply("a", spec("hub.tombolo/hello:1")).unwrap();
        hub.settle();
        hub
    }

    fn image(hub: &Hub) -> String {
        let wanted = wanted(&hub.snapshot, &hub.images, &hub.demands);
        wanted.into_keys().next().expect("its signatures are wanted")
    }

    fn payloads(hub: &Hub) -> Option<Vec<String>> {
        let verification = hub.revision_on("n1", "a-00001").expect("the node has it").verification?;
        Some(verification.signatures.found.into_iter().map(|found| found.payload).collect())
    }

    #[test]
    fn nothing_is_asked_where_nothing_is_demanded() {
        let hub = deployed(None);
        assert!(wanted(&hub.snapshot, &hub.images, &hub.demands).is_empty());
        assert_eq!(payloads(&hub), None);
    }

    #[test]
    fn a_new_revision_waits_until_its_signatures_were_looked_up() {
        let mut hub = deployed(Some(trust(Policy::Require, &["k"])));
        assert_eq!(hub.revisions_on("n1"), [""; 0]);
        let image = image(&hub);
        assert!(image.contains("@sha256:"), "{image}");
        hub.signatures.insert(image.clone(), Collected::Unreachable("no route".into()));
        hub.settle();
        assert_eq!(hub.revisions_on("n1"), [""; 0]);
        let conditions = &hub.revision("a-00001").status.conditions;
        assert_eq!(condition(conditions, "Ready").0, ConditionStatus::Unknown);
        assert!(message(conditions, "Ready").contains("no route"), "{conditions:?}");
        hub.signatures.insert(image, found(&[]));
        hub.run();
        assert_eq!(payloads(&hub), Some(vec![]));
    }

    #[test]
    fn signatures_that_come_later_reach_the_node() {
        let mut hub = deployed(Some(trust(Policy::Require, &["k"])));
        let image = image(&hub);
        hub.signatures.insert(image.clone(), found(&[]));
        hub.settle();
        hub.report_all(RevisionPhase::Failed);
        hub.settle();
        assert_eq!(payloads(&hub), Some(vec![]));
        hub.signatures.insert(image.clone(), found(&["one"]));
        hub.settle();
        assert_eq!(payloads(&hub), Some(vec!["one".into()]));
        // The registry is away, or the hub starts again: what was found stays.
        for away in [Some(Collected::Unreachable("x".into())), None] {
            hub.signatures.remove(&image);
            hub.signatures.extend(away.map(|away| (image.clone(), away)));
            hub.settle();
            assert_eq!(payloads(&hub), Some(vec!["one".into()]));
        }
        let known = wanted(&hub.snapshot, &hub.images, &hub.demands).remove(&image).unwrap().known;
        assert_eq!(known.found[0].payload, "one");
    }

    #[test]
    fn a_demand_reaches_what_runs_once_its_signatures_were_looked_up() {
        let mut hub = deployed(None);
        hub.run();
        assert_eq!(payloads(&hub), None);
        hub.demands.insert("default".into(), trust(Policy::Require, &["k"]));
        hub.settle();
        assert_eq!(payloads(&hub), None, "nobody has looked yet");
        let image = image(&hub);
        // A registry that cannot be asked does not keep the demand from nodes.
        hub.signatures.insert(image.clone(), Collected::Unreachable("x".into()));
        hub.settle();
        assert_eq!(payloads(&hub), Some(vec![]));
        hub.signatures.insert(image, found(&["one"]));
        hub.settle();
        assert_eq!(payloads(&hub), Some(vec!["one".into()]));
        hub.demands.clear();
        hub.settle();
        assert_eq!(payloads(&hub), None);
    }

    #[test]
    fn a_warning_waits_for_no_registry() {
        let mut hub = deployed(Some(trust(Policy::Warn, &["k"])));
        let image = image(&hub);
        hub.signatures.insert(image, Collected::Unreachable("x".into()));
        hub.settle();
        assert_eq!(payloads(&hub), Some(vec![]));
    }

    #[test]
    fn one_image_is_looked_up_with_the_keys_of_all_who_have_it() {
        let mut hub = deployed(Some(trust(Policy::Require, &["k", "l"])));
        let mut copy = Revision::clone(&hub.revision("a-00001"));
        copy.metadata.namespace = "other".into();
        hub.snapshot.put(crate::Object::Revision(copy.into()));
        hub.demands.insert("other".into(), trust(Policy::Warn, &["l", "m"]));
        let wanted = wanted(&hub.snapshot, &hub.images, &hub.demands);
        let keys: Vec<_> = wanted.values().map(|wanted| wanted.keys.clone()).collect();
        assert_eq!(keys, [["k", "l", "m"].map(key).into()]);
    }
}
