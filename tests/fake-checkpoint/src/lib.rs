//! Plays the part of `libcuda.so` that moves processes' state between GPUs and the host's memory, from a script: processes and
//! where their state is, calls that fail or do not end. The script is the JSON file that the variable `FAKE_CHECKPOINT` names; the
//! calls read and change it, so that a test sees what was done. What a process has on its GPU is taken from the script of the fake
//! management library and put back there, and does not fit where that one has no room.
//!
//! Knows how the library answers, and not who asks; that real drivers answer so is not shown by it.

pub mod calls;
pub mod script;
