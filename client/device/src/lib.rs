//! The accelerator seam: where the bytes of a lent slot are copied to.
//!
//! A [`Device`] registers each segment once and has memory; its [`CopyStream`]s copy out of slots
//! into that memory. Copies are asynchronous: [`CopyStream::copy`] starts one and gives a
//! [`CopyTicket`]; [`CopyStream::query`] and [`CopyStream::wait`] tell when it is done and from
//! when to when the copy engine worked ([`CopySpan`]). The lease on the slot must be held until
//! then; everything else that a copy needs is kept alive by its stream.
//!
//! [`DeviceSpec`] is the way a person names a device; [`DeviceSpec::open`] gives the device:
//!
//! | name | device | copies |
//! |---|---|---|
//! | `host` | [`HostDevice`]: memory of this process | at once, by the CPU |
//! | `fake:GBPS` | [`FakeDevice`]: nothing, or memory of this process | at this rate, one by one |
//! | `cuda:N` | [`CudaDevice`]: an NVIDIA GPU | by its copy engines |
//!
//! Neither the CUDA toolkit nor a driver is needed to build or to start: the driver's library is
//! loaded when a `cuda` device is opened.
//!
//! # Tests on a GPU
//!
//! The suite runs the `cuda` device on a stand-in for the driver, which checks what it is asked
//! for. On a machine with an NVIDIA driver (CUDA 11.4 or later) and a GPU with 64 MiB free, the
//! same contract runs on the first GPU with
//!
//! ```text
//! cargo test -p forebay-device --features cuda-tests
//! ```
//!
//! `CUDA_VISIBLE_DEVICES` chooses another one. It prints the device's name and how bytes get there;
//! `--nocapture` shows it.

mod clock;
mod cuda;
mod error;
mod fake;
mod host;
mod memory;
mod profile;
mod seam;
mod spec;

pub use cuda::{CudaDevice, CudaDriver, cuda_driver};
pub use error::DeviceError;
pub use fake::FakeDevice;
pub use host::HostDevice;
pub use profile::ProfileRange;
pub use seam::{
    CopyJob, CopySource, CopySpan, CopyState, CopyStream, CopyTicket, Device, DeviceInfo,
    DeviceMemory, KeptAlive, MemoryPath, Registration, Rows,
};
pub use spec::DeviceSpec;
