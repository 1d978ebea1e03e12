//! A puller that is killed two hundred times, at any instant, ends with a verified image, and asks for no byte twice that was on
//! its disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use tombolo_api::Digest;
use tombolo_oci::build::{BuildOptions, FileEntry, Source, build_directory};
use tombolo_oci::image::{Config, OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST, Platform, summary};
use tombolo_oci::{Client, Endpoint, Progress, RunConfig, Scheme, Store};

const KILLS: u32 = 200;

/// Says to the test's own program that it is the puller: where the registry is, where the store is, and the image.
const PULL: &str = "TOMBOLO_TEST_PULL";

/// What the registry gives of a blob at once, and the pause after it: an image takes a few seconds.
const PIECE: usize = 64 * 1024;
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Default)]
struct Registry {
    content: BTreeMap<String, Vec<u8>>,
    /// What was asked for since it was last looked at, and from which byte on.
    asked: Mutex<Vec<(String, usize)>>,
}

async fn answer(State(registry): State<Arc<Registry>>, uri: Uri, headers: HeaderMap) -> Response {
    let name = uri.path().rsplit('/').next().unwrap_or_default();
    let Some(content) = registry.content.get(name) else { return StatusCode::NOT_FOUND.into_response() };
    let range = headers.get("range").and_then(|range| range.to_str().ok()?.strip_prefix("bytes="));
    let start = range.map_or(0, |range| range.trim_end_matches('-').parse().expect("an open range"));
    registry.asked.lock().expect("no panic").push((name.to_owned(), start));
    let pieces: Vec<_> = content[start..].chunks(PIECE).map(Bytes::copy_from_slice).collect();
    let body = futures_util::stream::unfold(pieces.into_iter(), |mut pieces| async {
        tokio::time::sleep(PAUSE).await;
        pieces.next().map(|piece| (Ok::<_, std::io::Error>(piece), pieces))
    });
    let answer = Response::builder().header("content-length", content.len() - start);
    let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
    let answer = if start > 0 { answer.status(206).header("content-range", range) } else { answer };
    answer.body(Body::from_stream(body)).expect("a head")
}

/// Three layers of noise.
fn image(dir: &Path) -> (Registry, Digest) {
    let store = Store::open(dir).expect("a store");
    let mut registry = Registry::default();
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    let mut state = 1u32;
    for (number, size) in [900_000, 1_700_000, 400_000].into_iter().enumerate() {
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        let files = vec![FileEntry {
            path: format!("file-{number}").into(),
            executable: false,
            content: noise.take(size).collect(),
        }];
        let options = BuildOptions {
            source: Source::Files(files),
            config: RunConfig::default(),
            platform: Platform::host(),
        };
        let built = build_directory(&options, &store).expect("an image");
        let config = store.read_blob(&built.config, 1 << 20).expect("its configuration");
        diff_ids.extend(Config::parse(&built.config, &config).expect("a configuration").diff_ids);
        for layer in built.layers {
            let content = std::fs::read(store.blob_path(&layer)).expect("its layer");
            layers.push(
                serde_json::json!({ "mediaType": OCI_LAYER_GZIP, "digest": layer, "size": content.len() }),
            );
            registry.content.insert(layer.to_string(), content);
        }
    }
    let mut put = |content: serde_json::Value| {
        let content = content.to_string().into_bytes();
        let digest = Digest::of(&content);
        let size = content.len();
        registry.content.insert(digest.to_string(), content);
        (digest, size)
    };
    let Platform { os, architecture, .. } = Platform::host();
    let rootfs = serde_json::json!({ "type": "layers", "diff_ids": diff_ids });
    let (digest, size) = put(serde_json::json!({ "os": os, "architecture": architecture, "rootfs": rootfs }));
    let config = serde_json::json!({ "mediaType": OCI_CONFIG, "digest": digest, "size": size });
    let manifest = serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers });
    let (manifest, _) = put(manifest);
    (registry, manifest)
}

/// The program that is killed: this test's own, which does nothing else.
#[tokio::test]
async fn puller() {
    let Ok(told) = std::env::var(PULL) else { return };
    let [address, dir, image] = told.split(' ').collect::<Vec<_>>()[..] else { panic!("{told}") };
    let store = Store::open(Path::new(dir)).expect("a store");
    let endpoint = Endpoint { scheme: Scheme::Http, address: address.into(), auth: None, server_name: None };
    let client = Client::new(endpoint).expect("a client");
    let image = image.parse().expect("a digest");
    let repository = "a".parse().expect("a name");
    client
        .pull(&store, &repository, &image, &Platform::host(), &Progress::default())
        .await
        .expect("it comes");
}

/// What is on the disk of each part of the image: so many bytes, or all.
fn on_the_disk(dir: &Path, registry: &Registry) -> BTreeMap<String, Option<usize>> {
    let of = |name: &String| {
        let hex = name.strip_prefix("sha256:").expect("a digest");
        let size = |directory: &str| Some(dir.join(directory).join(hex).metadata().ok()?.len() as usize);
        match size("blobs/sha256") {
            Some(_) => None,
            None => Some(size("partial").unwrap_or(0)),
        }
    };
    registry.content.keys().map(|name| (name.clone(), of(name))).collect()
}

#[test]
fn killed_at_any_instant_it_loses_nothing() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: unpacking needs root");
        return;
    }
    let built = tempfile::tempdir().expect("a directory");
    let (registry, image) = image(built.path());
    let registry = Arc::new(registry);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
    let address = listener.local_addr().expect("an address");
    let app = Router::new().fallback(answer).with_state(registry.clone());
    runtime.spawn(async move { axum::serve(listener, app).await });

    let (mut kills, mut images, mut random) = (0, 0, 7u64);
    while kills < KILLS || images == 0 {
        let dir = tempfile::tempdir().expect("a directory");
        loop {
            let there = on_the_disk(dir.path(), &registry);
            registry.asked.lock().expect("no panic").clear();
            let begun = Instant::now();
            let mut puller = Command::new(std::env::current_exe().expect("this program"))
                .args(["--exact", "puller", "--nocapture"])
                .env(PULL, format!("{address} {} {image}", dir.path().display()))
                .stdout(Stdio::null())
                .spawn()
                .expect("a puller");
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let life = Duration::from_millis(if kills < KILLS { (random >> 33) % 350 } else { 60_000 });
            let mut ended = None;
            while ended.is_none() && begun.elapsed() < life {
                std::thread::sleep(Duration::from_millis(2));
                ended = puller.try_wait().expect("a child");
            }
            if ended.is_none() {
                puller.kill().expect("it can be killed");
                puller.wait().expect("it ends");
                kills += 1;
            }
            let mut seen = BTreeMap::new();
            for (name, start) in registry.asked.lock().expect("no panic").drain(..) {
                let Some(here) = there[&name] else { panic!("{name} was complete, and was asked for again") };
                assert!(
                    start >= *seen.get(&name).unwrap_or(&here),
                    "{name} from {start}, though {here} bytes were here"
                );
                seen.insert(name, start);
            }
            match ended {
                Some(status) => {
                    assert!(status.success(), "{status}");
                    break;
                }
                None => assert!(kills < KILLS + 2, "it does not come to an end"),
            }
        }
        let store = Store::open(dir.path()).expect("a store");
        let complete = summary(&store, &image, &Platform::host()).expect("a sound image").expect("all of it");
        assert_eq!(complete.layers.len(), 3);
        for blob in &complete.blobs {
            assert!(store.verify(blob).expect("a blob"), "{blob}");
        }
        for (number, layer) in complete.layers.iter().rev().enumerate() {
            assert!(layer.join(format!("file-{number}")).is_file());
        }
        images += 1;
    }
    eprintln!("{kills} kills, {images} images");
}
