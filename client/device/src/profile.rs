//! Names stretches of time for GPU profilers: NVTX ranges, which Nsight Systems shows beside the
//! copies of the copy engine.
//!
//! Only with the feature `nvtx`, and only where NVIDIA's `libnvToolsExt` can be loaded, which is
//! looked for once per process. Otherwise a range is nothing: it has no size and runs no code. Ranges
//! may overlap and may end on another thread than they began on.

use std::ffi::CStr;

/// A named stretch of time, until it is dropped.
#[derive(Debug)]
#[must_use = "the range ends when it is dropped"]
pub struct ProfileRange {
    #[cfg(feature = "nvtx")]
    _running: Option<library::Running>,
}

impl ProfileRange {
    /// Begins a range.
    #[cfg_attr(not(feature = "nvtx"), expect(unused_variables, reason = "there are no ranges"))]
    pub fn begin(name: &'static CStr) -> Self {
        Self {
            #[cfg(feature = "nvtx")]
            _running: library::Running::begin(name),
        }
    }
}

#[cfg(feature = "nvtx")]
mod library {
    //! The two functions that are used of the library.

    use std::ffi::{CStr, c_char};
    use std::sync::OnceLock;

    use cudarc::nvtx::sys;

    type Start = unsafe extern "C" fn(*const c_char) -> u64;
    type End = unsafe extern "C" fn(u64);

    #[derive(Debug, Clone, Copy)]
    struct Functions {
        start: Start,
        end: End,
    }

    impl Functions {
        fn find() -> Option<Self> {
            // SAFETY: loading the library runs its initialisers, which every program that uses it
            // runs.
            if !unsafe { sys::is_culib_present() } {
                return None;
            }
            // SAFETY: as above; it is present, so this does not panic.
            let library = unsafe { sys::culib() };
            // SAFETY: the type is that of the function in NVTX's public header.
            let start = unsafe { library.get::<Start>(b"nvtxRangeStartA\0") };
            // SAFETY: as above.
            let end = unsafe { library.get::<End>(b"nvtxRangeEnd\0") };
            Some(Self { start: *start.ok()?, end: *end.ok()? })
        }

        fn get() -> Option<Self> {
            static FUNCTIONS: OnceLock<Option<Functions>> = OnceLock::new();
            *FUNCTIONS.get_or_init(Self::find)
        }
    }

    /// A range that began.
    #[derive(Debug)]
    pub(super) struct Running {
        id: u64,
        end: End,
    }

    impl Running {
        pub(super) fn begin(name: &'static CStr) -> Option<Self> {
            let Functions { start, end } = Functions::get()?;
            // SAFETY: the name is a C string, which the call only reads.
            let id = unsafe { start(name.as_ptr()) };
            Some(Self { id, end })
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            // SAFETY: the id is of a range that this value alone ends, once.
            unsafe { (self.end)(self.id) };
        }
    }
}
