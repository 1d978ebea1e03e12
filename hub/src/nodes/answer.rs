//! Refusals as nodes get them: a status code, one CamelCase reason, a sentence.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::json;

/// Why a request is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    reason: &'static str,
    message: String,
}

impl Refusal {
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, reason: "BadRequest", message: message.into() }
    }

    pub(super) fn unauthorized(message: impl Into<String>) -> Self {
        Self { status: StatusCode::UNAUTHORIZED, reason: "Unauthorized", message: message.into() }
    }

    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self { status: StatusCode::FORBIDDEN, reason: "Forbidden", message: message.into() }
    }

    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self { status: StatusCode::CONFLICT, reason: "AlreadyExists", message: message.into() }
    }

    pub(super) fn too_many() -> Self {
        let message = "too many wrong tokens from this address: wait a minute".to_owned();
        Self { status: StatusCode::TOO_MANY_REQUESTS, reason: "TooManyRequests", message }
    }

    /// The hub's own fault; the node should try again.
    pub(super) fn internal(error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        tracing::error!(error = %message, "a node's request failed");
        Self { status: StatusCode::SERVICE_UNAVAILABLE, reason: "ServiceUnavailable", message }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "reason": self.reason, "message": self.message }))).into_response()
    }
}
