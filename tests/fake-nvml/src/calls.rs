//! The library's calls, as far as programs here make them. A handle is a number that stands for a UUID, so that it stays
//! good while the script changes.
#![allow(unsafe_code, non_snake_case, clippy::missing_safety_doc)]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_uint, c_ulonglong};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::*;

use crate::script::{Does, Gpu, Mig, Process, Script, VARIABLE};

/// How often a waiting call looks whether the script has changed.
const LOOK: Duration = Duration::from_millis(10);

/// What a process or an event says that belongs to no instance.
const NO_INSTANCE: u32 = u32::MAX;

/// What handles stand for.
static NAMES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Sets of events: which GPUs each watches and how many events of the script it has had.
static SETS: Mutex<BTreeMap<usize, Set>> = Mutex::new(BTreeMap::new());

#[derive(Default)]
struct Set {
    uuids: Vec<String>,
    seen: usize,
    /// A GPU of it was lost: it is of no use any more.
    is_broken: bool,
}

type Answer<T = ()> = Result<T, nvmlReturn_t>;

fn script() -> Answer<Script> {
    let path = std::env::var_os(VARIABLE).map(PathBuf::from).ok_or(nvmlReturn_enum_NVML_ERROR_UNKNOWN)?;
    let script = Script::read(&path).map_err(|_| nvmlReturn_enum_NVML_ERROR_UNKNOWN)?;
    if script.is_loaded { Ok(script) } else { Err(nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED) }
}

fn code(answer: Answer) -> nvmlReturn_t {
    answer.err().unwrap_or(nvmlReturn_enum_NVML_SUCCESS)
}

fn handle(uuid: &str) -> nvmlDevice_t {
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let index = names.iter().position(|name| name == uuid).unwrap_or_else(|| {
        names.push(uuid.to_owned());
        names.len() - 1
    });
    std::ptr::without_provenance_mut(index + 1)
}

fn uuid_of(device: nvmlDevice_t) -> Answer<String> {
    let names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let index = device.addr().checked_sub(1).ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)?;
    names.get(index).cloned().ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)
}

/// The GPU, and the instance of it if the handle is one's.
fn find(device: nvmlDevice_t) -> Answer<(Gpu, Option<Mig>)> {
    let uuid = uuid_of(device)?;
    for gpu in script()?.gpus {
        let mig = gpu.mig.iter().flatten().find(|mig| mig.uuid == uuid).cloned();
        if gpu.uuid == uuid || mig.is_some() {
            return if gpu.is_lost { Err(nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST) } else { Ok((gpu, mig)) };
        }
    }
    Err(nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST)
}

/// The same for `call`, which may be one that fails.
fn ask(call: &str, device: nvmlDevice_t) -> Answer<(Gpu, Option<Mig>)> {
    let (gpu, mig) = find(device)?;
    match gpu.failing.iter().find(|failing| failing.call == call) {
        Some(failing) => Err(failing.code),
        None => Ok((gpu, mig)),
    }
}

/// Writes what `value` finds at `to`.
unsafe fn put<T>(to: *mut T, value: Answer<T>) -> nvmlReturn_t {
    code(value.map(|value| {
        // SAFETY: the caller of the library gives a place for the answer.
        unsafe { to.write(value) }
    }))
}

unsafe fn put_text(to: *mut c_char, length: c_uint, text: Answer<String>) -> nvmlReturn_t {
    let text = match text {
        Ok(text) => text,
        Err(code) => return code,
    };
    if text.len() >= length as usize {
        return nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE;
    }
    // SAFETY: the caller gives `length` bytes, and the text with its end is not longer.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len());
        to.add(text.len()).write(0);
    }
    nvmlReturn_enum_NVML_SUCCESS
}

fn chars<const N: usize>(text: &str) -> [c_char; N] {
    let mut chars = [0; N];
    for (to, from) in chars.iter_mut().zip(text.bytes().take(N - 1)) {
        *to = from.cast_signed() as c_char;
    }
    chars
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    code(script().map(drop))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    nvmlReturn_enum_NVML_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(to: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: as the caller says.
    unsafe { put_text(to, length, script().map(|script| script.driver_version)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(to: *mut c_uint) -> nvmlReturn_t {
    // SAFETY: as the caller says.
    unsafe { put(to, script().map(|script| u32::try_from(script.gpus.len()).unwrap_or(u32::MAX))) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, to: *mut nvmlDevice_t) -> nvmlReturn_t {
    let found = script().and_then(|script| match script.gpus.get(index as usize) {
        Some(gpu) if gpu.is_lost => Err(nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST),
        Some(gpu) => Ok(handle(&gpu.uuid)),
        None => Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT),
    });
    // SAFETY: as the caller says.
    unsafe { put(to, found) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(
    uuid: *const c_char,
    to: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    // SAFETY: the caller gives a text with its end.
    let uuid = unsafe { CStr::from_ptr(uuid) }.to_string_lossy();
    let device = handle(&uuid);
    // SAFETY: as the caller says.
    unsafe { put(to, find(device).map(|_| device)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(
    device: nvmlDevice_t,
    to: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    // SAFETY: as the caller says.
    unsafe { put_text(to, length, find(device).map(|(gpu, _)| gpu.name)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(
    device: nvmlDevice_t,
    to: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    // SAFETY: as the caller says.
    unsafe { put_text(to, length, find(device).and_then(|_| uuid_of(device))) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMinorNumber(device: nvmlDevice_t, to: *mut c_uint) -> nvmlReturn_t {
    // SAFETY: as the caller says.
    unsafe { put(to, find(device).map(|(gpu, _)| gpu.minor)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(
    device: nvmlDevice_t,
    to: *mut nvmlPciInfo_t,
) -> nvmlReturn_t {
    let info = find(device).map(|(gpu, _)| nvmlPciInfo_t {
        busIdLegacy: chars(gpu.bus_id.get(4..).unwrap_or_default()),
        domain: 0,
        bus: 0,
        device: 0,
        pciDeviceId: 0,
        pciSubSystemId: 0,
        busId: chars(&gpu.bus_id),
    });
    // SAFETY: as the caller says.
    unsafe { put(to, info) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: nvmlDevice_t,
    to: *mut nvmlMemory_v2_t,
) -> nvmlReturn_t {
    let version = u32::try_from(size_of::<nvmlMemory_v2_t>()).unwrap_or_default() | 2 << 24;
    // SAFETY: the caller says in it which version of the answer it takes.
    if unsafe { (*to).version } != version {
        return nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    }
    let info = ask("nvmlDeviceGetMemoryInfo_v2", device).map(|(gpu, mig)| {
        let total = mig.map_or(gpu.memory_total, |mig| mig.memory_mib << 20);
        let used = gpu.memory_used.min(total);
        nvmlMemory_v2_t { version, total, reserved: 0, free: total - used, used }
    });
    // SAFETY: as the caller says.
    unsafe { put(to, info) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUtilizationRates(
    device: nvmlDevice_t,
    to: *mut nvmlUtilization_t,
) -> nvmlReturn_t {
    let rates = ask("nvmlDeviceGetUtilizationRates", device).and_then(|(gpu, mig)| match mig {
        _ if gpu.is_plain => Err(nvmlReturn_enum_NVML_ERROR_UNKNOWN),
        Some(_) => Err(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED),
        None => Ok(nvmlUtilization_t { gpu: gpu.utilisation.0, memory: gpu.utilisation.1 }),
    });
    // SAFETY: as the caller says.
    unsafe { put(to, rates) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(
    device: nvmlDevice_t,
    _sensor: nvmlTemperatureSensors_t,
    to: *mut c_uint,
) -> nvmlReturn_t {
    // SAFETY: as the caller says.
    unsafe { put(to, ask("nvmlDeviceGetTemperature", device).map(|(gpu, _)| gpu.temperature)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPowerUsage(device: nvmlDevice_t, to: *mut c_uint) -> nvmlReturn_t {
    let power = ask("nvmlDeviceGetPowerUsage", device).and_then(|(gpu, _)| match gpu.is_plain {
        true => Err(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED),
        false => Ok(gpu.power_milliwatts),
    });
    // SAFETY: as the caller says.
    unsafe { put(to, power) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: nvmlDevice_t,
    kind: nvmlMemoryErrorType_t,
    _counter: nvmlEccCounterType_t,
    to: *mut c_ulonglong,
) -> nvmlReturn_t {
    let count = ask("nvmlDeviceGetTotalEccErrors", device).and_then(|(gpu, _)| {
        let (corrected, uncorrected) = gpu.ecc.ok_or(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED)?;
        Ok(if kind == nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_CORRECTED {
            corrected
        } else {
            uncorrected
        })
    });
    // SAFETY: as the caller says.
    unsafe { put(to, count) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: nvmlDevice_t,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> nvmlReturn_t {
    let mode = ask("nvmlDeviceGetMigMode", device).map(|(gpu, _)| u32::from(gpu.mig.is_some()));
    // SAFETY: as the caller says.
    unsafe {
        put(pending, mode);
        put(current, mode)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(
    device: nvmlDevice_t,
    to: *mut c_uint,
) -> nvmlReturn_t {
    // SAFETY: as the caller says.
    unsafe { put(to, find(device).map(|(gpu, _)| if gpu.mig.is_some() { 7 } else { 0 })) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: nvmlDevice_t,
    index: c_uint,
    to: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    let found = find(device).and_then(|(gpu, _)| {
        let mig = gpu.mig.unwrap_or_default();
        mig.get(index as usize).map(|mig| handle(&mig.uuid)).ok_or(nvmlReturn_enum_NVML_ERROR_NOT_FOUND)
    });
    // SAFETY: as the caller says.
    unsafe { put(to, found) }
}

fn instance(device: nvmlDevice_t, which: impl FnOnce(&Mig) -> u32) -> Answer<u32> {
    let (_, mig) = find(device)?;
    mig.as_ref().map(which).ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceId(device: nvmlDevice_t, to: *mut c_uint) -> nvmlReturn_t {
    // SAFETY: as the caller says.
    unsafe { put(to, instance(device, |mig| mig.gpu_instance)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeInstanceId(
    device: nvmlDevice_t,
    to: *mut c_uint,
) -> nvmlReturn_t {
    // SAFETY: as the caller says.
    unsafe { put(to, instance(device, |mig| mig.compute_instance)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetAttributes_v2(
    device: nvmlDevice_t,
    to: *mut nvmlDeviceAttributes_t,
) -> nvmlReturn_t {
    let attributes = find(device).and_then(|(_, mig)| {
        let mig = mig.ok_or(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED)?;
        Ok(nvmlDeviceAttributes_t {
            multiprocessorCount: 14 * mig.gpu_slices,
            sharedCopyEngineCount: 1,
            sharedDecoderCount: 0,
            sharedEncoderCount: 0,
            sharedJpegCount: 0,
            sharedOfaCount: u32::from(mig.has_ofa),
            gpuInstanceSliceCount: mig.gpu_slices,
            computeInstanceSliceCount: mig.compute_slices,
            memorySizeMB: mig.memory_mib,
        })
    });
    // SAFETY: as the caller says.
    unsafe { put(to, attributes) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    to: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    // SAFETY: as the caller says.
    unsafe {
        put_processes(ask("nvmlDeviceGetComputeRunningProcesses_v3", device), count, to, |process| {
            process.does != Does::Draw
        })
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    to: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    // SAFETY: as the caller says.
    unsafe {
        put_processes(ask("nvmlDeviceGetGraphicsRunningProcesses_v3", device), count, to, |process| {
            process.does != Does::Compute
        })
    }
}

unsafe fn put_processes(
    asked: Answer<(Gpu, Option<Mig>)>,
    count: *mut c_uint,
    to: *mut nvmlProcessInfo_t,
    is_asked: impl Fn(&Process) -> bool,
) -> nvmlReturn_t {
    let processes = match asked {
        Ok((gpu, _)) if gpu.is_plain => return nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED,
        Ok((gpu, mig)) => gpu
            .processes
            .into_iter()
            .filter(|process| mig.as_ref().is_none_or(|mig| process.gpu_instance == Some(mig.gpu_instance)))
            .filter(is_asked)
            .collect::<Vec<_>>(),
        Err(code) => return code,
    };
    let needed = u32::try_from(processes.len()).unwrap_or(u32::MAX);
    // SAFETY: the caller says there how many it has room for, and is told how many there are.
    let room = unsafe { count.replace(needed) };
    if room < needed {
        return nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE;
    }
    for (index, process) in processes.into_iter().enumerate() {
        let info = nvmlProcessInfo_t {
            pid: process.pid,
            usedGpuMemory: process.memory,
            gpuInstanceId: process.gpu_instance.unwrap_or(NO_INSTANCE),
            computeInstanceId: process.gpu_instance.map_or(NO_INSTANCE, |_| 0),
        };
        // SAFETY: there is room for all of them.
        unsafe { to.add(index).write(info) };
    }
    nvmlReturn_enum_NVML_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetSupportedEventTypes(
    device: nvmlDevice_t,
    to: *mut c_ulonglong,
) -> nvmlReturn_t {
    // SAFETY: as the caller says.
    unsafe { put(to, find(device).map(|_| c_ulonglong::from(nvmlEventTypeXidCriticalError))) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(to: *mut nvmlEventSet_t) -> nvmlReturn_t {
    let made = script().map(|script| {
        let mut sets = SETS.lock().unwrap_or_else(PoisonError::into_inner);
        let number = sets.last_key_value().map_or(1, |(last, _)| last + 1);
        sets.insert(number, Set { seen: script.events.len(), ..Set::default() });
        std::ptr::without_provenance_mut(number)
    });
    // SAFETY: as the caller says.
    unsafe { put(to, made) }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceRegisterEvents(
    device: nvmlDevice_t,
    _kinds: c_ulonglong,
    set: nvmlEventSet_t,
) -> nvmlReturn_t {
    code(find(device).and_then(|(gpu, _)| {
        if gpu.is_plain {
            return Err(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED);
        }
        let mut sets = SETS.lock().unwrap_or_else(PoisonError::into_inner);
        let set = sets.get_mut(&set.addr()).ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)?;
        set.uuids.push(gpu.uuid);
        Ok(())
    }))
}

/// The next event for the set, if there is one.
fn next_event(set: usize) -> Answer<Option<nvmlEventData_t>> {
    let script = script()?;
    let mut sets = SETS.lock().unwrap_or_else(PoisonError::into_inner);
    let set = sets.get_mut(&set).ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)?;
    let is_there = |uuid: &String| script.gpus.iter().any(|gpu| gpu.uuid == *uuid && !gpu.is_lost);
    set.is_broken |= !set.uuids.iter().all(is_there);
    if set.is_broken {
        return Err(nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST);
    }
    while let Some(event) = script.events.get(set.seen) {
        set.seen += 1;
        if set.uuids.contains(&event.uuid) {
            return Ok(Some(nvmlEventData_t {
                device: handle(&event.uuid),
                eventType: nvmlEventTypeXidCriticalError.into(),
                eventData: event.xid,
                gpuInstanceId: event.gpu_instance.unwrap_or(NO_INSTANCE),
                computeInstanceId: event.compute_instance.unwrap_or(NO_INSTANCE),
            }));
        }
    }
    Ok(None)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    to: *mut nvmlEventData_t,
    timeout_ms: c_uint,
) -> nvmlReturn_t {
    let end = Instant::now() + Duration::from_millis(timeout_ms.into());
    loop {
        match next_event(set.addr()) {
            // SAFETY: as the caller says.
            Ok(Some(event)) => return unsafe { put(to, Ok(event)) },
            Ok(None) if Instant::now() >= end => return nvmlReturn_enum_NVML_ERROR_TIMEOUT,
            Ok(None) => thread::sleep(LOOK),
            Err(code) => return code,
        }
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    SETS.lock().unwrap_or_else(PoisonError::into_inner).remove(&set.addr());
    nvmlReturn_enum_NVML_SUCCESS
}
