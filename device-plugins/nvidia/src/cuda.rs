//! The driver's compute library (libcuda), as far as it moves processes' state: the only part that loads it. It makes the calls,
//! and knows nothing of their order.
#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr, c_char, c_int, c_uint};
use std::path::PathBuf;
use std::time::Duration;

use libloading::Library;
use tombolo_device_sdk::Pid;

use crate::config::Config;
use crate::files;

/// The first driver with these calls, and the version of CUDA that it tells.
const DRIVER: &str = "570";
const CUDA: c_int = 12_080;

type Code = c_int;

const SUCCESS: Code = 0;
const OUT_OF_MEMORY: Code = 2;
const NOT_READY: Code = 600;
const NOT_SUPPORTED: Code = 801;

/// What `cuCheckpointProcessLock` is told. The others may be told nothing.
#[repr(C)]
#[derive(Default)]
struct LockArgs {
    /// Zero: without end.
    timeout_ms: c_uint,
    reserved: c_uint,
    more_reserved: [u64; 7],
}

/// As the driver's header has it.
const _: () = assert!(size_of::<LockArgs>() == 64);

type Init = unsafe extern "C" fn(c_uint) -> Code;
type DriverGetVersion = unsafe extern "C" fn(*mut c_int) -> Code;
type GetErrorName = unsafe extern "C" fn(Code, *mut *const c_char) -> Code;
type GetState = unsafe extern "C" fn(c_int, *mut c_uint) -> Code;
type Lock = unsafe extern "C" fn(c_int, *mut LockArgs) -> Code;
/// The pointer is to arguments that may be left out.
type Move = unsafe extern "C" fn(c_int, *mut u8) -> Code;

pub(crate) struct Cuda {
    init: Init,
    driver_get_version: DriverGetVersion,
    get_error_name: GetErrorName,
    get_state: GetState,
    lock: Lock,
    checkpoint: Move,
    restore: Move,
    unlock: Move,
    /// Holds the functions.
    _library: Library,
}

/// Why there is no such library to call.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("{} cannot be loaded, which suspending processes needs, of driver {DRIVER} or newer: {source}", path.display())]
    NoLibrary { path: PathBuf, source: libloading::Error },
    #[error("the driver cannot suspend processes: it has no {0}, and needs to be {DRIVER} or newer")]
    NoCall(&'static str),
    #[error("the driver cannot suspend processes: it is of CUDA {}.{}, and needs to be {DRIVER} or newer", .0 / 1000, .0 % 1000 / 10)]
    Old(c_int),
    #[error("the driver does not work: {call}: {error}")]
    Refused { call: &'static str, error: String },
}

/// What the driver knows of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    /// Whatever it asks of the driver waits.
    Locked,
    /// It has nothing on a GPU, and waits.
    Checkpointed,
    /// The driver lost it.
    Failed,
    /// Somebody else moves it.
    Moving,
}

/// A call that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed at process {process}: {error}")]
pub(crate) struct Failure {
    call: &'static str,
    process: Pid,
    /// The driver's name for it.
    error: String,
    code: Code,
}

impl Failure {
    /// Where it was to be moved to there is no room.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        self.code == OUT_OF_MEMORY
    }

    /// The driver cannot do that with such a process.
    pub(crate) fn is_not_supported(&self) -> bool {
        self.code == NOT_SUPPORTED
    }

    /// What it was to wait for has not come.
    pub(crate) fn is_not_ready(&self) -> bool {
        self.code == NOT_READY
    }
}

impl Cuda {
    pub(crate) fn load(config: &Config) -> Result<Self, LoadError> {
        let path = files::library(&config.cuda_library, &config.paths, &config.cdi);
        let library = open(path.as_os_str()).map_err(|source| LoadError::NoLibrary { path, source })?;
        Ok(Self {
            init: symbol(&library, "cuInit")?,
            driver_get_version: symbol(&library, "cuDriverGetVersion")?,
            get_error_name: symbol(&library, "cuGetErrorName")?,
            get_state: symbol(&library, "cuCheckpointProcessGetState")?,
            lock: symbol(&library, "cuCheckpointProcessLock")?,
            checkpoint: symbol(&library, "cuCheckpointProcessCheckpoint")?,
            restore: symbol(&library, "cuCheckpointProcessRestore")?,
            unlock: symbol(&library, "cuCheckpointProcessUnlock")?,
            _library: library,
        })
    }

    /// Makes it ready for calls. Without this, processes can be restored only where the driver is kept loaded otherwise. May be
    /// called again, which costs nothing.
    pub(crate) fn begin(&self) -> Result<(), LoadError> {
        let refused = |call| {
            move |code| {
                if code == SUCCESS {
                    Ok(())
                } else {
                    Err(LoadError::Refused { call, error: self.name(code) })
                }
            }
        };
        let mut version = 0;
        // SAFETY: the number outlives the call.
        refused("cuDriverGetVersion")(unsafe { (self.driver_get_version)(&raw mut version) })?;
        if version < CUDA {
            return Err(LoadError::Old(version));
        }
        // SAFETY: zero is the one value that the flags may have.
        refused("cuInit")(unsafe { (self.init)(0) })
    }

    pub(crate) fn state(&self, process: Pid) -> Result<State, Failure> {
        let mut state = 0;
        // SAFETY: the number outlives the call, and has the size of the driver's enumeration.
        let code = unsafe { (self.get_state)(number(process), &raw mut state) };
        self.done("cuCheckpointProcessGetState", process, code)?;
        Ok(match state {
            0 => State::Running,
            1 => State::Locked,
            2 => State::Checkpointed,
            3 => State::Failed,
            _ => State::Moving,
        })
    }

    /// Waits until nothing of the process's is under way on a GPU.
    pub(crate) fn lock(&self, process: Pid, at_most: Duration) -> Result<(), Failure> {
        let timeout_ms = c_uint::try_from(at_most.as_millis()).unwrap_or(c_uint::MAX);
        let mut args = LockArgs { timeout_ms, ..LockArgs::default() };
        // SAFETY: the arguments outlive the call, and are laid out as the driver has them.
        let code = unsafe { (self.lock)(number(process), &raw mut args) };
        self.done("cuCheckpointProcessLock", process, code)
    }

    pub(crate) fn checkpoint(&self, process: Pid) -> Result<(), Failure> {
        self.move_state("cuCheckpointProcessCheckpoint", self.checkpoint, process)
    }

    pub(crate) fn restore(&self, process: Pid) -> Result<(), Failure> {
        self.move_state("cuCheckpointProcessRestore", self.restore, process)
    }

    pub(crate) fn unlock(&self, process: Pid) -> Result<(), Failure> {
        self.move_state("cuCheckpointProcessUnlock", self.unlock, process)
    }

    fn move_state(&self, call: &'static str, function: Move, process: Pid) -> Result<(), Failure> {
        // SAFETY: the driver lets the arguments of these calls be left out.
        let code = unsafe { function(number(process), std::ptr::null_mut()) };
        self.done(call, process, code)
    }

    fn done(&self, call: &'static str, process: Pid, code: Code) -> Result<(), Failure> {
        if code == SUCCESS { Ok(()) } else { Err(Failure { call, process, error: self.name(code), code }) }
    }

    fn name(&self, code: Code) -> String {
        let mut name = std::ptr::null();
        // SAFETY: the pointer outlives the call.
        let named = unsafe { (self.get_error_name)(code, &raw mut name) };
        if named != SUCCESS || name.is_null() {
            return format!("error {code}");
        }
        // SAFETY: the driver gives a text of its own that ends with zero.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }
}

fn open(library: &OsStr) -> Result<Library, libloading::Error> {
    // SAFETY: that the configured library may run its beginnings in this process is what it is configured for.
    unsafe { Library::new(library) }
}

fn symbol<T: Copy>(library: &Library, name: &'static str) -> Result<T, LoadError> {
    // SAFETY: `T` is the type of the function of this name: each is written next to its name, from the driver's header.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    found.map(|function| *function).map_err(|_| LoadError::NoCall(name))
}

fn number(process: Pid) -> c_int {
    c_int::try_from(process.number()).expect("numbers of processes have 31 bits")
}
