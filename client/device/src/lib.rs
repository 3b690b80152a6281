//! The accelerator seam: where the bytes of a lent slot are copied to.
//!
//! A [`Device`] registers each segment once, then copies out of slots of it. Copies are
//! asynchronous: [`Device::copy`] starts one and gives a [`CopyTicket`], which owns the view it
//! reads from; [`Device::query`] and [`Device::wait`] tell when it is done and from when to when
//! the copy engine worked ([`CopySpan`]). The lease on the slot must be held until then.
//!
//! A device reads no clock: the caller says when it starts a copy and when it asks. A device that
//! measures maps its own measure onto these instants.
//!
//! [`HostDevice`] is the device of a process that uses the bytes where they are. [`DeviceSpec`] is
//! the way a person names a device; a name this build has no device for is an error that says so.

#![forbid(unsafe_code)]

mod error;
mod host;
mod seam;
mod spec;

pub use error::DeviceError;
pub use host::HostDevice;
pub use seam::{CopySpan, CopyState, CopyTicket, Device, Registration};
pub use spec::DeviceSpec;
