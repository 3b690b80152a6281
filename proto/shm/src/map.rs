//! A client's side of a segment: a read-only mapping of a descriptor that came over a socket.
//!
//! Nothing is taken on trust. [`SegmentMap::open`] insists on the seals (a file that can shrink
//! would turn a read into SIGBUS), on the size, and on a header that describes exactly that file;
//! the header is read once, into private memory, so it cannot change between check and use.
//!
//! Why reading is sound: the daemon writes a slot only after the lease on it has ended. Whoever
//! holds a [`SlotView`] therefore holds the lease as well, and ends it only after the view is
//! gone. A client that breaks this reads bytes that change under it: never another domain's
//! bytes, and [`SlotView::is_current`] tells.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use rustix::io::Errno;
use rustix::mm::Advice;

use crate::error::ShmError;
use crate::ids::{Generation, SegmentId, SlotIndex};
use crate::layout::{HEADER_BYTES, Header};
use crate::mapping::{Access, Mapping};
use crate::segment::SEALS;

/// A segment of a daemon, mapped to read.
#[derive(Debug)]
pub struct SegmentMap {
    header: Header,
    mapping: Mapping,
    descriptor: OwnedFd,
    // Last: it tells that the others are gone.
    #[expect(dead_code, reason = "held for its Drop")]
    unmapped: Unmapped,
}

/// Calls what wants to hear of the end.
struct Unmapped(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Drop for Unmapped {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            tell();
        }
    }
}

impl fmt::Debug for Unmapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unmapped")
    }
}

impl SegmentMap {
    /// Maps a descriptor, if it is a sealed segment and whole.
    pub fn open(descriptor: OwnedFd) -> Result<Arc<Self>, ShmError> {
        Self::open_with(descriptor, || {})
    }

    /// The same, and `unmapped` is called when this process does not map the segment any more by
    /// this: on whatever thread the last use of it ends, so it should neither block nor panic. An
    /// [`ObjectMap`](crate::ObjectMap) has pages of its own.
    pub fn open_with(
        descriptor: OwnedFd,
        unmapped: impl FnOnce() + Send + Sync + 'static,
    ) -> Result<Arc<Self>, ShmError> {
        let header = checked_header(&descriptor)?;
        let bytes = header.geometry.file_bytes();
        let mapping = Mapping::new(descriptor.as_fd(), bytes, Access::Read)
            .map_err(|errno| ShmError::mapping("map a segment", bytes, errno))?;
        // Weights do not belong into core dumps, but may end there.
        mapping.advise(0, bytes, Advice::LinuxDontDump).ok();
        let unmapped = Unmapped(Some(Box::new(unmapped)));
        Ok(Arc::new(Self { header, mapping, descriptor, unmapped }))
    }

    /// Its name, as its daemon gave it.
    #[must_use]
    pub fn id(&self) -> SegmentId {
        self.header.id
    }

    /// The security domain it belongs to.
    #[must_use]
    pub fn domain(&self) -> u64 {
        self.header.domain
    }

    /// How many slots it has.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.header.geometry.slots()
    }

    /// Size of each slot.
    #[must_use]
    pub fn slot_bytes(&self) -> usize {
        self.header.geometry.slot_bytes()
    }

    /// Size of the whole mapping.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.mapping.bytes()
    }

    /// Where the mapping begins, for a driver that registers it. Every [`SlotView`] lies in it.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.mapping.as_ptr()
    }

    /// The generation of a slot at this moment; 0 for a slot that does not exist.
    #[must_use]
    pub fn generation(&self, slot: SlotIndex) -> Generation {
        let offset = self.header.geometry.generation_offset(slot);
        Generation(offset.map_or(0, |offset| self.mapping.word(offset).load(Ordering::Relaxed)))
    }

    /// The first `len` bytes of a slot that is granted to the caller. The lease must be held for
    /// as long as the view, or a clone of it, lives.
    pub fn view(
        self: &Arc<Self>,
        slot: SlotIndex,
        generation: Generation,
        len: usize,
    ) -> Result<SlotView, ShmError> {
        let offset = self.granted(slot, generation, len)?;
        Ok(SlotView { map: Arc::clone(self), slot, generation, offset, len })
    }

    /// Where a granted slot begins in the file.
    pub(crate) fn granted(
        &self,
        slot: SlotIndex,
        granted: Generation,
        len: usize,
    ) -> Result<usize, ShmError> {
        let (segment, slots, bound) = (self.id(), self.slots(), self.slot_bytes());
        let offset = self.header.geometry.slot_offset(slot).ok_or(ShmError::NoSuchSlot {
            segment,
            slot,
            slots,
        })?;
        if len > bound {
            return Err(ShmError::OutOfRange { what: "slot", offset: 0, len, bound });
        }
        let found = self.generation(slot);
        // Generation 0 was never written, so nobody can have been granted it.
        if found != granted || found == Generation(0) {
            return Err(ShmError::Stale { segment, slot, granted, found });
        }
        // What the daemon wrote before it granted the slot is seen after this.
        fence(Ordering::Acquire);
        Ok(offset)
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The header of a descriptor that has every seal and the right size.
fn checked_header(descriptor: &OwnedFd) -> Result<Header, ShmError> {
    let seals = match rustix::fs::fcntl_get_seals(descriptor) {
        Ok(seals) => seals,
        Err(Errno::INVAL) => return Err(ShmError::Foreign("it is no memfd")),
        Err(errno) => return Err(ShmError::system("read the seals of a segment", errno)),
    };
    if !seals.contains(SEALS) {
        return Err(ShmError::Foreign("it is not sealed against writing and resizing"));
    }
    let status = rustix::fs::fstat(descriptor)
        .map_err(|errno| ShmError::system("read the size of a segment", errno))?;
    let file_bytes =
        u64::try_from(status.st_size).map_err(|_| ShmError::Foreign("its size is negative"))?;
    let mut bytes = [0; HEADER_BYTES];
    let read = rustix::io::retry_on_intr(|| rustix::io::pread(descriptor, &mut bytes, 0))
        .map_err(|errno| ShmError::system("read the header of a segment", errno))?;
    if read != HEADER_BYTES {
        return Err(ShmError::Foreign("it is too short for a header"));
    }
    Header::decode(&bytes, file_bytes, rustix::param::page_size())
}

/// The bytes of one granted slot. Keeps the mapping alive, not the lease.
#[derive(Clone)]
pub struct SlotView {
    map: Arc<SegmentMap>,
    slot: SlotIndex,
    generation: Generation,
    offset: usize,
    len: usize,
}

impl SlotView {
    /// The granted bytes. The caller holds the lease while it uses them.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is readable and cannot shrink (sealed, checked by `open`). No
        // process but the daemon can write to it, and the daemon does so only after the lease on
        // the slot has ended, which the holder of a view has promised not to let happen.
        unsafe { self.map.mapping.slice(self.offset, self.len) }
    }

    /// Whether the slot is still the one that was granted. Asked after the last use of the bytes,
    /// true means that all of them were right.
    #[must_use]
    pub fn is_current(&self) -> bool {
        fence(Ordering::Acquire);
        self.map.generation(self.slot) == self.generation
    }

    /// The segment that the bytes lie in.
    #[must_use]
    pub fn segment(&self) -> &Arc<SegmentMap> {
        &self.map
    }

    /// Which slot.
    #[must_use]
    pub fn slot(&self) -> SlotIndex {
        self.slot
    }

    /// The generation of the grant.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }
}

impl fmt::Debug for SlotView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (segment, slot) = (self.map.id(), self.slot);
        write!(f, "SlotView({segment}:{slot}@{}, {} bytes)", self.generation, self.len)
    }
}
