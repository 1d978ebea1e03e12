//! Which resources a machine's GPUs make, and the names of their devices.
//!
//! | share | resource | device | a container that has it gets |
//! |---|---|---|---|
//! | exclusive | `nvidia.com/gpu` | `GPU-…` | the GPU |
//! | time-slice | `nvidia.com/gpu.shared` | `GPU-…::N` | the GPU, in turns with others |
//! | MPS | `nvidia.com/gpu.shared` | `GPU-…::N` | its part of the GPU |
//! | memory | `tombolo.dev/gpu-memory` | `GPU-…/256Mi/N` | the GPU, for so much memory as it has units |
//! | MIG | `nvidia.com/mig-1g.10gb`, `nvidia.com/mig-1g.10gb.me` | `MIG-…` | the instance |
//!
//! A device of memory says its GPU and its size, so that whoever allocates can count in bytes and by GPU.

use std::collections::BTreeMap;

use crate::config::{Config, Share};
use crate::gpu::{Gpu, Place, Uuid};

const EXCLUSIVE: &str = "nvidia.com/gpu";
const SHARED: &str = "nvidia.com/gpu.shared";
const MEMORY: &str = "tombolo.dev/gpu-memory";

/// The devices of each resource.
pub(crate) type Offers = BTreeMap<String, BTreeMap<String, Part>>;

/// What one device of a resource is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// What a container is given: the GPU's or its instance's.
    pub uuid: Uuid,
    pub gpu: Uuid,
    /// The instance's.
    pub place: Option<Place>,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Whole,
    TimeSlice,
    /// One of so many.
    Mps {
        replicas: u32,
        gpu_bytes: u64,
    },
    Memory {
        unit_mib: u64,
        mps: bool,
    },
}

impl Kind {
    pub(crate) fn needs_mps(self) -> bool {
        matches!(self, Self::Mps { .. } | Self::Memory { mps: true, .. })
    }
}

/// What all of `gpus` make.
pub(crate) fn offers<'a>(gpus: impl IntoIterator<Item = &'a Gpu>, config: &Config) -> Offers {
    let mut offers = Offers::new();
    for gpu in gpus {
        let part = |kind| Part { uuid: gpu.uuid.clone(), gpu: gpu.uuid.clone(), place: None, kind };
        let mut offer = |resource: &str, device: String, part| {
            offers.entry(resource.to_owned()).or_default().insert(device, part);
        };
        if let Some(instances) = &gpu.instances {
            for instance in instances {
                let uuid = instance.uuid.clone();
                let part = Part { uuid, place: Some(instance.place), ..part(Kind::Whole) };
                // A plus may not be in the name of a resource; NVIDIA's plugin writes it so, too.
                let profile = instance.profile.replace('+', ".");
                offer(&format!("nvidia.com/mig-{profile}"), instance.uuid.0.clone(), part);
            }
            continue;
        }
        match config.share(gpu) {
            Share::Exclusive => offer(EXCLUSIVE, gpu.uuid.0.clone(), part(Kind::Whole)),
            Share::TimeSlice { replicas } => {
                for number in 0..replicas {
                    offer(SHARED, format!("{}::{number}", gpu.uuid), part(Kind::TimeSlice));
                }
            }
            Share::Mps { replicas } => {
                let kind = Kind::Mps { replicas, gpu_bytes: gpu.memory_bytes };
                for number in 0..replicas {
                    offer(SHARED, format!("{}::{number}", gpu.uuid), part(kind));
                }
            }
            Share::Memory { mps } => {
                let unit_mib = config.memory.unit_mib;
                let units = (gpu.memory_bytes >> 20).saturating_sub(config.memory.reserved_mib) / unit_mib;
                for number in 0..units {
                    let device = format!("{}/{unit_mib}Mi/{number}", gpu.uuid);
                    offer(MEMORY, device, part(Kind::Memory { unit_mib, mps }));
                }
            }
        }
    }
    offers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GpuConfig;
    use crate::testing::{cut, gpu};

    fn config(share: Share) -> Config {
        Config { gpu: vec![GpuConfig { selector: "*".into(), share }], ..Config::default() }
    }

    fn names(offers: &Offers) -> Vec<(&str, Vec<&str>)> {
        offers
            .iter()
            .map(|(name, devices)| (name.as_str(), devices.keys().map(String::as_str).collect()))
            .collect()
    }

    #[test]
    fn devices_are_named_by_what_they_are() {
        let gpus = [gpu(0), gpu(1)];
        let (zero, one) = (gpus[0].uuid.0.as_str(), gpus[1].uuid.0.as_str());
        assert_eq!(names(&offers(&gpus, &Config::default())), [("nvidia.com/gpu", vec![zero, one])]);
        let slices = offers(&gpus[..1], &config(Share::TimeSlice { replicas: 2 }));
        let ids = [format!("{zero}::0"), format!("{zero}::1")];
        assert_eq!(names(&slices), [("nvidia.com/gpu.shared", ids.iter().map(String::as_str).collect())]);
    }

    #[test]
    fn memory_is_counted_in_units_of_each_gpu() {
        let gpus = [gpu(0), gpu(1)];
        let offers = offers(&gpus, &config(Share::Memory { mps: false }));
        let units = &offers["tombolo.dev/gpu-memory"];
        // 16 GiB less what the driver takes.
        assert_eq!(units.len(), 2 * (16 * 1024 - 512) / 256);
        assert!(units.contains_key(&format!("{}/256Mi/61", gpus[1].uuid)));
        let longest = units.keys().map(String::len).max().unwrap();
        assert!(longest <= 63, "the kubelet's bound for a device's id");
    }

    #[test]
    fn a_cut_gpu_gives_its_instances_however_it_is_shared() {
        let gpus = [cut(0), gpu(1)];
        let offers = offers(&gpus, &config(Share::TimeSlice { replicas: 1 }));
        let instances = gpus[0].instances.as_ref().unwrap();
        let [first, second] = [&instances[0].uuid.0, &instances[1].uuid.0];
        assert_eq!(
            names(&offers),
            [
                ("nvidia.com/gpu.shared", vec![format!("{}::0", gpus[1].uuid).as_str()]),
                ("nvidia.com/mig-1g.10gb", vec![first.as_str()]),
                ("nvidia.com/mig-2g.20gb", vec![second.as_str()]),
            ]
        );
        assert_eq!(offers["nvidia.com/mig-1g.10gb"][first].gpu, gpus[0].uuid);
    }
}
