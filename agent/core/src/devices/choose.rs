//! Which devices an instance gets. It must not know what else wants them: what is free is given.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::pool::{by_group, group};
use super::{Device, DeviceId, Resource, ResourceName};

/// `count` of the `free` devices of `resource`: those that its plugin prefers, else those that are near to each other. `None`
/// if there are not so many.
///
/// Pieces of memory are of the accelerator that has the fewest free ones that suffice. Among NUMA nodes the one with the fewest
/// free devices that suffices, so that the larger ones stay whole; where none suffices, the largest first. Devices that are near to
/// no node in particular come last.
pub fn choose(
    name: &ResourceName,
    resource: &Resource,
    free: &BTreeSet<DeviceId>,
    count: u32,
    preferred: Option<&BTreeSet<DeviceId>>,
) -> Option<BTreeSet<DeviceId>> {
    let count = count as usize;
    let groups = by_group(name, free);
    let together = groups.values().filter(|ids| ids.len() >= count).min_by_key(|ids| ids.len())?;
    if let Some(preferred) = preferred.filter(|ids| ids.len() == count && are_together(name, ids, &groups)) {
        return Some(preferred.clone());
    }
    let mut by_node: BTreeMap<u32, BTreeSet<&DeviceId>> = BTreeMap::new();
    for id in together.iter().copied() {
        for node in resource.devices.get(id).iter().flat_map(|device: &&Device| &device.numa) {
            by_node.entry(*node).or_default().insert(id);
        }
    }
    let mut nodes: Vec<_> = by_node.values().collect();
    nodes.sort_by_key(|ids| {
        if ids.len() >= count { (0, ids.len(), Reverse(0)) } else { (1, 0, Reverse(ids.len())) }
    });
    let near = nodes.into_iter().flatten().copied();
    let mut chosen = BTreeSet::new();
    for id in near.chain(together.iter().copied()) {
        if chosen.len() == count {
            break;
        }
        chosen.insert(id.clone());
    }
    Some(chosen)
}

/// Whether they are all of one of the groups.
fn are_together(
    name: &ResourceName,
    ids: &BTreeSet<DeviceId>,
    groups: &BTreeMap<&str, BTreeSet<&DeviceId>>,
) -> bool {
    let Some(of_first) = ids.first().and_then(|first| groups.get(group(name, first))) else { return false };
    ids.iter().all(|id| of_first.contains(id))
}
