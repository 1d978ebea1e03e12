//! A small convolutional network that reads digits of 8x8 pixels, on a GPU through the driver's library alone or on the CPU.
//!
//! ```text
//! server (HTTP) ─▶ images (parsing) ─▶ device (one thread, a queue) ─┬▶ cuda ─▶ driver (libcuda.so.1) ─▶ kernels.ptx
//!                                                                    └▶ network (the CPU, and the reference)
//! ```

pub mod cuda;
pub mod device;
pub mod images;
pub mod network;
pub mod server;
