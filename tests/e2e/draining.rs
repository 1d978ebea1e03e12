//! Requests in instances that leave, whyever they do: each has its whole answer, while others go to what comes next.

use std::fs;
use std::path::PathBuf;

use serde_json::json;
use tombolo_harness::{Function, Load, Node, NodeOptions, Site, until};

/// Does `act` while a request is in each instance of `revision`, and lets these end once an instance drains.
async fn while_some_are_in(node: &Node, (service, revision): (&str, &str), act: impl Future<Output = ()>) {
    let running = until("the agent to say what it runs", 20, || async {
        let running = node.instances(revision).await?;
        if running.is_empty() { Err("nothing yet".to_owned()) } else { Ok(running) }
    })
    .await;
    let processes: Vec<_> = running.values().map(|pid| PathBuf::from(format!("/proc/{pid}"))).collect();
    // Each is there for as long as the program has the request, and until it is removed here.
    let held: Vec<_> = processes.iter().map(|process| process.join("root/tmp/held")).collect();
    // One after the other: two that come at once may be sent to the same instance.
    let mut requests = Vec::new();
    for count in 1..=held.len() {
        requests.push(node.load(service, "/await?/tmp/held", 1, 0));
        until("the program to have the request", 20, || async {
            let there: Vec<_> = held.iter().filter(|file| file.exists()).collect();
            if there.len() == count { Ok(()) } else { Err(there) }
        })
        .await;
    }
    act.await;
    until("an instance to drain", 25, || async {
        let running = node.instances(revision).await?;
        if running.len() < held.len() { Ok(()) } else { Err(format!("{running:?}")) }
    })
    .await;
    requests.iter().for_each(Load::no_more);
    held.iter().try_for_each(fs::remove_file).expect("the instances are there");
    let mut answers = Vec::new();
    for load in requests {
        answers.extend(load.stop().await.into_iter().map(|outcome| outcome.answer));
    }
    assert_eq!(answers, vec![Ok((200, "waited".to_owned())); held.len()], "{revision}");
    until("its program to be gone", 60, || async {
        if processes.iter().all(|process| process.exists()) { Err(&processes) } else { Ok(()) }
    })
    .await;
}

/// Updated, sent elsewhere, deleted, scaled down.
#[tokio::test]
async fn a_request_in_an_instance_that_leaves_has_its_whole_answer() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
    let version = |number| Function::subject("subject").env("MODE", "polite").env("VERSION", number);
    let says = async |text: &str| {
        until(&format!("new requests to be answered by {text:?}"), 40, || async {
            let answer = node.answer("subject", "/").await?;
            if answer.trim() == text { Ok(()) } else { Err(answer) }
        })
        .await;
    };
    site.hub.deploy(&version("1")).await;
    says("subject 1").await;
    while_some_are_in(&node, ("subject", "subject-00001"), async {
        site.hub.deploy(&version("2")).await;
        says("subject 2").await;
    })
    .await;
    let send_all_to = async |revision: &str| {
        let patch = json!({"spec": {"traffic": [{"revisionName": revision, "percent": 100}]}});
        site.hub.api.patch_service("subject", &patch).await.expect("the hub takes a split");
    };
    send_all_to("subject-00001").await;
    says("subject 1").await;
    while_some_are_in(&node, ("subject", "subject-00001"), async {
        send_all_to("subject-00002").await;
        says("subject 2").await;
    })
    .await;
    while_some_are_in(&node, ("subject", "subject-00002"), async {
        site.hub.api.delete_service("subject").await.expect("a service can be deleted");
        until("the host to be unknown", 20, || async {
            match node.ask("subject", "/").await.answer {
                Ok((404, _)) => Ok(()),
                other => Err(other),
            }
        })
        .await;
    })
    .await;

    // Few requests in a long time are no rate that needs two.
    let rare = Function::subject("rare")
        .env("MODE", "polite")
        .annotation("autoscaling.knative.dev/metric", "rps")
        .annotation("autoscaling.knative.dev/window", "6s")
        .annotation("autoscaling.knative.dev/initial-scale", "2");
    site.hub.deploy(&rare).await;
    while_some_are_in(&node, ("rare", "rare-00001"), async {
        until("one instance", 25, || async {
            let running = node.instances("rare").await?;
            if running.len() == 1 { Ok(()) } else { Err(format!("{running:?}")) }
        })
        .await;
        node.answer("rare", "/").await.expect("the next request has an instance");
    })
    .await;
}
