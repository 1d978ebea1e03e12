//! What an idle service keeps, and that each way back works.

use std::collections::BTreeMap;
use std::time::Duration;

use tombolo_harness::{Function, Node, NodeOptions, Site, until};

async fn idle(node: &Node, service: &str, expected: &[(&str, usize)]) {
    let expected: BTreeMap<String, usize> =
        expected.iter().map(|(tier, count)| ((*tier).to_owned(), *count)).collect();
    until(&format!("{service} to keep {expected:?}"), 60, || async {
        let tiers = node.tiers(service).await?;
        if tiers == expected { Ok(()) } else { Err(format!("{tiers:?}")) }
    })
    .await;
}

#[tokio::test]
async fn an_idle_service_keeps_what_its_tier_says() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(1)).await;
    let tiers: [(&str, &[(&str, usize)]); 4] = [
        ("cold", &[]),
        ("primed", &[("primed", 1)]),
        ("frozen", &[("frozen", 1)]),
        ("running", &[("running", 1)]),
    ];
    for (tier, _) in tiers {
        site.hub.deploy(&Function::hello(tier).annotation("tombolo.dev/idle-tier", tier)).await;
    }
    for (tier, kept) in tiers {
        idle(&node, tier, kept).await;
        for _ in 0..2 {
            let answer = node.answer(tier, "/").await.expect("a request wakes the function");
            assert!(answer.starts_with("Hello World"), "{answer}");
        }
        idle(&node, tier, kept).await;
    }
    // A request may wake a frozen instance and be answered before the agent has it in its books.
    until("the count of frozen instances", 20, || async {
        let metrics = node.metrics().await?;
        let counted = metrics.contains("tombolo_instances{tier=\"frozen\"} 1");
        if counted { Ok(()) } else { Err(metrics) }
    })
    .await;
}

/// A frozen instance is the same process afterwards and has used no processor time.
#[tokio::test]
async fn a_frozen_instance_costs_no_cpu_and_goes_on() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(1)).await;
    site.hub.deploy(&Function::hello("hello").annotation("tombolo.dev/idle-tier", "frozen")).await;
    until("the first answer", 20, || node.answer("hello", "/")).await;
    let before = node.instances("hello").await.expect("the agent says what it runs");
    idle(&node, "hello", &[("frozen", 1)]).await;
    let pid = *before.values().next().expect("an instance ran");
    let used = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
        let fields: Vec<String> =
            stat.rsplit_once(')').expect("a name").1.split(' ').map(str::to_owned).collect();
        (fields[12].clone(), fields[13].clone())
    };
    let first = used();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(used(), first, "a frozen process ran");
    // However soon the request is over, the agent knows that the instance runs, and freezes it again.
    for _ in 0..3 {
        node.answer("hello", "/").await.expect("it wakes");
        until("the same instance to run", 20, || async {
            let now = node.instances("hello").await?;
            if now == before { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
        idle(&node, "hello", &[("frozen", 1)]).await;
    }
}

/// Primed and frozen instances outlive the agent.
#[tokio::test]
async fn what_waits_outlives_the_agent() {
    let Some(mut site) = Site::start().await else { return };
    let mut node = site.node(NodeOptions::named("press-7").idle_timeout_s(1)).await;
    for tier in ["primed", "frozen"] {
        site.hub.deploy(&Function::hello(tier).annotation("tombolo.dev/idle-tier", tier)).await;
    }
    for tier in ["primed", "frozen"] {
        idle(&node, tier, &[(tier, 1)]).await;
    }
    node.kill_agent();
    node.start_agent().expect("the agent starts again");
    for tier in ["primed", "frozen"] {
        until("an answer", 20, || node.answer(tier, "/")).await;
        idle(&node, tier, &[(tier, 1)]).await;
    }
}

/// Two functions of which the node holds one: each takes the other's place when it is called.
#[tokio::test]
async fn a_frozen_instance_gives_its_memory_to_who_has_none() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(1)).await;
    for name in ["first", "second"] {
        let function = Function::subject(name)
            .env("MODE", "polite")
            .memory_fifths(3)
            .annotation("tombolo.dev/idle-tier", "frozen");
        site.hub.deploy(&function).await;
    }
    for (called, other) in [("first", "second"), ("second", "first"), ("first", "second")] {
        assert_eq!(node.answer(called, "/count").await.as_deref(), Ok("1"), "it began anew");
        idle(&node, other, &[("primed", 1)]).await;
        idle(&node, called, &[("frozen", 1)]).await;
    }
}
