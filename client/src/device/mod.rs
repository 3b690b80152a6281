//! From lent slots to the memory of a device.
//!
//! [`register`] prepares segments in the background, [`layout`] says where every byte goes,
//! [`pipeline`] copies, [`load`] is what a caller holds, [`report`] is what is known at the end.

pub(crate) mod layout;
pub(crate) mod load;
mod pipeline;
pub(crate) mod register;
mod report;

pub use layout::{Layout, Target};
pub use load::{DeviceLoad, DeviceTensor, Resident};
pub use report::DeviceReport;
