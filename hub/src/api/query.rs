//! Query parameters of resource requests, and the selectors among them.

use std::time::Duration;

use axum::extract::FromRequestParts;
use http::request::Parts;
use serde::Deserialize;
use tombolo_api::meta::{ObjectMeta, Status};

use super::answer::Refused;

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
}

/// Which objects of a collection are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selector {
    name: Option<String>,
    namespace: Option<String>,
    labels: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    Equals(String, String),
    Differs(String, String),
    Present(String),
    Absent(String),
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        let sent = axum::extract::Query::<Sent>::try_from_uri(&parts.uri)
            .map_err(|error| Status::bad_request(error.body_text()))?;
        understand(sent.0)
    }
}

impl Selector {
    pub(super) fn matches(&self, metadata: &ObjectMeta) -> bool {
        self.name.as_ref().is_none_or(|name| *name == metadata.name)
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == metadata.namespace)
            && self.labels.iter().all(|rule| match rule {
                Rule::Equals(key, value) => metadata.label(key) == Some(value),
                Rule::Differs(key, value) => metadata.label(key) != Some(value),
                Rule::Present(key) => metadata.label(key).is_some(),
                Rule::Absent(key) => metadata.label(key).is_none(),
            })
    }

    /// The same within one namespace only.
    pub(super) fn within(mut self, namespace: Option<&str>) -> Self {
        if let Some(namespace) = namespace {
            // Two different namespaces at once match nothing, and no namespace has an empty name.
            let same = self.namespace.as_deref().is_none_or(|other| other == namespace);
            self.namespace = Some(if same { namespace.to_owned() } else { String::new() });
        }
        self
    }

    fn parse(fields: &str, labels: &str) -> Result<Self, Box<Status>> {
        let mut selector = Self::default();
        for term in fields.split(',').filter(|term| !term.is_empty()) {
            let (field, value) = term.split_once('=').unwrap_or((term, ""));
            let value = value.strip_prefix('=').unwrap_or(value).to_owned();
            match field {
                "metadata.name" => selector.name = Some(value),
                "metadata.namespace" => selector.namespace = Some(value),
                _ => {
                    return Err(Box::new(Status::bad_request(format!("field label not supported: {field}"))));
                }
            }
        }
        for term in labels.split(',').map(str::trim).filter(|term| !term.is_empty()) {
            selector.labels.push(Rule::parse(term)?);
        }
        Ok(selector)
    }
}

impl Rule {
    fn parse(term: &str) -> Result<Self, Box<Status>> {
        let pair = |(key, value): (&str, &str)| (key.trim().to_owned(), value.trim().to_owned());
        let (rule, key) = if let Some(both) = term.split_once("!=") {
            let (key, value) = pair(both);
            (Self::Differs(key.clone(), value), key)
        } else if let Some(both) = term.split_once("==").or_else(|| term.split_once('=')) {
            let (key, value) = pair(both);
            (Self::Equals(key.clone(), value), key)
        } else if let Some(key) = term.strip_prefix('!') {
            (Self::Absent(key.trim().to_owned()), key.trim().to_owned())
        } else {
            (Self::Present(term.to_owned()), term.to_owned())
        };
        let is_key = |key: &str| {
            !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b))
        };
        if is_key(&key) {
            Ok(rule)
        } else {
            Err(Box::new(Status::bad_request(format!(
                "unable to parse requirement {term:?}: use key=value, key!=value, key or !key"
            ))))
        }
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
    let fields = sent.field_selector.unwrap_or_default();
    Ok(Query {
        dry_run,
        watch: is_true(sent.watch.as_deref()),
        resource_version,
        send_initial_events: is_true(sent.send_initial_events.as_deref()),
        timeout: sent
            .timeout_seconds
            .map_or(FOLLOW_MAX, |seconds| Duration::from_secs(seconds).min(FOLLOW_MAX)),
        selector: Selector::parse(&fields, &sent.label_selector.unwrap_or_default())?,
        propagation_policy: sent.propagation_policy.filter(|policy| !policy.is_empty()),
    })
}

fn is_true(flag: Option<&str>) -> bool {
    matches!(flag, Some("true" | "1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_select() {
        let mut metadata = ObjectMeta { name: "a".into(), namespace: "n".into(), ..ObjectMeta::default() };
        metadata.labels.insert("x.dev/k".into(), "v".into());
        for (fields, labels, matches) in [
            ("", "", true),
            ("metadata.name=a", "x.dev/k=v", true),
            ("metadata.name==b", "", false),
            ("metadata.name=a,metadata.namespace=m", "", false),
            ("", "x.dev/k==w", false),
            ("", "x.dev/k!=w, other!=v", true),
            ("", "x.dev/k", true),
            ("", "!x.dev/k", false),
            ("", "!other", true),
        ] {
            assert_eq!(
                Selector::parse(fields, labels).unwrap().matches(&metadata),
                matches,
                "{fields} {labels}"
            );
        }
        let all = Selector::default();
        assert!(all.clone().within(Some("n")).matches(&metadata));
        assert!(!all.within(Some("m")).matches(&metadata));
        assert!(Selector::parse("spec.x=1", "").is_err());
        assert!(Selector::parse("", "k in (a,b)").is_err());
    }
}
