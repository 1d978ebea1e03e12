//! Which manifests say that they belong to another: signatures, lists of contents, attestations. Listed by the digest
//! they name as their subject, as OCI's distribution specification 1.1 has it.

use std::collections::BTreeMap;

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, header};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tombolo_api::Digest;
use tombolo_oci::image::{MAX_DOCUMENT, OCI_INDEX};
use tombolo_oci::{Repository, StoreError};

use super::Registry;
use super::digests::AnyDigest;
use super::error::ApiError;
use super::http::blocking;

/// Tells a client that pushed a manifest with a subject that it will be listed.
pub(super) const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// Referrers in one answer, which says where the next are. Each brings its annotations, so their manifests together are
/// bounded too, as the index is, to [`MAX_DOCUMENT`] bytes.
const REFERRERS_MAX: usize = 500;

/// A manifest as far as it refers to another.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Referring {
    artifact_type: Option<String>,
    config: Option<Config>,
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    media_type: String,
}

/// A referrer as the index lists it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: Digest,
    size: usize,
    #[serde(skip_serializing_if = "String::is_empty")]
    artifact_type: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

/// Answers with an index of what refers to `subject`; an empty one if nothing does. `last` is where an earlier one ended.
pub(super) async fn list(
    registry: Registry,
    name: Repository,
    subject: AnyDigest,
    (artifact_type, last): (Option<String>, Option<Digest>),
) -> Result<Response, ApiError> {
    let (wanted, path) = (artifact_type.clone(), format!("/v2/{name}/referrers/{subject}"));
    let (found, end) = blocking(move || -> Result<_, StoreError> {
        let mut found = Vec::new();
        let mut bytes = 0;
        let mut seen = None;
        for digest in registry.0.names.referrers(&name, &subject)? {
            if last.is_some_and(|last| digest <= last) {
                continue;
            }
            let Some(media_type) = registry.0.names.manifest(&name, &digest)? else { continue };
            let content = match registry.0.images.read_blob(&digest, MAX_DOCUMENT) {
                Err(StoreError::Missing(_)) => continue,
                content => content?,
            };
            bytes += content.len() as u64;
            if found.len() == REFERRERS_MAX || bytes > MAX_DOCUMENT {
                return Ok((found, seen));
            }
            seen = Some(digest);
            let descriptor = descriptor(digest, media_type, &content);
            if wanted.as_ref().is_none_or(|wanted| *wanted == descriptor.artifact_type) {
                found.push(descriptor);
            }
        }
        Ok((found, None))
    })
    .await?;
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found});
    let mut response = axum::Json(index).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(OCI_INDEX));
    if let Some(end) = end {
        let filter = artifact_type.iter().map(|wanted| ("artifactType", wanted.as_str()));
        let query: String = filter.chain([("last", end.to_string().as_str())]).map(parameter).collect();
        let next = format!("<{path}?{}>; rel=\"next\"", query.trim_start_matches('&'));
        response.headers_mut().insert(header::LINK, next.parse().expect("it is plain ASCII"));
    }
    if artifact_type.is_some() {
        response.headers_mut().insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    Ok(response)
}

/// A parameter of a query, after others.
fn parameter((name, value): (&str, &str)) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte);
    let encode = |byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    format!("&{name}={}", value.bytes().map(encode).collect::<String>())
}

fn descriptor(digest: Digest, media_type: String, content: &[u8]) -> Descriptor {
    let referring: Referring = serde_json::from_slice(content).unwrap_or_default();
    let of_config = || referring.config.map(|config| config.media_type).unwrap_or_default();
    let artifact_type = referring.artifact_type.filter(|it| !it.is_empty()).unwrap_or_else(of_config);
    Descriptor { media_type, digest, size: content.len(), artifact_type, annotations: referring.annotations }
}
