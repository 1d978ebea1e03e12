//! The supervisor with real containers: the program is a process of its own, spoken to as an agent does.
#![allow(clippy::unwrap_used)]

mod devices;
mod exec;
mod hooks;
mod isolation;
mod life;
mod limits;
mod machine;
mod output;
mod protocol;
mod sockets;
mod succession;
