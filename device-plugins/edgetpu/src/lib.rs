//! The plugin for Google's accelerators as a library: those of [`coral`] and the [`tpu`]s of Google's cloud. It must not know
//! of sockets.

pub mod coral;
pub mod tpu;
