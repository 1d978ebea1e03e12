//! Plays `libnvidia-ml.so` from a script: GPUs that appear and vanish, errors, memory that grows. The script is the JSON file
//! that the variable `FAKE_NVML` names, read anew at every call, so that a test changes what a running program sees.
//!
//! Knows how the library answers, and not who asks.

pub mod calls;
pub mod script;
