//! The accelerator seam: where the bytes of a lent slot are copied to.
//!
//! A [`Device`] registers each segment once and has memory; its [`CopyStream`]s copy out of slots
//! into that memory. Copies are asynchronous: [`CopyStream::copy`] starts one and gives a
//! [`CopyTicket`]; [`CopyStream::query`] and [`CopyStream::wait`] tell when it is done and from when
//! to when the copy engine worked ([`CopySpan`]). The lease on the slot must be held until then;
//! everything else that a copy needs is kept alive by its stream.
//!
//! [`DeviceSpec`] is the way a person names a device; [`DeviceSpec::open`] gives the device.

mod clock;
mod error;
mod fake;
mod host;
mod memory;
mod profile;
mod seam;
mod spec;

pub use error::DeviceError;
pub use fake::FakeDevice;
pub use host::HostDevice;
pub use profile::ProfileRange;
pub use seam::{
    CopyJob, CopySource, CopySpan, CopyState, CopyStream, CopyTicket, Device, DeviceInfo,
    DeviceMemory, KeptAlive, MemoryPath, Registration, Rows,
};
pub use spec::DeviceSpec;
