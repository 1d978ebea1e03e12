//! Five hundred requests at once for a service that sleeps and takes ten at a time in each instance.

use std::sync::{Arc, Barrier};
use std::time::Instant;

use tombolo_harness::{Function, NodeOptions, Site, until};

use crate::client;
use crate::report::Row;
use crate::sample::Sample;

const REQUESTS: usize = 500;
const CONCURRENCY: u32 = 10;

/// Time each request takes in the program, milliseconds.
const WORK: &str = "/wait?20";

pub(crate) async fn measure(rounds: u32) -> Option<Vec<Row>> {
    let mut site = Site::start().await?;
    let node = site.node(NodeOptions::named("bench").idle_timeout_s(1)).await;
    site.hub.deploy(&Function::subject("subject").env("MODE", "polite").concurrency(CONCURRENCY)).await;
    let (mut whole, mut errors) = (Sample::default(), 0);
    for _ in 0..rounds.min(5) {
        until("the service to sleep", 120, || async {
            let tiers = node.tiers("subject").await?;
            let awake = ["running", "starting", "stopping"].iter().any(|tier| tiers.contains_key(*tier));
            if awake { Err(format!("{tiers:?}")) } else { Ok(()) }
        })
        .await;
        let (address, barrier) = (node.router(), Arc::new(Barrier::new(REQUESTS + 1)));
        let ask = |_| {
            let barrier = Arc::clone(&barrier);
            let client = move || {
                barrier.wait();
                client::ask(address, "subject.default.localhost", WORK).is_ok_and(|(status, _)| status == 200)
            };
            std::thread::Builder::new().stack_size(128 << 10).spawn(client).expect("a thread can be had")
        };
        let clients: Vec<_> = (0..REQUESTS).map(ask).collect();
        barrier.wait();
        let began = Instant::now();
        errors += clients
            .into_iter()
            .map(std::thread::JoinHandle::join)
            .filter(|good| !matches!(good, Ok(true)))
            .count();
        whole.add(began.elapsed());
    }
    Some(vec![
        Row::plain("burst", "all-answered-p50", whole.quantile_ms(0.5), "ms"),
        Row::bounded("burst", "errors", errors as f64, "1", 0.0),
    ])
}
