//! Tombolo's own annotations: what may stand in them, where they belong, and how a refusal names the place.

#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};
use tombolo_api::serving::admission::{self, Admission};
use tombolo_api::serving::{Configuration, Revision, Service};

const REQUEST: Admission<'_> = Admission {
    namespace: "default",
    user: "admin",
    now: "2026-01-01T00:00:00Z",
    uid: "0a0b",
    name_suffix: "x7x7x",
};

const OF_SERVICES: &str = "/metadata/annotations";
const OF_TEMPLATES: &str = "/spec/template/metadata/annotations";

fn object(kind: &str, pointer: &str, annotations: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": kind,
        "metadata": { "name": "hello", "annotations": {} },
        "spec": {
            "template": { "metadata": { "annotations": {} }, "spec": { "containers": [{ "image": "hub.tombolo/hello:1" }] } },
            "traffic": [{ "latestRevision": true, "percent": 100, "tag": "v2" }],
        },
    });
    match kind {
        "Service" => {}
        "Configuration" => drop(object["spec"].as_object_mut().unwrap().remove("traffic")),
        _ => {
            object["spec"].as_object_mut().unwrap().remove("template");
            object["spec"]["traffic"][0]["configurationName"] = "hello".into();
        }
    }
    *object.pointer_mut(pointer).unwrap() = annotations.clone();
    object
}

fn refusal(kind: &str, pointer: &str, annotations: &Value) -> Option<String> {
    let input = object(kind, pointer, annotations);
    let message = |status: Box<tombolo_api::meta::Status>| status.message;
    match kind {
        "Service" => admission::admit_service(&input, None, &REQUEST).map(drop).map_err(message).err(),
        "Configuration" => {
            admission::admit_configuration(&input, None, &REQUEST).map(drop).map_err(message).err()
        }
        _ => admission::admit_route(&input, None, &REQUEST).map(drop).map_err(message).err(),
    }
}

#[test]
fn known_values_are_taken_where_they_belong() {
    for (key, values) in [
        ("idle-tier", &["cold", "primed", "running", "frozen", "suspended"][..]),
        ("reaction", &["fast", "knative"]),
        ("gpu-memory-overuse", &["stop", "warn", "off"]),
        ("gpu-memory-overuse-grace", &["0s", "1m30s", "1h"]),
        ("update-strategy", &["overlap", "hand-over", "stop-first", "auto"]),
    ] {
        for value in values {
            let annotations = json!({ format!("tombolo.dev/{key}"): value });
            for kind in ["Service", "Configuration"] {
                assert_eq!(refusal(kind, OF_TEMPLATES, &annotations), None, "{kind} {key} {value}");
            }
        }
    }
    let annotations = json!({
        "serving.knative.dev/rollout-duration": "2m",
        "tombolo.dev/health-gate": "on",
        "tombolo.dev/health-gate-max-error-percent": "0",
        "tombolo.dev/health-gate-max-latency-percent": "100",
        "tombolo.dev/health-gate-min-requests": "1",
        "tombolo.dev/steering": r#"[{"header":"User-Agent","regex":"iPhone","tag":"v2"}]"#,
    });
    // A Configuration has its Service's.
    for kind in ["Service", "Configuration", "Route"] {
        assert_eq!(refusal(kind, OF_SERVICES, &annotations), None, "{kind}");
    }
}

#[test]
fn wrong_values_are_refused_by_name() {
    let steering = |rule: &str| format!(r#"[{{"header":"a","exact":"b","tag":"v2"}},{{{rule}}}]"#);
    let table: [(&str, &str, String, &str, &str); 15] = [
        (OF_TEMPLATES, "idle-tier", "warm".into(), "", "must be one of cold, primed, running, frozen"),
        (OF_TEMPLATES, "reaction", "".into(), "", "must be one of fast, knative"),
        (OF_TEMPLATES, "update-strategy", "Overlap".into(), "", "must be one of overlap, hand-over"),
        (OF_TEMPLATES, "gpu-memory-overuse", "kill".into(), "", "must be one of stop, warn, off"),
        (OF_TEMPLATES, "gpu-memory-overuse-grace", "10".into(), "", "a duration from 0s to 1h"),
        (OF_TEMPLATES, "gpu-memory-overuse-grace", "-1s".into(), "", "a duration from 0s to 1h"),
        (OF_TEMPLATES, "gpu-memory-overuse-grace", "61m".into(), "", "a duration from 0s to 1h"),
        (OF_SERVICES, "health-gate", "true".into(), "", "must be one of on, off"),
        (OF_SERVICES, "health-gate-max-error-percent", "101".into(), "", "a whole number from 0 to 100"),
        (OF_SERVICES, "health-gate-max-latency-percent", "99".into(), "", "from 100 to 100000"),
        (OF_SERVICES, "health-gate-min-requests", "1.5".into(), "", "from 1 to 1000000"),
        (OF_SERVICES, "steering", "x".into(), "", "must be a JSON list of rules"),
        (OF_SERVICES, "steering", steering(r#""header":"a","regex":"(","tag":"v2""#), "[1].regex", ""),
        (
            OF_SERVICES,
            "steering",
            steering(r#""header":"a:","exact":"","tag":"v2""#),
            "[1].header",
            "not the name",
        ),
        (OF_SERVICES, "steering", steering(r#""header":"a","exact":"","tag":"v3""#), "[1].tag", "no target"),
    ];
    for (pointer, key, value, below, why) in table {
        let path = format!("{}.tombolo.dev/{key}{below}", pointer[1..].replace('/', "."));
        let annotations = json!({ format!("tombolo.dev/{key}"): value });
        let message = refusal("Service", pointer, &annotations).unwrap_or_else(|| panic!("{path} is taken"));
        assert!(message.contains(&format!("{path}\n")) && message.contains(why), "{path}: {message}");
    }
}

#[test]
fn what_is_unknown_or_elsewhere_is_told_what_there_is() {
    for (kind, pointer, key, why) in [
        (
            "Service",
            OF_TEMPLATES,
            "idle-teir",
            "Tombolo knows tombolo.dev/idle-tier, tombolo.dev/gpu-memory-overuse, tombolo.dev/pull, ",
        ),
        ("Service", OF_SERVICES, "x", "Tombolo knows tombolo.dev/idle-tier, "),
        ("Route", OF_SERVICES, "x", "Tombolo knows "),
        ("Configuration", OF_SERVICES, "x", "Tombolo knows "),
        ("Service", OF_SERVICES, "idle-tier", "it belongs under \"spec.template.metadata.annotations\""),
        ("Service", OF_TEMPLATES, "steering", "it belongs in the metadata of the Service or Route itself"),
    ] {
        let annotations = json!({ format!("tombolo.dev/{key}"): "cold" });
        let message = refusal(kind, pointer, &annotations).unwrap_or_else(|| panic!("{kind} {key}"));
        let path = format!("{}.tombolo.dev/{key}\n", pointer[1..].replace('/', "."));
        assert!(message.contains(&path) && message.contains(why), "{message}");
    }
}

#[test]
fn a_revision_keeps_annotations_that_nodes_can_read() {
    let template = json!({ "tombolo.dev/idle-tier": "cold" });
    let input = object("Configuration", OF_TEMPLATES, &template);
    let configuration: Configuration = admission::admit_configuration(&input, None, &REQUEST).unwrap().object;
    let mut metadata = configuration.spec.template.metadata;
    metadata.name = "hello-00001".into();
    metadata.namespace = "default".into();
    let revision = Revision::new(metadata, configuration.spec.template.spec);
    let mut sent = json!(revision);
    for (value, taken) in [("primed", true), ("warm", false)] {
        sent["metadata"]["annotations"]["tombolo.dev/idle-tier"] = value.into();
        let answer = admission::admit_revision_update(&sent, &revision, &REQUEST);
        assert_eq!(answer.is_ok(), taken, "{value}: {answer:?}");
    }
}

#[test]
fn a_tag_may_not_go_while_it_is_steered_to() {
    let rules = json!({ "tombolo.dev/steering": r#"[{"header":"a","exact":"b","tag":"v2"}]"# });
    let first = object("Service", OF_SERVICES, &rules);
    let first: Service = admission::admit_service(&first, None, &REQUEST).unwrap().object;
    let mut sent = json!(first);
    sent["spec"]["traffic"][0]["tag"] = "v3".into();
    let message = admission::admit_service(&sent, Some(&first), &REQUEST).unwrap_err().message;
    assert!(message.contains("metadata.annotations.tombolo.dev/steering[0].tag"), "{message}");
}

#[test]
fn a_tag_that_fits_into_no_host_is_refused() {
    for kind in ["Service", "Route"] {
        let mut input = object(kind, OF_SERVICES, &json!({}));
        input["metadata"]["name"] = "s".repeat(50).into();
        let mut refused = |tag: &str| {
            input["spec"]["traffic"][0]["tag"] = tag.into();
            match kind {
                "Service" => admission::admit_service(&input, None, &REQUEST).map(drop),
                _ => admission::admit_route(&input, None, &REQUEST).map(drop),
            }
            .err()
            .map(|status| status.message)
        };
        assert_eq!(refused(&"t".repeat(12)), None, "{kind}");
        let message = refused(&"t".repeat(13)).unwrap();
        assert!(message.contains("spec.traffic[0].tag"), "{message}");
        assert!(message.contains("64 characters long and may be 63"), "{message}");
    }
}
