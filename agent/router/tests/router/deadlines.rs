//! Limits of time, before and after an answer has begun.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tombolo_agent_core::routes::Backend;

use crate::ground::{HOST, backend, ground, reason, table, text, until};
use crate::http2;

/// Sends `chunk` for ever, `pause` apart.
fn endless(
    chunk: Bytes,
    pause: Duration,
) -> Response<StreamBody<impl stream::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>> {
    let frames = stream::repeat(chunk).then(move |chunk| async move {
        tokio::time::sleep(pause).await;
        Ok(Frame::data(chunk))
    });
    Response::new(StreamBody::new(frames))
}

#[tokio::test]
async fn an_answer_must_begin_in_time() {
    let ground = ground!();
    ground.serve("i1", |_| async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        text("late")
    });
    for (backend, expected) in [
        (Backend { response_start_timeout_ms: 120, ..backend(&["i1"]) }, "ResponseStartTimeout"),
        (Backend { timeout_ms: 120, ..backend(&["i1"]) }, "RequestTimeout"),
        (Backend { idle_timeout_ms: 120, ..backend(&["i1"]) }, "IdleTimeout"),
    ] {
        ground.put(table(backend)).await;
        let mut client = ground.client().await;
        for _ in 0..2 {
            let start = Instant::now();
            let answer = client.get("/").await;
            assert_eq!((answer.status(), reason(&answer)), (StatusCode::GATEWAY_TIMEOUT, expected));
            assert!((120..2000).contains(&start.elapsed().as_millis()), "{expected} {:?}", start.elapsed());
        }
        until("nothing is in flight", || ground.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_broken_off() {
    let ground = ground!();
    ground.serve("i1", |request: Request<Incoming>| async move {
        let pause = if request.uri().path() == "/slow" { 10_000 } else { 20 };
        endless(Bytes::from_static(b"x"), Duration::from_millis(pause))
    });
    let get = |path: &str| Request::get(path).header("host", HOST).body(Empty::new()).unwrap();
    for (backend, path) in [
        (Backend { timeout_ms: 300, ..backend(&["i1"]) }, "/"),
        (Backend { timeout_ms: 300, idle_timeout_ms: 200, ..backend(&["i1"]) }, "/"),
        (Backend { idle_timeout_ms: 150, ..backend(&["i1"]) }, "/slow"),
    ] {
        ground.put(table(backend)).await;
        let start = Instant::now();
        let response = ground.client().await.start(get(path)).await.unwrap();
        assert!(response.into_body().collect().await.is_err(), "{path}: not a clean end");
        let took = start.elapsed().as_millis();
        assert!(took >= if path == "/" { 300 } else { 150 } && took < 5000, "{path} {took}");
        until("nothing is in flight", || ground.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_does_not_keep_its_slot() {
    let ground = ground!();
    ground.serve("i1", |_| async { endless(Bytes::from(vec![0; 64 * 1024]), Duration::ZERO) });
    for backend in [
        Backend { timeout_ms: 500, ..backend(&["i1"]) },
        Backend { idle_timeout_ms: 500, ..backend(&["i1"]) },
    ] {
        ground.put(table(backend)).await;
        let mut stalled = ground.connect().await;
        stalled.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
        stalled.read_exact(&mut [0; 16]).await.unwrap();
        until("HTTP/1: nothing is in flight", || ground.in_flight() == 0).await;

        let mut client = http2::client(&ground).await;
        let request = Request::get(format!("http://{HOST}/")).body(Empty::<Bytes>::new()).unwrap();
        let stalled = client.send_request(request).await.unwrap();
        until("HTTP/2: nothing is in flight", || ground.in_flight() == 0).await;
        assert!(stalled.into_body().collect().await.is_err(), "not a clean end");
    }
}
