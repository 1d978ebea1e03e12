//! `apply` and `delete -f`: makes the hub's resources what a file says.
//!
//! A resource that is there already is replaced under its resource version, again if somebody else was quicker.
//! Must not know what the fields mean: the hub defaults and judges them.

use anyhow::{Context, anyhow};
use serde_json::Value;

use crate::args;
use crate::documents::{self, Document};
use crate::hub::{Hub, RequestError};
use crate::kinds::Kind;
use crate::output;

/// Writes to one object at the same moment that are tolerated; past it somebody writes in a loop.
const CONFLICTS_MAX: usize = 8;

/// What became of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Created,
    Configured,
    Unchanged,
}

impl Outcome {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
        }
    }
}

/// Applies every resource of every file, going on after one that is refused.
pub(crate) async fn run(hub: &Hub, args: &args::Apply) -> anyhow::Result<()> {
    let mut documents = Vec::new();
    for file in &args.files {
        documents.extend(documents::read(file)?);
    }
    each(&documents, args.namespace.as_deref(), async |target, document| {
        let (outcome, _) = upsert(hub, target.kind, &target.namespace, &target.name, |live| {
            Ok(replacement(&document.object, live))
        })
        .await?;
        output::print(&format!("{}/{} {}\n", target.kind, target.name, outcome.word()))
    })
    .await
}

/// Deletes every resource that stands in a file.
pub(crate) async fn delete(hub: &Hub, args: &args::Delete) -> anyhow::Result<()> {
    let mut documents = Vec::new();
    for file in &args.files {
        documents.extend(documents::read(file)?);
    }
    // What was made last goes first: a namespace takes with it what stands after it in the file.
    documents.reverse();
    each(&documents, args.namespace.as_deref(), async |target, _| {
        crate::delete::one(hub, target.kind, &target.namespace, &target.name, args.ignore_not_found).await
    })
    .await
}

/// A resource's place at the hub.
struct Target {
    kind: Kind,
    namespace: String,
    name: String,
}

/// Does something for every document; errors are printed with their place, the last one ends the command.
async fn each(
    documents: &[Document],
    namespace: Option<&str>,
    mut act: impl AsyncFnMut(&Target, &Document) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut failed: Option<anyhow::Error> = None;
    for document in documents {
        let done = match target(document, namespace) {
            Ok(target) => act(&target, document).await.map_err(|error| placed(document, error)),
            Err(error) => Err(placed(document, error)),
        };
        let Err(error) = done else { continue };
        if is_hopeless(&error) {
            return Err(error);
        }
        if let Some(earlier) = failed.replace(error) {
            eprintln!("error: {earlier:#}");
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Whether the next document would meet the same error.
fn is_hopeless(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<output::PipeClosed>()
            || matches!(
                cause.downcast_ref::<RequestError>(),
                Some(
                    RequestError::Unreachable { .. }
                        | RequestError::Timeout { .. }
                        | RequestError::NotAHub { .. }
                )
            )
    })
}

/// Puts file, line and field before an error that is about the document.
fn placed(document: &Document, error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<RequestError>() {
        Some(RequestError::Refused(refusal)) => {
            let fields: Vec<&str> = refusal.details.causes.iter().map(|cause| cause.field.as_str()).collect();
            let place = document.locate(&fields, &refusal.message);
            error.context(place)
        }
        Some(_) => error,
        None => error.context(document.place()),
    }
}

fn target(document: &Document, namespace: Option<&str>) -> anyhow::Result<Target> {
    let object = &document.object;
    let kind = Kind::of(object).ok_or_else(|| {
        let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
        anyhow!(
            "this hub serves no {} of {}: use Service, Configuration, Revision or Route of serving.knative.dev/v1, \
             or Namespace of v1",
            text("kind"),
            text("apiVersion")
        )
    })?;
    let name = object["metadata"]["name"]
        .as_str()
        .filter(|name| !name.is_empty())
        .context("metadata.name is missing")?;
    let own = object["metadata"]["namespace"].as_str().filter(|_| kind.namespaced());
    let namespace = namespace.filter(|_| kind.namespaced());
    let namespace = match (own, namespace) {
        (Some(own), Some(asked)) if own != asked => {
            return Err(anyhow!("metadata.namespace is {own:?}, but --namespace says {asked:?}"));
        }
        (own, asked) => own.or(asked).unwrap_or("default"),
    };
    Ok(Target { kind, namespace: namespace.to_owned(), name: name.to_owned() })
}

/// Creates an object, or replaces the one that is there; `build` makes it from what is there now.
/// Returns what the hub stored.
pub(crate) async fn upsert(
    hub: &Hub,
    kind: Kind,
    namespace: &str,
    name: &str,
    build: impl Fn(Option<&Value>) -> anyhow::Result<Value>,
) -> anyhow::Result<(Outcome, Value)> {
    let item = kind.item(namespace, name);
    let mut conflicts = 0;
    loop {
        let live = match hub.get(&item).await {
            Ok(live) => Some(live),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error.into()),
        };
        let wanted = build(live.as_ref())?;
        let written = match &live {
            None => hub.post(&kind.collection(Some(namespace)), &wanted).await,
            Some(_) => hub.put(&item, &wanted).await,
        };
        match written {
            Ok(stored) => {
                let outcome = match &live {
                    None => Outcome::Created,
                    Some(live) if version(live) == version(&stored) => Outcome::Unchanged,
                    Some(_) => Outcome::Configured,
                };
                return Ok((outcome, stored));
            }
            Err(error) if error.is_conflict() && conflicts < CONFLICTS_MAX => conflicts += 1,
            // Deleted between the two requests.
            Err(error) if error.is_not_found() && live.is_some() && conflicts < CONFLICTS_MAX => {
                conflicts += 1
            }
            Err(error) => return Err(with_remedy(error).into()),
        }
    }
}

/// Says what to do about a namespace that is missing.
fn with_remedy(mut error: RequestError) -> RequestError {
    if let RequestError::Refused(refusal) = &mut error
        && refusal.code == 404
        && refusal.details.kind == Kind::Namespace.plural()
    {
        let remedy = format!(": make it with `tombolo create namespace {}`", refusal.details.name);
        refusal.message.push_str(&remedy);
    }
    error
}

fn version(object: &Value) -> Option<&str> {
    object["metadata"]["resourceVersion"].as_str()
}

/// The object of the file as it must be sent to replace the live one.
fn replacement(wanted: &Value, live: Option<&Value>) -> Value {
    let mut wanted = wanted.clone();
    // What the hub writes is no business of the file, even if it was saved from `get -o yaml`.
    if let Some(object) = wanted.as_object_mut() {
        object.remove("status");
    }
    for field in
        ["resourceVersion", "uid", "generation", "creationTimestamp", "managedFields", "ownerReferences"]
    {
        if let Some(metadata) = wanted["metadata"].as_object_mut() {
            metadata.remove(field);
        }
    }
    let Some(live) = live else { return wanted };
    wanted["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
    // Who made and who changed an object is written by the hub and may not be changed.
    for key in ["serving.knative.dev/creator", "serving.knative.dev/lastModifier"] {
        if let Some(value) = live["metadata"]["annotations"].get(key) {
            if !wanted["metadata"]["annotations"].is_object() {
                wanted["metadata"]["annotations"] = serde_json::json!({});
            }
            wanted["metadata"]["annotations"][key] = value.clone();
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_replacement_keeps_what_is_the_hubs() {
        let wanted = json!({"metadata": {"name": "a", "uid": "old", "resourceVersion": "1", "labels": {"l": "m"}},
            "spec": {"x": 1}, "status": {}});
        let live = json!({"metadata": {"name": "a", "resourceVersion": "7",
            "annotations": {"serving.knative.dev/creator": "admin", "other": "gone"}}});
        assert_eq!(
            replacement(&wanted, Some(&live)),
            json!({"metadata": {"name": "a", "resourceVersion": "7", "labels": {"l": "m"},
                "annotations": {"serving.knative.dev/creator": "admin"}}, "spec": {"x": 1}})
        );
        assert_eq!(
            replacement(&wanted, None),
            json!({"metadata": {"name": "a", "labels": {"l": "m"}}, "spec": {"x": 1}})
        );
    }

    #[test]
    fn a_missing_namespace_is_told_with_its_remedy() {
        let refused = |text: &str| RequestError::Refused(serde_json::from_str(text).unwrap());
        let namespace = r#"{"message": "namespaces \"n\" not found", "code": 404, "details": {"kind": "namespaces", "name": "n"}}"#;
        assert_eq!(
            with_remedy(refused(namespace)).to_string(),
            "namespaces \"n\" not found: make it with `tombolo create namespace n`"
        );
        let service = r#"{"message": "services \"a\" not found", "code": 404, "details": {"kind": "services", "name": "a"}}"#;
        assert_eq!(with_remedy(refused(service)).to_string(), "services \"a\" not found");
    }

    #[test]
    fn a_document_says_where_it_belongs() {
        let document = |text: &str| documents::parse("f", text).unwrap().remove(0);
        let plain = document("apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\n");
        assert_eq!(target(&plain, None).unwrap().namespace, "default");
        assert_eq!(target(&plain, Some("n")).unwrap().namespace, "n");
        let fixed = document(
            "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a, namespace: m}\n",
        );
        assert_eq!(target(&fixed, None).unwrap().namespace, "m");
        assert!(target(&fixed, Some("n")).is_err());
        let namespace = document("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n");
        assert_eq!(target(&namespace, Some("n")).unwrap().kind, Kind::Namespace);
        assert!(
            target(&document("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n"), None).is_err()
        );
        assert!(target(&document("apiVersion: serving.knative.dev/v1\nkind: Service\n"), None).is_err());
    }
}
