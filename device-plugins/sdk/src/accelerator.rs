//! What a plugin for accelerators can do with the processes that use them, beside giving devices to containers: tell what they
//! hold, and move it to the host's memory and back. A plugin that can implements [`Accelerator`] and names it in
//! [`crate::Scan::accelerator`]; the rest is served here. It must not know any hardware.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use tokio::sync::{Mutex, Semaphore};

use crate::device::{DeviceId, Health};

mod inspect;
mod service;
mod turns;

pub(crate) use service::Service;

use service::Measured;
use turns::Turns;

/// Moves under way in one program; more wait. Each has a thread, and copies as fast as the machine's memory lets it.
const MOVES_MAX: usize = 8;

/// Looks under way in one program, those that hang included.
const LOOKS_MAX: usize = 4;

/// Names a process on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pid(u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no number of a process")]
pub struct PidError(u32);

/// What can be done with processes here and now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Whether they can be suspended; if not, why, in one sentence.
    pub suspend: Result<(), String>,
    /// Whether it is told how much each of them holds.
    pub tells_memory: bool,
}

/// What became of processes that were to be suspended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspended {
    /// Those whose state is in the host's memory, also if it was before.
    pub moved: BTreeSet<Pid>,
    /// None: it is not told.
    pub freed_bytes: Option<u64>,
}

/// What one process holds on one accelerator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub process: Pid,
    pub device: DeviceId,
    /// None: it is not told.
    pub bytes: Option<u64>,
}

/// One accelerator as it is now. None: it is not told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Its own, for its life.
    pub device: DeviceId,
    pub model: String,
    pub health: Health,
    /// The instances that it is cut into.
    pub parts: Vec<DeviceId>,
    pub memory_bytes: Option<u64>,
    pub memory_used_bytes: Option<u64>,
    /// Time in which some program ran on its processors.
    pub utilisation_percent: Option<u32>,
    /// Time in which its memory was read or written.
    pub memory_utilisation_percent: Option<u32>,
    pub temperature_celsius: Option<i32>,
    pub power_milliwatts: Option<u32>,
    pub memory_errors: Option<MemoryErrors>,
}

/// Errors of an accelerator's memory since its driver was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryErrors {
    pub corrected: u64,
    pub uncorrected: u64,
}

/// Why processes are as they were, or as the message says.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// The same call may succeed on another machine or for processes of another kind, and otherwise not before the driver is another.
    #[error("{0}")]
    Cannot(String),
    /// Where it was to be moved to there is no room.
    #[error("{0}")]
    OutOfMemory(#[source] Box<dyn Error + Send + Sync>),
    #[error("{0}")]
    Refused(#[source] Box<dyn Error + Send + Sync>),
}

/// Why it cannot be told what processes hold, or how accelerators are.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    #[error("{0}")]
    Never(String),
    #[error("{0}")]
    NotNow(#[source] Box<dyn Error + Send + Sync>),
}

/// What a plugin for accelerators has to say of processes. Its functions may block, because they are called on threads of their
/// own, several at a time; those that move are never called for one process twice at a time.
pub trait Accelerator: Send + Sync + 'static {
    fn describe(&self) -> Abilities;

    /// Moves what those of the processes have that have any to the host's memory: all or none.
    ///
    /// # Errors
    /// It cannot be moved; what was moved before it is back.
    fn suspend(&self, processes: &BTreeSet<Pid>) -> Result<Suspended, MoveError>;

    /// Moves it back, and lets them go on: all or none. Gives those that have their state on accelerators now.
    ///
    /// # Errors
    /// It cannot be moved; what was moved before it is in the host's memory again.
    fn resume(&self, processes: &BTreeSet<Pid>) -> Result<BTreeSet<Pid>, MoveError>;

    /// What all processes hold now.
    ///
    /// # Errors
    /// It cannot be told.
    fn usage(&self) -> Result<Vec<Held>, UsageError>;

    /// Every accelerator there is, the faulty ones included. Asked once a second while somebody follows: it must cost little.
    ///
    /// # Errors
    /// It cannot be told; by default never.
    fn inspect(&self) -> Result<Vec<Inspection>, UsageError> {
        Err(UsageError::Never("this plugin does not tell how its accelerators are".to_owned()))
    }
}

/// One accelerator plugin for all its resources, so that calls for a process take turns whichever resource they come by.
#[derive(Clone)]
pub struct SharedAccelerator(Arc<Shared>);

struct Shared {
    accelerator: Box<dyn Accelerator>,
    turns: Turns,
    moves: Arc<Semaphore>,
    looks: Arc<Semaphore>,
    measured: Mutex<Option<Measured>>,
}

impl SharedAccelerator {
    pub fn new(accelerator: impl Accelerator) -> Self {
        Self(Arc::new(Shared {
            accelerator: Box::new(accelerator),
            turns: Turns::default(),
            moves: Arc::new(Semaphore::new(MOVES_MAX)),
            looks: Arc::new(Semaphore::new(LOOKS_MAX)),
            measured: Mutex::new(None),
        }))
    }
}

impl Pid {
    pub fn number(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Pid {
    type Error = PidError;

    fn try_from(number: u32) -> Result<Self, PidError> {
        if number == 0 || i32::try_from(number).is_err() { Err(PidError(number)) } else { Ok(Self(number)) }
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_processes_are_the_kernels() {
        assert_eq!(Pid::try_from(1).map(Pid::number), Ok(1));
        for bad in [0, 1 << 31, u32::MAX] {
            assert_eq!(Pid::try_from(bad), Err(PidError(bad)));
        }
    }
}
