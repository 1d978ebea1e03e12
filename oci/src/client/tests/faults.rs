//! Registries and images at their worst: each gets a condition of its own, in bounded time, and nothing that was had is lost.

use super::*;

/// What a registry does instead of answering with what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Status(u16),
    /// Ends in the middle.
    Truncated,
    /// As long as it should be, and other.
    Corrupted,
    /// Longer than it should be.
    Oversized,
    /// A page of HTML for people.
    Garbage,
    /// Not a byte.
    Hangs,
    /// A head, and then not a byte.
    Stalls,
    /// Bytes that are no HTTP.
    Noise,
}

/// Which of an image's parts it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Manifest,
    Config,
    Layer,
}

/// A registry that has `image`, and has a fault with one part of it until it is mended.
struct Faulty {
    address: String,
    mended: Arc<std::sync::atomic::AtomicBool>,
    /// Bytes of layers that were given away.
    served: Arc<AtomicU64>,
}

async fn faulty(content: BTreeMap<String, Vec<u8>>, image: &BuiltImage, part: Part, fault: Fault) -> Faulty {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mended = Arc::<std::sync::atomic::AtomicBool>::default();
    let served = Arc::<AtomicU64>::default();
    let name = match part {
        Part::Manifest => image.manifest,
        Part::Config => image.config,
        Part::Layer => image.layers[0],
    };
    let (is_mended, given, layer) = (mended.clone(), served.clone(), image.layers[0].to_string());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (content, is_mended) = (content.clone(), is_mended.clone());
            let (given, layer, name) = (given.clone(), layer.clone(), name.to_string());
            tokio::spawn(async move {
                let fault =
                    |asked: &str| (!is_mended.load(Ordering::SeqCst) && asked == name).then_some(fault);
                speak(stream, &content, fault, |asked| if asked == layer { Some(&given) } else { None }).await
            });
        }
    });
    Faulty { address, mended, served }
}

/// One connection, one request: HTTP by hand, so that it can be broken anywhere.
async fn speak<'a>(
    mut stream: tokio::net::TcpStream,
    content: &BTreeMap<String, Vec<u8>>,
    fault: impl Fn(&str) -> Option<Fault>,
    counter: impl Fn(&str) -> Option<&'a AtomicU64>,
) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let path = head.split(' ').nth(1).unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    let start =
        head.split("range: bytes=").nth(1).and_then(|rest| rest.split('-').next()?.parse::<usize>().ok());
    let whole = content.get(name).cloned().unwrap_or_default();
    let rest = whole[start.unwrap_or(0).min(whole.len())..].to_vec();
    let fault = fault(name);
    let (status, body, length) = match fault {
        Some(Fault::Hangs) => return std::future::pending().await,
        Some(Fault::Noise) => {
            let _ = stream.write_all(b"\x16\x03\x01\x02\x00 no HTTP at all\n\n").await;
            return;
        }
        Some(Fault::Status(code)) => {
            (code, b"{\"errors\":[{\"code\":\"X\",\"message\":\"said by a test\"}]}".to_vec(), None)
        }
        Some(Fault::Truncated) => (206, rest[..rest.len() / 2].to_vec(), Some(rest.len())),
        Some(Fault::Stalls) => (206, Vec::new(), Some(rest.len())),
        Some(Fault::Corrupted) => (206, rest.iter().map(|byte| byte ^ 0x55).collect(), None),
        Some(Fault::Oversized) => (206, [rest, vec![0; 5_000_000]].concat(), None),
        Some(Fault::Garbage) => (200, b"<html>Please log in to the hotel's network</html>".to_vec(), None),
        None if whole.is_empty() => (404, Vec::new(), None),
        None => (206, rest, None),
    };
    let status = if status == 206 && start.is_none() { 200 } else { status };
    let range = start.map_or(String::new(), |start| {
        format!("content-range: bytes {start}-{}/{}\r\n", whole.len() - 1, whole.len())
    });
    let length = length.unwrap_or(body.len());
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n{range}\r\n");
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    if let Some(counter) = counter(name) {
        counter.fetch_add(body.len() as u64, Ordering::SeqCst);
    }
    let _ = stream.write_all(&body).await;
    if fault == Some(Fault::Stalls) {
        std::future::pending::<()>().await;
    }
    let _ = stream.shutdown().await;
    // What is not read yet would be lost with the connection.
    let mut sink = [0; 64];
    while matches!(stream.read(&mut sink).await, Ok(1..)) {}
}

/// Every fault with every part: the word it gets, and that the image is had as soon as the registry is well.
#[tokio::test]
async fn every_fault_has_its_word_and_passes() {
    if Node::new().is_none() {
        return;
    }
    let (_dir, store, image) = built(&Platform::host().architecture);
    let digests = [image.manifest, image.config, image.layers[0]];
    let content: BTreeMap<String, Vec<u8>> = digests
        .iter()
        .map(|digest| (digest.to_string(), std::fs::read(store.blob_path(digest)).unwrap()))
        .collect();
    let cases = [
        (Fault::Status(401), ["RegistryUnauthorized"; 3]),
        (Fault::Status(403), ["RegistryUnauthorized"; 3]),
        (Fault::Status(404), ["ImageNotFound"; 3]),
        (Fault::Status(429), ["RegistryRefused"; 3]),
        (Fault::Status(500), ["RegistryRefused"; 3]),
        (Fault::Status(503), ["RegistryRefused"; 3]),
        (Fault::Truncated, ["RegistryUnreachable"; 3]),
        (Fault::Stalls, ["RegistryUnreachable"; 3]),
        (Fault::Hangs, ["RegistryUnreachable"; 3]),
        (Fault::Noise, ["RegistryUnreachable"; 3]),
        (Fault::Corrupted, ["RegistryRefused", "ImageInvalid", "ImageInvalid"]),
        (Fault::Oversized, ["RegistryRefused"; 3]),
        (Fault::Garbage, ["RegistryRefused", "ImageInvalid", "RegistryRefused"]),
    ];
    for (fault, words) in cases {
        for (part, word) in [Part::Manifest, Part::Config, Part::Layer].into_iter().zip(words) {
            let node = Node::new().unwrap();
            let registry = faulty(content.clone(), &image, part, fault).await;
            let mut client = at(registry.address.clone());
            client.deadlines.idle = Duration::from_millis(150);
            client.deadlines.answer = Duration::from_millis(150);
            client.deadlines.retry = Duration::from_millis(1);
            let error = node.pull(&client, &image.manifest).await.unwrap_err();
            assert_eq!(error.reason(), word, "{fault:?} of the {part:?}: {error}");
            assert!(error.to_string().len() > 20, "{error}");
            assert!(!node.store.contains(&image.layers[0]), "{fault:?} of the {part:?}");

            let (kept, before) =
                (node.store.partial_size(&image.layers[0]), registry.served.load(Ordering::SeqCst));
            registry.mended.store(true, Ordering::SeqCst);
            let mut client = at(registry.address.clone());
            client.deadlines.idle = Duration::from_secs(5);
            let summary = node.pull(&client, &image.manifest).await;
            let summary =
                summary.unwrap_or_else(|error| panic!("{fault:?} of the {part:?}, mended: {error}"));
            assert_eq!(summary.layers.len(), 1);
            assert!(node.store.verify(&image.layers[0]).unwrap());
            let served = registry.served.load(Ordering::SeqCst) - before;
            assert_eq!(served, image.size - kept, "{fault:?} of the {part:?}");
        }
    }
}

#[tokio::test]
async fn a_paused_download_keeps_what_it_has() {
    let Some(node) = Node::new() else { return };
    let (registry, client, image) = pushed(Registry::default(), &Platform::host().architecture).await;
    let (gate, pace) = (Gate::default(), Pace::new(std::num::NonZeroU64::new(150_000)));
    let slow = client.clone().with_pace(pace.behind(&gate));
    let close = async {
        tokio::time::sleep(Duration::from_millis(800)).await;
        gate.close();
    };
    let (paused, ()) = tokio::join!(node.pull(&slow, &image.manifest), close);
    let paused = paused.unwrap_err();
    assert_eq!(paused.reason(), "PullDeferred", "{paused}");
    let kept = node.store.partials().unwrap()[&image.layers[0]];
    assert!(kept > 0 && kept < image.size, "{kept}");
    registry.asked.lock().unwrap().clear();
    node.pull(&client, &image.manifest).await.unwrap();
    let asked = registry.asked.lock().unwrap().clone();
    assert_eq!(asked, [format!("GET /v2/a/blobs/{} bytes={kept}-", image.layers[0])]);
}

#[tokio::test]
async fn an_image_without_room_takes_none() {
    let Some(node) = Node::new() else { return };
    let (registry, client, image) = pushed(Registry::default(), &Platform::host().architecture).await;
    node.store.keep_free(u64::MAX);
    registry.asked.lock().unwrap().clear();
    let error = node.pull(&client, &image.manifest).await.unwrap_err();
    assert_eq!(error.reason(), "DiskFull");
    assert!(error.to_string().contains("stay free for what runs"), "{error}");
    let layer = format!("GET /v2/a/blobs/{}", image.layers[0]);
    assert!(!registry.asked.lock().unwrap().iter().any(|line| line.starts_with(&layer)));
    node.store.keep_free(0);
    node.pull(&client, &image.manifest).await.unwrap();
}
