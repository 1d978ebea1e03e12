//! What a node tells of its accelerators: whether they may be used, what is measured of them, who holds how much of their memory.
//! Must not know how often that is told.

use serde::{Deserialize, Serialize};

/// One accelerator, as its plugin told of it when the node last found that worth telling. What is absent is not told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AcceleratorReport {
    /// Its own, for its life: `GPU-…`.
    pub id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub model: String,
    /// Why it must not be used, in one sentence; empty: it may.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fault: String,
    /// Ids of the instances that it is cut into.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_used_bytes: Option<u64>,
    /// Time in which some program ran on its processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilisation_percent: Option<u32>,
    /// Time in which its memory was read or written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_utilisation_percent: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_celsius: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_watts: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_errors: Option<MemoryErrors>,
    /// What instances hold of its memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<AcceleratorUse>,
}

/// Errors of an accelerator's memory since its driver was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryErrors {
    pub corrected: u64,
    pub uncorrected: u64,
}

/// What all processes of one instance hold of an accelerator's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AcceleratorUse {
    pub namespace: String,
    pub revision: String,
    pub instance: String,
    pub bytes: u64,
}
