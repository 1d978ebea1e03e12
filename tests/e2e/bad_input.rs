//! What cannot work is said where its author looks, with what to do.

use std::fs;

use serde_json::{Value, json};
use tombolo_harness::{Function, Node, NodeOptions, Site, until};

/// Waits until the statuses of a service and its revisions hold every one of `words`.
async fn said(site: &Site, service: &str, words: &[&str]) {
    until(&format!("{words:?} in the status of {service}"), 40, || async {
        let text = site.hub.api.told(service).await.map_err(|error| error.to_string())?;
        if words.iter().all(|word| text.contains(word)) { Ok(()) } else { Err(text) }
    })
    .await;
}

async fn site_and_node() -> Option<(Site, Node)> {
    let mut site = Site::start().await?;
    let node = site.node(NodeOptions::named("press-7")).await;
    Some((site, node))
}

#[tokio::test]
async fn an_image_that_is_not_there_is_named() {
    let Some((site, _node)) = site_and_node().await else { return };
    let missing = format!("hub.tombolo/default/nothing@sha256:{}", "0".repeat(64));
    for (name, image) in [("tagless", "hub.tombolo/default/nothing:v1"), ("digest", missing.as_str())] {
        let service = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"template": {"spec": {"containers": [{"image": image}]}}}});
        site.hub.api.create_service(&service).await.expect("a service may be written before its image");
        said(&site, name, &["False", "default/nothing"]).await;
    }
}

#[tokio::test]
async fn an_image_for_another_architecture_is_refused_by_name() {
    let Some((site, _node)) = site_and_node().await else { return };
    site.hub.deploy_unready(&Function::hello("foreign").architecture("s390x")).await;
    said(&site, "foreign", &["False", "ImagePlatformMismatch", "linux/s390x"]).await;
}

#[tokio::test]
async fn a_program_that_ends_is_told_with_its_last_words() {
    let Some((site, node)) = site_and_node().await else { return };
    site.hub.deploy_unready(&Function::subject("refuses").env("MODE", "exit")).await;
    said(&site, "refuses", &["ExitedBeforeReady", "exit status 3", "the subject refuses to run"]).await;
    // Nobody waits for it in vain.
    let (status, body) = node.ask("refuses", "/").await.answer.expect("the router answers");
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("ExitedBeforeReady"), "{body}");
}

/// After its progress deadline and the half minute that Knative adds it is at no instance, and says so; a request tries it again.
#[tokio::test]
async fn a_program_that_never_listens_is_given_up_until_a_request_comes() {
    let Some((site, node)) = site_and_node().await else { return };
    let deaf = Function::subject("deaf").env("MODE", "deaf");
    site.hub.deploy_unready(&deaf.annotation("serving.knative.dev/progress-deadline", "2s")).await;
    until("the revision to be given up", 90, || async {
        let revision = site.hub.api.revision("deaf-00001").await.map_err(|error| error.to_string())?;
        let is_active = condition(&revision, "Active");
        let status = &revision["status"];
        let rests = status["desiredReplicas"] == 0 && status["actualReplicas"] == 0;
        if is_active["status"] == "False" && is_active["reason"] == "TimedOut" && rests {
            Ok(())
        } else {
            Err(revision)
        }
    })
    .await;
    let revision = site.hub.api.revision("deaf-00001").await.expect("the hub has it");
    let is_ready = condition(&revision, "Ready");
    assert_eq!(
        (&is_ready["status"], &is_ready["reason"]),
        (&json!("False"), &json!("ProgressDeadlineExceeded"))
    );
    let message = is_ready["message"].as_str().unwrap_or_default();
    assert!(message.contains("$PORT") && message.contains("next request"), "{message}");
    until("nothing to be left of it", 30, || async {
        let left = node.census("deaf").cgroups;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;

    let (status, body) = node.ask("deaf", "/").await.answer.expect("the router answers");
    assert!(status == 503 && body.contains("ProgressDeadlineExceeded"), "{status}: {body}");
    // Until its back-off is over, a request is refused at once.
    until("the revision to be tried", 60, || async {
        let (status, body) = node.ask("deaf", "/").await.answer?;
        assert!(status == 503 && body.contains("ProgressDeadlineExceeded"), "{status}: {body}");
        let revision = site.hub.api.revision("deaf-00001").await.map_err(|error| error.to_string())?;
        if condition(&revision, "Active")["status"] == "Unknown" { Ok(()) } else { Err(revision.to_string()) }
    })
    .await;
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

#[tokio::test]
async fn yaml_errors_name_the_field() {
    let Some((site, _node)) = site_and_node().await else { return };
    for (spec, code, named) in [
        (
            json!({"template": {"spec": {"containers": [{"imag": "x"}]}}}),
            400,
            "missing field(s): spec.template.spec.containers[0].image",
        ),
        (json!({"template": {"spec": {"containers": []}}}), 400, "spec.template.spec.containers"),
        (
            json!({"template": {"spec": {"containers": [{"image": "a b"}]}}}),
            400,
            "spec.template.spec.containers[0].image",
        ),
        (
            json!({"template": {"spec": {"containerConcurrency": -1, "containers": [{"image": "x"}]}}}),
            400,
            "containerConcurrency",
        ),
    ] {
        let service = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "bad"}, "spec": spec});
        let refusal = site.hub.api.create_service(&service).await.expect_err("a bad service is refused");
        assert_eq!(refusal.code, code, "{refusal}");
        assert!(refusal.body["message"].as_str().unwrap_or_default().contains(named), "{refusal}");
    }
}

/// A full state directory: said with what to do, nothing that runs is touched, and it goes on by itself afterwards.
#[tokio::test]
async fn a_full_disk_is_said_and_survived() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600).state_bytes(64 << 20)).await;
    site.hub.deploy(&Function::hello("runs")).await;
    until("the first answer", 20, || node.answer("runs", "/")).await;
    let before = node.instances("runs").await.expect("the agent says what it runs");

    let filler = node.state_dir().join("filler");
    fill(&filler);
    site.hub.deploy_unready(&Function::hello("late").content(&"x".repeat(1 << 20))).await;
    until("the full disk in the node's or the service's status", 60, || async {
        let node = site.hub.api.node("press-7").await.map_err(|error| error.to_string())?.to_string();
        let service = site.hub.api.told("late").await.map_err(|error| error.to_string())?;
        let text = node + &service;
        if text.contains("DiskFull") && text.contains("free") { Ok(()) } else { Err(text) }
    })
    .await;
    assert_eq!(node.instances("runs").await.expect("the agent says what it runs"), before);
    node.answer("runs", "/").await.expect("what ran goes on");

    fs::remove_file(&filler).expect("the filler can be removed");
    until("the late service after space is back", 180, || node.answer("late", "/")).await;
    assert_eq!(node.instances("runs").await.expect("the agent says what it runs"), before);
}

/// Writes until the file system is full.
fn fill(path: &std::path::Path) {
    use std::io::Write as _;
    let mut file = fs::File::create(path).expect("the filler can be made");
    for size in [1 << 20, 4096, 1] {
        let piece = vec![0; size];
        while file.write_all(&piece).is_ok() {}
    }
}
