//! Pulls of the next version of an image, from registries that know chunks and from those that do not, or pretend to.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use super::*;
use crate::build::{BuildOptions, BuiltImage, FileEntry, Source, build_directory};
use crate::client::{Endpoint, Progress, Scheme};
use crate::delta::write_selected;
use crate::image::{Platform, RunConfig};
use crate::layer::Limits;

/// How a registry is no use for deltas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// It has never heard of lists.
    Foreign,
    /// The list is one of another layer.
    OtherList,
    /// The list is cut off.
    HalfList,
    /// Bytes of chunks are wrong.
    WrongChunks,
    /// Chunks end too early, always, and at the very first.
    NoChunks,
    /// Chunks end too early, the first time.
    HalfChunks,
    /// More comes than was asked for, without end.
    Flood,
}

struct Registry {
    content: BTreeMap<String, Vec<u8>>,
    fault: Fault,
    faults: AtomicUsize,
    asked: Mutex<Vec<String>>,
    /// Bytes of answers.
    sent: AtomicUsize,
}

async fn serve(images: &[&Version], fault: Fault) -> (Arc<Registry>, Client) {
    let mut content = BTreeMap::new();
    for version in images {
        for digest in version.store.blobs().unwrap().into_keys() {
            content.insert(digest.to_string(), std::fs::read(version.store.blob_path(&digest)).unwrap());
        }
    }
    let registry = Arc::new(Registry {
        content,
        fault,
        faults: AtomicUsize::new(0),
        asked: Mutex::default(),
        sent: AtomicUsize::new(0),
    });
    let app = Router::new().fallback(answer).with_state(registry.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let client = Client::new(Endpoint { scheme: Scheme::Http, address, auth: None, server_name: None });
    (registry, client.unwrap())
}

async fn answer(State(registry): State<Arc<Registry>>, method: Method, uri: Uri, body: Bytes) -> Response {
    let path = uri.path();
    let (kind, name) = path.rsplit_once('/').unwrap();
    let kind = kind.rsplit('/').next().unwrap();
    registry.asked.lock().unwrap().push(format!("{method} {kind}"));
    let Some(blob) = registry.content.get(name) else { return StatusCode::NOT_FOUND.into_response() };
    if kind != "chunks" {
        registry.sent.fetch_add(blob.len(), Ordering::SeqCst);
        return blob.clone().into_response();
    }
    let of = |blob: &Vec<u8>| ChunkList::of(Cursor::new(blob.clone()), &Limits::default()).unwrap();
    let list = of(blob);
    if method == Method::GET {
        let mut list = match registry.fault {
            Fault::Foreign => return StatusCode::NOT_FOUND.into_response(),
            Fault::OtherList => of(&b"another".to_vec()).encode(),
            _ => list.encode(),
        };
        if registry.fault == Fault::HalfList {
            list.truncate(list.len() / 2);
        }
        registry.sent.fetch_add(list.len(), Ordering::SeqCst);
        return list.into_response();
    }
    let selection = Selection::decode(&body, list.len()).unwrap();
    let mut chunks = Vec::new();
    let source = if registry.fault == Fault::WrongChunks { vec![7; 4 << 20] } else { blob.clone() };
    write_selected(Cursor::new(source), &list, &selection, &mut chunks).unwrap();
    match registry.fault {
        Fault::NoChunks => chunks.clear(),
        Fault::HalfChunks if registry.faults.fetch_add(1, Ordering::SeqCst) == 0 => {
            chunks.truncate(chunks.len() * 3 / 4);
        }
        Fault::Flood => {
            let more =
                futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![0; 65536])));
            return Body::from_stream(more).into_response();
        }
        _ => {}
    }
    registry.sent.fetch_add(chunks.len(), Ordering::SeqCst);
    chunks.into_response()
}

struct Version {
    _dir: tempfile::TempDir,
    store: Store,
    image: BuiltImage,
}

/// An image of a megabyte, with something inserted in the middle.
fn version(inserted: &[u8]) -> Version {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut state = 1u32;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    let mut content: Vec<u8> = noise.take(1_000_000).collect();
    content.splice(500_000..500_000, inserted.iter().copied());
    let files = vec![FileEntry { path: "run".into(), executable: true, content }];
    let config = RunConfig { entrypoint: vec!["/run".into()], ..RunConfig::default() };
    let options = BuildOptions { source: Source::Files(files), config, platform: Platform::host() };
    let image = build_directory(&options, &store).unwrap();
    Version { _dir: dir, store, image }
}

struct Node {
    _dir: tempfile::TempDir,
    store: Store,
}

impl Node {
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: unpacking what was pulled needs root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        Some(Self { _dir: dir, store })
    }

    async fn pull(&self, client: &Client, version: &Version) -> Result<usize, TransferError> {
        let (repository, platform) = ("a".parse().unwrap(), Platform::host());
        let digest = &version.image.manifest;
        let summary = client.pull(&self.store, &repository, digest, &platform, &Progress::default()).await?;
        let file = std::fs::read(summary.layers[0].join("run")).unwrap();
        assert!(file.len() >= 1_000_000);
        Ok(file.len())
    }

    /// Pulls both versions; bytes and requests of the second.
    async fn update(&self, fault: Fault) -> (usize, Vec<String>) {
        let (old, new) = (version(b""), version(b"a line more\n"));
        let (registry, client) = serve(&[&old, &new], fault).await;
        self.pull(&client, &old).await.unwrap();
        registry.sent.store(0, Ordering::SeqCst);
        registry.asked.lock().unwrap().clear();
        assert_eq!(self.pull(&client, &new).await.unwrap(), 1_000_012);
        let left = std::fs::read_dir(self.store.root().join("deltas")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{fault:?}");
        let asked = registry.asked.lock().unwrap().clone();
        (registry.sent.load(Ordering::SeqCst), asked)
    }
}

#[tokio::test]
async fn only_what_is_new_is_fetched() {
    let Some(node) = Node::new() else { return };
    let (sent, asked) = node.update(Fault::None).await;
    assert_eq!(asked, ["GET manifests", "GET blobs", "GET chunks", "POST chunks"]);
    assert!(sent < 300_000, "{sent} bytes");
}

/// Every layer is there in the end, whole and verified, however its registry behaves.
#[tokio::test]
async fn whatever_is_wrong_the_layer_comes_whole() {
    let whole = ["GET manifests", "GET blobs", "GET chunks", "GET blobs"];
    let tried = ["GET manifests", "GET blobs", "GET chunks", "POST chunks", "GET blobs"];
    for (fault, expected) in [
        (Fault::Foreign, &whole[..]),
        (Fault::OtherList, &whole),
        (Fault::HalfList, &whole),
        (Fault::WrongChunks, &tried),
        (Fault::Flood, &tried),
    ] {
        let Some(node) = Node::new() else { return };
        let (_, asked) = node.update(fault).await;
        assert_eq!(asked, expected, "{fault:?}");
    }
    let Some(node) = Node::new() else { return };
    let (_, mut asked) = node.update(Fault::NoChunks).await;
    asked.dedup();
    assert_eq!(asked, tried, "nothing ever comes");
}

#[tokio::test]
async fn chunks_that_break_off_are_gone_on_with() {
    let Some(node) = Node::new() else { return };
    let (sent, asked) = node.update(Fault::HalfChunks).await;
    assert_eq!(asked, ["GET manifests", "GET blobs", "GET chunks", "POST chunks", "POST chunks"]);
    assert!(sent < 300_000, "{sent} bytes");
}

#[tokio::test]
async fn layers_are_fetched_whole_where_that_is_set() {
    let Some(node) = Node::new() else { return };
    let (old, new) = (version(b""), version(b"a line more\n"));
    let (registry, client) = serve(&[&old, &new], Fault::None).await;
    let client = client.without_deltas();
    node.pull(&client, &old).await.unwrap();
    node.pull(&client, &new).await.unwrap();
    assert!(!registry.asked.lock().unwrap().iter().any(|asked| asked.ends_with("chunks")));
}

/// The same content, compressed otherwise: another blob, and nothing of it has to come.
#[tokio::test]
async fn content_that_is_here_is_not_fetched_in_another_compression() {
    let Some(node) = Node::new() else { return };
    let old = version(b"");
    let (_, client) = serve(&[&old], Fault::None).await;
    node.pull(&client, &old).await.unwrap();
    let repository = "a".parse().unwrap();
    let layer = std::fs::read(node.store.layer_path(&diff_id(&old)).unwrap().join("run")).unwrap();
    assert_eq!(layer.len(), 1_000_000);
    let other = Blob { digest: Digest::of(b"compressed otherwise"), size: 900_000 };
    let here = client.delta(&node.store, &repository, other, &diff_id(&old), &mut |_| {}).await;
    assert!(here.unwrap());
}

fn diff_id(version: &Version) -> Digest {
    let digest = &version.image.manifest;
    let content = version.store.read_blob(digest, 1 << 20).unwrap();
    let crate::image::Document::Manifest(manifest) = crate::image::Document::parse(digest, &content).unwrap()
    else {
        panic!("a manifest was built");
    };
    let content = version.store.read_blob(&manifest.config.digest, 1 << 20).unwrap();
    crate::image::Config::parse(&manifest.config.digest, &content).unwrap().diff_ids[0]
}

/// What broke off is gone on with by the next pull, without a chunk twice.
#[tokio::test]
async fn the_next_pull_goes_on() {
    let Some(node) = Node::new() else { return };
    let (old, new) = (version(b""), version(&[b'x'; 200_000]));
    let (_, client) = serve(&[&old, &new], Fault::None).await;
    node.pull(&client, &old).await.unwrap();
    let (repository, diff_id) = ("a".parse().unwrap(), diff_id(&new));
    let blob = std::fs::read(new.store.blob_path(&layer(&new).digest)).unwrap();
    let list = ChunkList::of(Cursor::new(blob), &Limits::default()).unwrap();
    drop(Rebuilding::begin(&node.store, list).unwrap());
    // The list is here: it is not asked for again.
    let (registry, client_again) = serve(&[&old, &new], Fault::None).await;
    let done = client_again.delta(&node.store, &repository, layer(&new), &diff_id, &mut |_| {}).await;
    // Without the manifest of the new image any layer that is here counts as a base.
    assert!(done.unwrap());
    assert_eq!(*registry.asked.lock().unwrap(), ["POST chunks"]);
    assert!(node.store.verify(&diff_id).unwrap());
    node.pull(&client, &new).await.unwrap();
}

fn layer(version: &Version) -> Blob {
    let digest = &version.image.manifest;
    let content = version.store.read_blob(digest, 1 << 20).unwrap();
    match crate::image::Document::parse(digest, &content).unwrap() {
        crate::image::Document::Manifest(manifest) => manifest.layers[0],
        crate::image::Document::Index(_) => panic!("a manifest was built"),
    }
}
