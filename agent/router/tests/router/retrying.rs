//! Connections and instances that go away, with no request lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::ground::{Ground, HOST, backend, body_text, ground, id, reason, table};

/// Read one request without a body and answer it.
async fn answer_one(stream: &mut tokio::net::TcpStream) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return false,
        }
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_tables_switch() {
    let ground = Arc::new(ground!());
    for instance in ["i1", "i2", "i3", "i4"] {
        ground.serve_name(instance);
    }
    ground.put(table(backend(&["i1"]))).await;
    let (done, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = Vec::new();
    for _ in 0..16 {
        let (done, answered, ground) = (Arc::clone(&done), Arc::clone(&answered), Arc::clone(&ground));
        clients.push(tokio::spawn(async move {
            let mut client = ground.client().await;
            while !done.load(Ordering::Relaxed) {
                let answer = client.get("/").await;
                assert_eq!(answer.status(), StatusCode::OK, "{}", body_text(&answer));
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let sets: [&[&str]; 5] = [&["i2"], &["i3", "i4"], &[], &["i1", "i2", "i3"], &["i4"]];
    for ready in sets.iter().cycle().take(200) {
        ground.put(table(backend(ready))).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    done.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert!(answered.load(Ordering::Relaxed) > 200);
    let total = ground.meter.snapshot().values().next().unwrap().clone();
    assert_eq!((total.answers[1], total.requests()), (total.answers[1], total.answers[1]), "all of them 2xx");
    for gone in ["i1", "i2", "i3"] {
        assert!(ground.meter.is_released(&id(gone)), "{gone}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_the_instance_closed_meanwhile_lose_no_request() {
    let ground = ground!();
    let listener = ground.listen("i1");
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                // Says nothing of closing: three answers, and then it is gone.
                for _ in 0..3 {
                    answer_one(&mut stream).await;
                }
            });
        }
    });
    ground.put(table(backend(&["i1"]))).await;
    let mut client = ground.client().await;
    for round in 0..60 {
        assert_eq!(client.get("/").await.status(), StatusCode::OK, "{round}");
        // Lets the end of the connection arrive; what is used at the same moment is a matter of the next test.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// Answers the first request of each connection, and gives the second so much of an answer before the connection closes.
fn serve_once_each(ground: &Ground, instance: &str, second: &'static [u8]) -> Arc<AtomicUsize> {
    let listener = ground.listen(instance);
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let seen = Arc::clone(&counted);
            tokio::spawn(async move {
                answer_one(&mut stream).await;
                seen.fetch_add(1, Ordering::SeqCst);
                // The next request is read, at least in part, and the connection closed all the same.
                drop(stream.read_u8().await);
                stream.write_all(second).await.unwrap();
            });
        }
    });
    seen
}

#[tokio::test]
async fn a_request_that_meets_the_end_of_a_reused_connection_is_repeated_if_it_may_be() {
    let ground = ground!();
    let seen = serve_once_each(&ground, "i1", b"");
    ground.put(table(backend(&["i1"]))).await;
    let mut client = ground.client().await;
    // However short the connection was idle.
    for _ in 0..3 {
        client.get("/").await;
        assert_eq!(client.get("/").await.status(), StatusCode::OK);
    }
    assert_eq!(seen.load(Ordering::SeqCst), 6);

    let post = Request::post("/").header("host", HOST).body(Full::new(Bytes::from_static(b"once"))).unwrap();
    let answer = client.send(post).await.unwrap();
    assert_eq!((answer.status(), reason(&answer)), (StatusCode::BAD_GATEWAY, "InstanceReset"));
}

#[tokio::test]
async fn a_request_whose_answer_has_begun_is_not_repeated() {
    let ground = ground!();
    for (instance, second) in [("i1", &b"HTTP/1.1 200"[..]), ("i2", b"HTTP/1.1 103 Early Hints\r\n\r\n")] {
        let seen = serve_once_each(&ground, instance, second);
        ground.put(table(backend(&[instance]))).await;
        let mut client = ground.client().await;
        client.get("/").await;
        let answer = client.get("/").await;
        assert_eq!(
            (answer.status(), reason(&answer)),
            (StatusCode::BAD_GATEWAY, "InstanceReset"),
            "{instance}"
        );
        assert_eq!(seen.load(Ordering::SeqCst), 1, "{instance}");
    }
}

#[tokio::test]
async fn a_request_goes_to_another_instance_if_one_refuses_connections() {
    let ground = ground!();
    drop(ground.listen("i1"));
    ground.serve_name("i2");
    ground.put(table(backend(&["i1", "i2"]))).await;
    for _ in 0..40 {
        let post = Request::post("/").header("host", HOST).body(Full::new(Bytes::from_static(b"x"))).unwrap();
        let answer = ground.client().await.send(post).await.unwrap();
        assert_eq!((answer.status(), body_text(&answer)), (StatusCode::OK, "i2"));
    }
}
