//! Why a device could not be had, or did not copy.

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
    /// A device that this build does not have.
    #[error("device {0} is not in this build: use host")]
    NotInBuild(String),
    /// The driver does not take the memory of a segment.
    #[error("device {device} refuses to register segment {segment}: {reason}")]
    RegistrationRefused {
        /// The device.
        device: String,
        /// The segment.
        segment: u64,
        /// What the driver said.
        reason: String,
    },
    /// A copy that leaves the bytes of its view.
    #[error("bytes {start}..{end} are outside the {len} bytes of the view")]
    OutOfRange {
        /// Where the range begins.
        start: usize,
        /// Where it ends.
        end: usize,
        /// How many bytes the view has.
        len: usize,
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
