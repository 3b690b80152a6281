//! The driver's library: found, loaded and looked through once per process, before anything calls
//! it.
//!
//! The functions are looked up here rather than called through cudarc for two reasons: cudarc
//! panics at the first call of a function that the library lacks, and it takes the status of a call
//! for a Rust enum, which the status of a newer driver need not be. Here a status is a number.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::ptr;
use std::sync::OnceLock;

use cudarc::driver::sys;

/// The oldest driver that is used, as `cuDriverGetVersion` counts: the first whose every device has
/// an answer about read-only registration that can be relied on.
const VERSION_MIN: c_int = 11_040;

/// What the driver answers when all is well.
const SUCCESS: c_int = 0;
pub(crate) const OUT_OF_MEMORY: c_int = 2;
pub(crate) const NOT_READY: c_int = 600;

macro_rules! functions {
    ($($name:ident = $symbol:literal ($($argument:ty),*);)*) => {
        /// The functions that are used, each under its own name in lower case.
        #[derive(Clone, Copy)]
        pub(crate) struct Functions {
            $(pub(crate) $name: unsafe extern "C" fn($($argument),*) -> c_int,)*
        }

        impl Functions {
            fn find() -> Result<Self, String> {
                // SAFETY: loading the driver's library runs its initialisers, which every program
                // that uses the device runs.
                if !unsafe { sys::is_culib_present() } {
                    return Err("there is no driver: libcuda.so.1 is not found".to_owned());
                }
                // SAFETY: as above; it is present, so this does not panic.
                let library = unsafe { sys::culib() };
                Ok(Self {
                    $($name: {
                        // SAFETY: the type is that of the function in the driver's public header.
                        let found = unsafe {
                            library.get::<unsafe extern "C" fn($($argument),*) -> c_int>($symbol)
                        };
                        *found.map_err(|_| lacks($symbol))?
                    },)*
                })
            }
        }
    };
}

functions! {
    init = b"cuInit\0" (c_uint);
    version = b"cuDriverGetVersion\0" (*mut c_int);
    error_name = b"cuGetErrorName\0" (c_int, *mut *const c_char);
    error_string = b"cuGetErrorString\0" (c_int, *mut *const c_char);
    device_count = b"cuDeviceGetCount\0" (*mut c_int);
    device = b"cuDeviceGet\0" (*mut sys::CUdevice, c_int);
    device_name = b"cuDeviceGetName\0" (*mut c_char, c_int, sys::CUdevice);
    device_attribute = b"cuDeviceGetAttribute\0" (*mut c_int, c_uint, sys::CUdevice);
    device_pci = b"cuDeviceGetPCIBusId\0" (*mut c_char, c_int, sys::CUdevice);
    context_retain = b"cuDevicePrimaryCtxRetain\0" (*mut sys::CUcontext, sys::CUdevice);
    context_release = b"cuDevicePrimaryCtxRelease_v2\0" (sys::CUdevice);
    context_current = b"cuCtxGetCurrent\0" (*mut sys::CUcontext);
    context_set = b"cuCtxSetCurrent\0" (sys::CUcontext);
    memory_register = b"cuMemHostRegister_v2\0" (*mut c_void, usize, c_uint);
    memory_unregister = b"cuMemHostUnregister\0" (*mut c_void);
    host_alloc = b"cuMemHostAlloc\0" (*mut *mut c_void, usize, c_uint);
    host_free = b"cuMemFreeHost\0" (*mut c_void);
    memory_alloc = b"cuMemAlloc_v2\0" (*mut sys::CUdeviceptr, usize);
    memory_free = b"cuMemFree_v2\0" (sys::CUdeviceptr);
    copy = b"cuMemcpyHtoDAsync_v2\0" (sys::CUdeviceptr, *const c_void, usize, sys::CUstream);
    copy_rows = b"cuMemcpy2DAsync_v2\0" (*const sys::CUDA_MEMCPY2D, sys::CUstream);
    stream_create = b"cuStreamCreate\0" (*mut sys::CUstream, c_uint);
    stream_destroy = b"cuStreamDestroy_v2\0" (sys::CUstream);
    stream_wait = b"cuStreamSynchronize\0" (sys::CUstream);
    event_create = b"cuEventCreate\0" (*mut sys::CUevent, c_uint);
    event_destroy = b"cuEventDestroy_v2\0" (sys::CUevent);
    event_record = b"cuEventRecord\0" (sys::CUevent, sys::CUstream);
    event_query = b"cuEventQuery\0" (sys::CUevent);
    event_wait = b"cuEventSynchronize\0" (sys::CUevent);
    event_elapsed = b"cuEventElapsedTime\0" (*mut f32, sys::CUevent, sys::CUevent);
}

impl fmt::Debug for Functions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Functions(libcuda.so.1)")
    }
}

/// What a call of the driver answered, if that was no success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal(pub(crate) c_int);

/// The answer of a call.
pub(crate) fn answer(code: c_int) -> Result<(), Refusal> {
    if code == SUCCESS { Ok(()) } else { Err(Refusal(code)) }
}

impl Functions {
    /// The functions, with the driver initialised; or why there are none. Finds out once.
    pub(crate) fn get() -> Result<&'static Self, String> {
        static FOUND: OnceLock<Result<Functions, String>> = OnceLock::new();
        let found = FOUND.get_or_init(|| Self::find().and_then(Self::started));
        found.as_ref().map_err(Clone::clone)
    }

    fn started(self) -> Result<Self, String> {
        let mut version = 0;
        // SAFETY: the driver writes a number there.
        let told = unsafe { (self.version)(&raw mut version) };
        answer(told).map_err(|refusal| self.reason(refusal))?;
        if version < VERSION_MIN {
            let [found, needed] = [version, VERSION_MIN].map(dotted);
            return Err(format!("its driver is of CUDA {found}: install one of {needed} or later"));
        }
        // SAFETY: no flags are defined; it may be called again.
        answer(unsafe { (self.init)(0) }).map_err(|refusal| self.reason(refusal))?;
        Ok(self)
    }

    /// What an answer means, in the driver's words.
    pub(crate) fn reason(&self, Refusal(code): Refusal) -> String {
        let text = |lookup: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut text = ptr::null();
            // SAFETY: the driver writes a pointer to a constant string, or null, there.
            let found = unsafe { lookup(code, &raw mut text) };
            if found != SUCCESS || text.is_null() {
                return None;
            }
            // SAFETY: the driver's string ends with a zero and is never freed.
            Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        match (text(self.error_name), text(self.error_string)) {
            (Some(name), Some(words)) => format!("{words} ({name})"),
            _ => format!("the driver answered {code}"),
        }
    }
}

fn lacks(symbol: &[u8]) -> String {
    let name = String::from_utf8_lossy(symbol);
    let needed = dotted(VERSION_MIN);
    let name = name.trim_end_matches('\0');
    format!("its driver lacks {name}: install one of CUDA {needed} or later")
}

/// A version as people write it.
pub(crate) fn dotted(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}
