//! The calls of NVIDIA's driver library (`libcuda.so.1`), loaded while the program runs: a machine without it is none with an
//! error. Everything unsafe of this program stands here; what others get is safe. Must not know what is computed.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_int, c_uint, c_void};
use std::ptr::{null, null_mut};
use std::rc::Rc;

use libloading::Library;

/// What calls return; 0 is success.
type Code = c_int;

/// Threads of a block: a multiple of what runs in step (32), and small enough for every GPU.
const BLOCK: usize = 128;

/// Blocks of a launch whose threads go on in steps of all threads: enough to fill any GPU.
const BLOCKS_OF_ALL: usize = 4096;

/// Bytes for what the driver's compiler says, and for a GPU's name.
const LOG_BYTES: usize = 4096;
const NAME_BYTES: usize = 256;

/// Options of loading a module, as `cuda.h` numbers them.
const JIT_ERROR_LOG: c_int = 5;
const JIT_ERROR_LOG_BYTES: c_int = 6;

/// How a kernel's arguments are given in one piece, as `cuda.h` has it.
const ARGUMENTS: *mut c_void = std::ptr::without_provenance_mut(1);
const ARGUMENTS_BYTES: *mut c_void = std::ptr::without_provenance_mut(2);

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the driver's library cannot be loaded: {0}")]
    Library(libloading::Error),
    #[error("the driver's library lacks a call, so the driver is too old: {0}")]
    Call(libloading::Error),
    #[error("the driver finds no GPU that this program may use")]
    NoGpu,
    #[error("the kernels do not compile for this GPU: {error}: {log}")]
    Compile { error: CudaError, log: String },
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// A call that failed. After most of these the GPU does nothing more for this process.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{call}: {name}")]
pub struct CudaError {
    pub call: &'static str,
    pub name: String,
}

/// Declares the table of calls and how it is filled.
macro_rules! calls {
    ($($name:ident($($argument:ty),*);)*) => {
        #[allow(non_snake_case)]
        struct Calls { $($name: unsafe extern "C" fn($($argument),*) -> Code,)* }

        impl Calls {
            fn find(library: &Library) -> Result<Self, libloading::Error> {
                // SAFETY: the types are those of `cuda.h`, whose names with a version never change their meaning.
                unsafe { Ok(Self { $($name: *library.get(concat!(stringify!($name), "\0").as_bytes())?,)* }) }
            }
        }
    };
}

calls! {
    cuInit(c_uint);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut c_int, c_int);
    cuDeviceGetName(*mut c_char, c_int, c_int);
    cuDevicePrimaryCtxRetain(*mut *mut c_void, c_int);
    cuDevicePrimaryCtxRelease_v2(c_int);
    cuCtxSetCurrent(*mut c_void);
    cuCtxSynchronize();
    cuModuleLoadDataEx(*mut *mut c_void, *const c_void, c_uint, *mut c_int, *mut *mut c_void);
    cuModuleUnload(*mut c_void);
    cuModuleGetFunction(*mut *mut c_void, *mut c_void, *const c_char);
    cuMemAlloc_v2(*mut u64, usize);
    cuMemFree_v2(u64);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemcpyHtoD_v2(u64, *const c_void, usize);
    cuMemcpyDtoH_v2(*mut c_void, u64, usize);
    cuLaunchKernel(
        *mut c_void, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint,
        *mut c_void, *mut *mut c_void, *mut *mut c_void
    );
    cuGetErrorName(Code, *mut *const c_char);
}

/// Numbers that may be copied to and from a GPU: every pattern of bits is one.
pub trait Plain: Copy + Default {}
impl Plain for f32 {}
impl Plain for u32 {}
impl Plain for u64 {}

/// The driver, the first GPU's context and the compiled kernels. It belongs to the thread that opened it.
pub struct Gpu {
    calls: Calls,
    device: c_int,
    module: *mut c_void,
    name: String,
    /// The calls are in it.
    _library: Library,
}

/// A kernel of the module.
pub struct Kernel(*mut c_void);

/// Memory of the GPU, given back when dropped.
pub struct Buffer {
    gpu: Rc<Gpu>,
    address: u64,
    bytes: usize,
}

/// What a kernel is called with.
pub enum Argument<'a> {
    Memory(&'a Buffer),
    Count(u32),
    LongCount(u64),
}

/// How many threads run a kernel.
pub enum Threads {
    /// One for each value; some more, which the kernel leaves out.
    Each(usize),
    /// As many as fill the GPU.
    Many,
}

/// Free and total memory of the GPU, bytes.
pub struct Memory {
    pub free: u64,
    pub total: u64,
}

impl Gpu {
    /// Opens the first GPU that this process may use and compiles `kernels` for it.
    pub fn open(library: &OsStr, kernels: &CStr) -> Result<Rc<Self>, OpenError> {
        // SAFETY: what the driver's library does while it is loaded is up to the driver.
        let library = unsafe { Library::new(OsString::from(library)) }.map_err(OpenError::Library)?;
        let calls = Calls::find(&library).map_err(OpenError::Call)?;
        // SAFETY: it takes no pointer.
        calls.done("cuInit", unsafe { (calls.cuInit)(0) })?;
        let (mut count, mut device) = (0, 0);
        // SAFETY: it writes one number.
        calls.done("cuDeviceGetCount", unsafe { (calls.cuDeviceGetCount)(&mut count) })?;
        if count == 0 {
            return Err(OpenError::NoGpu);
        }
        // SAFETY: it writes one number.
        calls.done("cuDeviceGet", unsafe { (calls.cuDeviceGet)(&mut device, 0) })?;
        let name = calls.name(device)?;
        let mut context = null_mut();
        // SAFETY: it writes one pointer.
        calls.done("cuDevicePrimaryCtxRetain", unsafe {
            (calls.cuDevicePrimaryCtxRetain)(&mut context, device)
        })?;
        // From here on, dropping it gives the context back.
        let mut gpu = Self { calls, device, module: null_mut(), name, _library: library };
        // SAFETY: the context is the one just made.
        gpu.calls.done("cuCtxSetCurrent", unsafe { (gpu.calls.cuCtxSetCurrent)(context) })?;
        gpu.module = gpu.calls.compile(kernels)?;
        Ok(Rc::new(gpu))
    }

    /// As the driver calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn kernel(&self, name: &str) -> Result<Kernel, CudaError> {
        let name = CString::new(name).expect("kernels have plain names");
        let mut kernel = null_mut();
        // SAFETY: it reads a text that ends with zero and writes one pointer; the module lives as long as `self`.
        let code = unsafe { (self.calls.cuModuleGetFunction)(&mut kernel, self.module, name.as_ptr()) };
        self.calls.done("cuModuleGetFunction", code)?;
        Ok(Kernel(kernel))
    }

    pub fn allocate(self: &Rc<Self>, bytes: usize) -> Result<Buffer, CudaError> {
        let mut address = 0;
        // SAFETY: it writes one number.
        self.calls.done("cuMemAlloc_v2", unsafe { (self.calls.cuMemAlloc_v2)(&mut address, bytes) })?;
        Ok(Buffer { gpu: Rc::clone(self), address, bytes })
    }

    /// Has the GPU run `kernel` after what it was given before. Whether it failed is told by a later call.
    pub fn launch(
        &self,
        kernel: &Kernel,
        threads: Threads,
        arguments: &[Argument<'_>],
    ) -> Result<(), CudaError> {
        let blocks = match threads {
            Threads::Each(count) => count.div_ceil(BLOCK),
            Threads::Many => BLOCKS_OF_ALL,
        };
        let (blocks, block) = (c_uint::try_from(blocks).unwrap_or(c_uint::MAX), BLOCK as c_uint);
        let (mut packed, mut bytes) = packed(arguments);
        let mut extra: [*mut c_void; 5] =
            [ARGUMENTS, packed.as_mut_ptr().cast(), ARGUMENTS_BYTES, (&raw mut bytes).cast(), null_mut()];
        // SAFETY: the driver reads the arguments up to their length before it returns. A kernel reaches nothing but memory of
        // the GPU that belongs to this process.
        let code = unsafe {
            (self.calls.cuLaunchKernel)(
                kernel.0,
                blocks,
                1,
                1,
                block,
                1,
                1,
                0,
                null_mut(),
                null_mut(),
                extra.as_mut_ptr(),
            )
        };
        self.calls.done("cuLaunchKernel", code)
    }

    /// Waits until the GPU has done everything, and hears of what failed.
    pub fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: it takes no pointer.
        self.calls.done("cuCtxSynchronize", unsafe { (self.calls.cuCtxSynchronize)() })
    }

    pub fn memory(&self) -> Result<Memory, CudaError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: it writes two numbers.
        let code = unsafe { (self.calls.cuMemGetInfo_v2)(&mut free, &mut total) };
        self.calls.done("cuMemGetInfo_v2", code)?;
        Ok(Memory { free: free as u64, total: total as u64 })
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: buffers hold the `Gpu`, so nothing uses the module or the context any more.
        unsafe {
            if !self.module.is_null() {
                (self.calls.cuModuleUnload)(self.module);
            }
            (self.calls.cuDevicePrimaryCtxRelease_v2)(self.device);
        }
    }
}

impl Buffer {
    /// Copies `values` to its beginning.
    pub fn write<T: Plain>(&self, values: &[T]) -> Result<(), CudaError> {
        let bytes = size_of_val(values);
        assert!(bytes <= self.bytes, "a buffer is as large as what is put into it");
        // SAFETY: the driver reads as many bytes as there are, and returns when it has.
        let code = unsafe { (self.gpu.calls.cuMemcpyHtoD_v2)(self.address, values.as_ptr().cast(), bytes) };
        self.gpu.calls.done("cuMemcpyHtoD_v2", code)
    }

    /// Copies its first `count` values, after everything launched before.
    pub fn read<T: Plain>(&self, count: usize) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::default(); count];
        let bytes = size_of_val(values.as_slice());
        assert!(bytes <= self.bytes, "a buffer is as large as what is taken out of it");
        // SAFETY: the driver writes as many bytes as there are, of a type for which every pattern of bits is a value.
        let code =
            unsafe { (self.gpu.calls.cuMemcpyDtoH_v2)(values.as_mut_ptr().cast(), self.address, bytes) };
        self.gpu.calls.done("cuMemcpyDtoH_v2", code)?;
        Ok(values)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the address is of an allocation that is freed once. The driver waits for kernels that use it.
        unsafe { (self.gpu.calls.cuMemFree_v2)(self.address) };
    }
}

impl Calls {
    fn done(&self, call: &'static str, code: Code) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }
        let mut name = null();
        // SAFETY: it writes one pointer, to a text that ends with zero and stays.
        let known = unsafe { (self.cuGetErrorName)(code, &mut name) } == 0 && !name.is_null();
        let name = if known {
            // SAFETY: as above.
            unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
        } else {
            format!("error {code}")
        };
        Err(CudaError { call, name })
    }

    fn name(&self, device: c_int) -> Result<String, CudaError> {
        let mut name = [0_u8; NAME_BYTES];
        // SAFETY: it writes at most as many bytes as it is told there are.
        let code = unsafe { (self.cuDeviceGetName)(name.as_mut_ptr().cast(), NAME_BYTES as c_int, device) };
        self.done("cuDeviceGetName", code)?;
        Ok(text(&name))
    }

    fn compile(&self, kernels: &CStr) -> Result<*mut c_void, OpenError> {
        let mut log = [0_u8; LOG_BYTES];
        let mut options = [JIT_ERROR_LOG, JIT_ERROR_LOG_BYTES];
        let mut values: [*mut c_void; 2] =
            [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(LOG_BYTES)];
        let mut module = null_mut();
        // SAFETY: it reads a text that ends with zero and two options with their values, writes one pointer, and at most
        // as many bytes of log as it is told there are.
        let code = unsafe {
            (self.cuModuleLoadDataEx)(
                &mut module,
                kernels.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        match self.done("cuModuleLoadDataEx", code) {
            Ok(()) => Ok(module),
            Err(error) => Err(OpenError::Compile { error, log: text(&log) }),
        }
    }
}

/// Bytes up to the first zero.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim().to_owned()
}

/// Arguments as they lie in memory, each at a multiple of its own size, and how many bytes they take.
fn packed(arguments: &[Argument<'_>]) -> (Vec<u64>, usize) {
    let mut bytes: Vec<u8> = Vec::new();
    for argument in arguments {
        match argument {
            Argument::Count(count) => bytes.extend(count.to_ne_bytes()),
            Argument::LongCount(_) | Argument::Memory(_) => {
                bytes.resize(bytes.len().next_multiple_of(8), 0);
                let value = match argument {
                    Argument::Memory(buffer) => buffer.address,
                    Argument::LongCount(count) => *count,
                    Argument::Count(count) => u64::from(*count),
                };
                bytes.extend(value.to_ne_bytes());
            }
        }
    }
    let taken = bytes.len();
    bytes.resize(taken.next_multiple_of(8), 0);
    let (words, _) = bytes.as_chunks();
    (words.iter().map(|word| u64::from_ne_bytes(*word)).collect(), taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_lie_where_kernels_look_for_them() {
        let (words, bytes) = packed(&[Argument::Count(1), Argument::LongCount(2), Argument::Count(3)]);
        let expected: Vec<u8> =
            [&1_u32.to_ne_bytes()[..], &[0; 4], &2_u64.to_ne_bytes(), &3_u32.to_ne_bytes(), &[0; 4]].concat();
        assert_eq!(words.into_iter().flat_map(u64::to_ne_bytes).collect::<Vec<u8>>(), expected);
        assert_eq!(bytes, 20);
    }

    #[test]
    fn a_machine_without_the_library_says_so() {
        let error = Gpu::open(OsStr::new("libcuda-of-nowhere.so.1"), c"").err().expect("no such library");
        assert!(matches!(error, OpenError::Library(_)), "{error}");
        // A library, but not the driver's.
        let error = Gpu::open(OsStr::new("libc.so.6"), c"").err().expect("no driver");
        assert!(matches!(error, OpenError::Call(_)), "{error}");
    }
}
