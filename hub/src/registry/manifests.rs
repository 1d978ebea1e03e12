//! Manifests: reading, pushing and deleting them, by tag and by digest.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, StatusCode, header};
use tombolo_api::Digest;
use tombolo_oci::image::{Document, MAX_DOCUMENT};
use tombolo_oci::{Repository, StoreError, Target};

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
    let headers = [
        (header::CONTENT_TYPE, media_type),
        (header::CONTENT_LENGTH, content.len().to_string()),
        (CONTENT_DIGEST, digest.to_string()),
        (header::ETAG, format!("\"{digest}\"")),
    ];
    let mut response = empty(StatusCode::OK, &headers);
    *response.body_mut() = Body::from(content);
    Ok(response)
}

/// Stores a manifest, once everything it names is here.
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
    let document =
        Document::parse(&digest, &content).map_err(|error| ApiError::manifest_invalid(error.to_string()))?;
    let media_type = media_type(headers, &content)?;
    let subject = referrers::subject_of(&content);
    let location = format!("/v2/{name}/manifests/{digest}");
    blocking(move || -> Result<(), ApiError> {
        let images = &registry.0.images;
        match document {
            Document::Manifest(manifest) => {
                let blobs = std::iter::once(&manifest.config).chain(&manifest.layers);
                for blob in blobs {
                    if !images.contains(&blob.digest) {
                        return Err(ApiError::manifest_blob_unknown(&blob.digest));
                    }
                }
            }
            Document::Index(entries) => {
                for entry in entries {
                    if registry.0.names.manifest(&name, &entry.manifest.digest)?.is_none() {
                        return Err(ApiError::manifest_blob_unknown(&entry.manifest.digest));
                    }
                }
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

/// What the client calls its manifest: by header, else by the document's own word.
fn media_type(headers: &HeaderMap, content: &[u8]) -> Result<String, ApiError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Own {
        media_type: Option<String>,
    }
    let header = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let own = serde_json::from_slice::<Own>(content).ok().and_then(|own| own.media_type);
    let media_type = own.or(header).ok_or_else(|| ApiError::manifest_invalid("it has no media type"))?;
    let fits =
        media_type.len() <= MEDIA_TYPE_MAX && media_type.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    if fits { Ok(media_type) } else { Err(ApiError::manifest_invalid("its media type is malformed")) }
}
