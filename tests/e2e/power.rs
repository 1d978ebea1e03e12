//! Power cuts, in two halves that run on both sides of one: `tests/guest/check` cuts the power of a machine while the first
//! half writes, and runs the second half when the machine is up again.
//!
//! Without `TOMBOLO_POWER` there is nothing to do here: a process cannot cut its own machine's power.

use std::path::PathBuf;

use serde_json::json;
use tombolo_harness::{Function, NodeOptions, Site, until};

const NAME: &str = "press-7";

/// What the node acknowledged before the cut, or something newer, is what it serves after it, without its hub.
#[tokio::test]
async fn state_survives_power_cuts() {
    let (Ok(half), Some(dir)) = (std::env::var("TOMBOLO_POWER"), std::env::var_os("TOMBOLO_POWER_DIR"))
    else {
        return tombolo_harness::skip("power is cut by tests/guest/check only");
    };
    let dir = PathBuf::from(dir);
    match half.as_str() {
        "write" => write(dir).await,
        "verify" => verify(dir).await,
        other => panic!("TOMBOLO_POWER is write or verify, not {other}"),
    }
}

/// Changes the desired state for ever, and prints each generation that the hub has seen acknowledged.
async fn write(dir: PathBuf) {
    let Some(mut site) = Site::start_in(&dir).await else { return };
    let node = site.node(NodeOptions::named(NAME).idle_timeout_s(600)).await;
    if site.hub.api.service("hello").await.is_err() {
        site.hub.deploy(&Function::hello("hello")).await;
    }
    until("the first answer", 60, || node.answer("hello", "/")).await;
    println!("power: writing");
    for round in 0.. {
        let tag = format!("t{round}x{}", std::process::id());
        let patch = json!({"spec": {"traffic": [{"latestRevision": true, "percent": 100, "tag": tag}]}});
        site.hub.api.patch_service("hello", &patch).await.expect("a service can be patched");
        let acked = until("the new state to be acknowledged", 60, || async {
            let seen = site.hub.api.node(NAME).await.map_err(|error| error.to_string())?["status"].clone();
            let (serving, desired) = (&seen["serving"]["generation"], &seen["desired"]["generation"]);
            if serving.is_u64() && serving == desired { Ok(serving.clone()) } else { Err(seen.to_string()) }
        })
        .await;
        println!("power: acked {acked}");
    }
}

/// Starts the node alone and prints the generation it serves.
async fn verify(dir: PathBuf) {
    let Some(mut site) = Site::alone_in(&dir) else { return };
    let mut node =
        site.prepare_node(NodeOptions::named(NAME).idle_timeout_s(600)).expect("a node can be prepared");
    node.cut_link();
    node.start_agent().expect("the agent starts");
    let answer = until("an answer after the power cut", 30, || node.answer("hello", "/")).await;
    assert!(answer.starts_with("Hello World"), "{answer}");
    let status = node.status().await.expect("the agent says what it runs");
    println!("power: serving {}", status["serving"]["generation"]);
}
