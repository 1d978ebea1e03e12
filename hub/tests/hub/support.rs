//! A hub on free ports in a directory of its own, and a client of its API.

use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::{Method, Response};
use serde_json::{Value, json};
use tombolo_hub::Hub;
use tombolo_hub::config::Config;

pub(crate) const SERVICES: &str = "/apis/serving.knative.dev/v1/namespaces/default/services";
pub(crate) const SERVING: &str = "/apis/serving.knative.dev/v1";

/// How long the hub may take to reconcile what a test waits for.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn hub(state_dir: &Path) -> (Hub, Client) {
    hub_with(config(state_dir)).await
}

pub(crate) async fn hub_with(config: Config) -> (Hub, Client) {
    let hub = tombolo_hub::start(config).await.unwrap();
    let client = Client::new(format!("http://{}", hub.api_address()));
    (hub, client)
}

pub(crate) fn config(state_dir: &Path) -> Config {
    let free = "127.0.0.1:0".parse().unwrap();
    let mut config = Config { state_dir: state_dir.into(), ..Config::default() };
    config.api.listen = free;
    config.nodes.listen = free;
    config.mqtt.listen = free;
    config
}

/// A Service as users write it.
pub(crate) fn service(name: &str, image: &str) -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"template": {"spec": {"containers": [{"image": image}]}}},
    })
}

pub(crate) struct Client {
    base: String,
    http: reqwest::Client,
}

impl Client {
    pub(crate) fn new(base: String) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
        Self { base, http }
    }

    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    /// Sends JSON, reads JSON; the status code with it.
    pub(crate) async fn send(&self, method: Method, path: &str, body: &Value) -> (u16, Value) {
        let mut request = self.request(method, path);
        if !body.is_null() {
            request = request.json(body);
        }
        read(request.send().await.unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.send(Method::GET, path, &Value::Null).await
    }

    pub(crate) async fn patch(&self, path: &str, media_type: &str, body: &str) -> (u16, Value) {
        let request =
            self.request(Method::PATCH, path).header("Content-Type", media_type).body(body.to_owned());
        read(request.send().await.unwrap()).await
    }

    /// Reads `path` until it is as wanted.
    pub(crate) async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let begin = Instant::now();
        loop {
            let (_, value) = self.get(path).await;
            if wanted(&value) {
                return value;
            }
            assert!(begin.elapsed() < PATIENCE, "not as wanted after {PATIENCE:?}: {value:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub(crate) async fn read(response: Response) -> (u16, Value) {
    let code = response.status().as_u16();
    let bytes = response.bytes().await.unwrap();
    let value = serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes)));
    (code, value)
}

/// Status and reason of a condition.
pub(crate) fn condition(object: &Value, kind: &str) -> (String, String) {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default();
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}
