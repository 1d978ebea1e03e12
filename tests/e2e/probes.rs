//! Probes on a running instance: what they see changes what is routed and what is restarted.

use serde_json::json;
use tombolo_harness::{Function, NodeOptions, Site, until};

#[tokio::test]
async fn an_instance_that_is_not_alive_is_replaced() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
    let alive = json!({"httpGet": {"path": "/health"}, "periodSeconds": 1, "failureThreshold": 2});
    site.hub.deploy(&Function::subject("subject").probe("livenessProbe", alive)).await;
    until("the first answer", 20, || node.answer("subject", "/")).await;
    let before = node.instances("subject").await.expect("the agent says what it runs");
    node.answer("subject", "/sicken").await.expect("it falls ill");
    until("another instance", 90, || async {
        let now = node.instances("subject").await?;
        if now.len() == 1 && now != before { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    node.answer("subject", "/").await.expect("the next one serves");
    let told = site.hub.api.node("press-7").await.expect("the hub knows the node").to_string()
        + &site.hub.api.told("subject").await.expect("the hub knows the service")
        + &node.log();
    assert!(told.contains("LivenessProbeFailed"), "{told}");
}

#[tokio::test]
async fn an_instance_that_is_not_ready_gets_no_requests() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
    let ready = json!({"httpGet": {"path": "/health"}, "periodSeconds": 1, "failureThreshold": 1});
    let function = Function::subject("subject")
        .probe("readinessProbe", ready)
        .annotation("autoscaling.knative.dev/min-scale", "2");
    site.hub.deploy(&function).await;
    until("two instances", 30, || async {
        let count = node.instances("subject").await?.len();
        if count == 2 { Ok(()) } else { Err(format!("{count}")) }
    })
    .await;
    node.answer("subject", "/sicken").await.expect("one of them falls ill");
    until("requests at the healthy one alone", 30, || async {
        for _ in 0..40 {
            match node.ask("subject", "/health").await.answer {
                Ok((200, _)) => {}
                other => return Err(other),
            }
        }
        Ok(())
    })
    .await;
}

/// `exec` in the instance: the hello image has one program and no shell, so the command is that program.
#[tokio::test]
async fn a_command_in_the_instance_can_be_the_probe() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
    let exec =
        |command: &[&str]| json!({"exec": {"command": command}, "periodSeconds": 1, "timeoutSeconds": 5});
    let good = exec(&["/program", "--exit", "0"]);
    site.hub.deploy(&Function::subject("good").probe("readinessProbe", good)).await;
    node.answer("good", "/").await.expect("it passed its probe");
    let bad = Function::subject("bad")
        .probe("readinessProbe", exec(&["/program", "--exit", "4"]))
        .annotation("serving.knative.dev/progress-deadline", "5s");
    site.hub.deploy_unready(&bad).await;
    until("the reason at the hub", 60, || async {
        let text = site.hub.api.told("bad").await.map_err(|error| error.to_string())?;
        if text.contains("ProgressDeadlineExceeded") { Ok(()) } else { Err(text) }
    })
    .await;
}

/// Both listen after two seconds, and their liveness probe gives them one.
#[tokio::test]
async fn a_startup_probe_keeps_liveness_from_a_slow_start() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
    let health = |failures: u32| json!({"httpGet": {"path": "/health"}, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": failures});
    let function = |name| Function::subject(name).env("MODE", "late").probe("livenessProbe", health(1));
    let failed = |name: &str| {
        node.log()
            .lines()
            .any(|line| line.contains(&format!("{name}-00001 ")) && line.contains("LivenessProbeFailed"))
    };
    site.hub.deploy_unready(&function("hasty")).await;
    site.hub.deploy(&function("patient").probe("startupProbe", health(60))).await;
    node.answer("patient", "/").await.expect("it has started");
    until("the other to be ended for its slow start", 30, || async {
        if failed("hasty") { Ok(()) } else { Err(node.log()) }
    })
    .await;
    assert!(!failed("patient"));
}

/// `grpc` in the probe: the program serves `grpc.health.v1.Health`.
#[tokio::test]
async fn a_health_service_can_be_the_probe() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
    let health = || json!({"grpc": {}, "periodSeconds": 1, "timeoutSeconds": 5});
    site.hub.deploy(&Function::grpc("well").probe("readinessProbe", health())).await;
    let mut call = node.call("well", "/test.Echo/Say").await.expect("it passed its probe");
    call.finish();
    assert_eq!(call.hear().await.expect("the call ends"), None);
    assert_eq!(call.status(), Some("0"));
    let ill = Function::grpc("ill")
        .env("HEALTH", "ill")
        .probe("readinessProbe", health())
        .annotation("serving.knative.dev/progress-deadline", "5s");
    site.hub.deploy_unready(&ill).await;
    until("the reason at the hub", 60, || async {
        let text = site.hub.api.told("ill").await.map_err(|error| error.to_string())?;
        let says = text.contains("ProgressDeadlineExceeded") && text.contains("answered NOT_SERVING");
        if says { Ok(()) } else { Err(text) }
    })
    .await;
}
