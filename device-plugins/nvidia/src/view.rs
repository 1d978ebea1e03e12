//! What the plugin knows at one moment, for all who read it. Made by `watch`; pure.

use std::collections::{BTreeMap, BTreeSet};

use tombolo_cdi::Spec;

use crate::gpu::{Gpu, Usage, Uuid};
use crate::share::{Offers, Part};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// None: there is no driver now.
    pub driver_version: Option<String>,
    /// All GPUs that were seen, as they were seen last.
    pub gpus: BTreeMap<Uuid, Gpu>,
    /// The NUMA nodes of GPUs, where there are several.
    pub numa: BTreeMap<Uuid, u32>,
    /// Why GPUs and instances must not be used.
    pub faults: BTreeMap<Uuid, String>,
    /// GPUs that answered when they were looked at last: of others what is measured is old.
    pub answering: BTreeSet<Uuid>,
    /// Why GPUs cannot be shared through MPS.
    pub mps_faults: BTreeMap<Uuid, String>,
    /// How often each critical error was reported.
    pub xids: BTreeMap<(Uuid, u64), u64>,
    pub offers: Offers,
    /// What containers get; none: there is no GPU.
    pub spec: Option<Spec>,
    /// Why it could not be made or written.
    pub spec_error: Option<String>,
}

impl View {
    pub(crate) fn part(&self, resource: &str, device: &str) -> Option<&Part> {
        self.offers.get(resource)?.get(device)
    }

    /// What is measured of a GPU; none: it does not answer now.
    pub(crate) fn measured<'a>(&self, gpu: &'a Gpu) -> Option<&'a Usage> {
        self.answering.contains(&gpu.uuid).then_some(&gpu.usage)
    }

    /// Memory of a GPU that nobody has taken when it was looked at last, bytes.
    pub(crate) fn free_bytes(&self, gpu: &Uuid) -> u64 {
        self.gpus.get(gpu).map_or(0, |gpu| gpu.memory_bytes.saturating_sub(gpu.usage.memory_used_bytes))
    }
}
