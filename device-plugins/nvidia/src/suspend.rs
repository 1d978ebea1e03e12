//! In which order processes are suspended and resumed, and what is undone when a step fails. It makes no call of its own, and
//! knows nothing of who asks.
//!
//! ```text
//!   Running ──lock──▶ Locked ──checkpoint──▶ Checkpointed
//!      ▲                │ ▲                        │
//!      └─────unlock─────┘ └────────restore─────────┘
//! ```
//!
//! All are locked before the first is moved, since that is what fails most and is undone for nothing; and all are back before
//! the first goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tombolo_device_sdk::Pid;

use crate::cuda::{Cuda, Failure, State};

/// Why processes could not be moved.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StepError {
    #[error("process {0} is lost: the driver failed at moving it before; end it")]
    Lost(Pid),
    #[error("process {0} is being moved by somebody else")]
    Moving(Pid),
    #[error("{failure}{}", told(.failure, .left))]
    Failed {
        failure: Failure,
        /// What could not be undone.
        left: Vec<Failure>,
    },
}

/// Moves what the processes have to the host's memory, and gives those that have something. `holds`: what a process has on GPUs
/// is told from elsewhere, so that the driver must know it.
pub(crate) fn suspend(
    cuda: &Cuda,
    processes: &BTreeSet<Pid>,
    holds: impl Fn(Pid) -> bool,
    lock_max: Duration,
) -> Result<BTreeSet<Pid>, StepError> {
    let states = states(cuda, processes, holds)?;
    let mut locked = of(&states, State::Locked);
    let mut moved = Vec::new();
    let mut steps = || {
        for process in of(&states, State::Running) {
            cuda.lock(process, lock_max)?;
            locked.push(process);
        }
        for process in &locked {
            cuda.checkpoint(*process)?;
            moved.push(*process);
        }
        Ok(())
    };
    let done = steps();
    done.map_err(|failure| StepError::Failed { failure, left: give_back(cuda, &locked, &moved) })?;
    Ok(states.into_keys().collect())
}

/// Moves it back, and lets them go on.
pub(crate) fn resume(
    cuda: &Cuda,
    processes: &BTreeSet<Pid>,
    holds: impl Fn(Pid) -> bool,
) -> Result<BTreeSet<Pid>, StepError> {
    let states = states(cuda, processes, holds)?;
    let mut locked = of(&states, State::Locked);
    let mut restored = Vec::new();
    for process in of(&states, State::Checkpointed) {
        if let Err(failure) = cuda.restore(process) {
            // What they hold may be what another one waits for.
            let undone = restored.into_iter().map(|process| cuda.checkpoint(process));
            return Err(StepError::Failed { failure, left: undone.filter_map(Result::err).collect() });
        }
        restored.push(process);
    }
    locked.append(&mut restored);
    // One that stays locked is no reason to hold up the others.
    let mut failures = locked.into_iter().filter_map(|process| cuda.unlock(process).err());
    match failures.next() {
        Some(failure) => Err(StepError::Failed { failure, left: failures.collect() }),
        None => Ok(states.into_keys().collect()),
    }
}

/// Those that have something on a GPU, or had before they were suspended.
fn states(
    cuda: &Cuda,
    processes: &BTreeSet<Pid>,
    holds: impl Fn(Pid) -> bool,
) -> Result<BTreeMap<Pid, State>, StepError> {
    let mut states = BTreeMap::new();
    for process in processes {
        match cuda.state(*process) {
            Ok(State::Failed) => return Err(StepError::Lost(*process)),
            Ok(State::Moving) => return Err(StepError::Moving(*process)),
            Ok(state) => drop(states.insert(*process, state)),
            Err(failure) if holds(*process) => {
                return Err(StepError::Failed { failure, left: Vec::new() });
            }
            // It does not use the driver: most processes of a container do not.
            Err(failure) => tracing::debug!(%process, %failure, "nothing to move"),
        }
    }
    Ok(states)
}

fn of(states: &BTreeMap<Pid, State>, which: State) -> Vec<Pid> {
    states.iter().filter(|(_, state)| **state == which).map(|(process, _)| *process).collect()
}

/// Undoes a suspension, and gives what could not be undone.
fn give_back(cuda: &Cuda, locked: &[Pid], moved: &[Pid]) -> Vec<Failure> {
    let mut left: BTreeMap<Pid, Failure> = BTreeMap::new();
    for process in moved {
        left.extend(cuda.restore(*process).err().map(|failure| (*process, failure)));
    }
    for process in locked {
        if !left.contains_key(process) {
            left.extend(cuda.unlock(*process).err().map(|failure| (*process, failure)));
        }
    }
    left.into_values().collect()
}

fn told(failure: &Failure, left: &[Failure]) -> String {
    let mut more = String::new();
    if failure.is_not_ready() {
        more += " (what it does on the GPU did not come to an end in time)";
    }
    for failure in left {
        more += &format!("; and then {failure}");
    }
    more
}
