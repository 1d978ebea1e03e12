//! What an agent decides, as pure functions of what it knows: no clock, no files, no sockets, no tokio.

pub mod accelerators;
pub mod accept;
pub mod activation;
pub mod actual;
pub mod annotations;
pub mod autoscale;
pub mod backoff;
pub mod bundle;
pub mod devices;
pub mod hours;
pub mod keeping;
pub mod limits;
pub mod memory;
pub mod plan;
pub mod rollout;
pub mod routes;
pub mod status;
pub mod stored;
pub mod supervision;
pub mod table;
pub mod takeovers;
pub mod waits;
