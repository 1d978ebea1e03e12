//! `tombolo-agent import FILE`: through the agent that runs, or, where none does, by what the agent itself does, in this process.
//!
//! An agent holds its stores, so two never write them: who finds the lock taken asks, who finds it free is the agent for as long.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tombolo_api::NodeId;
use tombolo_oci::StoreError;

use super::images::Copying;
use super::request::Request;
use super::{Bundles, Ground, Report, State, directory};
use crate::config::Config;
use crate::identity::IdentityDir;
use crate::keep::Keep;
use crate::outbox::Outbox;
use crate::restore;
use crate::sync::Sync;

/// Between two looks at how far the agent is.
const LOOK: Duration = Duration::from_millis(100);

/// Between two lines of progress.
const SAY: Duration = Duration::from_secs(2);

/// How long the agent may be gone while it is waited for: a service manager starts it again within seconds.
const GONE_MAX: Duration = Duration::from_secs(30);

/// Messages to sync: one at a time.
const MESSAGES: usize = 4;

/// Imports a bundle and says what came of it on standard output.
pub async fn run(config: Config, bundle: &Path) -> anyhow::Result<()> {
    let bundle = std::path::absolute(bundle).context("the bundle's path")?;
    std::fs::metadata(&bundle).with_context(|| format!("{} cannot be read", bundle.display()))?;
    if !config.state_dir.is_dir() {
        bail!(
            "there is no {}: name the agent's configuration with --config, or start the agent once",
            config.state_dir.display()
        );
    }
    let report = if agent_runs(&config.state_dir)? {
        asked(&config.state_dir, &bundle).await?
    } else {
        alone(config, &bundle).await?
    };
    match report.state {
        State::Imported => {
            println!("{}: {}", bundle.display(), report.message);
            Ok(())
        }
        _ => bail!("{}: {} ({})", bundle.display(), report.message, report.reason),
    }
}

/// Whether an agent holds the image store.
fn agent_runs(state_dir: &Path) -> anyhow::Result<bool> {
    let path = state_dir.join("images/lock");
    let Ok(lock) = File::open(&path) else { return Ok(false) };
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error).with_context(|| format!("cannot look at {}", path.display())),
    }
}

/// The same by the kernel's list of locks: to be asked again and again without ever standing in the way of an agent that starts.
fn agent_is_there(state_dir: &Path) -> bool {
    let Ok(lock) = std::fs::metadata(state_dir.join("images/lock")) else { return false };
    let Ok(locks) = std::fs::read_to_string("/proc/locks") else { return true };
    let this = format!(":{} ", lock.ino());
    locks.lines().any(|line| line.contains("FLOCK") && line.contains(&this))
}

/// Has the running agent do it.
async fn asked(state_dir: &Path, bundle: &Path) -> anyhow::Result<Report> {
    let place = directory(state_dir);
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let request = Request::place(&place, bundle)
        .with_context(|| format!("cannot ask the running agent in {}", place.display()))?;
    let answered = tokio::select! {
        report = answer(&request, state_dir) => report,
        _ = interrupt.recv() => Err(anyhow::anyhow!("broken off; the next import goes on from here")),
        _ = terminate.recv() => Err(anyhow::anyhow!("broken off; the next import goes on from here")),
    };
    request.withdraw();
    answered
}

async fn answer(request: &Request, state_dir: &Path) -> anyhow::Result<Report> {
    let (mut gone, mut said) = (Duration::ZERO, SAY);
    loop {
        tokio::time::sleep(LOOK).await;
        match request.told() {
            Some(report) if report.state != State::Importing => return Ok(report),
            Some(report) if said >= SAY => {
                said = Duration::ZERO;
                say(&report);
            }
            _ => said += LOOK,
        }
        gone = if agent_is_there(state_dir) { Duration::ZERO } else { gone + LOOK };
        if gone >= GONE_MAX {
            bail!("the agent has ended meanwhile: start it, or import again to do it without one");
        }
    }
}

fn say(report: &Report) {
    let percent = report.copied_bytes.saturating_mul(100) / report.total_bytes.max(1);
    eprintln!(
        "{} of {} MiB copied ({percent} %)",
        report.copied_bytes.div_ceil(1 << 20),
        report.total_bytes.div_ceil(1 << 20)
    );
}

/// Does it without an agent: the next one to start finds it done.
async fn alone(config: Config, bundle: &Path) -> anyhow::Result<Report> {
    let me: NodeId = config.node.parse().context("node")?;
    let state_dir = config.state_dir.clone();
    let opened = tokio::task::spawn_blocking({
        let (state_dir, me, boot_id_file) = (state_dir.clone(), me.clone(), config.boot_id_file.clone());
        move || {
            let identity = IdentityDir::open(&state_dir)?.load(&me)?.map(Arc::new);
            let images = state_dir.join("images");
            let images = match std::fs::read_to_string(&boot_id_file) {
                Ok(boot) => tombolo_oci::Store::open_in_boot(&images, &boot),
                Err(_) => tombolo_oci::Store::open(&images),
            };
            let images = match images {
                Err(StoreError::InUse { .. }) => {
                    bail!("an agent has just been started: import again, through it")
                }
                opened => opened?,
            };
            let (keep, _) = Keep::open(&state_dir)?;
            Ok((identity, keep, images))
        }
    });
    let (identity, keep, images) = opened.await.context("opening the state directory")??;
    let trust = config.import.trusted();
    let key = identity.as_ref().map(|identity| identity.manifest_key()).or(trust);
    let accepted = match &key {
        Some(key) => restore::load(&keep, &state_dir, key, &me).await.map(Arc::new),
        None => None,
    };
    let version = accepted.as_ref().map(|accepted| accepted.serving.version);
    let outbox = Outbox::load(&keep);
    let writer = tokio::spawn(outbox.clone().write(keep.clone()));
    let (sync, received) = mpsc::channel(MESSAGES);
    let task = Sync {
        keep: keep.clone(),
        me: me.clone(),
        state_dir: state_dir.clone(),
        identity: watch::Sender::new(identity).subscribe(),
        trust,
        accepted: watch::Sender::new(accepted),
        wanted: watch::Sender::default(),
        refusals: watch::Sender::new(keep.refusals()),
        outbox: outbox.clone(),
    };
    let task = tokio::spawn(task.run(received));
    let ground = Ground { me, keep: keep.clone(), images, sync, room: None };
    let mut bundles = Bundles::load(&keep, version);
    let report = with_progress(&ground, bundle, &mut bundles, &outbox).await;
    outbox.flushed().await;
    // Its channel ends, and it with it, once nobody may import any more.
    drop(ground);
    task.await.context("desired state")?;
    writer.abort();
    Ok(report)
}

async fn with_progress(ground: &Ground, bundle: &Path, bundles: &mut Bundles, outbox: &Outbox) -> Report {
    let copying = Copying::default();
    let path: PathBuf = bundle.to_owned();
    let telling = async {
        loop {
            tokio::time::sleep(SAY).await;
            say(&Report::under_way(&path, &copying));
        }
    };
    let outcome = tokio::select! {
        outcome = ground.import(bundle, bundles, false, &copying) => outcome,
        () = telling => unreachable!("it runs for ever"),
    };
    let outcome = outcome.expect("what is asked for is never left out");
    let report = Report::of(bundle, &outcome, &copying);
    super::tell(outbox, bundle, &outcome, &report);
    report
}
