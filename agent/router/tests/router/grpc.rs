//! gRPC through the router, message by message.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tombolo_agent_core::actual::Moment;
use tombolo_agent_core::routes::Backend;

use crate::ground::{Ground, HOST, backend, ground, id, key, table, until};
use crate::http2;

/// A message with its prefix.
fn message(text: &str) -> Frame<Bytes> {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(text.len() as u32);
    framed.put_slice(text.as_bytes());
    Frame::data(framed.freeze())
}

fn outcome(status: &'static str) -> Frame<Bytes> {
    let name = HeaderName::from_static("grpc-status");
    Frame::trailers(HeaderMap::from_iter([(name, HeaderValue::from_static(status))]))
}

/// A body of what comes through a channel.
struct Channel(mpsc::Receiver<Frame<Bytes>>);

impl http_body::Body for Channel {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

fn channel() -> (mpsc::Sender<Frame<Bytes>>, Channel) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, Channel(receiver))
}

/// Whole messages out of a body's bytes.
struct Messages {
    body: Incoming,
    buffer: BytesMut,
    trailers: Option<HeaderMap>,
}

impl Messages {
    fn new(body: Incoming) -> Self {
        Self { body, buffer: BytesMut::new(), trailers: None }
    }

    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(head) = self.buffer.get(1..5) {
                let length = u32::from_be_bytes(head.try_into().unwrap()) as usize;
                if self.buffer.len() >= 5 + length {
                    let framed = self.buffer.split_to(5 + length);
                    return Some(String::from_utf8(framed[5..].to_vec()).unwrap());
                }
            }
            let frame = self.body.frame().await?.unwrap();
            match frame.into_data() {
                Ok(data) => self.buffer.extend_from_slice(&data),
                Err(frame) => self.trailers = frame.into_trailers().ok(),
            }
        }
    }

    fn status(&self) -> &str {
        self.trailers.as_ref().unwrap()["grpc-status"].to_str().unwrap()
    }
}

/// Serves four kinds of calls and two that fail.
async fn serve(request: Request<Incoming>) -> Response<Channel> {
    let path = request.uri().path().to_owned();
    if path == "/slow" {
        std::future::pending::<()>().await;
    }
    let (sender, body) = channel();
    let mut asked = Messages::new(request.into_body());
    tokio::spawn(async move {
        match path.as_str() {
            "/count" => {
                asked.next().await.unwrap();
                for number in 0..5 {
                    sender.send(message(&number.to_string())).await.unwrap();
                }
            }
            "/collect" => {
                let mut all = Vec::new();
                while let Some(part) = asked.next().await {
                    all.push(part);
                }
                sender.send(message(&all.join("+"))).await.unwrap();
            }
            "/stall" => {
                sender.send(message("first")).await.unwrap();
                sender.closed().await;
            }
            _ => {
                while let Some(part) = asked.next().await {
                    sender.send(message(&part)).await.unwrap();
                }
            }
        }
        drop(sender.send(outcome("0")).await);
    });
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

/// Start a call; gives where its messages go, and the answer to come.
async fn call(
    ground: &Ground,
    path: &str,
    timeout: &str,
) -> (mpsc::Sender<Frame<Bytes>>, tokio::task::JoinHandle<Response<Incoming>>) {
    let mut client = http2::client::<Channel>(ground).await;
    let (sender, body) = channel();
    let mut request = Request::post(format!("http://{HOST}{path}"))
        .header("te", "trailers")
        .header("content-type", "application/grpc+proto");
    if !timeout.is_empty() {
        request = request.header("grpc-timeout", timeout);
    }
    let request = request.body(body).unwrap();
    let answer = tokio::spawn(async move { client.send_request(request).await.unwrap() });
    (sender, answer)
}

fn status(answer: &Response<Incoming>) -> (StatusCode, &str, &str) {
    let header = |name: &str| answer.headers().get(name).map_or("", |value| value.to_str().unwrap());
    (answer.status(), header("grpc-status"), header("x-tombolo-reason"))
}

fn h2c(ready: &[&str]) -> Backend {
    Backend { h2c: true, ..backend(ready) }
}

#[tokio::test]
async fn all_four_kinds_of_calls_pass() {
    let ground = ground!();
    ground.serve("i1", serve);
    ground.put(table(h2c(&["i1"]))).await;
    for (path, sent, expected) in [
        ("/unary", &["one"][..], &["one"][..]),
        ("/count", &["go"], &["0", "1", "2", "3", "4"]),
        ("/collect", &["a", "b", "c"], &["a+b+c"]),
    ] {
        let (sender, answer) = call(&ground, path, "").await;
        for text in sent {
            sender.send(message(text)).await.unwrap();
        }
        drop(sender);
        let answer = answer.await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/grpc");
        let mut got = Messages::new(answer.into_body());
        for text in expected {
            assert_eq!(got.next().await.as_deref(), Some(*text), "{path}");
        }
        assert_eq!((got.next().await, got.status()), (None, "0"), "{path}");
    }

    // Both ways at once: each message is answered before the next is sent.
    let (sender, answer) = call(&ground, "/echo", "").await;
    sender.send(message("first")).await.unwrap();
    let mut got = Messages::new(answer.await.unwrap().into_body());
    assert_eq!(got.next().await.as_deref(), Some("first"));
    for number in 0..20 {
        let text = format!("message {number}");
        sender.send(message(&text)).await.unwrap();
        assert_eq!(got.next().await, Some(text));
    }
    drop(sender);
    assert_eq!((got.next().await, got.status()), (None, "0"));
    until("nothing is in flight", || ground.in_flight() == 0).await;
}

#[tokio::test]
async fn the_router_s_own_failures_are_told_in_grpc_s_way() {
    let ground = ground!();
    ground.serve("i1", serve);
    for (backend, expected) in [
        (Backend { timeout_ms: 100, ..h2c(&["i1"]) }, ("4", "RequestTimeout")),
        (Backend { timeout_ms: 100, ..h2c(&[]) }, ("4", "ActivationTimeout")),
        (h2c(&["gone"]), ("14", "InstanceUnreachable")),
    ] {
        ground.put(table(backend)).await;
        let (_sender, answer) = call(&ground, "/slow", "").await;
        let answer = answer.await.unwrap();
        assert_eq!(status(&answer), (StatusCode::OK, expected.0, expected.1));
        assert_eq!(answer.headers()["content-type"], "application/grpc");
        assert!(!answer.headers()["grpc-message"].is_empty());
        assert!(answer.into_body().collect().await.unwrap().to_bytes().is_empty());
    }
    let mut client = http2::client::<Channel>(&ground).await;
    let elsewhere = Request::post("http://nobody/x").header("content-type", "application/grpc");
    let answer = client.send_request(elsewhere.body(channel().1).unwrap()).await.unwrap();
    assert_eq!(status(&answer), (StatusCode::OK, "12", "UnknownHost"));
}

#[tokio::test]
async fn a_call_s_own_deadline_holds_if_it_is_shorter() {
    let ground = ground!();
    ground.serve("i1", serve);
    ground.put(table(h2c(&["i1"]))).await;
    let start = Instant::now();
    let (_sender, answer) = call(&ground, "/slow", "150m").await;
    assert_eq!(status(&answer.await.unwrap()), (StatusCode::OK, "4", "RequestTimeout"));
    assert!(start.elapsed() >= Duration::from_millis(150));

    // After the answer has begun the trailers say it.
    let (_sender, answer) = call(&ground, "/stall", "150m").await;
    let mut got = Messages::new(answer.await.unwrap().into_body());
    assert_eq!(got.next().await.as_deref(), Some("first"));
    assert_eq!((got.next().await, got.status()), (None, "4"));
    until("nothing is in flight", || ground.in_flight() == 0).await;
    assert_eq!(ground.meter.instance_in_flight(&id("i1")), 0);

    // A longer one does not stretch the revision's limit.
    ground.put(table(Backend { timeout_ms: 100, ..h2c(&["i1"]) })).await;
    let (_sender, answer) = call(&ground, "/slow", "1H").await;
    assert_eq!(status(&answer.await.unwrap()), (StatusCode::OK, "4", "RequestTimeout"));
}

/// Ends every call as its path says: `/trailers/13` and `/head/13` by an outcome, `/none` without, `/status/500` in HTTP's way.
async fn end(request: Request<Incoming>) -> Response<Channel> {
    let path = request.uri().path().to_owned();
    let (how, which) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    let (sender, body) = channel();
    let mut answer = Response::builder().header("content-type", "application/grpc");
    match how {
        "head" => answer = answer.header("grpc-status", which),
        "status" => answer = answer.status(which.parse::<u16>().unwrap()),
        "trailers" => {
            let trailers = [(HeaderName::from_static("grpc-status"), HeaderValue::try_from(which).unwrap())];
            tokio::spawn(async move {
                sender.send(message("one")).await.unwrap();
                sender.send(Frame::trailers(HeaderMap::from_iter(trailers))).await.unwrap();
            });
        }
        "wait" => {
            tokio::spawn(async move {
                sender.send(message("one")).await.unwrap();
                sender.closed().await;
            });
        }
        _ => {
            tokio::spawn(async move { sender.send(message("one")).await });
        }
    }
    answer.body(body).unwrap()
}

#[tokio::test]
async fn calls_count_by_their_outcome() {
    let ground = ground!();
    ground.serve("i1", end);
    ground.put(table(h2c(&["i1"]))).await;
    let mut expected = [0; 5];
    for (path, class) in [
        ("/trailers/0", 2),
        ("/trailers/5", 2),
        ("/trailers/13", 5),
        ("/trailers/14", 5),
        ("/head/0", 2),
        ("/head/7", 2),
        ("/head/2", 5),
        ("/none", 5),
        ("/status/404", 4),
        ("/status/500", 5),
    ] {
        let (_sender, answer) = call(&ground, path, "").await;
        drop(answer.await.unwrap().into_body().collect().await.unwrap());
        expected[class - 1] += 1;
        let seen = || ground.meter.revision(&key("a")).unwrap();
        until("the call has ended", || ground.in_flight() == 0).await;
        assert_eq!(seen().answers, expected, "{path}");
        assert_eq!((seen().latency.count(), seen().abandoned), (expected.iter().sum(), 0), "{path}");
    }

    // The client leaves, which is nobody's fault.
    let (sender, answer) = call(&ground, "/wait", "").await;
    let mut got = Messages::new(answer.await.unwrap().into_body());
    assert_eq!(got.next().await.as_deref(), Some("one"));
    let answers = || ground.meter.revision(&key("a")).unwrap().answers;
    assert_eq!(answers(), expected, "not known yet");
    drop((sender, got));
    until("it is counted", || ground.in_flight() == 0).await;
    expected[1] += 1;
    assert_eq!(answers(), expected);

    // The answer breaks off.
    let (_sender, answer) = call(&ground, "/wait", "100m").await;
    let mut got = Messages::new(answer.await.unwrap().into_body());
    while got.next().await.is_some() {}
    assert_eq!(got.status(), "4");
    expected[4] += 1;
    until("it is counted", || answers() == expected).await;
}

#[tokio::test]
async fn an_instance_has_served_once_a_call_has_not_failed() {
    let ground = ground!();
    ground.serve("i1", end);
    ground.put(table(h2c(&["i1"]))).await;
    let calls = [("/trailers/14", false), ("/head/14", false), ("/none", false), ("/trailers/0", true)];
    for (path, has_served) in calls {
        let (_sender, answer) = call(&ground, path, "").await;
        drop(answer.await.unwrap().into_body().collect().await.unwrap());
        until("the call has ended", || ground.in_flight() == 0).await;
        let served = ground.meter.traffic(|_| Moment(7)).served;
        assert_eq!(served.contains(&id("i1")), has_served, "{path}");
    }
}

#[tokio::test]
async fn the_router_s_own_failures_count_as_what_they_are() {
    let ground = ground!();
    ground.serve("i1", serve);
    let mut failed = 0;
    for backend in
        [Backend { timeout_ms: 100, ..h2c(&["i1"]) }, Backend { timeout_ms: 100, ..h2c(&[]) }, h2c(&["gone"])]
    {
        ground.put(table(backend)).await;
        let (_sender, answer) = call(&ground, "/slow", "").await;
        assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
        failed += 1;
        let counted = || ground.meter.revision(&key("a")).unwrap().answers;
        assert_eq!(counted(), [0, 0, 0, 0, failed]);
    }
}
