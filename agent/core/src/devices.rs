//! Devices of a node: which there are, which an instance holds, and which the next one gets. Pure: knows neither plugins'
//! sockets nor how a device is put into a container.
//!
//! ```text
//! plugins ─▶ tombolo-agent-devices ── watch<Inventory> ──▶ reconciler ─▶ Actual::devices ─┐
//!                  ▲  ▲                                                                    ▼
//!                  │  └── choices to have an opinion on ◀── Plan::choices ◀──────────── plan/devices.rs
//!                  └───── Allocate, PreStartContainer ◀── Launch, Prime { devices } ◀──────┘
//! ```
//!
//! The plan alone gives devices away, in [`Launch`](crate::plan::Action::Launch) and [`Prime`](crate::plan::Action::Prime); the
//! reconciler writes them into [`InstanceActual::devices`](crate::actual::InstanceActual::devices), and the supervisor keeps them
//! in the instance's labels, which are written before anything of the container is made. So a restarted agent finds instance and
//! devices together or neither. A device is free when no instance that is known has it, in whatever phase that is.
//!
//! [`obstacle`]: what a node cannot give at all, or not now. [`choose`]: which devices. [`pool`]: how many there are, and which count
//! together. [`overuse`]: who holds more than was given.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tombolo_api::desired::RevisionObject;
use tombolo_api::quantity::Quantity;
use tombolo_api::serving::admission::is_extended;

use crate::actual::Moment;
use overuse::Uses;

mod choose;
mod fit;
mod obstacle;
pub mod overuse;
mod pool;

pub use choose::choose;
pub use fit::Fit;
pub use obstacle::{Obstacle, obstacle};
pub use pool::GPU_MEMORY;
pub(crate) use pool::Pool;

/// How long a node waits for a plugin that it has not heard of since the agent's start, milliseconds, before it says that there
/// is none. As long as the kubelet keeps the devices of a plugin that has gone.
pub const PLUGIN_WAIT_MS: u64 = 300_000;

/// How long an instance stays on a device that is reported unhealthy or is not listed any more, milliseconds: a plugin that
/// starts may list what it finds one by one, and a device that is reset is soon back.
pub const LOST_GRACE_MS: u64 = 5_000;

/// `vendor-domain/name`, as in `resources.limits`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ResourceName(pub String);

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a plugin calls one device. Unique in its resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeviceId(pub String);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Devices an instance must be given, by resource; never a zero.
pub type Asked = BTreeMap<ResourceName, u32>;

/// Devices an instance has.
pub type Devices = BTreeMap<ResourceName, BTreeSet<DeviceId>>;

/// One device as its plugin lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub healthy: bool,
    /// NUMA nodes it is near to; none: all the same.
    pub numa: BTreeSet<u32>,
}

/// One resource and its plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource {
    /// As last listed.
    pub devices: BTreeMap<DeviceId, Device>,
    /// The plugin is connected: what is listed holds. Otherwise nothing is given away, and nothing taken.
    pub connected: bool,
    /// The plugin has an opinion on which devices belong together.
    pub has_preference: bool,
    /// How often a device has come back after it was unhealthy or not listed. Those that never did are not here.
    pub returns: BTreeMap<DeviceId, u64>,
}

/// A choice that a plugin may have an opinion on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Choice {
    pub resource: ResourceName,
    pub free: BTreeSet<DeviceId>,
    pub count: u32,
}

/// The devices of a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    pub resources: BTreeMap<ResourceName, Resource>,
    /// What plugins answered to [choices](Choice); empty: no opinion, or none in time.
    pub preferences: BTreeMap<Choice, BTreeSet<DeviceId>>,
}

/// The devices of a node, and how long those not heard of are waited for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    pub inventory: Arc<Inventory>,
    /// Until then a resource nobody has registered may still come.
    pub awaited_until: Moment,
    /// What instances hold of accelerators' memory, as far as plugins tell.
    pub uses: Arc<Uses>,
}

impl Resource {
    fn healthy(&self) -> impl Iterator<Item = &DeviceId> {
        let healthy = self.devices.iter().filter(|(_, device)| self.connected && device.healthy);
        healthy.map(|(id, _)| id)
    }
}

impl Inventory {
    /// Those of `devices` that are lost: their plugin is there and says that they are unhealthy, or does not list them. Of those whose
    /// plugin is not there nothing is known, so they are not.
    pub fn lost<'a>(&'a self, devices: &'a Devices) -> impl Iterator<Item = &'a DeviceId> {
        devices.iter().flat_map(|(name, ids)| {
            let resource = self.resources.get(name).filter(|resource| resource.connected);
            let is_lost = |id: &&DeviceId, resource: &Resource| {
                resource.devices.get(*id).is_none_or(|device| !device.healthy)
            };
            ids.iter().filter(move |id| resource.is_some_and(|resource| is_lost(id, resource)))
        })
    }

    /// Whether one of `devices` has come back since `earlier`.
    pub fn has_returned(&self, devices: &Devices, earlier: &Self) -> bool {
        let returns = |inventory: &Self, name: &ResourceName, id: &DeviceId| {
            inventory.resources.get(name).and_then(|resource| resource.returns.get(id)).copied()
        };
        let mut all = devices.iter().flat_map(|(name, ids)| ids.iter().map(move |id| (name, id)));
        all.any(|(name, id)| returns(self, name, id) > returns(earlier, name, id))
    }

    /// Whether the plugins of all of `devices` are there.
    pub fn has_plugins_of(&self, devices: &Devices) -> bool {
        devices.keys().all(|name| self.resources.get(name).is_some_and(|resource| resource.connected))
    }

    /// The devices that can be given away beside those that `held` has.
    pub fn free<'a>(&self, held: impl Iterator<Item = &'a Devices>) -> Devices {
        let mut free: Devices = BTreeMap::new();
        for (name, resource) in &self.resources {
            free.insert(name.clone(), resource.healthy().cloned().collect());
        }
        for (name, ids) in held.flatten() {
            if let Some(free) = free.get_mut(name) {
                free.retain(|id| !ids.contains(id));
            }
        }
        free
    }

    /// Whether two instances that each ask for this can never run beside each other.
    pub fn is_too_few_for_two(&self, asked: &Asked) -> bool {
        let mut pool = Pool::default();
        for name in asked.keys() {
            pool.add(name, self.resources.get(name).into_iter().flat_map(|resource| resource.devices.keys()));
        }
        !(pool.take(asked) && pool.take(asked))
    }

    /// Devices by resource as Kubernetes' `capacity` counts them: healthy or not.
    pub fn capacity(&self) -> BTreeMap<String, u64> {
        self.count(|resource| resource.devices.len())
    }

    /// Devices by resource that instances may have, held ones included, as Kubernetes' `allocatable`.
    pub fn allocatable(&self) -> BTreeMap<String, u64> {
        self.count(|resource| resource.healthy().count())
    }

    /// The most devices that one instance can have, of resources of which that is less than all: those of accelerators' pieces.
    pub fn largest_piece(&self) -> BTreeMap<String, u64> {
        let most = |(name, resource): (&ResourceName, &Resource)| {
            let most = pool::most_together(name, resource.devices.keys());
            (most < resource.devices.len()).then(|| (name.0.clone(), most as u64))
        };
        self.resources.iter().filter_map(most).collect()
    }

    fn count(&self, of: impl Fn(&Resource) -> usize) -> BTreeMap<String, u64> {
        self.resources.iter().map(|(name, resource)| (name.0.clone(), of(resource) as u64)).collect()
    }
}

/// The devices that an instance of `object` must be given. The hub has seen to it that requests and limits agree.
pub fn asked(object: &RevisionObject) -> Asked {
    let Some(container) = object.spec.serving_container() else { return Asked::new() };
    let limits = container.resources.limits.iter().filter(|(name, _)| is_extended(name));
    let count = |amount: &Quantity| u32::try_from(amount.bytes()).unwrap_or(u32::MAX);
    limits
        .map(|(name, amount)| (ResourceName(name.clone()), count(amount)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

#[cfg(test)]
mod tests;
