//! Real hubs and agents for whole-system tests: every process is the program a user runs, every node has a network
//! namespace of its own, every function is a container.
//!
//! ```text
//! the test's own network namespace                       node's namespace
//!   hub 10.99.0.1 ── bridge wan ── veth (cut here) ──────  agent
//!   test client   ── veth lan{i} 10.98.{i}.1 ────────────  router 10.98.{i}.2:8080
//! ```
//!
//! A test sees only what a user could see: the hub's API, the routers, the agents' own status, `/proc` and the disk.
//! Must not reach into any of the programs.

mod api;
mod census;
mod cgroup;
mod function;
mod grpc;
mod intruder;
mod load;
mod net;
mod node;
mod process;
mod signer;
mod site;
mod tls;
mod wait;

pub use api::{Api, ApiError, condition};
pub use census::Census;
pub use cgroup::Beside;
pub use function::Function;
pub use grpc::GrpcCall;
pub use intruder::Intruder;
pub use load::{Load, Outcome};
pub use node::{HubTraffic, Node, NodeOptions};
pub use process::{Process, program};
pub use signer::Signer;
pub use site::{Hub, Site};
pub use tls::{Certificate, Front};
pub use wait::{until, within};

/// Says that a test does not run here, and why; the runner counts the line.
pub fn skip(reason: &str) {
    eprintln!("SKIPPED: {reason}");
}
