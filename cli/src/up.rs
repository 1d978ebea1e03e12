//! `up`: a hub and an agent in this process, for one machine, until Ctrl-C.
//!
//! ```text
//! claim the directories ─▶ choose addresses ─▶ hub ─▶ agent ─▶ node connected ─▶ [demo] ─▶ wait
//!                                               └──────┴── stopped in the other order, whatever happened ──┘
//! ```
//! Knows of hub and agent only how they are started, stopped, and where they listen; the demo deploys as anybody would.

mod addresses;
mod claim;
mod demo;
mod node;
mod privileges;
mod run_dir;
mod settings;
mod signals;

use std::io::IsTerminal as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use tombolo_agent::{Agent, Instances};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::args;
use crate::fields;
use crate::hub::Hub;
use crate::kinds::Kind;
use crate::output;
use crate::steps::Steps;
use addresses::Addresses;
use claim::{Claims, Holder};
use settings::Settings;
use signals::Signals;

/// From the agent's start to its first sign of life at the hub, which is a few round trips on this machine.
const CONNECT_DEADLINE: Duration = Duration::from_secs(60);

/// Between two looks at the node.
const INTERVAL: Duration = Duration::from_millis(50);

/// Longest stop of the agent or of the hub. Instances get their grace period of 30 s before they are killed.
const STOP_DEADLINE: Duration = Duration::from_secs(90);

/// Filter of log lines, as `tracing` reads it.
const LOG_VARIABLE: &str = "TOMBOLO_LOG";

/// What keeps `up` from doing anything at all.
pub(crate) fn check(_: &args::Up) -> anyhow::Result<()> {
    privileges::check()
}

pub(crate) async fn run(args: &args::Up) -> anyhow::Result<()> {
    let steps = Steps::begin();
    init_log()?;
    let mut signals = Signals::listen().context("signals cannot be listened for")?;
    let state_dir = std::path::absolute(&args.state_dir).context("--state-dir is no path")?;
    let run_dir = std::path::absolute(&args.run_dir).context("--run-dir is no path")?;
    let fresh = run_dir::check(&run_dir)?;
    let mut claims = Claims::take(&[&run_dir, &state_dir])?;
    let started = start(args, state_dir, run_dir.clone(), steps).await;
    let (settings, mut session) = match started {
        Ok(started) => started,
        Err(error) => {
            // What was left by another run is its successor's to take over, whenever one can start.
            if fresh && let Err(also) = run_dir::remove(&run_dir) {
                steps.say(&format!("cleaning up: {also:#}"));
            }
            return Err(error);
        }
    };
    let holder =
        Holder { pid: std::process::id(), hub: session.hub_url.clone(), router: session.router.to_string() };
    let told = claims.tell(&holder);
    let outcome = tokio::select! {
        signal = signals.received() => {
            steps.say(&format!("{signal}: stopping"));
            Ok(())
        }
        error = failed(&mut session.hub, &mut session.agent) => Err(error),
        done = serve(args, &session.hub_url, &settings.node, steps) => done,
    };
    let stopped = session.stop(steps, run_dir).await;
    if let (Err(_), Err(also)) = (&outcome, &stopped) {
        steps.say(&format!("stopping: {also:#}"));
    }
    outcome.and(told).and(stopped)
}

/// Chooses what was not said, and starts hub and agent.
async fn start(
    args: &args::Up,
    state_dir: PathBuf,
    run_dir: PathBuf,
    steps: Steps,
) -> anyhow::Result<(Settings, Session)> {
    let addresses = Addresses::choose(args)?;
    let node = node::name(&state_dir, args.node.as_deref())?;
    let settings = Settings { state_dir, run_dir, node, addresses };
    let session = Session::start(&settings, steps).await?;
    Ok((settings, session))
}

/// What runs.
struct Session {
    hub: tombolo_hub::Hub,
    agent: Agent,
    hub_url: String,
    router: SocketAddr,
}

impl Session {
    async fn start(settings: &Settings, steps: Steps) -> anyhow::Result<Self> {
        settings.make_directories()?;
        let hub = tombolo_hub::start(settings.hub()).await.context("the hub cannot start")?;
        let hub_url = format!("http://{}", here(hub.api_address()));
        let mqtt = hub.mqtt_address().map(|address| format!(", MQTT {address}")).unwrap_or_default();
        steps.say(&format!("hub: API {hub_url}, nodes {}{mqtt}", hub.node_address()));
        if !hub.api_address().ip().is_loopback() {
            steps.say(
                "warning: the hub's API has no access control: whoever reaches it can deploy and delete",
            );
        }
        let start = settings.agent(hub.node_address(), hub.join_token());
        let agent = match tombolo_agent::start(start).await {
            Ok(agent) => agent,
            Err(error) => {
                if let Err(also) = hub.stop().await {
                    steps.say(&format!("stopping the hub: {also:#}"));
                }
                return Err(error.context("the agent cannot start"));
            }
        };
        let router = agent.router_address();
        steps.say(&format!(
            "agent: node {}, router {router}, health http://{}/healthz",
            settings.node,
            agent.admin_address()
        ));
        Ok(Self { hub, agent, hub_url, router })
    }

    /// Stops the agent with everything it runs, then the hub, then takes the run directory away. Goes on after a failure.
    async fn stop(self, steps: Steps, run_dir: PathBuf) -> anyhow::Result<()> {
        let agent = within(STOP_DEADLINE, "stopping the agent", self.agent.stop(Instances::Remove)).await;
        if agent.is_ok() {
            steps.say("agent stopped, no instance left");
        }
        let hub = within(STOP_DEADLINE, "stopping the hub", self.hub.stop()).await;
        let removed = run_dir::remove(&run_dir);
        if agent.is_ok() && hub.is_ok() && removed.is_ok() {
            steps.say("hub stopped, everything removed but what is kept for the next time");
        }
        agent.and(hub).and(removed)
    }
}

async fn within(
    limit: Duration,
    what: &'static str,
    act: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    match tokio::time::timeout(limit, act).await {
        Ok(done) => done.context(what),
        Err(_) => Err(anyhow!("{what} took more than {} s", limit.as_secs())),
    }
}

/// Resolves when either of them has failed.
async fn failed(hub: &mut tombolo_hub::Hub, agent: &mut Agent) -> anyhow::Error {
    tokio::select! {
        error = hub.failed() => error.context("the hub failed"),
        error = agent.failed() => error.context("the agent failed"),
    }
}

/// Everything from the started agent on. Returns after `--once`, otherwise never without an error.
async fn serve(args: &args::Up, hub_url: &str, node: &str, steps: Steps) -> anyhow::Result<()> {
    let hub = Hub::new(hub_url)?;
    connected(&hub, node).await?;
    steps.say(&format!("node {node} is connected"));
    if args.once {
        let answering = demo::deploy(&hub, steps).await?;
        return demo::ask(&answering).await;
    }
    if args.demo {
        let answering = demo::deploy(&hub, steps).await?;
        output::print(&demo::invitation(&answering))?;
    } else {
        output::print(&format!("Deploy:   tombolo deploy DIR{}\n", option(hub_url)))?;
    }
    steps.say("up; Ctrl-C stops everything");
    std::future::pending().await
}

/// How another `tombolo` finds this hub.
fn option(hub_url: &str) -> String {
    if hub_url == args::DEFAULT_HUB { String::new() } else { format!(" --hub {hub_url}") }
}

/// Waits until the hub has heard of the node.
async fn connected(hub: &Hub, node: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + CONNECT_DEADLINE;
    let item = Kind::Node.item("", node);
    loop {
        let why = match hub.get(&item).await {
            Ok(found) => match fields::condition(&found, "Ready") {
                Some(ready) if ready.status == "True" => return Ok(()),
                Some(ready) => ready.sentence(),
                None => "it has not said anything".to_owned(),
            },
            Err(error) if error.is_not_found() => "it is not enrolled".to_owned(),
            Err(error) => return Err(error.into()),
        };
        if Instant::now() >= deadline {
            bail!(
                "node {node} did not connect to the hub within {} s: {why}; more with {LOG_VARIABLE}=info",
                CONNECT_DEADLINE.as_secs()
            );
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// An address others listen on, as it is reached from this machine.
fn here(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        SocketAddr::from((Ipv4Addr::LOCALHOST, address.port()))
    } else {
        address
    }
}

/// Warnings and errors of hub and agent go between the steps; more if asked for.
fn init_log() -> anyhow::Result<()> {
    let asked = std::env::var(LOG_VARIABLE).unwrap_or_else(|_| "warn".to_owned());
    let filter: Targets = asked.parse().with_context(|| format!("{LOG_VARIABLE}={asked}"))?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // A terminal that is gone must not end the clean-up.
        .log_internal_errors(false);
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|error| anyhow!("the log cannot be set up: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_address_is_this_machine() {
        for (address, expected) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:2", "127.0.0.1:2"), ("10.0.0.7:3", "10.0.0.7:3")]
        {
            assert_eq!(here(address.parse().unwrap()), expected.parse().unwrap());
        }
    }

    #[test]
    fn the_hub_is_named_only_where_it_is_not_found_by_itself() {
        assert_eq!(option(args::DEFAULT_HUB), "");
        assert_eq!(option("http://127.0.0.1:1"), " --hub http://127.0.0.1:1");
    }
}
