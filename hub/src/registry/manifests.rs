//! Manifests: reading, pushing and deleting them, by tag and by digest.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, StatusCode, header};
use tombolo_api::Digest;
use tombolo_oci::image::MAX_DOCUMENT;
use tombolo_oci::{Repository, StoreError, Target};

use super::contents::Contents;
use super::error::ApiError;
use super::http::{CONTENT_DIGEST, blocking, empty};
use super::{Registry, referrers};

/// Longest wait for a whole manifest: four megabytes over a poor link.
const BODY_DEADLINE: Duration = Duration::from_secs(60);

/// Longest media type that is kept.
const MEDIA_TYPE_MAX: usize = 255;

/// Answers with a manifest; the server leaves the content out for HEAD.
pub(super) async fn read(registry: Registry, name: Repository, target: Target) -> Result<Response, ApiError> {
    let unknown = ApiError::manifest_unknown(&target.to_string());
    let found = blocking(move || -> Result<_, StoreError> {
        let digest = match &target {
            Target::Digest(digest) => Some(*digest),
            Target::Tag(tag) => registry.tagged(&name, tag)?,
        };
        let Some(digest) = digest else { return Ok(None) };
        let Some(media_type) = registry.0.names.manifest(&name, &digest)? else { return Ok(None) };
        match registry.0.images.read_blob(&digest, MAX_DOCUMENT) {
            Ok(content) => Ok(Some((digest, media_type, content))),
            Err(StoreError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    })
    .await?;
    let (digest, media_type, content) = found.ok_or(unknown)?;
    Ok(answer(&digest, media_type, content))
}

/// An answer with a manifest.
pub(super) fn answer(digest: &Digest, media_type: String, content: Vec<u8>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, media_type),
        (header::CONTENT_LENGTH, content.len().to_string()),
        (CONTENT_DIGEST, digest.to_string()),
        (header::ETAG, format!("\"{digest}\"")),
    ];
    let mut response = empty(StatusCode::OK, &headers);
    *response.body_mut() = Body::from(content);
    response
}

/// Stores a manifest, once its blobs are here. The manifests that an index names may be elsewhere: a site that needs one
/// platform mirrors that one, under the digest of all.
pub(super) async fn put(
    registry: Registry,
    name: Repository,
    target: Target,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let limit = usize::try_from(MAX_DOCUMENT).expect("a few megabytes");
    let read = tokio::time::timeout(BODY_DEADLINE, axum::body::to_bytes(body, limit)).await;
    let content = read.map_err(|_| ApiError::too_slow())?.map_err(|_| ApiError::too_large(MAX_DOCUMENT))?;
    let digest = Digest::of(&content);
    if let Some(named) = target.digest().filter(|named| *named != digest) {
        return Err(ApiError::digest_invalid(format!("the path says {named}, but the content is {digest}")));
    }
    let contents =
        Contents::parse(&digest, &content).map_err(|error| ApiError::manifest_invalid(error.to_string()))?;
    let media_type = media_type(headers, &contents)?;
    let subject = contents.subject;
    let location = format!("/v2/{name}/manifests/{digest}");
    blocking(move || -> Result<(), ApiError> {
        let images = &registry.0.images;
        let _using = registry.using();
        for blob in &contents.blobs {
            if !registry.0.names.use_blob(&name, blob)? || !images.contains(blob) {
                return Err(ApiError::manifest_blob_unknown(blob));
            }
        }
        images.put(&content)?;
        registry.0.names.add_manifest(&name, &digest, &media_type)?;
        if let Some(subject) = &subject {
            registry.0.names.add_referrer(&name, subject, &digest)?;
        }
        if let Target::Tag(tag) = &target {
            registry.0.names.set_tag(&name, tag, &digest)?;
        }
        registry.changed();
        Ok(())
    })
    .await?;
    let mut headers = vec![(header::LOCATION, location), (CONTENT_DIGEST, digest.to_string())];
    headers.extend(subject.map(|subject| (referrers::SUBJECT, subject.to_string())));
    Ok(empty(StatusCode::CREATED, &headers))
}

/// Removes a tag, or a manifest with all its tags. Content stays: other repositories may use it.
pub(super) async fn delete(
    registry: Registry,
    name: Repository,
    target: Target,
) -> Result<Response, ApiError> {
    let unknown = ApiError::manifest_unknown(&target.to_string());
    let removed = blocking(move || -> Result<bool, StoreError> {
        let removed = match &target {
            Target::Tag(tag) => registry.0.names.remove_tag(&name, tag)?,
            Target::Digest(digest) => registry.0.names.remove_manifest(&name, digest)?,
        };
        registry.changed();
        Ok(removed)
    })
    .await?;
    if removed { Ok(empty(StatusCode::ACCEPTED, &[])) } else { Err(unknown) }
}

/// What a manifest is: by its own word, else by the client's, else by its shape.
fn media_type(headers: &HeaderMap, contents: &Contents) -> Result<String, ApiError> {
    let header = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = match header {
        Some(header) if !contents.states_type => header.to_owned(),
        _ => contents.media_type.clone(),
    };
    let fits =
        media_type.len() <= MEDIA_TYPE_MAX && media_type.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    if fits { Ok(media_type) } else { Err(ApiError::manifest_invalid("its media type is malformed")) }
}
