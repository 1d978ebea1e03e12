//! Where requests go: splits, tags, headers, gradual and health-gated rollouts, update strategies.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use tombolo_harness::{Function, Node, NodeOptions, Outcome, Site, condition, until, within};

async fn site_and_node() -> Option<(Site, Node)> {
    let mut site = Site::start().await?;
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
    Some((site, node))
}

/// Deploys version `number` of `function` and waits until it answers at all.
async fn deploy(site: &Site, node: &Node, function: Function) {
    let name = function.name().to_owned();
    site.hub.deploy(&function).await;
    until("the first answer", 20, || node.answer(&name, "/env")).await;
}

async fn set_traffic(site: &Site, service: &str, traffic: &Value) {
    let patch = json!({"spec": {"traffic": traffic}});
    site.hub.api.patch_service(service, &patch).await.expect("the hub takes a split");
}

fn share(revision: &str, percent: u8) -> Value {
    json!({"revisionName": revision, "percent": percent})
}

fn all_good(outcomes: &[Outcome]) {
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.is_good()).collect();
    assert!(failed.is_empty(), "{} of {} requests failed: {:?}", failed.len(), outcomes.len(), failed[0]);
}

fn bodies(outcomes: &[Outcome]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for (_, body) in outcomes.iter().filter_map(|outcome| outcome.answer.as_ref().ok()) {
        *counts.entry(body.trim().to_owned()).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn two_hundred_changes_of_a_split_lose_no_request() {
    let Some((site, node)) = site_and_node().await else { return };
    deploy(&site, &node, Function::hello("hello")).await;
    deploy(&site, &node, Function::hello("hello").content("two")).await;
    let load = node.load("hello", "/", 4, 1);
    for round in 0..200_u32 {
        let percent = u8::try_from(round * 37 % 101).expect("a percentage");
        let traffic = json!([share("hello-00001", percent), share("hello-00002", 100 - percent)]);
        set_traffic(&site, "hello", &traffic).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let outcomes = load.stop().await;
    all_good(&outcomes);
    assert_eq!(bodies(&outcomes).len(), 2, "{:?}", bodies(&outcomes));
}

#[tokio::test]
async fn tags_and_headers_choose_a_revision() {
    let Some((site, node)) = site_and_node().await else { return };
    let rules = r#"[{"header":"User-Agent","regex":"iPhone|iPad","tag":"next"}]"#;
    deploy(&site, &node, Function::hello("hello")).await;
    deploy(&site, &node, Function::hello("hello").content("two")).await;
    let tagged = json!([
        share("hello-00001", 100),
        {"revisionName": "hello-00002", "percent": 0, "tag": "next"},
    ]);
    set_traffic(&site, "hello", &tagged).await;
    let annotations = json!({"metadata": {"annotations": {"tombolo.dev/steering": rules}}});
    site.hub.api.patch_service("hello", &annotations).await.expect("the hub takes steering rules");
    let (own, tag) = ("hello.default.localhost", "next-hello.default.localhost");
    let ask =
        async |host: &str, headers: &[(&str, &str)]| match node.ask_host(host, "/", headers).await.answer {
            Ok((200, body)) => body,
            other => format!("{other:?}"),
        };
    until("the rules in force", 20, || async {
        let phone = ask(own, &[("User-Agent", "Mozilla/5.0 (iPhone)")]).await;
        let other = ask(own, &[]).await;
        let whole = phone.contains("hello-00002") && other.contains("hello-00001");
        if whole { Ok(()) } else { Err(phone + &other) }
    })
    .await;
    for (host, headers, revision) in [
        (own, vec![], "hello-00001"),
        (tag, vec![], "hello-00002"),
        (own, vec![("Knative-Serving-Tag", "next")], "hello-00002"),
        (own, vec![("Knative-Serving-Tag", "unknown")], "hello-00001"),
        (own, vec![("User-Agent", "curl/8")], "hello-00001"),
    ] {
        let answer = ask(host, &headers).await;
        assert!(answer.contains(revision), "{host} {headers:?}: {answer}");
    }
}

#[tokio::test]
async fn a_rollout_moves_traffic_in_steps() {
    let Some((site, node)) = site_and_node().await else { return };
    let function =
        || Function::hello("hello").service_annotation("serving.knative.dev/rollout-duration", "12s");
    deploy(&site, &node, function()).await;
    let load = node.load("hello", "/", 4, 2);
    site.hub.deploy_unready(&function().content("two")).await;
    until("the first answers of the new revision", 20, || async {
        let answer = node.answer("hello", "/").await?;
        if answer.contains("hello-00002") { Ok(()) } else { Err(answer) }
    })
    .await;
    let route = "/apis/serving.knative.dev/v1/namespaces/default/routes/hello";
    until("the hub to say that it goes on", 10, || async {
        let route = site.hub.api.get(route).await.map_err(|error| error.to_string())?;
        let ingress = condition(&route, "IngressReady");
        if ingress["reason"] == "RolloutInProgress" { Ok(()) } else { Err(ingress.to_string()) }
    })
    .await;
    until("all of it on the new revision", 60, || async {
        let mut seen = BTreeSet::new();
        for _ in 0..50 {
            seen.insert(node.answer("hello", "/").await?);
        }
        if seen.iter().all(|body| body.contains("hello-00002")) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    let outcomes = load.stop().await;
    all_good(&outcomes);
    // In the middle both were served: the shift took steps.
    let first_new = outcomes
        .iter()
        .filter(|outcome| outcome.answer.as_ref().is_ok_and(|(_, body)| body.contains("hello-00002")))
        .map(|outcome| outcome.start)
        .min()
        .expect("the new revision answered");
    let old_after = outcomes
        .iter()
        .filter(|outcome| outcome.answer.as_ref().is_ok_and(|(_, body)| body.contains("hello-00001")))
        .filter(|outcome| outcome.start > first_new + Duration::from_secs(3))
        .count();
    assert!(old_after > 10, "{old_after} answers of the old revision three seconds into the rollout");
    until("the route to be ready", 30, || site.hub.api.ready_service("hello")).await;
}

/// Version `number` of a function whose traffic moves within a minute.
fn gradual(number: &str) -> Function {
    let function = Function::subject("subject").env("VERSION", number);
    function.service_annotation("serving.knative.dev/rollout-duration", "60s")
}

/// Waits until the node has undone the rollout for this reason.
async fn is_rolled_back(node: &Node, reason: &str) {
    until("the way back", 90, || async {
        let routes = node.status().await?["routes"].to_string();
        if routes.contains(reason) { Ok(()) } else { Err(routes) }
    })
    .await;
}

/// Waits until the hub says all of these of the function, which the former revision serves alone by then.
async fn is_told(site: &Site, node: &Node, words: &[&str]) {
    until("the reason at the hub", 90, || async {
        let text = site.hub.api.told("subject").await.map_err(|error| error.to_string())?;
        if words.iter().all(|word| text.contains(word)) { Ok(()) } else { Err(text) }
    })
    .await;
    for _ in 0..50 {
        assert_eq!(node.answer("subject", "/").await.expect("the old revision serves"), "subject 1\n");
    }
}

/// One per cent of the traffic failed, later a few: far from what a switch would have cost.
fn few_failed(outcomes: &[Outcome]) {
    let failed = outcomes.iter().filter(|outcome| !outcome.is_good()).count();
    assert!(failed * 5 < outcomes.len(), "{failed} of {} requests failed", outcomes.len());
}

#[tokio::test]
async fn a_worse_revision_is_rolled_back_without_a_hub() {
    let Some((site, node)) = site_and_node().await else { return };
    deploy(&site, &node, gradual("1")).await;
    let load = node.load("subject", "/", 4, 2);
    site.hub.deploy_unready(&gradual("2").env("MODE", "failing")).await;
    until("an instance of the new revision", 30, || async {
        let running = node.instances("subject-00002").await?;
        if running.is_empty() { Err("none".to_owned()) } else { Ok(()) }
    })
    .await;
    node.cut_link();
    is_rolled_back(&node, "ErrorRateTooHigh").await;
    few_failed(&load.stop().await);
    node.restore_link();
    is_told(&site, &node, &["ErrorRateTooHigh", "press-7"]).await;
}

/// It says 200 and ends each answer in the middle.
#[tokio::test]
async fn a_revision_whose_answers_break_off_is_rolled_back() {
    let Some((site, node)) = site_and_node().await else { return };
    deploy(&site, &node, gradual("1")).await;
    let load = node.load("subject", "/", 4, 2);
    site.hub.deploy_unready(&gradual("2").env("MODE", "cutting")).await;
    is_rolled_back(&node, "ErrorRateTooHigh").await;
    is_told(&site, &node, &["ErrorRateTooHigh", "broken off"]).await;
    let outcomes = load.stop().await;
    few_failed(&outcomes);
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.is_good()).collect();
    assert!(!failed.is_empty() && failed.iter().all(|outcome| outcome.answer.is_err()), "{failed:?}");
}

/// Every answer is good, and comes half a second later than those of the revision before.
#[tokio::test]
async fn a_slow_revision_is_rolled_back() {
    let Some((site, node)) = site_and_node().await else { return };
    deploy(&site, &node, gradual("1")).await;
    let load = node.load("subject", "/", 4, 2);
    site.hub.deploy_unready(&gradual("2").env("MODE", "slow")).await;
    is_rolled_back(&node, "LatencyTooHigh").await;
    is_told(&site, &node, &["LatencyTooHigh", "subject-00002 took", "to the first byte in the mean of"])
        .await;
    all_good(&load.stop().await);
}

/// It listens, takes its requests and never answers; their own limit of 300 s is far.
#[tokio::test]
async fn a_revision_that_hangs_is_rolled_back() {
    let Some((site, node)) = site_and_node().await else { return };
    deploy(&site, &node, gradual("1")).await;
    let load = node.load("subject", "/", 12, 5);
    site.hub.deploy_unready(&gradual("2").env("MODE", "silent")).await;
    is_rolled_back(&node, "NoAnswers").await;
    is_told(&site, &node, &["NoAnswers", "waiting for more than 10 s"]).await;
    few_failed(&load.stop().await);
}

/// Unary and streaming, the first one from zero instances, to a program whose port is named `h2c`.
#[tokio::test]
async fn grpc_calls_keep_their_messages_and_their_outcome() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(1)).await;
    site.hub.deploy(&Function::grpc("calls")).await;
    until("the service to sleep", 60, || async {
        let running = node.instances("calls").await?;
        if running.is_empty() { Ok(()) } else { Err(format!("{running:?}")) }
    })
    .await;
    let mut unary = node.call("calls", "/test.Echo/Say").await.expect("the call is answered");
    unary.say("once").await.expect("the function listens");
    unary.finish();
    assert_eq!(unary.hear().await.expect("the function answers").as_deref(), Some("once"));
    assert_eq!(unary.hear().await.expect("the call ends"), None);
    assert_eq!(unary.status(), Some("0"));

    let mut stream = node.call("calls", "/test.Echo/Say").await.expect("the call is answered");
    for number in 0..20 {
        // Each answer comes before the next message is said: nothing on the way waits for the end.
        stream.say(&format!("message {number}")).await.expect("the function listens");
        let heard = stream.hear().await.expect("the function answers");
        assert_eq!(heard, Some(format!("message {number}")));
    }
    assert_eq!(stream.status(), None, "the call goes on");
    stream.finish();
    assert_eq!(stream.hear().await.expect("the call ends"), None);
    assert_eq!(stream.status(), Some("0"));

    let mut unknown = node.call("calls", "/test.Echo/Shout").await.expect("the call is answered");
    unknown.finish();
    assert_eq!(unknown.hear().await.expect("the call ends"), None);
    assert_eq!(unknown.status(), Some("12"), "the function's own word");
}

/// Revisions with a running instance, seen again and again while `act` goes on.
async fn together(node: &Node, service: &str, act: impl Future<Output = ()>) -> usize {
    let mut most = 0;
    let mut act = std::pin::pin!(act);
    loop {
        tokio::select! {
            () = &mut act => return most,
            () = tokio::time::sleep(Duration::from_millis(10)) => {
                let Ok(instances) = node.instances(service).await else { continue };
                let revisions: BTreeSet<_> = instances.keys().filter_map(|id| id.get(..service.len() + 6)).collect();
                most = most.max(revisions.len());
            }
        }
    }
}

#[tokio::test]
async fn one_instance_at_a_time_where_that_is_asked_for() {
    let Some((site, node)) = site_and_node().await else { return };
    for strategy in ["stop-first", "hand-over"] {
        let function = || Function::hello(strategy).annotation("tombolo.dev/update-strategy", strategy);
        deploy(&site, &node, function()).await;
        let load = node.load(strategy, "/", 4, 5);
        let update = async {
            site.hub.deploy(&function().content("two")).await;
            until("the new revision", 30, || async {
                let answer = node.answer(strategy, "/").await?;
                if answer.contains("00002") { Ok(()) } else { Err(answer) }
            })
            .await;
        };
        let most = together(&node, strategy, update).await;
        all_good(&load.stop().await);
        assert_eq!(most, 1, "{strategy}: revisions that ran at the same time");
    }
}

#[tokio::test]
async fn a_swap_that_does_not_get_ready_is_undone() {
    let Some((site, mut node)) = site_and_node().await else { return };
    let function = || {
        Function::subject("subject")
            .annotation("tombolo.dev/update-strategy", "stop-first")
            .annotation("serving.knative.dev/progress-deadline", "5s")
    };
    deploy(&site, &node, function().env("VERSION", "1")).await;
    site.hub.deploy_unready(&function().env("MODE", "deaf")).await;
    until("the reason at the hub", 120, || async {
        let text = site.hub.api.told("subject").await.map_err(|error| error.to_string())?;
        if text.contains("NotReadyInTime") { Ok(()) } else { Err(text) }
    })
    .await;
    old_serves(&node).await;
    // Neither a power cut nor a crash has it tried again. The crash last: it leaves a supervisor that is nobody's child.
    for loses_power in [true, false] {
        if loses_power {
            node.power_off().expect("a node can lose power");
        } else {
            node.kill_agent();
        }
        node.start_agent().expect("the agent starts");
        is_undone(&node).await;
        old_serves(&node).await;
        let swaps = node.log().matches("TakeOver {").count();
        assert_eq!(swaps, 1, "swaps tried, loses_power: {loses_power}");
    }
}

/// A plain update, and a rollout that cannot be: neither waits for ever for room beside the one before, nor sends it requests.
#[tokio::test]
async fn what_never_fits_beside_the_one_before_takes_its_place_at_once() {
    let Some((site, node)) = site_and_node().await else { return };
    let function = || {
        Function::hello("large")
            .memory_fifths(3)
            .annotation("autoscaling.knative.dev/min-scale", "1")
            .service_annotation("serving.knative.dev/rollout-duration", "600s")
    };
    deploy(&site, &node, function()).await;
    let load = node.load("large", "/", 4, 5);
    let update = async {
        site.hub.deploy(&function().content("two")).await;
        until("the new revision", 60, || async {
            for _ in 0..20 {
                let answer = node.answer("large", "/").await?;
                if !answer.contains("00002") {
                    return Err(answer);
                }
            }
            Ok(())
        })
        .await;
    };
    let most = together(&node, "large", update).await;
    all_good(&load.stop().await);
    assert_eq!(most, 1, "revisions that ran at the same time");
}

#[tokio::test]
async fn an_automatic_swap_goes_on_after_a_crash_of_the_agent() {
    let Some((site, mut node)) = site_and_node().await else { return };
    let function = || {
        Function::subject("subject")
            .memory_fifths(3)
            .annotation("tombolo.dev/update-strategy", "auto")
            .annotation("serving.knative.dev/progress-deadline", "10s")
    };
    deploy(&site, &node, function().env("VERSION", "1")).await;
    site.hub.deploy_unready(&function().env("MODE", "deaf")).await;
    until("the swap to begin", 60, || async {
        if node.log().contains("TakeOver {") { Ok(()) } else { Err("not yet") }
    })
    .await;
    // Its beginning is written behind.
    tokio::time::sleep(within(Duration::from_secs(1))).await;
    node.kill_agent();
    node.start_agent().expect("the agent starts");
    is_undone(&node).await;
    old_serves(&node).await;
    assert_eq!(node.log().matches("TakeOver {").count(), 1);
}

async fn is_undone(node: &Node) {
    until("the reason in the node's status", 60, || async {
        let routes = node.status().await?["routes"].to_string();
        if routes.contains("NotReadyInTime") { Ok(()) } else { Err(routes) }
    })
    .await;
}

async fn old_serves(node: &Node) {
    until("the old revision to serve", 60, || async {
        let answer = node.answer("subject", "/").await?;
        if answer == "subject 1\n" { Ok(()) } else { Err(answer) }
    })
    .await;
}
