//! `version`: of this command, and of a hub if one is named.

use crate::hub::Hub;
use crate::output;

/// `hub` is what was asked for explicitly; without it no hub is needed.
pub(crate) async fn run(hub: Option<Hub>) -> anyhow::Result<()> {
    output::print(concat!("tombolo ", env!("CARGO_PKG_VERSION"), "\n"))?;
    let Some(hub) = hub else { return Ok(()) };
    let answer = hub.get("/version").await?;
    let version =
        answer["tombolo"].as_str().or(answer["gitVersion"].as_str()).unwrap_or("of unknown version");
    output::print(&format!("hub     {version} at {}\n", hub.url()))
}
