//! Which GPUs may be given to programs. A critical error (Xid) or a GPU that does not answer makes it unhealthy; so many good
//! looks in a row make it healthy again. Errors that programs cause to themselves do not count.
//!
//! Knows no clock: how often is looked is the caller's.

use std::collections::BTreeMap;

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
        Self { config, faults: BTreeMap::new(), counts: BTreeMap::new() }
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

    /// Takes in a look, for all GPUs that were ever seen.
    pub(crate) fn look(&mut self, known: &BTreeMap<Uuid, Gpu>, look: &Look) {
        for uuid in known.keys() {
            let gpu = look.gpus.iter().find(|gpu| gpu.uuid == *uuid);
            match gpu {
                None => self.lost(uuid, &reason(look)),
                Some(gpu) => self.recover(gpu),
            }
        }
    }

    /// The GPU does not answer.
    pub(crate) fn lost(&mut self, gpu: &Uuid, why: &str) {
        let faults = self.faults.entry(gpu.clone()).or_default();
        for fault in faults.values_mut() {
            fault.good = 0;
        }
        let is_memory = faults.get(&Scope::Gpu).is_some_and(|fault| fault.is_memory);
        faults.insert(Scope::Gpu, Fault { why: why.to_owned(), is_memory, good: 0 });
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

fn reason(look: &Look) -> String {
    match look.mute.first() {
        Some((_, why)) => format!("the GPU does not answer: {why}"),
        None => "the driver does not list the GPU any more".to_owned(),
    }
}

#[cfg(test)]
mod tests;
