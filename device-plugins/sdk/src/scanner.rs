//! The task that keeps a resource's list of devices: scans at every reason to look, takes failures into account, publishes.
//! It takes a [`Scan`] and gives a watched [`Listing`]. It must not know who reads that.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    Known(BTreeMap<DeviceId, Device>),
}

impl Listing {
    pub(crate) fn devices(&self) -> impl Iterator<Item = &Device> {
        match self {
            Self::Unknown => None,
            Self::Known(devices) => Some(devices.values()),
        }
        .into_iter()
        .flatten()
    }

    pub(crate) fn device(&self, id: &str) -> Option<&Device> {
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
        let mut away = Away::default();
        loop {
            let attempt = tokio::select! {
                attempt = attempt(&self.scan) => attempt,
                () = self.cancel.cancelled() => return,
            };
            let pause = match attempt {
                Ok(found) => {
                    let devices = away.with(found, &self.listing.borrow(), Instant::now());
                    self.publish(devices, failures);
                    failures = 0;
                    away.until(Instant::now()).map_or(self.interval, |left| left.min(self.interval))
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

    fn publish(&self, devices: BTreeMap<DeviceId, Device>, failures: u32) {
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
                for device in devices.values_mut().filter(|device| device.health == Health::Healthy) {
                    device.health = Health::Unhealthy { why: format!("cannot be looked at: {error}") };
                    differs = true;
                }
                differs
            }
            Listing::Known(_) => false,
        });
    }
}

/// What a scan found.
struct Found {
    devices: BTreeMap<DeviceId, Device>,
    linger: Duration,
}

/// Devices that disappeared and are likely to come back, each with when that is not likely any more.
#[derive(Default)]
struct Away(BTreeMap<DeviceId, Instant>);

impl Away {
    /// What was found, and those of the last list that are away.
    fn with(&mut self, found: Found, last: &Listing, now: Instant) -> BTreeMap<DeviceId, Device> {
        let Found { mut devices, linger } = found;
        self.0.retain(|id, _| !devices.contains_key(id));
        for device in last.devices() {
            if devices.contains_key(&device.id) {
                continue;
            }
            let until = *self.0.entry(device.id.clone()).or_insert(now + linger);
            if now < until {
                devices.insert(device.id.clone(), device.clone());
            }
        }
        self.0.retain(|_, until| now < *until);
        devices
    }

    /// How long until the first of them is gone.
    fn until(&self, now: Instant) -> Option<Duration> {
        self.0.values().min().map(|until| until.saturating_duration_since(now))
    }
}

/// One scan on a thread of its own. One that hangs keeps the lock, so that there is never a second one.
async fn attempt(scan: &SharedScan) -> Result<Found, AttemptError> {
    let scan = Arc::clone(scan);
    let work = async move {
        let mut scan = scan.lock_owned().await;
        tokio::task::spawn_blocking(move || scan.scan().map(|devices| (devices, scan.linger()))).await
    };
    let (found, linger) = timeout(SCAN_MAX, work)
        .await
        .map_err(|_| AttemptError::Hangs)?
        .map_err(|_| AttemptError::Panicked)??;
    let mut devices = BTreeMap::new();
    for device in found {
        if let Some(twice) = devices.insert(device.id.clone(), device) {
            return Err(AttemptError::Twice(twice.id));
        }
    }
    Ok(Found { devices, linger })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(ids: &[&str]) -> BTreeMap<DeviceId, Device> {
        let device = |id: &&str| Device { id: id.parse().unwrap(), health: Health::Healthy, numa: None };
        ids.iter().map(device).map(|device| (device.id.clone(), device)).collect()
    }

    #[test]
    fn a_device_that_comes_back_in_time_was_never_gone() {
        let linger = Duration::from_secs(5);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut away = Away::default();
        let mut last = Listing::Known(devices(&["a", "b"]));
        for (seconds, found, listed, left) in [
            (0, vec!["a", "b"], vec!["a", "b"], None),
            (10, vec!["a"], vec!["a", "b"], Some(5)),
            (12, vec![], vec!["a", "b"], Some(3)),
            (14, vec!["b"], vec!["a", "b"], Some(3)),
            (16, vec!["b"], vec!["a", "b"], Some(1)),
            (17, vec!["b"], vec!["b"], None),
            (18, vec![], vec!["b"], Some(5)),
            (60, vec![], vec![], None),
        ] {
            let found = Found { devices: devices(&found), linger };
            let with = away.with(found, &last, at(seconds));
            assert_eq!(with, devices(&listed), "after {seconds} s");
            assert_eq!(away.until(at(seconds)), left.map(Duration::from_secs), "after {seconds} s");
            last = Listing::Known(with);
        }
        let at_once = away.with(
            Found { devices: devices(&[]), linger: Duration::ZERO },
            &Listing::Known(devices(&["a"])),
            start,
        );
        assert_eq!((at_once.len(), away.until(start)), (0, None));
    }
}
