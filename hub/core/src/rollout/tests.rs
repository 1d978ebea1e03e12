//! Traffic that nodes move in steps: what they keep meanwhile, what is said of it, and what a node that went back keeps.

use serde_json::json;
use tombolo_api::desired::{HeaderMatch, HealthGate, RolloutSpec};
use tombolo_api::meta::ConditionStatus::{False, True, Unknown};
use tombolo_api::report::RevisionPhase::{Failed, Ready};
use tombolo_api::serving::keys;

use crate::fixture::{Hub, condition, message, spec, with};
use crate::snapshot::{Key, Kind};

fn image(number: usize) -> String {
    format!("hub.tombolo/hello:{number}")
}

/// A hub whose connected nodes serve `hello-00001`, and move traffic over two minutes.
fn serving(nodes: &[&str]) -> Hub {
    let mut hub = Hub::new();
    for node in nodes {
        hub.node(node, &[]);
    }
    update(&mut hub, 1);
    hub.run();
    for node in nodes {
        hub.moving(node, "hello", "hello-00001", &[("hello-00001", 100)]);
    }
    hub.settle();
    hub
}

/// Applies the service with its image of this number.
fn update(hub: &mut Hub, number: usize) {
    hub.image(&image(number));
    let metadata = json!({ "name": "hello", "annotations": { keys::ROLLOUT_DURATION: "2m" } });
    hub.apply_with(metadata, spec(&image(number))).unwrap();
}

fn ready(hub: &Hub) -> (tombolo_api::meta::ConditionStatus, String) {
    condition(&hub.route("hello").status.conditions, "Ready")
}

#[test]
fn nodes_are_told_how_traffic_moves() {
    let gate =
        |max_error_percent| HealthGate { max_error_percent, max_latency_percent: 200, min_requests: 20 };
    for (more, gate) in [
        (json!({}), Some(gate(5))),
        (json!({ keys::HEALTH_GATE: "off" }), None),
        (json!({ keys::GATE_MAX_ERROR_PERCENT: "1" }), Some(gate(1))),
    ] {
        let mut hub = Hub::with_node();
        hub.image(&image(1));
        let mut annotations = json!({ keys::ROLLOUT_DURATION: "2m" });
        annotations.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        hub.apply_with(json!({ "name": "hello", "annotations": annotations }), spec(&image(1))).unwrap();
        hub.settle();
        assert_eq!(hub.route_on("n1", "hello").unwrap().rollout, Some(RolloutSpec { duration_s: 120, gate }));
    }
}

#[test]
fn nodes_are_told_of_rules_whose_tag_is_there() {
    let mut hub = Hub::with_node();
    hub.image(&image(1));
    let rules =
        r#"[{"header":"User-Agent","regex":"iPhone","tag":"next"},{"header":"x","exact":"y","tag":"far"}]"#;
    let metadata = json!({ "name": "hello", "annotations": { keys::STEERING: rules } });
    let traffic = json!([{ "latestRevision": true, "percent": 100 }, { "latestRevision": true, "tag": "next" },
        { "latestRevision": true, "tag": "far" }]);
    hub.apply_with(metadata, with(spec(&image(1)), &["traffic"], traffic)).unwrap();
    hub.settle();
    let route = hub.route_on("n1", "hello").unwrap();
    let told: Vec<_> = route.steering.iter().map(|it| (it.header.as_str(), it.tag.as_str())).collect();
    assert_eq!(told, [("user-agent", "next"), ("x", "far")]);
    assert_eq!(route.steering[0].value, HeaderMatch::Regex("iPhone".into()));
    assert_eq!(route.rollout, None);
}

#[test]
fn a_node_keeps_the_former_revision_until_the_next_has_everything() {
    let mut hub = serving(&["n1"]);
    update(&mut hub, 2);
    hub.settle();
    assert_eq!(hub.candidates_on("n1", "hello"), [["hello-00002", "hello-00001"]]);
    assert_eq!(ready(&hub).0, True, "nothing moves before the next is ready");
    hub.report_all(Ready);
    for share in [0, 1, 50, 99] {
        hub.moving("n1", "hello", "hello-00002", &[("hello-00001", 100 - share), ("hello-00002", share)]);
        hub.settle();
        assert_eq!(hub.traffic("hello"), [("hello-00002".to_owned(), 100)], "a status tells the goal");
        assert_eq!(hub.candidates_on("n1", "hello"), [["hello-00002", "hello-00001"]]);
        assert_eq!(ready(&hub), (Unknown, "RolloutInProgress".into()));
        let conditions = hub.route("hello").status.conditions.clone();
        assert_eq!(condition(&conditions, "IngressReady"), (Unknown, "RolloutInProgress".into()));
        let text = format!("On node n1 Revision \"hello-00002\" has {share} percent of the traffic so far.");
        assert_eq!(message(&conditions, "Ready"), text);
        let former = hub.revision("hello-00001");
        assert_eq!(former.metadata.label(keys::ROUTING_STATE), Some("active"));
        assert_eq!(former.metadata.annotation(keys::ROUTES), Some("hello"));
        assert_eq!(condition(&former.status.conditions, "Ready").0, True);
    }
    hub.moving("n1", "hello", "hello-00002", &[("hello-00002", 100)]);
    hub.settle();
    assert_eq!(hub.candidates_on("n1", "hello"), [["hello-00002"]]);
    assert_eq!(hub.revisions_on("n1"), ["hello-00002"]);
    assert_eq!(ready(&hub).0, True);
    assert_eq!(hub.revision("hello-00001").metadata.label(keys::ROUTING_STATE), Some("reserve"));
    assert_eq!(condition(&hub.service("hello").status.conditions, "Ready").0, True);
}

#[test]
fn a_node_that_tells_nothing_of_its_routes_keeps_the_former_revision() {
    let mut hub = serving(&["n1"]);
    hub.reported("n1").routes.clear();
    update(&mut hub, 2);
    hub.run();
    hub.run();
    assert_eq!(hub.candidates_on("n1", "hello"), [["hello-00002", "hello-00001"]]);
    assert_eq!(ready(&hub).0, True);
    update(&mut hub, 3);
    hub.run();
    hub.run();
    assert_eq!(hub.candidates_on("n1", "hello"), [["hello-00003", "hello-00002"]], "one is enough");
    hub.moving("n1", "hello", "hello-00003", &[("hello-00003", 100)]);
    hub.settle();
    assert_eq!(hub.candidates_on("n1", "hello"), [["hello-00003"]]);
}

#[test]
fn a_newer_revision_finds_all_that_still_serve() {
    let mut hub = serving(&["n1"]);
    update(&mut hub, 2);
    hub.run();
    hub.moving("n1", "hello", "hello-00002", &[("hello-00001", 70), ("hello-00002", 30)]);
    update(&mut hub, 3);
    hub.settle();
    let expected = [["hello-00003", "hello-00002", "hello-00001"]];
    assert_eq!(hub.candidates_on("n1", "hello"), expected);
    hub.report_all(Ready);
    let shares = [("hello-00001", 70), ("hello-00002", 29), ("hello-00003", 1)];
    hub.moving("n1", "hello", "hello-00003", &shares);
    hub.settle();
    assert_eq!(hub.candidates_on("n1", "hello"), expected);
    hub.moving("n1", "hello", "hello-00003", &[("hello-00001", 40), ("hello-00002", 0), ("hello-00003", 60)]);
    hub.settle();
    assert_eq!(hub.candidates_on("n1", "hello"), [["hello-00003", "hello-00001"]]);
}

#[test]
fn a_node_that_went_back_keeps_what_it_went_back_to_and_the_route_says_so() {
    let mut hub = serving(&["n1", "n2"]);
    update(&mut hub, 2);
    hub.run();
    hub.moving("n2", "hello", "hello-00002", &[("hello-00002", 100)]);
    hub.went_back("n1", "hello", "hello-00002", "hello-00001", "ErrorRateTooHigh");
    hub.settle();
    assert_eq!(hub.candidates_on("n1", "hello"), [["hello-00002", "hello-00001"]]);
    assert_eq!(hub.candidates_on("n2", "hello"), [["hello-00002"]]);
    assert_eq!(ready(&hub), (False, "ErrorRateTooHigh".into()));
    let text =
        "On node n1 the traffic was taken back from Revision \"hello-00002\": 31 % of 40 answers were errors";
    let service = hub.service("hello");
    assert_eq!(message(&service.status.conditions, "Ready"), text);
    assert_eq!(condition(&service.status.conditions, "RoutesReady"), (False, "ErrorRateTooHigh".into()));
    // It stays so, whatever time passes and whether the node is there.
    hub.connected("n1", false);
    hub.wait_hours(200);
    hub.settle();
    assert_eq!(ready(&hub), (False, "ErrorRateTooHigh".into()));
    assert_eq!(hub.candidates_on("n1", "hello"), [["hello-00002", "hello-00001"]]);
    hub.connected("n1", true);
    // The next revision does not go by way of the one that was refused, nor does it answer for it.
    update(&mut hub, 3);
    for _ in 0..6 {
        let outcome = hub.pass();
        outcome.writes.into_iter().for_each(|write| hub.write(write));
        let service = hub.service("hello");
        if service.status.observed_generation == service.metadata.generation {
            assert_ne!(condition(&service.status.conditions, "Ready").0, False);
        }
    }
    hub.settle();
    assert_eq!(ready(&hub), (Unknown, "RolloutInProgress".into()));
    assert_eq!(hub.candidates_on("n1", "hello"), [["hello-00003", "hello-00001"]]);
    hub.run();
    for node in ["n1", "n2"] {
        hub.moving(node, "hello", "hello-00003", &[("hello-00003", 100)]);
    }
    hub.settle();
    assert_eq!(ready(&hub).0, True);
    assert_eq!(hub.candidates_on("n1", "hello"), [["hello-00003"]]);
}

#[test]
fn what_was_undone_is_told_when_the_next_revision_fails_too() {
    let mut hub = serving(&["n1"]);
    update(&mut hub, 2);
    hub.run();
    hub.went_back("n1", "hello", "hello-00002", "hello-00001", "ErrorRateTooHigh");
    update(&mut hub, 3);
    hub.settle();
    hub.report("n1", &[("hello-00003", Failed)]);
    hub.settle();
    assert_eq!(ready(&hub), (False, "ErrorRateTooHigh".into()));
    // A revision that no node got ready in time was never assigned.
    hub.went_back("n1", "hello", "hello-00003", "hello-00001", "NotReadyInTime");
    hub.settle();
    assert_eq!(ready(&hub), (False, "NotReadyInTime".into()));
    assert_eq!(hub.candidates_on("n1", "hello"), [["hello-00003", "hello-00001"]]);
}

#[test]
fn a_node_that_is_away_does_not_hold_the_others_up() {
    let mut hub = serving(&["n1", "n2"]);
    update(&mut hub, 2);
    hub.run();
    hub.moving("n1", "hello", "hello-00002", &[("hello-00002", 100)]);
    hub.moving("n2", "hello", "hello-00002", &[("hello-00001", 80), ("hello-00002", 20)]);
    hub.settle();
    assert_eq!(ready(&hub), (Unknown, "RolloutInProgress".into()));
    hub.connected("n2", false);
    hub.settle();
    assert_eq!(ready(&hub).0, True);
    assert_eq!(hub.candidates_on("n2", "hello"), [["hello-00002", "hello-00001"]]);
}

#[test]
fn what_a_node_still_serves_is_never_collected() {
    let mut hub = serving(&["n1"]);
    update(&mut hub, 2);
    hub.run();
    hub.went_back("n1", "hello", "hello-00002", "hello-00001", "LatencyTooHigh");
    for number in 3..=30 {
        update(&mut hub, number);
        hub.settle();
    }
    hub.wait_hours(100);
    hub.settle();
    let has = |hub: &Hub, name: &str| hub.snapshot.revisions.contains_key(&Key::new("default", name));
    assert!(has(&hub, "hello-00001") && !has(&hub, "hello-00003") && has(&hub, "hello-00030"));
    assert_eq!(hub.candidates_on("n1", "hello"), [["hello-00030", "hello-00001"]]);
    // Nor is it kept for a route that is gone.
    hub.delete(Kind::Service, "hello");
    hub.settle();
    assert!(hub.snapshot.revisions.is_empty() && hub.held("n1").is_empty());
}

#[test]
fn without_a_duration_reports_of_routes_mean_nothing() {
    let mut hub = serving(&["n1"]);
    update(&mut hub, 2);
    hub.run();
    hub.went_back("n1", "hello", "hello-00002", "hello-00001", "ErrorRateTooHigh");
    let at_once = json!({ "name": "hello", "annotations": {} });
    hub.apply_with(at_once, spec(&image(2))).unwrap();
    hub.settle();
    assert_eq!(hub.route_on("n1", "hello").unwrap().rollout, None);
    assert_eq!(hub.candidates_on("n1", "hello"), [["hello-00002"]]);
    assert_eq!(ready(&hub).0, True);
}
