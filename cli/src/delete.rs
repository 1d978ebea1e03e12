//! `delete`: removes resources by kind and name.

use anyhow::Context;

use crate::args;
use crate::exit::WrongUse;
use crate::hub::Hub;
use crate::kinds::Kind;
use crate::output;

pub(crate) async fn run(hub: &Hub, args: &args::Delete) -> anyhow::Result<()> {
    if !args.files.is_empty() {
        return crate::apply::delete(hub, args).await;
    }
    let word = args.kind.as_deref().context("clap asks for a kind or a file")?;
    let (kind, first) = Kind::parse_target(word, None)?;
    let names: Vec<&str> =
        first.as_deref().into_iter().chain(args.names.iter().map(String::as_str)).collect();
    if names.is_empty() {
        return Err(WrongUse(format!("name the {} to delete", kind.plural())).into());
    }
    for name in names {
        one(hub, kind, args.namespace.as_deref().unwrap_or("default"), name, args.ignore_not_found).await?;
    }
    Ok(())
}

/// Deletes one resource and says so.
pub(crate) async fn one(
    hub: &Hub,
    kind: Kind,
    namespace: &str,
    name: &str,
    absent_is_fine: bool,
) -> anyhow::Result<()> {
    match hub.delete(&kind.item(namespace, name)).await {
        Ok(_) => output::print(&format!("{kind} \"{name}\" deleted\n")),
        Err(error) if error.is_not_found() && absent_is_fine => Ok(()),
        Err(error) => Err(error.into()),
    }
}
