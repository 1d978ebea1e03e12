//! A service's life, step by step: what is made of it, what nodes' reports change, what goes.

mod random;

use serde_json::json;
use tombolo_api::meta::ConditionStatus::{False, True, Unknown};
use tombolo_api::report::RevisionPhase::{Failed, Preparing, Ready};
use tombolo_api::report::{InstanceReport, Tier};
use tombolo_api::serving::keys;

use crate::fixture::{Hub, condition, digest_of, labels, message, spec, with};
use crate::images::Resolution;
use crate::snapshot::{Key, Kind, Object};

const ONE: &str = "hub.tombolo/hello:1";
const TWO: &str = "hub.tombolo/hello:2";

/// A hub with one node, on which `hello` runs from the image [`ONE`].
fn serving() -> Hub {
    let mut hub = Hub::with_node();
    hub.image(ONE);
    hub.image(TWO);
    hub.apply("hello", spec(ONE)).unwrap();
    hub.run();
    hub
}

#[test]
fn a_service_makes_a_configuration_a_route_and_a_revision() {
    let mut hub = Hub::with_node();
    hub.image(ONE);
    let metadata = json!({ "name": "hello", "labels": { "team": "a" }, "annotations": { "note": "b",
        "kubectl.kubernetes.io/last-applied-configuration": "{}" } });
    let template = json!({ "metadata": { "labels": { "app": "x" }, "annotations": { "c": "d" } },
        "spec": { "containers": [{ "image": ONE }] } });
    hub.apply_with(metadata, json!({ "template": template })).unwrap();
    hub.settle();

    let (service, configuration, route) =
        (hub.service("hello"), hub.configuration("hello"), hub.route("hello"));
    let revision = hub.revision("hello-00001");
    let uid = service.metadata.uid.as_str();
    for (child, owner, kind) in [
        (&configuration.metadata, uid, "Service"),
        (&route.metadata, uid, "Service"),
        (&revision.metadata, configuration.metadata.uid.as_str(), "Configuration"),
    ] {
        let [reference] = child.owner_references.as_slice() else { panic!("{child:?}") };
        assert!(reference.controller && reference.block_owner_deletion);
        assert_eq!((reference.kind.as_str(), reference.uid.as_str()), (kind, owner));
        assert_eq!(
            (reference.name.as_str(), reference.api_version.as_str()),
            ("hello", "serving.knative.dev/v1")
        );
    }
    assert_eq!(route.metadata.labels, labels(&[(keys::SERVICE, "hello"), ("team", "a")]));
    let expected = [(keys::SERVICE, "hello"), (keys::SERVICE_UID, uid), ("team", "a")];
    assert_eq!(configuration.metadata.labels, labels(&expected));
    let signed = [("note", "b"), (keys::CREATOR, "admin"), (keys::LAST_MODIFIER, "admin")];
    assert_eq!(route.metadata.annotations, labels(&signed));
    assert_eq!(
        configuration.metadata.annotations,
        labels(&[&signed[..], &[(keys::ROUTES, "hello")]].concat())
    );
    let expected = [
        ("app", "x"),
        (keys::CONFIGURATION, "hello"),
        (keys::CONFIGURATION_GENERATION, "1"),
        (keys::CONFIGURATION_UID, configuration.metadata.uid.as_str()),
        (keys::ROUTING_STATE, "pending"),
        (keys::SERVICE, "hello"),
        (keys::SERVICE_UID, uid),
    ];
    assert_eq!(revision.metadata.labels, labels(&expected));
    assert_eq!(revision.metadata.annotation("c"), Some("d"));
    assert_eq!(revision.metadata.annotation(keys::CREATOR), Some("admin"));
    assert_eq!(
        revision.metadata.annotation("note"),
        None,
        "a Configuration's own metadata is not a Revision's"
    );
    assert_eq!(revision.spec, service.spec.template.spec);
    assert_eq!(route.spec.traffic[0].configuration_name, "hello");
}

#[test]
fn it_is_ready_when_a_node_says_so() {
    let mut hub = Hub::with_node();
    hub.image(ONE);
    hub.apply("hello", spec(ONE)).unwrap();
    hub.settle();
    let conditions = |hub: &Hub| hub.service("hello").status.conditions.clone();
    assert_eq!(condition(&conditions(&hub), "Ready").0, Unknown);
    assert_eq!(
        condition(&hub.revision("hello-00001").status.conditions, "Ready"),
        (Unknown, "Deploying".into())
    );
    assert_eq!(hub.service("hello").status.latest_created_revision_name, "hello-00001");
    assert_eq!(hub.service("hello").status.latest_ready_revision_name, "");
    hub.report("n1", &[("hello-00001", Preparing)]);
    hub.settle();
    assert_eq!(condition(&conditions(&hub), "Ready").0, Unknown);
    hub.report("n1", &[("hello-00001", Ready)]);
    hub.settle();

    let status = hub.service("hello").status.clone();
    let shown: Vec<_> = status.conditions.iter().map(|each| (each.kind.as_str(), each.status)).collect();
    assert_eq!(shown, [("ConfigurationsReady", True), ("Ready", True), ("RoutesReady", True)]);
    assert_eq!(status.url, "http://hello.default.localhost:8080");
    assert_eq!(status.address.unwrap().url, status.url);
    assert_eq!((status.observed_generation, status.latest_ready_revision_name.as_str()), (1, "hello-00001"));
    let [target] = status.traffic.as_slice() else { panic!() };
    assert_eq!(
        (target.revision_name.as_str(), target.latest_revision, target.percent),
        ("hello-00001", Some(true), Some(100))
    );
    assert_eq!(target.configuration_name, "", "a status names revisions only");

    let route = hub.route("hello").status.conditions.clone();
    let shown: Vec<_> =
        route.iter().map(|each| (each.kind.as_str(), each.status, each.reason.as_str())).collect();
    let expected = [
        ("AllTrafficAssigned", True, ""),
        ("CertificateProvisioned", True, "TLSNotEnabled"),
        ("IngressReady", True, ""),
        ("Ready", True, ""),
    ];
    assert_eq!(shown, expected);
    let revision = hub.revision("hello-00001");
    assert_eq!(revision.metadata.label(keys::ROUTING_STATE), Some("active"));
    assert_eq!(revision.metadata.annotation(keys::ROUTES), Some("hello"));
    assert_eq!(condition(&revision.status.conditions, "Active"), (True, String::new()));
    assert_eq!(revision.status.actual_replicas, Some(1));
}

#[test]
fn traffic_moves_to_a_new_revision_when_it_is_ready() {
    let mut hub = serving();
    assert_eq!(hub.candidates_on("n1", "hello"), [["hello-00001"]]);
    hub.apply("hello", spec(TWO)).unwrap();
    hub.settle();
    assert_eq!(hub.candidates_on("n1", "hello"), [["hello-00002", "hello-00001"]]);
    assert_eq!(hub.traffic("hello"), [("hello-00001".to_owned(), 100)]);
    assert_eq!(condition(&hub.service("hello").status.conditions, "Ready").0, Unknown);
    assert_eq!(hub.revision("hello-00002").metadata.label(keys::CONFIGURATION_GENERATION), Some("2"));
    hub.report("n1", &[("hello-00002", Ready)]);
    hub.settle();
    assert_eq!(hub.candidates_on("n1", "hello"), [["hello-00002"]]);
    assert_eq!(hub.revisions_on("n1"), ["hello-00002"]);
    assert_eq!(hub.traffic("hello"), [("hello-00002".to_owned(), 100)]);
    assert_eq!(condition(&hub.service("hello").status.conditions, "Ready").0, True);
    let old = hub.revision("hello-00001");
    assert_eq!(old.metadata.label(keys::ROUTING_STATE), Some("reserve"));
    assert_eq!(old.metadata.annotation(keys::ROUTES), None);
    assert_eq!(condition(&old.status.conditions, "Ready").0, True, "what was found out stays true");
    hub.report("n1", &[]);
    hub.settle();
    assert_eq!(
        condition(&hub.revision("hello-00001").status.conditions, "Active"),
        (False, "NoTraffic".into())
    );
    assert_eq!(condition(&hub.revision("hello-00001").status.conditions, "Ready").0, True);
}

#[test]
fn what_was_found_out_of_a_revision_stays_true() {
    let mut hub = serving();
    hub.apply("hello", spec(TWO)).unwrap();
    hub.settle();
    hub.report("n1", &[("hello-00002", Ready)]);
    hub.settle();
    hub.report("n1", &[]);
    hub.settle();
    let ready = |hub: &Hub, name: &str| condition(&hub.revision(name).status.conditions, "Ready");
    // Traffic comes back to the first, whose nodes have to get it anew.
    let mut back = spec(TWO);
    back["traffic"] = json!([{"revisionName": "hello-00001", "percent": 100}]);
    hub.apply("hello", back).unwrap();
    hub.settle();
    assert_eq!(ready(&hub, "hello-00001").0, True);
    assert_eq!(hub.traffic("hello"), [("hello-00001".to_owned(), 100)]);
    assert_eq!(hub.candidates_on("n1", "hello"), [["hello-00001", "hello-00002"]], "until it is ready there");
    // And leaves it again before any node has said a word.
    hub.apply("hello", spec(TWO)).unwrap();
    hub.settle();
    assert_eq!(ready(&hub, "hello-00001").0, True);
    // A node that cannot run it is believed.
    let mut back = spec(TWO);
    back["traffic"] = json!([{"revisionName": "hello-00001", "percent": 100}]);
    hub.apply("hello", back).unwrap();
    hub.settle();
    hub.report("n1", &[("hello-00001", Failed)]);
    hub.settle();
    assert_eq!(ready(&hub, "hello-00001"), (False, "ExitCode1".into()));
}

#[test]
fn a_revision_that_was_overtaken_says_so() {
    let mut hub = serving();
    hub.apply("hello", spec(TWO)).unwrap();
    hub.settle();
    let ready = |hub: &Hub| condition(&hub.revision("hello-00002").status.conditions, "Ready");
    assert_eq!(ready(&hub), (Unknown, "Deploying".into()));
    hub.apply("hello", spec(ONE)).unwrap();
    hub.settle();
    assert_eq!(ready(&hub), (Unknown, "Superseded".into()));
}

#[test]
fn a_revision_that_fails_leaves_traffic_where_it_was() {
    let mut hub = serving();
    hub.apply("hello", spec(TWO)).unwrap();
    hub.settle();
    hub.report("n1", &[("hello-00002", Failed)]);
    hub.settle();
    assert_eq!(hub.candidates_on("n1", "hello"), [["hello-00002", "hello-00001"]]);
    assert_eq!(hub.traffic("hello"), [("hello-00001".to_owned(), 100)]);
    let revision = hub.revision("hello-00002");
    assert_eq!(condition(&revision.status.conditions, "Ready"), (False, "ExitCode1".into()));
    let configuration = hub.configuration("hello");
    assert_eq!(condition(&configuration.status.conditions, "Ready"), (False, "RevisionFailed".into()));
    let text = "Revision \"hello-00002\" failed with message: On node n1: the program ended with code 1.";
    assert_eq!(message(&configuration.status.conditions, "Ready"), text);
    assert_eq!(configuration.status.latest_ready_revision_name, "hello-00001");
    assert_eq!(condition(&hub.service("hello").status.conditions, "Ready"), (False, "RevisionFailed".into()));
    assert_eq!(condition(&hub.route("hello").status.conditions, "Ready").0, True);
    // It is tried again on the node, and may recover.
    hub.report("n1", &[("hello-00002", Ready)]);
    hub.settle();
    assert_eq!(hub.traffic("hello"), [("hello-00002".to_owned(), 100)]);
}

#[test]
fn the_first_revision_that_fails_is_a_missing_one_to_the_route() {
    let mut hub = Hub::with_node();
    hub.image(ONE);
    hub.apply("hello", spec(ONE)).unwrap();
    hub.settle();
    hub.report_all(Failed);
    hub.settle();
    assert_eq!(
        condition(&hub.route("hello").status.conditions, "AllTrafficAssigned"),
        (False, "RevisionMissing".into())
    );
    assert_eq!(
        condition(&hub.service("hello").status.conditions, "RoutesReady"),
        (False, "RevisionMissing".into())
    );
    assert_eq!(hub.candidates_on("n1", "hello"), [["hello-00001"]], "the node still says why");
}

#[test]
fn one_ready_node_is_enough_and_one_failing_too_many() {
    let mut hub = serving();
    hub.node("n2", &[]);
    hub.settle();
    let ready = |hub: &Hub| condition(&hub.revision("hello-00001").status.conditions, "Ready");
    assert_eq!(ready(&hub).0, True);
    hub.report("n2", &[("hello-00001", Failed)]);
    hub.settle();
    assert_eq!(ready(&hub), (False, "ExitCode1".into()));
    assert_eq!(hub.traffic("hello"), [("hello-00001".to_owned(), 100)]);
    hub.connected("n2", false);
    hub.settle();
    assert_eq!(ready(&hub).0, True, "a node that is away does not judge");
    hub.connected("n1", false);
    hub.settle();
    assert_eq!(ready(&hub).0, True, "what was ready is, as far as anyone knows");
}

#[test]
fn images_are_resolved_once() {
    let mut hub = Hub::with_node();
    hub.images.insert(ONE.into(), Resolution::Missing("push it first".into()));
    hub.apply("hello", spec(ONE)).unwrap();
    hub.settle();
    let ready = |hub: &Hub| condition(&hub.revision("hello-00001").status.conditions, "Ready");
    assert_eq!(ready(&hub), (False, "ContainerMissing".into()));
    assert_eq!(message(&hub.revision("hello-00001").status.conditions, "Ready"), "push it first");
    assert!(hub.held("n1").is_empty());
    hub.images.insert(ONE.into(), Resolution::Unreachable("later".into()));
    hub.settle();
    assert_eq!(ready(&hub), (Unknown, "ResolvingDigests".into()));
    hub.images.insert(ONE.into(), Resolution::Resolved(digest_of("a")));
    hub.settle();
    let image = |hub: &Hub| hub.revision_on("n1", "hello-00001").unwrap().spec.containers[0].image.clone();
    assert_eq!(image(&hub), digest_of("a"));
    hub.images.insert(ONE.into(), Resolution::Resolved(digest_of("b")));
    hub.run();
    assert_eq!(image(&hub), digest_of("a"), "a Revision is immutable");
    assert_eq!(hub.revision("hello-00001").status.container_statuses[0].name, "user-container");
    assert_eq!(hub.revision("hello-00001").spec.containers[0].image, ONE);
    assert_eq!(ready(&hub).0, True);
}

#[test]
fn without_a_matching_node_the_condition_says_which_labels_are_wanted() {
    let mut hub = Hub::new();
    hub.image(ONE);
    let pressing =
        with(spec(ONE), &["template", "spec", "nodeSelector"], json!({ "line": "7", "role": "press" }));
    hub.apply("hello", pressing).unwrap();
    hub.apply("anywhere", spec(ONE)).unwrap();
    hub.settle();
    let text = |hub: &Hub, name: &str| message(&hub.revision(name).status.conditions, "ResourcesAvailable");
    assert!(text(&hub, "anywhere-00001").starts_with("No node is enrolled at this hub"));
    hub.node("n1", &[("line", "7")]);
    hub.settle();
    let conditions = hub.service("hello").status.conditions.clone();
    assert_eq!(
        condition(&hub.revision("hello-00001").status.conditions, "Ready"),
        (False, "NoNodeMatches".into())
    );
    assert!(message(&conditions, "Ready").contains("line=7,role=press"), "{conditions:?}");
    assert!(message(&conditions, "Ready").contains("tombolo get nodes"));
    hub.node("n1", &[("line", "7"), ("role", "press"), ("more", "x")]);
    hub.run();
    assert_eq!(condition(&hub.service("hello").status.conditions, "Ready").0, True);
}

#[test]
fn changed_children_are_put_right() {
    let mut hub = serving();
    let mut route = (*hub.route("hello")).clone();
    route.metadata.labels.insert("stray".into(), "x".into());
    route.spec.traffic.clear();
    hub.snapshot.put(Object::Route(route.into()));
    let mut configuration = (*hub.configuration("hello")).clone();
    configuration.metadata.annotations.insert("stray".into(), "x".into());
    configuration.metadata.labels.remove(keys::SERVICE);
    hub.snapshot.put(Object::Configuration(configuration.into()));
    hub.settle();
    assert_eq!(hub.route("hello").metadata.label("stray"), None);
    assert_eq!(hub.route("hello").spec.traffic.len(), 1);
    assert_eq!(hub.configuration("hello").metadata.annotation("stray"), None);
    assert_eq!(hub.configuration("hello").metadata.label(keys::SERVICE), Some("hello"));
    assert_eq!(hub.snapshot.revisions.len(), 1);
}

#[test]
fn what_someone_else_owns_is_left_alone() {
    let mut hub = Hub::with_node();
    hub.image(ONE);
    hub.apply("hello", spec(ONE)).unwrap();
    hub.settle();
    let mut route = (*hub.route("hello")).clone();
    route.metadata.owner_references.clear();
    hub.snapshot.put(Object::Route(route.into()));
    hub.apply(
        "hello",
        with(spec(ONE), &["traffic"], json!([{ "tag": "t", "percent": 100, "latestRevision": true }])),
    )
    .unwrap();
    hub.settle();
    assert_eq!(hub.route("hello").spec.traffic[0].tag, "");
    assert_eq!(condition(&hub.service("hello").status.conditions, "RoutesReady"), (False, "NotOwned".into()));
}

#[test]
fn a_change_of_traffic_alone_makes_no_revision() {
    let mut hub = serving();
    hub.apply("hello", spec(TWO)).unwrap();
    hub.run();
    let split = json!([{ "revisionName": "hello-00001", "percent": 30, "tag": "old" }, { "latestRevision": true, "percent": 70 }]);
    hub.apply("hello", with(spec(TWO), &["traffic"], split)).unwrap();
    hub.run();
    assert_eq!(hub.snapshot.revisions.len(), 2);
    assert_eq!(hub.traffic("hello"), [("hello-00001".to_owned(), 30), ("hello-00002".to_owned(), 70)]);
    assert_eq!(hub.route("hello").status.traffic[0].url, "http://old-hello.default.localhost:8080");
    assert_eq!(hub.revision("hello-00001").metadata.label(keys::ROUTING_STATE), Some("active"));
    assert_eq!(hub.service("hello").status.observed_generation, 3);
    let absent = json!([{ "revisionName": "hello-00009", "percent": 100 }]);
    hub.apply("hello", with(spec(TWO), &["traffic"], absent)).unwrap();
    hub.settle();
    let conditions = &hub.route("hello").status.conditions;
    assert_eq!(condition(conditions, "AllTrafficAssigned"), (False, "RevisionMissing".into()));
    assert_eq!(message(conditions, "Ready"), "Revision \"hello-00009\" referenced in traffic not found.");
    assert_eq!(
        hub.candidates_on("n1", "hello"),
        [["hello-00001"], ["hello-00002"]],
        "the last that was complete"
    );
}

#[test]
fn a_user_may_name_revisions_and_go_back_to_one() {
    let named =
        |image: &str, name: &str| with(spec(image), &["template", "metadata"], json!({ "name": name }));
    let mut hub = Hub::with_node();
    hub.image(ONE);
    hub.image(TWO);
    for (image, name) in [(ONE, "hello-a"), (TWO, "hello-b")] {
        hub.apply("hello", named(image, name)).unwrap();
        hub.run();
        assert_eq!(hub.traffic("hello"), [(name.to_owned(), 100)]);
    }
    hub.apply("hello", named(ONE, "hello-a")).unwrap();
    hub.run();
    assert_eq!(hub.traffic("hello"), [("hello-a".to_owned(), 100)]);
    assert_eq!(hub.revision("hello-a").metadata.label(keys::CONFIGURATION_GENERATION), Some("3"));
    assert_eq!(hub.snapshot.revisions.len(), 2);
    // The next one fails: traffic stays where it was, not where it once was.
    hub.apply("hello", named(TWO, "hello-c")).unwrap();
    hub.settle();
    hub.report("n1", &[("hello-c", Failed)]);
    hub.settle();
    assert_eq!(hub.traffic("hello"), [("hello-a".to_owned(), 100)]);
    // A name that is taken by another content.
    hub.apply("hello", named("hub.tombolo/hello:3", "hello-b")).unwrap();
    hub.settle();
    let conditions = &hub.service("hello").status.conditions;
    assert_eq!(condition(conditions, "ConfigurationsReady"), (False, "RevisionNameTaken".into()));
    assert_eq!(hub.traffic("hello"), [("hello-a".to_owned(), 100)]);
}

#[test]
fn going_back_to_a_named_revision_with_other_annotations_is_said_to_be_impossible() {
    let named = |image: &str, name: &str, max: &str, note: &str| {
        let annotations = json!({ "autoscaling.knative.dev/max-scale": max, "note": note });
        with(spec(image), &["template", "metadata"], json!({ "name": name, "annotations": annotations }))
    };
    let mut hub = Hub::with_node();
    hub.image(ONE);
    hub.image(TWO);
    for (image, name) in [(ONE, "hello-a"), (TWO, "hello-b")] {
        hub.apply("hello", named(image, name, "1", "")).unwrap();
        hub.run();
    }
    hub.apply("hello", named(ONE, "hello-a", "5", "")).unwrap();
    hub.run();
    let ready = |hub: &Hub| condition(&hub.service("hello").status.conditions, "ConfigurationsReady");
    assert_eq!(ready(&hub), (False, "RevisionNameTaken".into()));
    assert_eq!(hub.traffic("hello"), [("hello-b".to_owned(), 100)]);
    // What no node hears of makes no difference.
    hub.apply("hello", named(TWO, "hello-c", "1", "")).unwrap();
    hub.run();
    hub.apply("hello", named(ONE, "hello-a", "1", "x")).unwrap();
    hub.run();
    assert_eq!(ready(&hub).0, True);
    assert_eq!(hub.traffic("hello"), [("hello-a".to_owned(), 100)]);
}

#[test]
fn a_service_with_the_longest_name_may_split_its_traffic() {
    let mut hub = Hub::with_node();
    hub.image(ONE);
    hub.image(TWO);
    let service = "s".repeat(63);
    for image in [ONE, TWO] {
        hub.apply(&service, spec(image)).unwrap();
        hub.run();
    }
    let names: Vec<String> = hub.snapshot.revisions.keys().map(|key| key.name.clone()).collect();
    assert_eq!(names.len(), 2);
    assert!(names[0].ends_with("-00001") && names[1].ends_with("-00002"), "{names:?}");
    let split = names.iter().map(|name| json!({ "revisionName": name, "percent": 50 })).collect();
    hub.apply(&service, with(spec(TWO), &["traffic"], split)).unwrap();
    hub.run();
    assert_eq!(hub.traffic(&service), [(names[0].clone(), 50), (names[1].clone(), 50)]);
}

#[test]
fn a_deleted_service_takes_everything_with_it() {
    let mut hub = serving();
    hub.apply("other", spec(ONE)).unwrap();
    hub.run();
    hub.delete(Kind::Service, "hello");
    hub.settle();
    let names: Vec<String> = hub.snapshot.all().map(|object| object.metadata().name.clone()).collect();
    assert_eq!(names, ["other", "other", "other-00001", "other"]);
    assert_eq!(hub.revisions_on("n1"), ["other-00001"]);
    assert!(hub.route_on("n1", "hello").is_none());
}

#[test]
fn what_outlived_its_owner_goes() {
    let mut hub = serving();
    hub.snapshot.remove(Kind::Service, &Key::new("default", "hello"));
    hub.settle();
    assert_eq!(hub.snapshot.all().count(), 0);
    assert!(hub.held("n1").is_empty());
}

#[test]
fn old_revisions_are_collected_when_they_are_stale_beyond_the_newest_twenty() {
    let mut hub = serving();
    let mut kept = (*hub.revision("hello-00001")).clone();
    kept.metadata.annotations.insert(keys::NO_GC.into(), "true".into());
    hub.snapshot.put(Object::Revision(kept.into()));
    for number in 2..=30 {
        let image = format!("hub.tombolo/hello:{number}");
        hub.image(&image);
        hub.apply("hello", spec(&image)).unwrap();
        hub.run();
    }
    let left = |hub: &mut Hub| -> Vec<String> {
        hub.settle();
        hub.snapshot.revisions.keys().map(|key| key.name.clone()).collect()
    };
    assert_eq!(left(&mut hub).len(), 30, "all are new");
    hub.wait_hours(47);
    assert_eq!(left(&mut hub).len(), 30);
    hub.wait_hours(1);
    let names = left(&mut hub);
    let told = (names.len(), names[0].as_str(), names[1].as_str(), names[21].as_str());
    assert_eq!(told, (22, "hello-00001", "hello-00010", "hello-00030"));
    // One that traffic was on until now is as good as new.
    let pinned = json!([{ "revisionName": "hello-00010", "percent": 100 }]);
    let last = spec("hub.tombolo/hello:30");
    hub.apply("hello", with(last.clone(), &["traffic"], pinned)).unwrap();
    hub.run();
    hub.apply("hello", last).unwrap();
    hub.run();
    hub.image(ONE);
    hub.apply("hello", spec(ONE)).unwrap();
    hub.run();
    let names = left(&mut hub);
    assert_eq!((names.len(), names[1].as_str(), names[2].as_str()), (22, "hello-00010", "hello-00012"));
}

#[test]
fn a_configuration_without_a_service_is_tried_too() {
    let mut hub = serving();
    let mut alone = (*hub.configuration("hello")).clone();
    alone.metadata.name = "alone".into();
    alone.metadata.uid = "alone".into();
    alone.metadata.owner_references.clear();
    alone.metadata.labels.clear();
    alone.status = Default::default();
    hub.snapshot.put(Object::Configuration(alone.into()));
    hub.run();
    assert_eq!(hub.configuration("alone").status.latest_ready_revision_name, "alone-00001");
    let object = hub.revision_on("n1", "alone-00001").unwrap();
    assert_eq!((object.configuration.as_str(), object.service.as_str()), ("alone", ""));
    assert_eq!(hub.revision("alone-00001").metadata.label(keys::SERVICE), None);
}

#[test]
fn replicas_are_those_of_all_nodes_that_run() {
    let mut hub = serving();
    hub.node("n2", &[]);
    hub.settle();
    hub.report_all(Ready);
    let instance = |tier| InstanceReport { id: format!("{tier:?}"), tier, pid: 0, restarts: 0 };
    let told = |hub: &Hub| {
        let status = hub.revision("hello-00001").status.clone();
        let (active, reason) = condition(&status.conditions, "Active");
        (status.actual_replicas, status.desired_replicas, active, reason)
    };
    for (tiers, desired, expected) in [
        (&[Tier::Running, Tier::Primed, Tier::Starting][..], 2, (2, 4, True, "")),
        (&[Tier::Running], 0, (2, 0, True, "")),
        (&[Tier::Primed, Tier::Frozen], 0, (0, 0, False, "NoTraffic")),
        (&[Tier::Frozen, Tier::Starting], 1, (0, 2, Unknown, "Queued")),
        (&[], 0, (0, 0, False, "NoTraffic")),
    ] {
        for node in ["n1", "n2"] {
            let report = &mut hub.reported(node).revisions[0];
            report.desired = desired;
            report.instances = tiers.iter().copied().map(instance).collect();
        }
        hub.settle();
        let (actual, wanted, active, reason) = expected;
        assert_eq!(told(&hub), (Some(actual), Some(wanted), active, reason.to_owned()), "{tiers:?}");
        assert_eq!(condition(&hub.revision("hello-00001").status.conditions, "Ready").0, True);
    }
}

#[test]
fn what_never_became_ready_in_time_is_inactive_for_that_reason() {
    let mut hub = serving();
    hub.node("n2", &[]);
    hub.settle();
    let told = |hub: &Hub| {
        let conditions = hub.revision("hello-00001").status.conditions.clone();
        (condition(&conditions, "Active"), condition(&conditions, "Ready").0)
    };
    let word = |reason: &str| reason.to_owned();
    // Given up before it was ever ready: it is no riddle why nothing runs.
    hub.report_all(Failed);
    hub.settle();
    assert_eq!(told(&hub), ((Unknown, word("ExitCode1")), False));
    hub.reported("n2").revisions[0].timed_out = true;
    hub.settle();
    assert_eq!(told(&hub), ((False, word("TimedOut")), False));
    // A request has come, and it is tried again.
    hub.reported("n2").revisions[0].desired = 1;
    hub.settle();
    assert_eq!(told(&hub), ((Unknown, word("ExitCode1")), False));
    // It had been ready, and did not get ready for its next request.
    hub.report_all(Ready);
    for node in ["n1", "n2"] {
        hub.reported(node).revisions[0].instances.clear();
    }
    hub.settle();
    assert_eq!(told(&hub), ((False, word("NoTraffic")), True));
    hub.reported("n2").revisions[0].timed_out = true;
    hub.settle();
    assert_eq!(told(&hub), ((False, word("TimedOut")), True));
}

#[test]
fn what_a_node_lacks_and_what_crashes_is_said_and_stops_only_what_does_not_run() {
    let mut hub = serving();
    let short = "2 of 5 instances run: 64Mi of memory are left, and one takes 128Mi";
    for (phase, reason, healthy, available, ready) in [
        (Ready, "", (True, ""), (True, ""), True),
        (Ready, "InsufficientMemory", (True, ""), (False, "InsufficientMemory"), True),
        (Ready, "InsufficientInstances", (True, ""), (False, "InsufficientInstances"), True),
        (Ready, "OOMKilled", (False, "OOMKilled"), (True, ""), True),
        (Failed, "OOMKilled", (False, "OOMKilled"), (True, ""), False),
        (Failed, "InsufficientDevices", (True, ""), (False, "InsufficientDevices"), False),
        (Preparing, "InsufficientMemory", (True, ""), (False, "InsufficientMemory"), False),
    ] {
        for (phase, reason, message) in [(Ready, "", ""), (phase, reason, short)] {
            let report = &mut hub.reported("n1").revisions[0];
            (report.phase, report.reason, report.message) = (phase, reason.into(), message.into());
            hub.settle();
        }
        let conditions = hub.revision("hello-00001").status.conditions.clone();
        let told = |kind| condition(&conditions, kind);
        let as_told = |(status, reason): (_, &str)| (status, reason.to_owned());
        assert_eq!(told("ContainerHealthy"), as_told(healthy), "{phase:?} {reason}");
        assert_eq!(told("ResourcesAvailable"), as_told(available), "{phase:?} {reason}");
        assert_eq!(told("Ready").0, ready, "{phase:?} {reason}");
        if !reason.is_empty() {
            let kind = if reason == "OOMKilled" { "ContainerHealthy" } else { "ResourcesAvailable" };
            assert_eq!(message(&conditions, kind), format!("On node n1: {short}"));
        }
        assert_eq!(hub.traffic("hello"), [("hello-00001".to_owned(), 100)]);
    }
}

#[test]
fn the_younger_of_two_routes_with_one_host_says_so_and_is_not_served_under_it() {
    let mut hub = serving();
    let tagged = json!([{ "latestRevision": true, "percent": 100, "tag": "old" }]);
    hub.apply("old-hello", spec(ONE)).unwrap();
    hub.run();
    hub.apply("hello", with(spec(ONE), &["traffic"], tagged.clone())).unwrap();
    hub.run();
    let route = hub.route_on("n1", "hello").unwrap();
    assert_eq!(route.hosts, ["hello.default.localhost"], "the older one");
    assert_eq!(route.targets[0].hosts, ["old-hello.default.localhost"]);
    assert_eq!(condition(&hub.route("hello").status.conditions, "Ready").0, True);
    let conditions = hub.route("old-hello").status.conditions.clone();
    assert_eq!(condition(&conditions, "IngressReady"), (False, "HostConflict".into()));
    let text = "Route \"hello\", which is older, has the host old-hello.default.localhost: give this one another name.";
    assert_eq!(message(&conditions, "Ready"), text);
    assert!(hub.route_on("n1", "old-hello").is_none());
    hub.delete(Kind::Service, "hello");
    hub.run();
    assert_eq!(condition(&hub.route("old-hello").status.conditions, "Ready").0, True);
    assert_eq!(hub.route_on("n1", "old-hello").unwrap().hosts, ["old-hello.default.localhost"]);
    // Now the tag is the younger one's.
    hub.apply("hello", with(spec(ONE), &["traffic"], tagged)).unwrap();
    hub.run();
    let conditions = hub.route("hello").status.conditions.clone();
    assert_eq!(condition(&conditions, "Ready"), (False, "HostConflict".into()));
    let route = hub.route_on("n1", "hello").unwrap();
    assert_eq!(
        (route.hosts.len(), route.targets[0].hosts.len(), route.targets[0].tag.as_str()),
        (1, 0, "old")
    );
}
