//! Bodies larger than memory should ever be.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::ground::{HOST, backend, ground, table, text};

pub(crate) const CHUNK: usize = 64 * 1024;
const CHUNKS: u64 = 4096;

/// What may be on the way at most: socket buffers of four ends (up to 6 MiB each) and the router's own.
pub(crate) const UNDERWAY_MAX: u64 = 40 << 20;

pub(crate) type Frames =
    StreamBody<std::pin::Pin<Box<dyn stream::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Sync>>>;

/// `count` chunks; `made` counts their bytes.
pub(crate) fn chunks(count: u64, made: Arc<AtomicU64>) -> Frames {
    let chunk = Bytes::from(vec![b'x'; CHUNK]);
    let frames = stream::unfold(0, move |number| {
        let (chunk, made) = (chunk.clone(), Arc::clone(&made));
        async move {
            (number < count).then(|| {
                made.fetch_add(CHUNK as u64, Ordering::Relaxed);
                (Ok(Frame::data(chunk)), number + 1)
            })
        }
    });
    StreamBody::new(Box::pin(frames))
}

pub(crate) async fn count(mut body: Incoming) -> u64 {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame.unwrap().data_ref().map_or(0, Bytes::len) as u64;
    }
    bytes
}

/// The most memory this process ever had, MiB.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_pass_both_ways_at_once_in_little_memory() {
    let ground = ground!();
    ground.serve("i1", |request: Request<Incoming>| async move { Response::new(request.into_body()) });
    ground.put(table(backend(&["i1"]))).await;
    let before = peak_mib();
    let body = chunks(CHUNKS, Arc::default());
    let request = Request::post("/").header("host", HOST).body(body).unwrap();
    let response = ground.client().await.start(request).await.unwrap();
    assert_eq!(count(response.into_body()).await, CHUNKS * CHUNK as u64);
    let grown = peak_mib() - before;
    assert!(grown < 32, "{grown} MiB for a body of {} MiB", (CHUNKS * CHUNK as u64) >> 20);
}

#[tokio::test]
async fn who_reads_nothing_is_sent_no_more_than_fits_on_the_way() {
    let ground = ground!();
    let down = Arc::new(AtomicU64::new(0));
    let made = Arc::clone(&down);
    ground.serve("i1", move |request: Request<Incoming>| {
        let made = Arc::clone(&made);
        async move {
            if request.uri().path() == "/down" {
                return Response::new(chunks(u64::MAX, made).boxed());
            }
            tokio::time::sleep(Duration::from_secs(30)).await;
            text("read nothing").map(BodyExt::boxed)
        }
    });
    ground.put(table(backend(&["i1"]))).await;

    let mut client = ground.connect().await;
    client.write_all(format!("GET /down HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    client.read_exact(&mut [0; 16]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let sent = down.load(Ordering::Relaxed);
    assert!(sent > 0 && sent < UNDERWAY_MAX, "down: {sent}");

    let up = Arc::new(AtomicU64::new(0));
    let request = Request::post("/up").header("host", HOST).body(chunks(u64::MAX, Arc::clone(&up))).unwrap();
    let mut client = ground.client().await;
    let uploading = tokio::spawn(async move { client.start(request).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let sent = up.load(Ordering::Relaxed);
    assert!(sent > 0 && sent < UNDERWAY_MAX, "up: {sent}");
    uploading.abort();
}

#[tokio::test]
async fn an_answer_may_begin_before_the_request_has_ended() {
    let ground = ground!();
    ground.serve("i1", |request: Request<Incoming>| async move { Response::new(request.into_body()) });
    ground.put(table(backend(&["i1"]))).await;
    let mut client = ground.connect().await;
    let head = format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    for word in ["one", "two", "three"] {
        client.write_all(format!("{:x}\r\n{word}\r\n", word.len()).as_bytes()).await.unwrap();
        while !seen.windows(word.len()).any(|part| part == word.as_bytes()) {
            seen.push(client.read_u8().await.unwrap());
        }
    }
    client.write_all(b"0\r\n\r\n").await.unwrap();
    while !seen.ends_with(b"\r\n0\r\n\r\n") {
        seen.push(client.read_u8().await.unwrap());
    }
}
