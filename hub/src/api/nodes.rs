//! Nodes: `/apis/tombolo.dev/v1/nodes`. They come by enrolling, and what they are they say themselves.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tombolo_api::NodeId;
use tombolo_api::meta::{Condition, List, ListMeta, ObjectMeta, Status};
use tombolo_api::report::{PullReport, Report};
use tombolo_hub_core::NodeState;
use tombolo_hub_core::conditions::{Conditions, Verdict};

use super::answer::{Answer, Refused, json as answer};
use super::discovery::TOMBOLO_GROUP;
use super::query::Query;
use super::{Api, table};
use crate::clock;
use crate::publish::{Published, ShelfError};

/// `apiVersion` of Tombolo's own resources.
const API_VERSION: &str = "tombolo.dev/v1";
/// Plural, as in paths and messages.
const PLURAL: &str = "nodes";

const COLUMNS: [&str; 6] = ["Name", "Status", "Address", "Kernel", "Pulling", "Age"];

pub(super) fn router() -> Router<Api> {
    let item = get(read).put(refuse_change).patch(refuse_change).delete(delete);
    Router::new()
        .route("/apis/tombolo.dev/v1/nodes", get(list))
        .route("/apis/tombolo.dev/v1/nodes/{name}", item)
        .route("/apis/tombolo.dev/v1/nodes/{name}/desired", get(desired))
}

async fn list(State(api): State<Api>, query: Query, headers: HeaderMap) -> Answer {
    if query.watch {
        return Err(Status::method_not_allowed().into());
    }
    let fleet = api.fleet.watch().borrow().clone();
    let published = api.published.borrow().clone();
    let nodes = fleet.values().map(|node| (metadata(node), node));
    let nodes: Vec<_> = nodes.filter(|(metadata, _)| query.selector.matches(metadata)).collect();
    if table::is_asked_for(&headers) {
        let now_s = clock::now_s();
        let rows = nodes.iter().map(|(metadata, node)| (cells(node, now_s), metadata));
        return Ok(answer(StatusCode::OK, &table::build(&COLUMNS, rows, &ListMeta::default())));
    }
    let items =
        nodes.into_iter().map(|(metadata, node)| shown(metadata, node, published.get(&node.id))).collect();
    Ok(answer(StatusCode::OK, &list_of("NodeList", items)))
}

async fn read(State(api): State<Api>, Path(name): Path<String>) -> Answer {
    let id = id(&name)?;
    let fleet = api.fleet.watch().borrow().clone();
    let node = fleet.get(&id).ok_or_else(|| not_found(&name))?;
    let published = api.published.borrow().clone();
    Ok(answer(StatusCode::OK, &shown(metadata(node), node, published.get(&id))))
}

/// What is published for the node, byte for byte: what a bundle is made from.
async fn desired(State(api): State<Api>, Path(name): Path<String>) -> Answer {
    let id = id(&name)?;
    let known = api.fleet.watch().borrow().contains_key(&id);
    if !known {
        return Err(not_found(&name));
    }
    match api.shelf.of(&id).await {
        Ok(whole) => Ok(answer(StatusCode::OK, &whole)),
        Err(error @ ShelfError::Unsettled(_)) => {
            Err(Status::failure(503, "ServiceUnavailable", error.to_string()).into())
        }
        Err(error) => Err(Status::internal_error(&error.to_string()).into()),
    }
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

/// What a node is, its agent says.
async fn refuse_change(Path(name): Path<String>) -> Refused {
    let why = format!(
        "nodes \"{name}\" cannot be changed here: its labels come from its agent; set them under [labels] in the agent's \
         configuration file (/etc/tombolo/agent.toml) and restart the agent"
    );
    Status::failure(405, "MethodNotAllowed", why).into()
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

fn cells(node: &NodeState, now_s: u64) -> Vec<String> {
    let status = if node.is_online() { "Ready" } else { "Offline" };
    let info = node.report.as_ref().map(|report| &report.info);
    vec![
        node.id.to_string(),
        status.into(),
        info.map(|info| info.address.clone()).unwrap_or_default(),
        info.map(|info| info.kernel_version.clone()).unwrap_or_default(),
        node.report.as_ref().map(|report| pulling(&report.pulls)).unwrap_or_default(),
        table::age(now_s.saturating_sub(node.enrolled_s)),
    ]
}

/// How far the images are that come, in one cell.
fn pulling(pulls: &[PullReport]) -> String {
    let sum = |of: fn(&PullReport) -> u64| pulls.iter().map(of).fold(0, u64::saturating_add);
    let (done, total) = (sum(|pull| pull.done_bytes), sum(|pull| pull.total_bytes));
    let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0);
    match pulls.len() {
        0 => String::new(),
        1 => format!("{percent}%"),
        images => format!("{percent}% of {images} images"),
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
        (status["capacity"], status["allocatable"]) =
            (resources(report, &report.info.capacity), resources(report, &report.info.allocatable));
        status["revisions"] = json!(report.revisions);
        if !report.routes.is_empty() {
            status["routes"] = json!(report.routes);
        }
        if !report.pulls.is_empty() {
            status["pulls"] = json!(report.pulls);
        }
        if !report.accelerators.is_empty() {
            status["accelerators"] = json!(report.accelerators);
        }
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

/// As Kubernetes shows what a node has: amounts are texts.
fn resources(report: &Report, devices: &BTreeMap<String, u64>) -> Value {
    let machine = [
        ("cpu".to_owned(), report.info.cpus.to_string()),
        ("memory".to_owned(), format!("{}Ki", report.info.memory_bytes >> 10)),
    ];
    let devices = devices.iter().map(|(name, count)| (name.clone(), count.to_string()));
    json!(machine.into_iter().chain(devices).collect::<BTreeMap<_, _>>())
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
