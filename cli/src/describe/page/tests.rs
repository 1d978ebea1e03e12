//! What a person reads, from resources as the hub gives them.

use super::*;
use serde_json::json;

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn nodes() -> Vec<Value> {
    let report = |name: &str, phase: &str, instances: Value| {
        json!({"namespace": "default", "name": name, "uid": "u", "phase": phase, "instances": instances,
            "reason": if phase == "Failed" { "ImageMissing" } else { "" }, "message": ""})
    };
    let running = json!([{"id": "j", "tier": "primed", "pid": 0, "restarts": 2},
        {"id": "i", "tier": "running", "pid": 7, "restarts": 2}, {"id": "k", "tier": "frozen", "pid": 8, "restarts": 2},
        {"id": "l", "tier": "suspended", "pid": 9, "restarts": 0}]);
    vec![json!({
        "metadata": {"name": "press-7"},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "info": {"limitations": ["no swap limit: served without"], "cpus": 4, "memoryBytes": 8_589_934_592_i64,
                "address": "10.0.0.7:8080", "architecture": "amd64", "kernelVersion": "6.1", "labels": {"line": "3"}},
            "serving": {"epoch": 1, "generation": 4, "digest": "sha256:11"},
            "revisions": [report("hello-00001", "Ready", running), report("hello-00002", "Failed", json!([])),
                report("other-00001", "Ready", json!([]))],
        },
    })]
}

fn events() -> Value {
    let event = |object: &str, reason: &str| {
        json!({"node": "press-7", "timeMs": 1_799_999_990_000_i64, "type": "Warning", "reason": reason, "object": object,
            "message": "it ended"})
    };
    json!({"items": [event("revision/default/hello-00001", "InstanceExited"), event("revision/other/hello-00001", "Elsewhere"),
        event("node", "ManifestRefused")]})
}

fn own() -> BTreeSet<String> {
    ["hello-00001", "hello-00002"].map(str::to_owned).into()
}

#[test]
fn a_service_is_told_whole() {
    let service = json!({
        "metadata": {"name": "hello", "namespace": "default", "generation": 2, "creationTimestamp": "2027-01-15T07:59:00Z"},
        "spec": {"template": {"spec": {"nodeSelector": {"line": "3"}, "containers": [{"image": "h/i:1",
            "env": [{"name": "TARGET", "value": "World"}], "ports": [{"containerPort": 8080}],
            "resources": {"limits": {"memory": "64Mi"}}}]}}},
        "status": {"observedGeneration": 1, "url": "http://hello.default.localhost:8080",
            "traffic": [{"percent": 100, "revisionName": "hello-00001", "latestRevision": true}],
            "conditions": [{"type": "ConfigurationsReady", "status": "False", "reason": "RevisionFailed", "message": "why",
                "lastTransitionTime": "2027-01-15T07:59:50Z"}, {"type": "Ready", "status": "False", "reason": "RevisionFailed"}, {"type": "Spare", "severity": "Warning", "status": "True"}]},
    });
    let around = Surroundings {
        revisions: own(),
        on_nodes: on_nodes(&nodes(), "default", &own()),
        events: revision_events(&events(), "default", &own()),
        signatures: vec!["required with release".into(), "hello-00001: not signed".into()],
        ..Surroundings::default()
    };
    let text = Page { kind: Kind::Service, object: &service, around: &around, now: now() }.text();
    let expected = "\
Name:           hello
Namespace:      default
Age:            60s
Generation:     2 (the hub is at 1)
URL:            http://hello.default.localhost:8080
Revisions:      hello-00001
                hello-00002
Signatures:     required with release
                hello-00001: not signed

Traffic:
  PERCENT   REVISION      LATEST   TAG   URL
  100%      hello-00001   yes

Image:          h/i:1
Port:           8080
Environment:    TARGET=World
Limits:         memory=64Mi
Node selector:  line=3

Conditions:
  TYPE                  STATUS   SEVERITY   AGE         REASON           MESSAGE
  Ready                 False               <unknown>   RevisionFailed
  ConfigurationsReady   False               10s         RevisionFailed   why
  Spare                 True     warning    <unknown>

Nodes:
  NODE      CONNECTED   REVISION      PHASE    INSTANCES                                                 REASON         MESSAGE
  press-7   True        hello-00001   Ready    1 running, 1 frozen, 1 suspended, 1 primed (2 restarts)
  press-7   True        hello-00002   Failed   0                                                         ImageMissing

Events:
  AGE   TYPE      REASON           NODE      OBJECT                         MESSAGE
  10s   Warning   InstanceExited   press-7   revision/default/hello-00001   it ended
";
    assert_eq!(text, expected);
}

#[test]
fn a_node_tells_what_it_serves_and_lacks() {
    let around = Surroundings { events: node_events(&events(), "press-7"), ..Surroundings::default() };
    let text = Page { kind: Kind::Node, object: &nodes()[0], around: &around, now: now() }.text();
    for line in [
        "Capacity:       4 processors, 8192 MiB of memory",
        "Serving:        epoch 1, generation 4, sha256:11",
        "Limitations:    no swap limit: served without",
        "  default/hello-00002   Failed   0                                                         ImageMissing",
        "  10s   Warning   ManifestRefused",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn a_node_tells_of_its_accelerators_if_it_has_any() {
    let mut node = nodes().remove(0);
    let around = Surroundings::default();
    let text = |node: &Value| Page { kind: Kind::Node, object: node, around: &around, now: now() }.text();
    assert!(!text(&node).contains("ccelerator"), "{}", text(&node));
    let held = json!([{"namespace": "default", "revision": "a-00001", "instance": "a-1", "bytes": 1 << 30}]);
    node["status"]["accelerators"] = json!([{"id": "GPU-1", "model": "NVIDIA L4", "fault": "it is hot", "temperatureCelsius": 99, "held": held}]);
    node["status"]["info"]["capacity"] = json!({"nvidia.com/gpu": 1});
    let text = text(&node);
    for line in [
        "Devices:        nvidia.com/gpu: 1 (0 healthy)",
        "Faulty:         GPU-1: it is hot",
        "  GPU-1         NVIDIA L4            1 instance                 99 °C",
        "Accelerator memory:",
        "  GPU-1         default/a-00001   a-1        1024 MiB",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn a_namespace_tells_what_runs_in_it() {
    let namespace = json!({"metadata": {"name": "line-3", "creationTimestamp": "2027-01-15T07:59:00Z",
        "annotations": {"keys": "release:\nMFkw\n", "other": "x"}}, "status": {"phase": "Active"}});
    let service = json!({"metadata": {"name": "hello"}, "status": {"url": "http://hello.line-3.localhost",
        "conditions": [{"type": "Ready", "status": "True"}]}});
    let around = Surroundings { services: vec![service], ..Surroundings::default() };
    let text = Page { kind: Kind::Namespace, object: &namespace, around: &around, now: now() }.text();
    let expected = "\
Name:           line-3
Annotations:    keys=release:
                MFkw
                other=x
Age:            60s
Status:         Active

Services:
  NAME    READY   URL
  hello   True    http://hello.line-3.localhost
";
    assert_eq!(text, expected);
}

#[test]
fn what_is_absent_is_said_so() {
    let around = Surroundings::default();
    for kind in [Kind::Service, Kind::Configuration, Kind::Revision, Kind::Route, Kind::Node] {
        let text =
            Page { kind, object: &json!({"metadata": {"name": "new"}}), around: &around, now: now() }.text();
        assert!(text.starts_with("Name:           new\n"), "{text}");
        assert!(text.contains("Conditions:\n  none yet\n"), "{text}");
        assert!(text.ends_with("Events:\n  none\n"), "{text}");
    }
}

#[test]
fn only_the_newest_events_are_shown() {
    let many =
        (0..EVENTS_MAX + 5).map(|count| json!({"reason": format!("R{count:02}"), "timeMs": 0})).collect();
    let around = Surroundings { events: many, ..Surroundings::default() };
    let text = Page { kind: Kind::Node, object: &json!({}), around: &around, now: now() }.text();
    assert!(!text.contains("R04") && text.contains("R05") && text.contains("R24"), "{text}");
}

#[test]
fn the_same_over_and_over_is_one_line() {
    let event =
        |reason: &str, seconds: i64| json!({"reason": reason, "timeMs": (1_800_000_000 - seconds) * 1000});
    let events = vec![event("Pulled", 90), event("Crashed", 60), event("Crashed", 30), event("Crashed", 5)];
    let around = Surroundings { events, ..Surroundings::default() };
    let text = Page { kind: Kind::Node, object: &json!({}), around: &around, now: now() }.text();
    let lines: Vec<Vec<&str>> =
        text.lines().rev().take(2).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines, [vec!["5s", "(x3)", "Crashed"], vec!["90s", "Pulled"]]);
}
