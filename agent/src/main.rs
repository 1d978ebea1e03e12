//! `tombolo-agent`: flags, logs, signals and systemd around the library.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tombolo_agent::config::Config;
use tombolo_agent::{Agent, Instances, Rest, Start, memory};
use tombolo_config::{LogConfig, LogFormat};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Threads that run tasks. Requests are a few microseconds each; two keep one slow poll from holding up everything.
const WORKERS: usize = 2;

/// Threads for file work. Each costs memory while it idles.
const BLOCKING_THREADS_MAX: usize = 8;

/// How long an idle thread for file work is kept.
const BLOCKING_KEEP: Duration = Duration::from_secs(2);

/// Runs functions on this node, with or without its hub.
#[derive(Parser)]
#[command(name = "tombolo-agent", version)]
struct Args {
    /// The configuration, TOML. Without it every key has its default.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Only say whether the configuration is good.
    #[arg(long)]
    check_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Brings this node up to date from a bundle: through the agent that runs, or without one
    Import {
        /// Made by `tombolo bundle create`
        bundle: PathBuf,
    },
}

fn main() -> ExitCode {
    memory::limit_arenas();
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tombolo-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    // One may be installed already by a library; it is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Config::load(args.config.as_deref(), std::env::vars())?;
    let filter: Targets =
        config.log.level.parse().with_context(|| format!("log.level: {:?}", config.log.level))?;
    if args.check_config {
        println!("{}: ok", args.config.as_deref().unwrap_or(Path::new("defaults")).display());
        return Ok(());
    }
    if let Some(Command::Import { bundle }) = &args.command {
        return tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?
            .block_on(tombolo_agent::import(config, bundle));
    }
    start_logs(&config.log, filter);
    let supervisor = supervisor(&config)?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_KEEP)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(Start { config, supervisor_command: vec![supervisor] }))
}

async fn serve(start: Start) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    let mut agent = tombolo_agent::start(start).await?;
    notify(NotifyState::Ready);
    tokio::spawn(shrink(agent.rest()));
    let result = tokio::select! {
        error = agent.failed() => Err(error),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = watchdog() => unreachable!("it runs for ever"),
    };
    tracing::info!("stopping; the instances run on");
    notify(NotifyState::Stopping);
    // Requests may take a minute to end, and the node serves meanwhile.
    let stopped = tokio::select! {
        stopped = Agent::stop(agent, Instances::Keep) => stopped,
        () = watchdog() => unreachable!("it runs for ever"),
    };
    result.and(stopped)
}

/// Gives back the memory of what only a burst of work needed, whenever one is over.
async fn shrink(mut rest: Rest) {
    while rest.reached().await.is_some() {
        // Said before it is done: what it takes to say something would come back with it.
        tracing::debug!("at rest: giving memory back");
        if let Err(error) = memory::unmap_program() {
            tracing::debug!(%error, "the program's file stays mapped");
        }
        memory::trim();
    }
}

/// Tells systemd that this program lives, if it wants to know; twice as often as it must.
async fn watchdog() {
    let Some(interval) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    loop {
        notify(NotifyState::Watchdog);
        tokio::time::sleep(interval / 2).await;
    }
}

fn notify(state: NotifyState<'_>) {
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[state]);
}

/// The supervisor's program: as configured, or beside this one.
fn supervisor(config: &Config) -> anyhow::Result<PathBuf> {
    if !config.supervisor.binary.as_os_str().is_empty() {
        return Ok(config.supervisor.binary.clone());
    }
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    Ok(own.with_file_name("tombolo-supervisor"))
}

fn start_logs(config: &LogConfig, filter: Targets) {
    let colours = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(std::io::stderr);
    let log = tracing_subscriber::registry().with(filter);
    match config.format {
        LogFormat::Human => log.with(lines).init(),
        LogFormat::Json => log.with(lines.json()).init(),
    }
}
