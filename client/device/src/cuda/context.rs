//! The device's primary context, and what lives in it: events, memory of the host.
//!
//! A context is current on a thread; every call of the driver needs the right one there. A thread
//! of a training framework has its own, so it is put back: [`Context::enter`] gives a guard.
//! Whatever was made in the context holds an `Arc` of it, so that the context is released last.

use std::ffi::{c_char, c_int, c_uint};
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys;

use crate::cuda::driver::{Functions, Refusal, answer};
use crate::error::DeviceError;
use crate::spec::DeviceSpec;

/// A handle of the driver.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Handle<T>(pub(crate) *mut T);

// SAFETY: the driver's handles belong to a context, not to a thread, and the driver synchronises
// calls with them.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: as for Send.
unsafe impl<T> Sync for Handle<T> {}

/// The primary context of a device, retained until this is dropped.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) driver: &'static Functions,
    pub(crate) spec: DeviceSpec,
    device: sys::CUdevice,
    raw: Handle<sys::CUctx_st>,
}

impl Context {
    pub(crate) fn retain(ordinal: u32) -> Result<Arc<Self>, DeviceError> {
        let spec = DeviceSpec::Cuda { ordinal };
        let unavailable =
            |reason: String| DeviceError::Unavailable { device: spec.to_string(), reason };
        let driver = Functions::get().map_err(unavailable)?;
        let refused = |refusal| unavailable(driver.reason(refusal));
        let mut count = 0;
        // SAFETY: the driver writes a number there.
        answer(unsafe { (driver.device_count)(&raw mut count) }).map_err(refused)?;
        let index = c_int::try_from(ordinal).ok().filter(|index| *index < count);
        let index = index.ok_or_else(|| {
            let last = count - 1;
            unavailable(match count {
                0 => "the driver sees no device".to_owned(),
                _ => format!("the driver sees {count} devices, numbered 0 to {last}"),
            })
        })?;
        let mut device = 0;
        // SAFETY: the driver writes its number of the device there.
        answer(unsafe { (driver.device)(&raw mut device, index) }).map_err(refused)?;
        let mut raw = ptr::null_mut();
        // SAFETY: the driver writes a handle there; `Drop` gives it back.
        let retained = unsafe { (driver.context_retain)(&raw mut raw, device) };
        answer(retained).map_err(refused)?;
        Ok(Arc::new(Self { driver, spec, device, raw: Handle(raw) }))
    }

    /// Makes the context current on this thread until the guard is dropped.
    pub(crate) fn enter(&self) -> Result<Entered<'_>, DeviceError> {
        let mut before = ptr::null_mut();
        // SAFETY: the driver writes a handle, or null, there.
        let found = unsafe { (self.driver.context_current)(&raw mut before) };
        self.check("cuCtxGetCurrent", found)?;
        if before != self.raw.0 {
            // SAFETY: the context is retained for as long as this value lives.
            let set = unsafe { (self.driver.context_set)(self.raw.0) };
            self.check("cuCtxSetCurrent", set)?;
        }
        Ok(Entered { context: self, before, thread: PhantomData })
    }

    /// The answer of a call that is no copy.
    pub(crate) fn check(&self, call: &'static str, code: c_int) -> Result<(), DeviceError> {
        answer(code).map_err(|refusal| DeviceError::Driver {
            device: self.spec.to_string(),
            call,
            reason: self.driver.reason(refusal),
        })
    }

    /// The answer of a call that copies, or that tells of a copy.
    pub(crate) fn copied(&self, bytes: u64, code: c_int) -> Result<(), DeviceError> {
        answer(code).map_err(|refusal| DeviceError::CopyFailed {
            device: self.spec.to_string(),
            bytes,
            reason: self.driver.reason(refusal),
        })
    }

    /// The answer of a call that allocates.
    pub(crate) fn given(
        &self,
        call: &'static str,
        bytes: u64,
        code: c_int,
    ) -> Result<(), DeviceError> {
        if code != crate::cuda::driver::OUT_OF_MEMORY {
            return self.check(call, code);
        }
        let (device, reason) = (self.spec.to_string(), self.driver.reason(Refusal(code)));
        Err(DeviceError::OutOfMemory { device, bytes, reason })
    }

    /// What the driver says of the device in a number; none if it does not.
    pub(crate) fn attribute(&self, which: sys::CUdevice_attribute) -> Option<c_int> {
        let mut value = 0;
        // SAFETY: the driver writes a number there.
        let told =
            unsafe { (self.driver.device_attribute)(&raw mut value, which as c_uint, self.device) };
        answer(told).ok().map(|()| value)
    }

    /// The name of the device.
    pub(crate) fn name(&self) -> Option<String> {
        self.text(self.driver.device_name)
    }

    /// The PCI address of the device.
    pub(crate) fn pci(&self) -> Option<String> {
        self.text(self.driver.device_pci)
    }

    fn text(
        &self,
        lookup: unsafe extern "C" fn(*mut c_char, c_int, sys::CUdevice) -> c_int,
    ) -> Option<String> {
        let mut text = [0_u8; 256];
        // SAFETY: the driver writes at most so many bytes there.
        let told = unsafe { lookup(text.as_mut_ptr().cast(), 256, self.device) };
        answer(told).ok()?;
        let end = text.iter().position(|&byte| byte == 0)?;
        Some(String::from_utf8_lossy(&text[..end]).into_owned())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, and everything that was made in it held this value and is gone.
        unsafe { (self.driver.context_release)(self.device) };
    }
}

/// Puts back what was current before.
#[derive(Debug)]
#[must_use = "the context is current for as long as the guard lives"]
pub(crate) struct Entered<'a> {
    context: &'a Context,
    before: sys::CUcontext,
    /// The guard belongs to the thread that it was made on.
    thread: PhantomData<*const ()>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let _: PhantomData<*const ()> = self.thread;
        if self.before != self.context.raw.0 {
            // SAFETY: it was current on this thread when the guard was made, and whoever made it so
            // keeps it for as long as it calls this crate.
            unsafe { (self.context.driver.context_set)(self.before) };
        }
    }
}

/// A point in the work of a stream, with its time.
#[derive(Debug)]
pub(crate) struct Event {
    context: Arc<Context>,
    raw: Handle<sys::CUevent_st>,
}

impl Event {
    /// An event that nothing has recorded. The context is current.
    pub(crate) fn new(context: &Arc<Context>, _: &Entered<'_>) -> Result<Self, DeviceError> {
        let mut raw = ptr::null_mut();
        let flags = sys::CUevent_flags_enum::CU_EVENT_BLOCKING_SYNC as c_uint;
        // SAFETY: the driver writes a handle there; `Drop` gives it back.
        let made = unsafe { (context.driver.event_create)(&raw mut raw, flags) };
        context.check("cuEventCreate", made)?;
        Ok(Self { context: Arc::clone(context), raw: Handle(raw) })
    }

    /// Puts it behind the work that the stream has.
    pub(crate) fn record(
        &self,
        stream: Handle<sys::CUstream_st>,
        _: &Entered<'_>,
    ) -> Result<(), DeviceError> {
        // SAFETY: both handles are live: the event's by this value, the stream's by who owns it.
        let recorded = unsafe { (self.context.driver.event_record)(self.raw.0, stream.0) };
        self.context.check("cuEventRecord", recorded)
    }

    /// Waits until the stream has reached it; the driver's answer.
    pub(crate) fn wait(&self, _: &Entered<'_>) -> c_int {
        // SAFETY: the handle is live by this value.
        unsafe { (self.context.driver.event_wait)(self.raw.0) }
    }

    /// Whether the stream has reached it; the driver's answer.
    pub(crate) fn query(&self, _: &Entered<'_>) -> c_int {
        // SAFETY: the handle is live by this value.
        unsafe { (self.context.driver.event_query)(self.raw.0) }
    }

    /// Milliseconds from another event to this one; both have been reached.
    pub(crate) fn since(&self, earlier: &Self, _: &Entered<'_>) -> Result<f32, DeviceError> {
        let mut milliseconds = 0.0;
        let (from, to) = (earlier.raw.0, self.raw.0);
        // SAFETY: both handles are live; the driver writes a number there.
        let told = unsafe { (self.context.driver.event_elapsed)(&raw mut milliseconds, from, to) };
        self.context.check("cuEventElapsedTime", told)?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let Ok(_entered) = self.context.enter() else { return };
        // SAFETY: made by `new`, destroyed nowhere else; nothing refers to it any more.
        unsafe { (self.context.driver.event_destroy)(self.raw.0) };
    }
}
