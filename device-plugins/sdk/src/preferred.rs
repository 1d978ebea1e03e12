//! Which devices go well together: the hint that a plugin gives before an allocation. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::device::{Device, DeviceId};

/// Some of a resource's devices are wanted, and the plugin may say which.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// Those that may be chosen, sorted by id, those that must be chosen among them.
    pub available: Vec<&'a Device>,
    pub must_include: BTreeSet<&'a DeviceId>,
    /// How many are wanted in all; at most what is available, at least what must be included.
    pub size: usize,
}

/// Devices of as few NUMA nodes as will do: what must be included, then its neighbours, then the smallest node that has
/// enough, so that larger ones stay whole for those who want more.
pub fn close_together(wanted: &Wanted<'_>) -> Vec<DeviceId> {
    let mut chosen: Vec<DeviceId> = wanted.must_include.iter().map(|id| (*id).clone()).collect();
    let mut begun: BTreeSet<Option<u32>> = BTreeSet::new();
    let mut free: BTreeMap<Option<u32>, Vec<&DeviceId>> = BTreeMap::new();
    for device in &wanted.available {
        if wanted.must_include.contains(&device.id) {
            begun.insert(device.numa);
        } else {
            free.entry(device.numa).or_default().push(&device.id);
        }
    }
    while chosen.len() < wanted.size {
        let missing = wanted.size - chosen.len();
        // Those on a node that is in use already come first, then those that have enough, then those that have most.
        let best = free.iter().min_by_key(|(numa, ids)| {
            let enough = ids.len() >= missing;
            (!begun.contains(numa), !enough, if enough { ids.len() } else { usize::MAX - ids.len() })
        });
        let Some(numa) = best.map(|(numa, _)| *numa) else { break };
        begun.insert(numa);
        chosen.extend(free.remove(&numa).unwrap_or_default().into_iter().take(missing).cloned());
    }
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::device::Health;

    fn devices(numa: &[Option<u32>]) -> Vec<Device> {
        let device = |(at, numa): (usize, &Option<u32>)| Device {
            id: format!("d{at:02}").parse().unwrap(),
            health: Health::Healthy,
            numa: *numa,
        };
        numa.iter().enumerate().map(device).collect()
    }

    fn choose(devices: &[Device], must_include: &[usize], size: usize) -> Vec<DeviceId> {
        let must_include = must_include.iter().map(|at| &devices[*at].id).collect();
        close_together(&Wanted { available: devices.iter().collect(), must_include, size })
    }

    #[test]
    fn neighbours_are_chosen() {
        let numa = [Some(0), Some(0), Some(0), Some(1), Some(1), Some(1), Some(1), Some(2)];
        let devices = devices(&numa);
        let chosen = |must: &[usize], size| {
            choose(&devices, must, size).iter().map(DeviceId::to_string).collect::<Vec<_>>()
        };
        assert_eq!(chosen(&[], 1), ["d07"], "a single one leaves the large nodes whole");
        assert_eq!(chosen(&[], 2), ["d00", "d01"]);
        assert_eq!(chosen(&[], 4), ["d03", "d04", "d05", "d06"]);
        assert_eq!(chosen(&[1], 2), ["d01", "d00"], "what must be included brings its neighbours");
        assert_eq!(chosen(&[7], 3), ["d07", "d00", "d01"]);
        assert_eq!(
            chosen(&[], 5),
            ["d03", "d04", "d05", "d06", "d07"],
            "no node has five: the largest and one more"
        );
        assert_eq!(chosen(&[], 0), Vec::<String>::new());
    }

    proptest! {
        #[test]
        fn as_many_as_wanted_each_once_and_those_that_must_be(
            numa in proptest::collection::vec(proptest::option::of(0u32..4), 0..20),
            must in proptest::collection::btree_set(0usize..20, 0..6),
            size in 0usize..20,
        ) {
            let devices = devices(&numa);
            let must: Vec<usize> = must.into_iter().filter(|at| *at < devices.len()).collect();
            let size = size.clamp(must.len(), devices.len());
            let chosen = choose(&devices, &must, size);
            let set: BTreeSet<_> = chosen.iter().collect();
            prop_assert_eq!(chosen.len(), size);
            prop_assert_eq!(set.len(), size);
            prop_assert!(must.iter().all(|at| set.contains(&devices[*at].id)));
            // If one node has them all, no other is used.
            let one = (0..4).map(Some).chain([None]).any(|node| {
                must.iter().all(|at| numa[*at] == node) && numa.iter().filter(|it| **it == node).count() >= size
            });
            let used: BTreeSet<_> = devices.iter().filter(|it| set.contains(&it.id)).map(|it| it.numa).collect();
            prop_assert!(!one || used.len() <= 1, "{used:?}");
        }
    }
}
