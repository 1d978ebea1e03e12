//! Plays `libcuda.so.1` without a GPU: it reads a module's PTX and interprets it on the CPU, thread after thread, with memory
//! whose bounds are watched. It is a fake: it shows that a program calls the driver rightly and that its kernels compute what
//! they should, and nothing of how a GPU behaves.
//!
//! What it is told by the environment:
//!
//! | variable | |
//! |---|---|
//! | `FAKE_CUDA_GPUS` | GPUs there are (1) |
//! | `FAKE_CUDA_MIB` | memory of the GPU (256) |
//! | `FAKE_CUDA_FAIL` | `CALL` or `CALL:N`: that call fails, from the Nth time on |
//! | `FAKE_CUDA_SKEW` | how wrong its powers of 2 are, as a share (0) |

pub mod calls;
pub mod interpret;
pub mod memory;
pub mod ptx;
