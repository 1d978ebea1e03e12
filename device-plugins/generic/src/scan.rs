//! A resource of the file as the SDK's [`Scan`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tombolo_device_sdk::{
    Device, DeviceId, DeviceNode, Edits, EditsError, Mount, Resource, Scan, ScanError, Wanted, close_together,
};

use crate::config::{Entry, ResourceConfig};
use crate::find::{Found, FoundNode, extra, find};
use crate::identity;

/// Finds the devices of one resource.
pub struct Finder {
    config: ResourceConfig,
    /// As of the last scan, by the id that the kubelet knows.
    found: BTreeMap<DeviceId, Found>,
}

impl Finder {
    pub fn new(config: ResourceConfig) -> Self {
        Self { config, found: BTreeMap::new() }
    }
}

/// The resource as it is served.
pub fn resource(config: ResourceConfig) -> Resource {
    let (name, interval, watched) = (config.entry.name.clone(), config.interval, watched(&config));
    Resource { name, scan: Box::new(Finder::new(config)), watched, interval }
}

/// Directories in which a device's coming or going shows.
fn watched(config: &ResourceConfig) -> Vec<PathBuf> {
    let ResourceConfig { entry, roots, .. } = config;
    let paths = entry.matches.iter().filter_map(|one| one.path.as_ref()).chain(&entry.extra);
    let mut watched: BTreeSet<PathBuf> = paths.map(|path| parent(&roots.dev, path.below_dev())).collect();
    watched.insert(roots.dev.clone());
    if entry.matches.iter().any(|one| !one.usb.is_empty()) {
        let buses = roots.dev.join("bus/usb");
        watched.extend(buses.read_dir().into_iter().flatten().flatten().map(|bus| bus.path()));
        watched.insert(buses);
    }
    if entry.matches.iter().any(|one| !one.udev.is_empty()) {
        watched.insert(roots.udev.clone());
    }
    watched.into_iter().collect()
}

/// The deepest directory that is in every path of this pattern.
fn parent(root: &Path, pattern: &str) -> PathBuf {
    let mut directory = root.to_owned();
    let parts: Vec<_> = pattern.split('/').collect();
    let plain = parts[..parts.len() - 1].iter().take_while(|part| !part.contains(['*', '?', '[']));
    directory.extend(plain);
    directory
}

impl Scan for Finder {
    fn scan(&mut self) -> Result<Vec<Device>, ScanError> {
        let mut devices = Vec::new();
        let mut by_id = BTreeMap::new();
        for found in find(&self.config)? {
            let shares = self.config.entry.shared.map_or(1, |shares| shares.0);
            for share in 0..shares {
                let share = self.config.entry.shared.map(|_| share);
                let id = identity::id(found.id.as_str(), share);
                devices.push(Device { id: id.clone(), health: found.health.clone(), numa: found.numa });
                by_id.insert(id, found.clone());
            }
        }
        self.found = by_id;
        Ok(devices)
    }

    fn edits(&self, devices: &[DeviceId]) -> Result<Edits, EditsError> {
        let mut found: Vec<&Found> = Vec::new();
        for id in devices {
            let one = self.found.get(id).ok_or_else(|| EditsError::Gone(id.clone()))?;
            // Two shares of one device are its nodes once.
            if !found.iter().any(|other| other.id == one.id) {
                found.push(one);
            }
        }
        let entry = &self.config.entry;
        let mut nodes: Vec<DeviceNode> = Vec::new();
        for (n, node) in found.iter().flat_map(|one| &one.nodes).enumerate() {
            let container = entry.at.as_ref().map(|at| PathBuf::from(at.0.replace("{n}", &n.to_string())));
            let node = device_node(node, container, entry);
            if nodes.iter().any(|other| other.container == node.container) {
                let place = node.container.display();
                return Err(EditsError::Hardware(
                    format!("two nodes would be at {place}: write at = \"{place}{{n}}\"").into(),
                ));
            }
            nodes.push(node);
        }
        let paths: Vec<_> = nodes.iter().map(|node| node.container.display().to_string()).collect();
        let ids: Vec<_> = devices.iter().map(DeviceId::to_string).collect();
        let (paths, ids) = (paths.join(","), ids.join(","));
        let filled = |text: &str| text.replace("{paths}", &paths).replace("{ids}", &ids);
        let env = entry.env.iter().map(|(name, value)| (name.clone(), filled(&value.0))).collect();
        for node in extra(&self.config) {
            let node = device_node(&node, None, entry);
            if !nodes.contains(&node) {
                nodes.push(node);
            }
        }
        let mount = |mount: &crate::config::MountConfig| Mount {
            host: mount.host.clone(),
            container: mount.container.clone(),
            read_only: mount.read_only,
        };
        Ok(Edits { env, nodes, mounts: entry.mounts.iter().map(mount).collect(), ..Edits::default() })
    }

    fn mark(&self, device: &DeviceId) -> String {
        self.found.get(device).map(|found| found.mark.clone()).unwrap_or_default()
    }

    /// Shares of different devices, those with most left first; of devices that are not shared, neighbours.
    fn prefer(&self, wanted: &Wanted<'_>) -> Vec<DeviceId> {
        if self.config.entry.shared.is_none() {
            return close_together(wanted);
        }
        let mut chosen: Vec<DeviceId> = wanted.must_include.iter().map(|id| (*id).clone()).collect();
        let of = |id: &DeviceId| self.found.get(id).map(|found| &found.id);
        let mut free: BTreeMap<Option<&DeviceId>, Vec<&DeviceId>> = BTreeMap::new();
        for device in wanted.available.iter().rev().filter(|device| !wanted.must_include.contains(&device.id))
        {
            free.entry(of(&device.id)).or_default().push(&device.id);
        }
        while chosen.len() < wanted.size {
            let used = |device: &Option<&DeviceId>| chosen.iter().filter(|id| of(id) == *device).count();
            let least = free
                .iter_mut()
                .filter(|(_, ids)| !ids.is_empty())
                .min_by_key(|(device, ids)| (used(device), usize::MAX - ids.len()));
            let Some(id) = least.and_then(|(_, ids)| ids.pop()) else { break };
            chosen.push(id.clone());
        }
        chosen
    }
}

fn device_node(node: &FoundNode, container: Option<PathBuf>, entry: &Entry) -> DeviceNode {
    let container = container.unwrap_or_else(|| node.shown.clone());
    DeviceNode { host: node.host.clone(), container, permissions: entry.permissions }
}
