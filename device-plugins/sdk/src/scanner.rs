//! The task that keeps a resource's list of devices: scans at every reason to look, takes failures into account, publishes.
//! It takes a [`Scan`] and gives a watched [`Listing`]. It must not know who reads that.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::device::{Device, DeviceId, Health};
use crate::metrics::Counters;
use crate::name::ResourceName;
use crate::paths::Paths;
use crate::{Scan, ScanError};

/// How long a scan may take. Libraries of drivers need seconds when hardware answers badly; later is not at all.
const SCAN_MAX: Duration = Duration::from_secs(30);

/// Scans in a row that may fail before devices count as unhealthy: one may fall into a re-enumeration.
const FAILURES_MAX: u32 = 3;

/// How long after a failed scan the next one is made, if the resource's interval is longer.
const RETRY: Duration = Duration::from_secs(2);

/// How long what was noticed may settle: a plugged device is several nodes, links and permissions, one after the other.
const SETTLE: Duration = Duration::from_millis(200);

pub(crate) type SharedScan = Arc<Mutex<Box<dyn Scan>>>;

/// What is known of a resource's devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Listing {
    /// No scan has ended yet.
    #[default]
    Unknown,
    Known(BTreeMap<DeviceId, Listed>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) device: Device,
    /// As [`Scan::mark`] has it.
    mark: String,
    /// Another one whenever the device has come, or has come back.
    pub(crate) life: u64,
}

impl Listing {
    pub(crate) fn listed(&self) -> impl Iterator<Item = &Listed> {
        match self {
            Self::Unknown => None,
            Self::Known(devices) => Some(devices.values()),
        }
        .into_iter()
        .flatten()
    }

    pub(crate) fn devices(&self) -> impl Iterator<Item = &Device> {
        self.listed().map(|listed| &listed.device)
    }

    pub(crate) fn device(&self, id: &str) -> Option<&Device> {
        self.get(id).map(|listed| &listed.device)
    }

    fn get(&self, id: &str) -> Option<&Listed> {
        match self {
            Self::Unknown => None,
            Self::Known(devices) => devices.get(id),
        }
    }
}

pub(crate) struct Scanner {
    pub(crate) resource: ResourceName,
    pub(crate) scan: SharedScan,
    pub(crate) watched: Vec<PathBuf>,
    pub(crate) interval: Duration,
    pub(crate) listing: watch::Sender<Listing>,
    /// Somebody has a reason to doubt the list.
    pub(crate) rescan: Arc<Notify>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) cancel: CancellationToken,
}

#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error(transparent)]
    Failed(#[from] ScanError),
    #[error("the scan has not ended within {} s; the hardware or its driver hangs", SCAN_MAX.as_secs())]
    Hangs,
    #[error("the scan panicked; this is a defect of the plugin")]
    Panicked,
    #[error("two devices have the id {0}; this is a defect of the plugin")]
    Twice(DeviceId),
}

impl Scanner {
    pub(crate) async fn run(self) {
        let paths = match Paths::watch(self.watched.clone()) {
            Ok(paths) => Some(paths),
            Err(error) => {
                tracing::warn!(resource = %self.resource, %error, "cannot watch for devices; looking at intervals only");
                None
            }
        };
        let mut failures = 0;
        let mut lives = 0;
        loop {
            let attempt = tokio::select! {
                attempt = attempt(&self.scan) => attempt,
                () = self.cancel.cancelled() => return,
            };
            let pause = match attempt {
                Ok(found) => {
                    let listed = with_lives(found, &self.listing.borrow(), &mut lives);
                    self.publish(listed, failures);
                    failures = 0;
                    self.interval
                }
                Err(error) => {
                    failures += 1;
                    self.counters.scan_failed();
                    self.fail(failures, &error);
                    self.interval.min(RETRY)
                }
            };
            tokio::select! {
                () = changed(paths.as_ref()) => sleep(SETTLE).await,
                () = sleep(pause) => {}
                () = self.rescan.notified() => {}
                () = self.cancel.cancelled() => return,
            }
        }
    }

    fn publish(&self, devices: BTreeMap<DeviceId, Listed>, failures: u32) {
        if failures > 0 {
            tracing::info!(resource = %self.resource, failures, "the scan works again");
        }
        let new = Listing::Known(devices);
        self.listing.send_if_modified(|listing| {
            tell_differences(&self.resource, listing, &new);
            let differs = *listing != new;
            *listing = new;
            differs
        });
    }

    /// Keeps the last list, and takes its devices for unhealthy once there were too many failures.
    fn fail(&self, failures: u32, error: &AttemptError) {
        if failures == 1 || failures == FAILURES_MAX {
            let kept =
                if failures < FAILURES_MAX { "the last list stays" } else { "its devices are unhealthy" };
            tracing::warn!(resource = %self.resource, failures, %error, "the scan failed; {kept}");
        }
        let unhealthy = failures >= FAILURES_MAX;
        self.listing.send_if_modified(|listing| match listing {
            Listing::Unknown => {
                *listing = Listing::Known(BTreeMap::new());
                true
            }
            Listing::Known(devices) if unhealthy => {
                let mut differs = false;
                let devices = devices.values_mut().map(|listed| &mut listed.device);
                for device in devices.filter(|device| device.health == Health::Healthy) {
                    device.health = Health::Unhealthy { why: format!("cannot be looked at: {error}") };
                    differs = true;
                }
                differs
            }
            Listing::Known(_) => false,
        });
    }
}

/// Every device with its mark.
type Found = BTreeMap<DeviceId, (Device, String)>;

/// Gives a life to every device that was not there before, or that has come back since.
fn with_lives(found: Found, last: &Listing, lives: &mut u64) -> BTreeMap<DeviceId, Listed> {
    let listed = |(id, (device, mark)): (DeviceId, (Device, String))| {
        let before = last.get(id.as_str()).filter(|before| before.mark == mark);
        let life = before.map_or_else(
            || {
                *lives += 1;
                *lives
            },
            |before| before.life,
        );
        (id, Listed { device, mark, life })
    };
    found.into_iter().map(listed).collect()
}

/// One scan on a thread of its own. One that hangs keeps the lock, so that there is never a second one.
async fn attempt(scan: &SharedScan) -> Result<Found, AttemptError> {
    let scan = Arc::clone(scan);
    let work = async move {
        let mut scan = scan.lock_owned().await;
        let marked = move || {
            let devices = scan.scan()?;
            Ok(devices.into_iter().map(|device| (scan.mark(&device.id), device)).collect::<Vec<_>>())
        };
        tokio::task::spawn_blocking(marked).await
    };
    let found: Result<_, ScanError> = timeout(SCAN_MAX, work)
        .await
        .map_err(|_| AttemptError::Hangs)?
        .map_err(|_| AttemptError::Panicked)?;
    let mut devices = Found::new();
    for (mark, device) in found? {
        if let Some((twice, _)) = devices.insert(device.id.clone(), (device, mark)) {
            return Err(AttemptError::Twice(twice.id));
        }
    }
    Ok(devices)
}

/// Returns when something watched changed; never, if nothing can be noticed.
async fn changed(paths: Option<&Paths>) {
    if let Some(paths) = paths
        && let Err(error) = paths.changed().await
    {
        tracing::warn!(%error, "cannot watch any more; looking at intervals only");
    } else if paths.is_some() {
        return;
    }
    std::future::pending().await
}

fn tell_differences(resource: &ResourceName, old: &Listing, new: &Listing) {
    for device in new.devices() {
        let before = old.device(device.id.as_str()).map(|device| &device.health);
        match (&device.health, before) {
            (health, Some(before)) if health == before => {}
            (Health::Healthy, None) => tracing::info!(%resource, device = %device.id, "there is a device"),
            (Health::Healthy, Some(_)) => {
                tracing::info!(%resource, device = %device.id, "the device is healthy again")
            }
            (Health::Unhealthy { why }, _) => {
                tracing::warn!(%resource, device = %device.id, why, "the device is unhealthy");
            }
        }
    }
    for device in old.devices().filter(|device| new.device(device.id.as_str()).is_none()) {
        tracing::warn!(%resource, device = %device.id, "the device is gone");
    }
}
