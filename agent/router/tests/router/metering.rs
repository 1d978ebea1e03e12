//! What the router counts of real requests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tombolo_agent_core::annotations::IdleTier;
use tombolo_agent_core::routes::Backend;
use tombolo_router::Sampler;

use crate::ground::{HOST, backend, gated, ground, id, key, table, text, until};

#[tokio::test]
async fn the_average_concurrency_is_exact_and_counts_who_waits() {
    let ground = ground!();
    let gate = Arc::new(Semaphore::new(0));
    ground.serve("i1", gated(&gate));
    ground.put(table(Backend { container_concurrency: 2, ..backend(&["i1"]) })).await;
    let (mut sampler, mut other) = (Sampler::default(), Sampler::default());
    let (_, span) = sampler.sample(&ground.meter, Instant::now())[&key("a")].clone();
    assert_eq!((span.concurrency, span.arrived, span.finished), (0.0, 0, 0));
    let mut tasks = Vec::new();
    for _ in 0..5 {
        let mut client = ground.client().await;
        tasks.push(tokio::spawn(async move { client.get("/").await.status() }));
    }
    until("all are there", || (ground.in_flight(), ground.held()) == (2, 3)).await;
    let (seen, span) = sampler.sample(&ground.meter, Instant::now())[&key("a")].clone();
    assert_eq!((seen.in_flight, seen.held, span.arrived, span.finished), (2, 3, 5, 0));
    assert!(span.concurrency > 0.0 && span.concurrency < 5.0, "{}", span.concurrency);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let (_, span) = sampler.sample(&ground.meter, Instant::now())[&key("a")].clone();
    assert!((span.concurrency - 5.0).abs() < 0.01, "{}", span.concurrency);

    gate.add_permits(5);
    for task in tasks {
        assert_eq!(task.await.unwrap(), StatusCode::OK);
    }
    until("all have ended", || ground.in_flight() == 0).await;
    let (seen, span) = sampler.sample(&ground.meter, Instant::now())[&key("a")].clone();
    assert_eq!((span.finished, span.answers, span.latency.count()), (5, [0, 5, 0, 0, 0], 5));
    assert_eq!((seen.arrived, seen.finished, seen.cold_starts.count()), (5, 5, 0), "an instance was ready");
    assert!(seen.latency.sum_us >= 5 * 20_000, "they waited for the gate: {}", seen.latency.sum_us);
    tokio::time::sleep(Duration::from_millis(5)).await;
    let (_, span) = sampler.sample(&ground.meter, Instant::now())[&key("a")].clone();
    assert_eq!((span.concurrency, span.finished), (0.0, 0));
    let (_, span) = other.sample(&ground.meter, Instant::now())[&key("a")].clone();
    assert_eq!(span.finished, 5, "every sampler has its own last look");
}

#[tokio::test]
async fn a_request_that_comes_to_a_crowd_is_told_of_and_many_as_one() {
    let ground = ground!();
    let gate = Arc::new(Semaphore::new(0));
    ground.serve("i1", gated(&gate));
    ground.put(table(Backend { container_concurrency: 3, ..backend(&["i1"]) })).await;
    let is_crowded = async || {
        let told = ground.meter.crowded();
        tokio::time::timeout(Duration::from_millis(50), told).await.is_ok()
    };
    let mut tasks = Vec::new();
    // How many requests may be here untold, how many there are then, and whether that is told.
    for (calm, count, told) in
        [(None, 1, false), (Some(2), 2, false), (Some(2), 5, true), (Some(5), 5, false)]
    {
        ground.meter.set_calm(&key("a"), calm);
        while tasks.len() < count {
            let mut client = ground.client().await;
            tasks.push(tokio::spawn(async move { client.get("/").await.status() }));
        }
        until("all are there", || ground.in_flight() + ground.held() == count).await;
        assert_eq!(is_crowded().await, told, "{count} with {calm:?}");
        assert!(!is_crowded().await, "once");
    }
    gate.add_permits(5);
    for task in tasks {
        assert_eq!(task.await.unwrap(), StatusCode::OK);
    }
}

#[tokio::test]
async fn cold_starts_are_counted_with_how_long_they_took() {
    let ground = ground!();
    ground.put(table(backend(&[]))).await;
    let mut client = ground.client().await;
    let held = tokio::spawn(async move { client.get("/").await.status() });
    until("it is held", || ground.held() == 1).await;
    let mut left = ground.connect().await;
    left.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    until("so is another", || ground.held() == 2).await;
    drop(left);
    until("which leaves", || ground.held() == 1).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    ground.serve_name("i1");
    ground.put(table(backend(&["i1"]))).await;
    assert_eq!(held.await.unwrap(), StatusCode::OK);
    ground.get("/").await;
    let seen = ground.meter.revision(&key("a")).unwrap();
    assert_eq!((seen.cold_starts.count(), seen.abandoned, seen.answers[1]), (1, 1, 2));
    assert_eq!(seen.given_up, 0, "it was at no instance");
    assert!(seen.cold_starts.sum_us >= 30_000, "{}", seen.cold_starts.sum_us);
    let text = tombolo_router::render_metrics(&ground.meter.snapshot());
    let line = "tombolo_cold_start_seconds_count{namespace=\"default\",revision=\"a\"} 1";
    assert!(text.lines().any(|shown| shown == line), "{text}");
}

#[tokio::test]
async fn a_held_request_s_stages_add_up_to_its_time() {
    let ground = ground!();
    ground.put(table(backend(&[]))).await;
    let stages = || tombolo_router::render_activations(ground.meter.activations());
    let stage = |what: &str| {
        let text = stages();
        let line = text.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{what}: {text}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let mut client = ground.client().await;
    let began = Instant::now();
    let held = tokio::spawn(async move { client.get("/").await.status() });
    until("it is held", || ground.held() == 1).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    ground.serve("i1", |_| async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        text("late")
    });
    ground.meter.activations().begin(&id("i1"), IdleTier::Primed);
    ground.put(table(backend(&["i1"]))).await;
    assert_eq!(held.await.unwrap(), StatusCode::OK);
    let whole = began.elapsed().as_secs_f64();
    let (hold, forward) =
        (stage("_sum{tier=\"primed\",stage=\"hold\"}"), stage("_sum{tier=\"primed\",stage=\"forward\"}"));
    assert!(hold >= 0.03 && forward >= 0.02 && hold + forward <= whole, "{hold} {forward} {whole}");

    let before = stages();
    ground.get("/").await;
    assert_eq!(stages(), before, "an instance was ready");
}
