//! The router's own answers: short plain text, and a word for programs in `x-tombolo-reason`.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use tombolo_agent_core::activation::{
    HELD_BYTES_PER_NODE_MAX, HELD_BYTES_PER_REVISION_MAX, HELD_PER_NODE_MAX, Refusal,
};
use tombolo_agent_core::routes::{Backend, Unavailable};
use tombolo_api::RevisionKey;

use crate::grpc;
use crate::headers::{PROBE_HASH, Probe};
use crate::http1::Malformed;

/// Carries the reason word of an answer the router made itself.
pub const REASON_HEADER: HeaderName = HeaderName::from_static("x-tombolo-reason");

/// Seconds after which a client refused for a full queue may come back.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// An answer the router gives without an instance.
#[derive(Debug)]
pub(crate) struct Answer {
    status: StatusCode,
    reason: String,
    text: String,
    retry: bool,
    /// Goes back to a probe that brought it.
    hash: Option<HeaderValue>,
}

impl Answer {
    fn new(status: StatusCode, reason: &str, text: String) -> Self {
        Self { status, reason: reason.to_owned(), text, retry: false, hash: None }
    }

    /// As which it is counted, in whatever way it is told.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn bad_request(text: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", text.to_owned())
    }

    /// The client does not speak HTTP/1 as it should.
    pub(crate) fn malformed_request(why: Malformed) -> Self {
        let status = match why {
            Malformed::LargeHead | Malformed::ManyFields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Malformed::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, "BadRequest", format!("the request is not HTTP as it is served here: {why}"))
    }

    pub(crate) fn no_tunnel() -> Self {
        let text = "CONNECT is not served here: this is no forward proxy";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", text.to_owned())
    }

    /// To a probe of a revision.
    pub(crate) fn to_probe(probe: Probe, revision: &RevisionKey, backend: &Backend) -> Self {
        let ok = |text: &str| Self::new(StatusCode::OK, "", text.to_owned());
        match probe {
            Probe::Instance if backend.ready.is_empty() => {
                let text = format!("no instance of revision {revision} is ready");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "NotReady", text)
            }
            Probe::Instance => ok("queue"),
            Probe::Router => match &backend.unavailable {
                Some(why) if backend.ready.is_empty() => {
                    Self::refused(revision, Refusal::Unavailable(why.clone()))
                }
                _ => ok("activator"),
            },
            Probe::Route(Some(hash)) => Self { hash: Some(hash), ..ok("probe") },
            Probe::Route(None) => Self::bad_request("a probe must have the header K-Network-Hash"),
            Probe::Unknown => {
                Self::bad_request("the header K-Network-Probe must be one of queue, activator, probe")
            }
        }
    }

    pub(crate) fn unknown_host(host: &str) -> Self {
        let host: String = host.chars().take(255).collect();
        let text = format!(
            "no function on this node answers for host {host}\n\
             check that:\n\
             - the request's Host header is the function's: NAME.NAMESPACE.DOMAIN, or TAG-NAME.NAMESPACE.DOMAIN\n\
             - its Service exists and is Ready\n\
             - its Service is placed on this node, and the node has received it"
        );
        Self::new(StatusCode::NOT_FOUND, "UnknownHost", text)
    }

    pub(crate) fn revision_missing(host: &str) -> Self {
        let text = format!("the traffic of host {host} leads to a revision that is not on this node");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "RevisionMissing", text)
    }

    /// The revision left the node before the request was sent, as did those that took its place.
    pub(crate) fn removed(revision: &RevisionKey) -> Self {
        let text = format!("revision {revision} no longer belongs to this node");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "RevisionRemoved", text)
    }

    pub(crate) fn refused(revision: &RevisionKey, refusal: Refusal) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        match refusal {
            Refusal::RevisionQueueFull => {
                let text =
                    format!("as many requests as may already wait for an instance of revision {revision}");
                Self { retry: true, ..Self::new(status, "RevisionQueueFull", text) }
            }
            Refusal::RevisionBytesFull => {
                let text = format!(
                    "requests of {HELD_BYTES_PER_REVISION_MAX} bytes already wait for an instance of revision {revision}"
                );
                Self { retry: true, ..Self::new(status, "RevisionBytesFull", text) }
            }
            Refusal::NodeBytesFull => {
                let text = format!("requests of {HELD_BYTES_PER_NODE_MAX} bytes already wait on this node");
                Self { retry: true, ..Self::new(status, "NodeBytesFull", text) }
            }
            Refusal::NodeQueueFull => {
                let text = format!("{HELD_PER_NODE_MAX} requests already wait on this node");
                Self { retry: true, ..Self::new(status, "NodeQueueFull", text) }
            }
            Refusal::Unavailable(why) => {
                let text = format!("revision {revision} cannot serve: {}: {}", why.reason, why.message);
                Self::new(status, &why.reason, text)
            }
        }
    }

    pub(crate) fn activation_timeout(
        revision: &RevisionKey,
        limit_ms: u64,
        awaits: Option<&Unavailable>,
    ) -> Self {
        let why = awaits.map(|why| format!(": {}: {}", why.reason, why.message)).unwrap_or_default();
        let text = format!(
            "activation timeout: no instance of revision {revision} became free within {limit_ms} ms{why}"
        );
        Self::new(StatusCode::GATEWAY_TIMEOUT, "ActivationTimeout", text)
    }

    pub(crate) fn late(revision: &RevisionKey, reason: &'static str, what: &str, limit_ms: u64) -> Self {
        let text = format!("revision {revision} {what} within {limit_ms} ms");
        Self::new(StatusCode::GATEWAY_TIMEOUT, reason, text)
    }

    pub(crate) fn unreachable(revision: &RevisionKey, error: &dyn std::fmt::Display) -> Self {
        let text =
            format!("an instance of revision {revision} is ready but does not accept requests: {error}");
        Self::new(StatusCode::BAD_GATEWAY, "InstanceUnreachable", text)
    }

    pub(crate) fn lost(revision: &RevisionKey, error: &dyn std::fmt::Display) -> Self {
        let text = format!(
            "an instance of revision {revision} ended the connection or broke the protocol before its answer: {error}"
        );
        Self::new(StatusCode::BAD_GATEWAY, "InstanceReset", text)
    }

    pub(crate) fn malformed(revision: &RevisionKey, error: &dyn std::fmt::Display) -> Self {
        let text =
            format!("an instance of revision {revision} answered with something that is not HTTP: {error}");
        Self::new(StatusCode::BAD_GATEWAY, "InstanceMalformed", text)
    }

    /// The client did not send its body in time.
    pub(crate) fn slow_body(limit_ms: u64) -> Self {
        let text = format!("the request's body did not come within {limit_ms} ms");
        Self::new(StatusCode::REQUEST_TIMEOUT, "RequestBodyTimeout", text)
    }

    /// The client did not say in time what it wants.
    pub(crate) fn slow_head() -> Self {
        let text = "the request's head was not complete in time".to_owned();
        Self::new(StatusCode::REQUEST_TIMEOUT, "RequestHeadTimeout", text)
    }

    pub(crate) fn too_many_connections(limit: usize) -> Self {
        let text = format!("this node's router has {limit} connections already");
        Self { retry: true, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "TooManyConnections", text) }
    }

    /// The answer as bytes, for a connection on which nothing has been read.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        let response = self.into_response();
        let mut head = format!("HTTP/1.1 {}\r\n", response.status()).into_bytes();
        for (name, value) in response.headers() {
            head.extend_from_slice(name.as_str().as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(format!("content-length: {}\r\n", response.body().len()).as_bytes());
        head.extend_from_slice(b"connection: close\r\n\r\n");
        head.extend_from_slice(response.body());
        head
    }

    /// The answer to a gRPC call: an outcome without a message.
    pub(crate) fn into_grpc(self) -> Response<Bytes> {
        let status = match self.status {
            StatusCode::OK => 0,
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => grpc::DEADLINE_EXCEEDED,
            StatusCode::NOT_FOUND => grpc::UNIMPLEMENTED,
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => grpc::UNAVAILABLE,
            _ => grpc::INTERNAL,
        };
        let message = grpc::message(&self.text);
        let mut response = self.into_response().map(|_| Bytes::new());
        *response.status_mut() = StatusCode::OK;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, grpc::CONTENT_TYPE);
        headers.extend(grpc::outcome(status, message));
        response
    }

    /// The response, with its text as body.
    pub(crate) fn into_response(self) -> Response<Bytes> {
        let mut response = Response::new(Bytes::from(self.text + "\n"));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        // A reason out of a status is a word; anything else is not worth a broken answer.
        if let (false, Ok(reason)) = (self.reason.is_empty(), HeaderValue::try_from(self.reason)) {
            headers.insert(REASON_HEADER, reason);
        }
        if let Some(hash) = self.hash {
            headers.insert(PROBE_HASH, hash);
        }
        if self.retry {
            headers.insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
        }
        response
    }
}
