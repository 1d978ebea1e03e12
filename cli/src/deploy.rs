//! `deploy`: from a directory or an image's name to a service that answers.
//!
//! ```text
//! source ─▶ build ─▶ push ─▶ change of the Service ─▶ wait until it answers
//! ```

mod change;
mod source;

use std::time::Duration;

use serde_json::Value;

use tombolo_oci::Tag;

use crate::args;
use crate::build::{self, Image, Order, Registry};
use crate::hub::Hub;
use crate::kinds::Kind;
use crate::output;
use crate::probe::Curl;
use crate::ready::{self, Wanted};
use crate::steps::Steps;
use crate::traffic::{Split, parsed};
use crate::{apply, create, fields};

pub(crate) use change::{Change, KeyChange};
use source::Source;

pub(crate) async fn run(hub: &Hub, args: &args::Deploy) -> anyhow::Result<()> {
    let steps = Steps::begin();
    let changes = |option: &str, texts: &[String]| {
        texts.iter().map(|text| KeyChange::parse(option, text)).collect::<Result<Vec<_>, _>>()
    };
    let (env, limits) = (changes("--env", &args.env)?, changes("--limit", &args.limit)?);
    let annotations = changes("--annotation", &args.annotation)?;
    let source = match (&args.source, &args.git) {
        (Some(word), None) => Source::of(word)?,
        (_, git) => Source::Project(build::tree(None, git.as_deref(), steps).await?),
    };
    let name = source.service_name(args.name.as_deref())?;
    // A hub that is not there, or a name it would refuse, is found out before minutes of building.
    if create::ensure_namespace(hub, &args.namespace).await? {
        steps.say(&format!("namespace {} created", args.namespace));
    }
    let split = Split { shares: parsed(&args.traffic)?, tags: parsed(&args.tag)?, untag: Vec::new() };
    let mut change = Change {
        env,
        limits,
        annotations,
        port: args.port,
        concurrency: args.concurrency,
        min_scale: args.min_scale,
        max_scale: args.max_scale,
        rollout_duration: args.rollout_duration.clone(),
        split,
        ..Change::default()
    };
    match source {
        Source::Image(reference) => {
            change.image = reference.to_string();
            change.command.clone_from(&args.command);
        }
        Source::Project(tree) => {
            let registry = Registry::of(hub)?;
            let mut image =
                build::build(Some(&registry), steps, tree, Order::of(&args.building, &args.command)).await?;
            change.image = pushed(&registry, steps, &args.namespace, &name, &mut image).await?;
            change.image_has_command = image.has_command;
            if !image.has_command {
                change.command.clone_from(&args.command);
            }
        }
    }
    let stored = applied(hub, steps, &args.namespace, &name, &change).await?;
    if args.no_wait {
        return Ok(());
    }
    let wanted = Wanted::new(&stored, Duration::from_secs(args.timeout));
    let answering = ready::wait(hub, steps, &wanted).await?;
    output::print(&format!("URL:   {}\nTry:   {}\n", answering.url, Curl(&answering)))
}

/// Pushes an image and says so. Returns its name by digest.
pub(crate) async fn pushed(
    registry: &Registry,
    steps: Steps,
    namespace: &str,
    name: &str,
    image: &mut Image,
) -> anyhow::Result<String> {
    let repository = format!("{namespace}/{name}").parse()?;
    let pushed = registry.push(image, &repository, &Tag::latest(), steps).await?;
    Ok(build::said(steps, pushed).image)
}

/// Creates or changes the service and says so. Returns what the hub stored.
pub(crate) async fn applied(
    hub: &Hub,
    steps: Steps,
    namespace: &str,
    name: &str,
    change: &Change,
) -> anyhow::Result<Value> {
    let (outcome, stored) =
        apply::upsert(hub, Kind::Service, namespace, name, |live| change.onto(namespace, name, live)).await?;
    let generation = fields::number(&stored, "/metadata/generation").unwrap_or(0);
    steps.say(&format!("service {namespace}/{name} {} (generation {generation})", outcome.word()));
    Ok(stored)
}
