//! What happens at the limits of the process. Each test runs itself again in a child process that
//! `prlimit` confines, so that no other test meets the limit.

use std::io::{ErrorKind, PipeReader};
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;

use forebay_shm::{
    ObjectMap, Placement, Segment, SegmentId, SegmentMap, SegmentSpec, ShmError, SlotIndex,
    recv_descriptor, send_descriptor,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::CapabilitySet;

use crate::{SLOT_BYTES, filled, opened, segment};

/// A filter that matches no test: its presence tells a child that it is one.
const CHILD: &str = "confined-child";

/// Whether this process is the confined child. If it is not, runs the child and checks that the
/// test passed there.
#[expect(clippy::print_stdout, reason = "says why a test was skipped")]
fn confined(test: &str, limit: &str) -> bool {
    if std::env::args().any(|argument| argument == CHILD) {
        return true;
    }
    let executable = std::env::current_exe().expect("this test");
    let child = Command::new("prlimit")
        .arg(limit)
        .arg("--")
        .arg(executable)
        .args(["--exact", test, "--skip", CHILD, "--nocapture"])
        .output();
    if child.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        println!("skipped {test}: prlimit (util-linux) is not installed");
        return false;
    }
    let output = child.expect("prlimit runs");
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{test} under {limit}:\n{stdout}\n{stderr}");
    assert!(stdout.contains("1 passed"), "{test} did not run:\n{stdout}");
    false
}

/// Where each locked segment of a given size ends up, without the privilege to ignore the limit.
fn placements(slots: &[u32]) -> Vec<Placement> {
    let unprivileged = || {
        let mut sets = rustix::thread::capabilities(None).expect("capabilities");
        sets.effective.remove(CapabilitySet::IPC_LOCK);
        rustix::thread::set_capabilities(None, sets).expect("fewer capabilities");
        let place = |&slots: &u32| {
            let id = SegmentId(u64::from(slots));
            let spec = SegmentSpec { id, domain: 0, slot_bytes: 1 << 20, slots, lock: true };
            let segment = Segment::create(&spec).expect("a segment, locked or not");
            assert!(filled(&segment, slots - 1, 7).bytes().iter().all(|&byte| byte == 7));
            segment.placement().clone()
        };
        slots.iter().map(place).collect()
    };
    // Capabilities belong to a thread: this one takes its own with it.
    thread::scope(|scope| scope.spawn(unprivileged).join().expect("no panic"))
}

#[test]
fn memory_over_the_lock_limit_is_used_unlocked_and_says_so() {
    if !confined(
        "limits::memory_over_the_lock_limit_is_used_unlocked_and_says_so",
        "--memlock=8388608",
    ) {
        return;
    }
    let placements = placements(&[4, 16]);
    assert_eq!(placements[0], Placement { locked: true, lock_error: None, huge_bytes: 0 });
    assert!(!placements[1].locked);
    let error = placements[1].lock_error.as_deref().expect("a reason");
    for part in ["16777216 bytes", "limit 8388608 bytes", "LimitMEMLOCK"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn at_the_limit_of_open_files_errors_name_it() {
    if !confined("limits::at_the_limit_of_open_files_errors_name_it", "--nofile=48") {
        return;
    }
    let flags = SocketFlags::CLOEXEC;
    let kind = SocketType::SEQPACKET;
    let (sender, receiver) =
        rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None).expect("a socket pair");
    let made = segment(1, 1);
    send_descriptor(sender.as_fd(), b"segment", Some(made.descriptor())).expect("sent");
    let mut taken: Vec<PipeReader> = Vec::new();
    while let Ok((reader, _)) = std::io::pipe() {
        taken.push(reader);
    }
    while let Ok(reader) = taken[0].try_clone() {
        taken.push(reader);
    }
    let spec =
        SegmentSpec { id: SegmentId(2), domain: 0, slot_bytes: SLOT_BYTES, slots: 1, lock: false };
    let refused = Segment::create(&spec).expect_err("no descriptor left");
    assert!(matches!(refused, ShmError::DescriptorsExhausted { limit: Some(48), .. }), "{refused}");
    assert!(refused.to_string().contains("LimitNOFILE"), "{refused}");
    let lost = recv_descriptor(receiver.as_fd(), &mut [0; 64]).expect_err("no room for it");
    assert!(lost.to_string().contains("LimitNOFILE"), "{lost}");
    taken.pop();
    let refused = Segment::create(&spec).expect_err("one descriptor is not enough");
    assert!(matches!(refused, ShmError::DescriptorsExhausted { .. }), "{refused}");
    taken.pop();
    Segment::create(&spec).expect("nothing was leaked by the refusals");
}

#[test]
fn at_the_limit_of_mappings_nothing_changes() {
    if !confined("limits::at_the_limit_of_mappings_nothing_changes", "--core=0") {
        return;
    }
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").expect("a limit");
    let limit: usize = limit.trim().parse().expect("a number");
    if limit > 100_000 {
        println!("skipped: vm.max_map_count is {limit}, too many mappings to make in a test");
        return;
    }
    let made = segment(1, 1);
    let lease = filled(&made, 0, 3);
    let map = opened(&made);
    let spare: Vec<_> = (0..8).map(|_| opened(&made)).collect();
    let descriptor = made.descriptor().try_clone_to_owned().expect("a copy");
    let mut object = ObjectMap::reserve(limit * 2 * 4096).expect("address space");
    // Pages without access between them, so that no two mappings can be merged.
    let place = |object: &ObjectMap, page: usize| {
        object.place(page * 2 * 4096, &map, SlotIndex(0), lease.generation(), 4096)
    };
    let (page, refused) = (0..limit)
        .find_map(|page| place(&object, page).err().map(|error| (page, error)))
        .expect("the limit is met");
    let at_limit = |error: &ShmError| {
        assert!(matches!(error, ShmError::AddressSpaceExhausted { .. }), "{error}");
        assert!(error.to_string().contains("vm.max_map_count"), "{error}");
    };
    at_limit(&refused);
    // Placing splits a mapping in three and so is refused one short of the limit in some processes:
    // whole segments take what is left, one mapping each.
    let open = || SegmentMap::open(descriptor.try_clone().expect("a copy"));
    let mut rest = Vec::new();
    let refused = (0..4).find_map(|_| open().map(|map| rest.push(map)).err());
    at_limit(&refused.expect("no mapping left"));
    at_limit(&object.clear(0..4096).expect_err("this takes a mapping too"));
    let at = page * 2 * 4096;
    assert_eq!(object.bytes(at..at + 1), None, "what was refused is not there");
    assert_eq!(object.bytes(at - 8192..at - 8191), Some(&[3][..]), "what is there stays");
    assert_eq!(object.bytes(0..1), Some(&[3][..]), "and what could not be cleared");
    drop((spare, rest));
    place(&object, page).expect("room again");
    object.clear(0..at + 8192).expect("room again");
    assert_eq!(object.bytes(at..at + 1), None);
}

#[test]
fn a_segment_larger_than_the_address_space_is_refused() {
    let spec =
        SegmentSpec { id: SegmentId(1), domain: 0, slot_bytes: 1 << 46, slots: 3, lock: false };
    let refused = Segment::create(&spec).expect_err("192 TiB");
    assert!(matches!(refused, ShmError::AddressSpaceExhausted { .. }), "{refused}");
    for (slot_bytes, slots) in [(0, 1), (100, 1), (4096, 0), (4096, 1 << 20), (1 << 62, 4)] {
        let spec = SegmentSpec { id: SegmentId(1), domain: 0, slot_bytes, slots, lock: false };
        for refused in [Segment::create(&spec).map(|_| 0), spec.file_bytes()] {
            assert!(matches!(refused, Err(ShmError::BadSpec(_))), "{refused:?}");
        }
    }
}

#[test]
fn a_sealed_hole_as_large_as_the_address_space_is_refused() {
    let whole = segment(1, 1);
    let mut header = vec![0; 64];
    rustix::io::pread(whole.descriptor(), &mut header[..], 0).expect("read");
    let (slot_bytes, slots) = (1_u64 << 46, 3_u32);
    let data_offset = 2_u64 << 20;
    let file_bytes = data_offset + 3 * slot_bytes;
    header[12..16].copy_from_slice(&slots.to_ne_bytes());
    header[32..40].copy_from_slice(&slot_bytes.to_ne_bytes());
    header[40..48].copy_from_slice(&data_offset.to_ne_bytes());
    header[48..56].copy_from_slice(&file_bytes.to_ne_bytes());
    let refused = SegmentMap::open(crate::hostile::sealed(&header, file_bytes));
    let refused = refused.expect_err("consistent, but larger than any address space");
    assert!(matches!(refused, ShmError::AddressSpaceExhausted { .. }), "{refused}");
}
