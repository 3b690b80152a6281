//! Loads: opened, read, copied to a device, ended.
//!
//! A load is behind a lock that no call waits for: a second thread gets `FB_BUSY`. What it lends is
//! counted, so that `fb_load_finish` can refuse to wait for what the caller itself holds.

use std::ffi::{CString, c_char, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use forebay_client::blocking::{Client, Load};
use forebay_client::model::Report;
use forebay_client::{Device, DeviceReport, Layout, Target, json};

use crate::client::FbClient;
use crate::device::{OpenDevice, memory_at};
use crate::entry::enter;
use crate::handles;
use crate::lent::{Announced, Bytes, Description, FbTensor, Lent};
use crate::memory::{c_text, check, give_text, list, put, take, tell, text};
use crate::options::{FbLoadInfo, FbLoadOptions, FbReport, FbTarget, FbTensorInfo};
use crate::status::{FB_BUSY, FB_CANCELLED, FB_END, FB_FAILED_PRECONDITION, FB_OK, Fault};

/// A running load.
#[derive(Debug)]
pub struct FbLoad(());

/// What `fb_load_all` calls for each tensor. 0: go on; anything else: end the load. It must return:
/// no exception, no `longjmp`. What it is given is valid until it returns.
pub type FbTensorCallback =
    Option<unsafe extern "C" fn(context: *mut c_void, tensor: *const FbTensorInfo) -> i32>;

/// How a load went, and its copies if they were made in one call.
#[derive(Debug)]
struct Outcome {
    report: Report,
    device: Option<DeviceReport>,
}

impl Outcome {
    fn json(&self) -> String {
        let mut object = json::report(&self.report);
        if let Some(device) = &self.device {
            object["device"] = json::device(device);
        }
        object.to_string()
    }
}

#[derive(Debug)]
enum State {
    Running(Box<Load>),
    Finished(Box<Outcome>),
    /// It could not be finished.
    Failed,
}

/// What the handle of a load stands for.
#[derive(Debug)]
struct OpenLoad {
    state: Mutex<State>,
    /// Tensors and objects that are not released.
    lent: Arc<AtomicUsize>,
    device: Option<Arc<dyn Device>>,
    /// What will be brought, as tensors and as objects.
    tensors: Vec<Announced>,
    objects: Vec<Announced>,
    load_id: CString,
    uri: CString,
    revision: CString,
    numbers: [u64; 5],
}

impl OpenLoad {
    fn new(load: Load, device: Option<Arc<dyn Device>>) -> Result<Self, Fault> {
        let opened = load.opened();
        Ok(Self {
            lent: Arc::default(),
            device,
            tensors: announced_tensors(&load)?,
            objects: announced_objects(&load),
            load_id: c_text(&opened.load_id),
            uri: c_text(&opened.uri),
            revision: c_text(opened.revision.as_str()),
            numbers: [
                opened.object_count,
                opened.tensor_count,
                opened.checkpoint_bytes,
                opened.granted_bytes,
                opened.window_bytes,
            ],
            state: Mutex::new(State::Running(Box::new(load))),
        })
    }

    fn lock(&self) -> Result<MutexGuard<'_, State>, Fault> {
        match self.state.try_lock() {
            Ok(state) => Ok(state),
            Err(TryLockError::WouldBlock) => {
                Err(Fault::new(FB_BUSY, "another thread is inside of this load"))
            }
            Err(TryLockError::Poisoned(_)) => Err(ended("an earlier call of it was a bug")),
        }
    }

    fn next(&self, read: impl FnOnce(&mut Load) -> Result<Option<Bytes>, Fault>) -> Answer {
        let mut state = self.lock()?;
        let State::Running(load) = &mut *state else { return Err(ended("it is finished")) };
        let lent = |bytes| Lent::new(bytes, self.device.clone(), Arc::clone(&self.lent));
        Ok(read(load)?.map(lent))
    }

    fn finish(&self) -> Result<FbReport, Fault> {
        self.end(|load| Ok(Outcome { report: load.finish()?, device: None }))
    }

    fn to_device(&self, targets: Vec<Target>) -> Result<FbReport, Fault> {
        self.end(|load| {
            let resident = load.to_device(Layout::Into(targets))?.finish()?;
            Ok(Outcome { report: resident.report, device: Some(resident.device) })
        })
    }

    /// Ends the load by `last`.
    fn end(&self, last: impl FnOnce(Load) -> Result<Outcome, Fault>) -> Result<FbReport, Fault> {
        let mut state = self.lock()?;
        let lent = self.lent.load(Ordering::Acquire);
        if lent > 0 {
            let message = format!("{lent} tensors of this load are not released");
            return Err(Fault::new(FB_BUSY, message));
        }
        let load = match std::mem::replace(&mut *state, State::Failed) {
            State::Running(load) => load,
            other => {
                *state = other;
                return Err(ended("it is finished"));
            }
        };
        let outcome = last(*load)?;
        let figures = told(&outcome.report);
        *state = State::Finished(Box::new(outcome));
        Ok(figures)
    }
}

/// The tensors, or slices of them, that a load will bring.
fn announced_tensors(load: &Load) -> Result<Vec<Announced>, Fault> {
    let tensors = load.selected_tensors()?.into_iter();
    let announced = tensors.map(|(tensor, slice)| {
        let object = load.manifest().object(tensor.object).map_or("", |object| &object.key);
        let bytes = slice.bytes();
        let description = Description::new(&tensor.name, &tensor.dtype, object, slice.shape);
        Announced { description, bytes }
    });
    Ok(announced.collect())
}

fn announced_objects(load: &Load) -> Vec<Announced> {
    let announced = |key: &str, bytes| {
        let description = Description::of_object(key, bytes);
        Announced { description, bytes }
    };
    load.selected_objects().map(|(_, object)| announced(&object.key, object.bytes)).collect()
}

type Answer = Result<Option<Lent>, Fault>;

fn ended(why: &str) -> Fault {
    Fault::new(FB_FAILED_PRECONDITION, format!("this load can give nothing more: {why}"))
}

/// The main figures of a report.
pub(crate) fn told(report: &Report) -> FbReport {
    FbReport {
        size: 0,
        bytes: report.bytes,
        ram_bytes: report.bytes_by_tier.ram,
        nvme_bytes: report.bytes_by_tier.nvme,
        origin_tier_bytes: report.bytes_by_tier.origin,
        origin_bytes: report.origin_bytes,
        wasted_bytes: report.wasted_bytes,
        attempts: report.attempts,
        retries: report.retries,
        peak_window_bytes: report.peak_window_bytes,
        wall_seconds: report.wall.as_secs_f64(),
        time_to_first_chunk_seconds: report.time_to_first_chunk.as_secs_f64(),
    }
}

/// Starts a load.
///
/// # Safety
///
/// `options` is NULL or a struct whose fields are as they say.
unsafe fn open(client: *mut FbClient, options: *const FbLoadOptions) -> Result<OpenLoad, Fault> {
    let own = handles::find::<Client, _>(client)?;
    // SAFETY: as this function's own contract.
    let options = unsafe { take(options) }?;
    // SAFETY: as this function's own contract.
    let request = unsafe { options.request() }?;
    if options.device.is_null() {
        return OpenLoad::new(own.load(request)?, None);
    }
    let device = OpenDevice::of(options.device, client)?;
    OpenLoad::new(device.client.load(request)?, Some(Arc::clone(&device.device)))
}

/// Starts a load and sets `*load`. Returns when it is known what the checkpoint consists of; bytes
/// come with `fb_load_next_tensor` or `fb_load_next_object`.
///
/// Ownership: the caller closes the load with `fb_load_close`, finished or not.
/// Threads: any, also several at once on one client; each gets a load of its own.
/// Errors: all but `FB_CANCELLED` and `FB_BUSY`. Then `*load` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_load_open(
    client: *mut FbClient,
    options: *const FbLoadOptions,
    load: *mut *mut FbLoad,
) -> i32 {
    enter(client, || {
        // SAFETY: NULL or the caller's variable.
        unsafe { put(load, std::ptr::null_mut(), "load") }?;
        // SAFETY: NULL or the caller's struct.
        let opened = unsafe { open(client, options) }?;
        // SAFETY: as above.
        unsafe { put(load, handles::insert(opened), "load") }?;
        Ok(FB_OK)
    })
}

/// Says what a load is of.
///
/// Threads: any, also while another is inside of the load.
/// Errors: `FB_BAD_HANDLE`, `FB_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_load_get_info(load: *const FbLoad, info: *mut FbLoadInfo) -> i32 {
    enter(load, || {
        let load = handles::find::<OpenLoad, _>(load)?;
        let [object_count, tensor_count, checkpoint_bytes, granted_bytes, window_bytes] =
            load.numbers;
        let answer = FbLoadInfo {
            size: 0,
            load_id: load.load_id.as_ptr(),
            uri: load.uri.as_ptr(),
            revision: load.revision.as_ptr(),
            object_count,
            tensor_count,
            checkpoint_bytes,
            granted_bytes,
            window_bytes,
        };
        // SAFETY: NULL or the caller's struct.
        unsafe { tell(info, &answer) }?;
        Ok(FB_OK)
    })
}

/// Describes tensor `index`, from 0 on, of those that the load will bring, in the order of the
/// checkpoint: of a load of slices the slice, with its shape and size. `FB_END` behind the last.
/// The texts and the shape live until the load is closed; `data` is NULL.
///
/// Threads: any, also while another is inside of the load.
/// Errors: `FB_BAD_HANDLE`, `FB_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_load_describe_tensor(
    load: *const FbLoad,
    index: u64,
    info: *mut FbTensorInfo,
) -> i32 {
    // SAFETY: as this function's own contract.
    unsafe { describe(load, index, info, |load| &load.tensors) }
}

/// Describes object (file) `index`, from 0 on, of those that the load selects, of which it may
/// bring only some bytes. `FB_END` behind the last. Otherwise as `fb_load_describe_tensor`.
///
/// Threads: any, also while another is inside of the load.
/// Errors: `FB_BAD_HANDLE`, `FB_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_load_describe_object(
    load: *const FbLoad,
    index: u64,
    info: *mut FbTensorInfo,
) -> i32 {
    // SAFETY: as this function's own contract.
    unsafe { describe(load, index, info, |load| &load.objects) }
}

/// Tells one of what `which` gives.
///
/// # Safety
///
/// `info` is NULL or a struct that begins with its size.
unsafe fn describe(
    load: *const FbLoad,
    index: u64,
    info: *mut FbTensorInfo,
    which: impl FnOnce(&OpenLoad) -> &[Announced],
) -> i32 {
    enter(load, || {
        let load = handles::find::<OpenLoad, _>(load)?;
        // SAFETY: as this function's own contract.
        unsafe { check(info) }?;
        let index = usize::try_from(index).ok();
        let Some(announced) = index.and_then(|index| which(&load).get(index)) else {
            return Ok(FB_END);
        };
        // SAFETY: as this function's own contract.
        unsafe { tell(info, &announced.info()) }?;
        Ok(FB_OK)
    })
}

/// Waits for the next tensor that was asked for, in the order in which they become readable, and
/// sets `*tensor`; `FB_END` when all have come. A load is read by tensors or by objects, not by
/// both.
///
/// Ownership: the caller releases the tensor with `fb_tensor_release`. Release early: a load that
/// has lent its window (see `fb_load_info`) waits for releases.
/// Threads: any, one at a time per load; a second one gets `FB_BUSY`.
/// Errors: all but `FB_CANCELLED`. Then, and with `FB_END`, `*tensor` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_load_next_tensor(load: *mut FbLoad, tensor: *mut *mut FbTensor) -> i32 {
    // SAFETY: as this function's own contract.
    unsafe { next(load, tensor, |load| Ok(load.next_tensor()?.map(Bytes::Tensor))) }
}

/// Waits for the next object (file) that was asked for, whole, and sets `*object`; `FB_END` when
/// all have come. Its info is that of a tensor of type `U8` with one dimension.
///
/// Ownership, threads, errors: as for `fb_load_next_tensor`. A load of some tensors has no
/// whole objects: `FB_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_load_next_object(load: *mut FbLoad, object: *mut *mut FbTensor) -> i32 {
    // SAFETY: as this function's own contract.
    unsafe { next(load, object, |load| Ok(load.next_object()?.map(Bytes::Object))) }
}

/// Gives out what `read` brings.
///
/// # Safety
///
/// `place` is NULL or can be written.
unsafe fn next(
    load: *mut FbLoad,
    place: *mut *mut FbTensor,
    read: impl FnOnce(&mut Load) -> Result<Option<Bytes>, Fault>,
) -> i32 {
    enter(load, || {
        // SAFETY: as this function's own contract.
        unsafe { put(place, std::ptr::null_mut(), "tensor") }?;
        let load = handles::find::<OpenLoad, _>(load)?;
        let Some(lent) = load.next(read)? else { return Ok(FB_END) };
        // SAFETY: as this function's own contract.
        unsafe { put(place, handles::insert(lent), "tensor") }?;
        Ok(FB_OK)
    })
}

/// Copies what `targets` names to where it says, waits until all of it is there, and ends the load:
/// the plain way to a device, without streams. For a load opened with a device of which nothing was
/// read. With `ranks`, a tensor's target gets the rank's slice. What no target names is not copied.
/// Sizes are those of `fb_load_describe_tensor`, and of `fb_load_describe_object` for a whole
/// object, which only a load of all tensors has. `report` may be NULL. The load remains to be
/// closed, and gives `fb_load_report_json`.
///
/// Ownership: the memory stays the caller's. Until this returns it is used by nobody else.
/// Threads: any, one at a time per load; a second one gets `FB_BUSY`.
/// Errors: all but `FB_CANCELLED`. After one, nothing is under way, and the targets may be written
/// in part. After `FB_BUSY`, or if the pointers of this call were wrong, call again; after any
/// other the load can only be closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_load_to_device(
    load: *mut FbLoad,
    targets: *const FbTarget,
    target_count: usize,
    report: *mut FbReport,
) -> i32 {
    enter(load, || {
        let load = handles::find::<OpenLoad, _>(load)?;
        if !report.is_null() {
            // SAFETY: the caller's struct.
            unsafe { check(report) }?;
        }
        let device = load
            .device
            .as_deref()
            .ok_or_else(|| Fault::invalid("the load has no device: set fb_load_options.device"))?;
        // SAFETY: NULL or the caller's list.
        let targets = unsafe { list(targets, target_count, "targets") }?;
        // SAFETY: the caller fills the fields as they say, and keeps the memory to itself.
        let aimed = targets.iter().map(|target| unsafe { aim(device, target) });
        let figures = load.to_device(aimed.collect::<Result<_, _>>()?)?;
        if !report.is_null() {
            // SAFETY: the caller's struct.
            unsafe { tell(report, &figures) }?;
        }
        Ok(FB_OK)
    })
}

/// A target in the library's terms.
///
/// # Safety
///
/// The fields are as they say, and the memory is used by nobody else until it was written.
unsafe fn aim(device: &dyn Device, target: &FbTarget) -> Result<Target, Fault> {
    // SAFETY: as this function's own contract.
    let name = unsafe { text(target.name, "a target's name") }?.to_owned();
    // SAFETY: as this function's own contract.
    let memory = unsafe { memory_at(device, target.address, target.bytes) }?;
    Ok(Target { name, memory, offset: 0 })
}

/// Ends a load: takes what is still to come without looking at it, waits for the copies of its
/// tensors that are under way, and sets `*report`, which may be NULL. The load remains to be
/// closed, and gives `fb_load_report_json`.
///
/// Threads: any, one at a time per load; a second one gets `FB_BUSY`.
/// Errors: all but `FB_CANCELLED`. `FB_BUSY` if tensors of the load are not released: release them
/// and call again. After any other error the load can only be closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_load_finish(load: *mut FbLoad, report: *mut FbReport) -> i32 {
    enter(load, || {
        let load = handles::find::<OpenLoad, _>(load)?;
        if !report.is_null() {
            // SAFETY: the caller's struct.
            unsafe { check(report) }?;
        }
        let figures = load.finish()?;
        if !report.is_null() {
            // SAFETY: the caller's struct.
            unsafe { tell(report, &figures) }?;
        }
        Ok(FB_OK)
    })
}

/// Writes the whole report of a finished load as a JSON object, with a NUL and cut to `bytes`, to
/// `buffer`, which may be NULL. Returns the bytes that it needs, its NUL included; 0 if there is no
/// report, for the reason that `fb_last_error` gives.
///
/// Threads: any, one at a time per load.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_load_report_json(
    load: *const FbLoad,
    buffer: *mut c_char,
    bytes: usize,
) -> usize {
    let mut needed = 0;
    enter(load, || {
        let load = handles::find::<OpenLoad, _>(load)?;
        let state = load.lock()?;
        let State::Finished(outcome) = &*state else {
            return Err(Fault::new(FB_FAILED_PRECONDITION, "this load is not finished"));
        };
        // SAFETY: NULL or the caller's buffer.
        needed = unsafe { give_text(&outcome.json(), buffer, bytes) };
        Ok(FB_OK)
    });
    needed
}

/// Closes a load, and cancels it if it is not finished. Its tensors stay readable until they are
/// released. NULL is no error.
///
/// Threads: any. While another is inside of the load: `FB_BUSY`, and the load stays open.
/// Errors: `FB_BAD_HANDLE`, `FB_BUSY`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_load_close(load: *mut FbLoad) -> i32 {
    enter(load, || {
        if load.is_null() {
            return Ok(FB_OK);
        }
        let open = handles::find::<OpenLoad, _>(load)?;
        if let Err(TryLockError::WouldBlock) = open.state.try_lock() {
            return Err(Fault::new(FB_BUSY, "another thread is inside of this load"));
        }
        handles::remove::<OpenLoad, _>(load)?;
        Ok(FB_OK)
    })
}

/// Loads everything that was asked for in one call: `each` is called with every tensor as it
/// becomes readable, in the calling thread, and the tensor is released when it returns. `report`
/// may be NULL.
///
/// Threads: any, also several at once on one client. `SIGPIPE` is blocked while `each` runs.
/// Errors: all but `FB_BUSY`. `FB_CANCELLED` if `each` returned another number than 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_load_all(
    client: *mut FbClient,
    options: *const FbLoadOptions,
    each: FbTensorCallback,
    context: *mut c_void,
    report: *mut FbReport,
) -> i32 {
    enter(client, || {
        let each = each.ok_or_else(|| Fault::invalid("each is NULL"))?;
        if !report.is_null() {
            // SAFETY: the caller's struct.
            unsafe { check(report) }?;
        }
        // SAFETY: NULL or the caller's struct.
        let load = unsafe { open(client, options) }?;
        let read = |load: &mut Load| Ok(load.next_tensor()?.map(Bytes::Tensor));
        while let Some(lent) = load.next(read)? {
            // SAFETY: the caller's function of this type; the info outlives its call.
            let answer = unsafe { each(context, &lent.info()) };
            if answer != 0 {
                let message = format!("the callback returned {answer}");
                return Err(Fault::new(FB_CANCELLED, message));
            }
        }
        let figures = load.finish()?;
        if !report.is_null() {
            // SAFETY: the caller's struct.
            unsafe { tell(report, &figures) }?;
        }
        Ok(FB_OK)
    })
}
