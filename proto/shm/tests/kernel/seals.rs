//! What a peer that holds the descriptor can not do. Run as root these are the strong case: no
//! file mode stands in the way, only the seals.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use forebay_shm::{Segment, SegmentId, SegmentMap, SegmentSpec, ShmError};
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::{Errno, FdFlags};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use crate::{SLOT_BYTES, filled, opened, segment};

/// Asks for a writable shared mapping, and gives back why there is none.
fn map_writable(file: BorrowedFd<'_>, bytes: usize) -> Result<(), Errno> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the kernel picks the place of the mapping, so nothing that is in use changes.
    let mapped =
        unsafe { rustix::mm::mmap(ptr::null_mut(), bytes, access, MapFlags::SHARED, file, 0) };
    mapped.map(|_| ())
}

fn refuses_every_write(file: BorrowedFd<'_>, bytes: usize, what: &str) {
    let mapped = map_writable(file, bytes);
    assert!(matches!(mapped, Err(Errno::PERM | Errno::ACCESS)), "{what}: {mapped:?}");
    let written = rustix::io::pwrite(file, b"x", 0);
    assert!(matches!(written, Err(Errno::PERM | Errno::BADF)), "{what}: {written:?}");
    for len in [0, bytes as u64 / 2, bytes as u64 * 2] {
        let resized = rustix::fs::ftruncate(file, len);
        assert!(matches!(resized, Err(Errno::PERM | Errno::INVAL)), "{what}: {resized:?}");
    }
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let punched = rustix::fs::fallocate(file, hole, 0, 4096);
    assert!(matches!(punched, Err(Errno::PERM | Errno::BADF)), "{what}: {punched:?}");
    let sealed = rustix::fs::fcntl_add_seals(file, SealFlags::WRITE);
    assert_eq!(sealed, Err(Errno::PERM), "{what}");
}

#[test]
fn a_descriptor_gives_no_way_to_write() {
    let segment = segment(1, 4);
    let reader = filled(&segment, 2, 0x11);
    let sent = segment.descriptor().try_clone_to_owned().expect("a copy");
    refuses_every_write(sent.as_fd(), segment.bytes(), "as sent");
    for access in [OFlags::RDWR, OFlags::WRONLY] {
        let path = format!("/proc/self/fd/{}", sent.as_raw_fd());
        match rustix::fs::open(path, access, Mode::empty()) {
            Ok(again) => refuses_every_write(again.as_fd(), segment.bytes(), "opened again"),
            Err(errno) => assert_eq!(errno, Errno::ACCESS, "refused by the file's mode"),
        }
    }
    assert!(reader.bytes().iter().all(|&byte| byte == 0x11));
}

#[test]
fn a_mapping_cannot_be_made_writable() {
    let segment = segment(1, 4);
    let map = opened(&segment);
    let access = MprotectFlags::READ | MprotectFlags::WRITE;
    // SAFETY: the range is the whole mapping; if it became writable no reference would break.
    let changed =
        unsafe { rustix::mm::mprotect(map.as_ptr().cast_mut().cast(), map.bytes(), access) };
    assert_eq!(changed, Err(Errno::ACCESS));
}

#[test]
fn the_daemon_itself_still_writes_and_only_through_its_mapping() {
    let segment = segment(1, 1);
    let map = opened(&segment);
    for value in [1, 2, 3] {
        let reader = filled(&segment, 0, value);
        let view = map.view(reader.slot(), reader.generation(), SLOT_BYTES).expect("granted");
        assert!(view.bytes().iter().all(|&byte| byte == value));
    }
}

#[test]
fn the_descriptor_is_read_only_private_and_closed_on_exec() {
    let segment = segment(1, 1);
    let sent = segment.descriptor();
    let flags = rustix::fs::fcntl_getfl(sent).expect("flags");
    assert_eq!(flags & OFlags::RWMODE, OFlags::RDONLY);
    assert_eq!(rustix::io::fcntl_getfd(sent), Ok(FdFlags::CLOEXEC));
    let status = rustix::fs::fstat(sent).expect("status");
    assert_eq!(status.st_mode & 0o777, 0o400);
    assert_eq!(u64::try_from(status.st_size), Ok(segment.bytes() as u64));
}

#[test]
fn memory_is_there_from_the_start() {
    let spec =
        SegmentSpec { id: SegmentId(1), domain: 0, slot_bytes: 2 << 20, slots: 2, lock: false };
    let segment = Segment::create(&spec).expect("a segment");
    let status = rustix::fs::fstat(segment.descriptor()).expect("status");
    assert!(status.st_blocks * 512 >= 4 << 20, "{} blocks for 4 MiB", status.st_blocks);
    assert_eq!(segment.bytes(), 6 << 20);
    assert_eq!(spec.file_bytes().expect("a possible segment"), segment.bytes());
}

/// A memfd with the bytes of a real segment, but other seals.
fn copy_with_seals(segment: &Segment, seals: SealFlags) -> OwnedFd {
    let copy = memfd();
    let mut bytes = vec![0; segment.bytes()];
    rustix::io::pread(segment.descriptor(), &mut bytes[..], 0).expect("read");
    rustix::io::write(&copy, &bytes).expect("write");
    rustix::fs::fcntl_add_seals(&copy, seals).expect("seal");
    copy
}

fn memfd() -> OwnedFd {
    rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .expect("a memfd")
}

#[test]
fn a_client_insists_on_every_seal() {
    let segment = segment(1, 1);
    let all = [SealFlags::GROW, SealFlags::SHRINK, SealFlags::FUTURE_WRITE, SealFlags::SEAL];
    for missing in all {
        let seals = all.into_iter().filter(|&seal| seal != missing).collect();
        let refused = SegmentMap::open(copy_with_seals(&segment, seals)).expect_err("unsealed");
        assert!(matches!(refused, ShmError::Foreign(_)), "without {missing:?}: {refused}");
    }
    SegmentMap::open(copy_with_seals(&segment, all.into_iter().collect())).expect("all four");
}

#[test]
fn a_client_refuses_what_is_no_memfd() {
    let file = |path: &str| -> io::Result<OwnedFd> { Ok(File::open(path)?.into()) };
    let executable = std::env::current_exe().expect("this test");
    let (pipe, _writer) = io::pipe().expect("a pipe");
    for (what, descriptor) in [
        ("a regular file", file(&executable.to_string_lossy()).expect("open")),
        ("a device", file("/dev/zero").expect("open")),
        ("a directory", file("/proc").expect("open")),
        ("a pipe", pipe.into()),
    ] {
        let refused = SegmentMap::open(descriptor).expect_err(what);
        assert!(matches!(refused, ShmError::Foreign(_)), "{what}: {refused}");
    }
}
