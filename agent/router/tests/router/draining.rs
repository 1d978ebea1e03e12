//! Instances that leave, and a router that stops.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, StatusCode};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tombolo_agent_core::actual::Moment;

use crate::ground::{Ground, HOST, backend, gated, ground, id, key, table, text, until};

#[tokio::test]
async fn an_instance_that_left_the_table_finishes_its_requests() {
    let ground = ground!();
    let gate = Arc::new(Semaphore::new(0));
    ground.serve("i1", gated(&gate));
    ground.serve_name("i2");
    let first = ground.put(table(backend(&["i1"]))).await;
    let mut tasks = Vec::new();
    for number in 1..=3 {
        let mut client = ground.client().await;
        tasks.push(tokio::spawn(async move { client.get("/").await }));
        until("it is at the instance", || ground.meter.instance_in_flight(&id("i1")) == number).await;
    }
    assert_eq!(ground.meter.traffic(|_| Moment(0)).instances.get(&id("i1")), Some(&3));
    let without = ground.put(table(backend(&["i2"]))).await;
    assert!(!ground.meter.is_in_force(&first) && !ground.meter.is_released(&id("i1")));
    assert_eq!(ground.get("/").await.body(), "i2");
    let leaving = id("i1");
    let drained = ground.meter.drained(&without, &leaving);
    tokio::pin!(drained);
    gate.add_permits(2);
    let early = tokio::time::timeout(Duration::from_millis(100), &mut drained).await;
    assert!(early.is_err(), "one is left");
    gate.add_permits(1);
    drained.await;
    for task in tasks {
        assert_eq!(task.await.unwrap().body(), "done");
    }

    // One that comes back before it was released takes requests again.
    let mut client = ground.client().await;
    ground.put(table(backend(&["i1"]))).await;
    let again = tokio::spawn(async move { client.get("/").await });
    until("it is at the instance", || ground.meter.instance_in_flight(&id("i1")) == 1).await;
    ground.put(table(backend(&["i2"]))).await;
    ground.put(table(backend(&["i1"]))).await;
    gate.add_permits(2);
    assert_eq!(again.await.unwrap().body(), "done");
    assert_eq!(ground.get("/").await.body(), "done");
    assert!(!ground.meter.is_released(&id("i1")), "it is in the table");
}

#[tokio::test]
async fn counts_are_right_after_all() {
    let ground = ground!();
    ground.serve("i1", |request: Request<Incoming>| async move {
        let status = request.uri().path()[1..].parse().unwrap();
        let mut answer = text("");
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        answer
    });
    ground.put(table(backend(&["i1"]))).await;
    let mut client = ground.client().await;
    for path in ["/200", "/200", "/302", "/404", "/500"] {
        client.get(path).await;
    }
    let counted = ground.meter.revision(&key("a")).unwrap();
    assert_eq!((counted.answers, counted.abandoned, counted.in_flight), ([0, 2, 1, 1, 1], 0, 0));
    assert!(counted.last_activity.unwrap().elapsed() < Duration::from_secs(60));
}

#[tokio::test]
async fn a_router_that_stops_lets_open_requests_end() {
    let mut ground = ground!();
    let gate = Arc::new(Semaphore::new(0));
    ground.serve("i1", gated(&gate));
    ground.put(table(backend(&["i1"]))).await;
    let mut idle = ground.connect().await;
    let mut client = ground.client().await;
    let open = tokio::spawn(async move { client.get("/").await });
    until("it is at the instance", || ground.in_flight() == 1).await;
    let start = Instant::now();
    let stopped = ground.stop();
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0, "an idle connection is closed");
    let other = ground.raw("GET / HTTP/1.1\r\nhost: nobody\r\nconnection: close\r\n\r\n").await;
    assert!(other.starts_with("HTTP/1.1 404 "), "others are let in meanwhile: {other}");
    assert!(!stopped.is_finished());
    gate.add_permits(1);
    let answer = open.await.unwrap();
    assert_eq!(
        (answer.body().as_ref(), &answer.headers()["connection"]),
        (&b"done"[..], &"close".parse().unwrap())
    );
    stopped.await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(tokio::net::TcpStream::connect(ground.address).await.is_err(), "nobody listens");
}

#[tokio::test]
async fn a_router_that_stops_leaves_requests_more_than_ten_seconds() {
    let mut ground = ground!();
    let gate = Arc::new(Semaphore::new(0));
    ground.serve("i1", gated(&gate));
    ground.put(table(backend(&["i1"]))).await;
    let mut client = ground.client().await;
    let open = tokio::spawn(async move { client.get("/").await });
    until("it is at the instance", || ground.in_flight() == 1).await;
    let stopped = ground.stop();
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert!(!stopped.is_finished());
    gate.add_permits(1);
    assert_eq!(open.await.unwrap().body(), "done");
    stopped.await.unwrap();
}

#[tokio::test]
async fn a_router_that_stops_does_not_wait_for_ever() {
    let Some(mut ground) = Ground::with_tunnel_grace(Duration::from_millis(400)) else { return };
    ground.serve("i1", gated(&Arc::new(Semaphore::new(0))));
    ground.put(table(backend(&["i1"]))).await;
    let mut client = ground.connect().await;
    client.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    until("it is at the instance", || ground.in_flight() == 1).await;
    let start = Instant::now();
    ground.stop().await.unwrap();
    assert!((9..15).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    until("nothing is in flight", || ground.in_flight() == 0).await;
}
