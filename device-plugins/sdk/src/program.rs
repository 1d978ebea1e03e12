//! What is the same in every plugin program: flags, logs, signals, the runtime. It must not know what is served.

use std::future::Future;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::metrics::Metrics;
use crate::serve::{Change, ServeError, serve};

/// Threads that run tasks. A plugin answers a few calls an hour.
const WORKERS: usize = 1;

/// Threads for scans. Each resource uses one at a time, and one more is for a scan that hangs.
const BLOCKING_THREADS_MAX: usize = 32;

/// How long an idle thread for scans is kept.
const BLOCKING_KEEP: Duration = Duration::from_secs(2);

/// How long a scan that hangs may hold up the end of the program.
const END_MAX: Duration = Duration::from_secs(1);

/// Flags of every plugin program.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Where the kubelet's socket is, and where this plugin puts its own.
    #[arg(long, value_name = "DIR", env = "DEVICE_PLUGIN_DIRECTORY", default_value = tombolo_device_api::DEFAULT_DIRECTORY)]
    pub directory: PathBuf,
    /// Answer at http://ADDRESS/metrics in Prometheus' format, like 127.0.0.1:9100.
    #[arg(long, value_name = "ADDRESS", env = "DEVICE_PLUGIN_METRICS")]
    pub metrics: Option<SocketAddr>,
    /// What is logged: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", env = "DEVICE_PLUGIN_LOG", default_value = "info")]
    pub log: Targets,
    /// Log in JSON, one object a line.
    #[arg(long)]
    pub log_json: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("cannot start the runtime: {0}")]
    Runtime(std::io::Error),
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
    #[error("cannot listen at {address}: {source} (--metrics gives another address)")]
    Metrics { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Starts the logs, on standard error.
pub fn start_logs(flags: &Flags) {
    let colours = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(std::io::stderr);
    let log = tracing_subscriber::registry().with(flags.log.clone());
    if flags.log_json { log.with(lines.json()).init() } else { log.with(lines).init() }
}

/// Serves what `changes` brings until SIGTERM or Ctrl-C, with `beside` running beside it.
///
/// # Errors
/// The program cannot begin, or can never serve one of its resources.
pub fn run(
    flags: &Flags,
    changes: mpsc::Receiver<Change>,
    metrics: Metrics,
    beside: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ProgramError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_KEEP)
        .enable_all()
        .build()
        .map_err(ProgramError::Runtime)?;
    let result = runtime.block_on(run_here(flags, changes, metrics, beside));
    runtime.shutdown_timeout(END_MAX);
    result
}

async fn run_here(
    flags: &Flags,
    changes: mpsc::Receiver<Change>,
    metrics: Metrics,
    beside: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ProgramError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ProgramError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ProgramError::Signals)?;
    let ended = CancellationToken::new();
    if let Some(address) = flags.metrics {
        let listener =
            TcpListener::bind(address).await.map_err(|source| ProgramError::Metrics { address, source })?;
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "metrics are served");
        }
        tokio::spawn(metrics.clone().serve(listener, ended.clone().cancelled_owned()));
    }
    let beside = tokio::spawn(beside);
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; the sockets are removed");
    };
    let result = serve(&flags.directory, changes, metrics, shutdown).await;
    ended.cancel();
    beside.abort();
    Ok(result?)
}
