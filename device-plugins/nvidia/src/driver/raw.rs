//! The two things of the library that its safe wrapper leaves out: where an instance is on its GPU, and which instance a
//! critical error is of.
#![allow(unsafe_code)]

use std::time::Duration;

use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::event::EventSet;
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlEventData_t, nvmlReturn_t};

use crate::gpu::{Place, Uuid, Xid};

/// What the library says for "no instance".
const NONE: u32 = u32::MAX;

type GetNumber = unsafe extern "C" fn(nvmlDevice_t, *mut u32) -> nvmlReturn_t;

pub(super) fn place(nvml: &Nvml, instance: &Device<'_>) -> Result<Place, NvmlError> {
    let number = |get: &GetNumber| -> Result<u32, NvmlError> {
        let mut number = 0;
        // SAFETY: the handle is that of a device of this library, which is open as long as `nvml` is; the number outlives
        // the call.
        nvml_try(unsafe { get(instance.handle(), &raw mut number) })?;
        Ok(number)
    };
    Ok(Place {
        gpu_instance: number(nvml_sym(nvml.lib().nvmlDeviceGetGpuInstanceId.as_ref())?)?,
        compute_instance: number(nvml_sym(nvml.lib().nvmlDeviceGetComputeInstanceId.as_ref())?)?,
    })
}

pub(super) fn wait(set: &EventSet<'_>, time: Duration) -> Result<Xid, NvmlError> {
    let wait = nvml_sym(set.nvml.lib().nvmlEventSetWait_v2.as_ref())?;
    let mut data = nvmlEventData_t {
        device: std::ptr::null_mut(),
        eventType: 0,
        eventData: 0,
        gpuInstanceId: NONE,
        computeInstanceId: NONE,
    };
    let milliseconds = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    // SAFETY: the set is one of this library and not freed before `set` is dropped; `data` outlives the call.
    nvml_try(unsafe { wait(set.handle(), &raw mut data, milliseconds) })?;
    // SAFETY: the library gives the handle of one of its devices.
    let device = unsafe { Device::new(data.device, set.nvml) };
    let place = (data.gpuInstanceId != NONE && data.computeInstanceId != NONE)
        .then_some(Place { gpu_instance: data.gpuInstanceId, compute_instance: data.computeInstanceId });
    Ok(Xid { gpu: Uuid(device.uuid()?), number: data.eventData, place })
}
