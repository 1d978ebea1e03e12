//! Connections that switch protocols.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, split};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tombolo_agent_core::routes::Backend;

use crate::ground::{Ground, HOST, backend, gated, ground, id, table, text, until, within};

/// Switches to a protocol that echoes, if asked to.
async fn echo(mut request: Request<Incoming>) -> Response<Full<bytes::Bytes>> {
    if request.headers().get("upgrade").is_none_or(|protocol| protocol != "websocket") {
        return text("not asked to");
    }
    let upgrading = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (mut read, mut write) = split(TokioIo::new(upgrading.await.unwrap()));
        write.write_all(b"hello ").await.unwrap();
        copy(&mut read, &mut write).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let switched = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    switched.header("connection", "upgrade").header("upgrade", "websocket").body(Full::default()).unwrap()
}

async fn switched(ground: &Ground) -> TcpStream {
    let mut client = ground.connect().await;
    // The first bytes of the new protocol come with the request.
    let request =
        format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nabc");
    client.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("upgrade: websocket"), "{head}");
    client
}

async fn expect(client: &mut TcpStream, text: &str) {
    let mut read = vec![0; text.len()];
    client.read_exact(&mut read).await.unwrap();
    assert_eq!(String::from_utf8(read).unwrap(), text);
}

#[tokio::test]
async fn bytes_pass_both_ways_until_both_sides_have_ended() {
    let ground = ground!();
    ground.serve("i1", echo);
    // The limit of a whole request is none of a tunnel.
    let without = ground.put(table(Backend { timeout_ms: 300, ..backend(&[]) })).await;
    ground.put(table(Backend { timeout_ms: 300, ..backend(&["i1"]) })).await;
    let mut client = switched(&ground).await;
    expect(&mut client, "hello abc").await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    for round in 0..10 {
        let text = format!("round {round}");
        client.write_all(text.as_bytes()).await.unwrap();
        expect(&mut client, &text).await;
    }
    assert_eq!((ground.in_flight(), ground.meter.instance_in_flight(&id("i1"))), (1, 1));

    // An instance with a tunnel is not released.
    let without = ground.put((*without).clone()).await;
    assert!(!ground.meter.is_released(&id("i1")));
    client.write_all(b"last").await.unwrap();
    client.shutdown().await.unwrap();
    expect(&mut client, "last").await;
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    ground.meter.drained(&without, &id("i1")).await;
    until("nothing is in flight", || ground.in_flight() == 0).await;
}

#[tokio::test]
async fn a_tunnel_ends_when_its_client_leaves_or_says_nothing() {
    let ground = ground!();
    ground.serve("i1", echo);
    ground.put(table(backend(&["i1"]))).await;
    let mut client = switched(&ground).await;
    expect(&mut client, "hello abc").await;
    drop(client);
    until("nothing is in flight", || ground.in_flight() == 0).await;

    ground.put(table(Backend { idle_timeout_ms: 150, ..backend(&["i1"]) })).await;
    let mut client = switched(&ground).await;
    expect(&mut client, "hello abc").await;
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    until("nothing is in flight", || ground.in_flight() == 0).await;
}

#[tokio::test]
async fn tunnels_get_their_grace_when_their_instance_leaves() {
    let grace = Duration::from_millis(400);
    let Some(ground) = Ground::with_tunnel_grace(grace) else { return };
    ground.serve("i1", echo);
    let with = table(backend(&["i1"]));
    ground.put(with.clone()).await;
    let mut client = switched(&ground).await;
    expect(&mut client, "hello abc").await;

    // An instance that comes back keeps its tunnels.
    ground.put(table(backend(&[]))).await;
    ground.put(with).await;
    tokio::time::sleep(grace * 2).await;
    client.write_all(b"still here").await.unwrap();
    expect(&mut client, "still here").await;

    let start = Instant::now();
    let without = ground.put(table(backend(&[]))).await;
    client.write_all(b"goodbye").await.unwrap();
    expect(&mut client, "goodbye").await;
    assert_eq!((ground.in_flight(), ground.meter.instance_in_flight(&id("i1"))), (1, 1));
    ground.meter.drained(&without, &id("i1")).await;
    assert!(start.elapsed() >= grace, "{:?}", start.elapsed());
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0, "closed");
    until("nothing is in flight", || ground.in_flight() == 0).await;
}

#[tokio::test]
async fn a_router_that_stops_closes_tunnels_after_their_grace_and_waits_on_for_requests() {
    let Some(mut ground) = Ground::with_tunnel_grace(Duration::from_millis(400)) else { return };
    let gate = Arc::new(Semaphore::new(0));
    let gated = gated(&gate);
    ground.serve("i1", move |request| {
        let gated = gated.clone();
        async move {
            if request.headers().contains_key("upgrade") { echo(request).await } else { gated(request).await }
        }
    });
    ground.put(table(backend(&["i1"]))).await;
    let mut tunnel = switched(&ground).await;
    expect(&mut tunnel, "hello abc").await;
    let mut client = ground.client().await;
    let open = tokio::spawn(async move { client.get("/").await });
    until("both are at the instance", || ground.in_flight() == 2).await;
    let stopped = ground.stop();
    assert_eq!(within("the tunnel is closed", tunnel.read(&mut [0])).await.unwrap_or(0), 0);
    gate.add_permits(1);
    assert_eq!(open.await.unwrap().body(), "done");
    within("the router's end", stopped).await.unwrap();
    assert_eq!(ground.in_flight(), 0);
}

#[tokio::test]
async fn an_upgrade_the_instance_does_not_want_is_an_ordinary_request() {
    let ground = ground!();
    ground.serve("i1", echo);
    ground.put(table(backend(&["i1"]))).await;
    let request =
        Request::get("/").header("host", HOST).header("connection", "upgrade").header("upgrade", "other");
    let mut client = ground.client().await;
    let answer = client.send(request.body(Full::default()).unwrap()).await.unwrap();
    assert_eq!((answer.status(), answer.body().as_ref()), (StatusCode::OK, &b"not asked to"[..]));
    assert_eq!(client.get("/").await.status(), StatusCode::OK, "the connection goes on");
}
