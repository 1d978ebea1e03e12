//! A connection after a request that was answered before it was read: the next request is served on it, or the client was told
//! that there will be no next.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

/// A head, and a body that comes a moment later; the head of the answer.
async fn exchange(stream: &mut TcpStream, head: &str, body: &[u8]) -> String {
    stream.write_all(head.as_bytes()).await.unwrap();
    if !body.is_empty() {
        tokio::time::sleep(Duration::from_millis(200)).await;
        stream.write_all(body).await.unwrap();
    }
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
    let len = answer.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
    let mut content = vec![0; len.parse().unwrap()];
    stream.read_exact(&mut content).await.unwrap();
    answer
}

#[tokio::test]
async fn what_is_refused_unread_does_not_break_the_next_request() {
    suite!(hub, suite, "conformance/twelve");
    let address = suite.client.base().strip_prefix("http://").unwrap().to_owned();
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let place = suite.begin().await;
    for (request, status) in [
        ("GET /v2/a/manifests/sha256:wrong".to_owned(), "400"),
        ("DELETE /v2/a/manifests/none".to_owned(), "404"),
        (format!("PATCH {place}"), "416"),
    ] {
        let head =
            format!("{request} HTTP/1.1\r\nhost: hub\r\ncontent-range: 9-13\r\ncontent-length: 5\r\n\r\n");
        let answer = exchange(&mut stream, &head, b"piece").await;
        assert!(answer.starts_with(&format!("http/1.1 {status}")), "{answer}");
        assert!(!answer.contains("connection: close"), "{answer}");
        let chunked = head.replace("content-length: 5", "transfer-encoding: chunked");
        let answer = exchange(&mut stream, &chunked, b"5\r\npiece\r\n0\r\n\r\n").await;
        assert!(answer.starts_with(&format!("http/1.1 {status}")), "{answer}");
    }
    // Nobody waits for much more, nor asks for what will not be taken.
    for more in ["content-length: 100000000", "content-length: 5\r\nexpect: 100-continue"] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let head = format!("PATCH {place} HTTP/1.1\r\nhost: hub\r\ncontent-range: 9-13\r\n{more}\r\n\r\n");
        let answer = exchange(&mut stream, &head, b"").await;
        assert!(answer.starts_with("http/1.1 416") && answer.contains("connection: close"), "{answer}");
    }
    hub.stop().await.unwrap();
}
