//! Push and pull against a registry that can be told to misbehave.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt as _;

mod faults;
mod signatures;

use super::*;
use crate::build::{BuildOptions, BuiltImage, FileEntry, Source, build_directory};
use crate::image::{Config, OCI_CONFIG, OCI_LAYER_GZIP, Platform, RunConfig};
use crate::layer::UnpackError;
use crate::store::{Store, StoreError};

/// What the registry holds, what it was asked, and how it misbehaves.
#[derive(Default)]
struct Registry {
    content: Mutex<BTreeMap<String, Vec<u8>>>,
    asked: Mutex<Vec<String>>,
    /// Blobs are cut off after so many bytes, this many times.
    cut: AtomicUsize,
    cut_after: usize,
    /// A blob that is cut off stays open, without another byte.
    stalls: bool,
    /// Answers blobs whole, whatever range is asked for.
    ignores_ranges: bool,
    /// Answers blobs with another content of the same size.
    lies: bool,
    password: Option<&'static str>,
    /// Where blobs are to be sent, if not here.
    uploads_at: Option<String>,
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
    let range = headers.get("range").map_or("", |range| range.to_str().unwrap());
    registry.asked.lock().unwrap().push(format!("{method} {path} {range}").trim_end().to_owned());
    if registry.password.is_some() && !headers.contains_key("authorization") {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    assert!(headers["host"].to_str().unwrap().starts_with("hub.tombolo:"));
    let name = path.rsplit('/').next().unwrap_or_default().to_owned();
    match method {
        Method::POST => {
            let place = registry.uploads_at.as_deref().unwrap_or("/v2/a/blobs/uploads/1?state=x");
            (StatusCode::ACCEPTED, [("location", place)]).into_response()
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
        let range = range.and_then(|range| range.to_str().unwrap()["bytes=".len()..].split_once('-'));
        let start = range.map(|(start, _)| start.parse::<usize>().unwrap());
        let last = range.and_then(|(_, last)| last.parse::<usize>().ok()).unwrap_or(content.len() - 1);
        let rest = content[start.unwrap_or(0)..=last].to_vec();
        let length = rest.len();
        let cuts = content.len() > 1000
            && self.cut.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        let body = if cuts {
            let head: Result<Bytes, std::io::Error> = Ok(rest[..self.cut_after.min(length)].to_vec().into());
            let stalls = self.stalls;
            let end = futures_util::stream::once(async move {
                if stalls {
                    std::future::pending::<()>().await;
                }
                // What was given before has to be on its way.
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(std::io::Error::other("cut"))
            });
            Body::from_stream(futures_util::stream::iter([head]).chain(end))
        } else {
            Body::from(rest)
        };
        let mut answer = Response::builder().header("content-length", length);
        if let Some(start) = start {
            let range = format!("bytes {start}-{last}/{}", content.len());
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
        let (platform, progress) = (Platform::host(), Progress::default());
        can_be_spawned(client.pull(&self.store, &repository, image, &platform, &progress)).await
    }
}

fn can_be_spawned<F: Future + Send>(future: F) -> F {
    future
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
    for (ignores_ranges, stalls) in [(false, false), (true, false), (false, true)] {
        let Some(node) = Node::new() else { return };
        let registry = Registry {
            cut: AtomicUsize::new(3),
            cut_after: 100_000,
            ignores_ranges,
            stalls,
            ..Registry::default()
        };
        let (registry, mut client, image) = pushed(registry, &Platform::host().architecture).await;
        client.deadlines.idle = Duration::from_millis(300);
        let progress = Progress::default();
        let repository = "a".parse().unwrap();
        client.pull(&node.store, &repository, &image.manifest, &Platform::host(), &progress).await.unwrap();
        assert_eq!(progress.bytes(), (image.size, image.size), "{ignores_ranges} {stalls}");
        let layer = format!("GET /v2/a/blobs/{}", image.layers[0]);
        let asked = registry.asked.lock().unwrap();
        let asked: Vec<_> = asked.iter().filter_map(|line| line.strip_prefix(&layer)).collect();
        let expected = match ignores_ranges {
            false => ["", " bytes=100000-", " bytes=200000-", " bytes=300000-"],
            true => ["", " bytes=100000-", " bytes=100000-", " bytes=100000-"],
        };
        assert_eq!(asked, expected);
    }
}

/// A link brings what was asked for as fast as it can: with a budget no more is asked for than that soon pays for.
#[tokio::test]
async fn with_a_budget_a_layer_is_asked_for_in_pieces() {
    for ignores_ranges in [false, true] {
        let Some(node) = Node::new() else { return };
        let registry = Registry { ignores_ranges, ..Registry::default() };
        let (registry, client, image) = pushed(registry, &Platform::host().architecture).await;
        let pace = Pace::new(std::num::NonZeroU64::new(100_000));
        node.pull(&client.with_pace(pace), &image.manifest).await.unwrap();
        let layer = format!("GET /v2/a/blobs/{}", image.layers[0]);
        let asked = registry.asked.lock().unwrap();
        let asked: Vec<_> = asked.iter().filter_map(|line| line.strip_prefix(&layer)).collect();
        let expected: &[&str] =
            if ignores_ranges { &[" bytes=0-399999"] } else { &[" bytes=0-399999", " bytes=400000-"] };
        assert_eq!(asked, expected);
    }
}

#[tokio::test]
async fn a_transfer_that_gets_nowhere_ends() {
    let Some(node) = Node::new() else { return };
    let registry = Registry {
        cut: AtomicUsize::new(usize::MAX),
        cut_after: 100_000,
        ignores_ranges: true,
        ..Registry::default()
    };
    let (registry, client, image) = pushed(registry, &Platform::host().architecture).await;
    let error = node.pull(&client, &image.manifest).await.unwrap_err();
    assert_eq!(error.reason(), "RegistryUnreachable", "{error}");
    assert!(error.is_retryable());
    // The first one got somewhere, and what it brought is kept.
    assert_eq!(registry.asked.lock().unwrap().iter().filter(|line| line.starts_with("GET")).count(), 7);
    assert_eq!(node.store.partials().unwrap()[&image.layers[0]], 100_000);
}

/// A manifest and its configuration, as the registry would hold them.
fn image_of(registry: &Registry, layers: &[(Digest, u64)], diff_ids: &[Digest]) -> Digest {
    let put = |content: serde_json::Value| {
        let content = content.to_string().into_bytes();
        let digest = Digest::of(&content);
        let size = content.len();
        registry.content.lock().unwrap().insert(digest.to_string(), content);
        serde_json::json!({ "mediaType": OCI_CONFIG, "digest": digest, "size": size })
    };
    let Platform { os, architecture, .. } = Platform::host();
    let rootfs = serde_json::json!({ "type": "layers", "diff_ids": diff_ids });
    let config = put(serde_json::json!({ "os": os, "architecture": architecture, "rootfs": rootfs }));
    let layers: Vec<_> = layers
        .iter()
        .map(|(digest, size)| {
            serde_json::json!({ "mediaType": OCI_LAYER_GZIP, "digest": digest, "size": size })
        })
        .collect();
    let manifest = serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers });
    put(manifest)["digest"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_layer_that_comes_twice_is_fetched_and_mounted_once() {
    let Some(node) = Node::new() else { return };
    let (registry, client, image) = pushed(Registry::default(), &Platform::host().architecture).await;
    let config = registry.content.lock().unwrap()[&image.config.to_string()].clone();
    let diff_id = Config::parse(&image.config, &config).unwrap().diff_ids[0];
    let layer = (image.layers[0], image.size);
    let fetched = || {
        let line = format!("GET /v2/a/blobs/{}", image.layers[0]);
        registry.asked.lock().unwrap().iter().filter(|asked| asked.starts_with(&line)).count()
    };

    // The same content under two names: one of them is a lie, which costs no second transfer and no damage.
    let lie = image_of(&registry, &[layer, layer], &[diff_id, Digest::of(b"other")]);
    let error = node.pull(&client, &lie).await.unwrap_err();
    assert!(matches!(error, TransferError::Unpack(UnpackError::DiffIdMismatch { .. })), "{error}");
    assert_eq!(fetched(), 1);
    assert!(node.store.verify(&image.layers[0]).unwrap());

    let twice = image_of(&registry, &[layer, layer], &[diff_id, diff_id]);
    let summary = node.pull(&client, &twice).await.unwrap();
    assert_eq!((summary.diff_ids, summary.layers.len()), (vec![diff_id], 1));
    assert_eq!(fetched(), 1);
}

#[tokio::test]
async fn a_layer_that_was_damaged_on_the_disk_is_fetched_again() {
    let Some(node) = Node::new() else { return };
    let (_registry, client, image) = pushed(Registry::default(), &Platform::host().architecture).await;
    std::fs::write(node.store.blob_path(&image.layers[0]), b"not gzip, not tar").unwrap();
    let summary = node.pull(&client, &image.manifest).await.unwrap();
    assert!(summary.layers[0].join("run").is_file());
    assert!(node.store.verify(&image.layers[0]).unwrap());
}

/// A server that answers `app`'s way at an address.
async fn listen(app: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

fn at(address: String) -> Client {
    let endpoint = Endpoint { scheme: Scheme::Http, address, auth: None, server_name: None };
    Client::new(endpoint).unwrap()
}

#[tokio::test]
async fn an_upload_may_take_its_time_but_not_stand_still() {
    async fn slow(method: Method, body: Body) -> Response {
        match method {
            Method::HEAD => return StatusCode::NOT_FOUND.into_response(),
            Method::POST => return (StatusCode::ACCEPTED, [("location", "/upload")]).into_response(),
            _ => {}
        }
        let mut pieces = body.into_data_stream();
        while let Some(Ok(piece)) = pieces.next().await {
            // 8 MB a second.
            tokio::time::sleep(Duration::from_micros(piece.len() as u64 / 8)).await;
        }
        StatusCode::CREATED.into_response()
    }
    async fn stopped(method: Method, body: Body) -> Response {
        if method == Method::PUT {
            std::future::pending::<()>().await;
        }
        slow(method, body).await
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    // Several times what the kernel takes off a sender's hands before anybody reads it.
    let layer = store.put(&vec![7; 24_000_000]).unwrap();
    let small = store.put(b"{}").unwrap();
    let image = BuiltImage { manifest: small, config: small, layers: vec![layer], size: 24_000_000 };
    let (repository, tag) = ("a".parse().unwrap(), "v1".parse().unwrap());

    let mut client = at(listen(Router::new().fallback(slow)).await);
    client.deadlines.stored = Duration::from_millis(1400);
    let begin = std::time::Instant::now();
    client.push(&store, &repository, &tag, &image).await.unwrap();
    assert!(begin.elapsed() > 2 * client.deadlines.stored, "it went too fast to show anything");

    let mut client = at(listen(Router::new().fallback(stopped)).await);
    client.deadlines.stored = Duration::from_millis(300);
    let error = client.push(&store, &repository, &tag, &image).await.unwrap_err();
    assert!(matches!(error, TransferError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_left() {
    let silent = Router::new().fallback(std::future::pending::<()>);
    let mut client = at(listen(silent).await);
    client.deadlines.answer = Duration::from_millis(200);
    let error = client.resolve(&"a".parse().unwrap(), &"v1".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, TransferError::Timeout { .. }), "{error}");
    assert_eq!(error.reason(), "RegistryUnreachable");
}

#[tokio::test]
async fn the_password_goes_to_nobody_else() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let other = Router::new().fallback({
        let seen = seen.clone();
        move |headers: HeaderMap, _content: Bytes| async move {
            seen.lock().unwrap().push(headers.contains_key("authorization"));
            StatusCode::CREATED
        }
    });
    let uploads_at = Some(format!("http://{}/upload", listen(other).await));
    let (_dir, store, image) = built(&Platform::host().architecture);
    let (_registry, client) =
        serve(Registry { password: Some("secret"), uploads_at, ..Registry::default() }).await;
    client.push(&store, &"a".parse().unwrap(), &"v1".parse().unwrap(), &image).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [false, false], "layer and configuration");
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

#[tokio::test]
async fn a_base_is_known_by_its_documents_alone() {
    let host = Platform::host();
    let (registry, client, image) = pushed(Registry::default(), &host.architecture).await;
    registry.asked.lock().unwrap().clear();
    let repository = "a".parse().unwrap();
    let base = client.base_image(&repository, &Target::Digest(image.manifest), None, &host).await.unwrap();
    assert_eq!((base.digest, base.layers.len()), (image.manifest, image.layers.len()));
    assert_eq!(base.layers[0].digest, image.layers[0]);
    let layer = image.layers[0].to_string();
    assert!(!registry.asked.lock().unwrap().iter().any(|line| line.contains(&layer)), "no layer is fetched");

    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("layer");
    client.fetch_layer(&repository, None, &base.layers[0], &to).await.unwrap();
    assert_eq!(Digest::of(&std::fs::read(&to).unwrap()), image.layers[0]);
    registry.content.lock().unwrap().insert(layer, b"another".to_vec());
    let error = client.fetch_layer(&repository, None, &base.layers[0], &to).await.unwrap_err();
    assert!(matches!(error, TransferError::Store(StoreError::DigestMismatch { .. })), "{error}");
    let other = Platform { architecture: "s390x".into(), ..host };
    let error =
        client.base_image(&repository, &Target::Digest(image.manifest), None, &other).await.unwrap_err();
    assert_eq!(error.reason(), "ImagePlatformMismatch", "{error}");
}
