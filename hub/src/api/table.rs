//! Lists as tables for people, which kubectl asks for by `Accept: …;as=Table`: Knative's columns.

use http::{HeaderMap, header};
use serde_json::{Value, json};
use tombolo_api::meta::{Condition, ListMeta, ObjectMeta, condition};
use tombolo_hub_core::{Kind, Object};

use crate::clock;

/// Whether the client's first choice is a table.
pub(super) fn is_asked_for(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let first = accept.split(',').next().unwrap_or_default();
    first.split(';').any(|parameter| parameter.trim() == "as=Table")
}

/// The table of some objects of a kind.
pub(super) fn of(kind: Kind, objects: &[Object], metadata: &ListMeta) -> Value {
    let columns: Vec<&str> = std::iter::once("Name").chain(columns(kind).iter().copied()).collect();
    build(&columns, objects.iter().map(|object| (cells(object), object.metadata())), metadata)
}

/// A table of rows, each its cells and the metadata of what it shows. The first column is the name.
pub(super) fn build<'a>(
    columns: &[&str],
    rows: impl Iterator<Item = (Vec<String>, &'a ObjectMeta)>,
    metadata: &ListMeta,
) -> Value {
    let column = |name: &&str| {
        let format = if *name == "Name" { "name" } else { "" };
        json!({"name": name, "type": "string", "format": format, "description": "", "priority": 0})
    };
    let row = |(cells, metadata): (Vec<String>, &ObjectMeta)| {
        let partial = json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
        });
        json!({"cells": cells, "object": partial})
    };
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns.iter().map(column).collect::<Vec<_>>(),
        "rows": rows.map(row).collect::<Vec<_>>(),
    })
}

/// How long ago an object was made, for a person.
pub(super) fn age_of(metadata: &ObjectMeta) -> String {
    let made_s = metadata.creation_timestamp.as_deref().and_then(clock::parse_rfc3339);
    made_s.map_or_else(|| "<unknown>".into(), |made_s| age(clock::now_s().saturating_sub(made_s)))
}

/// A span of time in one unit, the largest that still tells something: as kubectl prints ages.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn columns(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Service => &["URL", "LatestCreated", "LatestReady", "Ready", "Reason"],
        Kind::Configuration => &["LatestCreated", "LatestReady", "Ready", "Reason"],
        Kind::Revision => {
            &["Config Name", "Generation", "Ready", "Reason", "Actual Replicas", "Desired Replicas"]
        }
        Kind::Route => &["URL", "Ready", "Reason"],
    }
}

fn cells(object: &Object) -> Vec<String> {
    use tombolo_api::serving::keys;
    let label = |key: &str| object.metadata().label(key).unwrap_or_default().to_owned();
    let number = |count: Option<i32>| count.map_or_else(String::new, |count| count.to_string());
    let mut cells = vec![object.metadata().name.clone()];
    match object {
        Object::Service(service) => {
            let status = &service.status;
            cells.push(status.url.clone());
            cells.push(status.latest_created_revision_name.clone());
            cells.push(status.latest_ready_revision_name.clone());
            cells.extend(ready(&status.conditions));
        }
        Object::Configuration(configuration) => {
            let status = &configuration.status;
            cells.push(status.latest_created_revision_name.clone());
            cells.push(status.latest_ready_revision_name.clone());
            cells.extend(ready(&status.conditions));
        }
        Object::Revision(revision) => {
            cells.push(label(keys::CONFIGURATION));
            cells.push(label(keys::CONFIGURATION_GENERATION));
            cells.extend(ready(&revision.status.conditions));
            cells.push(number(revision.status.actual_replicas));
            cells.push(number(revision.status.desired_replicas));
        }
        Object::Route(route) => {
            cells.push(route.status.url.clone());
            cells.extend(ready(&route.status.conditions));
        }
    }
    cells
}

/// Status and reason of `Ready`.
fn ready(conditions: &[Condition]) -> [String; 2] {
    let ready = condition(conditions, "Ready");
    let status = ready.map(|ready| format!("{:?}", ready.status)).unwrap_or_default();
    [status, ready.map(|ready| ready.reason.clone()).unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_first_choice_counts() {
        for (accept, table) in [
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", true),
            ("application/json", false),
            ("application/json, application/json;as=Table;v=v1;g=meta.k8s.io", false),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
            assert_eq!(is_asked_for(&headers), table, "{accept}");
        }
    }

    #[test]
    fn ages_are_short() {
        for (seconds, text) in
            [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172_800, "2d")]
        {
            assert_eq!(age(seconds), text);
        }
    }
}
