//! What the plugin can do with processes on GPUs: asks the driver's libraries, each when it is first needed. Decides no order.
//! How GPUs are it tells from the view.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tombolo_device_sdk::{Abilities, Accelerator, Held, Inspection, MoveError, Pid, Suspended, UsageError};

use crate::config::Config;
use crate::cuda::{Cuda, LoadError};
use crate::driver::{Driver, OpenError};
use crate::gpu::Holding;
use crate::inspect::inspections;
use crate::suspend::{self, StepError};
use crate::view::View;

pub(crate) struct Processes {
    config: Arc<Config>,
    view: watch::Receiver<Arc<View>>,
    /// None: it has not been needed yet, or could not be loaded.
    cuda: Mutex<Option<Arc<Cuda>>>,
}

/// What processes hold on all GPUs; without one: the memory of some of them is not told.
type Bytes = BTreeMap<Pid, Option<u64>>;

impl Processes {
    pub(crate) fn new(config: Arc<Config>, view: watch::Receiver<Arc<View>>) -> Self {
        Self { config, view, cuda: Mutex::new(None) }
    }

    /// A library that was loaded once stays: threads of its own may run in it.
    fn cuda(&self) -> Result<Arc<Cuda>, LoadError> {
        let cuda = {
            let mut loaded = self.cuda.lock().unwrap_or_else(PoisonError::into_inner);
            match &*loaded {
                Some(cuda) => Arc::clone(cuda),
                None => Arc::clone(loaded.insert(Arc::new(Cuda::load(&self.config)?))),
            }
        };
        cuda.begin()?;
        Ok(cuda)
    }

    /// The library is opened each time: the thread that watches GPUs has it open, so that it costs little, and closes it when
    /// the driver is loaded anew.
    fn holdings(&self) -> Result<Vec<Holding>, UsageError> {
        let view = Arc::clone(&self.view.borrow());
        // Of a board's GPU no library tells.
        let was_told = view.gpus.values().any(|gpu| gpu.nodes.is_none());
        let driver = Driver::open(&self.config.library).map_err(|error| match error {
            // One that was there is being exchanged.
            OpenError::NoLibrary(_) if !was_told => UsageError::Never(error.to_string()),
            OpenError::NoLibrary(_) | OpenError::NoDriver(_) => UsageError::NotNow(error.into()),
        })?;
        let healthy = view.gpus.values().filter(|gpu| !view.faults.contains_key(&gpu.uuid));
        let healthy: BTreeSet<u32> = healthy.map(|gpu| gpu.index).collect();
        let told = driver.holdings(|index| !healthy.contains(&index));
        let told = told.map_err(|error| UsageError::NotNow(error.into()))?;
        told.ok_or_else(|| UsageError::Never("no GPU here tells what processes hold".to_owned()))
    }

    /// None: it is not told now.
    fn bytes(&self) -> Option<Bytes> {
        let mut bytes = Bytes::new();
        for Holding { pid, bytes: on_this, .. } in self.holdings().ok()? {
            let all = bytes.entry(Pid::try_from(pid).ok()?).or_insert(Some(0));
            *all = all.zip(on_this).map(|(all, on_this)| all + on_this);
        }
        Some(bytes)
    }
}

impl Accelerator for Processes {
    fn describe(&self) -> Abilities {
        Abilities {
            suspend: self.cuda().map(drop).map_err(|error| error.to_string()),
            tells_memory: !matches!(self.holdings(), Err(UsageError::Never(_))),
        }
    }

    fn suspend(&self, processes: &BTreeSet<Pid>) -> Result<Suspended, MoveError> {
        let cuda = self.cuda().map_err(|error| MoveError::Cannot(error.to_string()))?;
        let before = self.bytes();
        let holds = |process| before.as_ref().is_some_and(|bytes| bytes.contains_key(&process));
        let lock_max = Duration::from_millis(self.config.suspend.lock_timeout_ms.into());
        let moved = suspend::suspend(&cuda, processes, holds, lock_max).map_err(not_suspended)?;
        let freed_bytes = before.zip(self.bytes()).and_then(|(before, after)| freed(&moved, &before, &after));
        tracing::info!(processes = moved.len(), freed_bytes, "suspended");
        Ok(Suspended { moved, freed_bytes })
    }

    fn resume(&self, processes: &BTreeSet<Pid>) -> Result<BTreeSet<Pid>, MoveError> {
        let cuda = self.cuda().map_err(|error| MoveError::Cannot(error.to_string()))?;
        // A request waits for this: what is not needed is not asked.
        let held = LazyCell::new(|| self.bytes());
        let holds = |process| held.as_ref().is_some_and(|bytes| bytes.contains_key(&process));
        let resumed = suspend::resume(&cuda, processes, holds).map_err(refused)?;
        tracing::info!(processes = resumed.len(), "resumed");
        Ok(resumed)
    }

    fn usage(&self) -> Result<Vec<Held>, UsageError> {
        let held = |Holding { pid, of, bytes }: Holding| {
            let process = Pid::try_from(pid).map_err(|error| UsageError::NotNow(error.into()))?;
            let device = of.0.parse().map_err(|error| UsageError::NotNow(Box::new(error)))?;
            Ok(Held { process, device, bytes })
        };
        self.holdings()?.into_iter().map(held).collect()
    }

    fn inspect(&self) -> Result<Vec<Inspection>, UsageError> {
        let view = Arc::clone(&self.view.borrow());
        inspections(&view).map_err(|error| UsageError::NotNow(error.into()))
    }
}

fn not_suspended(error: StepError) -> MoveError {
    match &error {
        // Trying it again with processes of the same kind is of no use.
        StepError::Failed { failure, left } if failure.is_not_supported() && left.is_empty() => {
            MoveError::Cannot(error.to_string())
        }
        _ => refused(error),
    }
}

fn refused(error: StepError) -> MoveError {
    match &error {
        StepError::Failed { failure, .. } if failure.is_out_of_memory() => {
            MoveError::OutOfMemory(error.into())
        }
        _ => MoveError::Refused(error.into()),
    }
}

/// None: of one of them it is not told. Who holds nothing is in no list.
fn freed(moved: &BTreeSet<Pid>, before: &Bytes, after: &Bytes) -> Option<u64> {
    let held = |bytes: &Bytes, process| bytes.get(process).copied().unwrap_or(Some(0));
    let of = |process| Some(held(before, process)?.saturating_sub(held(after, process)?));
    moved.iter().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_freed_is_what_the_moved_ones_do_not_hold_any_more() {
        let pid = |number| Pid::try_from(number).unwrap();
        let moved = BTreeSet::from([pid(1), pid(2), pid(3)]);
        let before = Bytes::from([(pid(1), Some(10)), (pid(2), Some(20)), (pid(9), Some(5))]);
        let after = Bytes::from([(pid(1), Some(4)), (pid(3), Some(1))]);
        assert_eq!(freed(&moved, &before, &after), Some(26));
        let untold = Bytes::from([(pid(1), None)]);
        assert_eq!(freed(&moved, &before, &untold), None);
        assert_eq!(freed(&moved, &untold, &after), None);
        assert_eq!(freed(&BTreeSet::from([pid(2)]), &before, &untold), Some(20), "the others do not count");
    }
}
