//! The registry's paths: takes `/v2/…` apart and hands each request to what it is about.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use serde::Deserialize;
use serde_json::{Value, json};
use tombolo_api::Digest;
use tombolo_oci::reference::ReferenceError;
use tombolo_oci::{HUB_HOST, Repository, StoreError, Tag};

use super::digests::{AnyDigest, AnyDigestError};
use super::error::ApiError;
use super::manifests::Target;
use super::names::place;
use super::{Registry, blobs, chunks, forward, leftover, manifests, referrers, through};
use crate::upstream::{Asker, Upstreams};

/// Names the content of a response.
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// Tells clients which protocol this is.
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// Names listed in one answer unless the client asks for fewer.
const LISTED_MAX: usize = 1000;

/// What a listener lets its clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadWrite,
    ReadOnly,
}

/// Serves `/v2/`.
pub(crate) fn router(registry: Registry, upstreams: Upstreams, access: Access) -> Router {
    let serve = move |State((registry, upstreams)): State<(Registry, Upstreams)>, request: Request| async move {
        let writes = !is_read(request.method()) && !chunks::is_read(request.uri().path());
        let (request, left) = leftover::lend(request);
        let mut response = if writes && access == Access::ReadOnly {
            drop(request);
            ApiError::unsupported("this listener is for pulling only: push to the hub's API listener")
                .into_response()
        } else {
            handle(registry, (upstreams, access), request).await.unwrap_or_else(ApiError::into_response)
        };
        response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        if let Some(left) = left {
            left.settle(&mut response).await;
        }
        response
    };
    Router::new()
        .route("/v2", any(serve))
        .route("/v2/", any(serve))
        .route("/v2/{*path}", any(serve))
        .with_state((registry, upstreams))
}

/// Query parameters of all requests.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Query {
    pub(super) digest: Option<String>,
    pub(super) mount: Option<String>,
    pub(super) from: Option<String>,
    #[serde(rename = "artifactType")]
    artifact_type: Option<String>,
    n: Option<usize>,
    last: Option<String>,
    /// The registry whose image is asked for, as mirrors are asked.
    ns: Option<String>,
}

/// What a path is about.
#[derive(Debug, PartialEq, Eq)]
enum Subject<'a> {
    Base,
    Catalog,
    Manifest(&'a str, &'a str),
    Blob(&'a str, &'a str),
    Chunks(&'a str, &'a str),
    NewUpload(&'a str),
    Upload(&'a str, &'a str),
    Tags(&'a str),
    Referrers(&'a str, &'a str),
}

async fn handle(
    registry: Registry,
    (upstreams, access): (Upstreams, Access),
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let subject = subject(parts.uri.path()).ok_or_else(ApiError::unknown_path)?;
    let query = axum::extract::Query::<Query>::try_from_uri(&parts.uri)
        .map_err(|error| ApiError::page_invalid(error.body_text()))?
        .0;
    if let Some(host) = query.ns.as_deref().filter(|host| *host != HUB_HOST) {
        return other(&registry, (&upstreams, access), host, subject, &parts).await;
    }
    if !upstreams.is_external() {
        return own(registry, subject, query, &parts, body).await;
    }
    match subject {
        Subject::Manifest(_, target) | Subject::Blob(_, target)
            if parts.method == Method::GET && target.starts_with("sha256:") =>
        {
            other(&registry, (&upstreams, access), HUB_HOST, subject, &parts).await
        }
        Subject::Chunks(..) => other(&registry, (&upstreams, access), HUB_HOST, subject, &parts).await,
        _ => {
            let is_manifest = matches!(subject, Subject::Manifest(..));
            forward::pass_on(&registry, &upstreams, &parts, is_manifest, body).await
        }
    }
}

/// What is the hub's own.
async fn own(
    registry: Registry,
    subject: Subject<'_>,
    query: Query,
    parts: &Parts,
    body: Body,
) -> Result<Response, ApiError> {
    let (method, headers) = (&parts.method, &parts.headers);
    match subject {
        Subject::Base if is_read(method) => Ok(axum::Json(json!({})).into_response()),
        Subject::Catalog if is_read(method) => catalog(registry, query).await,
        Subject::Tags(name) if is_read(method) => tags(registry, name.parse()?, query).await,
        Subject::Referrers(name, digest) if is_read(method) => {
            let last = query.last.as_deref().map(parse_sha256).transpose()?;
            let what = (query.artifact_type, last);
            referrers::list(registry, name.parse()?, parse_digest(digest)?, what).await
        }
        Subject::Manifest(name, target) => {
            let (name, target): (Repository, _) = (name.parse()?, target_of(method, target)?);
            match *method {
                Method::GET | Method::HEAD => manifests::read(registry, name, target).await,
                Method::PUT => {
                    let tags = tags_of(&parts.uri)?;
                    manifests::put(registry, name, (target, tags), headers, body).await
                }
                Method::DELETE => manifests::delete(registry, name, target).await,
                _ => Err(not_allowed()),
            }
        }
        Subject::Blob(name, digest) => {
            let (name, named) = (name.parse::<Repository>()?, parse_digest(digest)?);
            let here = registry.clone();
            let digest = blocking(move || here.0.names.resolve(&named)).await?;
            let digest = digest.ok_or_else(|| ApiError::blob_unknown(&named))?;
            let answer = match *method {
                Method::GET => blobs::read(&registry, name, digest, headers).await,
                // What a client is told is here it may name, without pushing it.
                Method::HEAD => blobs::claim(&registry, name, digest, headers).await,
                Method::DELETE => blobs::delete(registry, name, digest).await,
                _ => Err(not_allowed()),
            };
            answer.map(|answer| by_name(&named, answer))
        }
        Subject::Chunks(name, digest) => {
            let (name, digest) = (name.parse::<Repository>()?, parse_sha256(digest)?);
            match *method {
                Method::GET => chunks::list(registry, name, digest).await,
                Method::POST => chunks::select(registry, name, digest, body).await,
                _ => Err(not_allowed()),
            }
        }
        Subject::NewUpload(name) if *method == Method::POST => {
            blobs::begin(registry, name.parse()?, query, body).await
        }
        Subject::Upload(name, id) => {
            let name = name.parse()?;
            match *method {
                Method::GET | Method::HEAD => blobs::progress(&registry, &name, id),
                Method::PATCH => blobs::append(&registry, &name, id, headers, body).await,
                Method::PUT => blobs::finish(registry, name, id, query, headers, body).await,
                Method::DELETE => blobs::cancel(&registry, &name, id),
                _ => Err(not_allowed()),
            }
        }
        _ => Err(not_allowed()),
    }
}

/// What is another registry's.
async fn other(
    registry: &Registry,
    (upstreams, access): (&Upstreams, Access),
    host: &str,
    subject: Subject<'_>,
    parts: &Parts,
) -> Result<Response, ApiError> {
    let asker = if access == Access::ReadWrite { Asker::Person } else { Asker::Node };
    let upstreams = (upstreams, asker);
    match subject {
        // Their layers are had whole.
        Subject::Chunks(_, digest) => Err(ApiError::blob_unknown(&parse_sha256(digest)?)),
        _ if !is_read(&parts.method) => {
            Err(ApiError::unsupported("another registry's images are only read here: push them there"))
        }
        Subject::Manifest(name, target) => {
            through::manifest(upstreams, host, &name.parse()?, target.parse()?).await
        }
        Subject::Blob(name, digest) => {
            let (name, digest) = (name.parse()?, parse_sha256(digest)?);
            through::blob(registry, upstreams, host, &name, digest, &parts.headers).await
        }
        _ => Err(not_allowed()),
    }
}

fn subject(path: &str) -> Option<Subject<'_>> {
    let path = path.strip_prefix("/v2")?;
    let path = path.strip_prefix('/').unwrap_or(path);
    if path.is_empty() {
        return Some(Subject::Base);
    }
    if path == "_catalog" {
        return Some(Subject::Catalog);
    }
    if let Some(name) = path.strip_suffix("/tags/list") {
        return Some(Subject::Tags(name));
    }
    if let Some(name) = path.strip_suffix("/blobs/uploads/").or(path.strip_suffix("/blobs/uploads")) {
        return Some(Subject::NewUpload(name));
    }
    let (rest, last) = path.rsplit_once('/')?;
    if let Some(name) = rest.strip_suffix("/blobs/uploads") {
        return Some(Subject::Upload(name, last));
    }
    if let Some(name) = rest.strip_suffix("/_tombolo/chunks") {
        return Some(Subject::Chunks(name, last));
    }
    if let Some(name) = rest.strip_suffix("/manifests") {
        return Some(Subject::Manifest(name, last));
    }
    if let Some(name) = rest.strip_suffix("/referrers") {
        return Some(Subject::Referrers(name, last));
    }
    rest.strip_suffix("/blobs").map(|name| Subject::Blob(name, last))
}

async fn tags(registry: Registry, name: Repository, query: Query) -> Result<Response, ApiError> {
    let repository = name.clone();
    let all = blocking(move || registry.0.names.list_tags(&repository)).await?;
    let all = all.ok_or_else(|| ApiError::name_unknown(name.as_str()))?;
    let path = format!("/v2/{name}/tags/list");
    Ok(page(&path, &query, all, |page| json!({"name": name.as_str(), "tags": page})))
}

/// The repositories that have a manifest: not of the specification, but of registries before it, and tools ask for it.
async fn catalog(registry: Registry, query: Query) -> Result<Response, ApiError> {
    let all = blocking(move || -> Result<_, StoreError> {
        let names = &registry.0.names;
        let mut all = Vec::new();
        for repository in names.repositories()? {
            if !names.manifests_of(&repository)?.is_empty() {
                all.push(repository.as_str().to_owned());
            }
        }
        all.sort_by_cached_key(|name| place(name));
        Ok(all)
    });
    Ok(page("/v2/_catalog", &query, all.await?, |page| json!({"repositories": page})))
}

/// The part of a list, in the order of [`place`], that a client asks for, and where the rest is.
fn page(path: &str, query: &Query, all: Vec<String>, answer: impl FnOnce(&[String]) -> Value) -> Response {
    let after = query.last.as_deref().map(place);
    let rest: Vec<String> =
        all.into_iter().filter(|name| after.as_ref().is_none_or(|after| place(name) > *after)).collect();
    let limit = query.n.unwrap_or(LISTED_MAX).min(LISTED_MAX);
    let (page, more) = rest.split_at(limit.min(rest.len()));
    let mut response = axum::Json(answer(page)).into_response();
    if let (Some(last), false) = (page.last(), more.is_empty()) {
        let next = format!("<{path}?n={limit}&last={last}>; rel=\"next\"");
        response.headers_mut().insert(header::LINK, next.parse().expect("names and tags are plain ASCII"));
    }
    response
}

/// Runs what blocks on the disk elsewhere.
pub(super) async fn blocking<T: Send + 'static, E: Into<ApiError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(panic) => {
            Err(ApiError::io("finish work on", "the registry".as_ref(), std::io::Error::other(panic)))
        }
    }
}

/// A response without content.
pub(super) fn empty(status: StatusCode, headers: &[(HeaderName, String)]) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    for (name, value) in headers {
        let value = value.parse().expect("digests, names and numbers are plain ASCII");
        response.headers_mut().insert(name.clone(), value);
    }
    response
}

/// Which manifest a path means. What no tag can be called is not here.
fn target_of(method: &Method, text: &str) -> Result<Target, ApiError> {
    match Target::parse(text) {
        Err(_) if *method != Method::PUT && !text.contains(':') => Err(ApiError::manifest_unknown(text)),
        target => target,
    }
}

/// Who asked by a digest is answered with the same.
fn by_name(named: &AnyDigest, mut response: Response) -> Response {
    if let (AnyDigest::Sha512(_), Some(digest)) = (named, response.headers_mut().get_mut(CONTENT_DIGEST)) {
        *digest = named.to_string().parse().expect("digests are plain ASCII");
    }
    response
}

/// The tags that a manifest is to get beside the digest in its path.
fn tags_of(uri: &Uri) -> Result<Vec<Tag>, ApiError> {
    let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|error| ApiError::tag_invalid(error.body_text()))?;
    let tags = pairs.0.iter().filter(|(key, _)| key == "tag").map(|(_, tag)| tag.parse());
    Ok(tags.collect::<Result<_, ReferenceError>>()?)
}

pub(super) fn parse_digest(text: &str) -> Result<AnyDigest, ApiError> {
    text.parse().map_err(|error: AnyDigestError| ApiError::digest_invalid(error.to_string()))
}

/// Where nothing else has a meaning: between hub and nodes, and of other registries.
fn parse_sha256(text: &str) -> Result<Digest, ApiError> {
    text.parse()
        .map_err(|error: tombolo_api::digest::DigestError| ApiError::digest_invalid(error.to_string()))
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn not_allowed() -> ApiError {
    ApiError::unsupported("this method means nothing here")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_their_end() {
        for (path, expected) in [
            ("/v2", Some(Subject::Base)),
            ("/v2/", Some(Subject::Base)),
            ("/v2/a/manifests/latest", Some(Subject::Manifest("a", "latest"))),
            ("/v2/a/blobs/b/manifests/x", Some(Subject::Manifest("a/blobs/b", "x"))),
            ("/v2/a/b/blobs/sha256:0", Some(Subject::Blob("a/b", "sha256:0"))),
            ("/v2/a/blobs/uploads/", Some(Subject::NewUpload("a"))),
            ("/v2/a/blobs/uploads", Some(Subject::NewUpload("a"))),
            ("/v2/a/b/blobs/uploads/7", Some(Subject::Upload("a/b", "7"))),
            ("/v2/a/b/tags/list", Some(Subject::Tags("a/b"))),
            ("/v2/a/b/referrers/sha256:0", Some(Subject::Referrers("a/b", "sha256:0"))),
            ("/v2/a/b/_tombolo/chunks/sha256:0", Some(Subject::Chunks("a/b", "sha256:0"))),
            ("/v2/_catalog", Some(Subject::Catalog)),
            ("/v2/_other", None),
            ("/v2/a/other/x", None),
        ] {
            assert_eq!(subject(path), expected, "{path}");
        }
    }
}
