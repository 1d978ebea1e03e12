//! `tombolo-hub`: the hub as a program. Reads its configuration, runs, tells systemd, stops when told to.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tombolo_config::{LogConfig, LogFormat};
use tombolo_hub::Hub;
use tombolo_hub::config::Config;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The hub is mostly waiting: more threads cost memory and gain nothing.
const WORKERS: usize = 2;

/// Threads for what blocks on the disk; more work waits.
const BLOCKING_MAX: usize = 16;

#[derive(Debug, Parser)]
#[command(
    name = "tombolo-hub",
    version,
    about = "The Tombolo hub: holds what should run, and tells every node"
)]
struct Args {
    /// Configuration file; without one the defaults hold.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Says whether the configuration is good, and ends.
    #[arg(long)]
    check_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prints the token with which nodes join.
    Token,
    /// Prints the public key of its signatures: `[import] trust` of nodes that get bundles and never join.
    ManifestKey,
}

fn main() -> ExitCode {
    // Fails only if it has been done already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::load(args.config.as_deref(), std::env::vars())?;
    let filter = filter(&config.log)?;
    if args.check_config {
        let file = args.config.as_ref().map_or("defaults".into(), |file| file.display().to_string());
        println!("{file}: ok");
        return Ok(());
    }
    let printed = match args.command {
        Some(Command::Token) => Some(tombolo_hub::join_token(&config)?),
        Some(Command::ManifestKey) => Some(tombolo_hub::manifest_key(&config)?),
        None => None,
    };
    if let Some(printed) = printed {
        println!("{printed}");
        return Ok(());
    }
    start_log(config.log.format, filter);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_MAX)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let mut hub = tombolo_hub::start(config).await?;
    say_where(&hub);
    notify(NotifyState::Ready);
    let mut watchdog = sd_notify::watchdog_enabled().map(|limit| tokio::time::interval(limit / 2));
    let failure = loop {
        tokio::select! {
            error = hub.failed() => break Some(error),
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            () = tick(watchdog.as_mut()) => notify(NotifyState::Watchdog),
        }
    };
    tracing::info!("stopping");
    notify(NotifyState::Stopping);
    let stopped = hub.stop().await;
    failure.map_or(stopped, Err)
}

fn say_where(hub: &Hub) {
    let mqtt = hub.mqtt_address().map_or_else(|| "external".to_owned(), |address| address.to_string());
    tracing::info!(api = %hub.api_address(), nodes = %hub.node_address(), mqtt, "the hub is ready");
}

async fn tick(watchdog: Option<&mut tokio::time::Interval>) {
    match watchdog {
        Some(watchdog) => drop(watchdog.tick().await),
        None => std::future::pending().await,
    }
}

/// Tells systemd, if it wants to know.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "systemd was not told");
    }
}

fn filter(config: &LogConfig) -> anyhow::Result<Targets> {
    config.level.parse().with_context(|| format!("log.level: {:?} is no filter", config.level))
}

fn start_log(format: LogFormat, filter: Targets) {
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let log = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Human => log.with(lines).init(),
        LogFormat::Json => log.with(lines.json().flatten_event(true)).init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
        let args = Args::parse_from(["tombolo-hub", "token", "--config", "/f"]);
        assert!(matches!(args.command, Some(Command::Token)) && args.config.is_some());
    }
}
