//! The hub from outside: its API, its registry, its program, over real sockets and on a real disk.

#![allow(clippy::unwrap_used)]

mod clients;
mod conformance;
mod external;
mod process;
mod registry;
mod rest;
mod support;
mod through;
