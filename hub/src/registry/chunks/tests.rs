//! Lists that are made, kept, lost and refused, and answers with chunks.

use std::io::{Cursor, Read as _};

use axum::Router;
use http::{Method, Request};
use http_body_util::BodyExt as _;
use hyper_util::service::TowerToHyperService;

use super::*;
use crate::registry::Access;
use crate::upstream::Upstreams;

fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    let bytes = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    bytes.take(length).collect()
}

struct Hub {
    dir: tempfile::TempDir,
    registry: Registry,
    router: Router,
}

impl Hub {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).unwrap();
        let router = crate::registry::router(registry.clone(), Upstreams::none(dir.path()), Access::ReadOnly);
        Self { dir, registry, router }
    }

    fn push(&self, content: &[u8]) -> Digest {
        let digest = self.registry.0.images.put(content).unwrap();
        self.registry.0.names.add_blob(&"a".parse().unwrap(), &digest).unwrap();
        digest
    }

    fn list_path(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join("chunks").join(digest.hex())
    }

    async fn ask(&self, method: Method, path: &str, body: Vec<u8>) -> (u16, Bytes) {
        use hyper::service::Service as _;
        let request = Request::builder().method(method).uri(path).body(Body::from(body)).unwrap();
        let response = TowerToHyperService::new(self.router.clone()).call(request).await.unwrap();
        let status = response.status().as_u16();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    }

    async fn list(&self, digest: &Digest) -> (u16, Bytes) {
        self.ask(Method::GET, &format!("/v2/a/_tombolo/chunks/{digest}"), Vec::new()).await
    }

    async fn select(&self, digest: &Digest, selection: &[u8]) -> (u16, Bytes) {
        self.ask(Method::POST, &format!("/v2/a/_tombolo/chunks/{digest}"), selection.to_vec()).await
    }
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut content).unwrap();
    content
}

#[tokio::test]
async fn a_list_is_made_once_and_again_when_it_is_damaged() {
    let hub = Hub::new();
    let content = noise(300_000);
    let digest = hub.push(&content);
    assert!(!hub.list_path(&digest).exists());
    let (first, second) = tokio::join!(hub.list(&digest), hub.list(&digest));
    assert_eq!((first.0, second.0), (200, 200));
    let list = ChunkList::decode(&first.1).unwrap();
    assert_eq!(list, ChunkList::of(Cursor::new(content), &Limits::default()).unwrap());
    assert_eq!(fs::read(hub.list_path(&digest)).unwrap(), first.1);
    fs::write(hub.list_path(&digest), &first.1[..100]).unwrap();
    assert_eq!(hub.list(&digest).await, first);
    assert_eq!(fs::read(hub.list_path(&digest)).unwrap(), first.1);
    // The blob goes, and with it what is known of it.
    hub.registry.0.images.remove_blob(&digest).unwrap();
    assert_eq!(hub.list(&digest).await.0, 404);
    let other = hub.push(b"another layer");
    assert_eq!(hub.list(&other).await.0, 200);
    assert!(!hub.list_path(&digest).exists());
}

#[tokio::test]
async fn what_is_selected_is_sent() {
    let hub = Hub::new();
    let content = noise(4_000_000);
    let digest = hub.push(&content);
    let (_, encoded) = hub.list(&digest).await;
    let lengths: Vec<u32> = ChunkList::decode(&encoded).unwrap().lengths().collect();
    let chosen = |indices: &[u32]| {
        let mut bytes = Vec::new();
        for index in indices {
            let start: u32 = lengths[..*index as usize].iter().sum();
            bytes.extend_from_slice(&content[start as usize..(start + lengths[*index as usize]) as usize]);
        }
        bytes
    };
    let few = [0, 3, 4, 17];
    let selection = Selection::of(few.into_iter()).unwrap().encode();
    for _ in 0..2 {
        let (status, answer) = hub.select(&digest, &selection).await;
        assert_eq!((status, gunzip(&answer)), (200, chosen(&few)));
    }
    assert_eq!(lock(&hub.registry.0.chunks.answers).len(), 1, "a small answer is kept");
    // Everything, which is streamed.
    let all: Vec<u32> = (0..).take(lengths.len()).collect();
    let selection = Selection::of(all.into_iter()).unwrap().encode();
    let (status, answer) = hub.select(&digest, &selection).await;
    assert_eq!((status, gunzip(&answer).len()), (200, content.len()));
    assert_eq!(lock(&hub.registry.0.chunks.answers).len(), 1, "a large one is not");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let hub = Hub::new();
    let digest = hub.push(&noise(100_000));
    let unknown = Digest::of(b"unknown");
    assert_eq!(hub.list(&unknown).await.0, 404);
    assert_eq!(hub.select(&unknown, &[0, 1]).await.0, 404);
    let elsewhere = format!("/v2/b/_tombolo/chunks/{digest}");
    assert_eq!(hub.ask(Method::GET, &elsewhere, Vec::new()).await.0, 404, "another repository's");
    assert_eq!(hub.select(&digest, &[]).await.0, 416);
    assert_eq!(hub.select(&digest, &[0, 127]).await.0, 416);
    assert_eq!(hub.select(&digest, &vec![1; MAX_SELECTION + 1]).await.0, 413);
    let path = format!("/v2/a/_tombolo/chunks/{digest}");
    assert_eq!(hub.ask(Method::DELETE, &path, Vec::new()).await.0, 405);
    // For pulling only: a selection is read, anything else that is posted is not.
    assert_eq!(hub.ask(Method::POST, "/v2/a/blobs/uploads/", Vec::new()).await.0, 405);
}

/// A blob that is cut off has no list, which is found out once.
#[tokio::test]
async fn a_damaged_layer_has_no_list() {
    let hub = Hub::new();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&noise(100_000)).unwrap();
    let gzip = gzip.finish().unwrap();
    let digest = hub.push(&gzip[..gzip.len() / 2]);
    for _ in 0..2 {
        let (status, answer) = hub.list(&digest).await;
        assert_eq!(status, 404);
        assert!(String::from_utf8_lossy(&answer).contains("fetch it whole"), "{answer:?}");
    }
    assert_eq!(fs::read(hub.list_path(&digest)).unwrap(), b"");
}
