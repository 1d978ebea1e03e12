//! The hub: holds what should run, and tells every node.
//!
//! ```text
//! REST ─▶ catalog ─▶ reconcile ─placement─▶ publish ─▶ link ═▶ broker ═▶ nodes
//!            ▲  ▲        ▲  ▲                                              │
//!            │  └─writes─┘  └── images ◀─ registry ◀─ pushes               │
//!            └── store          fleet ◀──────────── link ◀═════════════════┘
//! ```
//!
//! What is decided is decided in `tombolo_hub_core`, pure; here are the edges, and `app.rs` wires them.

mod api;
mod app;
mod broker;
mod catalog;
mod clock;
pub mod config;
#[cfg(test)]
#[path = "tests/fixture.rs"]
mod fixture;
mod fleet;
mod images;
mod link;
mod lookups;
mod nodes;
mod pki;
mod publish;
mod reconcile;
mod registry;
mod serve;
mod signatures;
mod tails;
mod upstream;

pub use app::{Hub, join_token, manifest_key, start};
