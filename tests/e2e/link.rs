//! The link to the hub goes and comes.

use std::time::Duration;

use tombolo_harness::{Function, NodeOptions, Site, until};

/// A message for nothing new, with one service on the node: the presence has 272 bytes, the manifest 597.
const SMALL_BYTES: u64 = 1024;

/// Cut, changed meanwhile, restored: converged, and what did not change was not restarted.
#[tokio::test]
async fn converges_after_a_cut_and_restarts_nothing_that_did_not_change() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
    for service in ["stays", "changes", "goes"] {
        site.hub.deploy(&Function::hello(service).content(service)).await;
        until("the first answer", 20, || node.answer(service, "/")).await;
    }
    let before = node.instances("stays").await.expect("the agent says what it runs");
    node.cut_link();
    site.hub.deploy_unready(&Function::hello("changes").content("other")).await;
    site.hub.deploy_unready(&Function::hello("comes").content("comes")).await;
    site.hub.api.delete_service("goes").await.expect("a service can be deleted");
    tokio::time::sleep(Duration::from_secs(3)).await;
    for service in ["stays", "changes", "goes"] {
        node.answer(service, "/").await.expect("what the node knows goes on without the link");
    }
    node.restore_link();

    until("the new state", 120, || async {
        let (changed, come) = (node.answer("changes", "/").await?, node.answer("comes", "/").await?);
        let gone = node.ask("goes", "/").await.answer?;
        if changed.contains("changes-00002") && gone.0 == 404 {
            Ok(())
        } else {
            Err(format!("{changed} {come} {gone:?}"))
        }
    })
    .await;
    assert_eq!(node.instances("stays").await.expect("the agent says what it runs"), before);
}

/// Nothing changed: a reconnect, after the hub itself was away, costs one small message each way and no restart.
#[tokio::test]
async fn unchanged_state_costs_one_small_message_each_way() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
    site.hub.deploy(&Function::hello("stays")).await;
    until("the first answer", 20, || node.answer("stays", "/")).await;
    // Reports of the deployment itself have to be through.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = node.instances("stays").await.expect("the agent says what it runs");
    let counted = node.traffic().await.expect("the agent counts its messages");
    site.hub.kill();
    site.hub.start().await.expect("the hub starts again");
    until("another connection", 120, || async {
        let now = node.traffic().await?;
        if now.connects > counted.connects { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let now = node.traffic().await.expect("the agent counts its messages");
    let (sent, received) = (now.sent - counted.sent, now.received - counted.received);
    assert!(sent <= 1 && received <= 1, "{sent} messages sent and {received} received for nothing new");
    let bytes = (now.sent_bytes - counted.sent_bytes).max(now.received_bytes - counted.received_bytes);
    assert!(bytes <= SMALL_BYTES, "{bytes} bytes for nothing new");
    assert_eq!(node.instances("stays").await.expect("the agent says what it runs"), before);
}
