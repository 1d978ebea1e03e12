//! Images of other registries through the hub, as nodes ask for them: fetched once, kept, served without the other registry.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::{Value, json};
use tombolo_api::Digest;
use tombolo_hub::config::{Config, UpstreamConfig};

use crate::support::{Client, SERVICES, SERVING, config, hub_with, read, service};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const NS: &str = "ns=registry.example";
const BLOB_LEN: usize = 400_000;

/// Another registry: what it has, what it was asked, how it misbehaves.
#[derive(Default)]
struct Other {
    content: Mutex<BTreeMap<String, Vec<u8>>>,
    asked: Mutex<Vec<String>>,
    /// Times that a blob is cut off after 100,000 bytes.
    cuts: AtomicUsize,
    /// Sends another content of the same length.
    lies: bool,
    /// Every answer is this one.
    instead: Option<(StatusCode, &'static str)>,
    silent: bool,
}

struct Running {
    other: Arc<Other>,
    address: String,
    server: tokio::task::JoinHandle<()>,
}

impl Other {
    async fn run(self) -> Running {
        let other = Arc::new(self);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let app = Router::new().fallback(answer).with_state(other.clone());
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Running { other, address, server }
    }

    /// Holds an image of one layer as `team/app:v1`.
    fn image(&self) -> (Digest, Digest) {
        let layer: Vec<u8> = (0..u32::try_from(BLOB_LEN / 4).unwrap()).flat_map(u32::to_le_bytes).collect();
        let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        let mut content = self.content.lock().unwrap();
        let mut put = |media_type: &str, bytes: &[u8]| {
            let digest = Digest::of(bytes);
            content.insert(digest.to_string(), bytes.to_vec());
            json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
        };
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": put("application/vnd.oci.image.config.v1+json", config),
            "layers": [put("application/vnd.oci.image.layer.v1.tar", &layer)]});
        let bytes = serde_json::to_vec(&manifest).unwrap();
        put(MANIFEST, &bytes);
        content.insert("v1".into(), bytes.clone());
        (Digest::of(&bytes), Digest::of(&layer))
    }

    fn asked(&self, what: &Digest) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|line| line.contains(&what.to_string())).cloned().collect()
    }
}

async fn answer(State(other): State<Arc<Other>>, uri: Uri, headers: HeaderMap) -> Response {
    let range = headers.get("range").map_or("", |range| range.to_str().unwrap());
    other.asked.lock().unwrap().push(format!("{} {range}", uri.path()).trim_end().to_owned());
    if other.silent {
        std::future::pending::<()>().await;
    }
    if let Some(instead) = other.instead {
        return instead.into_response();
    }
    let name = uri.path().rsplit('/').next().unwrap();
    let Some(mut content) = other.content.lock().unwrap().get(name).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if !uri.path().contains("/blobs/") {
        return content.into_response();
    }
    if other.lies {
        content[0] ^= 1;
    }
    let start =
        range.strip_prefix("bytes=").map(|range| range.trim_end_matches('-').parse::<usize>().unwrap());
    let rest = content[start.unwrap_or(0)..].to_vec();
    let (length, size) = (rest.len(), content.len());
    let cut = other.cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
    let until = if cut { 100_000.min(length) } else { length };
    // In two pieces, so that others have the time to ask for the same.
    let pieces = [rest[..until / 2].to_vec(), rest[until / 2..until].to_vec()];
    let stream = futures_util::stream::iter(pieces).then(move |piece| async move {
        tokio::time::sleep(Duration::from_millis(150)).await;
        Ok::<_, std::io::Error>(Bytes::from(piece))
    });
    let end = futures_util::stream::iter(cut.then_some(())).then(|()| async {
        // What was given before has to be on its way.
        tokio::time::sleep(Duration::from_millis(100)).await;
        Err(std::io::Error::other("cut"))
    });
    let mut answer = Response::builder().header("content-length", length);
    if let Some(start) = start {
        answer = answer.status(206).header("content-range", format!("bytes {start}-{}/{size}", size - 1));
    }
    answer.body(Body::from_stream(stream.chain(end))).unwrap()
}

fn with_upstream(dir: &Path, address: &str) -> Config {
    let mut config = config(dir);
    config.registry.upstreams = vec![UpstreamConfig {
        prefix: "registry.example/team".into(),
        url: format!("http://{address}"),
        ca_file: "".into(),
        user: String::new(),
        password: String::new(),
        password_file: "".into(),
    }];
    config
}

fn manifest(target: &str) -> String {
    format!("/v2/team/app/manifests/{target}?{NS}")
}

fn blob(digest: &Digest) -> String {
    format!("/v2/team/app/blobs/{digest}?{NS}")
}

async fn fetch(client: &Client, path: &str, range: Option<&str>) -> (u16, Result<Bytes, reqwest::Error>) {
    let mut request = client.request(Method::GET, path);
    if let Some(range) = range {
        request = request.header("Range", range);
    }
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.bytes().await)
}

async fn refusal(client: &Client, path: &str) -> (u16, String) {
    let (code, body) = read(client.request(Method::GET, path).send().await.unwrap()).await;
    (code, body["errors"][0]["message"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn what_many_ask_for_is_fetched_once_and_served_without_its_registry() {
    let dir = tempfile::tempdir().unwrap();
    let running = Other::default().run().await;
    let (digest, layer) = running.other.image();
    let (hub, client) = hub_with(with_upstream(dir.path(), &running.address)).await;

    let by_tag = client.request(Method::GET, &manifest("v1")).send().await.unwrap();
    assert_eq!(by_tag.headers()["docker-content-digest"], digest.to_string());
    let found = fetch(&client, &manifest(&digest.to_string()), None).await;
    assert_eq!((found.0, Digest::of(&found.1.unwrap())), (200, digest));
    let path = blob(&layer);
    let (one, two, rest) = tokio::join!(
        fetch(&client, &path, None),
        fetch(&client, &path, None),
        fetch(&client, &path, Some("bytes=300000-"))
    );
    assert_eq!((one.0, Digest::of(&one.1.unwrap())), (200, layer));
    assert_eq!((two.0, Digest::of(&two.1.unwrap())), (200, layer));
    assert_eq!((rest.0, rest.1.unwrap().len()), (206, BLOB_LEN - 300_000));
    assert_eq!(running.other.asked(&layer).len(), 1, "{:?}", running.other.asked(&layer));
    assert_eq!(running.other.asked(&digest).len(), 1);

    // Gone; and a hub that starts anew still has it.
    running.server.abort();
    hub.stop().await.unwrap();
    let (hub, client) = hub_with(with_upstream(dir.path(), &running.address)).await;
    assert_eq!(fetch(&client, &manifest(&digest.to_string()), None).await.0, 200);
    let found = fetch(&client, &path, Some("bytes=-4")).await;
    assert_eq!(
        (found.0, found.1.unwrap()),
        (206, Bytes::from((BLOB_LEN as u32 / 4 - 1).to_le_bytes().to_vec()))
    );
    let head = client.request(Method::HEAD, &path).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], BLOB_LEN.to_string());
    // Nobody has pushed it here.
    assert_eq!(client.get(&format!("/v2/team/app/blobs/{layer}")).await.0, 404);
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn a_fetch_that_breaks_off_goes_on_by_range() {
    let dir = tempfile::tempdir().unwrap();
    let running = Other { cuts: AtomicUsize::new(2), ..Other::default() }.run().await;
    let (_, layer) = running.other.image();
    let (hub, client) = hub_with(with_upstream(dir.path(), &running.address)).await;
    let found = fetch(&client, &blob(&layer), None).await;
    assert_eq!((found.0, Digest::of(&found.1.unwrap())), (200, layer), "whoever asks notices nothing");
    let path = format!("/v2/team/app/blobs/{layer}");
    let expected = [path.clone(), format!("{path} bytes=100000-"), format!("{path} bytes=200000-")];
    assert_eq!(running.other.asked(&layer), expected);
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_not_what_was_asked_for_is_neither_given_nor_kept() {
    let dir = tempfile::tempdir().unwrap();
    let running = Other { lies: true, ..Other::default() }.run().await;
    let (digest, layer) = running.other.image();
    let (hub, client) = hub_with(with_upstream(dir.path(), &running.address)).await;
    let (code, content) = fetch(&client, &blob(&layer), None).await;
    assert!(code == 200 && content.is_err(), "its last byte never came");
    assert!(!dir.path().join("cache/blobs/sha256").join(layer.hex()).exists());
    running.other.content.lock().unwrap().insert(digest.to_string(), b"{}".to_vec());
    let (code, message) = refusal(&client, &manifest(&digest.to_string())).await;
    assert_eq!(code, 502);
    assert!(message.contains("was expected, but the content is"), "{message}");
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn each_trouble_with_another_registry_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let absent = Digest::of(b"absent");
    for (instead, code, told) in [
        ((StatusCode::UNAUTHORIZED, ""), 502, "[[registry.upstreams]]"),
        ((StatusCode::TOO_MANY_REQUESTS, "slow down"), 502, "status 429: slow down"),
        ((StatusCode::OK, "<html>"), 502, "was expected, but the content is"),
        ((StatusCode::NOT_FOUND, ""), 404, "the registry has no"),
    ] {
        let running = Other { instead: Some(instead), ..Other::default() }.run().await;
        let (hub, client) = hub_with(with_upstream(dir.path(), &running.address)).await;
        let (status, message) = refusal(&client, &manifest(&absent.to_string())).await;
        assert!(status == code && message.contains(told), "{instead:?}: {status} {message}");
        hub.stop().await.unwrap();
    }
    let (hub, client) = hub_with(with_upstream(dir.path(), "127.0.0.1:1")).await;
    let (status, message) = refusal(&client, &manifest(&absent.to_string())).await;
    assert!(status == 502 && message.contains("cannot be reached"), "{status} {message}");
    let push =
        client.request(Method::POST, &format!("/v2/team/app/blobs/uploads/?{NS}")).send().await.unwrap();
    assert_eq!(push.status(), 405);
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn a_tag_of_another_registry_is_looked_up_once_and_what_it_names_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let running = Other::default().run().await;
    let (digest, layer) = running.other.image();
    let stray = Digest::of(b"stray");
    running.other.content.lock().unwrap().insert(stray.to_string(), b"stray".to_vec());
    let mut config = with_upstream(dir.path(), &running.address);
    config.registry.cache.unused_s = 1;
    let (hub, client) = hub_with(config).await;
    client.send(Method::POST, SERVICES, &service("a", "registry.example/team/app:v1")).await;
    let pinned = json!(format!("registry.example/team/app@{digest}"));
    let revisions = format!("{SERVING}/namespaces/default/revisions");
    let image = |list: &Value| list["items"][0]["status"]["containerStatuses"][0]["imageDigest"].clone();
    client.until(&revisions, |list| image(list) == pinned).await;

    // A host without any setting: a revision names it, so the hub asks it.
    let direct = format!("{}/team/app", running.address);
    client.send(Method::POST, SERVICES, &service("b", &format!("{direct}@{digest}"))).await;
    client.until(&revisions, |list| list["items"].as_array().is_some_and(|items| items.len() == 2)).await;
    let path = format!("/v2/team/app/manifests/{digest}?ns={}", running.address);
    assert_eq!(fetch(&client, &path, None).await.0, 200);

    for content in [&layer, &stray] {
        assert_eq!(fetch(&client, &blob(content), None).await.0, 200);
    }
    let here = |digest: &Digest| dir.path().join("cache/blobs/sha256").join(digest.hex()).exists();
    let begin = std::time::Instant::now();
    while here(&stray) {
        assert!(begin.elapsed() < Duration::from_secs(20), "what nothing names is not removed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(here(&digest) && here(&layer), "what a revision names stays");
    hub.stop().await.unwrap();
}
