//! `build`: from a project's directory to an image, without a daemon and without root.
//!
//! ```text
//! source ─▶ detect ─▶ base (image's documents, or this machine's files) ─▶ dependencies (cached) ─▶ code ─▶ image ─▶ push
//! ```
//!
//! Must not know services: who deploys the image is told its name.

mod base;
mod cache;
mod command;
mod credentials;
mod detect;
mod dockerfile;
mod git;
mod go;
mod host;
mod ignore;
mod image;
mod interrupt;
mod loader;
mod make;
mod node;
mod project;
mod python;
mod registry;
mod rust;
mod source;
mod tools;

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use serde_json::json;
use tombolo_api::Digest;
use tombolo_oci::{Repository, Tag};

use crate::args;
use crate::exit::WrongUse;
use crate::hub::Hub;
use crate::output;
use crate::steps::Steps;

pub(crate) use detect::Language;
pub(crate) use image::{Image, size};
pub(crate) use interrupt::{signalled, stop, tidy_up};
pub(crate) use registry::{Pushed, Registry};
pub(crate) use source::Tree;

/// User of a program that is alone in its image: nobody's, as in other such images.
const NOBODY: &str = "65532:65532";

/// Where programs are looked for in an image that does not say it.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a person wants of an image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Order {
    pub(crate) base: Option<String>,
    pub(crate) language: Option<Language>,
    /// What runs; empty: found out.
    pub(crate) command: Vec<String>,
    /// Nothing that was made before counts.
    pub(crate) fresh: bool,
}

impl Order {
    pub(crate) fn of(args: &args::Building, command: &[String]) -> Self {
        Self {
            base: args.base.clone(),
            language: args.language,
            command: command.to_vec(),
            fresh: args.no_cache,
        }
    }
}

pub(crate) async fn run(hub: &Hub, args: &args::Build) -> anyhow::Result<()> {
    let steps = Steps::begin();
    let tree = tree(args.source.as_deref(), args.git.as_deref(), steps).await?;
    let Destination { host, repository, tag } = Destination::of(args.tag.as_deref(), &tree)?;
    let registry = Registry::of(hub)?;
    let elsewhere = host.as_ref().map(|host| Registry::at(host, args.plain_http, hub.trust())).transpose()?;
    let to = elsewhere.as_ref().unwrap_or(&registry);
    let push = args.push || (!args.no_push && args.layout.is_none());
    if push {
        to.is_there(&repository, &tag).await?;
    }
    let mut image = build(Some(&registry), steps, tree, Order::of(&args.building, &args.command)).await?;
    let digest = image.digest();
    if args.layout.is_some() || (push && elsewhere.is_some()) {
        registry.bring_all(&mut image).await?;
    }
    if let Some(layout) = &args.layout {
        image.write_layout(layout, &format!("{repository}:{tag}"))?;
        steps.say(&format!("written to {}", layout.display()));
    }
    let mut pushed = None;
    if push {
        pushed = Some(said(steps, to.push(&mut image, &repository, &tag, steps).await?));
    }
    if args.json {
        let sent =
            |digest: &Digest| pushed.as_ref().is_some_and(|pushed: &Pushed| pushed.sent.contains(digest));
        let blobs: Vec<_> = image
            .blobs()
            .map(|part| json!({"digest": part.digest, "size": part.size, "sent": sent(&part.digest)}))
            .collect();
        let name = pushed.as_ref().map(|pushed| &pushed.image);
        return output::print(&output::json(&json!({"digest": digest, "image": name, "blobs": blobs})));
    }
    match pushed {
        Some(pushed) => output::print(&format!("{}\n", pushed.image)),
        None => output::print(&format!("{digest}\n")),
    }
}

/// The project that was named, by its directory or its repository.
pub(crate) async fn tree(directory: Option<&str>, git: Option<&str>, steps: Steps) -> anyhow::Result<Tree> {
    match (git, directory) {
        (Some(git), _) => {
            let tree = Tree::of_git(git).await?;
            steps.say(&format!("fetched {git} at {}", tree.commit.as_deref().unwrap_or_default()));
            Ok(tree)
        }
        (None, directory) => Tree::of_directory(&PathBuf::from(directory.unwrap_or("."))),
    }
}

/// Builds the image, and says what is taken for it.
pub(crate) async fn build(
    registry: Option<&Registry>,
    steps: Steps,
    tree: Tree,
    order: Order,
) -> anyhow::Result<Image> {
    let fresh = order.fresh;
    let project = make::Project::read(tree, order)?;
    let base = project.base()?.find(registry).await?;
    steps.say(&project.described(&base));
    let made = tokio::task::spawn_blocking(move || project.make(base, cache::Cache::open(fresh)?, steps));
    let image = made.await.context("building the image was broken off")??;
    steps.say(&format!("built an image of {}: {}", size(image.bytes()), image.digest()));
    Ok(image)
}

/// Says what a push did.
pub(crate) fn said(steps: Steps, pushed: Pushed) -> Pushed {
    let sent = match pushed.sent.len() {
        0 => "nothing new".to_owned(),
        1 => "one new blob".to_owned(),
        more => format!("{more} new blobs"),
    };
    steps.say(&format!("pushed {} ({sent})", pushed.image));
    pushed
}

/// Where an image goes: `[NAMESPACE/]NAME[:TAG]` of the hub, or `HOST/NAME[:TAG]`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Destination {
    /// Of another registry than the hub's.
    host: Option<String>,
    repository: Repository,
    tag: Tag,
}

impl Destination {
    fn of(asked: Option<&str>, tree: &Tree) -> anyhow::Result<Self> {
        let own;
        let text = match asked {
            Some(text) => text,
            None => {
                let fit = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
                let name: String = tree.name.chars().map(fit).collect();
                own = name.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-");
                if own.is_empty() {
                    bail!(WrongUse(format!("{:?} makes no name for an image: give one with -t", tree.name)));
                }
                &own
            }
        };
        let wrong = |why: &dyn std::fmt::Display| WrongUse(format!("-t {text}: {why}"));
        let (host, rest) = match text.split_once('/') {
            Some((host, rest)) if base::is_host(host) => (Some(host.to_owned()), rest),
            _ => (None, text),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) => (name, tag.parse().map_err(|error| wrong(&error))?),
            None => (rest, Tag::latest()),
        };
        let name =
            if host.is_some() || name.contains('/') { name.to_owned() } else { format!("default/{name}") };
        Ok(Self { host, repository: name.parse().map_err(|error| wrong(&error))?, tag })
    }
}

#[cfg(test)]
mod tests;
