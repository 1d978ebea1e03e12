//! The serving resources: `/apis/serving.knative.dev/v1/…`.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{MethodRouter, get};
use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tombolo_api::meta::{List, ListMeta, Status};
use tombolo_api::serving::{API_VERSION, GROUP};
use tombolo_hub_core::{Key, Kind, Object};

use super::answer::{Answer, Refused, json as answer, with_warnings};
use super::patch::PATCHES;
use super::query::Query;
use super::write::{self, Manner, Part, Preconditions, Written};
use super::{Api, body, follow, table};
use crate::clock;

pub(super) fn router() -> Router<Api> {
    let base = "/apis/serving.knative.dev/v1";
    let collection = get(list).post(create).delete(delete_all);
    let item = part(Part::Whole).delete(delete);
    let status = part(Part::Status);
    Router::new()
        .route(&format!("{base}/{{plural}}"), get(list))
        .route(&format!("{base}/namespaces/{{namespace}}/{{plural}}"), collection)
        .route(&format!("{base}/namespaces/{{namespace}}/{{plural}}/{{name}}"), item)
        .route(&format!("{base}/namespaces/{{namespace}}/{{plural}}/{{name}}/status"), status)
}

/// Reading an object, and changing a part of it.
fn part(part: Part) -> MethodRouter<Api> {
    let change = move |api: State<Api>,
                       place: Path<Place>,
                       query: Query,
                       method: Method,
                       headers: HeaderMap,
                       body: Body| async move {
        let kind = place.kind()?;
        let (edit, repeated) = body::edit(&method, &headers, body, &PATCHES).await?;
        let manner = Manner { repeated, ..query.manner() };
        Ok::<_, Refused>(written(write::edit(&api.catalog, kind, place.key(), (part, edit), manner).await?))
    };
    get(read).put(change).patch(change)
}

/// What a path names. Paths that name no kind are not there.
#[derive(Debug, Deserialize)]
struct Place {
    namespace: Option<String>,
    plural: String,
    #[serde(default)]
    name: String,
}

impl Place {
    fn kind(&self) -> Result<Kind, Refused> {
        let unknown = || Status::failure(404, "NotFound", "the server could not find the requested resource");
        Kind::of_plural(&self.plural).ok_or_else(|| unknown().into())
    }

    fn key(&self) -> Key {
        Key::new(self.namespace.as_deref().unwrap_or_default(), &self.name)
    }
}

/// What a deletion may ask for in its body.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeleteOptions {
    preconditions: Preconditions,
    propagation_policy: Option<String>,
    dry_run: Vec<String>,
}

async fn list(State(api): State<Api>, Path(place): Path<Place>, query: Query, headers: HeaderMap) -> Answer {
    let kind = place.kind()?;
    let as_table = table::is_asked_for(&headers);
    let selector = query.selector.clone().within(place.namespace.as_deref());
    if query.watch {
        return follow::changes(&api, kind, selector, &query, as_table);
    }
    let (objects, metadata) = query.part.of(&api.catalog, kind, &selector)?;
    if as_table {
        return Ok(answer(StatusCode::OK, &table::of(kind, &objects, &metadata)));
    }
    Ok(answer(StatusCode::OK, &list_of(kind, &objects, metadata)))
}

async fn create(
    State(api): State<Api>,
    Path(place): Path<Place>,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let kind = place.kind()?;
    if kind == Kind::Revision {
        return Err(Status::method_not_allowed().into());
    }
    let sent = body::object(&headers, body).await?;
    let namespace = place.namespace.unwrap_or_default();
    let manner = Manner { repeated: sent.repeated, ..query.manner() };
    Ok(written(write::create(&api.catalog, kind, namespace, sent.value, manner).await?))
}

async fn read(State(api): State<Api>, Path(place): Path<Place>, headers: HeaderMap) -> Answer {
    let kind = place.kind()?;
    let state = api.catalog.state();
    let object = state.snapshot.get(kind, &place.key()).ok_or_else(|| write::not_found(kind, &place.name))?;
    if table::is_asked_for(&headers) {
        let metadata =
            ListMeta { resource_version: object.metadata().resource_version.clone(), ..ListMeta::default() };
        return Ok(answer(StatusCode::OK, &table::of(kind, &[object], &metadata)));
    }
    Ok(answer(StatusCode::OK, &object.to_json()))
}

async fn delete(
    State(api): State<Api>,
    Path(place): Path<Place>,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let kind = place.kind()?;
    let options = delete_options(&headers, body, &query).await?;
    let dry_run = query.dry_run || !options.dry_run.is_empty();
    let object = write::delete(&api.catalog, kind, place.key(), options.preconditions, dry_run).await?;
    if options.propagation_policy.as_deref() == Some("Foreground") {
        return Ok(answer(StatusCode::OK, &going(&object)));
    }
    let metadata = object.metadata();
    Ok(answer(StatusCode::OK, &Status::deleted(&metadata.name, kind.plural(), GROUP, &metadata.uid)))
}

async fn delete_all(
    State(api): State<Api>,
    Path(place): Path<Place>,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let kind = place.kind()?;
    let options = delete_options(&headers, body, &query).await?;
    let dry_run = query.dry_run || !options.dry_run.is_empty();
    let selector = query.selector.clone().within(place.namespace.as_deref());
    let selected = move |object: &Object| selector.matches(object.metadata());
    let objects = write::delete_all(&api.catalog, kind, selected, dry_run).await?;
    let metadata =
        ListMeta { resource_version: api.catalog.state().version.to_string(), ..ListMeta::default() };
    Ok(answer(StatusCode::OK, &list_of(kind, &objects, metadata)))
}

fn list_of(kind: Kind, objects: &[Object], metadata: ListMeta) -> List<Value> {
    List {
        api_version: API_VERSION.into(),
        items: objects.iter().map(Object::to_json).collect(),
        kind: format!("{}List", kind.name()),
        metadata,
    }
}

fn written(written: Written) -> Response {
    let code = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    with_warnings(answer(code, &written.object.to_json()), &written.warnings)
}

async fn delete_options(headers: &HeaderMap, body: Body, query: &Query) -> Result<DeleteOptions, Refused> {
    let bytes = body::bytes(body).await?;
    let mut options = DeleteOptions::default();
    if !bytes.is_empty() {
        let yaml = body::media_type(headers) == "application/yaml";
        let sent = if yaml { body::yaml(&bytes)? } else { body::json(&bytes)? };
        options = serde_json::from_value(sent.value).map_err(|error| {
            Status::bad_request(format!("the options of the deletion cannot be read: {error}"))
        })?;
    }
    if let Some(policy) = &query.propagation_policy {
        options.propagation_policy = Some(policy.clone());
    }
    match options.propagation_policy.as_deref() {
        None | Some("Background" | "Foreground") => Ok(options),
        Some("Orphan") => Err(Status::bad_request(
            "propagationPolicy: Orphan is not served: what a resource owns always goes with it; use Background",
        )
        .into()),
        Some(other) => {
            Err(Status::bad_request(format!("propagationPolicy: {other:?} is none of Background, Foreground")).into())
        }
    }
}

/// An object as Kubernetes shows it while what it owns is removed, which here is done already.
fn going(object: &Object) -> Value {
    let mut shown = object.to_json();
    shown["metadata"]["deletionTimestamp"] = clock::now_rfc3339().into();
    shown["metadata"]["deletionGracePeriodSeconds"] = 0.into();
    shown["metadata"]["finalizers"] = json!(["foregroundDeletion"]);
    shown
}
