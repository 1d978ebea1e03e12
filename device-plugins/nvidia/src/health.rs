//! Which GPUs may be given to programs. A critical error (Xid) or a GPU that does not answer makes it unhealthy; so many good
//! looks in a row make it healthy again. Errors that programs cause to themselves do not count, nor does a single look at which some
//! call failed.
//!
//! Knows no clock: how often is looked is the caller's.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::HealthConfig;
use crate::gpu::{Gpu, Look, Place, Uuid, Xid};

/// Errors of the memory: until it has been reset, a GPU with such errors is not trusted, whatever else it answers.
const MEMORY_XIDS: [u64; 5] = [48, 63, 64, 94, 95];

/// What is known of all GPUs that have been seen.
#[derive(Debug)]
pub(crate) struct Health {
    config: HealthConfig,
    faults: BTreeMap<Uuid, BTreeMap<Scope, Fault>>,
    /// How often each critical error was reported, those that do not count among them.
    counts: BTreeMap<(Uuid, u64), u64>,
    /// GPUs at whose last look some call failed, without the driver saying that they are lost.
    doubted: BTreeSet<Uuid>,
}

/// What a fault is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Gpu,
    Instance(Place),
}

#[derive(Clone, Debug)]
struct Fault {
    why: String,
    /// Of the memory: see [`MEMORY_XIDS`].
    is_memory: bool,
    /// Good looks since.
    good: u32,
}

impl Health {
    pub(crate) fn new(config: HealthConfig) -> Self {
        Self { config, faults: BTreeMap::new(), counts: BTreeMap::new(), doubted: BTreeSet::new() }
    }

    /// Takes in a critical error. Says whether it changes anything.
    pub(crate) fn report(&mut self, xid: &Xid) -> bool {
        *self.counts.entry((xid.gpu.clone(), xid.number)).or_default() += 1;
        if self.config.ignored_xids.contains(&xid.number) {
            return false;
        }
        let scope = xid.place.map_or(Scope::Gpu, Scope::Instance);
        let why = format!("the driver reported the critical error Xid {}", xid.number);
        let is_memory = MEMORY_XIDS.contains(&xid.number);
        self.faults.entry(xid.gpu.clone()).or_default().insert(scope, Fault { why, is_memory, good: 0 });
        true
    }

    /// Takes in a look, for all GPUs that were ever seen. Gives those that have not answered this once, and are taken to be as they
    /// were.
    pub(crate) fn look(&mut self, known: &BTreeMap<Uuid, Gpu>, look: &Look) -> BTreeSet<Uuid> {
        let mut as_before = BTreeSet::new();
        for (uuid, gpu) in known {
            if let Some(gpu) = look.gpus.iter().find(|gpu| gpu.uuid == *uuid) {
                self.doubted.remove(uuid);
                self.recover(gpu);
                continue;
            }
            match look.mute(gpu) {
                Some(mute) if !mute.is_lost && self.doubted.insert(uuid.clone()) => {
                    self.interrupt(uuid);
                    as_before.insert(uuid.clone());
                }
                Some(mute) => self.lost(uuid, &format!("the GPU does not answer: {}", mute.why)),
                None => self.lost(uuid, "the driver does not list the GPU any more"),
            }
        }
        as_before
    }

    /// The GPU does not answer.
    pub(crate) fn lost(&mut self, gpu: &Uuid, why: &str) {
        self.interrupt(gpu);
        let faults = self.faults.entry(gpu.clone()).or_default();
        let is_memory = faults.get(&Scope::Gpu).is_some_and(|fault| fault.is_memory);
        faults.insert(Scope::Gpu, Fault { why: why.to_owned(), is_memory, good: 0 });
    }

    /// Good looks are counted anew.
    fn interrupt(&mut self, gpu: &Uuid) {
        for fault in self.faults.get_mut(gpu).into_iter().flat_map(BTreeMap::values_mut) {
            fault.good = 0;
        }
    }

    fn recover(&mut self, gpu: &Gpu) {
        let Some(faults) = self.faults.get_mut(&gpu.uuid) else { return };
        let memory_errors = gpu.usage.ecc.is_some_and(|ecc| ecc.uncorrected > 0);
        let needed = self.config.recovery_looks;
        faults.retain(|_, fault| {
            fault.good = if fault.is_memory && memory_errors { 0 } else { fault.good + 1 };
            fault.good < needed
        });
        if faults.is_empty() {
            self.faults.remove(&gpu.uuid);
        }
    }

    /// Why the GPU, or its instance at `place`, must not be used; none: it may.
    pub(crate) fn fault(&self, gpu: &Uuid, place: Option<Place>) -> Option<&str> {
        let faults = self.faults.get(gpu)?;
        let of = |scope| faults.get(&scope).map(|fault| fault.why.as_str());
        match place {
            Some(place) => of(Scope::Gpu).or_else(|| of(Scope::Instance(place))),
            // A whole GPU is no better than its worst part.
            None => faults.values().next().map(|fault| fault.why.as_str()),
        }
    }

    pub(crate) fn counts(&self) -> &BTreeMap<(Uuid, u64), u64> {
        &self.counts
    }
}

#[cfg(test)]
mod tests;
