//! Which node runs what.

use tombolo_harness::{Function, NodeOptions, Site, until};

/// Two nodes with different labels run different services from one hub.
#[tokio::test]
async fn labels_decide_where_a_service_runs() {
    let Some(mut site) = Site::start().await else { return };
    let press = site.node(NodeOptions::named("press-7").label("line", "press")).await;
    let paint = site.node(NodeOptions::named("paint-2").label("line", "paint")).await;
    site.hub.deploy(&Function::hello("stamp").selector("line", "press")).await;
    site.hub.deploy(&Function::hello("colour").selector("line", "paint")).await;
    site.hub.deploy(&Function::hello("both")).await;
    for (node, own, other) in [(&press, "stamp", "colour"), (&paint, "colour", "stamp")] {
        until("its own service", 20, || node.answer(own, "/")).await;
        until("the service of all nodes", 20, || node.answer("both", "/")).await;
        let answer =
            node.ask(other, "/").await.answer.expect("a node answers for hosts it does not serve, too");
        assert_eq!(answer.0, 404, "{}", answer.1);
        assert!(node.instances(other).await.expect("the agent says what it runs").is_empty());
    }
}

/// A selector that no node fits is said in the service's conditions.
#[tokio::test]
async fn a_service_that_fits_no_node_says_so() {
    let Some(mut site) = Site::start().await else { return };
    let _node = site.node(NodeOptions::named("press-7")).await;
    site.hub.deploy_unready(&Function::hello("lonely").selector("line", "press")).await;
    until("a condition that names the label", 20, || async {
        let text = site.hub.api.told("lonely").await.map_err(|error| error.to_string())?;
        if text.contains("line=press") && text.contains("NoNodeMatches") { Ok(()) } else { Err(text) }
    })
    .await;
}
