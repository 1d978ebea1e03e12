//! Replays what the real Knative Pod Autoscaler decided (`recorded/`, described in `recorded/README.md`): every line must come
//! out the same here. Each test counts what it replayed, so none passes on an empty file.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "kpa/bounds_and_zero.rs"]
mod bounds_and_zero;
#[path = "kpa/decisions.rs"]
mod decisions;
#[path = "kpa/delay.rs"]
mod delay;
#[path = "kpa/recorded.rs"]
mod recorded;
#[path = "kpa/resolve.rs"]
mod resolve;
#[path = "kpa/windows.rs"]
mod windows;
