//! The router with real sockets: instances are small servers in network namespaces of their own.

#![allow(clippy::unwrap_used)]

mod deadlines;
mod draining;
mod forwarding;
mod ground;
mod holding;
mod http2;
mod metering;
mod netns;
mod retrying;
mod securing;
mod steering;
mod streaming;
mod upgrading;
