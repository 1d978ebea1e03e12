//! Clients' connections: what is kept for the next request, and what is closed without losing an answer.

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::ground::{Ground, HOST, backend, ground, table};

async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        read.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(read).unwrap()
}

/// An instance that answers every request of a connection with its path.
fn serve_paths(ground: &Ground, instance: &str) {
    ground.serve(instance, |request: http::Request<hyper::body::Incoming>| async move {
        crate::ground::text(request.uri().path().to_owned())
    });
}

#[tokio::test]
async fn requests_that_come_at_once_are_answered_in_order() {
    let ground = ground!();
    serve_paths(&ground, "i1");
    ground.put(table(backend(&["i1"]))).await;
    let mut client = ground.connect().await;
    let requests: String =
        (0..30).map(|number| format!("GET /{number} HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).collect();
    client.write_all(requests.as_bytes()).await.unwrap();
    for number in 0..30 {
        let answer = read_until(&mut client, &format!("\r\n\r\n/{number}")).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_still_sends() {
    let ground = ground!();
    ground.put(table(backend(&[]))).await;
    // A part of what was announced, and all of more than the sockets on the way take.
    for (length, sent) in [(1_000_000, 100_000), (16_000_000, 16_000_000)] {
        let mut client = ground.connect().await;
        let head = format!("POST / HTTP/1.1\r\nhost: nobody\r\ncontent-length: {length}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(&vec![b'x'; sent]).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("connection: close\r\n"), "{answer}");
        assert!(answer.ends_with("the node has received it\n"), "{answer}");
    }
}

#[tokio::test]
async fn a_small_body_that_nobody_reads_does_not_cost_the_connection() {
    let ground = ground!();
    serve_paths(&ground, "i1");
    ground.put(table(backend(&["i1"]))).await;
    let mut client = ground.connect().await;
    for body in ["content-length: 4\r\n\r\nbody", "transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"]
    {
        client.write_all(format!("POST / HTTP/1.1\r\nhost: nobody\r\n{body}").as_bytes()).await.unwrap();
        let refusal = read_until(&mut client, "the node has received it\n").await;
        assert!(refusal.starts_with("HTTP/1.1 404 ") && !refusal.contains("connection:"), "{refusal}");
        client.write_all(format!("GET /on HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
        assert!(read_until(&mut client, "\r\n\r\n/on").await.starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test]
async fn clients_of_the_first_version_may_keep_their_connection() {
    let ground = ground!();
    serve_paths(&ground, "i1");
    ground.put(table(backend(&["i1"]))).await;
    let mut client = ground.connect().await;
    for _ in 0..3 {
        let request = format!("GET /x HTTP/1.0\r\nhost: {HOST}\r\nconnection: keep-alive\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let answer = read_until(&mut client, "\r\n\r\n/x").await;
        assert!(answer.contains("connection: keep-alive\r\n") && answer.contains("content-length: 2\r\n"));
    }
    client.write_all(format!("GET /y HTTP/1.0\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("connection: close\r\n") && answer.ends_with("/y"), "{answer}");
}

#[tokio::test]
async fn trailers_are_for_clients_that_take_them() {
    let ground = ground!();
    let listener = ground.listen("i1");
    ground.put(table(backend(&["i1"]))).await;
    for (te, end) in
        [("", "3\r\nabc\r\n0\r\n\r\n"), ("te: trailers\r\n", "3\r\nabc\r\n0\r\nx-sum: 6\r\n\r\n")]
    {
        let instance = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_until(&mut stream, "\r\n\r\n").await;
            let answer =
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 6\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        };
        let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n{te}connection: te, close\r\n\r\n");
        let (answer, ()) = tokio::join!(ground.raw(request), instance);
        assert!(answer.ends_with(end), "{answer}");
    }
}

#[tokio::test]
async fn an_instance_may_answer_before_it_has_read_and_close() {
    let ground = ground!();
    let listener = ground.listen("i1");
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_until(&mut stream, "\r\n\r\n").await;
            let answer = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            stream.shutdown().await.unwrap();
            // Closes when the router does.
            while stream.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0) {}
        }
    });
    ground.put(table(backend(&["i1"]))).await;
    let mut client = ground.connect().await;
    let head = format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 1000000\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(&vec![b'x'; 50_000]).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with(&format!("HTTP/1.1 {} ", StatusCode::PAYLOAD_TOO_LARGE.as_u16())), "{answer}");
}
