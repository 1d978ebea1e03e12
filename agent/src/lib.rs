//! The Tombolo agent: runs functions on an edge node, with or without its hub.
//!
//! `app` wires the edges, each of which knows one outside thing; `tombolo_agent_core` decides.

mod accepted;
mod admin;
mod app;
mod autoscale;
mod certificate;
mod clock;
pub mod config;
mod descriptors;
mod enrol;
mod execute;
mod export;
mod gather;
mod gauge;
mod identity;
mod import;
mod keep;
mod link;
mod log_files;
pub mod memory;
mod node_info;
mod outbox;
mod plugins;
mod probe;
mod progress;
mod ready;
mod reconcile;
mod rest;
mod restore;
mod router_socket;
mod supervisor;
mod sync;
mod tail;
#[cfg(test)]
mod testing;
mod tls;
mod usage;

pub use app::{Agent, Instances, Start, start};
pub use import::command as import;
pub use rest::Rest;
