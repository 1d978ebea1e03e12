//! Fields that Tombolo knows and does not serve yet are refused by name; what it serves beyond Knative's defaults is not.

#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};
use tombolo_api::serving::admission::{self, Admission};
use tombolo_api::serving::{Configuration, Service};

const REQUEST: Admission<'_> = Admission {
    namespace: "default",
    user: "admin",
    now: "2026-01-01T00:00:00Z",
    uid: "0a0b",
    name_suffix: "x7x7x",
};

/// A Service with `value` set at `pointer`, lists and objects on the way made as needed.
fn service(changes: &[(&str, Value)]) -> Value {
    let mut service = json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": { "name": "hello" },
        "spec": { "template": { "spec": { "containers": [{ "image": "hub.tombolo/hello:1" }] } } },
    });
    for (pointer, value) in changes {
        let mut at = &mut service;
        for step in pointer.split('/') {
            at = match step.parse::<usize>() {
                Ok(index) => {
                    if !at.is_array() {
                        *at = json!([]);
                    }
                    let list = at.as_array_mut().unwrap();
                    if list.len() == index {
                        list.push(json!({}));
                    }
                    &mut list[index]
                }
                Err(_) => &mut at[step],
            };
        }
        *at = value.clone();
    }
    service
}

fn refusal(changes: &[(&str, Value)]) -> Option<String> {
    admission::admit_service(&service(changes), None, &REQUEST).err().map(|status| status.message)
}

const POD: &str = "spec/template/spec";
const CONTAINER: &str = "spec/template/spec/containers/0";

#[test]
fn a_known_field_that_is_not_served_is_refused_by_name() {
    let source = json!({ "configMapKeyRef": { "name": "m", "key": "k" } });
    let table: [(&str, Value, &str); 17] = [
        ("env", json!([{ "name": "A", "valueFrom": source }]), "env[0].valueFrom"),
        ("envFrom", json!([{ "secretRef": { "name": "s" } }]), "envFrom"),
        ("livenessProbe", json!({ "httpGet": { "scheme": "HTTPS" } }), "livenessProbe.httpGet.scheme"),
        ("startupProbe", json!({ "tcpSocket": { "host": "x" } }), "startupProbe.tcpSocket.host"),
        ("readinessProbe", json!({ "httpGet": { "host": "x" } }), "readinessProbe.httpGet.host"),
        ("readinessProbe", json!({ "httpGet": { "scheme": "HTTPS" } }), "readinessProbe.httpGet.scheme"),
        ("readinessProbe", json!({ "tcpSocket": { "host": "x" } }), "readinessProbe.tcpSocket.host"),
        ("resources", json!({ "limits": { "hugepages-2Mi": "2Mi" } }), "resources.limits.hugepages-2Mi"),
        (
            "resources",
            json!({ "requests": { "ephemeral-storage": "1Gi" } }),
            "resources.requests.ephemeral-storage",
        ),
        (
            "securityContext",
            json!({ "allowPrivilegeEscalation": true }),
            "securityContext.allowPrivilegeEscalation",
        ),
        (
            "securityContext",
            json!({ "seccompProfile": { "type": "Unconfined" } }),
            "securityContext.seccompProfile.type",
        ),
        ("terminationMessagePath", json!("/x"), "terminationMessagePath"),
        ("terminationMessagePolicy", json!("File"), "terminationMessagePolicy"),
        ("/serviceAccountName", json!("robot"), "serviceAccountName"),
        ("/imagePullSecrets", json!([{ "name": "s" }]), "imagePullSecrets"),
        ("/enableServiceLinks", json!(true), "enableServiceLinks"),
        (
            "/containers/1",
            json!({ "image": "hub.tombolo/side:1", "ports": [{ "containerPort": 1 }] }),
            "containers[1]",
        ),
    ];
    for (at, value, name) in table {
        let (pointer, path) = match at.strip_prefix('/') {
            Some(of_pod) => (format!("{POD}/{of_pod}"), format!("spec.template.spec.{name}")),
            None => (format!("{CONTAINER}/{at}"), format!("spec.template.spec.containers[0].{name}")),
        };
        let message = refusal(&[(&pointer, value)]).unwrap_or_else(|| panic!("{path} is not refused"));
        let wanted = format!("must not set the field(s): {path}\nTombolo does not serve this yet");
        assert!(message.ends_with(&wanted), "{path}: {message}");
    }
}

#[test]
fn volumes_other_than_empty_ones_are_refused_by_name() {
    let mount = json!([{ "name": "v", "mountPath": "/v" }]);
    for (source, value) in [
        ("secret", json!({ "secretName": "s" })),
        ("configMap", json!({ "name": "m" })),
        ("projected", json!({ "sources": [{ "secret": { "name": "s" } }] })),
    ] {
        let volumes = json!([{ "name": "v", source: value }]);
        let message = refusal(&[
            (&format!("{POD}/volumes"), volumes),
            (&format!("{CONTAINER}/volumeMounts"), mount.clone()),
        ]);
        assert!(message.unwrap().contains(&format!("spec.template.spec.volumes[0].{source}")), "{source}");
    }
    let volumes = (format!("{POD}/volumes"), json!([{ "name": "v", "emptyDir": { "sizeLimit": "1Mi" } }]));
    let once = (format!("{CONTAINER}/volumeMounts"), mount);
    assert_eq!(refusal(&[(&volumes.0, volumes.1.clone()), (&once.0, once.1)]), None);
    let twice = json!([{ "name": "v", "mountPath": "/v" }, { "name": "v", "mountPath": "/w" }]);
    let message = refusal(&[(&volumes.0, volumes.1), (&once.0, twice)]).unwrap();
    assert!(message.contains("spec.template.spec.containers[0].volumeMounts[1].name"), "{message}");
}

#[test]
fn what_changes_who_is_answered_by_what_is_refused_by_name() {
    let labels = json!({ "networking.knative.dev/visibility": "cluster-local" });
    let message = refusal(&[("metadata/labels", labels)]).unwrap();
    assert!(message.contains("metadata.labels.networking.knative.dev/visibility"), "{message}");
    let class = json!({ "autoscaling.knative.dev/class": "hpa.autoscaling.knative.dev" });
    let message = refusal(&[("spec/template/metadata/annotations", class)]).unwrap();
    let path =
        "spec.template.metadata.annotations.autoscaling.knative.dev/class\nTombolo does not serve this yet";
    assert!(message.ends_with(path), "{message}");
}

#[test]
fn devices_are_asked_for_in_whole_pieces_and_never_shared() {
    for (resources, why) in [
        (
            json!({ "limits": { "nvidia.com/gpu": "500m" } }),
            "limits[nvidia.com/gpu]: Invalid value: \"500m\": must be an integer",
        ),
        (
            json!({ "limits": { "nvidia.com/gpu": 2 }, "requests": { "nvidia.com/gpu": 1 } }),
            "requests: Invalid value: \"1\": must be equal to nvidia.com/gpu limit of 2",
        ),
        (
            json!({ "requests": { "nvidia.com/gpu": 1 } }),
            "limits: Required value: Limit must be set for non overcommitable resources",
        ),
        (
            json!({ "limits": { "requests.example/x": 1 } }),
            "limits[requests.example/x]: Invalid value: \"requests.example/x\": doesn't follow extended resource name standard",
        ),
    ] {
        let message = refusal(&[(&format!("{CONTAINER}/resources"), resources)]).unwrap();
        assert!(message.contains(&format!("spec.containers[0].resources.{why}")), "{message}");
    }
}

#[test]
fn what_nodes_serve_is_taken() {
    for (at, value) in [
        ("resources", json!({ "limits": { "cpu": "500m", "memory": "64Mi", "ephemeral-storage": "1Gi" } })),
        (
            "resources",
            json!({ "limits": { "tombolo.dev/pids": 64 }, "requests": { "cpu": "1", "memory": "1Mi" } }),
        ),
        ("resources", json!({ "limits": { "nvidia.com/gpu": 1 }, "requests": { "nvidia.com/gpu": "1" } })),
        ("securityContext", json!({ "runAsUser": 1000, "capabilities": { "drop": ["ALL"] } })),
        ("securityContext", json!({ "seccompProfile": { "type": "RuntimeDefault" } })),
        ("readinessProbe", json!({ "httpGet": { "path": "/ready" }, "periodSeconds": 5 })),
        ("readinessProbe", json!({ "exec": { "command": ["true"] } })),
        ("readinessProbe", json!({ "grpc": { "port": 1, "service": "s" } })),
        ("livenessProbe", json!({ "tcpSocket": {}, "periodSeconds": 10, "failureThreshold": 2 })),
        ("livenessProbe", json!({ "grpc": { "port": 8080 } })),
        ("startupProbe", json!({ "exec": { "command": ["test", "-e", "/tmp/up"] }, "failureThreshold": 30 })),
        ("startupProbe", json!({ "httpGet": { "path": "/up", "scheme": "HTTP" } })),
        ("ports", json!([{ "name": "h2c", "containerPort": 9000 }])),
        ("/serviceAccountName", json!("default")),
        ("/nodeSelector", json!({ "line": "7" })),
    ] {
        let pointer = match at.strip_prefix('/') {
            Some(of_pod) => format!("{POD}/{of_pod}"),
            None => format!("{CONTAINER}/{at}"),
        };
        assert_eq!(refusal(&[(&pointer, value)]), None, "{at}");
    }
}

#[test]
fn autoscaling_annotations_have_effect() {
    let annotations = json!({
        "autoscaling.knative.dev/activation-scale": "2",
        "autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev",
        "autoscaling.knative.dev/initial-scale": "3",
        "autoscaling.knative.dev/max-scale": "3",
        "autoscaling.knative.dev/metric": "rps",
        "autoscaling.knative.dev/metric-aggregation-algorithm": "weighted-exponential",
        "autoscaling.knative.dev/min-scale": "1",
        "autoscaling.knative.dev/panic-threshold-percentage": "150",
        "autoscaling.knative.dev/panic-window-percentage": "20",
        "autoscaling.knative.dev/scale-down-delay": "1m",
        "autoscaling.knative.dev/scale-to-zero-pod-retention-period": "1m",
        "autoscaling.knative.dev/target": "10",
        "autoscaling.knative.dev/target-burst-capacity": "-1",
        "autoscaling.knative.dev/target-utilization-percentage": "80",
        "autoscaling.knative.dev/window": "6s",
        "serving.knative.dev/progress-deadline": "60s",
        "mine.example/x": "y",
    });
    let input = service(&[("spec/template/metadata/annotations", annotations)]);
    assert_eq!(admission::admit_service(&input, None, &REQUEST).unwrap().warnings, Vec::<String>::new());
    let class = json!({ "autoscaling.knative.dev/class": "mine.example" });
    let input = service(&[("spec/template/metadata/annotations", class)]);
    let [warning] = admission::admit_service(&input, None, &REQUEST).unwrap().warnings.try_into().unwrap();
    assert!(
        warning.starts_with("spec.template.metadata.annotations.autoscaling.knative.dev/class: no effect, ")
    );
}

#[test]
fn a_scale_above_what_a_node_runs_is_warned_of() {
    for (key, value, warned) in [
        ("min-scale", "20", false),
        ("min-scale", "21", true),
        ("minScale", "21", true),
        ("initial-scale", "21", true),
        ("activation-scale", "21", true),
        ("max-scale", "21", false),
    ] {
        let key = format!("autoscaling.knative.dev/{key}");
        let input = service(&[("spec/template/metadata/annotations", json!({ key.clone(): value }))]);
        let admitted = admission::admit_service(&input, None, &REQUEST).unwrap();
        let text = format!(
            "spec.template.metadata.annotations.{key}: {value} is served as 20, the most instances on one node"
        );
        assert_eq!(admitted.warnings, if warned { vec![text] } else { vec![] }, "{key} {value}");
    }
}

#[test]
fn admitting_what_was_admitted_changes_nothing() {
    let input = service(&[(&format!("{CONTAINER}/ports"), json!([{ "containerPort": 8080 }]))]);
    let first: Service = admission::admit_service(&input, None, &REQUEST).unwrap().object;
    let again = admission::admit_service(&json!(first), Some(&first), &REQUEST).unwrap();
    assert_eq!(again.object, first);
    assert!(again.warnings.is_empty());
}

#[test]
fn a_change_of_the_spec_raises_the_generation_once() {
    let mut input = service(&[]);
    input["kind"] = "Configuration".into();
    let first: Configuration = admission::admit_configuration(&input, None, &REQUEST).unwrap().object;
    input["metadata"]["labels"] = json!({ "a": "b" });
    let labelled = admission::admit_configuration(&input, Some(&first), &REQUEST);
    // A replaced object must carry who made it, as every client that reads before it writes does.
    assert!(labelled.unwrap_err().message.contains("serving.knative.dev/creator"));
    input["metadata"]["annotations"] = json!(first.metadata.annotations);
    let labelled = admission::admit_configuration(&input, Some(&first), &REQUEST).unwrap().object;
    assert_eq!((first.metadata.generation, labelled.metadata.generation), (1, 1));
    input["spec"]["template"]["spec"]["timeoutSeconds"] = 7.into();
    let changed = admission::admit_configuration(&input, Some(&labelled), &REQUEST).unwrap().object;
    assert_eq!(changed.metadata.generation, 2);
}
