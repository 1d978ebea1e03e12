//! `bundle`: what nodes should run, with its images, as one file that travels without a network.
//!
//! ```text
//! nodes ─▶ signed manifests, objects ─▶ images' documents ─▶ plan of the file ─▶ FILE.partial, layer by layer ─▶ FILE
//! ```

mod contents;
mod fetch;
mod file;
mod images;

use std::collections::BTreeMap;

use anyhow::Context as _;
use tombolo_oci::Archive;

use crate::args::{Bundle, BundleCommand, BundleCreate};
use crate::hub::{Hub, RequestError};
use crate::output;
use crate::steps::Steps;
use contents::Contents;

/// `hub` is asked for where one is needed.
pub(crate) async fn run(
    hub: impl FnOnce() -> Result<Hub, RequestError>,
    args: &Bundle,
) -> anyhow::Result<()> {
    match &args.command {
        BundleCommand::Create(args) => create(&hub()?, args).await,
        BundleCommand::Inspect { file } => {
            let archive = Archive::open(file).with_context(|| file.display().to_string())?;
            output::print(&shown(&archive))
        }
    }
}

async fn create(hub: &Hub, args: &BundleCreate) -> anyhow::Result<()> {
    let steps = Steps::begin();
    let base = args
        .without_images_of
        .as_ref()
        .map(|file| Archive::open(file).with_context(|| format!("--without-images-of: {}", file.display())));
    let base = base.transpose()?;
    let platforms = args.platform.iter().map(|text| images::platform(text)).collect::<Result<Vec<_>, _>>()?;
    let nodes = contents::nodes(hub, &args.node, args.selector.as_deref()).await?;
    let contents = Contents::gather(hub, &nodes, &platforms, base.as_ref()).await?;
    let names: Vec<String> = nodes.iter().map(|node| node.id.to_string()).collect();
    steps.say(&format!("{}: {}", names.join(", "), contents.summary()));
    let size = file::write(hub, steps, &contents, &args.output).await?;
    output::print(&format!("{} ({})\n", args.output.display(), file::size(size)))
}

/// What a bundle says of itself: not verified, as the hub's key is not known here.
fn shown(archive: &Archive) -> String {
    let index = &archive.index;
    let mut rows = Vec::new();
    for descriptor in &index.manifests {
        let annotation = |key: &str| descriptor.annotations.get(key).cloned();
        let (kind, name) = match (descriptor.node(), descriptor.version()) {
            (Some(node), Some(version)) => {
                ("node", format!("{node}, generation {} (epoch {})", version.generation, version.epoch))
            }
            _ => match annotation(tombolo_api::bundle::REFERENCE) {
                Some(reference) => ("image", reference),
                None => ("object", annotation(tombolo_api::bundle::OBJECT).unwrap_or_default()),
            },
        };
        let state = if archive.size(&descriptor.digest).is_some() { "" } else { "not in the file" };
        rows.push(vec![kind.to_owned(), name, descriptor.digest.short(), state.to_owned()]);
    }
    let blobs: BTreeMap<_, _> = archive.blobs().collect();
    let mut text = output::table(&["KIND", "NAME", "DIGEST", ""], &rows);
    text.push_str(&format!("{} blobs, {}", blobs.len(), file::size(blobs.values().sum())));
    if let Some(base) = index.base() {
        text.push_str(&format!("; goes on from bundle {}", base.get(..19).unwrap_or(base)));
    }
    if !archive.is_whole() {
        text.push_str("; the file ends too early");
    }
    text.push_str(&format!("\nbundle {}\n", archive.id));
    text
}
