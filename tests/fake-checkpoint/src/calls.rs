//! The library's calls. Those for a process change the script as the driver changes the process.
#![allow(unsafe_code, non_snake_case, clippy::missing_safety_doc)]

use std::env;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use tombolo_fake_nvml::script as nvml;

use crate::script::{Call, Process, Script, State, VARIABLE};

/// How often a call that is held up looks whether it still is.
const LOOK: Duration = Duration::from_millis(10);

const SUCCESS: c_int = 0;
const INVALID_VALUE: c_int = 1;
const OUT_OF_MEMORY: c_int = 2;
const ILLEGAL_STATE: c_int = 401;
const UNKNOWN: c_int = 999;

const NAMES: [(c_int, &CStr); 7] = [
    (INVALID_VALUE, c"CUDA_ERROR_INVALID_VALUE"),
    (OUT_OF_MEMORY, c"CUDA_ERROR_OUT_OF_MEMORY"),
    (100, c"CUDA_ERROR_NO_DEVICE"),
    (ILLEGAL_STATE, c"CUDA_ERROR_ILLEGAL_STATE"),
    (600, c"CUDA_ERROR_NOT_READY"),
    (801, c"CUDA_ERROR_NOT_SUPPORTED"),
    (UNKNOWN, c"CUDA_ERROR_UNKNOWN"),
];

#[repr(C)]
pub struct LockArgs {
    timeout_ms: c_uint,
    reserved: c_uint,
    more_reserved: [u64; 7],
}

/// Does `call` as the script lets it.
fn call(name: &str, pid: Option<c_int>, act: impl FnOnce(&mut Script) -> c_int) -> c_int {
    let Some(path) = env::var_os(VARIABLE).map(PathBuf::from) else { return UNKNOWN };
    let call = Call::new(name, pid.map(c_int::cast_unsigned));
    let mut begun = Script::change(&path, |script| script.calls.push(call.clone()));
    while begun.is_ok() {
        match Script::change(&path, |script| script.held_up.contains(&call)) {
            Ok(true) => thread::sleep(LOOK),
            Ok(false) => break,
            Err(error) => begun = Err(error),
        }
    }
    let done = Script::change(&path, |script| {
        let failing = script.failing.iter().find(|failing| failing.call == call);
        failing.map(|failing| failing.code).unwrap_or_else(|| act(script))
    });
    begun.and(done).unwrap_or(UNKNOWN)
}

/// The same for a call that takes a process from one state to another one, with whatever else `act` does.
fn step(name: &str, pid: c_int, from: State, to: State, act: impl FnOnce(&Process) -> c_int) -> c_int {
    call(name, Some(pid), |script| match find(script, pid) {
        None => INVALID_VALUE,
        Some(process) if process.state != from => ILLEGAL_STATE,
        Some(process) => {
            let code = act(process);
            if code == SUCCESS {
                process.state = to;
            }
            code
        }
    })
}

fn find(script: &mut Script, pid: c_int) -> Option<&mut Process> {
    script.processes.iter_mut().find(|process| process.pid == pid.cast_unsigned())
}

/// Changes the GPU of `process` in the management library's script.
fn on_gpu(process: &Process, change: impl FnOnce(&mut nvml::Gpu) -> c_int) -> c_int {
    let Some(path) = env::var_os(nvml::VARIABLE).map(PathBuf::from) else { return UNKNOWN };
    let Ok(mut script) = nvml::Script::read(&path) else { return UNKNOWN };
    let Some(gpu) = script.gpus.iter_mut().find(|gpu| gpu.uuid == process.gpu) else { return UNKNOWN };
    let code = change(gpu);
    if script.write(&path).is_ok() { code } else { UNKNOWN }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(flags: c_uint) -> c_int {
    call("cuInit", None, |_| if flags == 0 { SUCCESS } else { INVALID_VALUE })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(to: *mut c_int) -> c_int {
    call("cuDriverGetVersion", None, |script| {
        // SAFETY: the caller of the library gives a place for the answer.
        unsafe { to.write(script.cuda_version) };
        SUCCESS
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: c_int, to: *mut *const c_char) -> c_int {
    let Some((_, name)) = NAMES.iter().find(|(known, _)| *known == code) else { return INVALID_VALUE };
    // SAFETY: the caller of the library gives a place for the answer.
    unsafe { to.write(name.as_ptr()) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCheckpointProcessGetState(pid: c_int, to: *mut c_uint) -> c_int {
    call("cuCheckpointProcessGetState", Some(pid), |script| {
        let Some(process) = find(script, pid) else { return INVALID_VALUE };
        // SAFETY: the caller of the library gives a place for the answer.
        unsafe { to.write(process.state as c_uint) };
        SUCCESS
    })
}

/// Refuses to wait without end, and what the driver does not know.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCheckpointProcessLock(pid: c_int, args: *const LockArgs) -> c_int {
    // SAFETY: the caller gives such arguments, or none.
    let is_bounded = unsafe { args.as_ref() }.is_some_and(|args| {
        args.timeout_ms > 0 && args.reserved == 0 && args.more_reserved.iter().all(|word| *word == 0)
    });
    step("cuCheckpointProcessLock", pid, State::Running, State::Locked, |_| {
        if is_bounded { SUCCESS } else { INVALID_VALUE }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCheckpointProcessCheckpoint(pid: c_int, _: *mut c_void) -> c_int {
    step("cuCheckpointProcessCheckpoint", pid, State::Locked, State::Checkpointed, |process| {
        on_gpu(process, |gpu| {
            gpu.memory_used = gpu.memory_used.saturating_sub(process.bytes);
            gpu.processes.retain(|other| other.pid != process.pid);
            SUCCESS
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCheckpointProcessRestore(pid: c_int, _: *mut c_void) -> c_int {
    step("cuCheckpointProcessRestore", pid, State::Checkpointed, State::Locked, |process| {
        on_gpu(process, |gpu| {
            if gpu.memory_used + process.bytes > gpu.memory_total {
                return OUT_OF_MEMORY;
            }
            gpu.memory_used += process.bytes;
            gpu.processes.push(nvml::Process {
                pid: process.pid,
                memory: process.bytes,
                ..nvml::Process::default()
            });
            SUCCESS
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCheckpointProcessUnlock(pid: c_int, _: *mut c_void) -> c_int {
    step("cuCheckpointProcessUnlock", pid, State::Locked, State::Running, |_| SUCCESS)
}
