//! Does what the plan says: images, bundles, instances, probes, leftovers. Every action runs as a task of its own and
//! reports its [`Outcome`]; nothing is decided here, and a failing action never holds up another.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{RwLock, Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tombolo_agent_core::devices::Devices;
use tombolo_agent_core::supervision::{ExitRecord, InstanceId, InstanceRecord, Refusal, Request};
use tombolo_agent_devices::Allocator;
use tombolo_api::desired::{Desired, RevisionObject};
use tombolo_api::report::PullReport;
use tombolo_api::serving::Container;
use tombolo_api::{Digest, RevisionKey};
use tombolo_oci::{Platform, Store};
use tombolo_router::{Activations, Dialer};

use crate::config::ImagesConfig;
use crate::identity::Identity;
use crate::import::Pins;
use crate::log_files;
use crate::probe::{self, Probes, Unsupported};
use crate::supervisor::{CallError, Supervisor};
use crate::tls::TimeFloor;

mod clear;
mod collect;
mod devices;
mod image;
mod launch;
mod nodes;
mod outcome;
mod preload;
mod preparing;
mod probing;
mod pulls;
mod signature;
mod suspend;
mod trouble;
mod users;

use collect::{Shelf, Wanted};
pub(crate) use devices::{NOT_READY, devices_of};
use image::Prepared;
pub(crate) use launch::claim_of;
pub(crate) use outcome::{Image, Outcome};
use preparing::Preparations;
use pulls::Pulls;
pub(crate) use suspend::{Occupant, RestoreError, SuspendError};
pub(crate) use trouble::Trouble;

/// What an instance's labels say, so that a restarted agent knows what it found.
pub(crate) const LABEL_NAMESPACE: &str = "tombolo.dev/namespace";
pub(crate) const LABEL_NAME: &str = "tombolo.dev/revision";
/// Digest of the revision object it was made from.
pub(crate) const LABEL_OBJECT: &str = "tombolo.dev/object";
pub(crate) const LABEL_PORT: &str = "tombolo.dev/port";
pub(crate) const LABEL_CONFIGURATION: &str = "tombolo.dev/configuration";
/// What it is reckoned with.
pub(crate) const LABEL_MEMORY_BYTES: &str = "tombolo.dev/memory-bytes";
/// Digest of its image, which must not be collected under it.
pub(crate) const LABEL_IMAGE: &str = "tombolo.dev/image";

/// Instances made at a time: creation is work for the kernel, not waiting.
const LAUNCHES_MAX: usize = 8;

/// Before an instance that could not be deleted is reported, and so tried again.
const DELETE_PAUSE: Duration = Duration::from_secs(2);

/// Pauses before a program that has only just begun is asked to end again.
const TERMINATE_AGAIN: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3)];

/// What an instance that is asked to end is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    /// It has only just begun, and may not listen yet; as the first process of its namespace it ignores what it does not
    /// handle, so it is asked again.
    Beginning,
    Serving,
    /// It hears only when it runs again.
    Frozen,
}

/// What the executor works with.
pub(crate) struct Tools {
    pub(crate) supervisor: Supervisor,
    pub(crate) dialer: Dialer,
    /// Is told how long what is done here takes.
    pub(crate) activations: Arc<Activations>,
    pub(crate) images: Store,
    /// What a bundle is bringing, which nothing wants yet.
    pub(crate) pins: Pins,
    /// `None`: no device plugin can register.
    pub(crate) devices: Option<Allocator>,
    pub(crate) identity: watch::Receiver<Option<Arc<Identity>>>,
    pub(crate) floor: TimeFloor,
    pub(crate) state_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) keeping: ImagesConfig,
}

/// Handle of the executor. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Executor {
    inner: Arc<Inner>,
}

struct Inner {
    tools: Tools,
    platform: Platform,
    outcomes: mpsc::Sender<Outcome>,
    /// Images that are complete, by revision object.
    prepared: Mutex<BTreeMap<Digest, Arc<Prepared>>>,
    preparing: Preparations,
    in_use: Mutex<BTreeMap<InstanceId, InUse>>,
    probes: Mutex<BTreeMap<InstanceId, probe::Guard>>,
    /// What instances have in the node's memory that was on their devices, bytes.
    moved: Mutex<BTreeMap<InstanceId, u64>>,
    /// Everything under way.
    tasks: Mutex<JoinSet<()>>,
    pulls: Pulls,
    shelf: Shelf,
    launches: Semaphore,
    /// Held for reading while an image is prepared, for writing while unwanted ones are removed.
    collecting: RwLock<()>,
    wanted: watch::Sender<Wanted>,
    /// Instances with devices.
    holders: watch::Sender<BTreeSet<InstanceId>>,
}

/// What an instance needs on the disk.
#[derive(Clone, Debug)]
struct InUse {
    revision: RevisionKey,
    image: Option<Digest>,
}

impl Executor {
    pub(crate) fn new(tools: Tools, outcomes: mpsc::Sender<Outcome>) -> Self {
        let pulls = Pulls::new(&tools.keeping, tools.floor.clone());
        let shelf = Shelf::open(&tools);
        let inner = Inner {
            tools,
            platform: Platform::host(),
            outcomes,
            prepared: Mutex::default(),
            preparing: Preparations::default(),
            in_use: Mutex::default(),
            probes: Mutex::default(),
            moved: Mutex::default(),
            tasks: Mutex::default(),
            pulls,
            shelf,
            launches: Semaphore::new(LAUNCHES_MAX),
            collecting: RwLock::new(()),
            wanted: watch::Sender::default(),
            holders: watch::Sender::default(),
        };
        let inner = Arc::new(inner);
        inner.spawn(collect::run(Arc::downgrade(&inner), inner.wanted.subscribe()));
        inner.spawn(preload::run(Arc::downgrade(&inner), inner.wanted.subscribe()));
        inner.spawn(nodes::run(Arc::downgrade(&inner), inner.holders.subscribe()));
        Self { inner }
    }

    /// Looks the image of a revision up, if it may be used; fetches and unpacks what is missing.
    pub(crate) fn prepare_image(&self, digest: Digest, object: Arc<RevisionObject>) {
        let inner = self.inner.clone();
        self.inner.spawn(async move {
            let result = match signature::check(&object) {
                Ok(caution) => {
                    let (preparing, images) = (inner.clone(), inner.tools.images.clone());
                    let of = object.clone();
                    let work = async move { image::prepare(&preparing, digest, &of).await };
                    let prepared = inner.preparing.run(digest, work, || images.beats()).await;
                    prepared.map(|fetched| Image { fetched, caution })
                }
                Err(refused) => Err(refused),
            };
            inner.tell(Outcome::ImagePrepared { object, digest, result }).await;
        });
    }

    /// Creates an instance, to wait.
    pub(crate) fn prime(
        &self,
        instance: InstanceId,
        digest: Digest,
        object: Arc<RevisionObject>,
        devices: Devices,
    ) {
        let inner = self.inner.clone();
        lock(&inner.in_use).insert(instance.clone(), InUse { revision: object.key(), image: None });
        self.inner.spawn(async move {
            let _permit = inner.launches.acquire().await;
            let result = launch::prime(&inner, &instance, digest, &object, &devices).await;
            if result.is_err() {
                inner.forget(&instance);
            }
            inner.tell(Outcome::Primed { instance, result }).await;
        });
    }

    /// Starts a primed instance, and probes it.
    pub(crate) fn start(&self, instance: InstanceId, pid: i32, port: u16, container: Option<&Container>) {
        let inner = self.inner.clone();
        let probes = Probes::of(container, port, &inner.reach(&instance));
        self.inner.spawn(async move {
            let result = launch::start_primed(&inner, &instance).await.map(|()| pid);
            inner.launched(instance, result, probes).await;
        });
    }

    /// Creates and starts an instance, and probes it.
    pub(crate) fn launch(
        &self,
        instance: InstanceId,
        digest: Digest,
        object: Arc<RevisionObject>,
        devices: Devices,
    ) {
        let inner = self.inner.clone();
        lock(&inner.in_use).insert(instance.clone(), InUse { revision: object.key(), image: None });
        self.inner.spawn(async move {
            let permit = inner.launches.acquire().await;
            let result = launch::launch(&inner, &instance, digest, &object, &devices).await;
            drop(permit);
            let reach = inner.reach(&instance);
            let probes = Probes::of(object.spec.serving_container(), object.spec.port(), &reach);
            inner.launched(instance, result, probes).await;
        });
    }

    /// Stops an instance's processes where they are.
    pub(crate) fn freeze(&self, instance: InstanceId) {
        let inner = self.inner.clone();
        // It cannot answer from now on.
        self.inner.probing(&instance, probe::Guard::pause);
        self.inner.spawn(async move {
            let result = inner.tools.supervisor.call(Request::Freeze { id: instance.clone() }).await;
            if result.is_err() {
                inner.probing(&instance, probe::Guard::resume);
            }
            inner.tell(Outcome::Frozen { instance, result: result.map(drop) }).await;
        });
    }

    /// Lets a frozen instance go on.
    pub(crate) fn thaw(&self, instance: InstanceId) {
        let inner = self.inner.clone();
        self.inner.spawn(async move {
            let result = launch::thaw(&inner, &instance).await;
            inner.probing(&instance, probe::Guard::resume);
            inner.tell(Outcome::Thawed { instance, result }).await;
        });
    }

    /// Makes an instance that was found usable: its network namespace known, its image kept.
    pub(crate) fn adopt(&self, record: &InstanceRecord) -> io::Result<()> {
        let label = |name: &str| record.labels.get(name).cloned().unwrap_or_default();
        let revision = RevisionKey::new(label(LABEL_NAMESPACE), label(LABEL_NAME));
        let image = label(LABEL_IMAGE).parse().ok();
        lock(&self.inner.in_use).insert(record.id.clone(), InUse { revision, image });
        if !devices_of(record).is_empty() {
            self.inner.watch_nodes(&record.id);
        }
        self.inner.enter(&record.id, record.pid)
    }

    /// Asks an instance's program to end.
    pub(crate) fn terminate(&self, instance: InstanceId, doing: Doing) {
        self.inner.stop_probing(&instance);
        let inner = self.inner.clone();
        self.inner.spawn(async move {
            inner.signal(&instance, libc::SIGTERM).await;
            if doing == Doing::Frozen {
                // Whether it could be or not: it is killed after its grace.
                let _ = inner.tools.supervisor.call(Request::Thaw { id: instance.clone() }).await;
            }
            for pause in TERMINATE_AGAIN.into_iter().filter(|_| doing == Doing::Beginning) {
                tokio::time::sleep(pause).await;
                // Forgotten once it is deleted.
                if !lock(&inner.in_use).contains_key(&instance) {
                    return;
                }
                inner.signal(&instance, libc::SIGTERM).await;
            }
        });
    }

    pub(crate) fn kill(&self, instance: InstanceId) {
        let inner = self.inner.clone();
        self.inner.spawn(async move { inner.signal(&instance, libc::SIGKILL).await });
    }

    /// Finds out what an ended instance said last.
    pub(crate) fn explain_exit(&self, instance: InstanceId, revision: RevisionKey, exit: ExitRecord) {
        self.inner.stop_probing(&instance);
        let inner = self.inner.clone();
        self.inner.spawn(async move {
            let (state_dir, id) = (inner.tools.state_dir.clone(), instance.clone());
            let read =
                tokio::task::spawn_blocking(move || log_files::last_line(&state_dir, &revision, &id)).await;
            inner.tell(Outcome::ExitExplained { instance, exit, last_words: read.ok().flatten() }).await;
        });
    }

    /// Removes what is left of an instance.
    pub(crate) fn delete(&self, instance: InstanceId) {
        self.inner.stop_probing(&instance);
        let inner = self.inner.clone();
        self.inner.spawn(async move {
            match inner.tools.supervisor.call(Request::Delete { id: instance.clone() }).await {
                Ok(_) => {
                    inner.forget(&instance);
                    inner.tell(Outcome::Deleted { instance }).await;
                }
                Err(error) => {
                    tracing::warn!(%instance, %error, "cannot delete an instance, trying again");
                    tokio::time::sleep(DELETE_PAUSE).await;
                    let exit =
                        ExitRecord { code: None, signal: None, out_of_memory: false, time_ms: now_ms() };
                    inner.tell(Outcome::DeleteFailed { instance, exit }).await;
                }
            }
        });
    }

    /// The instance is gone by itself.
    pub(crate) fn forget(&self, instance: &InstanceId) {
        self.inner.forget(instance);
    }

    /// Frees so many bytes of the disk by removing images that nothing needs. Whether there were any.
    pub(crate) async fn make_room(&self, bytes: u64) -> bool {
        collect::make_room(&self.inner, bytes).await
    }

    /// Images that are being fetched.
    pub(crate) fn pulls(&self) -> watch::Receiver<Vec<PullReport>> {
        self.inner.pulls.reports()
    }

    /// Says that a revision has become ready here.
    pub(crate) fn note_ready(&self, object: &RevisionObject) {
        self.inner.shelf.note_ready(object);
    }

    /// Says what is wanted on this node, and of which revisions it is ready; everything else of images, logs and bundles is removed
    /// in time.
    pub(crate) fn retain(
        &self,
        desired: &Desired,
        instances: &BTreeMap<InstanceId, RevisionKey>,
        is_ready: impl Fn(&RevisionKey) -> bool,
    ) {
        let objects: BTreeSet<&Digest> = desired.revisions.values().map(|(digest, _)| digest).collect();
        lock(&self.inner.prepared).retain(|object, _| objects.contains(object));
        self.inner.wanted.send_replace(Wanted::of(desired, instances, is_ready));
    }

    /// Drops everything under way and lets go of the supervisor; the instances run on.
    pub(crate) async fn abandon(&self) {
        let mut tasks = std::mem::take(&mut *lock(&self.inner.tasks));
        tasks.shutdown().await;
        lock(&self.inner.probes).clear();
        self.inner.tools.supervisor.close();
    }
}

impl Inner {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task)
    }

    /// Tells that an instance was started and goes on to probe it: no request waits for the reconciler in between.
    async fn launched(
        self: &Arc<Self>,
        instance: InstanceId,
        result: Result<i32, Trouble>,
        probes: Result<Probes, Unsupported>,
    ) {
        match result {
            Ok(_) => {
                self.tell(Outcome::Launched { instance: instance.clone(), result }).await;
                if let Some(unsupported) = self.probe(&instance, probes, false) {
                    self.tell(unsupported.into()).await;
                }
            }
            Err(_) => {
                self.forget(&instance);
                self.tell(Outcome::Launched { instance, result }).await;
            }
        }
    }

    async fn tell(&self, outcome: Outcome) {
        // Without a reconciler the agent is stopping, and nobody wants to know.
        let _ = self.outcomes.send(outcome).await;
    }

    async fn signal(&self, instance: &InstanceId, signal: i32) {
        // One that is gone has ended, and its end is told by itself.
        let request = Request::Signal { id: instance.clone(), signal };
        match self.tools.supervisor.call(request).await {
            Ok(_) | Err(CallError::Refused(Refusal::NotFound(_))) => {}
            Err(error) => tracing::warn!(%instance, signal, %error, "cannot signal an instance"),
        }
    }

    /// Makes the instance's network namespace known to the dialer.
    fn enter(&self, instance: &InstanceId, pid: i32) -> io::Result<()> {
        let netns = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
        self.tools.dialer.add(instance.clone(), netns.into());
        Ok(())
    }

    fn forget(&self, instance: &InstanceId) {
        lock(&self.in_use).remove(instance);
        lock(&self.moved).remove(instance);
        self.holders.send_if_modified(|holders| holders.remove(instance));
        self.stop_probing(instance);
        self.tools.dialer.remove(instance);
        self.tools.activations.forget(instance);
        // Collected later if it cannot be removed now.
        let _ = std::fs::remove_dir_all(launch::bundle_dir(&self.tools.run_dir, instance));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
