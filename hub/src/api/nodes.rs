//! Nodes and their events: `/apis/tombolo.dev/v1/nodes` and `/events`.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use http::StatusCode;
use serde_json::{Value, json};
use tombolo_api::NodeId;
use tombolo_api::meta::{Condition, List, ListMeta, ObjectMeta, Status};
use tombolo_api::report::Event;
use tombolo_hub_core::NodeState;
use tombolo_hub_core::conditions::{Conditions, Verdict};

use super::Api;
use super::answer::{Answer, Refused, json as answer};
use super::discovery::TOMBOLO_GROUP;
use super::query::Query;
use crate::clock;
use crate::publish::Published;

/// `apiVersion` of Tombolo's own resources.
const API_VERSION: &str = "tombolo.dev/v1";
/// Plural, as in paths and messages.
const PLURAL: &str = "nodes";

/// Events in one list, the newest: what a person reads.
const EVENTS_MAX: usize = 1000;

pub(super) fn router() -> Router<Api> {
    Router::new()
        .route("/apis/tombolo.dev/v1/nodes", get(list))
        .route("/apis/tombolo.dev/v1/nodes/{name}", get(read).delete(delete))
        .route("/apis/tombolo.dev/v1/events", get(events))
}

async fn list(State(api): State<Api>, query: Query) -> Answer {
    if query.watch {
        return Err(Status::method_not_allowed().into());
    }
    let fleet = api.fleet.watch().borrow().clone();
    let published = api.published.borrow().clone();
    let nodes = fleet.values().map(|node| (metadata(node), node));
    let items = nodes
        .filter(|(metadata, _)| query.selector.matches(metadata))
        .map(|(metadata, node)| shown(metadata, node, published.get(&node.id)))
        .collect();
    Ok(answer(StatusCode::OK, &list_of("NodeList", items)))
}

async fn read(State(api): State<Api>, Path(name): Path<String>) -> Answer {
    let id = id(&name)?;
    let fleet = api.fleet.watch().borrow().clone();
    let node = fleet.get(&id).ok_or_else(|| not_found(&name))?;
    let published = api.published.borrow().clone();
    Ok(answer(StatusCode::OK, &shown(metadata(node), node, published.get(&id))))
}

async fn delete(State(api): State<Api>, Path(name): Path<String>, query: Query) -> Answer {
    let id = id(&name)?;
    let known = api.fleet.watch().borrow().contains_key(&id);
    if !known {
        return Err(not_found(&name));
    }
    if !query.dry_run {
        let removed = api.fleet.remove(&id).await.map_err(|error| {
            tracing::error!(%error, node = %id, "a node could not be removed");
            Status::internal_error(&error.to_string())
        })?;
        if !removed {
            return Err(not_found(&name));
        }
    }
    Ok(answer(StatusCode::OK, &Status::deleted(&name, PLURAL, TOMBOLO_GROUP, "")))
}

async fn events(State(api): State<Api>) -> Answer {
    let events =
        api.fleet.events(EVENTS_MAX).await.map_err(|error| Status::internal_error(&error.to_string()))?;
    let items = events.iter().map(|(node, event)| shown_event(node, event)).collect();
    Ok(answer(StatusCode::OK, &list_of("EventList", items)))
}

fn id(name: &str) -> Result<NodeId, Refused> {
    name.parse().map_err(|_| not_found(name))
}

fn not_found(name: &str) -> Refused {
    Status::not_found(PLURAL, TOMBOLO_GROUP, name).into()
}

fn list_of(kind: &str, items: Vec<Value>) -> List<Value> {
    List { api_version: API_VERSION.into(), items, kind: kind.into(), metadata: ListMeta::default() }
}

fn metadata(node: &NodeState) -> ObjectMeta {
    ObjectMeta {
        name: node.id.to_string(),
        creation_timestamp: Some(clock::rfc3339(node.enrolled_s)),
        labels: node.report.as_ref().map(|report| report.info.labels.clone()).unwrap_or_default(),
        ..ObjectMeta::default()
    }
}

fn shown(metadata: ObjectMeta, node: &NodeState, published: Option<&Published>) -> Value {
    let mut status = json!({
        "conditions": conditions(node),
        "lastSeen": clock::rfc3339(node.last_seen_s),
        "revisions": [],
    });
    if let Some(published) = published {
        status["desired"] = json!({
            "epoch": published.version.epoch,
            "generation": published.version.generation,
            "digest": published.digest,
        });
    }
    if let Some(report) = &node.report {
        status["info"] = json!(report.info);
        status["revisions"] = json!(report.revisions);
        if let Some(refused) = &report.refused {
            status["refused"] = json!(refused);
        }
    }
    // Presence comes with every sign of life, a report only when something changed.
    let presence = node.presence.as_ref().and_then(|presence| presence.serving);
    if let Some(serving) = presence.or(node.report.as_ref().and_then(|report| report.serving)) {
        status["serving"] = json!(serving);
    }
    json!({"apiVersion": API_VERSION, "kind": "Node", "metadata": metadata, "spec": {}, "status": status})
}

/// Whether the node is connected. The time of its last change is not kept: the last sign of life stands for it.
fn conditions(node: &NodeState) -> Vec<Condition> {
    let verdict = if node.is_online() {
        Verdict::good()
    } else if node.presence.is_some() {
        Verdict::bad("Offline", "the node is not connected; it goes on serving what it has")
    } else {
        Verdict::unknown("NeverConnected", "the node is enrolled and has not connected yet")
    };
    Conditions::new(&[], &clock::rfc3339(node.last_seen_s)).set("Ready", &verdict).build()
}

fn shown_event(node: &NodeId, event: &Event) -> Value {
    let mut shown = json!(event);
    shown["apiVersion"] = API_VERSION.into();
    shown["kind"] = "Event".into();
    shown["node"] = node.as_str().into();
    shown
}
