//! Answers: objects with their warnings, and refusals as `Status` objects.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use tombolo_api::meta::{Status, StatusCause, StatusDetails};

use crate::catalog::{VersionError, WriteError};

/// Warnings sent with one answer; clients print them line by line.
const WARNINGS_MAX: usize = 16;

/// A refusal on its way to the client.
#[derive(Debug)]
pub(super) struct Refused(pub(super) Box<Status>);

/// What handlers return.
pub(super) type Answer = Result<Response, Refused>;

impl From<Box<Status>> for Refused {
    fn from(status: Box<Status>) -> Self {
        Self(status)
    }
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self(Box::new(status))
    }
}

impl From<WriteError> for Refused {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Refused(status) => Self(status),
            WriteError::Store(error) => {
                tracing::error!(%error, "a change could not be kept");
                Status::internal_error(&format!("the change could not be kept: {error}")).into()
            }
            WriteError::Stopped => Status::failure(503, "ServiceUnavailable", "the hub is stopping").into(),
        }
    }
}

impl From<VersionError> for Refused {
    fn from(error: VersionError) -> Self {
        let message = error.to_string();
        match error {
            VersionError::Expired(_) => Status::failure(410, "Expired", message).into(),
            VersionError::TooLarge { .. } => {
                let cause = StatusCause {
                    reason: "ResourceVersionTooLarge".into(),
                    message: "Too large resource version".into(),
                    field: String::new(),
                };
                let details = StatusDetails { causes: vec![cause], ..StatusDetails::default() };
                Status { details: Some(details), ..Status::failure(504, "Timeout", message) }.into()
            }
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let code = StatusCode::from_u16(self.0.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (code, Json(*self.0)).into_response()
    }
}

/// An object, or a list, or a `Status` of success.
pub(super) fn json(code: StatusCode, object: &impl Serialize) -> Response {
    (code, Json(object)).into_response()
}

/// Adds warnings, as Kubernetes does: one header each.
pub(super) fn with_warnings(mut response: Response, warnings: &[String]) -> Response {
    for warning in warnings.iter().take(WARNINGS_MAX) {
        let quoted: String = warning.chars().flat_map(quote).collect();
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    response
}

pub(super) async fn method_not_allowed() -> Refused {
    Status::method_not_allowed().into()
}

fn quote(c: char) -> impl Iterator<Item = char> {
    let escape = matches!(c, '"' | '\\').then_some('\\');
    escape.into_iter().chain(Some(if c.is_ascii_graphic() || c == ' ' { c } else { '?' }))
}
