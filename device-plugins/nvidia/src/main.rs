//! `tombolo-device-plugin-nvidia`: offers a machine's NVIDIA GPUs to Tombolo's agent or to a kubelet. Wires its parts, and
//! decides nothing. It alone loads the driver's libraries, so that a crash in there ends nothing else.

mod config;
mod cuda;
mod driver;
mod files;
mod gpu;
mod grant;
mod health;
mod inspect;
mod ld_cache;
mod metrics;
mod mps;
mod nodes;
mod prefer;
mod processes;
mod scan;
mod share;
mod spec;
mod suspend;
mod tegra;
#[cfg(test)]
mod testing;
mod view;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use anyhow::Context as _;
use clap::Parser;
use tokio::sync::mpsc;
use tombolo_device_sdk::metrics::Metrics;
use tombolo_device_sdk::program::{self, Flags};

use crate::config::Config;
use crate::view::View;
use crate::watch::Watch;

/// Changes of the set of resources that wait to be carried out; a machine has fewer kinds of instances.
const CHANGES_MAX: usize = 16;

/// Offers NVIDIA GPUs as resources: whole, shared, or cut into instances.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file; without it, every GPU is exclusive.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    program::start_logs(&arguments.flags);
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Arc::new(Config::load(arguments.config.as_deref(), std::env::vars())?);
    let (view, seen) = tokio::sync::watch::channel(Arc::new(View::default()));
    let (changes, taken) = mpsc::channel(CHANGES_MAX);
    let watch = Watch::new(config, view, changes);
    // Not joined: a call into the driver may never return, and the program's end does not wait for it.
    thread::Builder::new().name("gpus".into()).spawn(move || watch.run()).context("cannot start a thread")?;
    let counted = Metrics::default();
    counted.add(move |text| metrics::append(text, &seen.borrow()));
    program::run(&arguments.flags, taken, counted, std::future::pending())?;
    Ok(())
}
