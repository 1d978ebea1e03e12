//! Refusals in the distribution specification's form: `{"errors":[{"code","message"}]}`.

use std::fmt::Display;
use std::io;
use std::path::Path;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use tombolo_api::Digest;
use tombolo_oci::StoreError;
use tombolo_oci::reference::ReferenceError;

/// Why a request was not done.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub(super) fn blob_unknown(digest: &impl Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", format!("blob {digest} is not here"))
    }

    pub(super) fn manifest_unknown(target: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", format!("manifest {target} is not here"))
    }

    pub(super) fn manifest_blob_unknown(digest: &impl Display) -> Self {
        let message = format!("the manifest names {digest}, which is not here: push it first");
        Self::new(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN", message)
    }

    pub(super) fn manifest_invalid(why: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", why)
    }

    pub(super) fn name_unknown(name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", format!("repository {name} is not here"))
    }

    pub(super) fn digest_invalid(why: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", why)
    }

    pub(super) fn tag_invalid(why: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "TAG_INVALID", why)
    }

    pub(super) fn upload_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "there is no such upload: begin again")
    }

    pub(super) fn upload_busy() -> Self {
        let message = "another request is sending to this upload: wait for it to end";
        Self::new(StatusCode::CONFLICT, "BLOB_UPLOAD_INVALID", message)
    }

    pub(super) fn too_many_uploads() -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "TOOMANYREQUESTS",
            "too many uploads at once: try again later",
        )
    }

    pub(super) fn no_chunks(digest: &Digest) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "UNSUPPORTED",
            format!("blob {digest} has no chunk list: fetch it whole"),
        )
    }

    pub(super) fn later(why: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", format!("{why}: try again"))
    }

    pub(super) fn too_slow() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "BLOB_UPLOAD_INVALID",
            "nothing more was sent: send the rest again",
        )
    }

    pub(super) fn too_large(limit: u64) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", format!("more than {limit} bytes"))
    }

    pub(super) fn size_invalid(why: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "SIZE_INVALID", why)
    }

    pub(super) fn page_invalid(why: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID", why)
    }

    pub(super) fn broken_body(why: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", format!("the body broke off: {why}"))
    }

    pub(super) fn range_invalid(why: impl Into<String>) -> Self {
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", why)
    }

    /// Another registry is needed, and is not at hand.
    pub(super) fn upstream(status: StatusCode, why: String) -> Self {
        Self::new(status, "UNAVAILABLE", why)
    }

    pub(super) fn not_there(code: &'static str, why: String) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, why)
    }

    pub(super) fn unsupported(why: &str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", why)
    }

    pub(super) fn unknown_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "there is nothing under this path")
    }

    pub(super) fn io(act: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                StoreError::DiskFull { path: path.into() }.into()
            }
            _ => StoreError::Io { act, path: path.into(), source }.into(),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Missing(digest) => Self::blob_unknown(&digest),
            StoreError::DigestMismatch { .. } | StoreError::SizeMismatch { .. } => {
                Self::digest_invalid(error.to_string())
            }
            StoreError::DiskFull { .. } => {
                tracing::error!(%error, "the registry cannot store");
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "UNKNOWN", error.to_string())
            }
            error => {
                tracing::error!(error = &error as &dyn std::error::Error, "the registry failed");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", error.to_string())
            }
        }
    }
}

impl From<ReferenceError> for ApiError {
    fn from(error: ReferenceError) -> Self {
        let code = match error {
            ReferenceError::Digest(_) => "DIGEST_INVALID",
            ReferenceError::Tag(_) => "TAG_INVALID",
            ReferenceError::Repository(_) | ReferenceError::Host(_) => "NAME_INVALID",
        };
        Self::new(StatusCode::BAD_REQUEST, code, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = serde_json::json!({"errors": [{"code": self.code, "message": self.message}]});
        (self.status, Json(error)).into_response()
    }
}
