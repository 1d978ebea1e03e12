//! How long an agent that knows a hundred services takes from its start until its routes are in force.

use std::time::{Duration, Instant};

use serde_json::Value;
use tombolo_harness::{Function, NodeOptions, Site, until};

use crate::report::Row;
use crate::sample::Sample;

const SERVICES: usize = 100;

/// Bar of the median, milliseconds.
const BAR_MS: f64 = 300.0;

pub(crate) async fn measure(rounds: u32) -> Option<Vec<Row>> {
    let mut site = Site::start().await?;
    let mut node = site.node(NodeOptions::named("bench").idle_timeout_s(1)).await;
    let image = site.hub.deploy(&Function::hello("first")).await;
    for number in 0..SERVICES {
        let service = Function::hello(&format!("bench-{number:03}")).service(&image);
        site.hub.api.create_service(&service).await.expect("a service can be created");
    }
    until("all services on the node, and idle", 300, || async {
        let status = node.status().await?;
        let revisions: Vec<&Value> = status["revisions"].as_array().into_iter().flatten().collect();
        let rest = |revision: &&&Value| {
            let mut instances = revision["instances"].as_array().into_iter().flatten();
            revision["phase"] == "Ready" && instances.all(|instance| instance["tier"] == "primed")
        };
        let resting = revisions.iter().filter(rest).count();
        if resting > SERVICES { Ok(()) } else { Err(format!("{resting} of {}", revisions.len())) }
    })
    .await;
    let (mut ready, mut answer) = (Sample::default(), Sample::default());
    for _ in 0..rounds {
        node.stop_agent();
        let began = Instant::now();
        node.start_agent().expect("the agent starts");
        while !node.is_ready().await {
            assert!(began.elapsed() < Duration::from_secs(30), "the agent does not get ready");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        ready.add(began.elapsed());
        node.answer("bench-050", "/").await.expect("a route answers once they are in force");
        answer.add(began.elapsed());
    }
    Some(vec![
        Row::bounded("start", "ready-p50", ready.quantile_ms(0.5), "ms", BAR_MS),
        Row::plain("start", "ready-p99", ready.quantile_ms(0.99), "ms"),
        Row::plain("start", "first-answer-p50", answer.quantile_ms(0.5), "ms"),
    ])
}
