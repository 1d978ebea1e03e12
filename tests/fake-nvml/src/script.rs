//! What the library is to answer.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The variable that names the script.
pub const VARIABLE: &str = "FAKE_NVML";

/// What the library answers where it does not know what failed.
pub const UNKNOWN: u32 = 999;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// Whether the driver is loaded; if not, nothing works.
    pub is_loaded: bool,
    pub driver_version: String,
    pub gpus: Vec<Gpu>,
    /// In the order in which they happen; each is delivered once to every set of events that was there before it.
    pub events: Vec<Event>,
}

impl Default for Script {
    fn default() -> Self {
        Self { is_loaded: true, driver_version: "570.86.15".into(), gpus: Vec::new(), events: Vec::new() }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gpu {
    pub uuid: String,
    pub name: String,
    pub minor: u32,
    /// As the library writes it: `00000000:01:00.0`.
    pub bus_id: String,
    /// Bytes.
    pub memory_total: u64,
    pub memory_used: u64,
    /// Percent, of the processors and of the memory.
    pub utilisation: (u32, u32),
    /// Degrees Celsius.
    pub temperature: u32,
    pub power_milliwatts: u32,
    /// Corrected and uncorrected since the driver was loaded; none: no ECC.
    pub ecc: Option<(u64, u64)>,
    /// It has fallen off the bus.
    pub is_lost: bool,
    /// It is of a kind that tells little: no utilisation, no power, no processes, no critical errors.
    pub is_plain: bool,
    /// Calls that fail for it as long as they stand here.
    pub failing: Vec<Failing>,
    /// Instances; none: MIG is off.
    pub mig: Option<Vec<Mig>>,
    pub processes: Vec<Process>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mig {
    pub uuid: String,
    pub gpu_instance: u32,
    pub compute_instance: u32,
    pub gpu_slices: u32,
    pub compute_slices: u32,
    pub memory_mib: u64,
    /// It has the engine for optical flow.
    pub has_ofa: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Process {
    pub pid: u32,
    /// Bytes.
    pub memory: u64,
    pub gpu_instance: Option<u32>,
    pub does: Does,
}

/// A call by the library's name for it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Failing {
    pub call: String,
    /// What it answers, as the library numbers it.
    pub code: u32,
}

/// What a process uses its GPU for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Does {
    #[default]
    Compute,
    Draw,
    Both,
}

/// A critical error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Event {
    pub uuid: String,
    pub xid: u64,
    pub gpu_instance: Option<u32>,
    pub compute_instance: Option<u32>,
}

impl Failing {
    pub fn new(call: &str, code: u32) -> Self {
        Self { call: call.to_owned(), code }
    }
}

impl Script {
    pub fn read(path: &Path) -> io::Result<Self> {
        serde_json::from_slice(&fs::read(path)?).map_err(io::Error::from)
    }

    /// Replaces the script at once: no call sees half of it.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let part = path.with_extension("part");
        fs::write(&part, serde_json::to_vec(self)?)?;
        fs::rename(part, path)
    }
}
