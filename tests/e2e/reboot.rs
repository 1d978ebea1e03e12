//! A node that comes up again with nobody to ask.

use std::time::{Duration, Instant};

use tombolo_harness::{Function, NodeOptions, Site, until, within};

/// Power lost, hub gone: every route answers within five seconds of the agent's start, from what the node kept.
#[tokio::test]
async fn every_route_answers_after_a_reboot_without_a_hub() {
    let Some(mut site) = Site::start().await else { return };
    let mut node = site.node(NodeOptions::named("press-7")).await;
    let services = ["one", "two", "three", "four", "five"];
    for service in services {
        site.hub.deploy(&Function::hello(service).content(service)).await;
    }
    for service in services {
        until("the first answer", 20, || node.answer(service, "/")).await;
    }
    site.hub.kill();
    node.cut_link();
    node.power_off().expect("the power can be cut");

    let started = Instant::now();
    node.start_agent().expect("the agent starts");
    for service in services {
        let answer = until("an answer after the reboot", 5, || node.answer(service, "/")).await;
        assert_eq!(answer, format!("Hello World from {service}-00001!\n"));
    }
    assert!(started.elapsed() <= within(Duration::from_secs(5)), "all answers took {:?}", started.elapsed());
}
