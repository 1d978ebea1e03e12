//! The driver's management library (NVML): the only part that loads it. Makes plain data of what it tells, and knows nothing
//! of what that means.

use std::path::Path;
use std::time::Duration;

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use nvml_wrapper::{Device, Nvml};

use crate::gpu::{self, Ecc, Gpu, Instance, Look, Process, Usage, Uuid, Xid};

mod raw;

pub(crate) struct Driver {
    nvml: Nvml,
}

/// Why there is no driver to ask.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("there is no NVIDIA driver on this machine: {0}")]
    NoLibrary(#[source] NvmlError),
    #[error("the NVIDIA driver does not work: {0}")]
    NoDriver(#[source] NvmlError),
}

/// Why the driver does not answer any more.
#[derive(Debug, thiserror::Error)]
#[error("the NVIDIA driver does not answer: {0}")]
pub(crate) struct DriverError(#[from] NvmlError);

/// Critical errors of some GPUs, from when it was made.
pub(crate) struct Events<'driver> {
    set: EventSet<'driver>,
}

impl Driver {
    pub(crate) fn open(library: &Path) -> Result<Self, OpenError> {
        match Nvml::builder().lib_path(library.as_os_str()).init() {
            Ok(nvml) => Ok(Self { nvml }),
            Err(error @ (NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound)) => {
                Err(OpenError::NoLibrary(error))
            }
            Err(error) => Err(OpenError::NoDriver(error)),
        }
    }

    /// All there is now. A GPU that does not answer does not keep others from being told.
    pub(crate) fn look(&self) -> Result<Look, DriverError> {
        let driver_version = self.nvml.sys_driver_version()?;
        let (mut gpus, mut mute) = (Vec::new(), Vec::new());
        for index in 0..self.nvml.device_count()? {
            match self.nvml.device_by_index(index).and_then(|device| self.gpu(index, &device)) {
                Ok(gpu) => gpus.push(gpu),
                Err(error) => mute.push((index, error.to_string())),
            }
        }
        Ok(Look { driver_version, gpus, mute })
    }

    /// Begins to listen. A GPU that has no critical errors to tell is left out.
    pub(crate) fn events(&self, gpus: &[Uuid]) -> Result<Events<'_>, DriverError> {
        let mut left: Vec<&Uuid> = gpus.iter().collect();
        'anew: loop {
            let mut set = self.nvml.create_event_set()?;
            for (index, uuid) in left.iter().enumerate() {
                let Ok(device) = self.nvml.device_by_uuid(uuid.0.as_str()) else { continue };
                match device.register_events(EventTypes::CRITICAL_XID_ERROR, set) {
                    Ok(registered) => set = registered,
                    // The set is gone with it, and those that were in it.
                    Err(error) => {
                        tracing::info!(gpu = %uuid, error = %error.error, "the GPU tells no critical errors");
                        left.remove(index);
                        continue 'anew;
                    }
                }
            }
            return Ok(Events { set });
        }
    }

    fn gpu(&self, index: u32, device: &Device<'_>) -> Result<Gpu, NvmlError> {
        // Told by none that shares the machine's memory.
        let memory = told(device.memory_info())?;
        let (memory_bytes, used) = memory.map_or((0, 0), |memory| (memory.total, memory.used));
        Ok(Gpu {
            index,
            uuid: Uuid(device.uuid()?),
            name: device.name()?,
            minor: device.minor_number()?,
            nodes: None,
            bus: gpu::bus(&device.pci_info()?.bus_id),
            memory_bytes,
            instances: self.instances(device, memory_bytes)?,
            usage: usage(device, used)?,
        })
    }

    fn instances(&self, device: &Device<'_>, memory: u64) -> Result<Option<Vec<Instance>>, NvmlError> {
        match told(device.mig_mode())? {
            Some(mode) if mode.current == 1 => {}
            _ => return Ok(None),
        }
        let mut instances = Vec::new();
        for index in 0..device.mig_device_count()? {
            let instance = match device.mig_device_by_index(index) {
                Ok(instance) => instance,
                // Places without an instance are counted too.
                Err(NvmlError::NotFound | NvmlError::InvalidArg) => continue,
                Err(error) => return Err(error),
            };
            let size = instance.attributes()?;
            instances.push(Instance {
                index,
                uuid: Uuid(instance.uuid()?),
                place: raw::place(&self.nvml, &instance)?,
                profile: gpu::profile(
                    size.compute_instance_slice_count,
                    size.gpu_instance_slice_count,
                    size.memory_size_mb,
                    memory,
                ),
            });
        }
        Ok(Some(instances))
    }
}

impl Events<'_> {
    /// The next critical error; none: there was none in this time.
    pub(crate) fn wait(&self, time: Duration) -> Result<Option<Xid>, DriverError> {
        match raw::wait(&self.set, time) {
            Ok(xid) => Ok(Some(xid)),
            Err(NvmlError::Timeout) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn usage(device: &Device<'_>, memory_used_bytes: u64) -> Result<Usage, NvmlError> {
    let rates = told(device.utilization_rates())?;
    let errors = |kind| told(device.total_ecc_errors(kind, EccCounter::Volatile));
    let ecc = match (errors(MemoryError::Corrected)?, errors(MemoryError::Uncorrected)?) {
        (Some(corrected), Some(uncorrected)) => Some(Ecc { corrected, uncorrected }),
        _ => None,
    };
    let processes = told(device.running_compute_processes())?.unwrap_or_default();
    Ok(Usage {
        memory_used_bytes,
        processor_percent: rates.as_ref().map(|rates| rates.gpu),
        memory_percent: rates.as_ref().map(|rates| rates.memory),
        temperature_celsius: told(device.temperature(TemperatureSensor::Gpu))?,
        power_milliwatts: told(device.power_usage())?,
        ecc,
        processes: processes
            .into_iter()
            .map(|process| Process {
                pid: process.pid,
                memory_bytes: match process.used_gpu_memory {
                    UsedGpuMemory::Used(bytes) => bytes,
                    UsedGpuMemory::Unavailable => 0,
                },
                gpu_instance: process.gpu_instance_id,
            })
            .collect(),
    })
}

/// What a GPU or a driver does not tell is none; that a GPU does not answer any more is an error.
fn told<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(
            error @ (NvmlError::GpuLost
            | NvmlError::ResetRequired
            | NvmlError::IrqIssue
            | NvmlError::Uninitialized
            | NvmlError::DriverNotLoaded
            | NvmlError::LibRmVersionMismatch),
        ) => Err(error),
        Err(_) => Ok(None),
    }
}
