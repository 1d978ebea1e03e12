//! From a request at the router to the last byte of its answer, with no instance running: primed, cold and frozen, beside the
//! bare program and two container runtimes; and where the time of each tier goes, by the agent's own count.

use std::time::Duration;

use tombolo_harness::{Function, Node, NodeOptions, Site, until};

use crate::client;
use crate::peer::bundle::Bundle;
use crate::peer::find;
use crate::report::Row;
use crate::sample::Sample;
use crate::stages::Breakdown;

/// Where the peers' program listens.
const PORT: u16 = 9100;

/// Bars: the primed p50 in multiples of the bare program's, its p99 and the frozen p50 in milliseconds.
const PRIMED_RATIO: f64 = 4.0;
const PRIMED_P99_MS: f64 = 10.0;
const FROZEN_P50_MS: f64 = 2.0;

/// Between coming to rest and the request.
const REST: Duration = Duration::from_millis(100);

/// What an idle service keeps, and the tier in which that shows.
const TIERS: [(&str, Option<&str>); 3] =
    [("primed", Some("primed")), ("cold", None), ("frozen", Some("frozen"))];

pub(crate) async fn measure(rounds: u32) -> Option<Vec<Row>> {
    let mut site = Site::start().await?;
    let node = site.node(NodeOptions::named("bench").idle_timeout_s(1)).await;
    let function = |tier: &str| Function::hello(tier).annotation("tombolo.dev/idle-tier", tier);
    for (tier, _) in TIERS {
        site.hub.deploy(&function(tier)).await;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let program = Function::hello("floor").program();
    let bundle = Bundle::create(dir.path(), program, PORT).expect("a bundle can be written");
    let (runc, youki) = (find("runc"), find("youki"));
    let mut ours: [Sample; 3] = Default::default();
    let mut breakdowns = TIERS.map(|(tier, _)| Breakdown::new(tier));
    let (mut floor, mut runc_times, mut youki_times) =
        (Sample::default(), Sample::default(), Sample::default());
    for round in 0..rounds {
        for (((tier, shown), sample), breakdown) in TIERS.iter().zip(&mut ours).zip(&mut breakdowns) {
            rest(&node, tier, *shown).await;
            let before = breakdown.read(&node).await;
            // Whatever came to rest last has had its time.
            tokio::time::sleep(REST).await;
            let whole = client::time(node.router(), &format!("{tier}.default.localhost"));
            sample.add(whole);
            let after = breakdown.read(&node).await;
            breakdown.add(whole, &before, &after);
        }
        floor.add(bundle.time_bare());
        let id = format!("tombolo-bench-{}-{round}", std::process::id());
        runc_times.extend(runc.as_ref().map(|runtime| bundle.time(runtime, &id)));
        youki_times.extend(youki.as_ref().map(|runtime| bundle.time(runtime, &id)));
    }
    let [primed, cold, frozen] = ours;
    let p50 = |sample: &Sample| sample.quantile_ms(0.5);
    let row = |name: &str, value: f64| Row::plain("cold-start", name, value, "ms");
    let beside =
        |row: Row, name, sample: &Sample| if sample.is_empty() { row } else { row.beside(name, p50(sample)) };
    let mut rows = vec![
        row("primed-p50", p50(&primed)).beside("fork+exec", p50(&floor)).ratio_at_most(PRIMED_RATIO),
        Row::bounded("cold-start", "primed-p99", primed.quantile_ms(0.99), "ms", PRIMED_P99_MS),
        beside(row("cold-p50", p50(&cold)), "runc", &runc_times).ratio_at_most(1.0),
        row("cold-p99", cold.quantile_ms(0.99)),
        beside(row("cold-p50", p50(&cold)), "youki", &youki_times),
        Row::bounded("cold-start", "frozen-p50", p50(&frozen), "ms", FROZEN_P50_MS),
        row("frozen-p99", frozen.quantile_ms(0.99)),
    ];
    let parts = breakdowns.iter().flat_map(Breakdown::means_ms);
    rows.extend(parts.map(|(name, mean)| row(&name, mean)));
    Some(rows)
}

/// Until the service has come to rest in its tier.
async fn rest(node: &Node, service: &str, tier: Option<&str>) {
    until(&format!("{service} to rest"), 120, || async {
        let tiers = node.tiers(service).await?;
        let resting: Vec<(&str, usize)> = tiers.iter().map(|(tier, count)| (tier.as_str(), *count)).collect();
        match (resting.as_slice(), tier) {
            ([], None) => Ok(()),
            ([(only, 1)], Some(tier)) if *only == tier => Ok(()),
            (tiers, _) => Err(format!("{tiers:?}")),
        }
    })
    .await;
}
