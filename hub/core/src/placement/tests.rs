//! What ends up on which node.

use serde_json::json;
use tombolo_api::meta::ConditionStatus::{False, True};
use tombolo_api::report::RevisionPhase::{Preparing, Ready};
use tombolo_api::serving::keys;

use super::*;
use crate::fixture::{Hub, condition, digest_of, message, spec, with};
use crate::snapshot::Object;

const ONE: &str = "hub.tombolo/hello:1";
const TWO: &str = "hub.tombolo/hello:2";

fn hub() -> Hub {
    let mut hub = Hub::new();
    hub.image(ONE);
    hub.image(TWO);
    hub
}

fn on(image: &str, line: &str) -> serde_json::Value {
    with(spec(image), &["template", "spec", "nodeSelector"], json!({ "line": line }))
}

#[test]
fn nodes_get_what_their_labels_match() {
    let mut hub = hub();
    hub.node("n1", &[("line", "1")]);
    hub.node("n2", &[("line", "2")]);
    let silent: tombolo_api::NodeId = "n3".parse().unwrap();
    hub.fleet.insert(silent.clone(), NodeState::enrolled(silent, 0));
    hub.apply("a", on(ONE, "1")).unwrap();
    hub.apply("b", on(TWO, "2")).unwrap();
    hub.apply("c", spec(ONE)).unwrap();
    hub.settle();
    for (node, revisions, routes) in [
        ("n1", &["a-00001", "c-00001"][..], [true, false, true]),
        ("n2", &["b-00001", "c-00001"], [false, true, true]),
        ("n3", &["c-00001"], [false, false, true]),
    ] {
        assert_eq!(hub.revisions_on(node), revisions, "{node}");
        assert_eq!(["a", "b", "c"].map(|name| hub.route_on(node, name).is_some()), routes, "{node}");
        let entries: Vec<_> = hub.held(node).into_iter().map(|encoded| encoded.entry).collect();
        assert!(entries.is_sorted_by(|a, b| a < b), "{node}: as a manifest's entries");
    }
}

#[test]
fn nodes_get_what_they_have_the_devices_for_and_keep_what_they_were_given() {
    let mut hub = hub();
    let asking = |count: u32| {
        let limits = json!({ "limits": { "a.example/x": count } });
        let mut asking = spec(ONE);
        asking["template"]["spec"]["containers"][0]["resources"] = limits;
        asking
    };
    hub.node("n1", &[]);
    hub.node("n2", &[]);
    hub.apply("one", asking(1)).unwrap();
    hub.apply("many", asking(3)).unwrap();
    hub.settle();
    let available = |hub: &Hub, name: &str| {
        let conditions = hub.revision(name).status.conditions.clone();
        (condition(&conditions, "ResourcesAvailable"), message(&conditions, "ResourcesAvailable"))
    };
    let (verdict, text) = available(&hub, "one-00001");
    assert_eq!(verdict, (False, "InsufficientDevices".into()));
    assert!(text.contains("a.example/x") && text.contains("tombolo get nodes"), "{text}");
    hub.reported("n2").info.capacity.insert("a.example/x".into(), 2);
    hub.settle();
    assert_eq!((hub.revisions_on("n1").len(), hub.revisions_on("n2")), (0, vec!["one-00001".to_owned()]));
    hub.report("n2", &[("one-00001", Ready)]);
    hub.settle();
    assert_eq!(available(&hub, "one-00001").0.0, True);
    hub.reported("n2").info.capacity.clear();
    hub.settle();
    assert_eq!(hub.revisions_on("n2"), ["one-00001"], "what runs stays when a plugin goes");
    assert_eq!(available(&hub, "many-00001").0, (False, "InsufficientDevices".into()));
}

#[test]
fn memory_that_no_single_gpu_of_a_node_has_is_not_there_though_the_sum_is() {
    const MEMORY: &str = "tombolo.dev/gpu-memory";
    let mut hub = hub();
    let mut asking = spec(ONE);
    asking["template"]["spec"]["containers"][0]["resources"] = json!({ "limits": { MEMORY: 6 } });
    for (node, all, largest) in [("halves", 8, Some(4)), ("uneven", 9, Some(5)), ("none", 0, None)] {
        hub.node(node, &[]);
        let info = &mut hub.reported(node).info;
        info.capacity.insert(MEMORY.into(), all);
        info.largest_piece.extend(largest.map(|piece| (MEMORY.to_owned(), piece)));
    }
    hub.apply("a", asking).unwrap();
    hub.settle();
    assert!(["halves", "uneven", "none"].iter().all(|node| hub.revisions_on(node).is_empty()));
    let conditions = hub.revision("a-00001").status.conditions.clone();
    assert_eq!(condition(&conditions, "ResourcesAvailable"), (False, "InsufficientDevices".into()));
    let text = message(&conditions, "ResourcesAvailable");
    let words =
        "one instance needs 6, all of one accelerator: the largest piece is 5 (of 9 in all), on node uneven";
    assert!(text.contains(words), "{text}");
    // One with a GPU that holds it, and one whose agent does not say how its devices are spread.
    hub.reported("halves").info.largest_piece.insert(MEMORY.into(), 6);
    hub.reported("none").info.capacity.insert(MEMORY.into(), 6);
    hub.settle();
    assert_eq!(["halves", "uneven", "none"].map(|node| hub.revisions_on(node).len()), [1, 0, 1]);
    hub.report("halves", &[("a-00001", Ready)]);
    hub.reported("halves").info.largest_piece.insert(MEMORY.into(), 4);
    hub.settle();
    assert_eq!(hub.revisions_on("halves"), ["a-00001"], "what runs stays");
}

#[test]
fn an_object_holds_what_running_takes_and_nothing_else() {
    let mut hub = hub();
    hub.node("n1", &[]);
    let annotations = json!({ "autoscaling.knative.dev/min-scale": "1", "serving.knative.dev/progress-deadline": "9s",
        "tombolo.dev/reaction": "fast", "mine": "z" });
    hub.apply("a", with(spec(ONE), &["template", "metadata"], json!({ "annotations": annotations })))
        .unwrap();
    hub.settle();
    let object = hub.revision_on("n1", "a-00001").unwrap();
    let names: Vec<&str> = object.annotations.keys().map(String::as_str).collect();
    let expected = [
        "autoscaling.knative.dev/min-scale",
        "serving.knative.dev/progress-deadline",
        "tombolo.dev/reaction",
    ];
    assert_eq!(names, expected);
    assert_eq!((object.service.as_str(), object.configuration.as_str()), ("a", "a"));
    assert_eq!(object.uid, hub.revision("a-00001").metadata.uid);
    assert_eq!(object.spec.containers[0].image, digest_of(ONE));
    assert_eq!(object.spec.timeout_s(), 300);

    // Becoming ready changes labels and statuses, and no object: nothing restarts.
    let before = hub.held("n1");
    hub.report_all(Ready);
    hub.settle();
    assert_eq!(hub.revision("a-00001").metadata.label(keys::ROUTING_STATE), Some("active"));
    assert_eq!(hub.held("n1"), before);
    let mut marked = (*hub.revision("a-00001")).clone();
    marked.metadata.annotations.insert("mine".into(), "other".into());
    hub.snapshot.put(Object::Revision(marked.into()));
    hub.settle();
    assert_eq!(hub.held("n1"), before);
}

#[test]
fn hosts_are_of_the_route_and_of_its_tags() {
    let mut hub = hub();
    hub.node("n1", &[]);
    let traffic = json!([{ "latestRevision": true, "percent": 100 }, { "latestRevision": true, "tag": "Next".to_lowercase() }]);
    hub.apply("a", with(spec(ONE), &["traffic"], traffic)).unwrap();
    hub.settle();
    let route = hub.route_on("n1", "a").unwrap();
    assert_eq!(route.hosts, ["a.default.localhost"]);
    assert_eq!(
        route.targets[0],
        RouteTarget {
            percent: 100,
            candidates: vec!["a-00001".into()],
            hosts: vec![],
            tag: String::new(),
            configuration: "a".into(),
        }
    );
    assert_eq!((route.targets[1].tag.as_str(), route.targets[1].configuration.as_str()), ("next", "a"));
    assert_eq!(route.targets[1].hosts, ["next-a.default.localhost"]);
    assert_eq!(route.targets[1].percent, 0);
}

#[test]
fn a_slow_node_serves_the_old_revision_until_it_has_the_new_one() {
    let mut hub = hub();
    hub.node("fast", &[]);
    hub.node("slow", &[]);
    hub.node("away", &[]);
    hub.apply("a", spec(ONE)).unwrap();
    hub.run();
    hub.connected("away", false);
    hub.apply("a", spec(TWO)).unwrap();
    hub.settle();
    hub.report("slow", &[("a-00002", Preparing)]);
    hub.report("fast", &[("a-00002", Ready)]);
    hub.settle();
    assert_eq!(hub.traffic("a"), [("a-00002".to_owned(), 100)]);
    assert_eq!(hub.candidates_on("fast", "a"), [["a-00002"]]);
    for node in ["slow", "away"] {
        assert_eq!(hub.candidates_on(node, "a"), [["a-00002", "a-00001"]], "{node}");
        assert_eq!(hub.revisions_on(node), ["a-00001", "a-00002"], "{node}");
    }
    hub.report("slow", &[("a-00002", Ready)]);
    hub.settle();
    assert_eq!(hub.candidates_on("slow", "a"), [["a-00002"]]);
    assert_eq!(hub.revisions_on("slow"), ["a-00002"]);
}

#[test]
fn going_back_to_an_old_revision_leaves_no_gap() {
    // A tag on a revision is that revision or nothing.
    for (target, candidates) in [
        (json!({ "revisionName": "a-00001", "percent": 100 }), &["a-00001", "a-00002"][..]),
        (json!({ "revisionName": "a-00001", "percent": 100, "tag": "old" }), &["a-00001"]),
    ] {
        let mut hub = hub();
        hub.node("n1", &[]);
        for image in [ONE, TWO] {
            hub.apply("a", spec(image)).unwrap();
            hub.run();
        }
        hub.report_all(Ready);
        hub.apply("a", with(spec(TWO), &["traffic"], json!([target]))).unwrap();
        hub.settle();
        assert_eq!(hub.candidates_on("n1", "a"), [candidates]);
        hub.report("n1", &[("a-00001", Ready)]);
        hub.settle();
        assert_eq!(hub.candidates_on("n1", "a"), [["a-00001"]]);
        assert_eq!(hub.traffic("a"), [("a-00001".to_owned(), 100)]);
    }
}

#[test]
fn a_service_moves_to_another_node_when_it_is_ready_there() {
    let mut hub = hub();
    hub.node("n1", &[("line", "1")]);
    hub.node("n2", &[("line", "2")]);
    hub.apply("a", on(ONE, "1")).unwrap();
    hub.run();
    hub.apply("a", on(ONE, "2")).unwrap();
    hub.settle();
    assert_eq!(
        (hub.revisions_on("n1"), hub.revisions_on("n2")),
        (vec!["a-00001".into()], vec!["a-00002".into()])
    );
    assert_eq!(hub.candidates_on("n1", "a"), [["a-00001"]]);
    hub.run();
    assert!(hub.held("n1").is_empty());
    assert_eq!(hub.candidates_on("n2", "a"), [["a-00002"]]);
}

#[test]
fn shares_of_targets_that_are_elsewhere_go_to_those_that_are_here() {
    let mut hub = hub();
    hub.node("n1", &[("line", "1")]);
    hub.apply("a", spec(ONE)).unwrap();
    hub.run();
    hub.apply("a", on(TWO, "1")).unwrap();
    hub.run();
    let split =
        json!([{ "revisionName": "a-00001", "percent": 75 }, { "revisionName": "a-00002", "percent": 25 }]);
    hub.apply("a", with(on(TWO, "1"), &["traffic"], split)).unwrap();
    hub.node("n2", &[]);
    hub.run();
    let percents = |hub: &Hub, node| {
        hub.route_on(node, "a").unwrap().targets.iter().map(|target| target.percent).collect::<Vec<_>>()
    };
    assert_eq!(percents(&hub, "n1"), [75, 25]);
    assert_eq!(percents(&hub, "n2"), [100]);
}

#[test]
fn percentages_sum_to_a_hundred() {
    let target = |percent| RouteTarget {
        percent,
        candidates: vec![],
        hosts: vec![],
        tag: String::new(),
        configuration: String::new(),
    };
    for (given, expected) in [
        (&[100][..], &[100][..]),
        (&[1, 1, 1], &[34, 33, 33]),
        (&[10, 0, 20], &[33, 0, 67]),
        (&[1, 98], &[1, 99]),
        (&[50, 50], &[50, 50]),
    ] {
        let mut targets: Vec<RouteTarget> = given.iter().copied().map(target).collect();
        assert!(rescale(&mut targets));
        assert_eq!(targets.iter().map(|target| target.percent).collect::<Vec<u8>>(), expected, "{given:?}");
    }
    assert!(!rescale(&mut [target(0)]));
}
