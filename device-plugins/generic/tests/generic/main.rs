//! The generic plugin on made-up machines: its file, what it finds, and the program against a fake kubelet.

#![allow(clippy::unwrap_used)]

mod finding;
mod ground;
mod mistakes;
mod profiles;
mod program;
