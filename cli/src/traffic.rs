//! `traffic`: shows how a service's requests are shared between its revisions, or changes it.

mod split;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::args;
use crate::fields::{items, number, text};
use crate::hub::Hub;
use crate::kinds::Kind;
use crate::{apply, output};

pub(crate) use split::{Split, told};

pub(crate) async fn run(hub: &Hub, args: &args::Traffic) -> anyhow::Result<()> {
    let split = Split { shares: parsed(&args.shares)?, tags: parsed(&args.tag)?, untag: args.untag.clone() };
    if split.is_empty() {
        let service = hub.get(&Kind::Service.item(&args.namespace, &args.name)).await?;
        return output::print(&table(&service));
    }
    let revisions = hub.get(&Kind::Revision.collection(Some(&args.namespace))).await?;
    let known: Vec<&str> =
        items(&revisions, "/items").iter().map(|revision| text(revision, "/metadata/name")).collect();
    let (outcome, stored) = apply::upsert(hub, Kind::Service, &args.namespace, &args.name, |live| {
        let live = live.with_context(|| {
            format!("there is no service {} in namespace {}: deploy it first", args.name, args.namespace)
        })?;
        let mut service = live.clone();
        let traffic = split.onto(Some(live), false)?;
        only_known(&traffic, &known)?;
        service["spec"]["traffic"] = traffic;
        if let Some(members) = service.as_object_mut() {
            members.remove("status");
        }
        Ok(service)
    })
    .await?;
    let traffic = told(&stored["spec"]["traffic"]);
    output::print(&format!("service/{} {}: {traffic}\n", args.name, outcome.word()))
}

/// Reads what is typed more than once in one form.
pub(crate) fn parsed<T: std::str::FromStr>(texts: &[String]) -> Result<Vec<T>, T::Err> {
    texts.iter().map(|text| text.parse()).collect()
}

/// A name that is mistyped would leave its share of the requests without an answer.
fn only_known(traffic: &Value, revisions: &[&str]) -> anyhow::Result<()> {
    let named = items(traffic, "").iter().map(|target| text(target, "/revisionName"));
    match named.filter(|name| !name.is_empty()).find(|name| !revisions.contains(name)) {
        None => Ok(()),
        Some(name) => bail!("there is no revision or tag {name}: see `tombolo get revisions`"),
    }
}

fn table(service: &Value) -> String {
    let row = |target: &Value| {
        let latest = if target["latestRevision"] == true { "yes" } else { "" };
        vec![
            text(target, "/revisionName").to_owned(),
            format!("{}%", number(target, "/percent").unwrap_or(0)),
            latest.to_owned(),
            text(target, "/tag").to_owned(),
            text(target, "/url").to_owned(),
        ]
    };
    let rows: Vec<_> = items(service, "/status/traffic").iter().map(row).collect();
    if rows.is_empty() {
        return "no requests are shared yet: no revision is ready\n".to_owned();
    }
    output::table(&["REVISION", "PERCENT", "LATEST", "TAG", "URL"], &rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn mistyped_revisions_are_refused() {
        let traffic =
            json!([{"latestRevision": true, "percent": 90}, {"revisionName": "a-1", "percent": 10}]);
        assert!(only_known(&traffic, &["a-1", "a-2"]).is_ok());
        assert!(only_known(&traffic, &["a-2"]).unwrap_err().to_string().contains("no revision or tag a-1"));
    }

    #[test]
    fn the_table_shows_where_requests_go() {
        let service = json!({"status": {"traffic": [
            {"revisionName": "a-1", "percent": 90},
            {"revisionName": "a-2", "percent": 10, "latestRevision": true, "tag": "canary", "url": "http://canary-a.n.x"},
        ]}});
        assert_eq!(
            table(&service),
            "REVISION   PERCENT   LATEST   TAG      URL\n\
             a-1        90%\n\
             a-2        10%       yes      canary   http://canary-a.n.x\n"
        );
        assert!(table(&json!({})).starts_with("no requests"));
    }
}
