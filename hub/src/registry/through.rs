//! Images of other registries, as nodes and mirror clients ask for them: `/v2/…?ns=HOST`.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use tombolo_api::Digest;
use tombolo_oci::{ImageReference, Repository, Target, TransferError};

use super::contents::Contents;
use super::error::ApiError;
use super::{Registry, blobs, manifests};
use crate::upstream::{Asker, Blob, UpstreamError, Upstreams};

/// Answers with a manifest or an index of another registry. Only what a tag means now is asked there each time.
pub(super) async fn manifest(
    (upstreams, asker): (&Upstreams, Asker),
    host: &str,
    name: &Repository,
    target: Target,
) -> Result<Response, ApiError> {
    let digest = match target {
        Target::Digest(digest) => digest,
        Target::Tag(_) => {
            let reference = ImageReference { host: host.to_owned(), repository: name.clone(), target };
            upstreams.resolve_for(asker, &reference).await.map_err(|error| told(error, "MANIFEST_UNKNOWN"))?
        }
    };
    let content = upstreams
        .document(asker, host, name, digest)
        .await
        .map_err(|error| told(error, "MANIFEST_UNKNOWN"))?;
    let contents =
        Contents::parse(&digest, &content).map_err(|error| ApiError::manifest_invalid(error.to_string()))?;
    Ok(manifests::answer(&digest, contents.media_type, content))
}

/// Answers with a blob of another registry, while it comes if it is not here yet.
pub(super) async fn blob(
    registry: &Registry,
    (upstreams, asker): (&Upstreams, Asker),
    host: &str,
    name: &Repository,
    digest: Digest,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    // The same content may have been pushed here.
    if registry.0.images.contains(&digest) {
        return blobs::serve(&registry.0.images, digest, headers).await;
    }
    let found =
        upstreams.blob(asker, host, name, digest).await.map_err(|error| told(error, "BLOB_UNKNOWN"))?;
    match found {
        Blob::Here(store) => blobs::serve(&store, digest, headers).await,
        Blob::Coming(coming) => {
            let (mut response, part) = blobs::head(&digest, coming.size(), headers);
            if let Some((start, end)) = part {
                *response.body_mut() = Body::from_stream(coming.bytes(start, end).await?);
            }
            Ok(response)
        }
    }
}

/// What a node hears. That the hub is not let in is nothing the node can do anything about: it must not take it for its own
/// password.
fn told(error: UpstreamError, unknown: &'static str) -> ApiError {
    let message = error.to_string();
    match error {
        UpstreamError::Unknown(_) => ApiError::not_there("NAME_UNKNOWN", message),
        UpstreamError::Slow(_) => ApiError::upstream(StatusCode::GATEWAY_TIMEOUT, message),
        UpstreamError::Store(error) => error.into(),
        UpstreamError::Transfer { name, source } => match &*source {
            TransferError::NotFound { .. } => ApiError::not_there(unknown, format!("{name}: {source}")),
            TransferError::Timeout { .. } => {
                ApiError::upstream(StatusCode::GATEWAY_TIMEOUT, format!("{message}: {source}"))
            }
            _ => ApiError::upstream(
                StatusCode::BAD_GATEWAY,
                format!("{message}: {source}{}", UpstreamError::advice(&source)),
            ),
        },
    }
}
