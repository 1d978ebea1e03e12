//! `traffic`: shows how a service's requests are shared between its revisions, or changes it.

mod split;

use anyhow::Context as _;
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
    let (outcome, stored) = apply::upsert(hub, Kind::Service, &args.namespace, &args.name, |live| {
        let live = live.with_context(|| {
            format!("there is no service {} in namespace {}: deploy it first", args.name, args.namespace)
        })?;
        let mut service = live.clone();
        service["spec"]["traffic"] = split.onto(Some(live), false)?;
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
    output::table(&["REVISION", "PERCENT", "LATEST", "TAG", "URL"], &rows)
}
