//! The hub as a node and a user see it together: everything wired, over real sockets.

use serde_json::{Value, json};
use tombolo_api::NodeId;
use tombolo_api::frame::{self, Frame};
use tombolo_api::manifest::{Manifest, SignedManifest};
use tombolo_api::report::{Presence, Report, RevisionPhase, RevisionReport, Serving};
use tombolo_api::topics::NodeTopics;
use tombolo_oci::build::{FileEntry, Source};
use tombolo_oci::{
    BasicAuth, BuildOptions, Client, Endpoint, ImageReference, Platform, Progress, RunConfig, Scheme,
};

use super::*;
use crate::fixture::{Machine, SOON, Session, anonymous, https};

const SERVICES: &str = "/apis/serving.knative.dev/v1/namespaces/default/services";

struct Bench {
    dir: tempfile::TempDir,
    hub: Hub,
    http: reqwest::Client,
}

impl Bench {
    async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let hub = start(config(dir.path())).await.unwrap();
        Self { dir, hub, http: reqwest::Client::new() }
    }

    /// The same hub after a restart.
    async fn restart(self) -> Self {
        self.hub.stop().await.unwrap();
        let hub = start(config(self.dir.path())).await.unwrap();
        Self { hub, ..self }
    }

    fn ca(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("pki/ca.crt")).unwrap()
    }

    async fn get(&self, path: &str) -> Value {
        let url = format!("http://{}{path}", self.hub.api_address());
        self.http.get(url).send().await.unwrap().json().await.unwrap()
    }

    async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let waiting = async {
            loop {
                let value = self.get(path).await;
                if wanted(&value) {
                    return value;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(SOON, waiting).await.expect("it comes about")
    }

    async fn deploy(&self, name: &str, image: &str) {
        let service = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"template": {"spec": {"containers": [{"image": image}]}}},
        });
        let url = format!("http://{}{SERVICES}", self.hub.api_address());
        assert_eq!(self.http.post(url).json(&service).send().await.unwrap().status(), 201);
    }

    /// Builds an image and pushes it as `hello:v1`.
    async fn push(&self) -> tombolo_api::Digest {
        let store = tombolo_oci::Store::open(&self.dir.path().join("build")).unwrap();
        let file = FileEntry { path: "hello".into(), executable: true, content: vec![7; 100_000] };
        let options = BuildOptions {
            source: Source::Files(vec![file]),
            config: RunConfig::default(),
            platform: Platform::host(),
        };
        let image = tombolo_oci::build_directory(&options, &store).unwrap();
        let address = self.hub.api_address().to_string();
        let client =
            Client::new(Endpoint { scheme: Scheme::Http, address, auth: None, server_name: None }).unwrap();
        client.push(&store, &"hello".parse().unwrap(), &"v1".parse().unwrap(), &image).await.unwrap()
    }
}

fn config(dir: &Path) -> Config {
    let mut config = Config { state_dir: dir.into(), ..Config::default() };
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    (config.api.listen, config.nodes.listen, config.mqtt.listen) = (free, free, free);
    config
}

struct Node {
    id: NodeId,
    topics: NodeTopics,
    session: Session,
    pull_token: String,
}

impl Node {
    async fn join(bench: &Bench, machine: &Machine, id: &str) -> Self {
        let body = json!({"token": bench.hub.join_token(), "node": id, "csrPem": machine.csr}).to_string();
        let request = http::Request::post("/tombolo/v1/enrol");
        let (status, answer) = https(bench.hub.node_address(), anonymous(&bench.ca()), request, body).await;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(status, 200, "{answer}");
        let told = answer["mqttUrl"].as_str().unwrap();
        assert_eq!(told, format!("mqtts://{}", bench.hub.mqtt_address().unwrap()));
        let tls = machine.tls(answer["certificatePem"].as_str().unwrap(), answer["caPem"].as_str().unwrap());
        let mut session = Session::open(bench.hub.mqtt_address().unwrap(), tls, id, None).await.unwrap();
        let id: NodeId = id.parse().unwrap();
        let topics = NodeTopics::of(&id);
        session.subscribe(&topics.manifest()).await;
        let pull_token = answer["pullToken"].as_str().unwrap().to_owned();
        Self { id, topics, session, pull_token }
    }

    /// Waits for a manifest of so many objects.
    async fn manifest(&mut self, objects: usize) -> (Manifest, Serving) {
        loop {
            let (topic, payload, _) = self.session.next().await;
            assert_eq!(topic, self.topics.manifest());
            let Frame::Inline(content) = frame::decode(&payload).unwrap() else { panic!("a small manifest") };
            let signed = SignedManifest::from_bytes(content).unwrap();
            let manifest: Manifest = serde_json::from_str(&signed.payload).unwrap();
            if manifest.objects.len() == objects {
                let digest = tombolo_api::Digest::of(&signed.to_bytes());
                let version = manifest.version();
                return (manifest, Serving { version, digest });
            }
        }
    }

    async fn say(&self, serving: Option<Serving>, revisions: Vec<RevisionReport>) {
        let presence = Presence { online: true, session: "s".into(), serving, report: None };
        let report = Report { serving, revisions, ..Report::default() };
        let presence = serde_json::to_vec(&presence).unwrap();
        self.session.publish(&self.topics.presence(), &presence, true).await.unwrap();
        let report = serde_json::to_vec(&report).unwrap();
        self.session.publish(&self.topics.status(), &report, true).await.unwrap();
    }
}

fn ready(value: &Value) -> bool {
    value["status"]["conditions"]
        .as_array()
        .is_some_and(|all| all.iter().any(|it| it["type"] == "Ready" && it["status"] == "True"))
}

#[tokio::test]
async fn a_service_reaches_a_node_and_its_report_comes_back() {
    let bench = Bench::start().await;
    let machine = Machine::new();
    let mut node = Node::join(&bench, &machine, "press-7").await;
    node.say(None, Vec::new()).await;
    let image = bench.push().await;
    bench.deploy("hello", "hub.tombolo/hello:v1").await;
    // A revision and a route.
    let (_, serving) = node.manifest(2).await;
    let shown =
        bench.until("/apis/tombolo.dev/v1/nodes/press-7", |it| it["status"]["desired"].is_object()).await;
    assert_eq!(shown["status"]["desired"]["digest"], json!(serving.digest));
    assert!(ready(&shown), "{shown}");

    let revision = bench.get("/apis/serving.knative.dev/v1/namespaces/default/revisions/hello-00001").await;
    let pinned = revision["status"]["containerStatuses"][0]["imageDigest"].as_str().unwrap().to_owned();
    assert_eq!(pinned, format!("hub.tombolo/hello@{image}"));
    let report = RevisionReport {
        namespace: "default".into(),
        name: "hello-00001".into(),
        uid: revision["metadata"]["uid"].as_str().unwrap().into(),
        phase: RevisionPhase::Ready,
        reason: String::new(),
        message: String::new(),
        instances: Vec::new(),
        desired: 0,
        timed_out: false,
    };
    node.say(Some(serving), vec![report]).await;
    bench.until(&format!("{SERVICES}/hello"), ready).await;

    pull(&bench, &node, &pinned).await;
    let url = format!("http://{}{SERVICES}/hello", bench.hub.api_address());
    bench.http.delete(url).send().await.unwrap();
    node.manifest(0).await;
    bench.hub.stop().await.unwrap();
}

/// The node pulls the image by digest through its own listener, and can push nothing there.
async fn pull(bench: &Bench, node: &Node, pinned: &str) {
    let reference: ImageReference = pinned.parse().unwrap();
    let endpoint = Endpoint {
        scheme: Scheme::Https(anonymous(&bench.ca())),
        address: bench.hub.node_address().to_string(),
        auth: Some(BasicAuth { user: node.id.to_string(), password: node.pull_token.clone() }),
        server_name: Some("hub.tombolo".into()),
    };
    let store = tombolo_oci::Store::open(&bench.dir.path().join("node")).unwrap();
    let client = Client::new(endpoint).unwrap();
    let digest = reference.target.digest().unwrap();
    let pulled = client
        .pull(&store, &reference.repository, &digest, &Platform::host(), &Progress::default())
        .await
        .unwrap();
    let content = std::fs::read(pulled.layers[0].join("hello")).unwrap();
    assert_eq!(content, vec![7; 100_000]);
    let token = base64_of(&format!("{}:{}", node.id, node.pull_token));
    let request =
        http::Request::post("/v2/hello/blobs/uploads/").header("authorization", format!("Basic {token}"));
    let (status, _) = https(bench.hub.node_address(), anonymous(&bench.ca()), request, "").await;
    assert_eq!(status, 405);
}

fn base64_of(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test]
async fn a_restarted_hub_wants_the_same_of_its_nodes() {
    let bench = Bench::start().await;
    let machine = Machine::new();
    let mut node = Node::join(&bench, &machine, "press-7").await;
    node.say(None, Vec::new()).await;
    bench.push().await;
    bench.deploy("hello", "hub.tombolo/hello:v1").await;
    let (manifest, serving) = node.manifest(2).await;
    node.session.vanish().await;

    let bench = bench.restart().await;
    let mut node = Node::join(&bench, &machine, "press-7").await;
    // The very first one after the restart is the old one: nothing was taken away in between.
    let (_, payload, _) = node.session.next().await;
    let Frame::Inline(content) = frame::decode(&payload).unwrap() else { panic!("a small manifest") };
    assert_eq!(tombolo_api::Digest::of(content), serving.digest);
    assert_eq!(manifest.version(), serving.version);
    bench.hub.stop().await.unwrap();
}

#[tokio::test]
async fn a_removed_node_is_out_at_once() {
    let bench = Bench::start().await;
    let machine = Machine::new();
    let mut node = Node::join(&bench, &machine, "press-7").await;
    let url = format!("http://{}/apis/tombolo.dev/v1/nodes/press-7", bench.hub.api_address());
    assert_eq!(bench.http.delete(url).send().await.unwrap().status(), 200);
    node.session.end().await;
    assert_eq!(bench.get("/apis/tombolo.dev/v1/nodes").await["items"], json!([]));
    bench.hub.stop().await.unwrap();
}
