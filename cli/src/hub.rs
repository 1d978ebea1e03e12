//! Talking to a hub: requests with deadlines, answers as JSON, refusals as Kubernetes' `Status` told to a person.
//!
//! Must not know which resources there are.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use serde_json::Value;
use tombolo_oci::Scheme;

use crate::tls::{Trust, TrustError};

/// A hub on the same network answers a connect in far less.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// One whole request and answer. The hub resolves image tags at foreign registries within a create.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Largest error body that is looked at, bytes.
const ERROR_BODY_MAX: usize = 256 * 1024;

/// A hub's API.
#[derive(Clone, Debug)]
pub(crate) struct Hub {
    base: Url,
    http: reqwest::Client,
    scheme: Scheme,
    trust: Trust,
}

/// Why the hub did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("{0:?} is not the URL of a hub: use http://HOST:PORT")]
    Url(String),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("no hub answers at {url} ({cause}): start one with `tombolo up`, or name another with --hub")]
    Unreachable { url: String, cause: String },
    #[error("the hub at {url} did not answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout { url: String },
    #[error("{0}")]
    Refused(Box<Refusal>),
    #[error("{url} answered {code}, but not as a hub does: name the hub with --hub{body}")]
    NotAHub { url: String, code: u16, body: String },
    #[error("the answer of {url} cannot be read: {cause}")]
    Broken { url: String, cause: String },
}

/// A Kubernetes `Status` of failure.
#[derive(Clone, Debug, Default, Deserialize, thiserror::Error)]
#[error("{message}{}", if reason.is_empty() { String::new() } else { format!(" ({reason})") })]
#[serde(default)]
pub(crate) struct Refusal {
    pub(crate) code: u16,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) details: Details,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Details {
    /// Plural of what the refusal is about.
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) causes: Vec<Cause>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Cause {
    pub(crate) field: String,
    pub(crate) message: String,
}

impl RequestError {
    /// The HTTP status of a refusal.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            _ => None,
        }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    pub(crate) fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }
}

impl Hub {
    pub(crate) fn new(url: &str) -> Result<Self, RequestError> {
        Self::trusting(url, &Trust::default())
    }

    /// A hub that may speak TLS. Reads files then.
    pub(crate) fn trusting(url: &str, trust: &Trust) -> Result<Self, RequestError> {
        let base: Url = url.parse().map_err(|_| RequestError::Url(url.to_owned()))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(RequestError::Url(url.to_owned()));
        }
        let (mut http, scheme) = match base.scheme() {
            "http" => (tombolo_oci::client::without_tls(reqwest::Client::builder()), Scheme::Http),
            _ => {
                let tls = trust.config()?;
                let http = reqwest::Client::builder().tls_backend_preconfigured(tls.clone());
                (http, Scheme::Https(Arc::new(tls)))
            }
        };
        if is_here(&base) {
            // No proxy knows what `localhost` is to us.
            http = http.no_proxy();
        }
        let http = http
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("tombolo/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| RequestError::Broken { url: url.to_owned(), cause: innermost(&error) })?;
        Ok(Self { base, http, scheme, trust: trust.clone() })
    }

    /// Whether the hub is on this machine, by its address.
    pub(crate) fn is_here(&self) -> bool {
        is_here(&self.base)
    }

    /// `host:port`.
    pub(crate) fn authority(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        self.base.port_or_known_default().map_or(host.to_owned(), |port| format!("{host}:{port}"))
    }

    /// How it is spoken to.
    pub(crate) fn scheme(&self) -> Scheme {
        self.scheme.clone()
    }

    /// Whom to believe, of hubs and of registries.
    pub(crate) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Without a slash at its end.
    pub(crate) fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, RequestError> {
        self.json(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, RequestError> {
        self.json(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Result<Value, RequestError> {
        self.json(Method::PUT, path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<Value, RequestError> {
        self.json(Method::DELETE, path, None).await
    }

    /// A body that arrives bit by bit, for as long as the hub likes.
    pub(crate) async fn stream(&self, path: &str) -> Result<reqwest::Response, RequestError> {
        let answer = self.open(path, HeaderMap::new()).await?;
        if answer.status().is_success() { Ok(answer) } else { Err(self.refusal(answer).await) }
    }

    /// The same with headers, and whatever the hub answers.
    pub(crate) async fn open(
        &self,
        path: &str,
        headers: HeaderMap,
    ) -> Result<reqwest::Response, RequestError> {
        let sent = self.http.get(self.address(path)).headers(headers).send();
        match tokio::time::timeout(REQUEST_TIMEOUT, sent).await {
            Ok(answer) => answer.map_err(|error| self.failed(&error)),
            Err(_) => Err(RequestError::Timeout { url: self.url().to_owned() }),
        }
    }

    /// Any request, its answer unread; for what speaks another protocol than the resources do.
    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, self.address(path)).timeout(REQUEST_TIMEOUT)
    }

    fn address(&self, path: &str) -> String {
        format!("{}{path}", self.url())
    }

    async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, RequestError> {
        let mut request = self.request(method, path).header("Accept", "application/json");
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|error| self.failed(&error))?;
        if !answer.status().is_success() {
            return Err(self.refusal(answer).await);
        }
        let code = answer.status().as_u16();
        let bytes = answer.bytes().await.map_err(|error| self.failed(&error))?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|_| RequestError::NotAHub {
            url: self.url().to_owned(),
            code,
            body: excerpt(&bytes),
        })
    }

    pub(crate) fn failed(&self, error: &reqwest::Error) -> RequestError {
        let url = self.url().to_owned();
        if error.is_connect() {
            RequestError::Unreachable { url, cause: innermost(error) }
        } else if error.is_timeout() {
            RequestError::Timeout { url }
        } else if error.is_request() {
            RequestError::Unreachable { url, cause: innermost(error) }
        } else {
            RequestError::Broken { url, cause: innermost(error) }
        }
    }

    pub(crate) async fn refusal(&self, answer: reqwest::Response) -> RequestError {
        let code: StatusCode = answer.status();
        let bytes = match answer.bytes().await {
            Ok(bytes) => bytes,
            Err(error) => return self.failed(&error),
        };
        match serde_json::from_slice::<Refusal>(&bytes[..bytes.len().min(ERROR_BODY_MAX)]) {
            Ok(mut refusal) if !refusal.message.is_empty() => {
                refusal.code = code.as_u16();
                RequestError::Refused(Box::new(refusal))
            }
            _ => RequestError::NotAHub {
                url: self.url().to_owned(),
                code: code.as_u16(),
                body: excerpt(&bytes),
            },
        }
    }
}

fn is_here(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The last error of a chain: "Connection refused" says more than "error sending request".
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// The first line of a body, as the end of a sentence.
fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]);
    let line: String =
        text.trim().lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).collect();
    if line.is_empty() { String::new() } else { format!(" (it said: {line})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_web_addresses_are_hubs() {
        for bad in ["", "127.0.0.1:7080", "ftp://a", "http://"] {
            assert!(matches!(Hub::new(bad), Err(RequestError::Url(_))), "{bad}");
        }
        assert!(matches!(Hub::new("nothing"), Err(RequestError::Url(_))));
    }

    #[test]
    fn a_loopback_address_is_here() {
        for (url, here) in [
            ("http://127.0.0.1:7080", true),
            ("http://127.8.0.1", true),
            ("http://[::1]:7080", true),
            ("http://localhost:1", true),
            ("http://10.0.0.7:7080", false),
            ("http://127.0.0.1.example.com", false),
        ] {
            assert_eq!(is_here(&url.parse().unwrap()), here, "{url}");
        }
    }

    #[test]
    fn an_address_has_a_port() {
        let of = |url: &str| Hub::new(url).unwrap().authority();
        assert_eq!(of("http://h:7080/"), "h:7080");
        assert_eq!(of("http://h"), "h:80");
        assert_eq!(of("http://[::1]:1"), "[::1]:1");
    }

    #[test]
    fn a_status_becomes_a_sentence() {
        let refusal: Refusal = serde_json::from_str(
            r#"{"kind":"Status","status":"Failure","message":"services \"a\" not found","reason":"NotFound","code":404}"#,
        )
        .unwrap();
        assert_eq!(
            RequestError::Refused(Box::new(refusal)).to_string(),
            "services \"a\" not found (NotFound)"
        );
    }
}
