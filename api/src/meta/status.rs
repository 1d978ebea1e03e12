//! The API's answer when it has no resource to answer with, and the texts of every refusal clients know by heart.
//! Knows no HTTP library: the code is a number.

use serde::{Deserialize, Serialize};

/// `metav1.Status`. Its `code` is the HTTP status of the response that carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{message}")]
pub struct Status {
    pub kind: String,
    pub api_version: String,
    #[serde(default)]
    pub metadata: StatusMeta,
    /// `Success` or `Failure`.
    pub status: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<StatusDetails>,
    pub code: u16,
}

/// Always empty for us; clients expect the member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusMeta {}

/// Which resource a status is about, and what was wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusDetails {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The resource's plural for what is not there or conflicts, its kind for what is invalid: Kubernetes' custom.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<StatusCause>,
}

/// One thing that was wrong, by field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusCause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

impl Status {
    /// A refusal without details.
    pub fn failure(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self {
            kind: "Status".into(),
            api_version: "v1".into(),
            metadata: StatusMeta {},
            status: "Failure".into(),
            message: message.into(),
            reason: reason.into(),
            details: None,
            code,
        }
    }

    /// What a successful deletion answers when the object is gone at once.
    pub fn deleted(name: &str, resource: &str, group: &str, uid: &str) -> Self {
        let details = StatusDetails { uid: uid.into(), ..details(name, group, resource) };
        Self { status: "Success".into(), details: Some(details), ..Self::failure(200, "", "") }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::failure(400, "BadRequest", message)
    }

    /// `resource` is the plural, `services`; `group` is empty for core resources such as `namespaces`.
    pub fn not_found(resource: &str, group: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", qualified(resource, group));
        Self { details: Some(details(name, group, resource)), ..Self::failure(404, "NotFound", message) }
    }

    pub fn namespace_not_found(namespace: &str) -> Self {
        Self::not_found("namespaces", "", namespace)
    }

    pub fn already_exists(resource: &str, group: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", qualified(resource, group));
        Self { details: Some(details(name, group, resource)), ..Self::failure(409, "AlreadyExists", message) }
    }

    /// The sent `resourceVersion` is not the stored one.
    pub fn conflict(resource: &str, group: &str, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict_because(resource, group, name, why)
    }

    /// The sent `uid` is not the stored one, or a precondition does not hold.
    pub fn conflict_because(resource: &str, group: &str, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", qualified(resource, group));
        Self { details: Some(details(name, group, resource)), ..Self::failure(409, "Conflict", message) }
    }

    /// `kind` is the singular, `Service`.
    pub fn invalid(kind: &str, group: &str, name: &str, causes: Vec<StatusCause>) -> Self {
        let each: Vec<String> =
            causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        let all = if let [one] = each.as_slice() { one.clone() } else { format!("[{}]", each.join(", ")) };
        let message = format!("{} \"{name}\" is invalid: {all}", qualified(kind, group));
        let details = StatusDetails { causes, ..details(name, group, kind) };
        Self { details: Some(details), ..Self::failure(422, "Invalid", message) }
    }

    /// A JSON patch that does not apply to the object.
    pub fn unprocessable_patch() -> Self {
        let message = "the server rejected our request due to an error in our request";
        Self { details: Some(StatusDetails::default()), ..Self::failure(422, "Invalid", message) }
    }

    /// `accepted` lists the media types the request could have had.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::failure(415, "UnsupportedMediaType", message)
    }

    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self { details: Some(StatusDetails::default()), ..Self::failure(405, "MethodNotAllowed", message) }
    }

    pub fn unauthorized() -> Self {
        Self::failure(401, "Unauthorized", "Unauthorized")
    }

    pub fn too_large(limit: u64) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::failure(413, "RequestEntityTooLarge", message)
    }

    pub fn internal_error(why: &str) -> Self {
        let message = format!("Internal error occurred: {why}");
        let cause = StatusCause { message: why.into(), ..StatusCause::default() };
        let details = StatusDetails { causes: vec![cause], ..StatusDetails::default() };
        Self { details: Some(details), ..Self::failure(500, "InternalError", message) }
    }
}

fn qualified(resource: &str, group: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

fn details(name: &str, group: &str, kind: &str) -> StatusDetails {
    StatusDetails { name: name.into(), group: group.into(), kind: kind.into(), ..StatusDetails::default() }
}
