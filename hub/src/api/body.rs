//! Request bodies: bounded, of a media type that is read here, as JSON values.

use std::time::Duration;

use axum::body::{Body, Bytes};
use http::{HeaderMap, Method, header};
use tombolo_api::meta::Status;

use super::patch::Edit;

mod fields;

pub(super) use fields::Sent;

/// Largest body of a resource request, bytes: Kubernetes' limit.
pub(super) const BODY_MAX: usize = 3 << 20;

/// Longest wait for a whole body: three megabytes over a poor link.
const BODY_DEADLINE: Duration = Duration::from_secs(60);

/// Kubernetes' protobuf, which is read of a few kinds only.
pub(super) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

const OBJECTS: [&str; 2] = ["application/json", "application/yaml"];

/// The media type of a body, without parameters; empty if there is none.
pub(super) fn media_type(headers: &HeaderMap) -> String {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Reads a body of at most [`BODY_MAX`] bytes.
pub(super) async fn bytes(body: Body) -> Result<Bytes, Box<Status>> {
    use std::error::Error as _;
    let read = tokio::time::timeout(BODY_DEADLINE, axum::body::to_bytes(body, BODY_MAX)).await;
    let limit = BODY_DEADLINE.as_secs();
    let too_slow = |_| Status::failure(408, "Timeout", format!("the body did not arrive within {limit} s"));
    read.map_err(too_slow)?.map_err(|error| {
        let too_large = error.source().is_some_and(|source| source.is::<http_body_util::LengthLimitError>());
        let status = if too_large {
            Status::too_large(BODY_MAX as u64)
        } else {
            Status::bad_request(format!("the body of the request broke off: {error}"))
        };
        Box::new(status)
    })
}

/// Reads a whole object, JSON or YAML.
pub(super) async fn object(headers: &HeaderMap, body: Body) -> Result<Sent, Box<Status>> {
    let media_type = media_type(headers);
    let read = match media_type.as_str() {
        "" | "application/json" => json,
        "application/yaml" => yaml,
        _ => return Err(Box::new(Status::unsupported_media_type(&OBJECTS))),
    };
    read(&bytes(body).await?)
}

/// Reads a whole object or a patch, by the method. With it come the paths of fields sent more than once.
pub(super) async fn edit(
    method: &Method,
    headers: &HeaderMap,
    body: Body,
    patches: &[&str],
) -> Result<(Edit, Vec<String>), Box<Status>> {
    if *method == Method::PUT {
        let sent = object(headers, body).await?;
        return Ok((Edit::Replace(sent.value), sent.repeated));
    }
    let media_type = media_type(headers);
    // The type decides before the content is read.
    if !patches.contains(&media_type.as_str()) {
        return Err(Box::new(Status::unsupported_media_type(patches)));
    }
    Edit::patch(&media_type, &bytes(body).await?)
}

pub(super) fn json(bytes: &[u8]) -> Result<Sent, Box<Status>> {
    serde_json::from_slice(bytes).map_err(|error| {
        Box::new(Status::bad_request(format!("the body of the request is not valid JSON: {error}")))
    })
}

pub(super) fn yaml(bytes: &[u8]) -> Result<Sent, Box<Status>> {
    let not_yaml = |why: String| {
        let first = why.lines().next().unwrap_or_default().to_owned();
        Box::new(Status::bad_request(format!("the body of the request is not valid YAML: {first}")))
    };
    let text = std::str::from_utf8(bytes).map_err(|error| not_yaml(error.to_string()))?;
    // YAML 1.2: only `true` and `false` are booleans, so that a service may be called `y`.
    let options = serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::PassThrough,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| not_yaml(error.to_string()))
}
