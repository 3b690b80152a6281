//! Why a device could not be had, or did not copy.

use crate::seam::Rows;

/// What went wrong with a device or a copy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The text names no device.
    #[error("`{text}` names no device ({reason}): give host, fake:GBPS or cuda:N")]
    BadSpec {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The driver's library is missing or too old, or there is no such device.
    #[error("device {device} cannot be had: {reason}")]
    Unavailable {
        /// The device.
        device: String,
        /// What is missing, and what to do about it.
        reason: String,
    },
    /// The device has no room.
    #[error("device {device} has no {bytes} bytes left: {reason}")]
    OutOfMemory {
        /// The device.
        device: String,
        /// How many bytes were asked for.
        bytes: u64,
        /// What the driver said.
        reason: String,
    },
    /// A copy that leaves its source or its destination, or whose rows overlap.
    #[error("{rows:?} leave the {bound} bytes of the {what}")]
    OutOfRange {
        /// Which of the two: `source` or `destination`.
        what: &'static str,
        /// What was to be copied.
        rows: Rows,
        /// How many bytes there are.
        bound: u64,
    },
    /// A copy to memory of another device than the one that copies.
    #[error("memory of device {memory} is no place for a copy by device {device}")]
    WrongDevice {
        /// Whose memory it is.
        memory: String,
        /// Which device was to copy.
        device: String,
    },
    /// A copy out of a segment with the registration of another one.
    #[error("segment {segment} is not what the registration is of")]
    NotRegistered {
        /// The segment of the copy's source.
        segment: u64,
    },
    /// The driver failed at something that is no copy.
    #[error("device {device}: {call} failed: {reason}")]
    Driver {
        /// The device.
        device: String,
        /// What was called.
        call: &'static str,
        /// What the driver said.
        reason: String,
    },
    /// The copy itself failed.
    #[error("device {device} failed to copy {bytes} bytes: {reason}")]
    CopyFailed {
        /// The device.
        device: String,
        /// How many bytes were to be copied.
        bytes: u64,
        /// What the driver said.
        reason: String,
    },
}
