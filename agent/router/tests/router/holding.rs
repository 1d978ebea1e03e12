//! Requests that wait for an instance.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};
use tombolo_agent_core::activation::{HELD_BYTES_PER_REVISION_MAX, QUEUE_DEPTH_MIN};
use tombolo_agent_core::actual::Moment;
use tombolo_agent_core::routes::{Backend, Unavailable};
use tombolo_router::Refused;

use crate::ground::{
    Client, Ground, HOST, backend, body_text, ground, id, key, reason, table, text, until, within,
};

#[tokio::test]
async fn a_request_is_held_until_the_first_instance_is_ready() {
    let mut ground = ground!();
    ground.put(table(backend(&[]))).await;
    let mut posting = ground.client().await;
    let post = tokio::spawn(async move {
        let request = Request::post("/").header("host", HOST).body(Full::new(Bytes::from_static(b"held")));
        posting.send(request.unwrap()).await.unwrap()
    });
    let mut getting = ground.client().await;
    let get = tokio::spawn(async move { getting.get("/").await });
    until("both are held", || ground.held() == 2).await;
    assert_eq!(ground.demand.recv().await, Some(key("a")));
    assert!(ground.demand.try_recv().is_err(), "asked once");
    assert_eq!(ground.meter.held(), 2);
    let traffic = ground.meter.traffic(|_| Moment(7));
    assert_eq!((traffic.of(&key("a")).held, traffic.of(&key("a")).last_request), (2, Some(Moment(7))));

    ground.serve("i1", |request: Request<Incoming>| async move {
        text(request.into_body().collect().await.unwrap().to_bytes())
    });
    ground.put(table(backend(&["i1"]))).await;
    assert_eq!(body_text(&post.await.unwrap()), "held");
    assert_eq!(get.await.unwrap().status(), StatusCode::OK);
    until("nothing is in flight", || ground.in_flight() + ground.held() == 0).await;
    assert_eq!(ground.demand.recv().await, Some(key("a")), "growth may wait for the first answer");

    // To zero and back: asked again.
    ground.put(table(backend(&[]))).await;
    let mut client = ground.client().await;
    let again = tokio::spawn(async move { client.get("/").await });
    assert_eq!(ground.demand.recv().await, Some(key("a")));
    ground.put(table(backend(&["i1"]))).await;
    assert_eq!(again.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn what_was_never_asked_for_has_no_last_request() {
    let ground = ground!();
    ground.put(table(backend(&[]))).await;
    let traffic = ground.meter.traffic(|_| Moment(7));
    assert_eq!(traffic.revisions[&key("a")].last_request, None);
    assert!(traffic.instances.is_empty());
}

#[tokio::test]
async fn the_first_answer_of_an_instance_is_told_once() {
    let mut ground = ground!();
    ground.serve("i1", |request: Request<Incoming>| async move {
        match request.uri().path() {
            "/loading" => Response::builder().status(503).body(Full::default()).unwrap(),
            _ => text("loaded"),
        }
    });
    ground.put(table(backend(&["i1"]))).await;
    let has_served = |ground: &Ground| ground.meter.traffic(|_| Moment(7)).served.contains(&id("i1"));
    assert_eq!(ground.get("/loading").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!has_served(&ground) && ground.demand.try_recv().is_err(), "it has not served");
    for _ in 0..3 {
        assert_eq!(ground.get("/").await.status(), StatusCode::OK);
        assert!(has_served(&ground));
    }
    assert_eq!(ground.demand.recv().await, Some(key("a")));
    assert!(ground.demand.try_recv().is_err(), "told once");
}

#[tokio::test]
async fn holding_ends_with_the_request_s_time() {
    let ground = ground!();
    ground.put(table(Backend { timeout_ms: 150, ..backend(&[]) })).await;
    let start = Instant::now();
    let answer = ground.get("/").await;
    assert_eq!((answer.status(), reason(&answer)), (StatusCode::GATEWAY_TIMEOUT, "ActivationTimeout"));
    assert_eq!(ground.refused(Refused::ActivationTimeout), 1);
    assert!(start.elapsed() >= Duration::from_millis(150));
    assert_eq!(ground.held(), 0);
}

#[tokio::test]
async fn nobody_waits_for_what_will_not_come() {
    let ground = ground!();
    ground.put(table(backend(&[]))).await;
    let mut client = ground.client().await;
    let held = tokio::spawn(async move { client.get("/").await });
    until("it is held", || ground.held() == 1).await;
    let why = Unavailable { reason: "ImageMissing".into(), message: "no such image".into() };
    ground.put(table(Backend { unavailable: Some(why), ..backend(&[]) })).await;
    let answer = held.await.unwrap();
    assert_eq!((answer.status(), reason(&answer)), (StatusCode::SERVICE_UNAVAILABLE, "ImageMissing"));
    assert!(body_text(&answer).contains("no such image"));
    assert_eq!(reason(&ground.get("/").await), "ImageMissing", "nor does a new one");
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let ground = ground!();
    ground.put(table(Backend { container_concurrency: 1, ..backend(&[]) })).await;
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    let mut waiting = Vec::new();
    // The one that will run at once is not one of those that the queue is deep.
    let admitted = QUEUE_DEPTH_MIN + 1;
    for _ in 0..admitted {
        let mut stream = ground.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        waiting.push(stream);
    }
    until("the queue is full", || ground.held() == admitted).await;
    let answer = ground.get("/").await;
    assert_eq!((answer.status(), reason(&answer)), (StatusCode::SERVICE_UNAVAILABLE, "RevisionQueueFull"));
    assert_eq!(answer.headers()["retry-after"], "1");
    assert_eq!(ground.refused(Refused::RevisionQueueFull), 1);
    drop(waiting);
    until("they have left", || ground.held() == 0).await;
}

#[tokio::test]
async fn the_memory_of_the_queue_is_bounded() {
    let ground = ground!();
    ground.put(table(backend(&[]))).await;
    let size = 60_000;
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nx: {}\r\n\r\n", "x".repeat(size));
    let fit = HELD_BYTES_PER_REVISION_MAX / size;
    let mut waiting = Vec::new();
    while ground.refused(Refused::RevisionBytesFull) == 0 {
        assert!(waiting.len() <= fit + 1, "more than fit");
        let mut stream = ground.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        waiting.push(stream);
        let seen = || ground.meter.revision(&key("a")).is_some_and(|a| a.arrived == waiting.len() as u64);
        until("it is held or refused", || seen() && ground.in_flight() == 0).await;
    }
    assert!(ground.held() + 10 > fit, "{} of {fit}", ground.held());
    assert!(ground.meter.held_bytes() >= ground.held() * size);
    let mut answer = [0; 12];
    waiting.pop().unwrap().read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 503");
    drop(waiting);
    until("they have left", || ground.held() + ground.meter.held_bytes() == 0).await;
}

#[tokio::test]
async fn a_client_that_leaves_gives_up_its_place() {
    let ground = ground!();
    ground.put(table(backend(&[]))).await;
    let chunk = format!("8000\r\n{}\r\n", "x".repeat(0x8000));
    for rest in [
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        "POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\nbody".to_owned(),
        // Only a part of it.
        "POST / HTTP/1.1\r\ncontent-length: 100\r\n\r\npart".to_owned(),
        // Bodies that are not read while their request is held, some of them and all of them.
        format!("POST / HTTP/1.1\r\ncontent-length: 1000000\r\n\r\n{}", "x".repeat(30_000)),
        format!("POST / HTTP/1.1\r\ncontent-length: 30000\r\n\r\n{}", "x".repeat(30_000)),
        format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{chunk}"),
        format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{chunk}0\r\n\r\n"),
        "POST / HTTP/1.1\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n".to_owned(),
        // With some of the next request, and a whole one.
        "GET / HTTP/1.1\r\n\r\nG".to_owned(),
        "POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\nbodyGET / HTTP/1.1\r\n\r\n".to_owned(),
    ] {
        let request = rest.replacen("\r\n", &format!("\r\nhost: {HOST}\r\n"), 1);
        // At once, and the end of it when it is held already.
        for cut in [request.len(), request.len() - 1] {
            let mut stream = ground.connect().await;
            stream.write_all(&request.as_bytes()[..cut]).await.unwrap();
            let is_whole = request[..cut].contains("\r\n\r\n");
            if is_whole {
                until("it is held", || ground.held() == 1).await;
            }
            stream.write_all(&request.as_bytes()[cut..]).await.unwrap();
            until("it is held", || ground.held() == 1).await;
            drop(stream);
            until("it has left", || ground.held() + ground.meter.held_bytes() == 0).await;
        }
    }
}

#[tokio::test]
async fn a_held_request_whose_body_breaks_off_is_refused() {
    let ground = ground!();
    ground.put(table(backend(&[]))).await;
    let mut stream = ground.connect().await;
    let request = format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 100\r\n\r\npart");
    stream.write_all(request.as_bytes()).await.unwrap();
    until("it is held", || ground.held() == 1).await;
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    within("the answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("was not sent to its end"), "{answer}");
    assert_eq!(ground.held(), 0);
}

#[tokio::test]
async fn an_instance_gets_as_many_requests_as_it_takes_and_the_rest_in_order() {
    for concurrency in [1, 2] {
        stand_in_line(concurrency).await;
    }
}

async fn stand_in_line(concurrency: usize) {
    let ground = ground!();
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let (gate, most) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (inner_gate, inner_most, now) = (Arc::clone(&gate), Arc::clone(&most), Arc::new(AtomicUsize::new(0)));
    ground.serve("i1", move |request: Request<Incoming>| {
        let (gate, most, now, arrived) =
            (Arc::clone(&inner_gate), Arc::clone(&inner_most), Arc::clone(&now), arrived.clone());
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            arrived.send(request.uri().path().to_owned()).unwrap();
            gate.acquire().await.unwrap().forget();
            now.fetch_sub(1, Ordering::SeqCst);
            text("done")
        }
    });
    ground.put(table(Backend { container_concurrency: concurrency as u32, ..backend(&["i1"]) })).await;
    let mut tasks = Vec::new();
    for number in 0..20 {
        let mut client: Client = ground.client().await;
        tasks.push(tokio::spawn(async move { client.get(&format!("/{number}")).await }));
        let (at_it, in_line) = ((number + 1).min(concurrency), (number + 1).saturating_sub(concurrency));
        let counted = || (ground.in_flight(), ground.held()) == (at_it, in_line);
        until("it is at the instance or in line", counted).await;
    }
    // One of those in line leaves.
    tasks.remove(7).abort();
    until("it has left", || ground.held() == 19 - concurrency).await;
    gate.add_permits(20);
    for task in tasks {
        assert_eq!(task.await.unwrap().status(), StatusCode::OK);
    }
    let mut order = Vec::new();
    while let Ok(path) = arrivals.try_recv() {
        order.push(path[1..].parse::<usize>().unwrap());
    }
    assert_eq!(most.load(Ordering::SeqCst), concurrency);
    let expected: Vec<_> = (0..20).filter(|number| *number != 7).collect();
    if concurrency > 1 {
        // Several are under way at a time, and may overtake each other on their way to the instance.
        order.sort_unstable();
    }
    assert_eq!(order, expected);
    until("nothing is left", || ground.meter.instance_in_flight(&id("i1")) == 0).await;
}
