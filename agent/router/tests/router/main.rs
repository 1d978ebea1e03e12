//! The router with real sockets: instances are small servers in network namespaces of their own.

#![allow(clippy::unwrap_used)]

mod deadlines;
mod draining;
mod faults;
mod forwarding;
mod ground;
mod grpc;
mod holding;
mod http2;
mod keeping;
mod metering;
mod moving;
mod netns;
mod probing;
mod retrying;
mod securing;
mod splitting;
mod steering;
mod streaming;
mod upgrading;
mod waking;
