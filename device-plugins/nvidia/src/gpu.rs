//! What is known of GPUs: plain data. Where it comes from and what it is for is not known here.

use std::fmt;

/// Names a GPU, or an instance of a cut one, for its life: `GPU-…`, `MIG-…`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Uuid(pub String);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the driver tells at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    pub driver_version: String,
    pub gpus: Vec<Gpu>,
    /// GPUs that the driver counts and cannot tell all of.
    pub mute: Vec<Mute>,
}

/// A GPU that does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mute {
    pub index: u32,
    /// None: that is not told either.
    pub uuid: Option<Uuid>,
    pub why: String,
    /// The driver says that it is lost; otherwise a call may have failed once.
    pub is_lost: bool,
}

impl Look {
    /// What keeps `gpu` from answering, if the driver counts it.
    pub(crate) fn mute(&self, gpu: &Gpu) -> Option<&Mute> {
        self.mute.iter().find(|mute| match &mute.uuid {
            Some(uuid) => *uuid == gpu.uuid,
            None => mute.index == gpu.index,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gpu {
    /// Its place in the driver's list; changes with reboots.
    pub index: u32,
    pub uuid: Uuid,
    pub name: String,
    /// Of its device file.
    pub minor: u32,
    /// Names below `/dev` of its nodes, if they are not named after its number.
    pub nodes: Option<Vec<String>>,
    /// As the kernel writes it: `0000:01:00.0`.
    pub bus: String,
    pub memory_bytes: u64,
    /// None: it is not cut.
    pub instances: Option<Vec<Instance>>,
    pub usage: Usage,
}

/// A part of a cut GPU (MIG).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Instance {
    /// Its place among those of its GPU.
    pub index: u32,
    pub uuid: Uuid,
    pub place: Place,
    /// As NVIDIA names sizes: `1g.10gb`, `1g.10gb+me`.
    pub profile: String,
}

/// Where on its GPU an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub gpu_instance: u32,
    pub compute_instance: u32,
}

/// None: the GPU does not tell it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub memory_used_bytes: u64,
    pub processor_percent: Option<u32>,
    pub memory_percent: Option<u32>,
    pub temperature_celsius: Option<u32>,
    pub power_milliwatts: Option<u32>,
    pub ecc: Option<Ecc>,
    pub processes: Vec<Process>,
}

/// Errors of the memory since the driver was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ecc {
    pub corrected: u64,
    pub uncorrected: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// On the host.
    pub pid: u32,
    /// None: it is not told.
    pub memory_bytes: Option<u64>,
    /// The instance it runs on, if the GPU is cut.
    pub place: Option<Place>,
}

/// What a process holds of a GPU, or of an instance of a cut one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holding {
    pub pid: u32,
    pub of: Uuid,
    /// None: it is not told.
    pub bytes: Option<u64>,
}

/// A critical error as the driver reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Xid {
    pub gpu: Uuid,
    pub number: u64,
    /// The instance it is of; none: the whole GPU.
    pub place: Option<Place>,
}

/// The bus address as the kernel names it, from the driver's longer form.
pub(crate) fn bus(driver: &str) -> String {
    let lower = driver.to_lowercase();
    match lower.split_once(':') {
        Some((domain, rest)) if domain.len() > 4 => format!("{}:{rest}", &domain[domain.len() - 4..]),
        _ => lower,
    }
}

/// NVIDIA's name for an instance's size: slices of processors (of the compute instance, if it is less than the whole GPU
/// instance), and the memory in eighths of the GPU's. `has_ofa`: it has the engine for optical flow; a GPU has one, which goes with the
/// whole or with the one part that has the media engines.
pub(crate) fn profile(
    compute_slices: u32,
    gpu_slices: u32,
    memory_mib: u64,
    gpu_bytes: u64,
    has_ofa: bool,
) -> String {
    const EIGHTHS: u64 = 8;
    let bytes = memory_mib << 20;
    let eighths = (bytes * EIGHTHS).div_ceil(gpu_bytes.max(1));
    let gigabytes = (eighths * gpu_bytes.div_ceil(1 << 30) + EIGHTHS / 2) / EIGHTHS;
    let media = if has_ofa && eighths < EIGHTHS { "+me" } else { "" };
    let whole = format!("{gpu_slices}g.{gigabytes}gb{media}");
    if compute_slices == gpu_slices { whole } else { format!("{compute_slices}c.{whole}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bus_address_is_the_kernels() {
        for (driver, kernel) in [
            ("00000000:0B:00.0", "0000:0b:00.0"),
            ("0000:01:00.0", "0000:01:00.0"),
            ("00010002:C1:00.0", "0002:c1:00.0"),
        ] {
            assert_eq!(bus(driver), kernel);
        }
    }

    #[test]
    fn profiles_are_named_as_nvidia_names_them() {
        let gib = 1 << 30;
        // Of an A100 with 40 GB, an H100 with 80 GB, an H200 with 141 GB.
        for (compute, gpu, memory_mib, total, has_ofa, name) in [
            (1, 1, 4864, 42_505_273_344, false, "1g.5gb"),
            (1, 1, 4864, 42_505_273_344, true, "1g.5gb+me"),
            (3, 3, 20_096, 42_505_273_344, false, "3g.20gb"),
            (1, 3, 20_096, 42_505_273_344, false, "1c.3g.20gb"),
            (7, 7, 40_192, 42_505_273_344, true, "7g.40gb"),
            (1, 1, 9_984, 80 * gib, false, "1g.10gb"),
            (1, 1, 9_984, 80 * gib, true, "1g.10gb+me"),
            (2, 2, 33_280, 141 * gib, false, "2g.35gb"),
        ] {
            assert_eq!(profile(compute, gpu, memory_mib, total, has_ofa), name);
        }
    }
}
