//! What a node does when the hub or its own agent is gone.

use std::time::{Duration, Instant};

use tombolo_harness::{Function, NodeOptions, Site, condition, until, within};

/// Hub killed: the node goes on answering, scales to zero and back.
#[tokio::test]
async fn survives_hub_loss() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(1)).await;
    site.hub.deploy(&Function::hello("hello")).await;
    until("the first answer", 20, || node.answer("hello", "/")).await;
    let connects = node.traffic().await.expect("the agent counts its connections").connects;
    site.hub.kill();
    for _ in 0..2 {
        node.answer("hello", "/").await.expect("it answers without a hub");
        until("zero instances", 20, || async {
            let instances = node.instances("hello").await?;
            if instances.is_empty() { Ok(()) } else { Err(format!("{instances:?}")) }
        })
        .await;
    }
    node.answer("hello", "/").await.expect("it wakes without a hub");
    // And the hub finds it again.
    site.hub.start().await.expect("the hub starts again");
    until("the node to connect again", 90, || async {
        let now = node.traffic().await?.connects;
        if now > connects { Ok(()) } else { Err(format!("{now} connections")) }
    })
    .await;
    until("the hub to know it", 10, || async {
        let seen = site.hub.api.node("press-7").await.map_err(|error| error.to_string())?;
        let ready = condition(&seen, "Ready");
        if ready["status"] == "True" { Ok(()) } else { Err(ready.to_string()) }
    })
    .await;
}

/// Agent killed -9 and started again: the same instances, answers within a second, and only requests that were in flight
/// through the dead agent, or came while there was none, saw an error.
#[tokio::test]
async fn a_killed_agent_finds_its_instances_again() {
    let Some(mut site) = Site::start().await else { return };
    let mut node = site.node(NodeOptions::named("press-7")).await;
    site.hub.deploy(&Function::hello("hello")).await;
    until("the first answer", 20, || node.answer("hello", "/")).await;
    let before = node.instances("hello").await.expect("the agent says what it runs");
    assert_eq!(before.len(), 1, "{before:?}");
    let load = node.load("hello", "/", 4, 2);
    tokio::time::sleep(Duration::from_millis(300)).await;

    let killed = Instant::now();
    node.kill_agent();
    node.start_agent().expect("the agent starts again");
    until("an answer", 5, || node.answer("hello", "/")).await;
    let back = Instant::now();
    tokio::time::sleep(Duration::from_millis(300)).await;

    let outcomes = load.stop().await;
    assert!(back - killed <= within(Duration::from_secs(1)), "answers came back after {:?}", back - killed);
    for outcome in outcomes.iter().filter(|outcome| !outcome.is_good()) {
        // A request may have been in flight when the agent died, or have found nobody until the new one listened.
        assert!(
            outcome.end >= killed && outcome.start <= back,
            "{outcome:?}, killed {killed:?}, back {back:?}"
        );
    }
    let good_after = outcomes.iter().filter(|outcome| outcome.is_good() && outcome.start > back).count();
    assert!(good_after > 10, "{good_after} requests succeeded afterwards");
    until("the same instances", 10, || async {
        let after = node.instances("hello").await?;
        if after == before { Ok(()) } else { Err(format!("{after:?} instead of {before:?}")) }
    })
    .await;
}

/// The runtime supervisor killed -9: instances go on, the agent starts another one, which knows them.
#[tokio::test]
async fn a_killed_supervisor_is_replaced_and_instances_stay() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
    site.hub.deploy(&Function::hello("hello")).await;
    until("the first answer", 20, || node.answer("hello", "/")).await;
    let before = node.instances("hello").await.expect("the agent says what it runs");
    node.kill_supervisor();
    node.answer("hello", "/").await.expect("instances serve without a supervisor");
    until("another supervisor and the same instances", 20, || async {
        let after = node.instances("hello").await?;
        match node.supervisor_pid() {
            Some(_) if after == before => Ok(()),
            supervisor => Err(format!("{after:?} instead of {before:?}, supervisor {supervisor:?}")),
        }
    })
    .await;
    // It can still be stopped and deleted by the new one.
    site.hub.api.delete_service("hello").await.expect("a service can be deleted");
    until("the instance to be gone", 60, || async {
        let left = node.census("hello");
        let running =
            before.values().any(|pid| left.processes.iter().any(|(other, _)| i64::from(*other) == *pid));
        if running || !left.cgroups.is_empty() { Err(left) } else { Ok(()) }
    })
    .await;
}
