//! HTTP/2 with prior knowledge, on either side.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt as _;
use tombolo_agent_core::routes::Backend;

use crate::ground::{Ground, HOST, backend, ground, reason, table, text, until, within};
use crate::streaming::{CHUNK, Frames, UNDERWAY_MAX, chunks, count};

pub(crate) async fn client<B>(ground: &Ground) -> SendRequest<B>
where
    B: http_body::Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let io = TokioIo::new(ground.connect().await);
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn trailers(name: &'static str, value: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static(name), http::HeaderValue::from_static(value))])
}

/// As gRPC: a message each way, and the outcome in trailers. Without `te: trailers` it fails.
async fn grpc(request: Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
    let (parts, body) = request.into_parts();
    assert_eq!(parts.version, Version::HTTP_2);
    assert_eq!(parts.uri.authority().unwrap().as_str(), HOST);
    assert!(parts.headers["forwarded"].to_str().unwrap().contains("proto=http"));
    let collected = body.collect().await.unwrap();
    let asked = collected.trailers().and_then(|trailers| trailers.get("x-check")).is_some();
    let status = if asked && parts.headers["te"] == "trailers" { "0" } else { "3" };
    let frames =
        [Ok(Frame::data(collected.to_bytes())), Ok(Frame::trailers(trailers("grpc-status", status)))];
    Response::new(StreamBody::new(stream::iter(frames)).boxed())
}

fn call(message: &'static [u8]) -> Request<BoxBody<Bytes, Infallible>> {
    let frames =
        [Ok(Frame::data(Bytes::from_static(message))), Ok(Frame::trailers(trailers("x-check", "1")))];
    let body = StreamBody::new(stream::iter(frames)).boxed();
    Request::post(format!("http://{HOST}/pkg.Service/Call")).header("te", "trailers").body(body).unwrap()
}

#[tokio::test]
async fn grpc_calls_pass_with_their_trailers() {
    let ground = ground!();
    ground.serve("i1", grpc);
    ground.put(table(Backend { h2c: true, ..backend(&["i1"]) })).await;
    let client = client(&ground).await;
    let mut calls = Vec::new();
    for _ in 0..50 {
        let mut client = client.clone();
        calls.push(tokio::spawn(async move { client.send_request(call(b"message")).await.unwrap() }));
    }
    for answer in calls {
        let collected = answer.await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(collected.to_bytes(), "message");
    }
    until("nothing is in flight", || ground.in_flight() == 0).await;
}

#[tokio::test]
async fn an_http1_instance_serves_http2_clients() {
    let ground = ground!();
    ground.serve("i1", |request: Request<Incoming>| async move {
        let head = format!(
            "{:?} {} {} ",
            request.version(),
            request.headers()["host"].to_str().unwrap(),
            request.headers().get("cookie").map_or("", |cookie| cookie.to_str().unwrap()),
        );
        let body = request.into_body().collect().await.unwrap().to_bytes();
        text(head + std::str::from_utf8(&body).unwrap())
    });
    ground.put(table(backend(&["i1"]))).await;
    let mut client = client(&ground).await;
    let request = Request::post(format!("http://{HOST}/")).header("cookie", "a=1").header("cookie", "b=2");
    let answer = client.send_request(request.body(Full::from("body")).unwrap()).await.unwrap();
    assert_eq!(answer.version(), Version::HTTP_2);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, format!("HTTP/1.1 {HOST} a=1; b=2 body"));
}

#[tokio::test]
async fn an_http2_instance_serves_http1_clients() {
    let ground = ground!();
    ground.serve("i1", |request: Request<Incoming>| async move {
        text(format!("{:?} {} {}", request.version(), request.method(), request.uri()))
    });
    ground.put(table(Backend { h2c: true, ..backend(&["i1"]) })).await;
    let mut client = ground.client().await;
    for _ in 0..3 {
        assert_eq!(client.get("/x?y").await.body(), &format!("HTTP/2.0 GET http://{HOST}/x?y"));
    }
    ground.put(table(Backend { h2c: true, ..backend(&["gone"]) })).await;
    assert_eq!(reason(&client.get("/").await), "InstanceUnreachable");
}

#[tokio::test]
async fn held_streams_and_refusals_work_as_with_http1() {
    let ground = ground!();
    ground.put(table(Backend { timeout_ms: 150, ..backend(&[]) })).await;
    let mut client = client(&ground).await;
    let get = |host: &str| Request::get(format!("http://{host}/")).body(Empty::<Bytes>::new()).unwrap();
    let answer = client.send_request(get(HOST)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(client.send_request(get("nobody")).await.unwrap().status(), StatusCode::NOT_FOUND);

    ground.put(table(backend(&[]))).await;
    let left = client.send_request(get(HOST));
    until("it is held", || ground.held() == 1).await;
    drop(left);
    until("it has left", || ground.held() == 0).await;
}

#[tokio::test]
async fn held_streams_may_send_no_more_than_is_counted() {
    const WINDOW: u64 = 64 * 1024;
    const STREAMS: u64 = 8;
    let ground = ground!();
    ground.put(table(backend(&[]))).await;
    let client = client::<Frames>(&ground).await;
    let made = Arc::new(AtomicU64::new(0));
    let mut answers = Vec::new();
    for streams in 1..=STREAMS {
        let (mut client, body) = (client.clone(), chunks(32, Arc::clone(&made)));
        let request = Request::post(format!("http://{HOST}/")).body(body).unwrap();
        answers.push(tokio::spawn(async move { client.send_request(request).await.unwrap() }));
        until("it is held", || ground.held() as u64 == streams).await;
        assert!(ground.meter.held_bytes() as u64 >= streams * WINDOW, "{}", ground.meter.held_bytes());
        tokio::time::sleep(Duration::from_millis(100)).await;
        // And a piece that the client itself keeps of each.
        let (sent, most) = (made.load(Ordering::Relaxed), streams.min(4) * WINDOW + streams * CHUNK as u64);
        assert!(sent > 0 && sent <= most, "{sent} of {most}");
    }
    ground.serve("i1", |request: Request<Incoming>| async move {
        text(count(request.into_body()).await.to_string())
    });
    ground.put(table(backend(&["i1"]))).await;
    for answer in answers {
        let answer = within("the answer", answer).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), (32 * CHUNK).to_string());
    }
}

#[tokio::test]
async fn a_stream_that_nobody_reads_is_sent_no_more_than_fits_on_the_way_and_others_go_on() {
    let ground = ground!();
    let made = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&made);
    ground.serve("i1", move |request: Request<Incoming>| {
        let made = Arc::clone(&counted);
        async move {
            if request.uri().path() == "/endless" {
                return Response::new(chunks(u64::MAX, made).boxed());
            }
            text("short").map(BodyExt::boxed)
        }
    });
    ground.put(table(backend(&["i1"]))).await;
    let mut client = client(&ground).await;
    let get = |path: &str| Request::get(format!("http://{HOST}{path}")).body(Empty::<Bytes>::new()).unwrap();
    let unread = client.send_request(get("/endless")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let sent = made.load(Ordering::Relaxed);
    assert!(sent > 0 && sent < UNDERWAY_MAX, "{sent}");
    let short = within("the other", client.send_request(get("/short"))).await.unwrap();
    assert_eq!(short.into_body().collect().await.unwrap().to_bytes(), "short");
    drop(unread);
    until("nothing is in flight", || ground.in_flight() == 0).await;
}

/// What the ends of these tests keep of a body, bytes, and how large its pieces are.
const PART: u64 = CHUNK as u64;

/// A client that takes little of an answer before it is read, and of others all the same.
async fn sparing_client<B>(ground: &Ground) -> SendRequest<B>
where
    B: http_body::Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let stream = ground.connect().await;
    stream.set_nodelay(true).unwrap();
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(PART as u32).initial_connection_window_size(1 << 30);
    builder.max_send_buf_size(PART as usize);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// An instance that speaks HTTP/2 alone, and keeps little of what is not read.
fn serve_sparingly<F>(ground: &Ground, answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static)
where
    F: Future<Output = Response<BoxBody<Bytes, Infallible>>> + Send + 'static,
{
    let listener = ground.listen("i1");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let answer = answer(request);
                async { Ok::<_, Infallible>(answer.await) }
            });
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder.max_send_buf_size(PART as usize);
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
}

/// The bytes that were made when no more are.
async fn at_rest(made: &AtomicU64) -> u64 {
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        match made.load(Ordering::Relaxed) {
            now if now == before && now > 0 => return now,
            now => before = now,
        }
    }
}

#[tokio::test]
async fn an_http2_instance_is_kept_back_while_clients_do_not_read_and_others_get_their_answers() {
    let ground = ground!();
    let made = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&made);
    serve_sparingly(&ground, move |request| {
        let made = Arc::clone(&counted);
        async move {
            if request.uri().path() == "/endless" {
                return Response::new(chunks(u64::MAX, made).boxed());
            }
            text("short").map(BodyExt::boxed)
        }
    });
    let backend = Backend { h2c: true, timeout_ms: 600_000, ..backend(&["i1"]) };
    ground.put(table(backend)).await;
    let mut client = sparing_client(&ground).await;
    let get = |path: &str| Request::get(format!("http://{HOST}{path}")).body(Empty::<Bytes>::new()).unwrap();
    let mut unread = vec![client.send_request(get("/endless")).await.unwrap()];
    // A part at the client, one kept for it, four from the instance and one there, and pieces that wait.
    let sent = within("no more to be sent", at_rest(&made)).await;
    assert!(sent <= 10 * PART, "{sent}");
    for _ in 0..40 {
        unread.push(client.send_request(get("/endless")).await.unwrap());
    }
    let sent = within("no more to be sent", at_rest(&made)).await;
    assert!(sent <= unread.len() as u64 * 10 * PART, "{sent}");
    let short =
        async { client.send_request(get("/short")).await.unwrap().into_body().collect().await.unwrap() };
    assert_eq!(within("the other", short).await.to_bytes(), "short");
    drop(unread);
    until("nothing is in flight", || ground.in_flight() == 0).await;
}

#[tokio::test]
async fn little_of_what_an_http2_instance_does_not_read_is_kept_for_it() {
    /// As much as there can be, for each body and for all.
    const WINDOWS: [u8; 28] = [
        0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff, // SETTINGS
        0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0xff, 0, 0, // WINDOW_UPDATE
    ];
    let ground = ground!();
    let listener = ground.listen_keeping(PART as u32, "i1");
    ground.put(table(Backend { h2c: true, ..backend(&["i1"]) })).await;
    let mut client = sparing_client::<Frames>(&ground).await;
    let made = Arc::new(AtomicU64::new(0));
    let request = Request::post(format!("http://{HOST}/")).body(chunks(u64::MAX, Arc::clone(&made))).unwrap();
    let uploading = tokio::spawn(client.send_request(request));
    let (mut instance, _) = listener.accept().await.unwrap();
    instance.write_all(&WINDOWS).await.unwrap();
    // A part that the client keeps, one on the way and one for the instance, pieces that wait, and what sockets keep.
    let sent = within("no more to be sent", at_rest(&made)).await;
    assert!(sent <= 10 * PART, "{sent}");
    uploading.abort();
}

#[tokio::test]
async fn heads_of_http2_instances_may_be_as_large_as_others() {
    let ground = ground!();
    let long = "x".repeat(40 * 1024);
    let head = long.clone();
    serve_sparingly(&ground, move |_| {
        let head = head.clone();
        async move {
            let mut answer = text("").map(BodyExt::boxed);
            answer.headers_mut().insert("x-long", head.parse().unwrap());
            answer
        }
    });
    ground.put(table(Backend { h2c: true, ..backend(&["i1"]) })).await;
    assert_eq!(ground.get("/").await.headers()["x-long"], long);
}
