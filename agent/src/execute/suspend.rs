//! An instance's state leaves its devices and comes back: their plugins move it, the supervisor stops the processes and lets them
//! go on.
//!
//! The order is the driver's: a thread of its own inside the process does the moving, so the processes run meanwhile. It must not
//! know when an instance is suspended, or whose turn it is.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use tombolo_agent_core::annotations::IdleTier;
use tombolo_agent_core::devices::Devices;
use tombolo_agent_core::supervision::{InstanceId, Request};
use tombolo_agent_devices::{Accelerator, AcceleratorError, Pid};
use tombolo_router::Stage;

use super::{Executor, Inner, Outcome};
use crate::probe;
use crate::supervisor::CallError;

/// Memory of the node that must stay free beside what is moved into it, bytes: what the kernel and the agent need under way.
const MEMORY_SPARE: u64 = 256 << 20;

/// How long the plugin is asked again that is not there or still busy with the same processes.
const RESTORE_MAX: Duration = Duration::from_secs(60);

/// Pause before it is asked again.
const RESTORE_PAUSE: Duration = Duration::from_millis(200);

/// What an instance needs to leave its devices and to come back.
#[derive(Clone, Debug)]
pub(crate) struct Occupant {
    pub(crate) instance: InstanceId,
    /// Of its init.
    pub(crate) pid: i32,
    pub(crate) devices: Devices,
    /// Of its revision, if it has one.
    pub(crate) memory_limit: Option<u64>,
}

/// Why an instance's state stays where it is. It runs as before.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum SuspendError {
    /// It will not be otherwise.
    #[error("{0}")]
    Cannot(String),
    #[error("{0}")]
    Failed(String),
}

/// Why a suspended instance does not go on.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    #[error(transparent)]
    Supervisor(#[from] CallError),
    #[error("its state does not come back to its devices: {0}")]
    Devices(String),
}

impl Executor {
    /// Moves what an instance has on its devices to the host's memory, and stops its processes.
    pub(crate) fn suspend(&self, occupant: Occupant) {
        let inner = self.inner.clone();
        self.inner.probing(&occupant.instance, probe::Guard::pause);
        self.inner.spawn(async move {
            let result = suspend(&inner, &occupant).await;
            if result.is_err() {
                inner.probing(&occupant.instance, probe::Guard::resume);
            }
            inner.tell(Outcome::Suspended { instance: occupant.instance, result }).await;
        });
    }

    /// Lets a suspended instance go on with what it had on its devices.
    pub(crate) fn restore(&self, occupant: Occupant) {
        let inner = self.inner.clone();
        self.inner.spawn(async move {
            let result = restore(&inner, &occupant).await;
            inner.probing(&occupant.instance, probe::Guard::resume);
            inner.tell(Outcome::Restored { instance: occupant.instance, result }).await;
        });
    }
}

/// Moves the instance's state to the host's memory, and stops its processes.
async fn suspend(inner: &Inner, occupant: &Occupant) -> Result<(), SuspendError> {
    let Occupant { instance, pid, memory_limit, .. } = occupant;
    let movers = movers(inner, occupant).await?;
    let failed = |error: &dyn std::fmt::Display| SuspendError::Failed(error.to_string());
    let processes = processes(*pid).map_err(|error| failed(&error))?;
    let held = held_bytes(&movers, &processes).await;
    let free = available_memory().unwrap_or(u64::MAX);
    if free < held.saturating_add(MEMORY_SPARE) {
        return Err(SuspendError::Failed(format!(
            "{} MiB would have to move into the node's memory, of which {} MiB are available",
            held >> 20,
            free >> 20
        )));
    }
    if let Some(limit) = memory_limit {
        let memory_bytes = limit.saturating_add(held).saturating_add(MEMORY_SPARE);
        let allowed =
            inner.tools.supervisor.call(Request::Limit { id: instance.clone(), memory_bytes }).await;
        allowed.map_err(|error| failed(&error))?;
    }
    let moved = move_out(&movers, &processes).await;
    let stopped = match moved {
        Ok(()) => {
            let stopped = inner.tools.supervisor.call(Request::Suspend { id: instance.clone() }).await;
            stopped.map(drop).map_err(|error| failed(&error))
        }
        Err(error) => Err(error),
    };
    if stopped.is_err() {
        // Those that were not moved have nothing to be given back.
        for mover in &movers {
            if let Err(error) = mover.resume(&processes).await {
                tracing::warn!(%instance, %error, "cannot undo a suspension");
            }
        }
        limit_again(inner, occupant).await;
    }
    stopped
}

/// Lets the instance go on, with its state on its devices again.
async fn restore(inner: &Inner, occupant: &Occupant) -> Result<(), RestoreError> {
    let Occupant { instance, pid, devices, .. } = occupant;
    let (began, activations) = (Instant::now(), &inner.tools.activations);
    activations.begin(instance, IdleTier::Suspended);
    inner.tools.supervisor.call(Request::Thaw { id: instance.clone() }).await?;
    activations.ended(instance, Stage::Thaw, began.elapsed());
    let processes = processes(*pid).map_err(|error| RestoreError::Devices(error.to_string()))?;
    let none = || RestoreError::Devices("this node has no device plugins".into());
    let allocator = inner.tools.devices.as_ref().ok_or_else(none)?;
    let until = began + RESTORE_MAX;
    for resource in devices.keys() {
        loop {
            let resumed = match allocator.accelerator(resource).await {
                Ok(mover) => mover.resume(&processes).await,
                Err(error) => Err(error),
            };
            match resumed {
                Ok(_) => break,
                Err(AcceleratorError::Absent(_) | AcceleratorError::Late(_)) if Instant::now() < until => {
                    tokio::time::sleep(RESTORE_PAUSE).await;
                }
                Err(error) => return Err(RestoreError::Devices(format!("{resource}: {error}"))),
            }
        }
    }
    limit_again(inner, occupant).await;
    activations.ended(instance, Stage::Restore, began.elapsed());
    Ok(())
}

/// The plugins of all the instance's devices; each must be able to move processes, or others could not have its devices.
async fn movers(inner: &Inner, occupant: &Occupant) -> Result<Vec<Accelerator>, SuspendError> {
    let none = || SuspendError::Cannot("this node has no device plugins".into());
    let allocator = inner.tools.devices.as_ref().ok_or_else(none)?;
    let mut movers = Vec::new();
    for resource in occupant.devices.keys() {
        let described = match allocator.accelerator(resource).await {
            Ok(mover) => mover.describe().await.map(|abilities| (mover, abilities)),
            Err(error) => Err(error),
        };
        match described {
            Ok((mover, abilities)) => match abilities.suspend {
                Ok(()) => movers.push(mover),
                Err(why) => return Err(SuspendError::Cannot(format!("{resource}: {why}"))),
            },
            Err(AcceleratorError::Cannot(why)) => {
                return Err(SuspendError::Cannot(format!("{resource}: {why}")));
            }
            Err(error) => return Err(SuspendError::Failed(format!("{resource}: {error}"))),
        }
    }
    Ok(movers)
}

async fn move_out(movers: &[Accelerator], processes: &BTreeSet<Pid>) -> Result<(), SuspendError> {
    for mover in movers {
        match mover.suspend(processes).await {
            Ok(_) => {}
            Err(AcceleratorError::Cannot(why)) => return Err(SuspendError::Cannot(why)),
            Err(error) => return Err(SuspendError::Failed(error.to_string())),
        }
    }
    Ok(())
}

/// What the processes hold on devices, as far as plugins tell.
async fn held_bytes(movers: &[Accelerator], processes: &BTreeSet<Pid>) -> u64 {
    let mut most = 0;
    for mover in movers {
        let Ok(mut usage) = mover.usage().await else { continue };
        let Ok(held) = usage.next().await else { continue };
        let own = held.iter().filter(|held| processes.contains(&held.process));
        // Plugins of several resources each tell of all processes.
        most = most.max(own.filter_map(|held| held.bytes).sum());
    }
    most
}

/// Gives an instance the limit of its revision again.
async fn limit_again(inner: &Inner, occupant: &Occupant) {
    let Some(memory_bytes) = occupant.memory_limit else { return };
    let id = occupant.instance.clone();
    if let Err(error) = inner.tools.supervisor.call(Request::Limit { id, memory_bytes }).await {
        tracing::warn!(instance = %occupant.instance, %error, "it may have more memory than its limit");
    }
}

/// All processes in the pid namespace of an instance's init.
fn processes(init: i32) -> io::Result<BTreeSet<Pid>> {
    let space = |process: &Path| fs::metadata(process.join("ns/pid")).map(|space| (space.dev(), space.ino()));
    let of_init = space(&Path::new("/proc").join(init.to_string()))?;
    let mut processes = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that has ended meanwhile is in none.
        if space(&entry.path()).is_ok_and(|space| space == of_init) {
            processes.insert(Pid(pid));
        }
    }
    Ok(processes)
}

/// Bytes of memory that can be had without swapping.
fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_a_namespace_are_found() {
        let me = std::process::id();
        let found = processes(me.cast_signed()).unwrap();
        assert!(found.contains(&Pid(me)));
        assert!(processes(i32::MAX).is_err());
    }

    #[test]
    fn the_node_says_how_much_memory_there_is() {
        assert!(available_memory().unwrap() > 0);
    }
}
