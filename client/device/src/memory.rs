//! Memory of this process that serves as memory of a device: of the host, and of a fake device.
//!
//! Memory is allocated zeroed, so that a copy that never came shows no other process's bytes.

use std::alloc::{Layout, alloc_zeroed, dealloc};

use crate::error::DeviceError;
use crate::seam::{DeviceMemory, Rows};
use crate::spec::DeviceSpec;

/// What the memory of every device is aligned to.
pub(crate) const ALIGN: usize = 256;

/// Memory of this process for `device`. `freed` is called when it is given back.
pub(crate) fn allocate(
    device: DeviceSpec,
    bytes: u64,
    freed: impl FnOnce() + Send + Sync + 'static,
) -> Result<DeviceMemory, DeviceError> {
    let refused = || DeviceError::OutOfMemory {
        device: device.to_string(),
        bytes,
        reason: "the system has no such memory".to_owned(),
    };
    let size = usize::try_from(bytes).map_err(|_| refused())?;
    let layout = Layout::from_size_align(size.max(1), ALIGN).map_err(|_| refused())?;
    // SAFETY: the layout has a size above zero.
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() {
        return Err(refused());
    }
    let address = memory.expose_provenance();
    let free = move || {
        let memory = std::ptr::with_exposed_provenance_mut::<u8>(address);
        // SAFETY: allocated above with this layout; `DeviceMemory` calls this once, when no copy
        // holds it any more.
        unsafe { dealloc(memory, layout) };
        freed();
    };
    Ok(DeviceMemory::allocated(device, address as u64, bytes, free))
}

/// Copies rows of `source` to memory at `address`.
///
/// # Safety
///
/// The rows lie in the source and in memory of this process at `address`, which can be written and
/// which nobody else uses meanwhile.
pub(crate) unsafe fn write_rows(source: &[u8], address: u64, rows: Rows) {
    let target = std::ptr::with_exposed_provenance_mut::<u8>(word(address));
    let first = word(rows.destination_start);
    for row in 0..rows.rows {
        let from = rows.source_start + row * rows.source_pitch;
        let source = &source[from..from + rows.row_bytes];
        // SAFETY: the caller keeps every row inside the memory at `address`.
        let place = unsafe { target.add(first + row * rows.destination_pitch) };
        // SAFETY: as above for the whole row; memory that nobody else uses does not overlap with
        // bytes that are borrowed as `source`.
        unsafe { place.copy_from_nonoverlapping(source.as_ptr(), source.len()) };
    }
}

/// A number that was a `usize` before it became part of the seam.
fn word(value: u64) -> usize {
    usize::try_from(value).expect("an address of this process, or an offset in its memory")
}
