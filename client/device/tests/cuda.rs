//! The CUDA device on the stand-in driver, which checks what it is asked for.
//!
//! Every test here runs itself again in a child process that loads the stand-in; see
//! [`forebay_testkit::CudaDriver`]. With the feature `cuda-tests` the contract also runs on the
//! machine's own driver and first GPU.

#![expect(clippy::unwrap_used, reason = "a test: what the driver refuses fails it")]
#![expect(clippy::print_stdout, reason = "says why a test was skipped")]

use std::ops::Range;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys;
use forebay_device::{
    CopyJob, CopySource, CopyStream, CudaDevice, Device, DeviceError, DeviceMemory, DeviceSpec,
    HostDevice, MemoryPath, Rows,
};
use forebay_shm::{Segment, SegmentId, SegmentMap, SegmentSpec, SlotIndex};
use forebay_testkit::contract::{DeviceSubject, device};
use forebay_testkit::{CudaDriver, is_child};

/// Runs `test` in a child and gives what the stand-in reported; none in the child itself, and where
/// there is no compiler.
fn reported(test: &str, script: &[(&str, &str)]) -> Option<Vec<String>> {
    if is_child() { None } else { reported_by(CudaDriver::compiled(), test, script) }
}

fn reported_by(
    driver: Result<CudaDriver, String>,
    test: &str,
    script: &[(&str, &str)],
) -> Option<Vec<String>> {
    match driver {
        Ok(driver) => {
            driver.run_again(test, script);
            Some(driver.report())
        }
        Err(why) => {
            println!("skipped {test}: {why}");
            None
        }
    }
}

/// The same, for a child that has to end without a violation.
fn is_clean_child(test: &str, script: &[(&str, &str)]) -> bool {
    if let Some(report) = reported(test, script) {
        assert_eq!(report, ["ok"], "{test}");
    }
    is_child()
}

/// The primary context of the first device, current on this thread.
struct Primary(sys::CUcontext);

impl Primary {
    fn enter() -> Self {
        let mut context = ptr::null_mut();
        // SAFETY: the driver was loaded by the device under test; it writes a handle there.
        let retained = unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, 0) };
        retained.result().unwrap();
        // SAFETY: retained above.
        unsafe { sys::cuCtxSetCurrent(context) }.result().unwrap();
        Self(context)
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        // SAFETY: this thread needs it no more.
        unsafe { sys::cuCtxSetCurrent(ptr::null_mut()) }.result().unwrap();
        assert!(!self.0.is_null());
        // SAFETY: retained once by `enter`.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(0) }.result().unwrap();
    }
}

fn read(memory: &DeviceMemory, range: Range<u64>) -> Vec<u8> {
    assert!(range.start <= range.end && range.end <= memory.bytes());
    let mut bytes = vec![0_u8; usize::try_from(range.end - range.start).unwrap()];
    if bytes.is_empty() {
        return bytes;
    }
    let _primary = Primary::enter();
    let (to, from) = (bytes.as_mut_ptr().cast(), memory.address() + range.start);
    // SAFETY: as many bytes are there on both sides, and no copy to the memory is under way.
    unsafe { sys::cuMemcpyDtoH_v2(to, from, bytes.len()) }.result().unwrap();
    bytes
}

fn keeps_the_contract(opened: &CudaDevice) {
    let other = HostDevice::new();
    device(DeviceSubject { device: opened, other: &other, memory: Some(&read) });
}

#[expect(clippy::disallowed_methods, reason = "the caller's clock")]
fn now() -> Instant {
    Instant::now()
}

fn copied(stream: &dyn CopyStream, memory: &Arc<DeviceMemory>, bytes: &[u8]) {
    let rows = Rows::range(0..bytes.len(), 0);
    let job = CopyJob::new(CopySource::Private(bytes), memory, rows).unwrap();
    let ticket = stream.copy(job, now()).unwrap();
    stream.wait(ticket).unwrap();
    assert!(read(memory, 0..bytes.len() as u64) == bytes);
}

#[test]
fn the_device_keeps_the_contract() {
    if is_clean_child("the_device_keeps_the_contract", &[]) {
        let device = CudaDevice::open(0).unwrap();
        let info = device.info();
        assert_eq!(info.path, MemoryPath::RegisteredReadOnly);
        assert_eq!((&*info.name, info.pci.as_deref()), ("Stand-in 0", Some("0000:17:00.0")));
        keeps_the_contract(&device);
    }
}

#[test]
fn memory_that_cannot_be_registered_is_staged() {
    if is_clean_child("memory_that_cannot_be_registered_is_staged", &[("READ_ONLY", "0")]) {
        let device = CudaDevice::open(0).unwrap();
        let MemoryPath::Staged { why } = &device.info().path else {
            panic!("{:?}", device.info());
        };
        assert!(why.contains("CUDA_ERROR_INVALID_VALUE"), "{why}");
        keeps_the_contract(&device);
    }
}

#[test]
fn a_driver_that_takes_read_only_memory_plainly_gets_it_so() {
    let script = [("READ_ONLY", "0"), ("PLAIN", "1")];
    if is_clean_child("a_driver_that_takes_read_only_memory_plainly_gets_it_so", &script) {
        let device = CudaDevice::open(0).unwrap();
        assert_eq!(device.info().path, MemoryPath::Registered);
        keeps_the_contract(&device);
    }
}

#[test]
fn a_segment_that_is_refused_is_staged() {
    if is_clean_child("a_segment_that_is_refused_is_staged", &[("REFUSE", "2")]) {
        let device = CudaDevice::open(0).unwrap();
        assert_eq!(device.info().path, MemoryPath::RegisteredReadOnly, "the probe is the first");
        keeps_the_contract(&device);
    }
}

#[test]
fn two_devices_share_the_registration_of_a_segment() {
    let script = [("DEVICES", "2")];
    if is_clean_child("two_devices_share_the_registration_of_a_segment", &script) {
        let id = SegmentId(3);
        let spec = SegmentSpec { id, domain: 0, slot_bytes: 1 << 16, slots: 1, lock: false };
        let segment = Segment::create(&spec).unwrap();
        let mut writer = segment.writer(SlotIndex(0)).unwrap();
        writer.as_mut_slice().fill(5);
        let reader = writer.publish();
        let map = SegmentMap::open(segment.descriptor().try_clone_to_owned().unwrap()).unwrap();
        let view = map.view(SlotIndex(0), reader.generation(), 1 << 16).unwrap();
        let devices = [0, 1].map(|ordinal| CudaDevice::open(ordinal).unwrap());
        let [first, second] =
            devices.each_ref().map(|device| Arc::new(device.register(&map).unwrap()));
        assert_eq!(first.path(), &MemoryPath::RegisteredReadOnly);
        assert_eq!(second.path(), &MemoryPath::RegisteredReadOnly);
        let [_, device] = devices;
        drop(first);
        let (stream, memory) = (device.stream().unwrap(), device.allocate(1 << 16).unwrap());
        let memory = Arc::new(memory);
        let source = CopySource::Slot { view: &view, registration: &second };
        let job = CopyJob::new(source, &memory, Rows::range(0..1 << 16, 0)).unwrap();
        let ticket = stream.copy(job, now()).unwrap();
        stream.wait(ticket).unwrap();
        assert!(read(&memory, 0..1 << 16).iter().all(|&byte| byte == 5));
    }
}

#[test]
fn a_slow_engine_makes_no_difference() {
    if is_clean_child("a_slow_engine_makes_no_difference", &[("GBPS", "0.5")]) {
        keeps_the_contract(&CudaDevice::open(0).unwrap());
    }
}

/// Checks what opening the first device fails with, in a child.
fn is_unavailable(test: &str, script: &[(&str, &str)], expected: &str) {
    if is_clean_child(test, script) {
        let error = DeviceSpec::Cuda { ordinal: 0 }.open().unwrap_err();
        assert!(matches!(error, DeviceError::Unavailable { .. }), "{error:?}");
        assert_eq!(error.to_string(), format!("device cuda:0 cannot be had: {expected}"));
    }
}

#[test]
fn a_machine_without_a_device_says_so() {
    let expected = "no CUDA-capable device is detected (CUDA_ERROR_NO_DEVICE)";
    is_unavailable("a_machine_without_a_device_says_so", &[("DEVICES", "0")], expected);
}

#[test]
fn a_driver_that_is_too_old_says_which_is_needed() {
    let expected = "its driver is of CUDA 10.2: install one of 11.4 or later";
    let test = "a_driver_that_is_too_old_says_which_is_needed";
    is_unavailable(test, &[("VERSION", "10020")], expected);
}

#[test]
fn a_driver_that_lacks_a_function_names_it() {
    let test = "a_driver_that_lacks_a_function_names_it";
    if is_child() {
        let error = CudaDevice::open(0).unwrap_err();
        assert!(matches!(error, DeviceError::Unavailable { .. }), "{error:?}");
        let expected = "its driver lacks cuMemcpy2DAsync_v2: install one of CUDA 11.4 or later";
        assert!(error.to_string().ends_with(expected), "{error}");
        return;
    }
    let driver = CudaDriver::compiled_without("cuMemcpy2DAsync_v2");
    if let Some(report) = reported_by(driver, test, &[]) {
        assert_eq!(report, ["ok"]);
    }
}

#[test]
fn a_number_without_a_device_says_which_there_are() {
    if is_clean_child("a_number_without_a_device_says_which_there_are", &[("DEVICES", "2")]) {
        let error = CudaDevice::open(7).unwrap_err().to_string();
        assert!(error.ends_with("the driver sees 2 devices, numbered 0 to 1"), "{error}");
        CudaDevice::open(u32::MAX).unwrap_err();
    }
}

#[test]
fn memory_that_there_is_none_of_says_so() {
    if is_clean_child("memory_that_there_is_none_of_says_so", &[("MEMORY", "1000000")]) {
        let device = CudaDevice::open(0).unwrap();
        let _first = device.allocate(600_000).unwrap();
        let error = device.allocate(600_000).unwrap_err();
        assert!(matches!(error, DeviceError::OutOfMemory { bytes: 600_000, .. }), "{error:?}");
        assert!(error.to_string().ends_with("out of memory (CUDA_ERROR_OUT_OF_MEMORY)"), "{error}");
    }
}

#[test]
fn a_copy_that_fails_is_told_once_and_lets_go() {
    if is_clean_child("a_copy_that_fails_is_told_once_and_lets_go", &[("FAIL_COPY", "2")]) {
        let device = CudaDevice::open(0).unwrap();
        let (stream, memory) = (device.stream().unwrap(), device.allocate(100).unwrap());
        let memory = Arc::new(memory);
        copied(&*stream, &memory, b"the first");
        let source = CopySource::Private(b"the second");
        let job = CopyJob::new(source, &memory, Rows::range(0..10, 0)).unwrap();
        let ticket = stream.copy(job, now()).unwrap();
        let error = stream.wait(ticket).unwrap_err();
        assert!(matches!(error, DeviceError::CopyFailed { bytes: 10, .. }), "{error:?}");
        assert!(error.to_string().contains("CUDA_ERROR_LAUNCH_FAILED"), "{error}");
        drop(stream);
        assert_eq!(Arc::strong_count(&memory), 1, "the copy has let go of it");
    }
}

#[test]
fn the_callers_own_stream_is_used_and_left_alone() {
    if is_clean_child("the_callers_own_stream_is_used_and_left_alone", &[]) {
        let device = CudaDevice::open(0).unwrap();
        let mut own = ptr::null_mut();
        let primary = Primary::enter();
        // SAFETY: the context is current; the driver writes a handle there.
        unsafe { sys::cuStreamCreate(&raw mut own, 0) }.result().unwrap();
        drop(primary);
        // SAFETY: it is destroyed below, after the adopted one is gone.
        let stream = unsafe { device.adopt_stream(own.expose_provenance() as u64) }.unwrap();
        let memory = Arc::new(device.allocate(100).unwrap());
        copied(&*stream, &memory, b"on the caller's stream");
        drop(stream);
        let _primary = Primary::enter();
        // SAFETY: made above, and still there.
        unsafe { sys::cuStreamDestroy_v2(own) }.result().unwrap();
    }
}

#[test]
fn copies_go_on_the_default_stream() {
    if is_clean_child("copies_go_on_the_default_stream", &[]) {
        let device = CudaDevice::open(0).unwrap();
        // SAFETY: the default stream is there for as long as its context.
        let stream = unsafe { device.adopt_stream(0) }.unwrap();
        let memory = Arc::new(device.allocate(100).unwrap());
        copied(&*stream, &memory, b"on the default stream");
    }
}

#[test]
fn what_was_current_on_the_thread_is_put_back() {
    if is_clean_child("what_was_current_on_the_thread_is_put_back", &[]) {
        let device = CudaDevice::open(0).unwrap();
        let elsewhere = ptr::without_provenance_mut(64);
        // SAFETY: the stand-in only keeps it.
        unsafe { sys::cuCtxSetCurrent(elsewhere) }.result().unwrap();
        let stream = device.stream().unwrap();
        drop((stream, device.allocate(10).unwrap()));
        let mut found = ptr::null_mut();
        // SAFETY: the driver writes a handle there.
        unsafe { sys::cuCtxGetCurrent(&raw mut found) }.result().unwrap();
        assert_eq!(found, elsewhere);
        // SAFETY: this thread needs none.
        unsafe { sys::cuCtxSetCurrent(ptr::null_mut()) }.result().unwrap();
    }
}

#[test]
fn spans_tell_how_fast_the_engine_was() {
    if is_clean_child("spans_tell_how_fast_the_engine_was", &[("GBPS", "0.1")]) {
        let device = CudaDevice::open(0).unwrap();
        let memory = Arc::new(device.allocate(1 << 20).unwrap());
        let stream = device.stream().unwrap();
        let bytes = vec![3; 1 << 20];
        let source = CopySource::Private(&bytes);
        let job = CopyJob::new(source, &memory, Rows::range(0..1 << 20, 0)).unwrap();
        let before = now();
        let ticket = stream.copy(job, before).unwrap();
        let span = stream.wait(ticket).unwrap();
        let after = now();
        let took = span.finished - span.started;
        assert!(took >= Duration::from_millis(10), "a MiB at 0.1 GB/s, in {took:?}");
        // Half of the time that it took to make the base event is as near as the clocks come.
        let slack = Duration::from_millis(500);
        assert!(span.started + slack >= before && span.finished <= after + slack);
    }
}

/// Does, by the driver itself, what this crate never may.
fn misbehave() {
    // SAFETY: the stand-in's functions check their arguments; that is what is tested.
    unsafe { sys::cuInit(0) }.result().unwrap();
    let without = std::thread::scope(|scope| {
        let call = || {
            let mut event = ptr::null_mut();
            // SAFETY: as above.
            unsafe { sys::cuEventCreate(&raw mut event, 0) }.result().is_err()
        };
        scope.spawn(call).join().unwrap()
    });
    assert!(without);
    let _primary = Primary::enter();
    let (mut memory, mut stream, mut event) = (0, ptr::null_mut(), ptr::null_mut());
    let mut pinned = ptr::null_mut();
    // SAFETY: as above.
    unsafe { sys::cuMemAlloc_v2(&raw mut memory, 1 << 20) }.result().unwrap();
    // SAFETY: as above.
    unsafe { sys::cuStreamCreate(&raw mut stream, 0) }.result().unwrap();
    // SAFETY: as above. It is never destroyed.
    unsafe { sys::cuEventCreate(&raw mut event, 0) }.result().unwrap();
    // SAFETY: as above.
    unsafe { sys::cuMemHostAlloc(&raw mut pinned, 1 << 20, 0) }.result().unwrap();
    let plain = [0_u8; 64];
    // SAFETY: as above.
    let refused = unsafe { sys::cuMemcpyHtoDAsync_v2(memory, plain.as_ptr().cast(), 64, stream) };
    assert!(refused.result().is_err());
    // SAFETY: as above.
    let beyond = unsafe { sys::cuMemcpyHtoDAsync_v2(memory + 1, pinned, 1 << 20, stream) };
    assert!(beyond.result().is_err());
    // SAFETY: as above.
    unsafe { sys::cuMemcpyHtoDAsync_v2(memory, pinned, 1 << 20, stream) }.result().unwrap();
    // SAFETY: the memory is there; that the copy is under way is the misdeed.
    unsafe { pinned.cast::<u8>().write_bytes(1, 1 << 20) };
    // SAFETY: as above.
    unsafe { sys::cuMemFreeHost(pinned) }.result().unwrap();
    // SAFETY: as above.
    unsafe { sys::cuStreamSynchronize(stream) }.result().unwrap_err();
    // SAFETY: as above.
    unsafe { sys::cuStreamDestroy_v2(stream) }.result().unwrap();
    // SAFETY: as above.
    unsafe { sys::cuMemFree_v2(memory) }.result().unwrap();
    // SAFETY: as above: it is gone.
    unsafe { sys::cuMemFree_v2(memory) }.result().unwrap_err();
}

#[test]
fn the_stand_in_catches_what_it_is_there_for() {
    let test = "the_stand_in_catches_what_it_is_there_for";
    if is_child() {
        return misbehave();
    }
    let Some(report) = reported(test, &[("GBPS", "0.0005")]) else { return };
    for expected in [
        "cuEventCreate: no context is current on this thread",
        "cuMemcpyHtoDAsync_v2: copy 1 from memory that is not pinned",
        "cuMemcpyHtoDAsync_v2: copy 2 to memory that is not allocated",
        "cuMemFreeHost: 1 copies still use it",
        "copy 3: its source was unregistered before its end",
        "cuMemFree_v2: it is not live",
        "at the end: 1 x event",
    ] {
        assert!(report.iter().any(|line| line == expected), "{expected} is not in {report:#?}");
    }
    assert_eq!(report.len(), 7, "{report:#?}");
}

#[cfg(feature = "cuda-tests")]
#[test]
fn a_real_device_keeps_the_contract() {
    let device = CudaDevice::open(0).unwrap();
    println!("{:?}", device.info());
    keeps_the_contract(&device);
}
