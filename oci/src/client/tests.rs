//! Push and pull against a registry that can be told to misbehave.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use super::*;
use crate::build::{BuildOptions, BuiltImage, FileEntry, Source, build_directory};
use crate::image::{Platform, RunConfig};
use crate::store::{Store, StoreError};

/// What the registry holds, what it was asked, and how it misbehaves.
#[derive(Default)]
struct Registry {
    content: Mutex<BTreeMap<String, Vec<u8>>>,
    asked: Mutex<Vec<String>>,
    /// Blobs are cut off after so many bytes, this many times.
    cut: AtomicUsize,
    cut_after: usize,
    /// Answers blobs whole, whatever range is asked for.
    ignores_ranges: bool,
    /// Answers blobs with another content of the same size.
    lies: bool,
    password: Option<&'static str>,
}

type Shared = Arc<Registry>;

async fn serve(registry: Registry) -> (Shared, Client) {
    let registry = Arc::new(registry);
    let app = Router::new().fallback(answer).with_state(registry.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let auth = registry.password.map(|password| BasicAuth { user: "node".into(), password: password.into() });
    // The name is not the address's: it has to be resolved by the client itself.
    let client = Client::new(Endpoint {
        scheme: Scheme::Http,
        address,
        auth,
        server_name: Some("hub.tombolo".into()),
    });
    (registry, client.unwrap())
}

async fn answer(
    State(registry): State<Shared>,
    method: Method,
    uri: Uri,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path();
    registry.asked.lock().unwrap().push(format!("{method} {path}"));
    if registry.password.is_some() && !headers.contains_key("authorization") {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    assert!(headers["host"].to_str().unwrap().starts_with("hub.tombolo:"));
    let name = path.rsplit('/').next().unwrap_or_default().to_owned();
    match method {
        Method::POST => {
            (StatusCode::ACCEPTED, [("location", "/v2/a/blobs/uploads/1?state=x")]).into_response()
        }
        Method::PUT => {
            let name = query.get("digest").cloned().unwrap_or(name);
            let mut content = registry.content.lock().unwrap();
            content.insert(Digest::of(&body).to_string(), body.to_vec());
            content.insert(name, body.to_vec());
            StatusCode::CREATED.into_response()
        }
        _ => match registry.content.lock().unwrap().get(&name) {
            None => StatusCode::NOT_FOUND.into_response(),
            Some(content) if path.contains("/blobs/") => registry.blob(content, &headers),
            Some(content) => content.clone().into_response(),
        },
    }
}

impl Registry {
    fn blob(&self, content: &[u8], headers: &HeaderMap) -> Response {
        let mut content = content.to_vec();
        if self.lies && content.len() > 1000 {
            content[0] ^= 1;
        }
        let range = headers.get("range").filter(|_| !self.ignores_ranges);
        let start = range
            .map(|range| range.to_str().unwrap()["bytes=".len()..].trim_end_matches('-').parse().unwrap());
        let rest = content[start.unwrap_or(0)..].to_vec();
        let length = rest.len();
        let cuts = content.len() > 1000
            && self.cut.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        let body = if cuts {
            let head: Result<Bytes, std::io::Error> = Ok(rest[..self.cut_after.min(length)].to_vec().into());
            let end = Err(std::io::Error::other("cut"));
            Body::from_stream(futures_util::stream::iter([head, end]))
        } else {
            Body::from(rest)
        };
        let mut answer = Response::builder().header("content-length", length);
        if let Some(start) = start {
            let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
            answer = answer.status(206).header("content-range", range);
        }
        answer.body(body).unwrap()
    }
}

fn built(architecture: &str) -> (tempfile::TempDir, Store, BuiltImage) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    // Incompressible, so that the blob is long enough to be cut.
    let mut state = 1u32;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    let content = noise.take(400_000).collect();
    let files = vec![FileEntry { path: "run".into(), executable: true, content }];
    let platform = Platform { architecture: architecture.into(), ..Platform::host() };
    let config = RunConfig { entrypoint: vec!["/run".into()], ..RunConfig::default() };
    let image =
        build_directory(&BuildOptions { source: Source::Files(files), config, platform }, &store).unwrap();
    (dir, store, image)
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

    async fn pull(&self, client: &Client, image: &Digest) -> Result<crate::ImageSummary, TransferError> {
        let repository = "a".parse().unwrap();
        client.pull(&self.store, &repository, image, &Platform::host(), &Progress::default()).await
    }
}

async fn pushed(registry: Registry, architecture: &str) -> (Shared, Client, BuiltImage) {
    let (_dir, store, image) = built(architecture);
    let (registry, client) = serve(registry).await;
    let digest = client.push(&store, &"a".parse().unwrap(), &"v1".parse().unwrap(), &image).await.unwrap();
    assert_eq!(digest, image.manifest);
    (registry, client, image)
}

#[tokio::test]
async fn what_is_pushed_is_pulled_and_never_asked_for_again() {
    let Some(node) = Node::new() else { return };
    let registry = Registry { password: Some("secret"), ..Registry::default() };
    let (registry, client, image) = pushed(registry, &Platform::host().architecture).await;
    let repository = "a".parse().unwrap();
    assert_eq!(client.resolve(&repository, &"v1".parse().unwrap()).await.unwrap(), image.manifest);
    registry.asked.lock().unwrap().clear();
    let summary = node.pull(&client, &image.manifest).await.unwrap();
    assert_eq!(summary.config.entrypoint, ["/run"]);
    assert_eq!(summary.layers.len(), 1);
    assert!(summary.layers[0].join("run").is_file());
    assert_eq!(registry.asked.lock().unwrap().len(), 3, "manifest, configuration, layer");
    registry.asked.lock().unwrap().clear();
    assert_eq!(node.pull(&client, &image.manifest).await.unwrap(), summary);
    assert!(registry.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_transfer_goes_on_where_it_was_cut() {
    for ignores_ranges in [false, true] {
        let Some(node) = Node::new() else { return };
        let registry =
            Registry { cut: AtomicUsize::new(3), cut_after: 100_000, ignores_ranges, ..Registry::default() };
        let (_registry, client, image) = pushed(registry, &Platform::host().architecture).await;
        node.pull(&client, &image.manifest).await.unwrap();
    }
}

#[tokio::test]
async fn content_that_is_not_what_was_asked_for_is_refused() {
    let Some(node) = Node::new() else { return };
    let (_registry, client, image) =
        pushed(Registry { lies: true, ..Registry::default() }, &Platform::host().architecture).await;
    let error = node.pull(&client, &image.manifest).await.unwrap_err();
    assert!(matches!(error, TransferError::Store(StoreError::DigestMismatch { .. })), "{error}");
    assert_eq!(error.reason(), "ImageInvalid");
    assert!(!node.store.contains(&image.layers[0]));
}

#[tokio::test]
async fn each_trouble_has_its_word() {
    let Some(node) = Node::new() else { return };
    let (registry, client, image) = pushed(Registry::default(), "s390x").await;
    let error = node.pull(&client, &image.manifest).await.unwrap_err();
    assert_eq!(error.reason(), "ImagePlatformMismatch", "{error}");
    assert_eq!(node.pull(&client, &Digest::of(b"absent")).await.unwrap_err().reason(), "ImageNotFound");
    registry.content.lock().unwrap().insert(image.config.to_string(), b"short".to_vec());
    let other = Node::new().unwrap();
    assert_eq!(other.pull(&client, &image.manifest).await.unwrap_err().reason(), "ImageInvalid");

    let (_registry, locked) = serve(Registry { password: Some("x"), ..Registry::default() }).await;
    let stranger = Client { auth: None, ..locked };
    let other = Node::new().unwrap();
    assert_eq!(other.pull(&stranger, &image.manifest).await.unwrap_err().reason(), "RegistryUnauthorized");
    let nobody =
        Endpoint { scheme: Scheme::Http, address: "127.0.0.1:1".into(), auth: None, server_name: None };
    let error = other.pull(&Client::new(nobody).unwrap(), &image.manifest).await.unwrap_err();
    assert!(error.is_retryable());
    assert_eq!(error.reason(), "RegistryUnreachable");
}
