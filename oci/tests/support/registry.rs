//! A registry with an image of three layers, which notes what it is asked for. For tests that break pulls.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use tombolo_api::Digest;
use tombolo_oci::build::{BuildOptions, FileEntry, Source, build_directory};
use tombolo_oci::image::{Config, OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST, Platform};
use tombolo_oci::{RunConfig, Store};

/// What the registry gives of a blob at once, and the pause after it: an image takes a few seconds.
const PIECE: usize = 64 * 1024;
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Default)]
pub(crate) struct Registry {
    pub(crate) content: BTreeMap<String, Vec<u8>>,
    /// What was asked for since it was last looked at, and from which byte on.
    pub(crate) asked: Mutex<Vec<(String, usize)>>,
    /// Pieces of blobs that were given, and what is done after each.
    pub(crate) given: AtomicUsize,
    pub(crate) after_piece: Option<Box<dyn Fn(usize) + Send + Sync>>,
}

async fn answer(State(registry): State<Arc<Registry>>, uri: Uri, headers: HeaderMap) -> Response {
    let name = uri.path().rsplit('/').next().unwrap_or_default();
    let Some(content) = registry.content.get(name) else { return StatusCode::NOT_FOUND.into_response() };
    let range = headers.get("range").and_then(|range| range.to_str().ok()?.strip_prefix("bytes="));
    let start = range.map_or(0, |range| range.trim_end_matches('-').parse().expect("an open range"));
    registry.asked.lock().expect("no panic").push((name.to_owned(), start));
    let pieces: Vec<_> = content[start..].chunks(PIECE).map(Bytes::copy_from_slice).collect();
    let length = content.len();
    let giver = registry.clone();
    let body = futures_util::stream::unfold((pieces.into_iter(), giver), |(mut pieces, giver)| async {
        tokio::time::sleep(PAUSE).await;
        let piece = pieces.next()?;
        let given = giver.given.fetch_add(1, Ordering::SeqCst);
        if let Some(after) = &giver.after_piece {
            after(given);
        }
        Some((Ok::<_, std::io::Error>(piece), (pieces, giver)))
    });
    let answer = Response::builder().header("content-length", length - start);
    let range = format!("bytes {start}-{}/{length}", length - 1);
    let answer = if start > 0 { answer.status(206).header("content-range", range) } else { answer };
    answer.body(Body::from_stream(body)).expect("a head")
}

/// Three layers of noise.
pub(crate) fn image(dir: &Path) -> (Registry, Digest) {
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
            path: format!("file-{number}"),
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

/// Serves it. The address is known once this returns.
pub(crate) async fn serve(registry: Arc<Registry>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let app = Router::new().fallback(answer).with_state(registry);
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// What is on the disk of each part of the image: so many bytes, or all.
pub(crate) fn on_the_disk(dir: &Path, registry: &Registry) -> BTreeMap<String, Option<usize>> {
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

/// Checks that no byte was asked for that was `there`.
pub(crate) fn check_asked(there: &BTreeMap<String, Option<usize>>, registry: &Registry) {
    let mut seen = BTreeMap::new();
    for (name, start) in registry.asked.lock().expect("no panic").drain(..) {
        let Some(here) = there[&name] else { panic!("{name} was complete, and was asked for again") };
        assert!(
            start >= *seen.get(&name).unwrap_or(&here),
            "{name} from {start}, though {here} bytes were here"
        );
        seen.insert(name, start);
    }
}
