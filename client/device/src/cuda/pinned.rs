//! The segments that the driver has pinned: each once per process, however many devices use it.
//!
//! A registration is portable: it is good in the contexts of all devices, and a second one of the
//! same memory is refused. So they are counted, by where the mapping begins, which is the same only
//! for the same [`SegmentMap`]. The context that registered ends the registration, with the last.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys;
use forebay_shm::SegmentMap;

use crate::cuda::context::{Context, Entered, Handle};
use crate::cuda::driver::answer;
use crate::seam::{MemoryPath, Registration};

static PINNED: Mutex<BTreeMap<usize, Pinned>> = Mutex::new(BTreeMap::new());

/// A mapping that is registered.
#[derive(Debug)]
struct Pinned {
    start: Handle<c_void>,
    users: usize,
    path: MemoryPath,
    context: Arc<Context>,
}

fn pinned() -> MutexGuard<'static, BTreeMap<usize, Pinned>> {
    PINNED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Registers a segment the way that `path` says, if the driver takes it.
pub(crate) fn register(
    context: &Arc<Context>,
    segment: &Arc<SegmentMap>,
    path: &MemoryPath,
    _: &Entered<'_>,
) -> Registration {
    let flags = match path {
        MemoryPath::RegisteredReadOnly => {
            sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_READ_ONLY
        }
        MemoryPath::Registered => sys::CU_MEMHOSTREGISTER_PORTABLE,
        MemoryPath::Staged { .. } | MemoryPath::Cpu => {
            return Registration::of(segment, path.clone());
        }
    };
    let start = Handle(segment.as_ptr().cast_mut().cast::<c_void>());
    let key = start.0.addr();
    let mut pinned = pinned();
    if let Some(known) = pinned.get_mut(&key) {
        known.users += 1;
        return Registration::with_release(segment, known.path.clone(), move || release(key));
    }
    // SAFETY: the range is one whole mapping, which the registration keeps mapped until after
    // `release`. The driver pins its pages; only copies to the device are made from it.
    let taken = unsafe { (context.driver.memory_register)(start.0, segment.bytes(), flags) };
    if let Err(refusal) = answer(taken) {
        let why = format!("the driver does not register it: {}", context.driver.reason(refusal));
        return Registration::of(segment, MemoryPath::Staged { why });
    }
    let (path, context) = (path.clone(), Arc::clone(context));
    pinned.insert(key, Pinned { start, users: 1, path: path.clone(), context });
    Registration::with_release(segment, path, move || release(key))
}

/// Ends the use of a mapping by one registration.
fn release(key: usize) {
    let mut pinned = pinned();
    let Some(known) = pinned.get_mut(&key) else { return };
    known.users -= 1;
    if known.users > 0 {
        return;
    }
    let Some(Pinned { start, context, .. }) = pinned.remove(&key) else { return };
    let Ok(_entered) = context.enter() else { return };
    // SAFETY: registered by `register` and, as the count says, not unregistered since. Every copy
    // out of it held a registration, so no engine reads it any more.
    unsafe { (context.driver.memory_unregister)(start.0) };
}
