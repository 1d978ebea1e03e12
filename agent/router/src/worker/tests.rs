//! Listening, limits of connections, and the end.

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::dialer::Dialer;
use crate::headers::Client;

const QUIET: Duration = Duration::from_millis(200);

/// Both ends of a new connection; the router's is served.
async fn connect(connections: &mut Connections) -> TcpStream {
    connect_for(connections, QUIET).await
}

/// As `connect`, of a connection that may be quiet for long.
async fn patient(connections: &mut Connections) -> TcpStream {
    connect_for(connections, QUIET * 300).await
}

async fn connect_for(connections: &mut Connections, quiet_max: Duration) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    let client_seen = Client::new(peer.ip(), false);
    let session = Session::new(Arc::default(), Dialer::start().unwrap(), client_seen, quiet_max);
    connections.count.fetch_add(1, Ordering::Relaxed);
    connections.add(Arrival { stream: stream.into_std().unwrap(), session, tls: None });
    client
}

async fn rest(mut client: TcpStream) -> String {
    let mut answer = String::new();
    tokio::time::timeout(QUIET * 20, client.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test]
async fn one_connection_too_many_is_told_why() {
    let mut connections = Connections::new(1, Arc::default(), Arc::default());
    let first = connect(&mut connections).await;
    let answer = rest(connect(&mut connections).await).await;
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
    assert!(answer.contains("x-tombolo-reason: TooManyConnections\r\n"), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("content-length: {}", body.len())), "{answer}");

    drop(first);
    let ended = connections.tasks.join_next_with_id().await.unwrap();
    connections.remove(ended);
    let mut next = connect(&mut connections).await;
    next.write_all(b"GET / HTTP/1.1\r\nhost: nobody\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(rest(next).await.starts_with("HTTP/1.1 404 "), "there is room again");
}

#[tokio::test]
async fn nobody_keeps_others_out_with_half_heads() {
    let mut connections = Connections::new(3, Arc::default(), Arc::default());
    let crowding = Arc::clone(&connections.crowding);
    let counts = || (crowding.refused.load(Ordering::Relaxed), crowding.displaced.load(Ordering::Relaxed));
    connections.spared = Duration::MAX;
    let mut hostile = Vec::new();
    for _ in 0..3 {
        let mut client = patient(&mut connections).await;
        client.write_all(b"GET / HTTP/1.1\r\nhost: slo").await.unwrap();
        hostile.push(client);
    }
    let answer = rest(patient(&mut connections).await).await;
    assert!(answer.contains("x-tombolo-reason: TooManyConnections"), "a head has its time: {answer}");
    assert_eq!(counts(), (1, 0));
    connections.spared = Duration::ZERO;
    let mut next = patient(&mut connections).await;
    next.write_all(b"GET / HTTP/1.1\r\nhost: nobody\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(rest(next).await.starts_with("HTTP/1.1 404 "), "there is room");
    assert_eq!(counts(), (1, 1));
    let oldest = tokio::time::timeout(QUIET * 20, hostile[0].read(&mut [0])).await.unwrap();
    assert_eq!(oldest.unwrap_or(0), 0, "the oldest was closed");
    let ended = [connections.tasks.join_next_with_id().await, connections.tasks.join_next_with_id().await];
    for ended in ended {
        connections.remove(ended.unwrap());
    }
    assert_eq!((connections.served.len(), connections.count.load(Ordering::Relaxed)), (2, 2));
}

#[tokio::test]
async fn a_quiet_connection_is_closed() {
    let mut connections = Connections::new(10, Arc::default(), Arc::default());
    for said in ["", "GET / HTTP/1.1\r\nhost: slo", "GET / HTTP/1.1\r\nhost: nobody\r\n\r\n"] {
        let mut client = connect(&mut connections).await;
        client.write_all(said.as_bytes()).await.unwrap();
        let start = Instant::now();
        let answer = rest(client).await;
        assert_eq!(answer.contains("UnknownHost"), said.ends_with("\r\n\r\n"), "{answer}");
        let unfinished = said.ends_with("slo");
        assert_eq!(answer.starts_with("HTTP/1.1 408 "), unfinished, "{said:?}: {answer}");
        assert_eq!(answer.contains("x-tombolo-reason: RequestHeadTimeout"), unfinished);
        assert!(start.elapsed() >= QUIET, "{said:?} {:?}", start.elapsed());
    }
}

#[tokio::test]
async fn a_connection_in_use_is_not_quiet() {
    let mut connections = Connections::new(10, Arc::default(), Arc::default());
    let mut client = connect(&mut connections).await;
    for _ in 0..8 {
        client.write_all(b"GET / HTTP/1.1\r\nhost: nobody\r\n\r\n").await.unwrap();
        let mut answer = [0; 4096];
        assert!(client.read(&mut answer).await.unwrap() > 0);
        tokio::time::sleep(QUIET / 4).await;
    }
}

#[tokio::test]
async fn a_quiet_http2_connection_is_closed() {
    let mut connections = Connections::new(10, Arc::default(), Arc::default());
    let io = TokioIo::new(connect(&mut connections).await);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), io).await.unwrap();
    let ended = tokio::spawn(connection);
    let request = Request::get("http://nobody/").body(Empty::new()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 404);
    let start = Instant::now();
    let ended = tokio::time::timeout(QUIET * 20, ended).await.unwrap().unwrap();
    assert!(start.elapsed() >= QUIET / 2 && ended.is_ok(), "{ended:?}");
}

#[tokio::test]
async fn its_threads_come_before_functions_and_no_other_thread_does() {
    let own = || rustix::process::getpriority_process(None).unwrap();
    let before = own();
    let heard = std::thread::spawn(move || {
        hurry();
        own()
    });
    let tried = move || rustix::process::setpriority_process(None, before - 1).is_ok();
    let may = std::thread::spawn(tried).join().unwrap();
    assert_eq!(heard.join().unwrap(), if may { NICE } else { before });
    assert_eq!(own(), before);
}
