//! Whole-system tests, named by behaviour: real processes, real containers, each agent in a network namespace of its own.
//!
//! Must not look inside the programs: what is asserted is what a user could see.

mod bad_input;
mod building;
mod bundles;
mod clocks;
mod contract;
mod cosign;
mod deltas;
mod device_nodes;
mod devices;
mod draining;
mod faults;
mod gpu_memory;
mod https;
mod lifecycle;
mod link;
mod loss;
mod manifests;
mod placement;
mod power;
mod probes;
mod programs;
mod pulling;
mod reboot;
mod registry;
mod scaling;
mod signatures;
mod suspension;
mod tiers;
mod timeouts;
mod traffic;
mod up;
mod upstreams;
