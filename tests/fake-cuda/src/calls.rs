//! The driver's calls as `cuda.h` declares them, as far as programs here make them. Must not know who calls.
#![allow(unsafe_code, non_snake_case, clippy::missing_safety_doc)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::interpret::{Launch, run};
use crate::memory::Memory;
use crate::ptx::{Kernel, parse};

/// As `cuda.h` numbers them.
type Code = c_int;
const SUCCESS: Code = 0;
const INVALID_VALUE: Code = 1;
const OUT_OF_MEMORY: Code = 2;
const NOT_INITIALIZED: Code = 3;
const INVALID_DEVICE: Code = 101;
const INVALID_CONTEXT: Code = 201;
const INVALID_PTX: Code = 218;
const NOT_FOUND: Code = 500;
const ILLEGAL_ADDRESS: Code = 700;
const UNKNOWN: Code = 999;

const JIT_ERROR_LOG: c_int = 5;
const JIT_ERROR_LOG_BYTES: c_int = 6;

const NAME: &CStr = c"Fake GPU";

/// The one context, module and the kernels of it are numbers that stand for pointers.
const CONTEXT: usize = 1;
const MODULE: usize = 2;
const KERNELS: usize = 16;

static STATE: Mutex<State> = Mutex::new(State::new());

thread_local! {
    static HAS_CONTEXT: Cell<bool> = const { Cell::new(false) };
}

struct State {
    is_initialized: bool,
    memory: Option<Memory>,
    kernels: Vec<(String, Kernel)>,
    /// A kernel that failed: every later call says so.
    failed: Code,
    calls: BTreeMap<&'static str, u32>,
}

impl State {
    const fn new() -> Self {
        Self {
            is_initialized: false,
            memory: None,
            kernels: Vec::new(),
            failed: SUCCESS,
            calls: BTreeMap::new(),
        }
    }

    fn memory(&mut self) -> Result<&mut Memory, Code> {
        self.memory.as_mut().ok_or(INVALID_CONTEXT)
    }
}

fn variable<T: std::str::FromStr>(name: &str, fallback: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(fallback)
}

/// Counts the call, and fails it if it is to fail.
fn called(call: &'static str) -> Result<MutexGuard<'static, State>, Code> {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let count = state.calls.entry(call).or_default();
    *count += 1;
    let fails = std::env::var("FAKE_CUDA_FAIL").unwrap_or_default();
    let (name, from) = fails.split_once(':').unwrap_or((&fails, "1"));
    if name == call && *count >= from.parse().unwrap_or(1) {
        return Err(UNKNOWN);
    }
    if !state.is_initialized && call != "cuInit" {
        return Err(NOT_INITIALIZED);
    }
    Ok(state)
}

/// For calls that need a context, and hear of what failed in it.
fn within(call: &'static str) -> Result<MutexGuard<'static, State>, Code> {
    let state = called(call)?;
    if !HAS_CONTEXT.get() {
        return Err(INVALID_CONTEXT);
    }
    if state.failed == SUCCESS { Ok(state) } else { Err(state.failed) }
}

fn code(result: Result<(), Code>) -> Code {
    result.err().unwrap_or(SUCCESS)
}

/// Writes `value` at `to`.
///
/// # Safety
/// `to` is null or a place for it.
unsafe fn put<T>(to: *mut T, value: T) -> Result<(), Code> {
    if to.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: as above.
    unsafe { to.write(value) };
    Ok(())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(flags: c_uint) -> Code {
    code(called("cuInit").and_then(|mut state| {
        state.is_initialized = flags == 0;
        if state.is_initialized { Ok(()) } else { Err(INVALID_VALUE) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Code {
    // SAFETY: the caller gives a place for the answer, here and below.
    code(called("cuDeviceGetCount").and_then(|_| unsafe { put(count, variable("FAKE_CUDA_GPUS", 1)) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Code {
    code(called("cuDeviceGet").and_then(|_| match ordinal {
        // SAFETY: see above.
        0 => unsafe { put(device, 0) },
        _ => Err(INVALID_DEVICE),
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, bytes: c_int, _device: c_int) -> Code {
    code(called("cuDeviceGetName").and_then(|_| {
        let text = NAME.to_bytes_with_nul();
        if usize::try_from(bytes).unwrap_or(0) < text.len() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: there is room for `bytes`, of which this takes no more.
        unsafe { name.copy_from_nonoverlapping(text.as_ptr().cast(), text.len()) };
        Ok(())
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, _device: c_int) -> Code {
    code(called("cuDevicePrimaryCtxRetain").and_then(|mut state| {
        state.memory.get_or_insert_with(|| Memory::new(variable("FAKE_CUDA_MIB", 256_usize) << 20));
        // SAFETY: see above.
        unsafe { put(context, std::ptr::without_provenance_mut(CONTEXT)) }
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> Code {
    code(called("cuDevicePrimaryCtxRelease_v2").map(|mut state| state.memory = None))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> Code {
    code(called("cuCtxSetCurrent").and_then(|_| {
        HAS_CONTEXT.set(context.addr() == CONTEXT);
        if HAS_CONTEXT.get() { Ok(()) } else { Err(INVALID_CONTEXT) }
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> Code {
    code(within("cuCtxSynchronize").map(drop))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut *mut c_void,
    image: *const c_void,
    count: c_uint,
    options: *mut c_int,
    values: *mut *mut c_void,
) -> Code {
    code(within("cuModuleLoadDataEx").and_then(|mut state| {
        // SAFETY: the image of a module in PTX is a text that ends with zero.
        let text = unsafe { CStr::from_ptr(image.cast()) }.to_str().map_err(|_| INVALID_PTX)?;
        match parse(text) {
            Ok(kernels) => state.kernels = kernels.into_iter().collect(),
            Err(error) => {
                // SAFETY: there are `count` options and values.
                unsafe { log(&format!("line {}: {}", error.line, error.why), count, options, values) };
                return Err(INVALID_PTX);
            }
        }
        // SAFETY: see above.
        unsafe { put(module, std::ptr::without_provenance_mut(MODULE)) }
    }))
}

/// Writes why a module was not loaded, if there is a place for it.
unsafe fn log(said: &str, count: c_uint, options: *const c_int, values: *const *mut c_void) {
    let (mut place, mut room) = (std::ptr::null_mut::<u8>(), 0);
    for at in 0..count as usize {
        // SAFETY: there are `count` of both.
        let (option, value) = unsafe { (options.add(at).read(), values.add(at).read()) };
        match option {
            JIT_ERROR_LOG => place = value.cast(),
            JIT_ERROR_LOG_BYTES => room = value.addr(),
            _ => {}
        }
    }
    let text = &said.as_bytes()[..said.len().min(room.saturating_sub(1))];
    if !place.is_null() && room > 0 {
        // SAFETY: there is room for the text and a zero.
        unsafe {
            place.copy_from_nonoverlapping(text.as_ptr(), text.len());
            place.add(text.len()).write(0);
        }
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(_module: *mut c_void) -> Code {
    code(called("cuModuleUnload").map(|mut state| state.kernels.clear()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    kernel: *mut *mut c_void,
    _module: *mut c_void,
    name: *const c_char,
) -> Code {
    code(within("cuModuleGetFunction").and_then(|state| {
        // SAFETY: a name is a text that ends with zero.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let at = state.kernels.iter().position(|(known, _)| *known == name).ok_or(NOT_FOUND)?;
        // SAFETY: see above.
        unsafe { put(kernel, std::ptr::without_provenance_mut(KERNELS + at)) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> Code {
    code(within("cuMemAlloc_v2").and_then(|mut state| {
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        let allocated = state.memory()?.allocate(bytes).map_err(|_| OUT_OF_MEMORY)?;
        // SAFETY: see above.
        unsafe { put(address, allocated) }
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: u64) -> Code {
    code(
        within("cuMemFree_v2")
            .and_then(|mut state| state.memory()?.release(address).map_err(|_| INVALID_VALUE)),
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Code {
    code(within("cuMemGetInfo_v2").and_then(|mut state| {
        let memory = state.memory()?;
        // SAFETY: see above.
        unsafe { put(free, memory.free()).and(put(total, memory.total)) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> Code {
    code(within("cuMemcpyHtoD_v2").and_then(|mut state| {
        let to = state.memory()?.bytes_mut(to, bytes).map_err(|_| INVALID_VALUE)?;
        // SAFETY: the caller says that so many bytes are there.
        to.copy_from_slice(unsafe { std::slice::from_raw_parts(from.cast(), bytes) });
        Ok(())
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> Code {
    code(within("cuMemcpyDtoH_v2").and_then(|mut state| {
        let from = state.memory()?.bytes(from, bytes).map_err(|_| INVALID_VALUE)?;
        // SAFETY: the caller says that there is room for so many bytes.
        unsafe { to.cast::<u8>().copy_from_nonoverlapping(from.as_ptr(), bytes) };
        Ok(())
    }))
}

/// Only with its arguments in one piece (`CU_LAUNCH_PARAM_BUFFER_POINTER` and its size), and in one dimension.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    kernel: *mut c_void,
    blocks: c_uint,
    _blocks_y: c_uint,
    _blocks_z: c_uint,
    block_size: c_uint,
    _block_y: c_uint,
    _block_z: c_uint,
    _shared: c_uint,
    _stream: *mut c_void,
    one_by_one: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Code {
    code(within("cuLaunchKernel").and_then(|mut state| {
        if blocks == 0 || block_size == 0 || !one_by_one.is_null() || extra.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: it is a list of four and an end.
        let extra = unsafe { std::slice::from_raw_parts(extra, 5) };
        let keys = [extra[0].addr(), extra[2].addr(), extra[4].addr()];
        if keys != [1, 2, 0] {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the list says where the arguments are and how many bytes they have.
        let arguments =
            unsafe { std::slice::from_raw_parts(extra[1].cast(), extra[3].cast::<usize>().read()) };
        let State { memory, kernels, failed, .. } = &mut *state;
        let at = kernel.addr().checked_sub(KERNELS).ok_or(INVALID_VALUE)?;
        let (_, kernel) = kernels.get(at).ok_or(INVALID_VALUE)?;
        if arguments.len() != kernel.arguments {
            return Err(INVALID_VALUE);
        }
        let launch = Launch { kernel, blocks, block_size, arguments, skew: variable("FAKE_CUDA_SKEW", 0.0) };
        // As on a GPU, a later call tells of it.
        if run(&launch, memory.as_mut().ok_or(INVALID_CONTEXT)?).is_err() {
            *failed = ILLEGAL_ADDRESS;
        }
        Ok(())
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(error: Code, name: *mut *const c_char) -> Code {
    let text = match error {
        SUCCESS => c"CUDA_SUCCESS",
        INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
        OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        NOT_INITIALIZED => c"CUDA_ERROR_NOT_INITIALIZED",
        INVALID_DEVICE => c"CUDA_ERROR_INVALID_DEVICE",
        INVALID_CONTEXT => c"CUDA_ERROR_INVALID_CONTEXT",
        INVALID_PTX => c"CUDA_ERROR_INVALID_PTX",
        NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
        ILLEGAL_ADDRESS => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        UNKNOWN => c"CUDA_ERROR_UNKNOWN",
        _ => return INVALID_VALUE,
    };
    // SAFETY: see above.
    code(unsafe { put(name, text.as_ptr()) })
}
