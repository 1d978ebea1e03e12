//! An agent that runs: where it answers, that it has failed, and how it stops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tombolo_api::report::Report;
use tombolo_router::TUNNEL_GRACE;

use crate::accepted::Accepted;
use crate::execute::Executor;
use crate::outbox::Outbox;
use crate::rest::Rest;
use crate::router_socket::ROUTER_SOCKET;
use crate::supervisor::Supervisor;

/// Longest wait for requests when the agent stops: the router gives those there are the grace of tunnels, and those that come
/// meanwhile ten seconds. `TimeoutStopSec` of the agent's unit is longer.
const DRAIN_DEADLINE: Duration = TUNNEL_GRACE.saturating_add(Duration::from_secs(12));

/// The same where the instances end too: somebody has pressed a key and waits.
const LAST_DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// Longest wait for farewells when the agent stops.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// Longest wait for the disk to take the last events.
const FLUSH_DEADLINE: Duration = Duration::from_secs(1);

/// What becomes of the instances when the agent stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instances {
    /// They run on, and the next agent finds them.
    Keep,
    /// They end, and the supervisor with them.
    Remove,
}

/// A running agent.
pub struct Agent {
    pub(super) router_address: SocketAddr,
    pub(super) admin_address: SocketAddr,
    pub(super) executor: Executor,
    pub(super) supervisor: Supervisor,
    pub(super) outbox: Outbox,
    pub(super) accepted: watch::Receiver<Option<Arc<Accepted>>>,
    pub(super) report: watch::Receiver<Report>,
    pub(super) stop: CancellationToken,
    pub(super) drain: CancellationToken,
    /// Cancelled when the router has ended.
    pub(super) drained: CancellationToken,
    /// Tasks that end when `stop` is cancelled, the router when `drain` is.
    pub(super) ending: JoinSet<&'static str>,
    /// Tasks that run for ever.
    pub(super) lasting: JoinSet<&'static str>,
}

impl Agent {
    /// Where requests to functions come in.
    pub fn router_address(&self) -> SocketAddr {
        self.router_address
    }

    /// Where `/status` and the like answer.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Tells when bursts of work are over.
    pub fn rest(&self) -> Rest {
        Rest::new(self.accepted.clone(), self.report.clone())
    }

    /// Resolves only when a task ended that must not end.
    pub async fn failed(&mut self) -> anyhow::Error {
        let ended = tokio::select! {
            Some(ended) = self.ending.join_next() => ended,
            Some(ended) = self.lasting.join_next() => ended,
            else => return anyhow!("the agent has no tasks left"),
        };
        match ended {
            Ok(name) => anyhow!("the {name} ended by itself"),
            Err(error) => anyhow!("a task of the agent failed: {error}"),
        }
    }

    /// Lets open requests end while all goes on as before, then says goodbye to the hub, and ends or keeps the instances.
    ///
    /// With the instances the supervisor keeps the router's socket: requests wait for the next agent. Without them nobody
    /// listens afterwards.
    pub async fn stop(mut self, instances: Instances) -> anyhow::Result<()> {
        if instances == Instances::Remove
            && let Err(error) = self.supervisor.release_socket(ROUTER_SOCKET).await
        {
            tracing::warn!(%error, "the supervisor still listens");
        }
        self.drain.cancel();
        let patience = match instances {
            Instances::Keep => DRAIN_DEADLINE,
            Instances::Remove => LAST_DRAIN_DEADLINE,
        };
        if tokio::time::timeout(patience, self.drained.cancelled()).await.is_err() {
            tracing::warn!("not every request ended in time");
        }
        self.stop.cancel();
        let ending = async { while self.ending.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_DEADLINE, ending).await.is_err() {
            tracing::warn!("not everything ended in time");
        }
        let _ = tokio::time::timeout(FLUSH_DEADLINE, self.outbox.flushed()).await;
        self.ending.shutdown().await;
        self.lasting.shutdown().await;
        let cleared = match instances {
            Instances::Keep => Ok(()),
            Instances::Remove => self.executor.clear().await.context("cannot end the instances"),
        };
        self.executor.abandon().await;
        cleared
    }
}
