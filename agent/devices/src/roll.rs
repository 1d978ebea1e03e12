//! Who offers what: the one task that owns the node's inventory.
//!
//! ```text
//!          registers          first list          stream ends             FORGET_AFTER
//! (none) ─────────▶ expected ─────────▶ connected ─────────▶ gone ───────────────────▶ (none)
//!                       ▲                                      │ registers
//!                       └──────────────────────────────────────┘
//! ```
//!
//! What a plugin listed last stays known while it is gone, as not connected; and as long while it is expected, if it was known
//! before. One that lists nothing for longer is expected still.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tombolo_agent_core::devices::{
    Choice, Device, DeviceId, Inventory, PLUGIN_WAIT_MS, Resource, ResourceName,
};
use tonic::Status;

use crate::plugin::{DEVICES_MAX, Plugin};

/// How long the devices of a plugin that has gone stay in the node's capacity. As the kubelet.
const FORGET_AFTER: Duration = Duration::from_millis(PLUGIN_WAIT_MS);

/// Resources of one node.
const RESOURCES_MAX: usize = 256;

/// Preferences asked for at a time, over all plugins; others wait for the next change.
const ASKED_MAX: usize = 64;

/// Devices of one resource that are remembered while they are away. Those of a machine whose devices never have the same id
/// twice would be ever more.
const AWAY_MAX: usize = DEVICES_MAX;

/// The plugins that can be called, by resource, with the number of their registration.
pub(crate) type Connected = Arc<BTreeMap<ResourceName, (u64, Plugin)>>;

/// What the roll is told.
pub(crate) enum Heard {
    Registered { plugin: Plugin, answer: oneshot::Sender<Result<(), Status>> },
    Listed { resource: ResourceName, number: u64, devices: BTreeMap<DeviceId, Device> },
    Gone { resource: ResourceName, number: u64, why: String },
    Preferred { choice: Choice, devices: BTreeSet<DeviceId> },
}

/// Where the roll hears and tells.
pub(crate) struct Ends {
    pub(crate) inventory: watch::Sender<Arc<Inventory>>,
    pub(crate) connected: watch::Sender<Connected>,
    pub(crate) choices: watch::Receiver<BTreeSet<Choice>>,
    pub(crate) heard: mpsc::Receiver<Heard>,
    /// For the plugins' tasks.
    pub(crate) sender: mpsc::Sender<Heard>,
}

pub(crate) struct Roll {
    ends: Ends,
    entries: BTreeMap<ResourceName, Entry>,
    preferences: BTreeMap<Choice, BTreeSet<DeviceId>>,
    asked: BTreeSet<Choice>,
    tasks: JoinSet<()>,
    /// Registrations so far.
    number: u64,
}

struct Entry {
    /// Of the registration.
    number: u64,
    plugin: Plugin,
    listener: AbortHandle,
    resource: Resource,
    /// Devices that were healthy and are not any more, or not listed.
    away: BTreeSet<DeviceId>,
    /// It has listed something, now or before it went.
    is_known: bool,
    is_gone: bool,
    /// Since when nothing that it has listed holds.
    silent_since: Option<Instant>,
}

impl Entry {
    /// Counts the devices that have come back with this list.
    fn note_returns(&mut self, devices: &BTreeMap<DeviceId, Device>) {
        let is_healthy = |id: &DeviceId| devices.get(id).is_some_and(|device| device.healthy);
        let had = self.resource.devices.iter().filter(|(_, device)| device.healthy);
        self.away.extend(had.map(|(id, _)| id).filter(|id| !is_healthy(id)).cloned());
        let back: Vec<DeviceId> = self.away.iter().filter(|id| is_healthy(id)).cloned().collect();
        for id in back {
            self.away.remove(&id);
            *self.resource.returns.entry(id).or_default() += 1;
        }
        while self.away.len() > AWAY_MAX {
            self.away.pop_first();
        }
        let away = &self.away;
        self.resource.returns.retain(|id, _| devices.contains_key(id) || away.contains(id));
    }
}

impl Roll {
    pub(crate) fn new(ends: Ends) -> Self {
        Self {
            ends,
            entries: BTreeMap::new(),
            preferences: BTreeMap::new(),
            asked: BTreeSet::new(),
            tasks: JoinSet::new(),
            number: 0,
        }
    }

    /// Runs until nobody asks for devices any more.
    pub(crate) async fn run(mut self) {
        loop {
            let forget_at = self.entries.values().filter_map(|entry| entry.silent_since).min();
            let forget = async {
                match forget_at {
                    Some(since) => tokio::time::sleep_until(since + FORGET_AFTER).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(heard) = self.ends.heard.recv() => self.hear(heard),
                changed = self.ends.choices.changed() => if changed.is_err() { return },
                Some(_) = self.tasks.join_next() => continue,
                () = forget => self.forget(),
            }
            self.ask();
            self.publish();
        }
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Registered { plugin, answer } => {
                // One that does not wait for the answer is registered all the same.
                let _ = answer.send(self.register(plugin));
            }
            Heard::Listed { resource, number, devices } => {
                if let Some(entry) = self.entry(&resource, number) {
                    let healthy = devices.values().filter(|device| device.healthy).count();
                    tracing::info!(%resource, devices = devices.len(), healthy, "devices");
                    entry.note_returns(&devices);
                    entry.resource.devices = devices;
                    entry.resource.connected = true;
                    (entry.is_known, entry.silent_since) = (true, None);
                }
            }
            Heard::Gone { resource, number, why } => {
                if let Some(entry) = self.entry(&resource, number) {
                    tracing::warn!(%resource, why, "a device plugin is gone");
                    entry.resource.connected = false;
                    entry.is_gone = true;
                    entry.silent_since.get_or_insert_with(Instant::now);
                }
            }
            Heard::Preferred { choice, devices } => {
                if self.asked.contains(&choice) {
                    self.preferences.insert(choice, devices);
                }
            }
        }
    }

    /// The entry of a registration that is still the newest of its resource.
    fn entry(&mut self, resource: &ResourceName, number: u64) -> Option<&mut Entry> {
        self.entries.get_mut(resource).filter(|entry| entry.number == number)
    }

    fn register(&mut self, plugin: Plugin) -> Result<(), Status> {
        let name = plugin.resource.clone();
        let former = self.entries.get(&name);
        if former.is_some_and(|entry| !entry.is_gone && entry.plugin.socket != plugin.socket) {
            return Err(Status::already_exists(format!(
                "another device plugin that is running has registered {name}"
            )));
        }
        if former.is_none() && self.entries.len() >= RESOURCES_MAX {
            return Err(Status::resource_exhausted(format!(
                "{RESOURCES_MAX} resources are registered, the most"
            )));
        }
        tracing::info!(resource = %name, socket = %plugin.socket.display(), "a device plugin has registered");
        self.number += 1;
        let listener = self.tasks.spawn(plugin.clone().listen(self.number, self.ends.sender.clone()));
        let (mut resource, mut away, mut is_known) = (Resource::default(), BTreeSet::new(), false);
        let mut silent_since = None;
        if let Some(former) = self.entries.remove(&name) {
            former.listener.abort();
            (resource, away, is_known) = (former.resource, former.away, former.is_known);
            silent_since = former.silent_since;
        }
        silent_since.get_or_insert_with(Instant::now);
        resource.connected = false;
        resource.has_preference = plugin.options.get_preferred_allocation_available;
        let (number, is_gone) = (self.number, false);
        let entry = Entry { number, plugin, listener, resource, away, is_known, is_gone, silent_since };
        self.entries.insert(name, entry);
        Ok(())
    }

    fn forget(&mut self) {
        let now = Instant::now();
        self.entries.retain(|name, entry| {
            if entry.silent_since.is_none_or(|since| since + FORGET_AFTER > now) {
                return true;
            }
            if entry.is_gone {
                tracing::warn!(resource = %name, "the devices of a plugin that has not come back are forgotten");
                return false;
            }
            tracing::warn!(resource = %name, "a device plugin that has registered does not list its devices");
            entry.resource = Resource { has_preference: entry.resource.has_preference, ..Resource::default() };
            (entry.is_known, entry.silent_since) = (false, None);
            entry.away.clear();
            true
        });
    }

    /// Asks for the preferences that are wanted and not known, and drops those nobody wants.
    fn ask(&mut self) {
        let wanted = self.ends.choices.borrow_and_update().clone();
        self.preferences.retain(|choice, _| wanted.contains(choice));
        self.asked.retain(|choice| wanted.contains(choice));
        for choice in wanted {
            if self.asked.len() >= ASKED_MAX || self.asked.contains(&choice) {
                continue;
            }
            let Some(entry) = self.entries.get(&choice.resource) else { continue };
            let (plugin, sender) = (entry.plugin.clone(), self.ends.sender.clone());
            self.asked.insert(choice.clone());
            self.tasks.spawn(async move {
                let devices = plugin.prefer(&choice).await;
                let _ = sender.send(Heard::Preferred { choice, devices }).await;
            });
        }
    }

    fn publish(&self) {
        let known = self.entries.iter().filter(|(_, entry)| entry.is_known);
        let inventory = Inventory {
            resources: known.map(|(name, entry)| (name.clone(), entry.resource.clone())).collect(),
            preferences: self.preferences.clone(),
        };
        let connected = self.entries.iter().filter(|(_, entry)| entry.resource.connected);
        let connected: BTreeMap<_, _> =
            connected.map(|(name, entry)| (name.clone(), (entry.number, entry.plugin.clone()))).collect();
        self.ends.connected.send_if_modified(|current| {
            let numbers = |of: &BTreeMap<ResourceName, (u64, Plugin)>| -> Vec<u64> {
                of.values().map(|(number, _)| *number).collect()
            };
            let changed = numbers(current) != numbers(&connected);
            if changed {
                *current = Arc::new(connected);
            }
            changed
        });
        self.ends.inventory.send_if_modified(|current| {
            let changed = **current != inventory;
            if changed {
                *current = Arc::new(inventory);
            }
            changed
        });
    }
}
