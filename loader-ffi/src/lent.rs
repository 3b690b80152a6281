//! Tensors and objects that a load has lent, or describes before it brings them.

use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use forebay_client::{CopyStream, Device, DeviceMemory, ObjectView, RunCopy, Tensor};

use crate::entry::enter;
use crate::handles;
use crate::memory::{c_text, tell};
use crate::options::FbTensorInfo;
use crate::status::{FB_OK, Fault};

/// A tensor, or a whole object.
#[derive(Debug)]
pub struct FbTensor(());

/// What is lent.
#[derive(Debug)]
pub(crate) enum Bytes {
    Tensor(Tensor),
    Object(ObjectView),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Tensor(tensor) => tensor.bytes(),
            Self::Object(view) => view.bytes(),
        }
    }

    fn is_copy(&self) -> bool {
        match self {
            Self::Tensor(tensor) => tensor.is_copy(),
            Self::Object(view) => view.is_copy(),
        }
    }

    fn description(&self) -> Description {
        match self {
            Self::Tensor(tensor) => {
                let (name, dtype) = (tensor.name(), tensor.dtype());
                Description::new(name, dtype, tensor.object_key(), tensor.shape().to_vec())
            }
            Self::Object(view) => Description::of_object(view.key(), length(view.bytes())),
        }
    }
}

/// What a tensor is, in the caller's terms.
#[derive(Debug)]
pub(crate) struct Description {
    name: CString,
    dtype: CString,
    object: CString,
    shape: Vec<u64>,
}

impl Description {
    pub(crate) fn new(name: &str, dtype: &str, object: &str, shape: Vec<u64>) -> Self {
        let [name, dtype, object] = [name, dtype, object].map(c_text);
        Self { name, dtype, object, shape }
    }

    /// Of a whole object: a row of bytes.
    pub(crate) fn of_object(key: &str, bytes: u64) -> Self {
        Self::new(key, "U8", key, vec![bytes])
    }

    /// The same, with where its bytes are.
    pub(crate) fn info(&self, data: *const c_void, bytes: u64, is_copy: bool) -> FbTensorInfo {
        FbTensorInfo {
            size: size_of::<FbTensorInfo>(),
            name: self.name.as_ptr(),
            dtype: self.dtype.as_ptr(),
            object: self.object.as_ptr(),
            shape: self.shape.as_ptr(),
            ndim: self.shape.len(),
            data,
            bytes,
            is_copy: i32::from(is_copy),
            reserved: 0,
        }
    }
}

/// Something that a load will bring.
#[derive(Debug)]
pub(crate) struct Announced {
    pub(crate) description: Description,
    pub(crate) bytes: u64,
}

impl Announced {
    pub(crate) fn info(&self) -> FbTensorInfo {
        self.description.info(ptr::null(), self.bytes, false)
    }
}

/// What the handle of a tensor stands for.
#[derive(Debug)]
pub(crate) struct Lent {
    description: Description,
    bytes: Bytes,
    /// The device of its load.
    device: Option<Arc<dyn Device>>,
    _count: Count,
}

/// One more that is not released. Dropped behind what it counts.
#[derive(Debug)]
struct Count(Arc<AtomicUsize>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl Lent {
    /// `lent` counts what its load has lent.
    pub(crate) fn new(
        bytes: Bytes,
        device: Option<Arc<dyn Device>>,
        lent: Arc<AtomicUsize>,
    ) -> Self {
        lent.fetch_add(1, Ordering::Relaxed);
        let _count = Count(lent);
        Self { description: bytes.description(), bytes, device, _count }
    }

    pub(crate) fn info(&self) -> FbTensorInfo {
        let data = self.bytes.as_slice();
        self.description.info(data.as_ptr().cast(), length(data), self.bytes.is_copy())
    }

    pub(crate) fn len(&self) -> u64 {
        length(self.bytes.as_slice())
    }

    /// Whether its load is for this device.
    pub(crate) fn check_device(&self, device: &Arc<dyn Device>) -> Result<(), Fault> {
        let same = |own: &Arc<dyn Device>| ptr::addr_eq(Arc::as_ptr(own), Arc::as_ptr(device));
        match &self.device {
            Some(own) if same(own) => Ok(()),
            Some(_) => Err(Fault::invalid("the load of this tensor is for another fb_device")),
            None => Err(Fault::invalid(
                "the load of this tensor has no device: set fb_load_options.device",
            )),
        }
    }

    /// Starts to copy its bytes to the start of `memory`.
    pub(crate) fn copy_to(
        &self,
        stream: &dyn CopyStream,
        memory: &Arc<DeviceMemory>,
    ) -> Result<RunCopy, Fault> {
        let copy = match &self.bytes {
            Bytes::Tensor(tensor) => tensor.copy_to(stream, memory, 0),
            Bytes::Object(view) => view.copy_to(stream, memory, 0),
        };
        Ok(copy?)
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Says what a tensor is and where its bytes are.
///
/// Threads: any, also several at once.
/// Errors: `FB_BAD_HANDLE`, `FB_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_tensor_get_info(
    tensor: *const FbTensor,
    info: *mut FbTensorInfo,
) -> i32 {
    enter(tensor, || {
        let lent = handles::find::<Lent, _>(tensor)?;
        // SAFETY: NULL or the caller's struct.
        unsafe { tell(info, &lent.info()) }?;
        Ok(FB_OK)
    })
}

/// Gives the bytes of a tensor or object back. They and everything its info points to must not be
/// read any more; copies of it that `fb_copy_tensor` started go on, and give back what they read
/// when they are done. The daemon is told with the next call on the client or one of its loads.
/// NULL is no error.
///
/// Threads: any, also while another is inside of the load.
/// Errors: `FB_BAD_HANDLE`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_tensor_release(tensor: *mut FbTensor) -> i32 {
    enter(tensor, || {
        if !tensor.is_null() {
            handles::remove::<Lent, _>(tensor)?;
        }
        Ok(FB_OK)
    })
}
