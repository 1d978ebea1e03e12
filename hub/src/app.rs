//! The wiring: knows every part of the hub and every edge between them, and decides nothing.

use std::fs::DirBuilder;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tombolo_hub_core::Settings;
use tombolo_store::Store;

use crate::api::{Api, Sources};
use crate::broker::Broker;
use crate::catalog::{Catalog, CatalogWriter, State};
use crate::config::{Config, HostPort};
use crate::fleet::{AllCredentials, FleetHandle};
use crate::images::Resolver;
use crate::link::{self, Link};
use crate::nodes::{self, Addresses, Listener};
use crate::pki::Pki;
use crate::publish::{self, BrokerMemory, Publisher, Shelf};
use crate::reconcile::Reconciler;
use crate::registry::{self, Access, Registry};
use crate::serve::serve;
use crate::signatures::Collector;
use crate::tails::Tails;
use crate::upstream::Upstreams;

/// How long the parts may take to end; each has shorter limits of its own.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Log chunks between the fleet's owner and those who follow.
const TAILS_MAX: usize = 64;

/// A running hub. Dropped, it stops without waiting.
pub struct Hub {
    api: SocketAddr,
    nodes: SocketAddr,
    mqtt: Option<SocketAddr>,
    join_token: String,
    tasks: Tasks,
}

/// Everything that runs. No task ends before it is told to.
struct Tasks {
    running: JoinSet<&'static str>,
    stop: CancellationToken,
}

/// The token with which nodes join the hub of this configuration; made if there is none yet.
pub fn join_token(config: &Config) -> anyhow::Result<String> {
    make_directory(&config.state_dir)?;
    Ok(Pki::open(&config.state_dir).context("cannot open the hub's certificates")?.join_token().to_owned())
}

/// The public key, base64, by which nodes that were never enrolled know this hub's bundles; made if there is none yet.
pub fn manifest_key(config: &Config) -> anyhow::Result<String> {
    make_directory(&config.state_dir)?;
    Ok(Pki::open(&config.state_dir).context("cannot open the hub's certificates")?.manifest_key_base64())
}

/// Starts a hub; it listens when this returns.
pub async fn start(config: Config) -> anyhow::Result<Hub> {
    let state_dir = config.state_dir.clone();
    let opened = tokio::task::spawn_blocking(move || Opened::open(&state_dir)).await;
    let opened = opened.context("cannot open the state directory")??;
    let api = TcpListener::bind(config.api.listen)
        .await
        .with_context(|| format!("api.listen: cannot listen on {}", config.api.listen))?;
    let api_address = api.local_addr()?;
    let nodes = Listener::bind(config.nodes.listen)
        .await
        .with_context(|| format!("nodes.listen: cannot listen on {}", config.nodes.listen))?;
    let nodes_address = nodes.address();
    let (fleet, owner) = crate::fleet::open(&opened.store).context("cannot read the nodes")?;
    let broker = start_broker(&config, &opened.pki, &fleet).await?;
    let mqtt = broker.as_ref().map(Broker::address);
    let addresses = addresses(&config, nodes_address, mqtt);

    let mut tasks = Tasks { running: JoinSet::new(), stop: CancellationToken::new() };
    let stop = tasks.stop.clone();
    let (outbox, inbox, connection, worker) = link(&config, mqtt, &opened.pki)?.split();
    tasks.spawn("link", worker.run(stop.clone()));
    let (tail_sender, tail_receiver) = mpsc::channel(TAILS_MAX);
    let tails = Tails::new(outbox.clone(), fleet.watch());
    tasks.spawn("tails", tails.clone().run(tail_receiver));
    tasks.spawn("fleet", owner.run(inbox, outbox.clone(), tail_sender, stop.clone()));
    if let Some(broker) = broker {
        tasks.spawn("broker", keep_broker(broker, fleet.credentials(), stop.clone()));
    }

    let (catalog, writer) = opened.catalog;
    tasks.spawn("catalog", writer.run(stop.clone()));
    let upstreams = open_upstreams(&config, catalog.watch()).await?;
    let (images, resolver) = Resolver::new(opened.registry.clone(), upstreams.clone(), catalog.watch());
    tasks.spawn("images", resolver.run(stop.clone()));
    let grace = Duration::from_secs(config.registry.unused_s);
    tasks.spawn("registry", opened.registry.clone().keep_clean(grace, stop.clone()));
    tasks.spawn("cache", upstreams.clone().keep_clean(config.registry.cache.clone(), stop.clone()));
    let (signatures, collector) =
        Collector::new(opened.registry.clone(), upstreams.clone(), catalog.watch(), images.clone());
    tasks.spawn("signatures", collector.run(stop.clone()));
    let settings = Settings { domain: config.routes.domain.clone(), http_port: config.routes.http_port };
    let (placement, first, reconciler) =
        Reconciler::new(catalog.clone(), fleet.watch(), (images, signatures), settings);
    tasks.spawn("reconcile", reconciler.run(stop.clone()));

    let publisher =
        Publisher::open(opened.store.clone(), opened.pki.manifest_key().clone(), opened.complete)?;
    let published = publisher.watch();
    let memory = if mqtt.is_some() { BrokerMemory::Ours } else { BrokerMemory::Unknown };
    let shelf = Shelf::new(opened.store.clone(), placement.clone());
    let inputs = publish::Inputs { placement, fleet: fleet.watch(), connection, outbox, memory };
    let publishing = stop.clone();
    tasks.spawn("publish", async move {
        // An empty placement is an order to remove everything: nothing is published before there is a real one.
        if publishing.run_until_cancelled(first).await.is_some() {
            publisher.run(inputs, publishing).await;
        }
    });

    let pull = registry::router(opened.registry.clone(), upstreams.clone(), Access::ReadOnly);
    let router = nodes::router(opened.pki.clone(), fleet.clone(), addresses, pull);
    tasks.spawn("node listener", nodes.serve(opened.pki.node_listener()?, router, stop.clone()));
    let api_router = Api::new(Sources { catalog, fleet, published, shelf, tails }, stop.clone())
        .router(registry::router(opened.registry, upstreams, Access::ReadWrite));
    tasks.spawn("API listener", serve(api, api_router, stop));
    let join_token = opened.pki.join_token().to_owned();
    Ok(Hub { api: api_address, nodes: nodes_address, mqtt, join_token, tasks })
}

impl Hub {
    pub fn api_address(&self) -> SocketAddr {
        self.api
    }

    pub fn node_address(&self) -> SocketAddr {
        self.nodes
    }

    /// Where the embedded broker listens, if there is one.
    pub fn mqtt_address(&self) -> Option<SocketAddr> {
        self.mqtt
    }

    pub fn join_token(&self) -> String {
        self.join_token.clone()
    }

    /// Resolves when a part has ended that must not.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.tasks.running.join_next().await {
            Some(Ok(name)) => anyhow::anyhow!("the hub's {name} has ended"),
            Some(Err(error)) => anyhow::Error::new(error).context("a part of the hub has failed"),
            None => anyhow::anyhow!("the hub has stopped"),
        }
    }

    /// Stops every part; what was told to be stored is.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.tasks.stop.cancel();
        let ended = async { while self.tasks.running.join_next().await.is_some() {} };
        let limit = STOP_DEADLINE.as_secs();
        tokio::time::timeout(STOP_DEADLINE, ended)
            .await
            .with_context(|| format!("the hub did not stop within {limit} s"))
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.tasks.stop.cancel();
    }
}

impl Tasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.running.spawn(async move {
            task.await;
            name
        });
    }
}

/// What lies in the state directory.
struct Opened {
    store: Store,
    /// Whether the store has everything that was ever written to it.
    complete: bool,
    catalog: (Catalog, CatalogWriter),
    pki: Arc<Pki>,
    registry: Registry,
}

impl Opened {
    fn open(state_dir: &Path) -> anyhow::Result<Self> {
        make_directory(state_dir)?;
        let (store, recovery) = Store::open(&state_dir.join("store")).context("cannot open the store")?;
        if !recovery.is_complete() {
            tracing::error!(%recovery, "the hub's store lost something: compare what it has with what should run");
        }
        let catalog = Catalog::open(store.clone(), &recovery).context("cannot open the catalog")?;
        let pki = Arc::new(Pki::open(state_dir).context("cannot open the hub's certificates")?);
        let registry = Registry::open(&state_dir.join("registry")).context("cannot open the registry")?;
        Ok(Self { store, complete: recovery.is_complete(), catalog, pki, registry })
    }
}

/// Makes the state directory for the hub's user alone: it holds keys.
fn make_directory(path: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("state_dir: cannot create {}", path.display()))
}

/// What comes from other registries, and where it is kept.
async fn open_upstreams(config: &Config, state: watch::Receiver<Arc<State>>) -> anyhow::Result<Upstreams> {
    let (root, config) = (config.state_dir.join("cache"), config.registry.clone());
    let opened = tokio::task::spawn_blocking(move || Upstreams::open(&root, &config, state)).await;
    opened.context("cannot open the cache")?.context("cannot open the cache")
}

async fn start_broker(config: &Config, pki: &Pki, fleet: &FleetHandle) -> anyhow::Result<Option<Broker>> {
    if config.mqtt.url.is_some() {
        return Ok(None);
    }
    let credentials = fleet.credentials();
    let admits: crate::broker::Admits =
        Arc::new(move |node, key| credentials.borrow().get(node).is_some_and(|known| known.key == *key));
    let broker = Broker::start(config.mqtt.listen, pki.broker()?, admits).await;
    broker.map(Some).with_context(|| format!("mqtt.listen: cannot listen on {}", config.mqtt.listen))
}

/// Ends the sessions of nodes that are removed, and the broker at the end.
async fn keep_broker(
    broker: Broker,
    mut credentials: watch::Receiver<Arc<AllCredentials>>,
    stop: CancellationToken,
) {
    while let Some(Ok(())) = stop.run_until_cancelled(credentials.changed()).await {
        let known = credentials.borrow_and_update().clone();
        broker.retain_sessions(|node| known.contains_key(node));
    }
    stop.cancelled().await;
    broker.stop().await;
}

fn link(config: &Config, broker: Option<SocketAddr>, pki: &Pki) -> anyhow::Result<Link> {
    let address = match (&config.mqtt.url, broker) {
        (Some(url), _) => url.address().to_string(),
        (None, Some(address)) => from_here(address).to_string(),
        (None, None) => anyhow::bail!("there is neither an external broker nor one of our own"),
    };
    Ok(Link::new(&link::Options { address, tls: pki.client()? }))
}

/// How nodes reach this hub, as they are told.
fn addresses(config: &Config, nodes: SocketAddr, broker: Option<SocketAddr>) -> Addresses {
    let told = |advertise: &Option<HostPort>, listen: SocketAddr| {
        advertise.clone().unwrap_or_else(|| listen.into()).to_string()
    };
    let registry = told(&config.nodes.advertise, nodes);
    let mqtt = match &config.mqtt.url {
        Some(url) => url.address().to_string(),
        None => told(&config.mqtt.advertise, broker.unwrap_or(config.mqtt.listen)),
    };
    Addresses { hub_url: format!("https://{registry}"), mqtt_url: format!("mqtts://{mqtt}"), registry }
}

/// A listener's address as this machine reaches it.
fn from_here(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

#[cfg(test)]
mod tests;
