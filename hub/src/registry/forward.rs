//! The hub's registry where it is another one: with `[registry.external]` the hub has no images of its own. Content that
//! nodes read by digest comes through the cache; everything else is passed on as it is.

use axum::body::Body;
use axum::response::Response;
use http::request::Parts;
use http::{HeaderName, Method, StatusCode, header};
use tombolo_oci::image::MAX_DOCUMENT;
use tombolo_oci::{Content, TransferError};

use super::Registry;
use super::error::ApiError;
use super::http::{CONTENT_DIGEST, empty};
use crate::upstream::Upstreams;

/// What of an answer is passed back.
const TOLD: [HeaderName; 13] = [
    header::ACCEPT_RANGES,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::ETAG,
    header::LINK,
    header::LOCATION,
    header::RANGE,
    CONTENT_DIGEST,
    HeaderName::from_static("docker-upload-uuid"),
    HeaderName::from_static("oci-chunk-min-length"),
    HeaderName::from_static("oci-filters-applied"),
    HeaderName::from_static("oci-subject"),
];

/// Passes a request on to the external registry, and its answer back.
pub(super) async fn pass_on(
    registry: &Registry,
    upstreams: &Upstreams,
    parts: &Parts,
    is_manifest: bool,
    body: Body,
) -> Result<Response, ApiError> {
    let failed = |error: TransferError| {
        let message = format!("the external registry: {error}");
        let status = match error {
            TransferError::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        };
        ApiError::upstream(status, message)
    };
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    let path = path.strip_prefix("/v2").unwrap_or(path).trim_start_matches('/');
    let is_upload = parts.method == Method::PATCH || parts.method == Method::PUT || has_digest(parts);
    let content = if is_upload && !is_manifest {
        Content::streamed(body.into_data_stream())
    } else {
        let limit = usize::try_from(MAX_DOCUMENT).expect("a few megabytes");
        let read = axum::body::to_bytes(body, limit).await;
        Content::Whole(read.map_err(|_| ApiError::too_large(MAX_DOCUMENT))?)
    };
    let client = upstreams.external().await.map_err(failed)?;
    let forwarded = client.forward(parts.method.clone(), path, &parts.headers, content).await;
    let forwarded = forwarded.map_err(failed)?;
    if matches!(forwarded.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        let message =
            "the external registry does not let the hub in: check user and password in [registry.external]";
        return Err(ApiError::upstream(StatusCode::BAD_GATEWAY, message.into()));
    }
    let mut response = empty(forwarded.status, &[]);
    for name in TOLD {
        if let Some(value) = forwarded.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    if is_manifest && forwarded.status.is_success() && parts.method != Method::GET {
        registry.changed();
    }
    if parts.method != Method::HEAD {
        *response.body_mut() = Body::from_stream(forwarded.content());
    }
    Ok(response)
}

/// Whether a blob comes with the request that begins its upload.
fn has_digest(parts: &Parts) -> bool {
    parts.uri.query().is_some_and(|query| query.split('&').any(|pair| pair.starts_with("digest=")))
}
