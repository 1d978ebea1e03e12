//! Manifests: reading, pushing and deleting them, by tag and by digest.

use std::fmt;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderName, StatusCode, header};
use tombolo_api::Digest;
use tombolo_oci::image::MAX_DOCUMENT;
use tombolo_oci::{Repository, StoreError, Tag};

use super::contents::Contents;
use super::digests::AnyDigest;
use super::error::ApiError;
use super::http::{CONTENT_DIGEST, blocking, empty, parse_digest};
use super::{Registry, referrers};

/// Longest wait for a whole manifest: four megabytes over a poor link.
const BODY_DEADLINE: Duration = Duration::from_secs(60);

/// Longest media type that is kept.
const MEDIA_TYPE_MAX: usize = 255;

/// Most tags that one push may set.
const TAGS_MAX: usize = 100;

/// Tells a client which of the tags that it gave beside the path were set.
const TAG: HeaderName = HeaderName::from_static("oci-tag");

/// Which manifest a client means.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Tag(Tag),
    Digest(AnyDigest),
}

impl Target {
    pub(super) fn parse(text: &str) -> Result<Self, ApiError> {
        match text.contains(':') {
            true => parse_digest(text).map(Self::Digest),
            false => Ok(Self::Tag(text.parse()?)),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag.as_str()),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// Answers with a manifest; the server leaves the content out for HEAD.
pub(super) async fn read(registry: Registry, name: Repository, target: Target) -> Result<Response, ApiError> {
    let unknown = ApiError::manifest_unknown(&target.to_string());
    let found = blocking(move || -> Result<_, StoreError> {
        let names = &registry.0.names;
        let named = match target {
            Target::Digest(digest) => Some(digest),
            Target::Tag(tag) => names.tag_as_named(&name, &tag)?,
        };
        let Some(named) = named else { return Ok(None) };
        let Some(digest) = names.resolve(&named)? else { return Ok(None) };
        let Some(media_type) = names.manifest(&name, &digest)? else { return Ok(None) };
        match registry.0.images.read_blob(&digest, MAX_DOCUMENT) {
            Ok(content) => Ok(Some((named, media_type, content))),
            Err(StoreError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    })
    .await?;
    let (digest, media_type, content) = found.ok_or(unknown)?;
    Ok(answer(&digest, media_type, content))
}

/// An answer with a manifest.
pub(super) fn answer(digest: &impl fmt::Display, media_type: String, content: Vec<u8>) -> Response {
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
    (target, tags): (Target, Vec<Tag>),
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    if tags.len() > TAGS_MAX {
        return Err(ApiError::tag_invalid(format!("more than {TAGS_MAX} tags at once")));
    }
    let limit = usize::try_from(MAX_DOCUMENT).expect("a few megabytes");
    let read = tokio::time::timeout(BODY_DEADLINE, axum::body::to_bytes(body, limit)).await;
    let content = read.map_err(|_| ApiError::too_slow())?.map_err(|_| ApiError::too_large(MAX_DOCUMENT))?;
    let (named, tags, beside) = match target {
        Target::Tag(tag) => (Digest::of(&content).into(), vec![tag], 0),
        Target::Digest(named) if !named.is_of(&content) => {
            return Err(ApiError::digest_invalid(format!(
                "the path says {named}, but the content is another"
            )));
        }
        Target::Digest(named) => (named, tags.clone(), tags.len()),
    };
    let header = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (to, set) = (name.clone(), tags.clone());
    let subject = blocking(move || store(&registry, &to, &named, &set, header.as_deref(), &content)).await?;
    let location = format!("/v2/{name}/manifests/{named}");
    let mut headers = vec![(header::LOCATION, location), (CONTENT_DIGEST, named.to_string())];
    headers.extend(subject.map(|subject| (referrers::SUBJECT, subject.to_string())));
    let mut response = empty(StatusCode::CREATED, &headers);
    for tag in &tags[..beside] {
        response.headers_mut().append(TAG, tag.as_str().parse().expect("tags are plain ASCII"));
    }
    Ok(response)
}

/// Checks a manifest and keeps it under its names; what it says it belongs to. Blocks.
fn store(
    registry: &Registry,
    name: &Repository,
    named: &AnyDigest,
    tags: &[Tag],
    header: Option<&str>,
    content: &[u8],
) -> Result<Option<AnyDigest>, ApiError> {
    let digest = Digest::of(content);
    let (images, names) = (&registry.0.images, &registry.0.names);
    let _using = registry.using();
    let contents = registry.contents(&digest, content)?;
    let contents = contents.map_err(|error| ApiError::manifest_invalid(error.to_string()))?;
    let media_type = media_type(header, &contents)?;
    if let Some(unknown) = contents.unknown.first() {
        return Err(ApiError::manifest_blob_unknown(unknown));
    }
    for blob in &contents.blobs {
        if !names.use_blob(name, blob)? || !images.contains(blob) {
            return Err(ApiError::manifest_blob_unknown(blob));
        }
    }
    images.put(content)?;
    if let AnyDigest::Sha512(other) = named {
        names.add_other_name(other, &digest)?;
    }
    names.add_manifest(name, &digest, &media_type)?;
    if let Some(subject) = &contents.subject {
        names.add_referrer(name, subject, &digest)?;
    }
    for tag in tags {
        names.set_tag(name, tag, named)?;
    }
    registry.changed();
    Ok(contents.subject)
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
            Target::Digest(named) => match registry.0.names.resolve(named)? {
                Some(digest) => registry.0.names.remove_manifest(&name, &digest)?,
                None => false,
            },
        };
        registry.changed();
        Ok(removed)
    })
    .await?;
    if removed { Ok(empty(StatusCode::ACCEPTED, &[])) } else { Err(unknown) }
}

/// What a manifest is: by its own word, else by the client's, else by its shape.
fn media_type(header: Option<&str>, contents: &Contents) -> Result<String, ApiError> {
    let media_type = match header {
        Some(header) if !contents.states_type => header.to_owned(),
        _ => contents.media_type.clone(),
    };
    let fits =
        media_type.len() <= MEDIA_TYPE_MAX && media_type.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    if fits { Ok(media_type) } else { Err(ApiError::manifest_invalid("its media type is malformed")) }
}
