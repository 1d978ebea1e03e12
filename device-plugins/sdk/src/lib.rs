//! What device plugins share. A plugin for new hardware says what devices there are ([`Scan::scan`]) and what a container
//! gets for them ([`Scan::edits`]); this crate serves that to the kubelet, or to whatever speaks the kubelet's side of the
//! device-plugin API. It must not know any hardware, nor what the kubelet does with devices. `examples/lamps.rs` is a whole
//! plugin.
//!
//! ```text
//!           inotify ┐                       ┌──▶ service: ListAndWatch, Allocate, …      (the kubelet calls)
//!  Scan ◀── interval├── scanner ──watch<Listing>──▶ session: socket, registration        (calls the kubelet)
//!           rescan  ┘                       └──▶ metrics
//! ```
//!
//! A plugin whose hardware processes can be moved away from, or that can tell what they hold and how its hardware is, says so with
//! an [`Accelerator`].

mod accelerator;
mod device;
mod edits;
mod name;
mod paths;
mod preferred;
mod scanner;
mod serve;
mod service;
mod session;
mod socket;

pub mod machine;
pub mod metrics;
pub mod program;

use std::path::PathBuf;
use std::time::Duration;

pub use accelerator::{
    Abilities, Accelerator, Held, Inspection, MemoryErrors, MoveError, Pid, PidError, SharedAccelerator,
    Suspended, UsageError,
};
pub use device::{Device, DeviceId, DeviceIdError, Health};
pub use edits::{DeviceNode, Edits, Mount, PathError, Permissions, PermissionsError};
pub use name::{ResourceName, ResourceNameError};
pub use preferred::{Wanted, close_together};
pub use serve::{Change, ServeError, fixed, serve};

/// What a plugin for new hardware has to say. One value serves one resource. Its functions are called one at a time;
/// `scan` and `edits` may block, because they are called on a thread of their own.
pub trait Scan: Send + 'static {
    /// All devices there are now. Called at the start, when one of [`Resource::watched`] changes, and every interval.
    ///
    /// # Errors
    /// What is there cannot be told. The last list stays; after a few failures its devices are unhealthy.
    fn scan(&mut self) -> Result<Vec<Device>, ScanError>;

    /// What a container gets for these devices, of which there is one at least.
    ///
    /// # Errors
    /// They cannot be given to a container; its start fails.
    fn edits(&self, devices: &[DeviceId]) -> Result<Edits, EditsError>;

    /// What is another when a device comes back, as its node is when it was plugged again or has changed its USB id. Such a
    /// device is told as gone and come, however short it was away.
    fn mark(&self, _device: &DeviceId) -> String {
        String::new()
    }

    /// Which of the devices go well together. By default those of one NUMA node.
    fn prefer(&self, wanted: &Wanted<'_>) -> Vec<DeviceId> {
        close_together(wanted)
    }

    /// What can be done with the processes that use the devices, if anything. Asked once, before the first scan.
    fn accelerator(&self) -> Option<SharedAccelerator> {
        None
    }
}

/// A resource and what finds its devices.
pub struct Resource {
    pub name: ResourceName,
    pub scan: Box<dyn Scan>,
    /// Directories and files whose change means that devices may have come or gone. They need not exist.
    pub watched: Vec<PathBuf>,
    /// How long nothing is looked at while nothing that is watched changes.
    pub interval: Duration,
}

/// Why a scan could not tell what is there.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Hardware(#[from] Box<dyn std::error::Error + Send + Sync>),
}

/// Why devices cannot be given to a container.
#[derive(Debug, thiserror::Error)]
pub enum EditsError {
    #[error("device {0} is gone")]
    Gone(DeviceId),
    #[error("{0}")]
    Hardware(#[from] Box<dyn std::error::Error + Send + Sync>),
}
