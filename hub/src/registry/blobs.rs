//! Blobs: reading them whole or in part, and the uploads that make them.

use std::io::SeekFrom;
use std::path::Path;

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderName, StatusCode, header};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;
use tombolo_api::Digest;
use tombolo_oci::{Repository, Store};

use super::Registry;
use super::digests::{self, AnyDigest};
use super::error::ApiError;
use super::http::{CONTENT_DIGEST, Query, blocking, empty, parse_digest};

/// Read from disk in pieces of this size: one per client is in memory.
const PIECE: usize = 64 * 1024;

const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// Answers with a repository's blob, or with the one range asked for.
pub(super) async fn read(
    registry: &Registry,
    name: Repository,
    digest: Digest,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let here = registry.clone();
    if !blocking(move || Ok::<_, ApiError>(here.0.names.has_blob(&name, &digest))).await? {
        return Err(ApiError::blob_unknown(&digest));
    }
    serve(&registry.0.images, digest, headers).await
}

/// The same for one who will name the blob if it is here.
pub(super) async fn claim(
    registry: &Registry,
    name: Repository,
    digest: Digest,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let here = registry.clone();
    let found = blocking(move || {
        let _using = here.using();
        here.0.names.use_blob(&name, &digest)
    });
    if !found.await? {
        return Err(ApiError::blob_unknown(&digest));
    }
    serve(&registry.0.images, digest, headers).await
}

/// Answers with a blob of a store.
pub(super) async fn serve(images: &Store, digest: Digest, headers: &HeaderMap) -> Result<Response, ApiError> {
    let path = images.blob_path(&digest);
    let mut file = tokio::fs::File::open(&path).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => ApiError::blob_unknown(&digest),
        _ => ApiError::io("open", &path, error),
    })?;
    let size = file.metadata().await.map_err(|error| ApiError::io("read", &path, error))?.len();
    let (mut response, part) = head(&digest, size, headers);
    if let Some((start, end)) = part {
        file.seek(SeekFrom::Start(start)).await.map_err(|error| ApiError::io("read", &path, error))?;
        let content = ReaderStream::with_capacity(file.take(end - start), PIECE);
        *response.body_mut() = Body::from_stream(content);
    }
    Ok(response)
}

/// The head of an answer with a blob, and from which byte up to which the content is to follow, if any is.
pub(super) fn head(digest: &Digest, size: u64, headers: &HeaderMap) -> (Response, Option<(u64, u64)>) {
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let (start, end, status) = match range.map_or(Range::Ignored, |text| parse_range(text, size)) {
        Range::Ignored => (0, size, StatusCode::OK),
        Range::Part { start, end } => (start, end, StatusCode::PARTIAL_CONTENT),
        Range::Beyond => {
            let whole = format!("bytes */{size}");
            return (empty(StatusCode::RANGE_NOT_SATISFIABLE, &[(header::CONTENT_RANGE, whole)]), None);
        }
    };
    let mut headers = vec![
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, (end - start).to_string()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::ETAG, format!("\"{digest}\"")),
        (CONTENT_DIGEST, digest.to_string()),
    ];
    if status == StatusCode::PARTIAL_CONTENT {
        headers.push((header::CONTENT_RANGE, format!("bytes {start}-{}/{size}", end - 1)));
    }
    (empty(status, &headers), Some((start, end)))
}

/// Takes a blob from a repository that has no manifest which names it. Its content goes when no repository has it.
pub(super) async fn delete(
    registry: Registry,
    name: Repository,
    digest: Digest,
) -> Result<Response, ApiError> {
    blocking(move || {
        let _using = registry.using();
        if !registry.0.names.has_blob(&name, &digest) {
            return Err(ApiError::blob_unknown(&digest));
        }
        if registry.named_in(&name)?.contains(&digest) {
            return Err(ApiError::unsupported("a manifest names this blob: delete the manifest first"));
        }
        registry.0.names.remove_blob(&name, &digest).map_err(ApiError::from)
    })
    .await?;
    Ok(empty(StatusCode::ACCEPTED, &[]))
}

/// Begins an upload, takes a whole blob at once, or finds that the blob to be mounted is here: in the repository it is to
/// be mounted from, or in any where none is told.
pub(super) async fn begin(
    registry: Registry,
    name: Repository,
    query: Query,
    body: Body,
) -> Result<Response, ApiError> {
    if let Some(digest) = &query.mount {
        let (named, from) = (parse_digest(digest)?, query.from.as_deref().map(str::parse));
        let (here, to) = (registry.clone(), name.clone());
        let mounted = blocking(move || {
            let _using = here.using();
            let Some(digest) = here.0.names.resolve(&named)? else { return Ok(false) };
            let found = match from {
                None => true,
                Some(from) => from.is_ok_and(|from| here.0.names.has_blob(&from, &digest)),
            };
            if !found || !here.0.images.contains(&digest) {
                return Ok(false);
            }
            here.0.names.add_blob(&to, &digest).map(|()| true)
        });
        if mounted.await? {
            return Ok(created(&name, &named));
        }
    }
    let id = registry.0.uploads.begin(&name).await?;
    if let Some(digest) = &query.digest {
        let result = match parse_digest(digest) {
            Ok(digest) => complete(registry.clone(), &name, &id, digest, &HeaderMap::new(), body).await,
            Err(error) => Err(error),
        };
        registry.0.uploads.end(&id);
        return result;
    }
    Ok(at(&name, &id, 0, StatusCode::ACCEPTED))
}

/// How far an upload is.
pub(super) fn progress(registry: &Registry, name: &Repository, id: &str) -> Result<Response, ApiError> {
    let len = registry.0.uploads.find(name, id)?.len();
    Ok(at(name, id, len, StatusCode::NO_CONTENT))
}

/// Takes the next piece of an upload.
pub(super) async fn append(
    registry: &Registry,
    name: &Repository,
    id: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let mut upload = registry.0.uploads.find(name, id)?;
    let end = match follows(headers, upload.len()) {
        Ok(end) => end,
        Err(error) => return Ok(refused(error, name, id, upload.len())),
    };
    upload.append(body, end).await?;
    Ok(at(name, id, upload.len(), StatusCode::ACCEPTED))
}

/// Takes the last piece, if there is one, and makes the whole a blob.
pub(super) async fn finish(
    registry: Registry,
    name: Repository,
    id: &str,
    query: Query,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let digest = query.digest.ok_or_else(|| ApiError::digest_invalid("the parameter `digest` is missing"))?;
    complete(registry, &name, id, parse_digest(&digest)?, headers, body).await
}

pub(super) fn cancel(registry: &Registry, name: &Repository, id: &str) -> Result<Response, ApiError> {
    drop(registry.0.uploads.find(name, id)?);
    registry.0.uploads.end(id);
    Ok(empty(StatusCode::NO_CONTENT, &[]))
}

async fn complete(
    registry: Registry,
    name: &Repository,
    id: &str,
    named: AnyDigest,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let mut upload = registry.0.uploads.find(name, id)?;
    let end = match follows(headers, upload.len()) {
        Ok(end) => end,
        Err(error) => return Ok(refused(error, name, id, upload.len())),
    };
    upload.append(body, end).await?;
    let (uploads, to) = (registry.clone(), name.clone());
    let adopted = blocking(move || {
        let _using = registry.using();
        let digest = adopt(&registry, upload.path(), &named)?;
        registry.0.names.add_blob(&to, &digest).map_err(ApiError::from)
    })
    .await;
    // Right or wrong, it is over: more bytes do not make wrong ones right.
    uploads.0.uploads.end(id);
    adopted?;
    Ok(created(name, &named))
}

/// Makes a file a blob, if it is what it is named as; its sha256. Blocks.
fn adopt(registry: &Registry, path: &Path, named: &AnyDigest) -> Result<Digest, ApiError> {
    let other = match named {
        AnyDigest::Sha256(digest) => {
            registry.0.images.adopt(path, digest)?;
            return Ok(*digest);
        }
        AnyDigest::Sha512(other) => other,
    };
    let (digest, actual) = digests::of_file(path).map_err(|error| ApiError::io("read", path, error))?;
    if actual != *other {
        return Err(ApiError::digest_invalid(format!("expected {other}, but the content is {actual}")));
    }
    registry.0.images.adopt(path, &digest)?;
    registry.0.names.add_other_name(other, &digest)?;
    Ok(digest)
}

/// Checks that a piece begins where the upload ends; where it says that it ends itself. Pieces that do not say where they
/// begin are believed.
fn follows(headers: &HeaderMap, len: u64) -> Result<Option<u64>, ApiError> {
    let Some(range) = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok()) else {
        return Ok(None);
    };
    let told = range.trim_start_matches("bytes ").split('/').next().and_then(|told| told.split_once('-'));
    let told = told.and_then(|(start, last)| Some((start.parse::<u64>().ok()?, last.parse::<u64>().ok()?)));
    match told {
        Some((start, last)) if start == len && last >= start => Ok(Some(last.saturating_add(1))),
        _ => Err(ApiError::range_invalid(format!("the piece is {range:?}, but the next byte is {len}"))),
    }
}

/// A refused piece, with where the upload is: the client can go on from there.
fn refused(error: ApiError, name: &Repository, id: &str, len: u64) -> Response {
    let mut response = error.into_response();
    let place = at(name, id, len, StatusCode::ACCEPTED);
    response.headers_mut().extend(place.headers().clone());
    response
}

fn created(name: &Repository, digest: &AnyDigest) -> Response {
    let headers =
        [(header::LOCATION, format!("/v2/{name}/blobs/{digest}")), (CONTENT_DIGEST, digest.to_string())];
    empty(StatusCode::CREATED, &headers)
}

fn at(name: &Repository, id: &str, len: u64, status: StatusCode) -> Response {
    let headers = [
        (header::LOCATION, format!("/v2/{name}/blobs/uploads/{id}")),
        (header::RANGE, format!("0-{}", len.saturating_sub(1))),
        (UPLOAD_UUID, id.to_owned()),
    ];
    empty(status, &headers)
}

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Range {
    /// From `start` up to but not including `end`.
    Part { start: u64, end: u64 },
    /// Behind the last byte.
    Beyond,
    /// Not one range of bytes: the whole is a right answer.
    Ignored,
}

fn parse_range(text: &str, size: u64) -> Range {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Range::Ignored;
    };
    match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(start), Ok(last)) if start <= last => part(start, last.saturating_add(1), size),
        // Backwards: nothing is in it.
        (Ok(_), Ok(_)) => Range::Beyond,
        (Ok(start), Err(_)) if last.trim().is_empty() => part(start, size, size),
        (Err(_), Ok(count)) if first.trim().is_empty() => part(size.saturating_sub(count), size, size),
        _ => Range::Ignored,
    }
}

fn part(start: u64, end: u64, size: u64) -> Range {
    let end = end.min(size);
    if start < end { Range::Part { start, end } } else { Range::Beyond }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_the_blob() {
        for (text, expected) in [
            ("bytes=0-3", Range::Part { start: 0, end: 4 }),
            ("bytes=4-", Range::Part { start: 4, end: 10 }),
            ("bytes=8-99", Range::Part { start: 8, end: 10 }),
            ("bytes=-3", Range::Part { start: 7, end: 10 }),
            ("bytes=-99", Range::Part { start: 0, end: 10 }),
            ("bytes=10-", Range::Beyond),
            ("bytes=-0", Range::Beyond),
            ("bytes=3-2", Range::Beyond),
            ("bytes=0-1,3-4", Range::Ignored),
            ("items=0-1", Range::Ignored),
        ] {
            assert_eq!(parse_range(text, 10), expected, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Range::Beyond);
    }
}
