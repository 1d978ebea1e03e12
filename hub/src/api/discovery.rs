//! What clients ask first: versions, groups, and which resources there are.

use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::header;
use serde_json::{Value, json};
use tombolo_api::serving;
use tombolo_hub_core::Kind;

use super::{Api, not_found};

/// The Kubernetes version whose manners this API has. Clients warn when it is far from their own.
const KUBERNETES_MINOR: u32 = 34;

/// The same, as schemas name it.
pub(super) const KUBERNETES_VERSION: &str = "v1.34.0";

/// Group of the resources that are Tombolo's own.
pub(super) const TOMBOLO_GROUP: &str = "tombolo.dev";

/// kubectl accepts no other spelling.
const OPENAPI_V2: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

pub(super) fn router() -> Router<Api> {
    Router::new()
        .route("/version", get(|| async { Json(version()) }))
        .route("/api", get(|| async { Json(core_versions()) }))
        .route("/api/v1", get(|| async { Json(resources("v1", &core())) }))
        .route("/apis", get(|| async { Json(groups()) }))
        .route("/apis/{group}", get(one_group))
        .route("/apis/{group}/v1", get(group_resources))
        // Empty: who wants schemas asks for version 3, and who does not leaves checking to the hub.
        .route("/openapi/v2", get(|| async { ([(header::CONTENT_TYPE, OPENAPI_V2)], "") }))
}

/// Kubernetes' version document, with Tombolo's own version beside it.
fn version() -> Value {
    let tombolo = env!("CARGO_PKG_VERSION");
    json!({
        "major": "1",
        "minor": KUBERNETES_MINOR.to_string(),
        "gitVersion": format!("{KUBERNETES_VERSION}+tombolo.{tombolo}"),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
        "tombolo": tombolo,
    })
}

fn core_versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

fn groups() -> Value {
    let groups: Vec<Value> = [serving::GROUP, TOMBOLO_GROUP].into_iter().map(group).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn group(name: &str) -> Value {
    let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
    json!({"name": name, "versions": [version.clone()], "preferredVersion": version})
}

async fn one_group(Path(name): Path<String>) -> Response {
    if name != serving::GROUP && name != TOMBOLO_GROUP {
        return not_found().await;
    }
    let mut group = group(&name);
    group["kind"] = "APIGroup".into();
    group["apiVersion"] = "v1".into();
    Json(group).into_response()
}

async fn group_resources(Path(name): Path<String>) -> Response {
    let list = match name.as_str() {
        serving::GROUP => resources(serving::API_VERSION, &serving_resources()),
        TOMBOLO_GROUP => resources("tombolo.dev/v1", &own()),
        _ => return not_found().await,
    };
    Json(list).into_response()
}

fn resources(group_version: &str, resources: &[Value]) -> Value {
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources})
}

fn serving_resources() -> Vec<Value> {
    let mut list = Vec::new();
    for kind in [Kind::Route, Kind::Service, Kind::Revision, Kind::Configuration] {
        let mut verbs =
            vec!["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
        if kind == Kind::Revision {
            verbs.retain(|verb| *verb != "create");
        }
        list.push(json!({
            "name": kind.plural(),
            "singularName": kind.name().to_lowercase(),
            "namespaced": true,
            "kind": kind.name(),
            "verbs": verbs,
            "shortNames": short_names(kind),
            "categories": ["all", "knative", "serving"],
        }));
        list.push(json!({
            "name": format!("{}/status", kind.plural()),
            "singularName": "",
            "namespaced": true,
            "kind": kind.name(),
            "verbs": ["get", "patch", "update"],
        }));
    }
    list
}

fn short_names(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Service => &["kservice", "ksvc"],
        Kind::Configuration => &["config", "cfg"],
        Kind::Revision => &["rev"],
        Kind::Route => &["rt"],
    }
}

fn core() -> [Value; 1] {
    [json!({
        "name": "namespaces",
        "singularName": "namespace",
        "namespaced": false,
        "kind": "Namespace",
        "verbs": ["create", "delete", "get", "list", "patch", "update"],
        "shortNames": ["ns"],
    })]
}

fn own() -> [Value; 2] {
    let resource = |name: &str, singular: &str, kind: &str, namespaced: bool, verbs: &[&str]| {
        json!({
            "name": name,
            "singularName": singular,
            "namespaced": namespaced,
            "kind": kind,
            "verbs": verbs,
            "categories": ["tombolo"],
        })
    };
    let mut events = resource("events", "event", "Event", true, &["get", "list"]);
    events["shortNames"] = json!(["ev"]);
    [resource("nodes", "node", "Node", false, &["delete", "get", "list"]), events]
}
