//! How long a new Service takes to answer on a connected node that has its image.

use std::time::{Duration, Instant};

use tombolo_harness::{Function, NodeOptions, Site, until};

use crate::report::Row;
use crate::sample::Sample;

/// Bar of the median, milliseconds. Eclipse Ankaios states 624 ms for the like.
const BAR_MS: f64 = 150.0;

pub(crate) async fn measure(rounds: u32) -> Option<Vec<Row>> {
    let mut site = Site::start().await?;
    let node = site.node(NodeOptions::named("bench").idle_timeout_s(600)).await;
    let image = site.hub.deploy(&Function::hello("first")).await;
    until("the first answer", 30, || node.answer("first", "/")).await;
    let mut sample = Sample::default();
    for round in 0..rounds {
        let name = format!("bench-{round}");
        let service = Function::hello(&name).service(&image);
        let began = Instant::now();
        site.hub.api.create_service(&service).await.expect("a service can be created");
        while !node.ask(&name, "/").await.is_good() {
            assert!(began.elapsed() < Duration::from_secs(30), "{name} does not answer");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        sample.add(began.elapsed());
        site.hub.api.delete_service(&name).await.expect("a service can be deleted");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Some(vec![
        Row::bounded("deploy", "apply-to-200-p50", sample.quantile_ms(0.5), "ms", BAR_MS),
        Row::plain("deploy", "apply-to-200-p99", sample.quantile_ms(0.99), "ms"),
    ])
}
