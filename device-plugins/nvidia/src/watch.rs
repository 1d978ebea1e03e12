//! The thread that watches GPUs: looks at them, hears their critical errors, and publishes the view, the CDI specification and
//! the set of resources. It takes nothing and gives a watched [`View`] and changes of the set.
//!
//! ```text
//!            no driver ──▶ one message, tries again ◀─────────┐
//!                │ it is there                                │ it does not answer
//!                ▼                                            │
//!   look at all GPUs ──▶ publish ──▶ wait for critical errors ┘
//!         ▲                 ▲               │ one: publish at once
//!         └── every look ◀──┴───────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tombolo_device_sdk::{Change, Resource, ResourceName, SharedAccelerator};

use crate::config::Config;
use crate::driver::{Driver, DriverError, Events};
use crate::files;
use crate::gpu::{Gpu, Look, Uuid, Xid};
use crate::health::Health;
use crate::mps::{Mps, Unserved};
use crate::nodes::Nodes;
use crate::processes::Processes;
use crate::scan::GpuScan;
use crate::share;
use crate::spec;
use crate::tegra::{self, Board, BoardError};
use crate::view::View;

/// How soon the kubelet is told of what changed here: reading the view costs nothing.
const TELL: Duration = Duration::from_secs(1);

/// How long is waited after events could not be heard, before GPUs are looked at again.
const PAUSE: Duration = Duration::from_secs(1);

/// Critical errors that are taken of a set before it is given up.
const PENDING_MAX: usize = 64;

pub(crate) struct Watch {
    config: Arc<Config>,
    view: watch::Sender<Arc<View>>,
    changes: mpsc::Sender<Change>,
    processes: SharedAccelerator,
    known: BTreeMap<Uuid, Gpu>,
    /// Those of the last look, and those that did not answer this once: what containers can be given.
    present: Vec<Gpu>,
    /// Of these, those that answer now: none while there is no driver.
    answering: BTreeSet<Uuid>,
    health: Health,
    mps: Mps,
    nodes: Nodes,
    /// GPUs and instances that lack device nodes.
    lacking: BTreeMap<Uuid, String>,
    driver: files::Driver,
    driver_version: Option<String>,
    served: BTreeSet<ResourceName>,
    /// What was said last of why there is nothing to do, so that it is said once.
    told: Option<String>,
}

impl Watch {
    pub(crate) fn new(
        config: Arc<Config>,
        view: watch::Sender<Arc<View>>,
        changes: mpsc::Sender<Change>,
    ) -> Self {
        Self {
            health: Health::new(config.health.clone()),
            mps: Mps::new(config.mps.clone(), &config.paths.root, &config.paths.proc),
            nodes: Nodes::new(&config),
            lacking: BTreeMap::new(),
            processes: SharedAccelerator::new(Processes::new(Arc::clone(&config), view.subscribe())),
            config,
            view,
            changes,
            known: BTreeMap::new(),
            present: Vec::new(),
            answering: BTreeSet::new(),
            driver: files::Driver::default(),
            driver_version: None,
            served: BTreeSet::new(),
            told: None,
        }
    }

    /// Watches until nobody takes the changes any more.
    pub(crate) fn run(mut self) {
        while !self.changes.is_closed() {
            match Driver::open(&self.config.library) {
                Ok(driver) => {
                    self.told = None;
                    if let Err(error) = self.attend(&driver) {
                        tracing::warn!(%error, "the driver is loaded again");
                        self.lose(&error.to_string());
                    }
                }
                Err(error) => self.do_without(&error.to_string()),
            }
            thread::sleep(self.interval());
        }
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(self.config.look_interval_s)
    }

    /// While the driver answers.
    fn attend(&mut self, driver: &Driver) -> Result<(), DriverError> {
        let mut events = None;
        while !self.changes.is_closed() {
            self.take(driver.look()?);
            self.publish();
            let listening = self.listen(driver, events.take())?;
            // One that fails may fail for good, as when a GPU of it is lost: another is made then.
            events = self.hear(&listening).then_some(listening);
        }
        Ok(())
    }

    /// Critical errors of the GPUs that answer: one that comes back has to be listened to anew.
    fn listen<'driver>(
        &mut self,
        driver: &'driver Driver,
        before: Option<Events<'driver>>,
    ) -> Result<Events<'driver>, DriverError> {
        let before = match before {
            Some(events) if events.are_of(&self.answering) => return Ok(events),
            before => before,
        };
        let events = driver.events(&self.answering)?;
        if let Some(why) = events.unheard() {
            self.tell_once(why, "critical errors of a GPU cannot be heard", "trying again");
        }
        // What came since they were heard last.
        let pending = std::iter::from_fn(|| before.as_ref()?.wait(Duration::ZERO).ok().flatten());
        for xid in pending.take(PENDING_MAX) {
            self.report(&xid);
        }
        Ok(events)
    }

    fn take(&mut self, look: Look) {
        if look.gpus.is_empty()
            && let Ok(board) = tegra::look(&self.config.paths)
        {
            return self.take_board(board);
        }
        if self.driver_version.as_ref() != Some(&look.driver_version) {
            tracing::info!(version = %look.driver_version, gpus = look.gpus.len(), "the driver is there");
            self.driver_version = Some(look.driver_version.clone());
        }
        self.known.extend(look.gpus.iter().map(|gpu| (gpu.uuid.clone(), gpu.clone())));
        for mute in &look.mute {
            tracing::debug!(index = mute.index, why = %mute.why, "a GPU does not answer");
        }
        let as_before = self.health.look(&self.known, &look);
        self.answering = look.gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
        self.present = look.gpus;
        self.present.extend(as_before.iter().filter_map(|uuid| self.known.get(uuid)).cloned());
        self.present.sort_by_key(|gpu| gpu.index);
        self.lacking = self.nodes.attend(&self.present, Instant::now());
        self.driver = files::Driver::look(&look.driver_version, &self.config.paths, &self.config.cdi);
    }

    fn take_board(&mut self, board: Board) {
        let Board { gpu, driver } = board;
        if self.known.insert(gpu.uuid.clone(), gpu.clone()).is_none() {
            tracing::info!(board = %gpu.name, "the GPU of the board is there");
        }
        self.driver = driver;
        let look = Look { driver_version: String::new(), gpus: vec![gpu], mute: Vec::new() };
        self.health.look(&self.known, &look);
        self.answering = look.gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
        self.present = look.gpus;
    }

    /// There is no driver, or none that has a library.
    fn do_without(&mut self, why: &str) {
        match tegra::look(&self.config.paths) {
            Ok(board) => {
                self.take_board(board);
                self.publish();
            }
            Err(error) => {
                let why = if error == BoardError::None { why.to_owned() } else { error.to_string() };
                self.tell_once(&why, "no GPUs to serve", "waiting for a driver");
                self.lose(&why);
            }
        }
    }

    /// Says the same only once; after that only to those who want to know everything.
    fn tell_once(&mut self, why: &str, what: &str, then: &str) {
        if self.told.as_deref() == Some(why) {
            tracing::debug!(reason = %why, "still {what}");
        } else {
            tracing::info!(reason = %why, "{what}; {then}");
            self.told = Some(why.to_owned());
        }
    }

    /// No GPU can be used without a driver.
    fn lose(&mut self, why: &str) {
        self.driver_version = None;
        self.answering.clear();
        for uuid in self.known.keys() {
            self.health.lost(uuid, why);
        }
        self.publish();
    }

    /// Waits for critical errors until the next look. Says whether they can be heard.
    fn hear(&mut self, events: &Events<'_>) -> bool {
        let end = Instant::now() + self.interval();
        if self.answering.is_empty() {
            thread::sleep(self.interval());
            return true;
        }
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            match events.wait(left) {
                Ok(Some(xid)) => self.report(&xid),
                Ok(None) => return true,
                Err(error) => {
                    self.tell_once(
                        &error.to_string(),
                        "critical errors cannot be heard",
                        "looking for other signs",
                    );
                    thread::sleep(PAUSE);
                    return false;
                }
            }
        }
    }

    fn report(&mut self, xid: &Xid) {
        let counts = self.health.report(xid);
        tracing::warn!(gpu = %xid.gpu, xid = xid.number, counts, "critical error");
        self.publish();
    }

    fn publish(&mut self) {
        let gpus: Vec<Gpu> = self.known.values().cloned().collect();
        let mut view = View {
            driver_version: self.driver_version.clone(),
            gpus: self.known.clone(),
            answering: self.answering.clone(),
            xids: self.health.counts().clone(),
            offers: share::offers(&gpus, &self.config),
            ..View::default()
        };
        for gpu in &gpus {
            view.numa.extend(files::numa(gpu, &self.config.paths).map(|node| (gpu.uuid.clone(), node)));
            let places =
                gpu.instances.iter().flatten().map(|instance| (&instance.uuid, Some(instance.place)));
            for (uuid, place) in places.chain([(&gpu.uuid, None)]) {
                let lacking = self.lacking.get(uuid).map(String::as_str);
                let fault = self.health.fault(&gpu.uuid, place).or(lacking);
                view.faults.extend(fault.map(|why| (uuid.clone(), why.to_owned())));
            }
        }
        view.mps_faults = self.attend_mps(&view);
        match self.describe(&self.present) {
            Ok(spec) => view.spec = spec,
            Err(why) => {
                if self.view.borrow().spec_error.as_ref() != Some(&why) {
                    tracing::error!(%why, "containers cannot get GPUs");
                }
                view.spec_error = Some(why);
            }
        }
        let names: Vec<String> = view.offers.keys().cloned().collect();
        self.view.send_if_modified(|before| {
            let is_changed = **before != view;
            *before = Arc::new(view);
            is_changed
        });
        self.serve(&names);
    }

    /// Sees to the MPS control daemon of those GPUs that share through it and are there; why they cannot, if so.
    fn attend_mps(&mut self, view: &View) -> BTreeMap<Uuid, String> {
        let is_present =
            |gpu: &Uuid| view.driver_version.is_some() && self.present.iter().any(|other| other.uuid == *gpu);
        let parts = view.offers.values().flat_map(BTreeMap::values).filter(|part| part.kind.needs_mps());
        let gpus = parts.map(|part| part.gpu.clone()).filter(is_present).collect();
        let unserved = self.mps.attend(&gpus, Instant::now());
        unserved
            .into_iter()
            .flat_map(|Unserved { gpus, why }| gpus.into_iter().map(move |gpu| (gpu, why.clone())))
            .collect()
    }

    /// Makes the CDI specification, and writes it where it is to be.
    fn describe(&self, gpus: &[Gpu]) -> Result<Option<tombolo_cdi::Spec>, String> {
        let config = &self.config;
        let made = spec::make(gpus, &self.driver, &config.paths, &config.cdi);
        let made = made.map_err(|error| error.to_string())?;
        if let Some(spec) = &made
            && !config.cdi.directory.as_os_str().is_empty()
        {
            let path = config.cdi.directory.join(spec::FILE);
            match spec.write(&path) {
                Ok(true) => tracing::info!(path = %path.display(), "the CDI specification is written"),
                Ok(false) => {}
                Err(error) => {
                    let source =
                        std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                    return Err(format!("{error}: {source}"));
                }
            }
        }
        Ok(made)
    }

    /// Makes the set of resources `names`.
    fn serve(&mut self, names: &[String]) {
        let mut now = BTreeSet::new();
        for name in names {
            match name.parse::<ResourceName>() {
                Ok(name) => drop(now.insert(name)),
                Err(error) => tracing::error!(%error, "a resource cannot be served"),
            }
        }
        for gone in self.served.difference(&now) {
            self.send(Change::Remove(gone.clone()));
        }
        for new in now.difference(&self.served) {
            let resource = new.to_string();
            let scan = GpuScan {
                resource,
                view: self.view.subscribe(),
                config: Arc::clone(&self.config),
                processes: self.processes.clone(),
            };
            self.send(Change::Add(Resource {
                name: new.clone(),
                scan: Box::new(scan),
                watched: Vec::new(),
                interval: TELL,
            }));
        }
        self.served = now;
    }

    fn send(&self, change: Change) {
        // Nobody takes it: the program ends.
        let _ = self.changes.blocking_send(change);
    }
}
