//! `describe`: everything worth knowing of one resource, for a person: what it is, its conditions, where its traffic
//! goes, what every node says of it, what happened lately.
//!
//! Reads; what it says is put together in [`page`].

mod page;
mod rollouts;
mod signatures;

use std::collections::BTreeSet;

use anyhow::Context as _;
use serde_json::Value;
use time::OffsetDateTime;

use crate::args;
use crate::exit::WrongUse;
use crate::fields::{items, text};
use crate::hub::{Hub, RequestError};
use crate::kinds::Kind;
use crate::output;
use page::{Page, Surroundings};

/// The hub's list of what nodes reported.
const EVENTS: &str = "/apis/tombolo.dev/v1/events";

const SERVICE_LABEL: &str = "/metadata/labels/serving.knative.dev~1service";
const CONFIGURATION_LABEL: &str = "/metadata/labels/serving.knative.dev~1configuration";

pub(crate) async fn run(hub: &Hub, args: &args::Describe) -> anyhow::Result<()> {
    let (kind, name) = Kind::parse_target(&args.kind, args.name.as_deref())?;
    let name =
        name.ok_or_else(|| WrongUse(format!("name the {} to describe", kind.name().to_lowercase())))?;
    let object = hub.get(&kind.item(&args.namespace, &name)).await?;
    let around = surroundings(hub, kind, &args.namespace, &name, &object)
        .await
        .context("reading what belongs to it")?;
    let page = Page { kind, object: &object, around: &around, now: OffsetDateTime::now_utc() };
    output::print(&page.text())
}

async fn surroundings(
    hub: &Hub,
    kind: Kind,
    namespace: &str,
    name: &str,
    object: &Value,
) -> Result<Surroundings, RequestError> {
    if kind == Kind::Namespace {
        let services = hub.get(&Kind::Service.collection(Some(name))).await?;
        let services = items(&services, "/items").to_vec();
        let signatures = signatures::lines(object, &[]);
        return Ok(Surroundings { services, signatures, ..Surroundings::default() });
    }
    let events = hub.get(EVENTS).await?;
    if kind == Kind::Node {
        return Ok(Surroundings { events: page::node_events(&events, name), ..Surroundings::default() });
    }
    let (revisions, nodes, demanding) = futures_util::try_join!(
        async { hub.get(&Kind::Revision.collection(Some(namespace))).await },
        async { hub.get(&Kind::Node.collection(None)).await },
        async { hub.get(&Kind::Namespace.item("", namespace)).await },
    )?;
    let own = own_revisions(kind, name, object, items(&revisions, "/items"));
    let rollouts = match kind {
        Kind::Service | Kind::Route => rollouts::of(items(&nodes, "/items"), namespace, name),
        _ => Vec::new(),
    };
    let signatures = match kind {
        Kind::Revision => signatures::lines(&demanding, &[object]),
        _ => signatures::lines(&demanding, &current_revisions(object, items(&revisions, "/items"))),
    };
    let on_nodes = page::on_nodes(items(&nodes, "/items"), namespace, &own);
    let events = page::revision_events(&events, namespace, &own);
    Ok(Surroundings { revisions: own, on_nodes, rollouts, events, signatures, ..Surroundings::default() })
}

/// Those of a Service's revisions, or a Configuration's, or a Route's, that get requests or will.
fn current_revisions<'a>(object: &Value, revisions: &'a [Value]) -> Vec<&'a Value> {
    let targets = items(object, "/status/traffic").iter().map(|target| text(target, "/revisionName"));
    let latest = ["/status/latestCreatedRevisionName", "/status/latestReadyRevisionName"];
    let current: BTreeSet<&str> = targets.chain(latest.map(|pointer| text(object, pointer))).collect();
    revisions.iter().filter(|revision| current.contains(text(revision, "/metadata/name"))).collect()
}

/// Names of the revisions that belong to an object.
fn own_revisions(kind: Kind, name: &str, object: &Value, revisions: &[Value]) -> BTreeSet<String> {
    let labelled = |label: &str| {
        let same = revisions.iter().filter(|revision| text(revision, label) == name);
        same.map(|revision| text(revision, "/metadata/name").to_owned()).collect()
    };
    match kind {
        Kind::Service => labelled(SERVICE_LABEL),
        Kind::Configuration => labelled(CONFIGURATION_LABEL),
        Kind::Route => items(object, "/status/traffic")
            .iter()
            .map(|target| text(target, "/revisionName").to_owned())
            .collect(),
        Kind::Revision => BTreeSet::from([name.to_owned()]),
        Kind::Node | Kind::Namespace => BTreeSet::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn revisions_are_found_by_owner() {
        let revision = |name: &str, service: &str| {
            let labels =
                json!({"serving.knative.dev/service": service, "serving.knative.dev/configuration": service});
            json!({"metadata": {"name": name, "labels": labels}})
        };
        let all = [revision("a-00001", "a"), revision("a-00002", "a"), revision("b-00001", "b")];
        let of = |kind, name: &str, object: &Value| {
            own_revisions(kind, name, object, &all).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(of(Kind::Service, "a", &json!({})), ["a-00001", "a-00002"]);
        assert_eq!(of(Kind::Configuration, "b", &json!({})), ["b-00001"]);
        assert_eq!(of(Kind::Revision, "a-00002", &json!({})), ["a-00002"]);
        let route = json!({"status": {"traffic": [{"revisionName": "a-00002", "percent": 100}]}});
        assert_eq!(of(Kind::Route, "a", &route), ["a-00002"]);
    }
}
