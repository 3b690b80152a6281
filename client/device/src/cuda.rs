//! NVIDIA devices, by the driver alone: its library is loaded at run time.
//!
//! [`CudaDevice::open`] looks for the library and every function that is used before it calls any,
//! so that a machine without a driver gets an error that says so. It then tries, with a small
//! segment of its own, how the driver takes memory that this process can only read: registered as
//! read-only, registered plainly, or not at all. In the last case, and for a segment that the
//! driver refuses later, copies go by a [staging ring](staging) of pinned memory.
//!
//! Everything lives in the device's primary context, the one that the CUDA runtime, and with it
//! every framework, uses: pointers and streams of the caller are good here. Ownership goes one way:
//! a stream holds the device, the device its base event, and each of them the [context](context).

pub(crate) mod context;
pub(crate) mod driver;
pub(crate) mod pinned;
pub(crate) mod staging;
pub(crate) mod stream;

use std::ffi::c_uint;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cudarc::driver::sys;
use forebay_shm::{Segment, SegmentId, SegmentMap, SegmentSpec};

use crate::cuda::context::{Context, Entered, Event, Handle};
use crate::cuda::driver::{Functions, answer, dotted};
use crate::cuda::stream::CudaStream;
use crate::error::DeviceError;
use crate::seam::{CopyStream, Device, DeviceInfo, DeviceMemory, MemoryPath, Registration};

/// After this long a new base event is made. The driver counts time from it in a float of
/// milliseconds: at ten seconds that is good to a microsecond.
const BASE_AGE_MAX: Duration = Duration::from_secs(10);

/// The widest pitch of a copy of rows, if the driver does not say.
const PITCH_DEFAULT: usize = 1 << 18;

/// The driver of NVIDIA devices that this process can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CudaDriver {
    /// The version of CUDA that it is of, as `12.4`.
    pub version: String,
    /// Devices that it shows to this process.
    pub devices: u32,
}

/// Looks for the driver and starts it, as opening a device does; or says why there is none that can
/// be used. Looks once per process.
#[expect(unsafe_code, reason = "two questions to the driver")]
pub fn cuda_driver() -> Result<CudaDriver, String> {
    let driver = Functions::get()?;
    let (mut version, mut devices) = (0, 0);
    // SAFETY: the driver, which has been started, writes a number there.
    answer(unsafe { (driver.version)(&raw mut version) }).map_err(|no| driver.reason(no))?;
    // SAFETY: as above.
    answer(unsafe { (driver.device_count)(&raw mut devices) }).map_err(|no| driver.reason(no))?;
    Ok(CudaDriver { version: dotted(version), devices: devices.try_into().unwrap_or_default() })
}

/// A CUDA device.
#[derive(Debug)]
pub struct CudaDevice {
    info: DeviceInfo,
    opened: Arc<Opened>,
}

/// What the streams of a device share.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) context: Arc<Context>,
    pub(crate) pitch_max: usize,
    base: Mutex<Option<Arc<Base>>>,
    /// Has no copies, so that an event in it is reached at once.
    clock: Handle<sys::CUstream_st>,
}

/// An event whose time is known by both clocks.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) event: Event,
    pub(crate) at: Instant,
}

impl CudaDevice {
    /// The device with this number, as the driver counts.
    pub fn open(ordinal: u32) -> Result<Self, DeviceError> {
        let context = Context::retain(ordinal)?;
        let entered = context.enter()?;
        let (name, pci) = (context.name(), context.pci());
        let pitch = context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_PITCH);
        let pitch = pitch.and_then(|pitch| usize::try_from(pitch).ok());
        let pitch_max = pitch.filter(|pitch| *pitch > 0).unwrap_or(PITCH_DEFAULT);
        let path = probed(&context);
        let clock = new_stream(&context, &entered)?;
        drop(entered);
        let spec = context.spec;
        let opened = Arc::new(Opened { context, pitch_max, base: Mutex::default(), clock });
        let name = name.unwrap_or_else(|| "a CUDA device".to_owned());
        Ok(Self { info: DeviceInfo { spec, name, pci, path }, opened })
    }

    /// Copies on a stream of the caller's own, in order with what else is on it. It is not
    /// destroyed when the result is dropped, only waited for.
    ///
    /// # Safety
    ///
    /// `raw` is a `CUstream` (or a `cudaStream_t`) of this device's primary context, or 0 for its
    /// default stream, and stays one until the result is dropped.
    #[expect(unsafe_code, reason = "the caller vouches for a handle that this crate did not make")]
    pub unsafe fn adopt_stream(&self, raw: u64) -> Result<Box<dyn CopyStream>, DeviceError> {
        let raw = usize::try_from(raw).map_err(|_| DeviceError::Driver {
            device: self.info.spec.to_string(),
            call: "adopt_stream",
            reason: "the handle is no address of this process".to_owned(),
        })?;
        let raw = Handle(ptr::with_exposed_provenance_mut(raw));
        Ok(Box::new(CudaStream::adopted(&self.opened, raw)))
    }
}

impl Device for CudaDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn register(&self, segment: &Arc<SegmentMap>) -> Result<Registration, DeviceError> {
        let entered = self.opened.context.enter()?;
        Ok(pinned::register(&self.opened.context, segment, &self.info.path, &entered))
    }

    fn allocate(&self, bytes: u64) -> Result<DeviceMemory, DeviceError> {
        let context = &self.opened.context;
        let _entered = context.enter()?;
        let spec = context.spec;
        let size = usize::try_from(bytes.max(1)).map_err(|_| DeviceError::OutOfMemory {
            device: spec.to_string(),
            bytes,
            reason: "addresses are shorter".to_owned(),
        })?;
        let mut address = 0;
        // SAFETY: the driver writes an address there; the result gives the memory back.
        let made = unsafe { (context.driver.memory_alloc)(&raw mut address, size) };
        context.given("cuMemAlloc", bytes, made)?;
        let context = Arc::clone(context);
        let free = move || {
            let Ok(_entered) = context.enter() else { return };
            // SAFETY: allocated above; `DeviceMemory` calls this once, when no copy holds it.
            unsafe { (context.driver.memory_free)(address) };
        };
        Ok(DeviceMemory::allocated(spec, address, bytes, free))
    }

    fn stream(&self) -> Result<Box<dyn CopyStream>, DeviceError> {
        Ok(Box::new(CudaStream::new(&self.opened)?))
    }
}

impl Opened {
    /// A new stream, which does not wait for the default stream of others.
    pub(crate) fn new_stream(
        &self,
        entered: &Entered<'_>,
    ) -> Result<Handle<sys::CUstream_st>, DeviceError> {
        new_stream(&self.context, entered)
    }

    /// What the times of copies are counted from.
    pub(crate) fn base(
        &self,
        now: Instant,
        entered: &Entered<'_>,
    ) -> Result<Arc<Base>, DeviceError> {
        let mut base = self.base.lock().unwrap_or_else(PoisonError::into_inner);
        let young = |base: &&Arc<Base>| now.saturating_duration_since(base.at) < BASE_AGE_MAX;
        if let Some(base) = base.as_ref().filter(young) {
            return Ok(Arc::clone(base));
        }
        let event = Event::new(&self.context, entered)?;
        let before = crate::clock::now();
        event.record(self.clock, entered)?;
        self.context.check("cuEventSynchronize", event.wait(entered))?;
        let passed = crate::clock::now().saturating_duration_since(before);
        // It was reached at some time in between.
        let made = Arc::new(Base { event, at: before + passed / 2 });
        *base = Some(Arc::clone(&made));
        Ok(made)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let Ok(_entered) = self.context.enter() else { return };
        // SAFETY: made by `open`, destroyed nowhere else; each event in it was waited for.
        unsafe { (self.context.driver.stream_destroy)(self.clock.0) };
    }
}

fn new_stream(context: &Context, _: &Entered<'_>) -> Result<Handle<sys::CUstream_st>, DeviceError> {
    let mut raw = ptr::null_mut();
    let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as c_uint;
    // SAFETY: the driver writes a handle there; its owner destroys it.
    let made = unsafe { (context.driver.stream_create)(&raw mut raw, flags) };
    context.check("cuStreamCreate", made)?;
    Ok(Handle(raw))
}

/// How this driver takes memory that can only be read, found out with a segment of our own.
fn probed(context: &Arc<Context>) -> MemoryPath {
    let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED;
    let read_only = context.attribute(attribute) == Some(1);
    let wanted = if read_only { MemoryPath::RegisteredReadOnly } else { MemoryPath::Registered };
    let staged = |why: String| MemoryPath::Staged { why };
    let Ok(entered) = context.enter() else {
        return staged("the device's context cannot be made current".to_owned());
    };
    match tried_segment() {
        Ok(segment) => pinned::register(context, &segment, &wanted, &entered).path().clone(),
        Err(why) => staged(format!("no segment could be made to try with: {why}")),
    }
}

/// A small segment, mapped as those of the daemon are.
fn tried_segment() -> Result<Arc<SegmentMap>, String> {
    // A multiple of every page size.
    let slot_bytes = 64 << 10;
    let spec = SegmentSpec { id: SegmentId(0), domain: 0, slot_bytes, slots: 1, lock: false };
    let segment = Segment::create(&spec).map_err(|error| error.to_string())?;
    let descriptor = segment.descriptor().try_clone_to_owned();
    let descriptor = descriptor.map_err(|error| error.to_string())?;
    SegmentMap::open(descriptor).map_err(|error| error.to_string())
}
