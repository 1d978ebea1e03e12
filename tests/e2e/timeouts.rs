//! How long a request may take: each of the three limits of a Service, as its callers meet it.

use tombolo_harness::{Function, Node, NodeOptions, Site, until};

/// What comes of a request: its status with the reason in its text, or that the answer broke off.
async fn end(node: &Node, service: &str, path: &str) -> String {
    match node.ask(service, path).await.answer {
        Ok((200, body)) => body,
        Ok((status, body)) => {
            let named = ["did not begin to answer", "did not answer", "had nothing to receive or send"];
            let found = named.into_iter().find(|what| body.contains(what));
            format!("{status} {}", found.unwrap_or(&body))
        }
        Err(_) => "broken off".to_owned(),
    }
}

/// A program that is silent before its answer, and one that is silent in the middle of it.
#[tokio::test]
async fn each_timeout_of_a_service_acts_as_it_is_called() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
    let cases = [
        ("whole", "timeoutSeconds", "504 did not answer", "broken off"),
        ("start", "responseStartTimeoutSeconds", "504 did not begin to answer", "paused"),
        ("idle", "idleTimeoutSeconds", "504 had nothing to receive or send", "broken off"),
        ("none", "timeoutSeconds", "waited", "paused"),
    ];
    for (name, field, ..) in cases {
        let seconds = if name == "none" { 60 } else { 2 };
        site.hub.deploy(&Function::subject(name).timeout(field, seconds)).await;
        until("the first answer", 20, || node.answer(name, "/")).await;
    }
    for (name, field, before, within) in cases {
        let both = tokio::join!(end(&node, name, "/wait?4000"), end(&node, name, "/pause?4000"));
        assert_eq!(both, (before.to_owned(), within.to_owned()), "{name}: {field}");
    }
}
