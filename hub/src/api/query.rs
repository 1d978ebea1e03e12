//! Query parameters of resource requests.

use std::time::Duration;

use axum::extract::FromRequestParts;
use http::request::Parts;
use serde::Deserialize;
use tombolo_api::meta::Status;

use super::answer::Refused;
use super::pages::ListPart;
use super::selector::Selector;
use super::validation::FieldValidation;
use super::write::Manner;

/// How long a client may follow changes in one request: it begins again from where it was.
const FOLLOW_MAX: Duration = Duration::from_secs(3600);

/// Parameters as sent. Others are ignored, as Kubernetes does.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Sent {
    dry_run: Option<String>,
    watch: Option<String>,
    resource_version: Option<String>,
    send_initial_events: Option<String>,
    timeout_seconds: Option<u64>,
    field_selector: Option<String>,
    label_selector: Option<String>,
    propagation_policy: Option<String>,
    field_validation: Option<String>,
    resource_version_match: Option<String>,
    limit: Option<u64>,
    #[serde(rename = "continue")]
    continue_token: Option<String>,
}

/// Parameters as understood.
#[derive(Debug)]
pub(super) struct Query {
    pub(super) dry_run: bool,
    pub(super) watch: bool,
    /// What the client has seen; `None`: nothing.
    pub(super) resource_version: Option<u64>,
    /// The client wants everything there is first, and a mark behind it.
    pub(super) send_initial_events: bool,
    pub(super) timeout: Duration,
    pub(super) selector: Selector,
    pub(super) propagation_policy: Option<String>,
    pub(super) validation: FieldValidation,
    pub(super) part: ListPart,
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        let sent = axum::extract::Query::<Sent>::try_from_uri(&parts.uri)
            .map_err(|error| Status::bad_request(error.body_text()))?;
        understand(sent.0)
    }
}

impl Query {
    /// How a write of this request is to be done.
    pub(super) fn manner(&self) -> Manner {
        Manner { dry_run: self.dry_run, validation: self.validation, repeated: Vec::new() }
    }
}

fn understand(sent: Sent) -> Result<Query, Refused> {
    let dry_run = match sent.dry_run.as_deref() {
        None | Some("") => false,
        Some("All") => true,
        Some(other) => {
            let message = format!("dryRun: Unsupported value: {other:?}: supported values: \"All\"");
            return Err(Status::failure(422, "Invalid", message).into());
        }
    };
    let resource_version = match sent.resource_version.as_deref() {
        None | Some("" | "0") => None,
        Some(text) => {
            let version = text.parse().map_err(|_| {
                Status::bad_request(format!("resourceVersion: Invalid value: {text:?}: it must be a number"))
            })?;
            Some(version)
        }
    };
    let part = ListPart::parse(
        sent.limit,
        sent.continue_token.as_deref(),
        sent.resource_version_match.as_deref(),
        resource_version,
    )?;
    let fields = sent.field_selector.unwrap_or_default();
    Ok(Query {
        dry_run,
        watch: is_true(sent.watch.as_deref()),
        resource_version,
        part,
        send_initial_events: is_true(sent.send_initial_events.as_deref()),
        timeout: sent
            .timeout_seconds
            .map_or(FOLLOW_MAX, |seconds| Duration::from_secs(seconds).min(FOLLOW_MAX)),
        selector: Selector::parse(&fields, &sent.label_selector.unwrap_or_default())?,
        validation: FieldValidation::parse(&sent.field_validation.unwrap_or_default())?,
        propagation_policy: sent.propagation_policy.filter(|policy| !policy.is_empty()),
    })
}

fn is_true(flag: Option<&str>) -> bool {
    matches!(flag, Some("true" | "1"))
}
