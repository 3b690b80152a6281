//! Making a ring, and finding out what this kernel lacks for one.

use std::io;

use io_uring::{IoUring, Probe, opcode};
use rustix::io::Errno;

/// More than any disk gains from, and few enough to fit a ring.
pub(crate) const DEPTH_MAX: usize = 1024;

/// The kernel's bound on registered buffers.
pub(crate) const BUFFERS_MAX: u16 = 16_384;

/// What a ring can do beyond what is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Features {
    /// Completions are worked off only when the thread asks for them (Linux 6.1).
    pub(crate) deferred: bool,
    /// There is a table of registered memory (Linux 5.19).
    pub(crate) registered_memory: bool,
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("{0}")]
    Failed(#[from] io::Error),
    #[error("operations are missing: {0:?}")]
    MissingOpcodes(Vec<&'static str>),
}

/// A ring for `depth` operations and the bell. To be called on the thread that will use it.
pub(crate) fn build(depth: usize) -> Result<(IoUring, Features), SetupError> {
    // Two more entries than operations: the bell is armed again before the last one has gone.
    let entries = u32::try_from(depth + 2).map_or(u32::MAX, u32::next_power_of_two);
    let (uring, deferred) = newest(entries)?;
    let mut probe = Probe::new();
    uring.submitter().register_probe(&mut probe)?;
    let needed = [
        ("read", opcode::Read::CODE),
        ("write", opcode::Write::CODE),
        ("fsync", opcode::Fsync::CODE),
        ("poll_add", opcode::PollAdd::CODE),
    ];
    let lacks = |(_, code): &(&str, u8)| !probe.is_supported(*code);
    let missing: Vec<_> = needed.into_iter().filter(lacks).map(|(name, _)| name).collect();
    if !missing.is_empty() {
        return Err(SetupError::MissingOpcodes(missing));
    }
    let registered_memory = probe.is_supported(opcode::ReadFixed::CODE)
        && probe.is_supported(opcode::WriteFixed::CODE)
        && uring.submitter().register_buffers_sparse(u32::from(BUFFERS_MAX)).is_ok();
    Ok((uring, Features { deferred, registered_memory }))
}

/// The kind of ring that costs least, of those this kernel knows.
fn newest(entries: u32) -> io::Result<(IoUring, bool)> {
    let unknown = |error: &io::Error| error.raw_os_error() == Some(Errno::INVAL.raw_os_error());
    let deferred = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries);
    match deferred {
        Err(error) if unknown(&error) => {}
        made => return made.map(|uring| (uring, true)),
    }
    match IoUring::builder().setup_coop_taskrun().build(entries) {
        Err(error) if unknown(&error) => {}
        made => return made.map(|uring| (uring, false)),
    }
    IoUring::builder().build(entries).map(|uring| (uring, false))
}
