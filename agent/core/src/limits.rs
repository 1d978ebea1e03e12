//! What an instance may use, from its container's `resources`, in the units of cgroups.

use tombolo_api::desired::RevisionObject;
use tombolo_api::quantity::Quantity;

/// Accounting period of the CPU quota, microseconds. The kernel's and Kubernetes' default.
pub const CPU_PERIOD_US: u64 = 100_000;

/// Processes and threads of one instance when `tombolo.dev/pids` names no other number: stops a fork bomb, not a program.
pub const PIDS: u64 = 1_024;

/// The writable layer when `ephemeral-storage` names no other size, bytes.
pub const UPPER_BYTES: u64 = 64 << 20;

/// Limits of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    /// Thousandths of a processor: hard limit, and share under contention.
    pub cpu_limit_millis: Option<u64>,
    pub cpu_request_millis: Option<u64>,
    pub pids: u64,
    pub upper_bytes: u64,
}

impl Limits {
    /// The limits `object`'s container asks for.
    pub fn of(object: &RevisionObject) -> Self {
        let resources =
            object.spec.serving_container().map(|container| container.resources.clone()).unwrap_or_default();
        let limit = |name: &str| resources.limits.get(name);
        Self {
            memory_bytes: limit("memory").map(Quantity::bytes),
            cpu_limit_millis: limit("cpu").map(Quantity::millis),
            cpu_request_millis: resources.requests.get("cpu").or_else(|| limit("cpu")).map(Quantity::millis),
            pids: limit("tombolo.dev/pids").map_or(PIDS, Quantity::bytes),
            upper_bytes: limit("ephemeral-storage").map_or(UPPER_BYTES, Quantity::bytes),
        }
    }

    /// cgroup v1 `cpu.shares`: 1024 a processor, at least the kernel's minimum; Kubernetes' rule.
    pub fn cpu_shares(&self) -> u64 {
        self.cpu_request_millis.map_or(1024, |millis| (millis * 1024 / 1000).clamp(2, 262_144))
    }

    /// CPU time per [`CPU_PERIOD_US`], microseconds; at least the kernel's minimum of 1 ms.
    pub fn cpu_quota_us(&self) -> Option<u64> {
        self.cpu_limit_millis.map(|millis| (millis * CPU_PERIOD_US / 1000).max(1_000))
    }
}

/// Memory that an instance of `object` has to have, bytes: its limit, or without one what it requests. `None`: it says neither.
pub fn memory_bytes(object: &RevisionObject) -> Option<u64> {
    let resources = &object.spec.serving_container()?.resources;
    memory_limit_bytes(object).or_else(|| resources.requests.get("memory").map(Quantity::bytes))
}

/// Memory that an instance of `object` cannot have more than, bytes.
pub fn memory_limit_bytes(object: &RevisionObject) -> Option<u64> {
    object.spec.serving_container()?.resources.limits.get("memory").map(Quantity::bytes)
}

/// Knative's default `timeoutSeconds`, milliseconds.
pub const REQUEST_TIMEOUT_MS: u64 = 300_000;

/// How long a connection that has switched protocols may stay at an instance that leaves, milliseconds, as in Knative. It has no
/// end of its own, and an instance should not wait for ever.
pub const TUNNEL_GRACE_MS: u64 = 60_000;

/// A revision's three time-outs, milliseconds; 0 means none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestTimeouts {
    pub request_ms: u64,
    pub response_start_ms: u64,
    pub idle_ms: u64,
}

/// The time-outs of requests to `object`.
pub fn request_timeouts(object: &RevisionObject) -> RequestTimeouts {
    let ms = |seconds: Option<u64>| seconds.unwrap_or(0).saturating_mul(1000);
    let request_ms = match object.spec.timeout_s() {
        0 => REQUEST_TIMEOUT_MS,
        seconds => seconds.saturating_mul(1000),
    };
    RequestTimeouts {
        request_ms,
        response_start_ms: ms(object.spec.response_start_timeout_s()),
        idle_ms: ms(object.spec.idle_timeout_s()),
    }
}

/// Requests an instance of `object` takes at a time; 0: no limit.
pub fn container_concurrency(object: &RevisionObject) -> u32 {
    object.spec.concurrency_limit().unwrap_or(0)
}
