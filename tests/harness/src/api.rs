//! The hub's API as a test uses it: JSON in, JSON or a refusal out.

use reqwest::{Client, Method};
use serde_json::{Value, json};

/// A hub's API.
#[derive(Clone, Debug)]
pub struct Api {
    base: String,
    http: Client,
}

/// The hub said no, or nothing.
#[derive(Debug)]
pub struct ApiError {
    /// 0: no answer.
    pub code: u16,
    pub body: Value,
}

const SERVING: &str = "/apis/serving.knative.dev/v1/namespaces/default";

impl Api {
    pub fn new(base: &str) -> Self {
        Self { base: base.to_owned(), http: crate::load::client() }
    }

    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ApiError> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(body) = body {
            request = request.json(body);
        }
        let none = |error: reqwest::Error| ApiError { code: 0, body: Value::String(format!("{error:?}")) };
        let answer = request.send().await.map_err(none)?;
        let code = answer.status().as_u16();
        let bytes = answer.bytes().await.map_err(none)?;
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        if (200..300).contains(&code) { Ok(body) } else { Err(ApiError { code, body }) }
    }

    pub async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.call(Method::GET, path, None).await
    }

    pub async fn service(&self, name: &str) -> Result<Value, ApiError> {
        self.get(&format!("{SERVING}/services/{name}")).await
    }

    pub async fn create_service(&self, service: &Value) -> Result<Value, ApiError> {
        self.call(Method::POST, &format!("{SERVING}/services"), Some(service)).await
    }

    /// Changes a service by a JSON merge patch.
    pub async fn patch_service(&self, name: &str, patch: &Value) -> Result<Value, ApiError> {
        let request = self
            .http
            .patch(format!("{}{SERVING}/services/{name}", self.base))
            .header("Content-Type", "application/merge-patch+json")
            .body(patch.to_string());
        let none = |error: reqwest::Error| ApiError { code: 0, body: Value::String(format!("{error:?}")) };
        let answer = request.send().await.map_err(none)?;
        let code = answer.status().as_u16();
        let body = answer.json().await.map_err(none)?;
        if code == 200 { Ok(body) } else { Err(ApiError { code, body }) }
    }

    pub async fn delete_service(&self, name: &str) -> Result<Value, ApiError> {
        self.call(Method::DELETE, &format!("{SERVING}/services/{name}"), None).await
    }

    pub async fn revision(&self, name: &str) -> Result<Value, ApiError> {
        self.get(&format!("{SERVING}/revisions/{name}")).await
    }

    /// What the statuses of a service and of its revisions say, as text.
    pub async fn told(&self, service: &str) -> Result<String, ApiError> {
        let found = self.service(service).await?;
        let selector = format!("labelSelector=serving.knative.dev/service={service}");
        let revisions = self.get(&format!("{SERVING}/revisions?{selector}")).await?;
        let each = revisions["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|revision| revision["status"].to_string());
        Ok(found["status"].to_string() + &each.collect::<String>())
    }

    pub async fn node(&self, name: &str) -> Result<Value, ApiError> {
        self.get(&format!("/apis/tombolo.dev/v1/nodes/{name}")).await
    }

    /// `Ok` with the service once its `Ready` is `True`, else what its conditions say.
    pub async fn ready_service(&self, name: &str) -> Result<Value, Value> {
        let service = self.service(name).await.map_err(|error| json!([error.code, error.body]))?;
        let current = service["status"]["observedGeneration"] == service["metadata"]["generation"];
        if current && condition(&service, "Ready")["status"] == "True" {
            Ok(service)
        } else {
            Err(service["status"].clone())
        }
    }
}

/// One condition of a resource, or null.
pub fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().find(|condition| condition["type"] == kind).cloned().unwrap_or_default()
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.code, self.body)
    }
}

impl std::error::Error for ApiError {}
