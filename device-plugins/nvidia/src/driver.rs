//! The driver's management library (NVML): the only part that loads it. Makes plain data of what it tells, and knows nothing
//! of what that means.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{
    nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH, nvmlReturn_enum_NVML_ERROR_DEPRECATED,
};

use crate::gpu::{self, Ecc, Gpu, Holding, Instance, Look, Mute, Place, Process, Usage, Uuid, Xid};

mod raw;

/// How often processes are listed before it is given up: some may begin between the count of them and the list.
const LISTS_MAX: usize = 3;

/// What the library says to a form of a call that it does not know, or does not know any more.
const OTHER_FORMS: [u32; 2] =
    [nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH, nvmlReturn_enum_NVML_ERROR_DEPRECATED];

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
    of: BTreeSet<Uuid>,
    /// Why some of them are not in it, if that may be another time.
    unheard: Option<String>,
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
            match self.nvml.device_by_index(index) {
                Ok(device) => match self.gpu(index, &device) {
                    Ok(gpu) => gpus.push(gpu),
                    Err(error) => mute.push(self::mute(index, device.uuid().ok(), &error)),
                },
                Err(error) => mute.push(self::mute(index, None, &error)),
            }
        }
        Ok(Look { driver_version, gpus, mute })
    }

    /// What processes hold now; none: no GPU here tells. One that cannot be asked keeps no other from being told if it is lost or
    /// `is_faulty`, by its index: then it has no users. Otherwise nothing is told, since it would seem that nobody holds any of it.
    pub(crate) fn holdings(
        &self,
        is_faulty: impl Fn(u32) -> bool,
    ) -> Result<Option<Vec<Holding>>, DriverError> {
        let (mut told, mut error) = (None, None);
        let count = self.nvml.device_count()?;
        for index in 0..count {
            let holdings = self.nvml.device_by_index(index).and_then(|device| self.holdings_of(&device));
            match holdings {
                Ok(holdings) => {
                    told = match (told, holdings) {
                        (Some(all), Some(of_this)) => Some([all, of_this].concat()),
                        (told, of_this) => told.or(of_this),
                    };
                }
                Err(of_this) if is_lost(&of_this) || is_faulty(index) => error = Some(of_this),
                Err(of_this) => return Err(of_this.into()),
            }
        }
        match (told, error) {
            (None, Some(error)) => Err(error.into()),
            (None, None) if count == 0 => Ok(Some(Vec::new())),
            (told, _) => Ok(told),
        }
    }

    fn holdings_of(&self, device: &Device<'_>) -> Result<Option<Vec<Holding>>, NvmlError> {
        let Some(processes) = processes(device)? else { return Ok(None) };
        let gpu = Uuid(device.uuid()?);
        let mut instances = BTreeMap::new();
        if processes.iter().any(|process| process.place.is_some()) {
            for (_, instance) in migs(device)? {
                instances.insert(raw::place(&self.nvml, &instance)?, Uuid(instance.uuid()?));
            }
        }
        let holding = |Process { pid, memory_bytes, place }| {
            let instance = place.and_then(|place| instances.get(&place));
            Holding { pid, of: instance.unwrap_or(&gpu).clone(), bytes: memory_bytes }
        };
        Ok(Some(processes.into_iter().map(holding).collect()))
    }

    /// Begins to listen. A GPU that has no critical errors to tell is left out.
    pub(crate) fn events(&self, gpus: &BTreeSet<Uuid>) -> Result<Events<'_>, DriverError> {
        let mut left: Vec<&Uuid> = gpus.iter().collect();
        let mut unheard = None;
        'anew: loop {
            let mut set = self.nvml.create_event_set()?;
            for (index, uuid) in left.iter().enumerate() {
                let device = match self.nvml.device_by_uuid(uuid.0.as_str()) {
                    Ok(device) => device,
                    Err(error) => {
                        unheard = Some(format!("{uuid}: {error}"));
                        continue;
                    }
                };
                match device.register_events(EventTypes::CRITICAL_XID_ERROR, set) {
                    Ok(registered) => set = registered,
                    // The set is gone with it, and those that were in it.
                    Err(error) => {
                        if is_never_told(&error.error) {
                            tracing::info!(gpu = %uuid, error = %error.error, "the GPU tells no critical errors");
                        } else {
                            unheard = Some(format!("{uuid}: {error}"));
                        }
                        left.remove(index);
                        continue 'anew;
                    }
                }
            }
            return Ok(Events { set, of: gpus.clone(), unheard });
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
        for (index, instance) in migs(device)? {
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
                    size.shared_ofa_count > 0,
                ),
            });
        }
        Ok(Some(instances))
    }
}

impl Events<'_> {
    /// Whether these are the GPUs, and each is heard that can be.
    pub(crate) fn are_of(&self, gpus: &BTreeSet<Uuid>) -> bool {
        self.of == *gpus && self.unheard.is_none()
    }

    pub(crate) fn unheard(&self) -> Option<&str> {
        self.unheard.as_deref()
    }

    /// The next critical error; none: there was none in this time.
    pub(crate) fn wait(&self, time: Duration) -> Result<Option<Xid>, DriverError> {
        match raw::wait(&self.set, time) {
            Ok(xid) => Ok(Some(xid)),
            Err(NvmlError::Timeout) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn mute(index: u32, uuid: Option<String>, error: &NvmlError) -> Mute {
    Mute { index, uuid: uuid.map(Uuid), why: error.to_string(), is_lost: is_lost(error) }
}

fn usage(device: &Device<'_>, memory_used_bytes: u64) -> Result<Usage, NvmlError> {
    let rates = measured(device.utilization_rates())?;
    let errors = |kind| told(device.total_ecc_errors(kind, EccCounter::Volatile));
    let ecc = match (errors(MemoryError::Corrected)?, errors(MemoryError::Uncorrected)?) {
        (Some(corrected), Some(uncorrected)) => Some(Ecc { corrected, uncorrected }),
        _ => None,
    };
    Ok(Usage {
        memory_used_bytes,
        processor_percent: rates.as_ref().map(|rates| rates.gpu),
        memory_percent: rates.as_ref().map(|rates| rates.memory),
        temperature_celsius: measured(device.temperature(TemperatureSensor::Gpu))?,
        power_milliwatts: measured(device.power_usage())?,
        ecc,
        processes: processes(device)?.unwrap_or_default(),
    })
}

/// Those that compute and those that draw, each once; none: the GPU does not tell.
fn processes(device: &Device<'_>) -> Result<Option<Vec<Process>>, NvmlError> {
    let kinds =
        [listed(|| device.running_compute_processes())?, listed(|| device.running_graphics_processes())?];
    if kinds.iter().all(Option::is_none) {
        return Ok(None);
    }
    let mut all = BTreeMap::new();
    for info in kinds.into_iter().flatten().flatten() {
        let place = info.gpu_instance_id.zip(info.compute_instance_id);
        let place = place.map(|(gpu_instance, compute_instance)| Place { gpu_instance, compute_instance });
        let bytes = match info.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        // One that does both is in both lists with all it holds.
        let before = all.entry((info.pid, place)).or_insert(None);
        *before = (*before).max(bytes);
    }
    let process = |((pid, place), memory_bytes)| Process { pid, memory_bytes, place };
    Ok(Some(all.into_iter().map(process).collect()))
}

fn listed(
    list: impl Fn() -> Result<Vec<ProcessInfo>, NvmlError>,
) -> Result<Option<Vec<ProcessInfo>>, NvmlError> {
    for _ in 1..LISTS_MAX {
        match list() {
            Err(NvmlError::InsufficientSize(_)) => {}
            answer => return told(answer),
        }
    }
    told(list())
}

/// The instances of a cut GPU, with their places in its list.
fn migs<'driver>(device: &Device<'driver>) -> Result<Vec<(u32, Device<'driver>)>, NvmlError> {
    let mut found = Vec::new();
    for index in 0..device.mig_device_count()? {
        match device.mig_device_by_index(index) {
            Ok(instance) => found.push((index, instance)),
            // Places without an instance are counted too.
            Err(NvmlError::NotFound | NvmlError::InvalidArg) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// What this GPU or this driver never tells is none. Any other failure is one: what is missing then must not count as absent.
fn told<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_never_told(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The same of a figure that nothing depends on: only of a GPU that is lost it is a failure.
fn measured<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_lost(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

fn is_never_told(error: &NvmlError) -> bool {
    match error {
        NvmlError::NotSupported
        | NvmlError::NoPermission
        | NvmlError::FunctionNotFound
        | NvmlError::FailedToLoadSymbol(_)
        | NvmlError::VgpuEccNotSupported => true,
        // Of a driver that is older or newer than this form of the call.
        NvmlError::UnexpectedVariant(code) => OTHER_FORMS.contains(code),
        _ => false,
    }
}

/// It does not answer any more, says the driver.
fn is_lost(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::GpuLost
            | NvmlError::ResetRequired
            | NvmlError::IrqIssue
            | NvmlError::Uninitialized
            | NvmlError::DriverNotLoaded
            | NvmlError::LibRmVersionMismatch
    )
}
