//! Namespaces: `/api/v1/namespaces`. `default` is always there; others are made and removed by clients, and with one
//! goes everything in it.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use tombolo_api::meta::{List, ListMeta, ObjectMeta, Status, StatusCause};
use tombolo_api::names::is_dns1123_label;

use super::answer::{Answer, json as answer};
use super::patch::{Edit, PATCHES, STRATEGIC};
use super::query::Query;
use super::validation::Decoding;
use super::{Api, body, table};
use crate::catalog::{Change, DEFAULT_NAMESPACE, State as CatalogState};
use crate::clock;

mod protobuf;
mod trust;

/// Plural, as in paths and messages.
const PLURAL: &str = "namespaces";

const COLUMNS: [&str; 3] = ["Name", "Status", "Age"];

/// The label that every namespace has.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Namespaces of one hub: each costs memory and no more, but nobody needs more.
const NAMESPACES_MAX: usize = 1000;

pub(super) fn router() -> Router<Api> {
    Router::new()
        .route("/api/v1/namespaces", get(list).post(create))
        .route("/api/v1/namespaces/{name}", get(read).put(change).patch(change).delete(delete))
}

async fn list(State(api): State<Api>, query: Query, headers: HeaderMap) -> Answer {
    if query.watch {
        return Err(Status::method_not_allowed().into());
    }
    let state = api.catalog.state();
    let selected = state.namespaces.values().filter(|metadata| query.selector.matches(metadata));
    let list_meta = ListMeta { resource_version: state.version.to_string(), ..ListMeta::default() };
    if table::is_asked_for(&headers) {
        let rows = selected.map(|metadata| (cells(metadata), &**metadata));
        return Ok(answer(StatusCode::OK, &table::build(&COLUMNS, rows, &list_meta)));
    }
    let list = List {
        api_version: "v1".into(),
        items: selected.map(|metadata| shown(metadata)).collect::<Vec<Value>>(),
        kind: "NamespaceList".into(),
        metadata: list_meta,
    };
    Ok(answer(StatusCode::OK, &list))
}

async fn read(State(api): State<Api>, Path(name): Path<String>) -> Answer {
    let state = api.catalog.state();
    let metadata = state.namespaces.get(&name).ok_or_else(|| Status::namespace_not_found(&name))?;
    Ok(answer(StatusCode::OK, &shown(metadata)))
}

async fn create(State(api): State<Api>, query: Query, headers: HeaderMap, body: Body) -> Answer {
    let sent = if body::media_type(&headers) == body::PROTOBUF {
        let object = protobuf::object(&body::bytes(body).await?);
        object.ok_or_else(|| Status::bad_request("the body of the request is no Namespace in protobuf"))?
    } else {
        let sent = body::object(&headers, body).await?;
        query.validation.check(Decoding::Object("Namespace"), &sent.value, &sent.repeated, &[])?;
        sent.value
    };
    let metadata = new(sent)?;
    trust::check(&metadata)?;
    let dry_run = query.dry_run;
    let decided = metadata.clone();
    api.catalog
        .transact(move |state| {
            if state.namespaces.contains_key(&decided.name) {
                return Err(Box::new(Status::already_exists(PLURAL, "", &decided.name)));
            }
            may_be_added(state)?;
            Ok((if dry_run { Vec::new() } else { vec![Change::PutNamespace(Box::new(decided))] }, ()))
        })
        .await?;
    Ok(stored(&api, StatusCode::CREATED, &metadata, dry_run))
}

/// Takes over labels and annotations; there is nothing else in a namespace to change. One that is not there is only made
/// by an apply.
async fn change(
    State(api): State<Api>,
    Path(name): Path<String>,
    query: Query,
    method: Method,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let patches: Vec<&str> = PATCHES.into_iter().chain([STRATEGIC]).collect();
    let (edit, repeated) = body::edit(&method, &headers, body, &patches).await?;
    let (dry_run, decoding) = (query.dry_run, edit.decoding("Namespace"));
    let (_, (metadata, created)) = api
        .catalog
        .transact(move |state| {
            let (wanted, created) = match (state.namespaces.get(&name), edit) {
                (Some(found), edit) => {
                    let sent = edit.apply(shown(found))?;
                    query.validation.check(decoding, &sent, &repeated, &[])?;
                    (changed(found, sent)?, false)
                }
                (None, Edit::Apply(sent)) => {
                    query.validation.check(decoding, &sent, &repeated, &[])?;
                    may_be_added(state)?;
                    (new(sent)?, true)
                }
                (None, Edit::Replace(sent)) => {
                    is_named(&metadata_of(sent)?, &name)?;
                    return Err(Box::new(Status::namespace_not_found(&name)));
                }
                (None, _) => return Err(Box::new(Status::namespace_not_found(&name))),
            };
            is_named(&wanted, &name)?;
            trust::check(&wanted)?;
            let unchanged = dry_run || state.namespaces.get(&name).is_some_and(|found| **found == wanted);
            let changes =
                if unchanged { Vec::new() } else { vec![Change::PutNamespace(Box::new(wanted.clone()))] };
            Ok((changes, (wanted, created)))
        })
        .await?;
    Ok(stored(&api, if created { StatusCode::CREATED } else { StatusCode::OK }, &metadata, dry_run))
}

/// A namespace as it is kept now; of a dry run, as it would be.
fn stored(api: &Api, code: StatusCode, metadata: &ObjectMeta, dry_run: bool) -> Response {
    let state = api.catalog.state();
    let stored = state.namespaces.get(&metadata.name).filter(|_| !dry_run);
    answer(code, &shown(stored.map_or(metadata, |stored| stored)))
}

fn may_be_added(state: &CatalogState) -> Result<(), Box<Status>> {
    if state.namespaces.len() < NAMESPACES_MAX {
        return Ok(());
    }
    let why = format!("there are {NAMESPACES_MAX} namespaces already: delete one first");
    Err(Box::new(Status::failure(403, "Forbidden", why)))
}

/// The namespace that a client wants to have.
fn new(sent: Value) -> Result<ObjectMeta, Box<Status>> {
    let sent = metadata_of(sent)?;
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
        return Err(Box::new(Status::invalid("Namespace", "", &name, vec![cause])));
    }
    Ok(ObjectMeta {
        name,
        labels: sent.labels,
        annotations: sent.annotations,
        uid: uuid::Uuid::new_v4().to_string(),
        creation_timestamp: Some(clock::now_rfc3339()),
        ..ObjectMeta::default()
    })
}

/// What a client wants to become of a namespace. Its name is for the caller to compare.
fn changed(found: &ObjectMeta, sent: Value) -> Result<ObjectMeta, Box<Status>> {
    let sent = metadata_of(sent)?;
    if ![&found.resource_version, ""].contains(&sent.resource_version.as_str()) {
        return Err(Box::new(Status::conflict(PLURAL, "", &found.name)));
    }
    let ObjectMeta { name, labels, annotations, .. } = sent;
    Ok(ObjectMeta { name, labels, annotations, ..found.clone() })
}

fn is_named(metadata: &ObjectMeta, name: &str) -> Result<(), Box<Status>> {
    if metadata.name == name {
        return Ok(());
    }
    let sent = &metadata.name;
    let why = format!("the name of the object ({sent}) does not match the name on the URL ({name})");
    Err(Box::new(Status::bad_request(why)))
}

/// What a client says of a namespace.
fn metadata_of(mut sent: Value) -> Result<ObjectMeta, Box<Status>> {
    if (sent["kind"].as_str(), sent["apiVersion"].as_str()) != (Some("Namespace"), Some("v1")) {
        return Err(Box::new(Status::bad_request("the object is no Namespace of version v1")));
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

fn cells(metadata: &ObjectMeta) -> Vec<String> {
    vec![metadata.name.clone(), "Active".into(), table::age_of(metadata)]
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
