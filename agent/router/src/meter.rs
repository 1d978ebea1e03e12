//! What the router counts, for whoever scales, drains and reports. Read from outside at any time; written by the data path
//! through shared atomics, without locks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tombolo_agent_core::actual::{Demand, Moment, Traffic};
use tombolo_agent_core::limits::TUNNEL_GRACE_MS;
use tombolo_agent_core::routes::{Endpoint, RouteTable};
use tombolo_agent_core::supervision::InstanceId;
use tombolo_agent_core::waits::Waits;
use tombolo_api::RevisionKey;

use crate::activations::Activations;
use crate::instance::Instance;
use crate::revision::{Node, Revision};
use crate::sample::RevisionMeter;
use crate::tally::Tally;

/// How long a connection that has switched protocols may stay at an instance that leaves.
pub const TUNNEL_GRACE: Duration = Duration::from_millis(TUNNEL_GRACE_MS);

/// What became of connections when there were as many as there may be.
#[derive(Debug, Default)]
pub(crate) struct Crowding {
    /// New ones that were turned away.
    pub(crate) refused: AtomicU64,
    /// Those without a request that were closed to make room.
    pub(crate) displaced: AtomicU64,
}

/// Counters of a node's revisions and instances.
pub struct Meter {
    pub(crate) node: Arc<Node>,
    pub(crate) crowding: Arc<Crowding>,
    revisions: RwLock<BTreeMap<RevisionKey, Arc<Revision>>>,
    instances: RwLock<BTreeMap<Endpoint, Arc<Instance>>>,
    in_force: Mutex<Option<Arc<RouteTable>>>,
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

impl Meter {
    pub fn new() -> Self {
        Self::with_tunnel_grace(TUNNEL_GRACE)
    }

    /// With another time than Knative's 60 s for tunnels at instances that leave.
    pub fn with_tunnel_grace(tunnel_grace: Duration) -> Self {
        let node = Node {
            start: Instant::now(),
            held: AtomicUsize::new(0),
            held_bytes: AtomicUsize::new(0),
            tunnel_grace,
            wake: OnceLock::new(),
            settled: Notify::new(),
            crowded: Notify::new(),
            activations: Arc::default(),
        };
        Self {
            node: Arc::new(node),
            crowding: Arc::default(),
            revisions: RwLock::default(),
            instances: RwLock::default(),
            in_force: Mutex::default(),
        }
    }

    /// All revisions in the table, and those that left it and still have requests.
    pub fn snapshot(&self) -> BTreeMap<RevisionKey, RevisionMeter> {
        self.snapshot_at(Instant::now())
    }

    /// As [`Meter::snapshot`]; `now` is for the averages, see [`RevisionMeter::since`] and [`crate::Sampler`].
    pub fn snapshot_at(&self, now: Instant) -> BTreeMap<RevisionKey, RevisionMeter> {
        let revisions = self.revisions.read().expect("no panic under this lock");
        revisions.values().map(|revision| (revision.key.clone(), read(revision, now))).collect()
    }

    pub fn revision(&self, key: &RevisionKey) -> Option<RevisionMeter> {
        let revisions = self.revisions.read().expect("no panic under this lock");
        revisions.get(key).map(|revision| read(revision, Instant::now()))
    }

    /// How long the requests wait that are at an instance of a revision and have no head of an answer yet.
    pub fn waits(&self, key: &RevisionKey) -> Waits {
        let revisions = self.revisions.read().expect("no panic under this lock");
        let read = |tally: &Tally| tally.awaiting.read(tally.micros(Instant::now()));
        revisions.get(key).map(|revision| read(&revision.tally)).unwrap_or_default()
    }

    /// From now on a request with which more than `calm` of its revision are here, waiting ones included, ends
    /// [`Meter::crowded`]; `None`: no request does. Without effect on a revision that is in no table.
    pub fn set_calm(&self, key: &RevisionKey, calm: Option<u32>) {
        let revisions = self.revisions.read().expect("no panic under this lock");
        if let Some(revision) = revisions.get(key) {
            revision.set_calm(calm);
        }
    }

    /// Wait until a request has come to a crowd, see [`Meter::set_calm`]; of several since the last call only one is told. For one
    /// caller at a time.
    pub async fn crowded(&self) {
        self.node.crowded.notified().await;
    }

    /// What the planner is told. `moment`: how it counts time.
    pub fn traffic(&self, moment: impl Fn(Instant) -> Moment) -> Traffic {
        let demand = |revision: &Revision| Demand {
            in_flight: count(revision.in_flight()),
            held: count(revision.held()),
            last_request: revision.tally.last_activity().map(&moment),
        };
        let revisions = self.revisions.read().expect("no panic under this lock");
        let revisions = revisions.iter().map(|(key, revision)| (key.clone(), demand(revision))).collect();
        let (mut loads, mut served) = (BTreeMap::new(), BTreeSet::new());
        for instance in self.instances.read().expect("no panic under this lock").values() {
            if instance.load() > 0 {
                *loads.entry(instance.endpoint.instance.clone()).or_default() += instance.load();
            }
            if instance.has_served() {
                served.insert(instance.endpoint.instance.clone());
            }
        }
        Traffic { revisions, instances: loads, served, unsettled: false }
    }

    /// How long the ways to traffic take.
    pub fn activations(&self) -> &Arc<Activations> {
        &self.node.activations
    }

    /// Connections that were turned away, as there were as many as there may be.
    pub fn connections_refused(&self) -> u64 {
        self.crowding.refused.load(Ordering::Relaxed)
    }

    /// Connections without a request that were closed to make room for others.
    pub fn connections_displaced(&self) -> u64 {
        self.crowding.displaced.load(Ordering::Relaxed)
    }

    /// Requests held on the node.
    pub fn held(&self) -> usize {
        self.node.held.load(Ordering::Relaxed)
    }

    /// Bytes of the requests held on the node.
    pub fn held_bytes(&self) -> usize {
        self.node.held_bytes.load(Ordering::Relaxed)
    }

    /// Requests at an instance. See [`Meter::is_released`] for when it may be stopped.
    pub fn instance_in_flight(&self, id: &InstanceId) -> u32 {
        self.of_instance(id).iter().map(|instance| instance.load()).sum()
    }

    /// Whether the router sends the instance nothing any more and nothing is left at it.
    /// Meaningful once [`Meter::is_in_force`] says so of a table without the instance.
    pub fn is_released(&self, id: &InstanceId) -> bool {
        self.of_instance(id).iter().all(|instance| instance.is_drained())
    }

    /// Whether requests are routed by exactly this table.
    pub fn is_in_force(&self, table: &Arc<RouteTable>) -> bool {
        self.in_force
            .lock()
            .expect("no panic under this lock")
            .as_ref()
            .is_some_and(|t| Arc::ptr_eq(t, table))
    }

    /// Wait until another table came into force or a leaving instance served its last request.
    /// Create the future before checking, so that nothing is missed: it counts from its creation.
    pub fn settled(&self) -> tokio::sync::futures::Notified<'_> {
        self.node.settled.notified()
    }

    /// Wait until `table`, which lacks the instance, is in force and the instance is released. Requests end by their own limits,
    /// and tunnels after their grace, so that this comes to an end for every revision whose requests have a limit.
    pub async fn drained(&self, table: &Arc<RouteTable>, id: &InstanceId) {
        loop {
            let settled = self.settled();
            if self.is_in_force(table) && self.is_released(id) {
                return;
            }
            settled.await;
        }
    }

    pub(crate) fn set_in_force(&self, table: Arc<RouteTable>) {
        *self.in_force.lock().expect("no panic under this lock") = Some(table);
        self.node.settled.notify_waiters();
    }

    pub(crate) fn find_revision(
        &self,
        key: &RevisionKey,
        demand: &mpsc::Sender<RevisionKey>,
    ) -> Arc<Revision> {
        let mut revisions = self.revisions.write().expect("no panic under this lock");
        let make = || Arc::new(Revision::new(key.clone(), Arc::clone(&self.node), demand.clone()));
        Arc::clone(revisions.entry(key.clone()).or_insert_with(make))
    }

    /// The instance at an endpoint, taking requests.
    pub(crate) fn find_instance(&self, endpoint: &Endpoint) -> Arc<Instance> {
        let mut instances = self.instances.write().expect("no panic under this lock");
        let make = || Arc::new(Instance::new(endpoint.clone()));
        let instance = instances.entry(endpoint.clone()).or_insert_with(make);
        instance.revive();
        Arc::clone(instance)
    }

    pub(crate) fn instances(&self) -> Vec<Arc<Instance>> {
        self.instances.read().expect("no panic under this lock").values().cloned().collect()
    }

    pub(crate) fn revisions(&self) -> Vec<Arc<Revision>> {
        self.revisions.read().expect("no panic under this lock").values().cloned().collect()
    }

    /// Forget what left the table and has no requests.
    pub(crate) fn forget(&self, table: &RouteTable) {
        let mut revisions = self.revisions.write().expect("no panic under this lock");
        revisions.retain(|key, revision| {
            let busy = revision.tally.presence.count() > 0;
            busy || table.revisions.contains_key(key)
        });
        self.instances
            .write()
            .expect("no panic under this lock")
            .retain(|_, instance| !instance.is_drained());
    }

    /// An instance may listen on several ports.
    fn of_instance(&self, id: &InstanceId) -> Vec<Arc<Instance>> {
        let first = Endpoint { instance: id.clone(), port: 0 };
        let last = Endpoint { instance: id.clone(), port: u16::MAX };
        let instances = self.instances.read().expect("no panic under this lock");
        instances.range(first..=last).map(|(_, instance)| Arc::clone(instance)).collect()
    }
}

fn count(requests: usize) -> u32 {
    u32::try_from(requests).unwrap_or(u32::MAX)
}

fn read(revision: &Revision, now: Instant) -> RevisionMeter {
    let tally = &revision.tally;
    let attendance = tally.presence.read(tally.micros(now));
    let held = revision.held();
    RevisionMeter {
        at: now,
        born: revision.born,
        in_flight: ((attendance.entered - attendance.left) as usize).saturating_sub(held),
        held,
        held_bytes: revision.held_bytes(),
        last_activity: tally.last_activity(),
        arrived: attendance.entered,
        finished: attendance.left,
        concurrency_us: attendance.area_us,
        answers: std::array::from_fn(|digit| tally.answers[digit].load(Ordering::Relaxed)),
        abandoned: tally.abandoned.load(Ordering::Relaxed),
        given_up: tally.given_up.load(Ordering::Relaxed),
        broken: tally.broken.load(Ordering::Relaxed),
        latency: tally.latency.read(),
        faults_of_clients: tally.faults_of_clients.read(),
        cold_starts: tally.cold_starts.read(),
        refused: std::array::from_fn(|why| tally.refused[why].load(Ordering::Relaxed)),
    }
}
