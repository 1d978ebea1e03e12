//! Two hundred services at zero on one node: what they cost in memory, and how soon each answers.

use std::time::Duration;

use tombolo_harness::{Function, Node, NodeOptions, Site, until};

use crate::client;
use crate::memory::{children_of, pss_mb};
use crate::report::Row;
use crate::sample::Sample;

const SERVICES: usize = 200;

/// Bars, megabytes.
const AGENT_COLD_MB: f64 = 12.0;
const SLOT_MB: f64 = 1.5;

/// Until allocators and caches have come to rest.
const REST: Duration = Duration::from_secs(5);

pub(crate) async fn measure() -> Option<Vec<Row>> {
    let mut rows = measure_tier("cold", None).await?;
    rows.extend(measure_tier("primed", Some("primed")).await?);
    Some(rows)
}

async fn measure_tier(tier: &'static str, shown: Option<&str>) -> Option<Vec<Row>> {
    let mut site = Site::start().await?;
    let mut node = site.node(NodeOptions::named("bench").idle_timeout_s(1)).await;
    let function = |name: &str| Function::hello(name).annotation("tombolo.dev/idle-tier", tier);
    let image = site.hub.deploy(&function("svc-000")).await;
    for number in 1..SERVICES {
        let service = function(&format!("svc-{number:03}")).service(&image);
        site.hub.api.create_service(&service).await.expect("a service can be created");
    }
    until(&format!("all services at rest, {tier}"), 600, || at_rest(&node, shown)).await;
    tokio::time::sleep(REST).await;
    let supervisor = node.supervisor_pid().expect("a supervisor runs");
    let (agent_mb, supervisor_mb) = (pss_mb(node.agent().pid()), pss_mb(supervisor));
    let slots: Vec<f64> = children_of(supervisor).into_iter().map(pss_mb).collect();
    let mut first = Sample::default();
    for number in 0..SERVICES {
        first.add(client::time(node.router(), &format!("svc-{number:03}.default.localhost")));
    }
    let row = |what: &str, value: f64, unit| Row::plain("density", &format!("{tier}-{what}"), value, unit);
    let agent = match shown {
        None => Row::bounded("density", "cold-agent-pss", agent_mb, "MB", AGENT_COLD_MB),
        Some(_) => row("agent-pss", agent_mb, "MB"),
    };
    let mut rows = vec![agent, row("supervisor-pss", supervisor_mb, "MB")];
    if shown.is_some() {
        assert!(!slots.is_empty(), "what waits are children of the supervisor");
        let each = slots.iter().sum::<f64>() / slots.len() as f64;
        rows.push(Row::bounded("density", "primed-slot-pss", each, "MB", SLOT_MB));
    }
    rows.push(row("first-answer-p50", first.quantile_ms(0.5), "ms"));
    rows.push(row("first-answer-p99", first.quantile_ms(0.99), "ms"));
    Some(rows)
}

async fn at_rest(node: &Node, tier: Option<&str>) -> Result<(), String> {
    let status = node.status().await?;
    let revisions = status["revisions"].as_array().cloned().unwrap_or_default();
    let rests = |revision: &&serde_json::Value| {
        let instances = revision["instances"].as_array().cloned().unwrap_or_default();
        let right = match tier {
            None => instances.is_empty(),
            Some(tier) => instances.len() == 1 && instances[0]["tier"] == tier,
        };
        revision["phase"] == "Ready" && right
    };
    let resting = revisions.iter().filter(rests).count();
    if resting == SERVICES { Ok(()) } else { Err(format!("{resting} of {}", revisions.len())) }
}
