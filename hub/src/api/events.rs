//! What happened on nodes: `/apis/tombolo.dev/v1/events`, and the same of one namespace. What happened to a node itself
//! stands in the default namespace, as Kubernetes has it.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tombolo_api::Digest;
use tombolo_api::meta::{List, ListMeta, ObjectMeta, Status};

use super::answer::{Answer, json as answer};
use super::query::Query;
use super::{Api, table};
use crate::catalog::DEFAULT_NAMESPACE;
use crate::clock;
use crate::fleet::StoredEvent;

/// `apiVersion` of Tombolo's own resources.
const API_VERSION: &str = "tombolo.dev/v1";

/// Events in one list, the newest: what a person reads.
const EVENTS_MAX: usize = 1000;

const COLUMNS: [&str; 6] = ["Name", "Last Seen", "Type", "Reason", "Object", "Message"];

pub(super) fn router() -> Router<Api> {
    let base = "/apis/tombolo.dev/v1";
    Router::new()
        .route(&format!("{base}/events"), get(|api, query, headers| list(api, None, query, headers)))
        .route(
            &format!("{base}/namespaces/{{namespace}}/events"),
            get(|api, Path(namespace): Path<String>, query, headers| {
                list(api, Some(namespace), query, headers)
            }),
        )
        .route(&format!("{base}/namespaces/{{namespace}}/events/{{name}}"), get(read))
}

async fn list(State(api): State<Api>, namespace: Option<String>, query: Query, headers: HeaderMap) -> Answer {
    if query.watch {
        return Err(Status::method_not_allowed().into());
    }
    let selector = query.selector.within(namespace.as_deref());
    let events = api.fleet.events(EVENTS_MAX).await;
    let events = events.map_err(|error| Status::internal_error(&error.to_string()))?;
    let all = events.iter().map(|event| (metadata(event), event));
    let found: Vec<_> = all.filter(|(metadata, _)| selector.matches(metadata)).collect();
    if table::is_asked_for(&headers) {
        let now_s = clock::now_s();
        let rows = found.iter().map(|(metadata, event)| (cells(metadata, event, now_s), metadata));
        return Ok(answer(StatusCode::OK, &table::build(&COLUMNS, rows, &ListMeta::default())));
    }
    let items: Vec<Value> = found.into_iter().map(|(metadata, event)| shown(metadata, event)).collect();
    let (kind, metadata) = ("EventList".to_owned(), ListMeta::default());
    Ok(answer(StatusCode::OK, &List { api_version: API_VERSION.into(), items, kind, metadata }))
}

async fn read(State(api): State<Api>, Path((namespace, name)): Path<(String, String)>) -> Answer {
    let events = api.fleet.events(EVENTS_MAX).await;
    let events = events.map_err(|error| Status::internal_error(&error.to_string()))?;
    let mut all = events.iter().map(|event| (metadata(event), event));
    let found = all.find(|(metadata, _)| metadata.namespace == namespace && metadata.name == name);
    let (metadata, event) = found.ok_or_else(|| Status::not_found("events", "tombolo.dev", &name))?;
    Ok(answer(StatusCode::OK, &shown(metadata, event)))
}

/// Kind, namespace and name of what an event is about.
fn object(event: &StoredEvent) -> (&str, &str, &str) {
    let mut parts = event.event.object.splitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(kind), Some(namespace), Some(name)) => (kind, namespace, name),
        _ => ("node", "", event.node.as_str()),
    }
}

fn metadata(stored: &StoredEvent) -> ObjectMeta {
    let (_, namespace, name) = object(stored);
    let namespace = if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace };
    // A node that was removed and enrolled again counts anew; the time tells its events apart.
    let identity = Digest::of(format!("{}/{}/{}", stored.node, stored.number, stored.received_ms).as_bytes());
    let hex = identity.hex();
    ObjectMeta {
        name: format!("{name}.{}.{}", stored.node, &hex[..12]),
        namespace: namespace.into(),
        creation_timestamp: Some(clock::rfc3339(stored.event.time_ms / 1000)),
        uid: [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32]].join("-"),
        ..ObjectMeta::default()
    }
}

fn shown(metadata: ObjectMeta, stored: &StoredEvent) -> Value {
    let (kind, namespace, name) = object(stored);
    let mut shown = json!(stored.event);
    shown["apiVersion"] = API_VERSION.into();
    shown["kind"] = "Event".into();
    shown["node"] = stored.node.as_str().into();
    shown["involvedObject"] = json!({"kind": capitalised(kind), "namespace": namespace, "name": name});
    shown["metadata"] = json!(metadata);
    shown
}

fn cells(metadata: &ObjectMeta, stored: &StoredEvent, now_s: u64) -> Vec<String> {
    let event = &stored.event;
    let (kind, _, name) = object(stored);
    vec![
        metadata.name.clone(),
        table::age(now_s.saturating_sub(event.time_ms / 1000)),
        format!("{:?}", event.kind),
        event.reason.clone(),
        format!("{kind}/{name}"),
        event.message.clone(),
    ]
}

fn capitalised(kind: &str) -> String {
    let mut letters = kind.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tombolo_api::report::{Event, EventKind};

    use super::*;

    fn stored(number: &str, object: &str) -> StoredEvent {
        StoredEvent {
            node: "press-7".parse().unwrap(),
            number: number.into(),
            received_ms: 1,
            event: Event {
                seq: 3,
                time_ms: 1_763_000_000_500,
                reason: "InstanceExited".into(),
                kind: EventKind::Warning,
                object: object.into(),
                message: "exit code 1".into(),
            },
        }
    }

    #[test]
    fn an_event_is_an_object_like_others() {
        let event = stored("7", "revision/line-3/hello-00001");
        let shown = shown(metadata(&event), &event);
        let name = shown["metadata"]["name"].as_str().unwrap();
        assert!(name.starts_with("hello-00001.press-7."), "{name}");
        assert_eq!(shown["metadata"]["namespace"], "line-3");
        assert_eq!(shown["metadata"]["creationTimestamp"], "2025-11-13T02:13:20Z");
        assert!(uuid::Uuid::parse_str(shown["metadata"]["uid"].as_str().unwrap()).is_ok());
        let involved = json!({"kind": "Revision", "namespace": "line-3", "name": "hello-00001"});
        assert_eq!((&shown["involvedObject"], &shown["node"]), (&involved, &json!("press-7")));
        assert_eq!((&shown["type"], &shown["reason"]), (&json!("Warning"), &json!("InstanceExited")));
        let row = cells(&metadata(&event), &event, 1_763_000_060);
        assert_eq!(row[1..], ["60s", "Warning", "InstanceExited", "revision/hello-00001", "exit code 1"]);
        assert_ne!(metadata(&event).uid, metadata(&stored("8", "revision/line-3/hello-00001")).uid);
    }

    #[test]
    fn what_happens_to_a_node_stands_in_the_default_namespace() {
        let event = stored("7", "node");
        assert_eq!(metadata(&event).namespace, "default");
        assert_eq!(shown(metadata(&event), &event)["involvedObject"]["name"], "press-7");
    }
}
