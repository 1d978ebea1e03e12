//! Wires the agent's edges together and decides nothing. Knows every edge; no edge knows this file.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tombolo_agent_core::autoscale::parameters::Defaults;
use tombolo_agent_core::autoscale::scaler::Decision;
use tombolo_agent_core::memory::NodeMemory;
use tombolo_agent_core::plan::Settings;
use tombolo_agent_core::routes::RouteTable;
use tombolo_agent_devices::Allocator;
use tombolo_api::report::{EventKind, Report};
use tombolo_api::{NodeId, RevisionKey};
use tombolo_router::{Dialer, Meter, Router};

use crate::accepted::Accepted;
use crate::admin::{Admin, Shown};
use crate::autoscale::Autoscale;
use crate::certificate::Files;
use crate::clock::Clock;
use crate::config::{Config, TlsConfig};
use crate::descriptors;
use crate::enrol::Enrol;
use crate::execute::{Executor, Tools};
use crate::gauge::Gauge;
use crate::identity::{Identity, IdentityDir};
use crate::import::{Bundles, Ground, Import, Pins, RoomWanted};
use crate::keep::{Keep, Record};
use crate::link::{Link, LinkState, Traffic};
use crate::node_info;
use crate::outbox::Outbox;
use crate::plugins::Plugins;
use crate::progress::{self, Progress, Records};
use crate::ready::ReadyRecord;
use crate::reconcile::{Inputs, Outputs, Reconciler};
use crate::restore;
use crate::router_socket::{self, ROUTER_SOCKET};
use crate::supervisor::{Supervisor, SupervisorConfig, SupervisorEvent};
use crate::sync::{Received, Sync};
use crate::tail;
use crate::tls::TimeFloor;
use crate::usage::Usage;

mod running;
mod tasks;

pub use running::{Agent, Instances};
use tasks::Tasks;

/// Messages from the hub that wait for sync: the blobs asked for at a time, several times over.
const RECEIVED: usize = 128;

/// Outcomes that wait for the reconciler.
const OUTCOMES: usize = 256;

/// Revisions that wait for the reconciler to see their demand; more of them are one look at the router's counts.
const DEMAND: usize = 256;

/// Log requests and chunks under way; a chunk is up to 32 KiB.
const TAIL_REQUESTS: usize = 16;
const TAIL_CHUNKS: usize = 8;

/// Wishes for room on the disk: one bundle is imported at a time.
const ROOM_WANTED: usize = 1;

/// How to start an agent.
pub struct Start {
    pub config: Config,
    /// The supervisor's program and its leading arguments.
    pub supervisor_command: Vec<PathBuf>,
}

/// What lies on the disk, opened.
struct Opened {
    keep: Keep,
    damage: Option<String>,
    images: tombolo_oci::Store,
    dir: IdentityDir,
    identity: Option<Arc<Identity>>,
}

/// What the edges share.
struct Shared {
    me: NodeId,
    images: tombolo_oci::Store,
    /// What bundles bring.
    pins: Pins,
    config: Config,
    keep: Keep,
    session: String,
    outbox: Outbox,
    floor: TimeFloor,
    identity: watch::Sender<Option<Arc<Identity>>>,
    accepted: watch::Sender<Option<Arc<Accepted>>>,
}

/// What serves, for those who report on it.
struct Served {
    address: SocketAddr,
    executor: Executor,
    tables: watch::Receiver<Arc<RouteTable>>,
    meter: Arc<Meter>,
    report: watch::Receiver<Report>,
    decisions: watch::Receiver<BTreeMap<RevisionKey, Decision>>,
    usage: Usage,
    specifications: watch::Receiver<Arc<Vec<String>>>,
    images: tombolo_oci::Store,
    ready: watch::Receiver<bool>,
}

/// Starts an agent. When this returns, router and admin API listen and the routes of the store are in force.
pub async fn start(start: Start) -> anyhow::Result<Agent> {
    let Start { config, supervisor_command } = start;
    let me: NodeId = config.node.parse().context("node")?;
    descriptors::raise_limit();
    make_directories(&config)?;
    let supervisor = SupervisorConfig {
        run_dir: config.run_dir.clone(),
        command: supervisor_command,
        log: config.run_dir.join("supervisor.log"),
    };
    let (opening_config, node) = (config.clone(), me.clone());
    let opening = tokio::task::spawn_blocking(move || open(&opening_config, &node));
    let (opened, supervised) = tokio::join!(opening, Supervisor::start(supervisor));
    let Opened { keep, damage, images, dir, identity } = opened.context("opening the state directory")??;
    let accepted = restored(&keep, &config, identity.as_deref(), &me).await;
    let bundles = Bundles::load(&keep, accepted.as_ref().map(|accepted| accepted.serving.version));
    let outbox = Outbox::load(&keep);
    if let Some(damage) = damage {
        outbox.push(EventKind::Warning, "StoreDamaged", "node", damage);
    }
    let shared = Shared {
        me,
        pins: bundles.pins(),
        images: images.clone(),
        config,
        keep,
        session: uuid::Uuid::new_v4().simple().to_string(),
        outbox: outbox.clone(),
        floor: TimeFloor::default(),
        identity: watch::Sender::new(identity),
        accepted: watch::Sender::new(accepted),
    };
    let stop = CancellationToken::new();
    let mut tasks = Tasks::new(stop.clone());
    let (supervisor, supervisor_events) = supervised?;
    let listener = router_socket::take(&supervisor, shared.config.router.listen).await?;
    let kept = OwnedFd::from(listener.try_clone().context("router.listen")?);
    let plugins = Plugins::start(&shared.config.devices).await;
    let served =
        serve(&shared, images, (supervisor.clone(), supervisor_events), listener, plugins, &mut tasks)?;
    let (router_address, executor) = (served.address, served.executor.clone());
    let (accepted, report) = (shared.accepted.subscribe(), served.report.clone());
    // Before the hub hears of the node: whoever it tells may ask at once.
    let admin_listen = shared.config.admin.listen;
    let listener = tokio::net::TcpListener::bind(admin_listen).await;
    let listener = listener.with_context(|| format!("admin.listen: cannot listen on {admin_listen}"))?;
    let admin = Admin::on(listener, connect(shared, dir, bundles, served, &mut tasks));
    let admin_address = admin.address().context("admin.listen")?;
    tasks.ending("admin API", admin.run(stop));
    // Only now: a start that fails leaves no socket behind on which nobody answers.
    if let Err(error) = supervisor.keep_socket(ROUTER_SOCKET, kept).await {
        tracing::warn!(%error, "requests will be refused while the agent is down");
    }
    tracing::info!(router = %router_address, admin = %admin_address, "the agent serves");
    let Tasks { stop, drain, drained, ending, lasting } = tasks;
    Ok(Agent {
        router_address,
        admin_address,
        executor,
        supervisor,
        outbox,
        accepted,
        report,
        stop,
        drain,
        drained,
        ending,
        lasting,
    })
}

/// What was accepted before, if there is a key to verify it by.
async fn restored(
    keep: &Keep,
    config: &Config,
    identity: Option<&Identity>,
    me: &NodeId,
) -> Option<Arc<Accepted>> {
    let key = identity.map(Identity::manifest_key).or(config.import.trusted())?;
    restore::load(keep, &config.state_dir, &key, me).await.map(Arc::new)
}

fn make_directories(config: &Config) -> anyhow::Result<()> {
    for dir in [&config.state_dir, &config.run_dir] {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    Ok(())
}

/// Starts what serves: executor, reconciler, router. None of them needs the hub.
fn serve(
    shared: &Shared,
    images: tombolo_oci::Store,
    (supervisor, supervisor_events): (Supervisor, mpsc::Receiver<SupervisorEvent>),
    listener: TcpListener,
    plugins: Plugins,
    tasks: &mut Tasks,
) -> anyhow::Result<Served> {
    let Shared { config, keep, outbox, accepted, .. } = shared;
    let (outcome_sender, outcomes) = mpsc::channel(OUTCOMES);
    let (demand_sender, demand) = mpsc::channel(DEMAND);
    let dialer = Dialer::start().context("cannot start the dialling thread")?;
    let wake = supervisor.waker();
    let meter = Arc::new(Meter::new());
    let Plugins { inventory, choices, allocator, usage, specifications, task } = plugins;
    tasks.lasting("device plugins", task);
    let devices = allocator.as_ref().ok().cloned();
    let store = images.clone();
    let executor = Executor::new(tools(shared, images, supervisor, &dialer, &meter, devices), outcome_sender);
    let (table, tables) = watch::channel(Arc::new(RouteTable::default()));
    let (report, ready) = (watch::Sender::default(), watch::Sender::new(false));
    let (reports, readiness) = (report.subscribe(), ready.subscribe());
    let (ready_record, poke, clock) = (ReadyRecord::load(keep), Arc::<Notify>::default(), Clock::start());
    let (targets, target_changes) = watch::channel(Arc::default());
    let (decisions, decided) = watch::channel(BTreeMap::new());
    let gauge = Gauge::new(&config.meminfo_file);
    let node = gauge.node();
    let settings = (settings(config, node.as_ref()), usage.overuses.clone());
    let progress = Progress::load(keep);
    let records = record(keep, &progress, tasks);
    let (outbox, poked) = (outbox.clone(), poke.clone());
    let outputs = Outputs { table, report, outbox, records, poke: poked, choices, ready };
    let (told, left) = ((settings, gauge), (ready_record.clone(), progress));
    let mut reconciler = Reconciler::new(executor.clone(), outputs, meter.clone(), told, left, clock);
    // Before the router accepts, so that no host is unknown to it at first.
    reconciler.prime(accepted.borrow().clone());
    let router = Router::on(listener, tables.clone(), demand_sender, dialer, meter.clone())
        .context("router.listen: cannot serve")?
        .with_wake(Arc::new(wake));
    let router = with_tls(router, &config.router.tls, tasks)?;
    let address = router.address();
    reconciler.describe(node_info::read(config, node.map_or(0, |node| node.total_bytes), address));
    reconciler.expect_plugins(allocator.map(drop));
    let autoscale = Autoscale {
        accepted: accepted.subscribe(),
        table: tables.clone(),
        report: reports.clone(),
        meter: meter.clone(),
        poke,
        targets,
        decisions,
        clock,
        defaults: defaults(config),
    };
    tasks.lasting("autoscaler", autoscale.run());
    let inputs = Inputs {
        accepted: accepted.subscribe(),
        supervisor: supervisor_events,
        demand,
        targets: target_changes,
        outcomes,
        devices: inventory,
        uses: usage.uses.clone(),
        pulls: executor.pulls(),
    };
    tasks.lasting("reconciler", reconciler.run(inputs));
    route(router, tasks);
    remember(shared, ready_record, tasks);
    let (report, decisions, ready, images) = (reports, decided, readiness, store);
    Ok(Served { address, executor, tables, meter, report, decisions, usage, specifications, images, ready })
}

/// What the plan goes by; memory without bound where the kernel does not say what there is.
fn settings(config: &Config, node: Option<&NodeMemory>) -> Settings {
    let memory_bytes = node.map_or(u64::MAX, NodeMemory::for_instances);
    Settings { memory_bytes, overuse: config.devices.memory.rule() }
}

/// Starts the router, which ends once open requests have had their time.
fn route(router: Router, tasks: &mut Tasks) {
    let (drain, drained) = (tasks.drain.clone(), tasks.drained.clone().drop_guard());
    tasks.ending("router", async move {
        router.run(drain.cancelled()).await;
        drop(drained);
    });
}

/// Starts what writes down what an agent must still know when it starts again.
fn remember(shared: &Shared, ready_record: ReadyRecord, tasks: &mut Tasks) {
    let Shared { keep, outbox, floor, accepted, .. } = shared;
    tasks.lasting("ready record", ready_record.write(keep.clone()));
    tasks.lasting("outbox", outbox.clone().write(keep.clone()));
    tasks.lasting("time floor", raise_floor(floor.clone(), accepted.subscribe()));
}

/// What the autoscaler goes by where a revision says nothing.
fn defaults(config: &Config) -> Defaults {
    let stable_window_ms = config.serving.idle_timeout_s.saturating_mul(1000);
    Defaults { stable_window_ms, ..Defaults::default() }
}

/// What the executor works with.
fn tools(
    shared: &Shared,
    images: tombolo_oci::Store,
    supervisor: Supervisor,
    dialer: &Dialer,
    meter: &Meter,
    devices: Option<Allocator>,
) -> Tools {
    Tools {
        supervisor,
        dialer: dialer.clone(),
        activations: meter.activations().clone(),
        images,
        pins: shared.pins.clone(),
        devices,
        identity: shared.identity.subscribe(),
        floor: shared.floor.clone(),
        state_dir: shared.config.state_dir.clone(),
        run_dir: shared.config.run_dir.clone(),
        keeping: shared.config.images.clone(),
    }
}

/// Starts what writes how far things are, where an agent goes on with it.
fn record(keep: &Keep, progress: &Progress, tasks: &mut Tasks) -> Records {
    let records = Records::new(progress);
    let write =
        |record, changes: &watch::Sender<_>| progress::write(keep.clone(), record, changes.subscribe());
    tasks.lasting("rollout record", write(Record::Rollouts, &records.rollouts));
    tasks.lasting("takeover record", write(Record::Takeovers, &records.takeovers));
    tasks.lasting("footprint record", write(Record::Footprints, &records.footprints));
    records
}

/// Has the router serve HTTPS too, if the configuration says so.
fn with_tls(router: Router, config: &TlsConfig, tasks: &mut Tasks) -> anyhow::Result<Router> {
    let Some(listen) = config.listen else { return Ok(router) };
    let files = Files { certificate: config.certificate.clone(), key: config.key.clone() };
    // Where that cannot be asked they are read again at the first look.
    let known = files.modified().ok();
    let configs = watch::Sender::new(files.load().context("router.tls")?);
    let listener =
        Router::listen(listen).with_context(|| format!("router.tls.listen: cannot listen on {listen}"))?;
    let router = router.with_tls(listener, configs.subscribe()).context("router.tls.listen")?;
    tasks.lasting("router's certificate", files.follow(configs, known));
    Ok(router)
}

fn open(config: &Config, me: &NodeId) -> anyhow::Result<Opened> {
    let dir = IdentityDir::open(&config.state_dir)?;
    let identity = dir.load(me)?.map(Arc::new);
    let (keep, damage) = Keep::open(&config.state_dir)?;
    let images = config.state_dir.join("images");
    let images = match fs::read_to_string(&config.boot_id_file) {
        Ok(boot) => tombolo_oci::Store::open_in_boot(&images, &boot)?,
        Err(_) => tombolo_oci::Store::open(&images)?,
    };
    Ok(Opened { keep, damage, images, dir, identity })
}

/// Starts what speaks with the hub; what the admin API shows.
fn connect(shared: Shared, dir: IdentityDir, bundles: Bundles, served: Served, tasks: &mut Tasks) -> Shown {
    let (received_sender, received) = mpsc::channel(RECEIVED);
    let import = importer(&shared, bundles, received_sender.clone(), served.executor.clone(), tasks);
    let Shared { me, config, keep, session, outbox, floor, identity, accepted, .. } = shared;
    let Served { tables, meter, report, decisions, usage, specifications, images, ready, .. } = served;
    let (tail_sender, tail_requests) = mpsc::channel(TAIL_REQUESTS);
    let (chunk_sender, chunks) = mpsc::channel(TAIL_CHUNKS);
    let (wanted, refusals) = (watch::Sender::default(), watch::Sender::new(keep.refusals()));
    let (link_state, trouble) = (watch::Sender::new(LinkState::Waiting), watch::Sender::default());
    let (renew, traffic) = (Arc::<Notify>::default(), Arc::<Traffic>::default());
    let accelerators = usage.accelerators.clone();
    let shown = Shown {
        node: me.clone(),
        session: session.clone(),
        ready: ready.clone(),
        table: tables,
        identity: identity.subscribe(),
        trouble: trouble.subscribe(),
        link: link_state.subscribe(),
        traffic: traffic.clone(),
        accepted: accepted.subscribe(),
        report: report.clone(),
        decisions,
        usage,
        specifications: specifications.clone(),
        images,
        refusals: refusals.subscribe(),
        import: import.report.subscribe(),
        outbox: outbox.clone(),
        meter,
    };
    let link = Link {
        me: me.clone(),
        session,
        floor: floor.clone(),
        identity: identity.subscribe(),
        accepted: accepted.subscribe(),
        report,
        accelerators,
        specifications,
        ready,
        refusals: refusals.subscribe(),
        wanted: wanted.subscribe(),
        outbox: outbox.clone(),
        chunks,
        received: received_sender,
        tail_requests: tail_sender,
        state: link_state,
        traffic,
        renew: renew.clone(),
    };
    tasks.lasting("import", import.run());
    tasks.ending("link", link.run(tasks.stop.clone()));
    tasks.lasting("log tail", tail::run(config.state_dir.clone(), tail_requests, chunk_sender));
    let (state_dir, identities) = (config.state_dir.clone(), identity.subscribe());
    let trust = config.import.trusted();
    let sync = Sync {
        keep,
        me: me.clone(),
        state_dir,
        identity: identities,
        trust,
        accepted,
        wanted,
        refusals,
        outbox,
    };
    tasks.lasting("sync", sync.run(received));
    tasks.lasting("enrolment", Enrol { me, hub: config.hub, dir, floor, identity, renew, trouble }.run());
    shown
}

/// What takes bundles.
fn importer(
    shared: &Shared,
    bundles: Bundles,
    sync: mpsc::Sender<Received>,
    executor: Executor,
    tasks: &mut Tasks,
) -> Import {
    let (room, room_wanted) = mpsc::channel(ROOM_WANTED);
    tasks.lasting("room for bundles", make_room(executor, room_wanted));
    let Shared { me, images, config, keep, outbox, accepted, .. } = shared;
    Import {
        ground: Ground { me: me.clone(), keep: keep.clone(), images: images.clone(), sync, room: Some(room) },
        bundles,
        state_dir: config.state_dir.clone(),
        media: config.import.directories.clone(),
        accepted: accepted.subscribe(),
        outbox: outbox.clone(),
        report: watch::Sender::default(),
    }
}

/// Has the executor make the room that bundles want.
async fn make_room(executor: Executor, mut wanted: mpsc::Receiver<RoomWanted>) {
    while let Some(RoomWanted { bytes, answer }) = wanted.recv().await {
        // Whoever asked may have been broken off.
        let _ = answer.send(executor.make_room(bytes).await);
    }
    std::future::pending().await
}

/// The hub's last signed time has passed, whatever the node's clock says.
async fn raise_floor(floor: TimeFloor, mut accepted: watch::Receiver<Option<Arc<Accepted>>>) {
    loop {
        if let Some(accepted) = &*accepted.borrow_and_update() {
            floor.raise(accepted.hub_time_s);
        }
        if accepted.changed().await.is_err() {
            return;
        }
    }
}
