//! Signatures in real registries, the hub's own and another one, looked for by the real collector.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tombolo_api::meta::ObjectMeta;
use tombolo_api::serving::Revision;
use tombolo_api::verification::{KEYS, POLICY};
use tombolo_hub_core::{Object, Snapshot};

use super::*;
use crate::registry::{self, Access};

/// An image without layers.
const IMAGE: &str = concat!(
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","#,
    r#""config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"#,
    r#""sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#
);

// Made with OpenSSL, over [`payload`].
const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAxKjnP+lk/vGnm9Aq5eJl1/QDrylKfsrASgMID3Xo2LM=\n-----END PUBLIC KEY-----\n";
const SIGNATURE: &str =
    "OtOG2OQSQ/SXZgfT1tJWOC9/qrmStZQKC1ZSOW3m8s7vn0MWbHI9Pwqdgp60etMabbEROjDig9eL3mkvGcrPCQ==";
const NEXT_KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA/U2ihg9UUdcrSWHq+AQl5yOrKF88sI52aoOPO0rIYIA=\n-----END PUBLIC KEY-----\n";
const NEXT_SIGNATURE: &str =
    "N7MEXKcEdQb3UoyD8mXEscBztSL10yVVG07crTEQG2TzUZ1cKEdjRIM8TnFvOz3XgDTmJScZmL8AYt8/bNfqCQ==";

/// Longest wait for what takes a few milliseconds, and twice the first pause of another registry.
const SOON: Duration = Duration::from_secs(30);

fn image() -> Digest {
    Digest::of(IMAGE.as_bytes())
}

fn payload() -> String {
    format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"hub/hello"}},
"image":{{"docker-manifest-digest":"{}"}},"type":"cosign container image signature"}},"optional":null}}"#,
        image()
    )
    .replace('\n', "")
}

/// A registry that is spoken to as any other.
struct Served {
    _dir: tempfile::TempDir,
    registry: Registry,
    address: SocketAddr,
    server: tokio::task::JoinHandle<()>,
}

impl Served {
    async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = registry::router(registry.clone(), Upstreams::none(dir.path()), Access::ReadWrite);
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let served = Self { _dir: dir, registry, address, server };
        served.blob(b"{}").await;
        served.manifest(&image().to_string(), IMAGE).await;
        served
    }

    async fn blob(&self, content: &[u8]) {
        let base = format!("http://{}", self.address);
        let (http, digest) = (reqwest::Client::new(), Digest::of(content));
        let begun = http.post(format!("{base}/v2/hello/blobs/uploads/")).send().await.unwrap();
        let location = begun.headers()["location"].to_str().unwrap().to_owned();
        let location = if location.starts_with('/') { format!("{base}{location}") } else { location };
        let mark = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{mark}digest={digest}");
        let put = http.put(url).body(content.to_vec()).send().await.unwrap();
        assert_eq!(put.status(), 201);
    }

    async fn manifest(&self, name: &str, content: &str) {
        let url = format!("http://{}/v2/hello/manifests/{name}", self.address);
        let put = reqwest::Client::new()
            .put(url)
            .header("content-type", "application/vnd.oci.image.manifest.v1+json");
        assert_eq!(put.body(content.to_owned()).send().await.unwrap().status(), 201);
    }

    fn signature_manifest(&self, signatures: &[&str], subject: bool) -> String {
        let layer = |signature: &&str| {
            json!({
                "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
                "digest": Digest::of(payload().as_bytes()), "size": payload().len(),
                "annotations": { "dev.cosignproject.cosign/signature": signature },
            })
        };
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(b"{}"), "size": 2 },
            "layers": signatures.iter().map(layer).collect::<Vec<_>>(),
        });
        if subject {
            manifest["artifactType"] = "application/vnd.dev.cosign.artifact.sig.v1+json".into();
            manifest["subject"] = json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": image(), "size": IMAGE.len(),
            });
        }
        manifest.to_string()
    }

    /// As `cosign sign` does: all signatures of an image in one manifest, under its tag.
    async fn sign(&self, signatures: &[&str]) {
        self.blob(payload().as_bytes()).await;
        self.manifest(&tag(), &self.signature_manifest(signatures, false)).await;
    }

    /// As it does with `--registry-referrers-mode=oci-1-1`.
    async fn attach(&self, signature: &str) {
        self.blob(payload().as_bytes()).await;
        let manifest = self.signature_manifest(&[signature], true);
        self.manifest(&Digest::of(manifest.as_bytes()).to_string(), &manifest).await;
    }

    async fn withdraw(&self) {
        let url = format!("http://{}/v2/hello/manifests/{}", self.address, tag());
        assert_eq!(reqwest::Client::new().delete(url).send().await.unwrap().status(), 202);
    }
}

fn tag() -> String {
    format!("sha256-{}.sig", image().hex())
}

/// A hub as far as signatures are concerned, with one revision of the image.
struct Site {
    state: watch::Sender<Arc<State>>,
    collection: watch::Receiver<Arc<Collection>>,
    image: String,
    stop: CancellationToken,
    _images: watch::Sender<Arc<Images>>,
    _cache: tempfile::TempDir,
}

impl Site {
    fn start(registry: &Registry, host: &str, keys: &[&str], known: Option<ImageSignatures>) -> Self {
        let image = format!("{host}/hello@{}", image());
        let revision: Revision = serde_json::from_value(json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": { "name": "a-00001", "namespace": "shop" },
            "spec": { "containers": [{ "name": "user-container", "image": format!("{host}/hello") }] },
            "status": { "containerStatuses": [{ "name": "user-container", "imageDigest": image, "signatures": known }] },
        }))
        .unwrap();
        let mut snapshot = Snapshot::default();
        snapshot.put(Object::Revision(revision.into()));
        let state = State { snapshot, version: 1, ..State::default() };
        let (state, receiver) = watch::channel(Arc::new(state));
        let (images, images_receiver) = watch::channel(Arc::default());
        let cache = tempfile::tempdir().unwrap();
        let (collection, collector) =
            Collector::new(registry.clone(), Upstreams::none(cache.path()), receiver, images_receiver);
        let stop = CancellationToken::new();
        tokio::spawn(collector.run(stop.clone()));
        let site = Self { state, collection, image, stop, _images: images, _cache: cache };
        site.demand(keys);
        site
    }

    fn demand(&self, keys: &[&str]) {
        let annotations =
            [(POLICY.to_owned(), "require".to_owned()), (KEYS.to_owned(), keys.concat())].into();
        let metadata = ObjectMeta { name: "shop".into(), annotations, ..ObjectMeta::default() };
        self.state.send_modify(|state| {
            Arc::make_mut(state).namespaces.insert("shop".into(), Arc::new(metadata));
        });
    }

    /// Waits until what is known of the image is as `wanted`.
    async fn until(&mut self, wanted: impl Fn(&Collected) -> bool) -> Collected {
        let image = self.image.clone();
        let there = self.collection.wait_for(|all| all.get(&image).is_some_and(&wanted));
        let all = tokio::time::timeout(SOON, there).await.expect("it comes about").unwrap().clone();
        all[&image].clone()
    }

    async fn until_signed(&mut self, signatures: &[&str]) {
        self.until(|collected| match collected {
            Collected::Found(found) => {
                found.found.iter().map(|found| found.signature.as_str()).collect::<Vec<_>>() == signatures
            }
            Collected::Unreachable(_) => false,
        })
        .await;
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[tokio::test]
async fn signatures_in_the_own_registry_are_found_before_and_after() {
    let own = Served::start().await;
    let mut early = Site::start(&own.registry, HUB_HOST, &[KEY], None);
    early.until_signed(&[]).await;
    own.sign(&[SIGNATURE]).await;
    early.until_signed(&[SIGNATURE]).await;
    let mut late = Site::start(&own.registry, HUB_HOST, &[KEY], None);
    late.until_signed(&[SIGNATURE]).await;
    // Signed once more: a node needs one of each key.
    own.sign(&[SIGNATURE, NEXT_SIGNATURE]).await;
    late.demand(&[NEXT_KEY, KEY]);
    late.until_signed(&[SIGNATURE, NEXT_SIGNATURE]).await;
    early.until_signed(&[SIGNATURE]).await;
    own.withdraw().await;
    early.until_signed(&[]).await;
}

#[tokio::test]
async fn signatures_that_refer_to_the_image_are_found_too() {
    let own = Served::start().await;
    own.attach(SIGNATURE).await;
    Site::start(&own.registry, HUB_HOST, &[KEY], None).until_signed(&[SIGNATURE]).await;
    let elsewhere = own.address.to_string();
    let hub = Served::start().await;
    Site::start(&hub.registry, &elsewhere, &[KEY], None).until_signed(&[SIGNATURE]).await;
}

#[tokio::test]
async fn one_by_another_key_is_kept_as_a_witness() {
    let own = Served::start().await;
    own.sign(&[NEXT_SIGNATURE]).await;
    let mut site = Site::start(&own.registry, HUB_HOST, &[KEY], None);
    site.until_signed(&[NEXT_SIGNATURE]).await;
    own.sign(&[NEXT_SIGNATURE, SIGNATURE]).await;
    site.until_signed(&[SIGNATURE]).await;
}

#[tokio::test]
async fn another_registry_is_asked_until_there_is_a_good_one_and_never_again() {
    let (hub, other) = (Served::start().await, Served::start().await);
    let host = other.address.to_string();
    let mut site = Site::start(&hub.registry, &host, &[KEY], None);
    site.until_signed(&[]).await;
    other.sign(&[SIGNATURE]).await;
    site.until_signed(&[SIGNATURE]).await;
    other.server.abort();
    drop(site);
    // A hub that starts again knows it from its resources.
    let signature = |text: &str| json!({ "payload": payload(), "signature": text });
    let known = |text: &str| {
        let known: Value = json!({ "found": [signature(text)] });
        Some(serde_json::from_value(known).unwrap())
    };
    let mut again = Site::start(&hub.registry, &host, &[KEY], known(SIGNATURE));
    again.until_signed(&[SIGNATURE]).await;
    // Another key needs another signature, and nobody is there to ask.
    again.demand(&[NEXT_KEY]);
    again.until_signed(&[SIGNATURE]).await;
    let mut unknown = Site::start(&hub.registry, &host, &[KEY], known(NEXT_SIGNATURE));
    let unreachable = unknown.until(|collected| matches!(collected, Collected::Unreachable(_))).await;
    assert!(format!("{unreachable:?}").contains("cannot be reached"), "{unreachable:?}");
    // Whoever may not write there pushes his signature here.
    hub.sign(&[SIGNATURE]).await;
    unknown.until_signed(&[SIGNATURE]).await;
}
