//! A service from its first deployment over an update to its deletion.

use std::collections::BTreeSet;
use std::time::Duration;

use tombolo_harness::{Census, Function, NodeOptions, Site, until};

/// Deploy, answer; update the image under load, not one request fails; delete, nothing is left.
#[tokio::test]
async fn deploys_updates_and_deletes_without_a_trace() {
    let Some(mut site) = Site::start().await else { return };
    // Images stay for a day otherwise.
    let options = NodeOptions::named("press-7").config("[images]\nkeep_unused_hours = 0\n");
    let node = site.node(options).await;
    let before = node.census("hello");

    site.hub.deploy(&Function::hello("hello").content("one")).await;
    let first = until("the first answer", 20, || node.answer("hello", "/")).await;
    assert_eq!(first, "Hello World from hello-00001!\n");
    // The count itself sees what there is to see.
    let running = node.census("hello").since(&before);
    assert!(!running.processes.is_empty() && !running.cgroups.is_empty(), "{running:?}");
    assert!(!running.namespaces.is_empty() && !running.files.is_empty(), "{running:?}");

    let load = node.load("hello", "/", 4, 2);
    tokio::time::sleep(Duration::from_millis(500)).await;
    site.hub.deploy(&Function::hello("hello").content("two")).await;
    until("traffic on the new revision", 20, || async {
        let answer = node.answer("hello", "/").await?;
        if answer.contains("hello-00002") { Ok(()) } else { Err(answer) }
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let outcomes = load.stop().await;
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.is_good()).collect();
    assert!(failed.is_empty(), "{} of {} requests failed: {:?}", failed.len(), outcomes.len(), failed[0]);
    let bodies: BTreeSet<_> =
        outcomes.iter().filter_map(|outcome| outcome.answer.as_ref().ok()).map(|(_, body)| body).collect();
    assert_eq!(bodies.len(), 2, "{bodies:?}");

    site.hub.api.delete_service("hello").await.expect("a service can be deleted");
    until("the host to be unknown", 20, || async {
        match node.ask("hello", "/").await.answer {
            Ok((404, _)) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    until("nothing to be left behind", 60, || async {
        let left = node.census("hello").since(&before);
        if left == Census::default() { Ok(()) } else { Err(left) }
    })
    .await;
}

/// Idle to zero and back, without the hub having to say so.
#[tokio::test]
async fn goes_to_zero_when_idle_and_back_with_a_request() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(1)).await;
    site.hub.deploy(&Function::hello("hello")).await;
    until("the first answer", 20, || node.answer("hello", "/")).await;
    until("zero instances", 20, || async {
        let instances = node.instances("hello").await?;
        if instances.is_empty() { Ok(()) } else { Err(format!("{instances:?}")) }
    })
    .await;
    // The first request is held, not refused: one attempt must do.
    let answer = node.answer("hello", "/").await.expect("a request wakes the function");
    assert!(answer.starts_with("Hello World"), "{answer}");
}

/// A request that arrives while the first instance is still starting waits for it.
#[tokio::test]
async fn holds_requests_until_the_program_listens() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(1)).await;
    site.hub.deploy(&Function::subject("late").env("MODE", "late").env("VERSION", "1")).await;
    until("the first answer", 20, || node.answer("late", "/")).await;
    until("zero instances", 20, || async {
        let instances = node.instances("late").await?;
        if instances.is_empty() { Ok(()) } else { Err(format!("{instances:?}")) }
    })
    .await;
    let (a, b, c) =
        tokio::join!(node.answer("late", "/"), node.answer("late", "/x"), node.answer("late", "/y"));
    for answer in [a, b, c] {
        assert_eq!(answer.expect("a held request is answered"), "subject 1\n");
    }
}

/// Requests that wait because every instance is busy bring up more instances, with nothing else happening on the node.
#[tokio::test]
async fn scales_out_while_every_instance_is_busy() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7")).await;
    site.hub.deploy(&Function::subject("busy").concurrency(1)).await;
    until("the first answer", 20, || node.answer("busy", "/")).await;
    let load = node.load("busy", "/wait?300", 6, 1);
    until("an instance for each client", 15, || async {
        let running = node.instances("busy").await?.len();
        if running >= 6 { Ok(()) } else { Err(format!("{running} instances")) }
    })
    .await;
    let outcomes = load.stop().await;
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.is_good()).collect();
    assert!(failed.is_empty(), "{} of {} requests failed: {:?}", failed.len(), outcomes.len(), failed[0]);
}
