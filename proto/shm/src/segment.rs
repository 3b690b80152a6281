//! The daemon's side of a segment.
//!
//! [`Segment::create`] makes the memfd, maps it writable, gives it memory, and only then seals
//! it: F_SEAL_FUTURE_WRITE leaves the mapping that exists and forbids every later one, whoever
//! asks and however the file is opened again. After that the writable descriptor is closed; what
//! remains is one read-only descriptor to hand out. Memory is given back by dropping the last
//! `Arc` here and in the clients: the seals forbid to punch holes.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::Advice;
use rustix::process::{Resource, getrlimit};

use crate::error::ShmError;
use crate::ids::{Generation, SegmentId, SlotIndex};
use crate::layout::{Geometry, HUGE_PAGE_BYTES, Header};
use crate::mapping::{Access, Mapping};
use crate::slot::SlotWriter;
use crate::states::{SlotState, SlotStates};

/// The seals that every segment has, and that clients insist on.
pub(crate) const SEALS: SealFlags =
    SealFlags::GROW.union(SealFlags::SHRINK).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

/// What segment to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentSpec {
    /// Its name, unique in this daemon.
    pub id: SegmentId,
    /// The security domain whose members may map it. Never changes.
    pub domain: u64,
    /// Size of each slot: a multiple of the page size.
    pub slot_bytes: usize,
    /// How many slots.
    pub slots: u32,
    /// Whether its pages should be kept from being swapped out.
    pub lock: bool,
}

impl SegmentSpec {
    /// How large the segment's file will be: its slots, and less than 2 MiB or one slot before
    /// them.
    pub fn file_bytes(&self) -> Result<usize, ShmError> {
        Ok(self.geometry()?.file_bytes())
    }

    fn geometry(&self) -> Result<Geometry, ShmError> {
        Geometry::new(self.slot_bytes, self.slots, rustix::param::page_size())
    }
}

/// What could be had of the memory that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Whether the pages are locked.
    pub locked: bool,
    /// Why they are not, although that was asked for: one sentence with what to do.
    pub lock_error: Option<String>,
    /// How many bytes of the slots are known to lie on huge pages.
    pub huge_bytes: usize,
}

/// A region of memory that this process writes and clients read.
#[derive(Debug)]
pub struct Segment {
    header: Header,
    mapping: Mapping,
    descriptor: OwnedFd,
    placement: Placement,
    states: SlotStates,
}

impl Segment {
    /// Makes a segment whose memory is there before this returns, which can take a second per
    /// GiB: call it where blocking is allowed. Memory that cannot be locked is no error; see
    /// [`Segment::placement`].
    pub fn create(spec: &SegmentSpec) -> Result<Arc<Self>, ShmError> {
        Self::create_with(spec, |_memory| ())
    }

    /// The same, and in between, when the slots are mapped and have no memory yet,
    /// `place` hears where they are: to tell the kernel where their memory should come from. The
    /// address gives it no right to touch a byte.
    pub fn create_with(
        spec: &SegmentSpec,
        place: impl FnOnce(*const [u8]),
    ) -> Result<Arc<Self>, ShmError> {
        let geometry = spec.geometry()?;
        let header = Header { id: spec.id, domain: spec.domain, geometry };
        let file = new_file(&header)?;
        let mapping = Mapping::new(file.as_fd(), geometry.file_bytes(), Access::ReadWrite)
            .map_err(|errno| ShmError::mapping("map a segment", geometry.file_bytes(), errno))?;
        place(slot_memory(&mapping, &geometry));
        let huge_bytes = populate(&mapping, &geometry)?;
        let lock_error = spec.lock.then(|| lock(&mapping, &geometry)).and_then(Result::err);
        let locked = spec.lock && lock_error.is_none();
        let placement = Placement { locked, lock_error, huge_bytes };
        let descriptor = seal(&file)?;
        let states = SlotStates::new(geometry.slots());
        Ok(Arc::new(Self { header, mapping, descriptor, placement, states }))
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> SegmentId {
        self.header.id
    }

    /// The security domain whose members may map it.
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

    /// Size of the whole file.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.header.geometry.file_bytes()
    }

    /// Where all slots lie in this process, one after the other: to tell the kernel about memory
    /// that will be used often. It gives no right to touch a byte of it.
    #[must_use]
    pub fn slot_memory(&self) -> *const [u8] {
        slot_memory(&self.mapping, &self.header.geometry)
    }

    /// What could be had of the memory that was asked for.
    #[must_use]
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The descriptor to send to clients. Whoever has it can map the segment to read it, and can
    /// neither write, resize nor unseal it.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// How often a slot has been taken for writing. A slot that does not exist was never taken.
    #[must_use]
    pub fn generation(&self, slot: SlotIndex) -> Generation {
        let offset = self.header.geometry.generation_offset(slot);
        Generation(offset.map_or(0, |offset| self.mapping.word(offset).load(Ordering::Relaxed)))
    }

    /// What a slot is used for at this moment; none if there is no such slot.
    #[must_use]
    pub fn state(&self, slot: SlotIndex) -> Option<SlotState> {
        (slot.0 < self.slots()).then(|| self.states.state(slot.0 as usize))
    }

    /// Takes a free slot for writing and bumps its generation.
    pub fn writer(self: &Arc<Self>, slot: SlotIndex) -> Result<SlotWriter, ShmError> {
        let (segment, slots) = (self.id(), self.slots());
        let offset = self.header.geometry.generation_offset(slot).ok_or(ShmError::NoSuchSlot {
            segment,
            slot,
            slots,
        })?;
        if !self.states.claim(slot.0 as usize) {
            return Err(ShmError::SlotBusy { segment, slot });
        }
        let word = self.mapping.word(offset);
        let generation = word.load(Ordering::Relaxed) + 1;
        word.store(generation, Ordering::Relaxed);
        // Whoever sees a byte of what is written next also sees the new generation, if it asks
        // after an acquire fence (SlotView::is_current).
        fence(Ordering::Release);
        Ok(SlotWriter::new(Arc::clone(self), slot, Generation(generation)))
    }

    pub(crate) fn states(&self) -> &SlotStates {
        &self.states
    }

    /// The bytes of a slot.
    ///
    /// # Safety
    ///
    /// The slot exists, and its state keeps writers out while the slice lives.
    pub(crate) unsafe fn slot_slice(&self, slot: SlotIndex) -> &[u8] {
        let (offset, len) = self.slot_range(slot);
        // SAFETY: the mapping is readable, and the caller holds the slot against writers.
        unsafe { self.mapping.slice(offset, len) }
    }

    /// The bytes of a slot, for writing.
    ///
    /// # Safety
    ///
    /// The slot exists, and its state keeps everybody else out while the slice lives.
    #[expect(clippy::mut_from_ref, reason = "the state word makes the one caller exclusive")]
    pub(crate) unsafe fn slot_slice_mut(&self, slot: SlotIndex) -> &mut [u8] {
        let (offset, len) = self.slot_range(slot);
        // SAFETY: the mapping is writable, and the caller holds the slot alone.
        unsafe { self.mapping.slice_mut(offset, len) }
    }

    /// Where a slot lies; nothing for a slot that does not exist.
    fn slot_range(&self, slot: SlotIndex) -> (usize, usize) {
        let geometry = &self.header.geometry;
        geometry.slot_offset(slot).map_or((0, 0), |offset| (offset, geometry.slot_bytes()))
    }
}

/// A memfd of the right size that holds the header.
fn new_file(header: &Header) -> Result<OwnedFd, ShmError> {
    let bytes = header.geometry.file_bytes();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // vm.memfd_noexec=2 insists on NOEXEC_SEAL; kernels before 6.3 do not know it.
    let file = rustix::fs::memfd_create("forebay", flags | MemfdFlags::NOEXEC_SEAL)
        .or_else(|errno| match errno {
            Errno::INVAL => rustix::fs::memfd_create("forebay", flags),
            _ => Err(errno),
        })
        .map_err(|errno| ShmError::memory("make a memfd", bytes, errno))?;
    rustix::fs::ftruncate(&file, bytes as u64)
        .map_err(|errno| ShmError::memory("size a memfd", bytes, errno))?;
    let encoded = header.encode();
    let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(&file, &encoded, 0))
        .map_err(|errno| ShmError::memory("write the header of a segment", bytes, errno))?;
    if written != encoded.len() {
        return Err(ShmError::memory("write the header of a segment", bytes, Errno::NOSPC));
    }
    Ok(file)
}

/// Where the slots lie.
fn slot_memory(mapping: &Mapping, geometry: &Geometry) -> *const [u8] {
    let bytes = geometry.file_bytes();
    let first = geometry.slot_offset(SlotIndex(0)).unwrap_or(bytes);
    let start = mapping.as_ptr().wrapping_add(first);
    std::ptr::slice_from_raw_parts(start, bytes - first)
}

/// The parts of the file that have memory behind them: all but the hole before the slots.
fn populated(geometry: &Geometry) -> [(usize, usize); 2] {
    let data = geometry.data_offset();
    let table_pages = geometry.table_end().next_multiple_of(rustix::param::page_size());
    [(0, table_pages.min(data)), (data, geometry.file_bytes() - data)]
}

/// Gives the segment its memory; how many bytes of it are told to lie on huge pages.
fn populate(mapping: &Mapping, geometry: &Geometry) -> Result<usize, ShmError> {
    // Weights do not belong into core dumps, but may end there.
    mapping.advise(0, mapping.bytes(), Advice::LinuxDontDump).ok();
    let huge_bytes = populate_huge(mapping, geometry);
    // What has memory keeps it; what could not be had as huge pages comes as small ones.
    for (offset, len) in populated(geometry) {
        mapping
            .advise(offset, len, Advice::LinuxPopulateWrite)
            .map_err(|errno| ShmError::memory("populate a segment", len, errno))?;
    }
    Ok(huge_bytes)
}

/// Puts the slots on huge pages, as far as the kernel has some. A reader that maps the segment
/// then takes one page fault for 2 MiB, a device that reads into it gets one piece of memory
/// instead of 512, and a driver that registers it has as many fewer pages to pin.
///
/// The kernel does it by itself where shmem_enabled says so, which hardly any system's does. To
/// collapse is allowed wherever that is not `deny`. Only slots: a huge page would fill the hole
/// before them.
fn populate_huge(mapping: &Mapping, geometry: &Geometry) -> usize {
    let data = geometry.data_offset();
    let len = mapping.bytes() - data;
    mapping.advise(data, len, Advice::LinuxHugepage).ok();
    if !data.is_multiple_of(HUGE_PAGE_BYTES) {
        return 0;
    }
    // The end of the last slot may lie inside a huge page.
    let len = len - len % HUGE_PAGE_BYTES;
    let page = rustix::param::page_size();
    // In steps: a signal, or memory that is short, ends one of them.
    (data..data + len)
        .step_by(HUGE_PAGE_BYTES)
        .map_while(|offset| {
            let seed = mapping.advise(offset, page, Advice::LinuxPopulateWrite);
            let huge = seed.and_then(|()| mapping.collapse(offset, HUGE_PAGE_BYTES));
            huge.is_ok().then_some(HUGE_PAGE_BYTES)
        })
        .sum()
}

/// Keeps the pages from being swapped out, or says why that is not to be had.
fn lock(mapping: &Mapping, geometry: &Geometry) -> Result<(), String> {
    let refused = populated(geometry)
        .into_iter()
        .find_map(|(offset, len)| mapping.lock(offset, len).err().map(|errno| (len, errno)));
    let Some((len, errno)) = refused else { return Ok(()) };
    let limit = getrlimit(Resource::Memlock)
        .current
        .map_or_else(|| "none".to_owned(), |bytes| format!("{bytes} bytes"));
    Err(format!(
        "cannot lock {len} bytes of shared memory ({errno}; limit {limit}): raise \
         LimitMEMLOCK of the service (ulimit -l) or give it CAP_IPC_LOCK"
    ))
}

/// Ends all writing but that through mappings that exist, and gives a descriptor to hand out.
fn seal(file: &OwnedFd) -> Result<OwnedFd, ShmError> {
    rustix::fs::fcntl_add_seals(file, SEALS)
        .map_err(|errno| ShmError::system("seal a segment", errno))?;
    // The seals are the wall. That other users cannot open the file again is a second one.
    rustix::fs::fchmod(file, Mode::RUSR)
        .map_err(|errno| ShmError::system("restrict a segment", errno))?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| ShmError::system("open a segment again to read it", errno))
}
