//! Namespaces: `/api/v1/namespaces`. `default` is always there; others are made and removed by clients, and with one
//! goes everything in it.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::routing::get;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tombolo_api::meta::{List, ListMeta, ObjectMeta, Status, StatusCause};
use tombolo_api::names::is_dns1123_label;

use super::answer::{Answer, Refused, json as answer};
use super::query::Query;
use super::{Api, body};
use crate::catalog::{Change, DEFAULT_NAMESPACE};
use crate::clock;

/// Plural, as in paths and messages.
const PLURAL: &str = "namespaces";

/// The label that every namespace has.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Namespaces of one hub: each costs memory and no more, but nobody needs more.
const NAMESPACES_MAX: usize = 1000;

pub(super) fn router() -> Router<Api> {
    Router::new()
        .route("/api/v1/namespaces", get(list).post(create))
        .route("/api/v1/namespaces/{name}", get(read).put(replace).delete(delete))
}

async fn list(State(api): State<Api>, query: Query) -> Answer {
    if query.watch {
        return Err(Status::method_not_allowed().into());
    }
    let state = api.catalog.state();
    let selected = state.namespaces.values().filter(|metadata| query.selector.matches(metadata));
    let list = List {
        api_version: "v1".into(),
        items: selected.map(|metadata| shown(metadata)).collect::<Vec<Value>>(),
        kind: "NamespaceList".into(),
        metadata: ListMeta { resource_version: state.version.to_string(), ..ListMeta::default() },
    };
    Ok(answer(StatusCode::OK, &list))
}

async fn read(State(api): State<Api>, Path(name): Path<String>) -> Answer {
    let state = api.catalog.state();
    let metadata = state.namespaces.get(&name).ok_or_else(|| Status::namespace_not_found(&name))?;
    Ok(answer(StatusCode::OK, &shown(metadata)))
}

async fn create(State(api): State<Api>, query: Query, headers: HeaderMap, body: Body) -> Answer {
    let sent = sent(&headers, body).await?;
    let name = sent.name;
    if !is_dns1123_label(&name) {
        let cause = StatusCause {
            reason: "FieldValueInvalid".into(),
            message: format!(
                "Invalid value: {name:?}: a lowercase RFC 1123 label must consist of lower case alphanumeric characters \
                 or '-', and must start and end with an alphanumeric character"
            ),
            field: "metadata.name".into(),
        };
        return Err(Status::invalid("Namespace", "", &name, vec![cause]).into());
    }
    let dry_run = query.dry_run;
    let metadata = ObjectMeta {
        name,
        labels: sent.labels,
        annotations: sent.annotations,
        uid: uuid::Uuid::new_v4().to_string(),
        creation_timestamp: Some(clock::now_rfc3339()),
        ..ObjectMeta::default()
    };
    let decided = metadata.clone();
    api.catalog
        .transact(move |state| {
            if state.namespaces.contains_key(&decided.name) {
                return Err(Box::new(Status::already_exists(PLURAL, "", &decided.name)));
            }
            if state.namespaces.len() >= NAMESPACES_MAX {
                let why = format!("there are {NAMESPACES_MAX} namespaces already: delete one first");
                return Err(Box::new(Status::failure(403, "Forbidden", why)));
            }
            Ok((if dry_run { Vec::new() } else { vec![Change::PutNamespace(Box::new(decided))] }, ()))
        })
        .await?;
    let state = api.catalog.state();
    let stored = state.namespaces.get(&metadata.name).map_or(&metadata, |stored| stored);
    Ok(answer(StatusCode::CREATED, &shown(stored)))
}

/// Takes over labels and annotations; there is nothing else in a namespace to change.
async fn replace(
    State(api): State<Api>,
    Path(name): Path<String>,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let sent = sent(&headers, body).await?;
    if sent.name != name {
        let sent = sent.name;
        let why = format!("the name of the object ({sent}) does not match the name on the URL ({name})");
        return Err(Status::bad_request(why).into());
    }
    let dry_run = query.dry_run;
    let (_, metadata) = api
        .catalog
        .transact(move |state| {
            let found =
                state.namespaces.get(&name).ok_or_else(|| Box::new(Status::namespace_not_found(&name)))?;
            if ![&found.resource_version, ""].contains(&sent.resource_version.as_str()) {
                return Err(Box::new(Status::conflict(PLURAL, "", &name)));
            }
            let wanted =
                ObjectMeta { labels: sent.labels, annotations: sent.annotations, ..ObjectMeta::clone(found) };
            let unchanged = dry_run || wanted == **found;
            let changes =
                if unchanged { Vec::new() } else { vec![Change::PutNamespace(Box::new(wanted.clone()))] };
            Ok((changes, wanted))
        })
        .await?;
    let state = api.catalog.state();
    let stored = state.namespaces.get(&metadata.name).filter(|_| !dry_run);
    Ok(answer(StatusCode::OK, &shown(stored.map_or(&metadata, |stored| stored))))
}

/// What a client says of a namespace.
async fn sent(headers: &HeaderMap, body: Body) -> Result<ObjectMeta, Refused> {
    let mut sent = body::object(headers, body).await?.value;
    if (sent["kind"].as_str(), sent["apiVersion"].as_str()) != (Some("Namespace"), Some("v1")) {
        return Err(Status::bad_request("the object is no Namespace of version v1").into());
    }
    let mut metadata: ObjectMeta = serde_json::from_value(sent["metadata"].take())
        .map_err(|error| Status::bad_request(format!("metadata: {error}")))?;
    // Shown on every namespace, and kept of none.
    metadata.labels.remove(NAME_LABEL);
    Ok(metadata)
}

async fn delete(State(api): State<Api>, Path(name): Path<String>, query: Query) -> Answer {
    if name == DEFAULT_NAMESPACE {
        let why = format!("namespaces \"{name}\" is forbidden: this namespace may not be deleted");
        return Err(Status::failure(403, "Forbidden", why).into());
    }
    let dry_run = query.dry_run;
    let (_, metadata) = api
        .catalog
        .transact(move |state| {
            let found = state.namespaces.get(&name);
            let metadata = found.cloned().ok_or_else(|| Box::new(Status::namespace_not_found(&name)))?;
            let inside = state.snapshot.all().filter(|object| object.metadata().namespace == name);
            let mut changes: Vec<Change> = inside.flat_map(|object| state.removal(&object)).collect();
            changes.push(Change::RemoveNamespace(name));
            Ok((if dry_run { Vec::new() } else { changes }, metadata))
        })
        .await?;
    Ok(answer(StatusCode::OK, &Status::deleted(&metadata.name, PLURAL, "", &metadata.uid)))
}

fn shown(metadata: &ObjectMeta) -> Value {
    let mut metadata = metadata.clone();
    metadata.labels.insert(NAME_LABEL.into(), metadata.name.clone());
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": metadata,
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    })
}
