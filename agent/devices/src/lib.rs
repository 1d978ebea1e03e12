//! The kubelet's side of device plugins: what devices a node has, and what a container gets for those it was given.
//!
//! ```text
//! plugin ── Register ──▶ registration ─▶ roll ── watch<Inventory> ──▶ whoever plans
//!   ▲                                     ▲ │ ◀─ watch<choices> ─────────┘
//!   ├── ListAndWatch, for its life ──── plugin
//!   ├── GetPreferredAllocation ───────────┘
//!   ├── Allocate, PreStartContainer ◀── allocate ◀── whoever makes a container
//!   │                                   └── specifications ── watch<Vec> ──▶ whoever says what is wrong with them
//!   ├── Suspend, Resume ◀──── accelerator ◀── whoever has processes on accelerators
//!   └── Usage, Inspect, for its life ──── follow ── watch<Told> ──▶ whoever watches them
//! ```
//!
//! Any plugin that works with a kubelet works here: the same sockets, the same words. Gives no device away and knows no instance:
//! `tombolo_agent_core` decides. A node without plugins has a socket that nobody connects to, and a task that sleeps.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tombolo_agent_core::devices::{Choice, Inventory};

mod accelerator;
mod allocate;
mod edits;
mod follow;
mod inspect;
mod plugin;
mod registration;
mod roll;
mod socket;
mod specifications;

pub use accelerator::{Abilities, Accelerator, AcceleratorError, Held, Pid, Stream, Suspended};
pub use allocate::{AllocateError, Allocator, Given};
pub use edits::EditsError;
pub use follow::{Matter, Told};
pub use tombolo_cdi::ContainerEdits as Edits;

/// Messages of plugins that wait for the roll: a list each, and plugins are few.
const HEARD_MAX: usize = 64;

/// Where plugins and specifications are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    /// Where plugins find `kubelet.sock`, and put their own sockets.
    pub plugins: PathBuf,
    /// Of CDI specifications; a later one goes before an earlier one.
    pub cdi: Vec<PathBuf>,
}

/// Why no plugin can register.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "a kubelet answers at {0}: stop it, or give this agent another devices.plugin_directory and the plugins with it"
    )]
    Occupied(PathBuf),
    #[error("cannot listen for device plugins at {path}: {source}")]
    Listen { path: PathBuf, source: io::Error },
}

/// A node where plugins may register, once its task runs.
pub struct Plugins {
    inventory: watch::Receiver<Arc<Inventory>>,
    allocator: Allocator,
    serving: Serving,
}

/// What has to run for plugins to be heard.
struct Serving {
    socket: socket::Socket,
    registration: registration::Desk,
    roll: roll::Roll,
}

/// Takes the directory over: what sockets a former kubelet or agent left there go, so that plugins notice and register anew.
pub async fn start(
    directories: Directories,
    choices: watch::Receiver<BTreeSet<Choice>>,
) -> Result<Plugins, StartError> {
    let socket = socket::take_over(&directories.plugins).await?;
    let (sender, heard) = mpsc::channel(HEARD_MAX);
    let (inventory, connected) = (watch::Sender::default(), watch::Sender::default());
    let registration = registration::Desk::new(directories.plugins, sender.clone());
    let allocator = Allocator::new(connected.subscribe(), directories.cdi);
    let receiver = inventory.subscribe();
    let roll = roll::Roll::new(roll::Ends { inventory, connected, choices, heard, sender });
    Ok(Plugins { inventory: receiver, allocator, serving: Serving { socket, registration, roll } })
}

impl Plugins {
    /// What tells of devices, how to get them, and the task that makes both so; that one ends only if it cannot go on.
    pub fn split(self) -> (watch::Receiver<Arc<Inventory>>, Allocator, impl Future<Output = ()> + Send) {
        let Serving { socket, registration, roll } = self.serving;
        let task = async move {
            tokio::join!(registration.serve(socket), roll.run());
        };
        (self.inventory, self.allocator, task)
    }
}
