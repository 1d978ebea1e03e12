//! The generic device plugin as a library: what its file says ([`config`]), what of it is on this machine ([`find`]), and
//! that as the SDK's [`tombolo_device_sdk::Scan`] ([`scan`]). It must not know of sockets.

pub mod config;
pub mod find;
pub mod scan;

mod identity;
mod pattern;
