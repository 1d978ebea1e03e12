//! Devices counted, and which of them count together. It must not know who has them or wants them.
//!
//! Most devices stand for themselves. Those of [`GPU_MEMORY`] are pieces of accelerators' memory, and say so in their ids,
//! `ACCELERATOR/256Mi/N`: those of one instance must be of one accelerator.

use std::collections::{BTreeMap, BTreeSet};

use super::{Asked, DeviceId, Devices, ResourceName};

/// The resource whose devices are pieces of accelerators' memory.
pub const GPU_MEMORY: &str = "tombolo.dev/gpu-memory";

/// A piece of an accelerator's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    pub accelerator: &'a str,
    pub bytes: u64,
}

impl<'a> Piece<'a> {
    /// `None`: the device is no such piece.
    pub(super) fn of(name: &ResourceName, id: &'a DeviceId) -> Option<Self> {
        if name.0 != GPU_MEMORY {
            return None;
        }
        let mut parts = id.0.rsplitn(3, '/');
        let (number, size, accelerator) = (parts.next()?, parts.next()?, parts.next()?);
        number.parse::<u32>().ok()?;
        let mib: u64 = size.strip_suffix("Mi")?.parse().ok()?;
        Some(Self { accelerator, bytes: mib.checked_mul(1 << 20)? })
    }
}

/// The devices among which an instance's have to be; empty: all of the resource.
pub(super) fn group<'a>(name: &ResourceName, id: &'a DeviceId) -> &'a str {
    Piece::of(name, id).map_or("", |piece| piece.accelerator)
}

/// The most devices that one instance can have of these.
pub(crate) fn most_together<'a>(name: &ResourceName, ids: impl IntoIterator<Item = &'a DeviceId>) -> usize {
    let mut pool = Pool::default();
    pool.add(name, ids);
    pool.largest(name)
}

/// How many devices there are of each resource and group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pool(BTreeMap<ResourceName, BTreeMap<String, usize>>);

impl Pool {
    pub(crate) fn of(devices: &Devices) -> Self {
        let mut pool = Self::default();
        pool.give(devices);
        pool
    }

    pub(crate) fn give(&mut self, devices: &Devices) {
        for (name, ids) in devices {
            self.add(name, ids);
        }
    }

    pub(crate) fn add<'a>(&mut self, name: &ResourceName, ids: impl IntoIterator<Item = &'a DeviceId>) {
        let groups = self.0.entry(name.clone()).or_default();
        for id in ids {
            let group = group(name, id);
            match groups.get_mut(group) {
                Some(count) => *count += 1,
                None => drop(groups.insert(group.to_owned(), 1)),
            }
        }
    }

    /// The most that one instance can have.
    pub(crate) fn largest(&self, name: &ResourceName) -> usize {
        self.0.get(name).and_then(|groups| groups.values().max()).copied().unwrap_or(0)
    }

    pub(crate) fn covers(&self, asked: &Asked) -> bool {
        asked.iter().all(|(name, count)| self.largest(name) >= *count as usize)
    }

    /// Takes one instance's devices, of each resource where they fit best. `false`: they are not there, and nothing is taken.
    pub(crate) fn take(&mut self, asked: &Asked) -> bool {
        if !self.covers(asked) {
            return false;
        }
        for (name, count) in asked {
            let count = *count as usize;
            let groups = self.0.get_mut(name).into_iter().flat_map(BTreeMap::values_mut);
            if let Some(left) = groups.filter(|left| **left >= count).min() {
                *left -= count;
            }
        }
        true
    }

    /// Takes as many as `devices` are, of the groups that they are of. `false`: they are not there, and nothing is taken.
    pub(crate) fn take_like(&mut self, devices: &Devices) -> bool {
        let like = Self::of(devices);
        let counts =
            || like.0.iter().flat_map(|(name, groups)| groups.iter().map(move |entry| (name, entry)));
        let left = |pool: &Self, name, group: &String| {
            pool.0.get(name).and_then(|groups| groups.get(group)).copied().unwrap_or(0)
        };
        if counts().any(|(name, (group, count))| left(self, name, group) < *count) {
            return false;
        }
        for (name, (group, count)) in counts() {
            if let Some(left) = self.0.get_mut(name).and_then(|groups| groups.get_mut(group)) {
                *left -= count;
            }
        }
        true
    }
}

/// `free` by group, where devices are in groups.
pub(super) fn by_group<'a>(
    name: &ResourceName,
    free: &'a BTreeSet<DeviceId>,
) -> BTreeMap<&'a str, BTreeSet<&'a DeviceId>> {
    let mut groups: BTreeMap<&str, BTreeSet<&DeviceId>> = BTreeMap::new();
    for id in free {
        groups.entry(group(name, id)).or_default().insert(id);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> ResourceName {
        ResourceName(GPU_MEMORY.into())
    }

    fn units(counts: &[(&str, u32)]) -> Devices {
        let ids = counts.iter().flat_map(|(gpu, count)| {
            (0..*count).map(move |number| DeviceId(format!("{gpu}/256Mi/{number}")))
        });
        [(name(), ids.collect())].into()
    }

    fn asked(count: u32) -> Asked {
        [(name(), count)].into()
    }

    #[test]
    fn a_piece_says_what_it_is_of() {
        let of = |resource: &str, id: &str| {
            let (name, id) = (ResourceName(resource.into()), DeviceId(id.into()));
            Piece::of(&name, &id).map(|piece| (piece.accelerator.to_owned(), piece.bytes))
        };
        assert_eq!(of(GPU_MEMORY, "GPU-1/256Mi/7"), Some(("GPU-1".into(), 256 << 20)));
        assert_eq!(of(GPU_MEMORY, "a/b/1Mi/0"), Some(("a/b".into(), 1 << 20)));
        assert_eq!(of("a.example/memory", "GPU-1/256Mi/7"), None);
        for other in ["GPU-1", "GPU-1/256/7", "GPU-1/256Mi/x", "256Mi/7", "GPU-1/99999999999999999Mi/0"] {
            assert_eq!(of(GPU_MEMORY, other), None, "{other}");
        }
    }

    #[test]
    fn what_fits_in_sum_alone_is_not_there() {
        let mut pool = Pool::of(&units(&[("GPU-1", 3), ("GPU-2", 5)]));
        assert!(!pool.covers(&asked(6)) && pool.covers(&asked(5)));
        assert!(pool.take(&asked(3)), "of the one where they fit best");
        assert_eq!(pool.largest(&name()), 5);
        assert!(pool.take(&asked(4)) && !pool.take(&asked(2)) && pool.take(&asked(1)));
        pool.give(&units(&[("GPU-1", 2)]));
        assert!(!pool.take_like(&units(&[("GPU-2", 1)])) && pool.take_like(&units(&[("GPU-1", 2)])));
        assert_eq!(pool.largest(&name()), 0);
    }

    #[test]
    fn others_are_one_heap() {
        let x = ResourceName("a.example/x".into());
        let ids = ["GPU-1/256Mi/0", "GPU-2/256Mi/0"].map(|id| DeviceId(id.into()));
        assert_eq!(most_together(&x, &ids), 2);
        assert_eq!(most_together(&name(), &ids), 1);
    }
}
