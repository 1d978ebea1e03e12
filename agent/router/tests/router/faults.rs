//! Instances and clients that do not keep to the protocol, or to any time.

use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tombolo_agent_core::routes::Backend;

use crate::ground::{Ground, HOST, backend, ground, key, reason, table, until};

/// An instance that answers every connection with these bytes and closes it.
fn serve_bytes(ground: &Ground, instance: &str, answer: &'static [u8]) {
    let listener = ground.listen(instance);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer).await.unwrap();
        }
    });
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_a_bad_gateway() {
    let ground = ground!();
    for (instance, answer) in [
        ("i1", &b"220 mail.example ESMTP ready\r\n\r\n"[..]),
        ("i2", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"),
        ("i3", b"HTTP/1.1 abc OK\r\n\r\n"),
        ("i4", b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n"),
        ("i5", b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx"),
        ("i6", b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\nx"),
    ] {
        serve_bytes(&ground, instance, answer);
        ground.put(table(backend(&[instance]))).await;
        let got = ground.get("/").await;
        assert_eq!(
            (got.status(), reason(&got)),
            (StatusCode::BAD_GATEWAY, "InstanceMalformed"),
            "{instance}"
        );
    }
    serve_bytes(&ground, "i7", b"");
    ground.put(table(backend(&["i7"]))).await;
    let got = ground.get("/").await;
    assert_eq!((got.status(), reason(&got)), (StatusCode::BAD_GATEWAY, "InstanceReset"));
    until("nothing is in flight", || ground.in_flight() == 0).await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_passed_on_as_whole() {
    let ground = ground!();
    for (instance, answer) in [
        ("i1", &b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"[..]),
        ("i2", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
        ("i3", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n"),
    ] {
        serve_bytes(&ground, instance, answer);
        ground.put(table(backend(&[instance]))).await;
        assert!(ground.client().await.try_get("/").await.is_err(), "{instance}");
        until("nothing is in flight", || ground.in_flight() == 0).await;
    }
    let broken = || ground.meter.revision(&key("a")).unwrap().broken;
    assert_eq!(broken(), 3, "each is counted as its instance's fault");
    ground.serve_name("i4");
    ground.put(table(backend(&["i4"]))).await;
    assert_eq!(ground.get("/").await.body(), "i4", "the router goes on");
    let failing = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 10\r\n\r\nhalf";
    serve_bytes(&ground, "i5", failing);
    ground.put(table(backend(&["i5"]))).await;
    assert!(ground.client().await.try_get("/").await.is_err());
    until("nothing is in flight", || ground.in_flight() == 0).await;
    let counted = ground.meter.revision(&key("a")).unwrap();
    assert_eq!((counted.answers, counted.broken), ([0, 4, 0, 0, 1], 3), "a 5xx counts as a fault already");
    assert_eq!(counted.failed(), 4);
}

#[tokio::test]
async fn an_answer_whose_client_leaves_is_not_broken_by_its_instance() {
    let ground = ground!();
    let listener = ground.listen("i1");
    ground.put(table(backend(&["i1"]))).await;
    let mut client = ground.connect().await;
    client.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    let (mut instance, _) = listener.accept().await.unwrap();
    instance.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"half") {
        seen.push(client.read_u8().await.unwrap());
    }
    drop(client);
    until("nothing is in flight", || ground.in_flight() == 0).await;
    let revision = ground.meter.revision(&key("a")).unwrap();
    assert_eq!((revision.answers, revision.broken), ([0, 1, 0, 0, 0], 0));
}

#[tokio::test]
async fn a_client_that_does_not_send_its_body_is_told_that_it_was_too_slow() {
    let ground = ground!();
    ground.serve("i1", |request: http::Request<hyper::body::Incoming>| async move {
        let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap();
        crate::ground::text(body.to_bytes())
    });
    for backend in [
        Backend { timeout_ms: 200, ..backend(&["i1"]) },
        Backend { idle_timeout_ms: 200, ..backend(&["i1"]) },
    ] {
        ground.put(table(backend)).await;
        let mut client = ground.connect().await;
        let head = format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 100\r\n\r\nsome");
        client.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; 1024];
        let read = tokio::time::timeout(Duration::from_secs(20), client.read(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer[..read.unwrap().unwrap()]);
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains("x-tombolo-reason: RequestBodyTimeout"), "{answer}");
        until("nothing is in flight", || ground.in_flight() == 0).await;
        let counted = ground.meter.revision(&key("a")).unwrap();
        assert_eq!(counted.faults_of_clients.count(), counted.answers[3], "it is no fault of the revision");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_slow_clients_do_not_slow_down_others() {
    let ground = ground!();
    ground.serve_name("i1");
    ground.put(table(backend(&["i1"]))).await;
    let mut slow = Vec::new();
    for _ in 0..500 {
        let mut client = ground.connect().await;
        client.write_all(b"GET / HTTP/1.1\r\nhost: a.def").await.unwrap();
        slow.push(client);
    }
    for _ in 0..20 {
        let answer = tokio::time::timeout(Duration::from_secs(20), ground.get("/")).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }
    for client in &mut slow {
        client.write_all(b"ault.localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    }
    for mut client in slow {
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

#[tokio::test]
async fn events_are_passed_on_one_by_one() {
    let ground = ground!();
    let listener = ground.listen("i1");
    ground.put(table(backend(&["i1"]))).await;
    let mut client = ground.connect().await;
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\naccept: text/event-stream\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let (mut instance, _) = listener.accept().await.unwrap();
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        asked.push(instance.read_u8().await.unwrap());
    }
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    instance.write_all(head).await.unwrap();
    let mut seen = Vec::new();
    for number in 0..20 {
        // The next event comes only after this one has arrived.
        let event = format!("data: {number}\n\n");
        instance.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await.unwrap();
        while !seen.windows(event.len()).any(|part| part == event.as_bytes()) {
            seen.push(client.read_u8().await.unwrap());
        }
    }
}
