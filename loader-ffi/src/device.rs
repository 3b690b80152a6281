//! Devices, streams on them, and copies of single tensors.
//!
//! A device belongs to a client: what its handle stands for is the device and the client's own
//! connection for loads to it, over which segments are registered. A stream is one of the caller's,
//! or, on a device that has none, one of ours; it is watched by a thread (see `copies`).

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use forebay_client::blocking::Client;
use forebay_client::{ClientError, CudaDevice, Device, DeviceError, DeviceMemory, DeviceSpec};

use crate::client::FbClient;
use crate::copies::{Copier, Outcome};
use crate::entry::enter;
use crate::handles;
use crate::lent::{FbTensor, Lent};
use crate::memory::{put, text};
use crate::status::{FB_OK, FB_PENDING, Fault};

/// The number by which CUDA knows the default stream of the calling thread.
const STREAM_PER_THREAD: usize = 2;

/// Somewhere that tensors are copied to.
#[derive(Debug)]
pub struct FbDevice(());

/// A stream of a device, on which tensors are copied.
#[derive(Debug)]
pub struct FbStream(());

/// A copy that was started.
#[derive(Debug)]
pub struct FbCopy(());

/// What the handle of a device stands for.
#[derive(Debug)]
pub(crate) struct OpenDevice {
    pub(crate) device: Arc<dyn Device>,
    /// The same, if it has streams of callers.
    cuda: Option<Arc<CudaDevice>>,
    /// The client, for loads to the device.
    pub(crate) client: Client,
    /// The handle of the client.
    owner: usize,
}

impl OpenDevice {
    fn open(owner: *const FbClient, spec: &str) -> Result<Self, Fault> {
        let client = handles::find::<Client, _>(owner)?;
        let opened = DeviceSpec::parse(spec).and_then(|spec| match spec {
            DeviceSpec::Cuda { ordinal } => {
                let cuda = Arc::new(CudaDevice::open(ordinal)?);
                Ok((Arc::clone(&cuda) as Arc<dyn Device>, Some(cuda)))
            }
            other => Ok((other.open()?, None)),
        });
        let (device, cuda) = opened?;
        let client = client.with_device(Arc::clone(&device));
        Ok(Self { device, cuda, client, owner: owner.addr() })
    }

    /// The device behind a handle, if it was opened with this client.
    pub(crate) fn of(device: *const FbDevice, owner: *const FbClient) -> Result<Arc<Self>, Fault> {
        let device = handles::find::<Self, _>(device)?;
        match device.owner == owner.addr() {
            true => Ok(device),
            false => Err(Fault::invalid("the device was opened with another client")),
        }
    }

    /// A stream of the caller's, or of the device.
    ///
    /// # Safety
    ///
    /// `native` is as `fb_stream_open` asks for.
    unsafe fn stream(&self, native: *mut c_void) -> Result<OpenStream, Fault> {
        let stream = match &self.cuda {
            Some(_) if native.addr() == STREAM_PER_THREAD => {
                return Err(Fault::invalid(
                    "the default stream of a thread means another stream in each: give one that \
                     cuStreamCreate made",
                ));
            }
            // SAFETY: as this function's own contract.
            Some(cuda) => unsafe { cuda.adopt_stream(native.expose_provenance() as u64) },
            None if native.is_null() => self.device.stream(),
            None => return Err(Fault::invalid("only a CUDA device has streams of the caller's")),
        };
        let copier = Copier::start(stream?)?;
        Ok(OpenStream { copier, device: Arc::clone(&self.device) })
    }
}

impl From<DeviceError> for Fault {
    fn from(error: DeviceError) -> Self {
        ClientError::from(error).into()
    }
}

/// What the handle of a stream stands for.
#[derive(Debug)]
struct OpenStream {
    copier: Copier,
    device: Arc<dyn Device>,
}

/// The memory at an address that the caller gives.
///
/// # Safety
///
/// The bytes there are memory of the device that can be written, and are left alone by others until
/// the last copy to them is done.
pub(crate) unsafe fn memory_at(
    device: &dyn Device,
    address: u64,
    bytes: u64,
) -> Result<Arc<DeviceMemory>, Fault> {
    if address == 0 && bytes > 0 {
        return Err(Fault::invalid("the address of the destination is 0"));
    }
    if address.checked_add(bytes).is_none() {
        return Err(Fault::invalid(format!("no memory has {bytes} bytes at {address:#x}")));
    }
    // SAFETY: as this function's own contract.
    Ok(Arc::new(unsafe { DeviceMemory::borrowed(device, address, bytes) }))
}

/// Opens a device for loads of `client` and sets `*device`. `spec` is `cuda:N`, an NVIDIA GPU as
/// the driver counts; `host`, memory of this process, copied to by the CPU; or `fake:GBPS`, which
/// takes the time that a device of so many 1e9 bytes a second takes, and writes nothing. The
/// driver's library is loaded here, and the GPU's primary context retained. Open a device once and
/// use it for every load: the daemon's memory is registered with it once, in the background.
///
/// Ownership: the caller closes the device with `fb_device_close`.
/// Threads: any. The device can be used by several threads at once.
/// Errors: `FB_BAD_HANDLE`, `FB_INVALID_ARGUMENT`; `FB_UNAVAILABLE` if there is no such device or
/// no driver. Then `*device` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_device_open(
    client: *mut FbClient,
    spec: *const c_char,
    device: *mut *mut FbDevice,
) -> i32 {
    enter(client, || {
        // SAFETY: NULL or the caller's variable.
        unsafe { put(device, std::ptr::null_mut(), "device") }?;
        // SAFETY: NULL or a text of the caller's.
        let spec = unsafe { text(spec, "spec") }?;
        let opened = OpenDevice::open(client, spec)?;
        // SAFETY: as above.
        unsafe { put(device, handles::insert(opened), "device") }?;
        Ok(FB_OK)
    })
}

/// Closes a device. Loads and streams on it stay usable until they are closed. The GPU's context is
/// released with the last of them. NULL is no error.
///
/// Threads: any, also while other threads use the device.
/// Errors: `FB_BAD_HANDLE`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_device_close(device: *mut FbDevice) -> i32 {
    enter(device, || {
        if !device.is_null() {
            handles::remove::<OpenDevice, _>(device)?;
        }
        Ok(FB_OK)
    })
}

/// Lets tensors be copied on a stream and sets `*stream`. `native` is the caller's own `CUstream`
/// (or `cudaStream_t`) of the GPU's primary context, the one that the CUDA runtime uses; copies are
/// in order with whatever else is on it. It stays the caller's: it must not be destroyed before
/// `fb_stream_close` has returned. NULL is the default stream, as everywhere in CUDA; the default
/// stream of a thread (`CU_STREAM_PER_THREAD`) is refused. For other devices `native` is NULL. Each
/// open stream has a thread, which sleeps while nothing is copied: keep the stream open.
///
/// Ownership: the caller closes the stream with `fb_stream_close`.
/// Threads: any. The stream can be used by several threads at once.
/// Errors: `FB_BAD_HANDLE`, `FB_INVALID_ARGUMENT`, `FB_RESOURCE_EXHAUSTED`, `FB_UNAVAILABLE`. Then
/// `*stream` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_stream_open(
    device: *mut FbDevice,
    native: *mut c_void,
    stream: *mut *mut FbStream,
) -> i32 {
    enter(device, || {
        // SAFETY: NULL or the caller's variable.
        unsafe { put(stream, std::ptr::null_mut(), "stream") }?;
        let device = handles::find::<OpenDevice, _>(device)?;
        // SAFETY: the caller keeps what this function asks of `native`.
        let opened = unsafe { device.stream(native) }?;
        // SAFETY: as above.
        unsafe { put(stream, handles::insert(opened), "stream") }?;
        Ok(FB_OK)
    })
}

/// Waits until every copy that was started on the stream is done. Work of the caller's own on the
/// same stream is waited for only as far as it is ahead of them.
///
/// Threads: any, also several at once.
/// Errors: `FB_BAD_HANDLE`; `FB_UNAVAILABLE` if a copy failed since the last call, with what the
/// driver said of the first.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_stream_wait(stream: *mut FbStream) -> i32 {
    enter(stream, || {
        handles::find::<OpenStream, _>(stream)?.copier.wait()?;
        Ok(FB_OK)
    })
}

/// Waits for the copies on a stream and closes it. The caller's own stream is left as it is. NULL
/// is no error.
///
/// Threads: any, also while others wait for the stream. No other may be inside of `fb_copy_tensor`
/// with it.
/// Errors: `FB_BAD_HANDLE`. A copy that failed is none: `fb_stream_wait` tells.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_stream_close(stream: *mut FbStream) -> i32 {
    enter(stream, || {
        if !stream.is_null() {
            // Another call may hold it for longer: the caller's stream is done with here.
            handles::remove::<OpenStream, _>(stream)?.copier.drain();
        }
        Ok(FB_OK)
    })
}

/// Starts to copy all bytes of a tensor or object to `destination`, where the caller has `bytes`
/// bytes, at least as many as the tensor; comes back without waiting for the copy, unless the bytes
/// have to be staged. The load must have been opened with the device of `stream`. `destination` is
/// a `CUdeviceptr`, or a pointer as a number if the device is `host`; for `fake:GBPS` it is any
/// number but 0. The tensor may be released at once: its bytes are held until the copy is done.
/// `copy` may be NULL: `fb_stream_wait` and the stream itself tell then when it is done.
///
/// Ownership: the caller releases `*copy` with `fb_copy_release`. Until the copy is done, the
/// memory at `destination` must stay and be used by nobody else but in order on the stream.
/// Threads: any, also several at once, and while another is inside of the load.
/// Errors: `FB_BAD_HANDLE`, `FB_INVALID_ARGUMENT`, `FB_RESOURCE_EXHAUSTED`, `FB_UNAVAILABLE`. Then
/// `*copy` is NULL and nothing is under way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_copy_tensor(
    tensor: *const FbTensor,
    stream: *mut FbStream,
    destination: u64,
    bytes: u64,
    copy: *mut *mut FbCopy,
) -> i32 {
    enter(tensor, || {
        if !copy.is_null() {
            // SAFETY: the caller's variable.
            unsafe { put(copy, std::ptr::null_mut(), "copy") }?;
        }
        let lent = handles::find::<Lent, _>(tensor)?;
        let stream = handles::find::<OpenStream, _>(stream)?;
        lent.check_device(&stream.device)?;
        if lent.len() > bytes {
            let message =
                format!("the destination has {bytes} bytes and the tensor {}", lent.len());
            return Err(Fault::invalid(message));
        }
        // SAFETY: the caller promises so of the destination.
        let memory = unsafe { memory_at(stream.device.as_ref(), destination, bytes) }?;
        let outcome = stream.copier.copy(&lent, &memory)?;
        if !copy.is_null() {
            // SAFETY: as above.
            unsafe { put(copy, handles::insert(outcome), "copy") }?;
        }
        Ok(FB_OK)
    })
}

/// Whether a copy is done: `FB_OK`, or `FB_PENDING` while it is not. Does not wait.
///
/// Threads: any, also several at once.
/// Errors: `FB_BAD_HANDLE`, `FB_UNAVAILABLE`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_copy_query(copy: *const FbCopy) -> i32 {
    enter(copy, || {
        let outcome = handles::find::<Arc<Outcome>, _>(copy)?;
        outcome.now().map_or(Ok(FB_PENDING), |ended| ended.map(|()| FB_OK))
    })
}

/// Waits until a copy is done.
///
/// Threads: any, also several at once.
/// Errors: `FB_BAD_HANDLE`, `FB_UNAVAILABLE`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_copy_wait(copy: *const FbCopy) -> i32 {
    enter(copy, || {
        handles::find::<Arc<Outcome>, _>(copy)?.wait()?;
        Ok(FB_OK)
    })
}

/// Gives the handle of a copy back. The copy goes on. NULL is no error.
///
/// Threads: any, also while another waits for the copy.
/// Errors: `FB_BAD_HANDLE`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_copy_release(copy: *mut FbCopy) -> i32 {
    enter(copy, || {
        if !copy.is_null() {
            handles::remove::<Arc<Outcome>, _>(copy)?;
        }
        Ok(FB_OK)
    })
}
