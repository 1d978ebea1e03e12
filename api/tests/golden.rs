//! Golden encodings of what hub and nodes say to each other and keep: today's code reads what it wrote before, and writes the
//! same bytes. A file changes only with a new version of its format.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tombolo_api::Digest;
use tombolo_api::desired::{
    Desired, Encoded, HeaderMatch, HealthGate, RevisionObject, RolloutSpec, RouteObject, RouteTarget, Steer,
    encode_revision, encode_route,
};
use tombolo_api::manifest::{FORMAT, Manifest, SignedManifest, Version};
use tombolo_api::report::{
    AcceleratorReport, AcceleratorUse, Event, EventAck, EventBatch, EventKind, InstanceReport, MemoryErrors,
    NodeInfo, Presence, PullReport, Refused, Report, RevisionPhase, RevisionReport, RolledBack, RouteReport,
    Serving, ShareReport, TargetReport, Tier,
};
use tombolo_api::tail::{TailChunk, TailRequest};
use tombolo_api::verification::{ImageSignature, ImageSignatures, Policy, TrustedKey, Verification};

/// `golden`, one line, is what `value` is written as and reads back as `value`.
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(golden: &str, value: &T) {
    let golden = golden.trim_end();
    assert_eq!(serde_json::to_string(value).unwrap(), golden);
    assert_eq!(&serde_json::from_str::<T>(golden).unwrap(), value);
}

fn revision() -> RevisionObject {
    let spec = json!({
        "containerConcurrency": 4,
        "containers": [{
            "args": ["--port", "$(PORT)"],
            "command": ["/app"],
            "env": [{ "name": "LEVEL", "value": "info" }, { "name": "EMPTY" }],
            "image": format!("hub.tombolo/hello@{}", Digest::of(b"image")),
            "imagePullPolicy": "IfNotPresent",
            "name": "user-container",
            "ports": [{ "containerPort": 9000, "name": "h2c", "protocol": "TCP" }],
            "readinessProbe": {
                "httpGet": { "httpHeaders": [{ "name": "X-Probe", "value": "1" }], "path": "/ready", "port": 0 },
                "initialDelaySeconds": 1,
                "periodSeconds": 5,
                "successThreshold": 1,
                "timeoutSeconds": 2,
            },
            "resources": {
                "limits": { "cpu": "500m", "ephemeral-storage": "16Mi", "memory": "64Mi", "tombolo.dev/pids": "64" },
                "requests": { "cpu": "100m" },
            },
            "securityContext": {
                "capabilities": { "drop": ["ALL"] },
                "readOnlyRootFilesystem": true,
                "runAsGroup": 1001,
                "runAsNonRoot": true,
                "runAsUser": 1000,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "volumeMounts": [{ "mountPath": "/data", "name": "space" }],
            "workingDir": "/srv",
        }],
        "enableServiceLinks": false,
        "idleTimeoutSeconds": 20,
        "nodeSelector": { "line": "7" },
        "responseStartTimeoutSeconds": 10,
        "timeoutSeconds": 60,
        "volumes": [{ "emptyDir": { "sizeLimit": "1Mi" }, "name": "space" }],
    });
    RevisionObject {
        namespace: "default".into(),
        name: "hello-00001".into(),
        uid: "0f8fad5b-d9cb-469f-a165-70867728950e".into(),
        service: "hello".into(),
        configuration: "hello".into(),
        annotations: BTreeMap::from([("autoscaling.knative.dev/min-scale".into(), "1".into())]),
        spec: serde_json::from_value(spec).unwrap(),
        verification: None,
    }
}

/// The same in a namespace that demands signatures.
fn verified() -> RevisionObject {
    let text = |text: &str| text.to_owned();
    let key = |name: &str| TrustedKey {
        name: text(name),
        pem: text("-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n"),
    };
    let signature = |payload_type: &str| ImageSignature {
        payload: text("{\"critical\":{}}"),
        signature: text("MEUC"),
        payload_type: text(payload_type),
    };
    let signatures = ImageSignatures {
        found: vec![signature(""), signature("application/vnd.in-toto+json")],
        passed_over: vec![text("a sigstore bundle that is malformed")],
    };
    let verification =
        Verification { policy: Policy::Require, keys: vec![key("release"), key("")], signatures };
    RevisionObject { verification: Some(verification), ..revision() }
}

fn route() -> RouteObject {
    let target = |percent, candidates: &[&str], hosts: &[&str]| RouteTarget {
        percent,
        candidates: candidates.iter().map(|name| (*name).into()).collect(),
        hosts: hosts.iter().map(|host| (*host).into()).collect(),
        tag: String::new(),
        configuration: String::new(),
    };
    RouteObject {
        namespace: "default".into(),
        name: "hello".into(),
        hosts: vec!["hello.default.localhost".into()],
        targets: vec![
            target(90, &["hello-00002", "hello-00001"], &[]),
            target(10, &["hello-00001"], &["old-hello.default.localhost"]),
        ],
        steering: vec![],
        rollout: None,
    }
}

/// A route whose traffic moves in steps, and by header.
fn moving_route() -> RouteObject {
    let steer = |header: &str, value| Steer { header: header.into(), value, tag: "old".into() };
    let mut route = route();
    route.targets[0].configuration = "hello".into();
    route.targets[1].tag = "old".into();
    route.steering = vec![
        steer("user-agent", HeaderMatch::Regex("iPhone|iPad".into())),
        steer("x-group", HeaderMatch::Exact("beta".into())),
        steer("cookie", HeaderMatch::Prefix("canary=".into())),
    ];
    let gate = HealthGate { max_error_percent: 5, max_latency_percent: 200, min_requests: 20 };
    route.rollout = Some(RolloutSpec { duration_s: 120, gate: Some(gate) });
    route
}

fn manifest() -> Manifest {
    Manifest {
        format: FORMAT,
        node: "press-7".parse().unwrap(),
        generation: 12,
        epoch: 3,
        hub_time_s: 1_767_225_600,
        objects: vec![encode_revision(&revision()).entry, encode_route(&route()).entry],
    }
}

fn serving() -> Serving {
    Serving { version: Version { epoch: 3, generation: 12 }, digest: Digest::of(b"manifest") }
}

#[test]
fn revision_objects() {
    check(include_str!("golden/revision_object.json"), &revision());
    check(include_str!("golden/revision_object_with_verification.json"), &verified());
}

#[test]
fn what_an_image_is_judged_by_says_nothing_of_how_it_runs() {
    let identity = |object: &RevisionObject| {
        let encoded = encode_revision(object);
        let mut desired = Desired::default();
        desired.add(&encoded.entry, &encoded.bytes, &Desired::default()).unwrap();
        let (identity, read) = desired.revisions[&object.key()].clone();
        assert_eq!(*read, *object);
        (identity, encoded.entry.digest)
    };
    let (plain, digest) = identity(&revision());
    assert_eq!(plain, digest, "objects of fleets that demand nothing are known by their digest, as ever");
    let (other, digest) = identity(&verified());
    assert_eq!(other, plain);
    assert_ne!(digest, plain, "and still it is another object, that nodes fetch");
    let mut moved = verified();
    moved.spec.timeout_seconds = Some(7);
    assert_ne!(identity(&moved).0, plain);
}

#[test]
fn what_is_as_it_was_is_shared_with_what_was() {
    let desired = |revision: &RevisionObject, route: &RouteObject, before: &Desired| {
        let mut desired = Desired::default();
        for Encoded { entry, bytes } in [encode_revision(revision), encode_route(route)] {
            desired.add(&entry, &bytes, before).unwrap();
        }
        desired
    };
    let key = revision().key();
    for object in [revision(), verified()] {
        let before = desired(&object, &route(), &Desired::default());
        let after = desired(&object, &route(), &before);
        assert_eq!(after, before);
        let pair = |of: &Desired| of.revisions[&key].1.clone();
        assert!(Arc::ptr_eq(&pair(&after), &pair(&before)));
        assert!(Arc::ptr_eq(after.routes.values().next().unwrap(), before.routes.values().next().unwrap()));

        // What runs the same is not the same object if it is judged by something else.
        let other = if object.verification.is_none() { verified() } else { revision() };
        let after = desired(&other, &moving_route(), &before);
        assert_eq!(*after.revisions[&key].1, other);
        assert_eq!(after.revisions[&key].0, before.revisions[&key].0);
        assert_eq!(**after.routes.values().next().unwrap(), moving_route());
    }
}

#[test]
fn route_objects() {
    check(include_str!("golden/route_object.json"), &route());
    check(include_str!("golden/route_object_with_rollout.json"), &moving_route());
    let mut ungated = moving_route();
    ungated.rollout.as_mut().unwrap().gate = None;
    check(include_str!("golden/route_object_without_gate.json"), &ungated);
}

#[test]
fn manifests() {
    check(include_str!("golden/manifest.json"), &manifest());
    let mut desired = Desired::default();
    let objects = [include_str!("golden/revision_object.json"), include_str!("golden/route_object.json")];
    for (entry, object) in manifest().objects.iter().zip(objects) {
        desired.add(entry, object.trim_end().as_bytes(), &Desired::default()).unwrap();
    }
}

#[test]
fn signed_manifests() {
    let key = SigningKey::from_bytes(&[7; 32]);
    let golden = include_str!("golden/signed_manifest.json");
    check(golden, &SignedManifest::sign(&manifest(), &key));
    let signed = SignedManifest::from_bytes(golden.as_bytes()).unwrap();
    assert_eq!(signed.verify(&key.verifying_key(), &manifest().node).unwrap(), manifest());
}

#[test]
fn reports() {
    let instance = |id: &str, tier, pid, restarts| InstanceReport { id: id.into(), tier, pid, restarts };
    let revision = |name: &str, phase, reason: &str, message: &str, instances| RevisionReport {
        namespace: "default".into(),
        name: name.into(),
        uid: "0f8fad5b-d9cb-469f-a165-70867728950e".into(),
        phase,
        reason: reason.into(),
        message: message.into(),
        instances,
        desired: 0,
        timed_out: false,
    };
    let report = Report {
        info: NodeInfo {
            labels: BTreeMap::from([("kubernetes.io/arch".into(), "amd64".into())]),
            agent_version: "0.1.0".into(),
            kernel_version: "6.1.0".into(),
            os_image: "Debian GNU/Linux 12".into(),
            architecture: "amd64".into(),
            boot_id: "9a3f".into(),
            cpus: 2,
            memory_bytes: 4 << 30,
            address: "127.0.0.1:8080".into(),
            limitations: vec!["memory is not limited: the memory controller is absent".into()],
            ..NodeInfo::default()
        },
        serving: Some(serving()),
        refused: Some(Refused { reason: "OlderGeneration".into(), message: "is older".into(), count: 2 }),
        revisions: vec![
            revision(
                "hello-00001",
                RevisionPhase::Ready,
                "",
                "",
                vec![
                    instance("hello-00001-abcde-1", Tier::Running, 4711, 3),
                    instance("hello-00001-abcde-2", Tier::Starting, 0, 3),
                    instance("hello-00001-abcde-3", Tier::Stopping, 4713, 3),
                ],
            ),
            revision("hello-00002", RevisionPhase::Failed, "ExitedBeforeReady", "status 3", vec![]),
            revision("hello-00003", RevisionPhase::Preparing, "", "", vec![]),
        ],
        ..Report::default()
    };
    check(include_str!("golden/report.json"), &report);
    check(include_str!("golden/report_of_nothing.json"), &Report::default());
    let pull = PullReport {
        image: format!("hub.tombolo/default/hello@{}", Digest::of(b"image")),
        done_bytes: 70_000_000,
        total_bytes: 300_000_000,
        since_s: 1_795_000_000,
    };
    let pulling = Report { pulls: vec![pull], ..Report::default() };
    check(include_str!("golden/report_with_pulls.json"), &pulling);
    let desired = RevisionReport {
        desired: 3,
        ..revision(
            "hello-00002",
            RevisionPhase::Ready,
            "",
            "",
            vec![
                instance("hello-00002-abcde-1", Tier::Primed, 0, 0),
                instance("hello-00002-abcde-2", Tier::Frozen, 4711, 0),
            ],
        )
    };
    let moving = Report { revisions: vec![desired], routes: vec![route_report()], ..Report::default() };
    check(include_str!("golden/report_with_routes.json"), &moving);
    let given_up = RevisionReport {
        timed_out: true,
        ..revision("deaf-00001", RevisionPhase::Failed, "ProgressDeadlineExceeded", "it is deaf", vec![])
    };
    let given_up = Report { revisions: vec![given_up], ..Report::default() };
    check(include_str!("golden/report_given_up.json"), &given_up);
}

#[test]
fn reports_of_accelerators() {
    let memory = "tombolo.dev/gpu-memory";
    let counts = |count| BTreeMap::from([(memory.to_owned(), count)]);
    let whole = AcceleratorReport {
        id: "GPU-00000000-0000-0000-0000-000000000000".into(),
        model: "NVIDIA L4".into(),
        memory_bytes: Some(24 << 30),
        memory_used_bytes: Some(3 << 30),
        utilisation_percent: Some(40),
        memory_utilisation_percent: Some(11),
        temperature_celsius: Some(61),
        power_watts: Some(70),
        memory_errors: Some(MemoryErrors { corrected: 3, uncorrected: 0 }),
        held: vec![AcceleratorUse {
            namespace: "default".into(),
            revision: "hello-00001".into(),
            instance: "hello-00001-abcde-1".into(),
            bytes: 1 << 30,
        }],
        ..AcceleratorReport::default()
    };
    let mute = AcceleratorReport {
        id: "GPU-11111111-0000-0000-0000-000000000000".into(),
        fault: "the driver does not list the GPU any more".into(),
        parts: vec!["MIG-22222222-0000-0000-0000-000000000000".into()],
        ..AcceleratorReport::default()
    };
    let info = NodeInfo {
        capacity: counts(8),
        allocatable: counts(8),
        largest_piece: counts(4),
        ..NodeInfo::default()
    };
    let report = Report { info, accelerators: vec![whole, mute], ..Report::default() };
    check(include_str!("golden/report_with_accelerators.json"), &report);
}

/// A route in the middle of a rollout, whose tagged target went back.
fn route_report() -> RouteReport {
    let share = |revision: &str, percent| ShareReport { revision: revision.into(), percent };
    let target = |tag: &str, shares, rolled_back| TargetReport {
        configuration: "hello".into(),
        tag: tag.into(),
        goal: "hello-00002".into(),
        shares,
        rolled_back,
    };
    let rolled_back = RolledBack {
        reason: "ErrorRateTooHigh".into(),
        message: "31 % of 40 answers were errors, and 0 % of 812 before".into(),
    };
    RouteReport {
        namespace: "default".into(),
        name: "hello".into(),
        targets: vec![
            target("", vec![share("hello-00001", 82), share("hello-00002", 18)], None),
            target("next", vec![share("hello-00001", 100)], Some(rolled_back)),
        ],
    }
}

#[test]
fn presences() {
    let there = Presence {
        online: true,
        session: "k3v9".into(),
        serving: Some(serving()),
        report: Some(Digest::of(b"report")),
    };
    check(include_str!("golden/presence.json"), &there);
    let will = Presence { online: false, session: "k3v9".into(), serving: None, report: None };
    check(include_str!("golden/presence_as_will.json"), &will);
}

#[test]
fn event_batches() {
    let event = |seq, kind, reason: &str, object: &str| Event {
        seq,
        time_ms: 1_767_225_600_000 + seq,
        reason: reason.into(),
        kind,
        object: object.into(),
        message: "what happened".into(),
    };
    let batch = EventBatch {
        outbox: "x4q2".into(),
        events: vec![
            event(7, EventKind::Normal, "ImagePulled", "revision/default/hello-00001"),
            event(8, EventKind::Warning, "ManifestRefused", "node"),
        ],
    };
    check(include_str!("golden/event_batch.json"), &batch);
    check(include_str!("golden/event_ack.json"), &EventAck { outbox: "x4q2".into(), seq: 8 });
}

#[test]
fn log_tails() {
    let request = TailRequest {
        id: "t-1".into(),
        namespace: "default".into(),
        revisions: vec!["hello-00001".into()],
        lines: 100,
        follow: true,
    };
    check(include_str!("golden/tail_request.json"), &request);
    let chunk = TailChunk {
        instance: "hello-00001-abcde-1".into(),
        revision: "hello-00001".into(),
        text: "2026-01-01T00:00:00.000000000Z stdout F hello\n".into(),
        end: true,
    };
    check(include_str!("golden/tail_chunk.json"), &chunk);
}
