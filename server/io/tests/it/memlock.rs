//! A process that may lock little memory: registering fails, says what to do, and everything works
//! all the same.

use std::process::Command;

use forebay_io::{FileOffset, RegisterError};
use forebay_shm::{Segment, SegmentId, SegmentSpec, SlotIndex};
use forebay_testkit::temp_dir;
use rustix::thread::CapabilitySet;

use crate::uring;

const CHILD: &str = "confined-child";
const TEST: &str = "memlock::memory_over_the_limit_is_used_without_being_registered";

#[test]
fn memory_over_the_limit_is_used_without_being_registered() {
    if std::env::args().any(|argument| argument == CHILD) {
        // Capabilities belong to a thread, and the engine's threads inherit those of this one.
        return std::thread::scope(|scope| scope.spawn(in_child).join().expect("no panic"));
    }
    let executable = std::env::current_exe().expect("this test");
    let child = Command::new("prlimit")
        .args(["--memlock=1048576", "--"])
        .arg(executable)
        .args(["--exact", TEST, "--skip", CHILD, "--nocapture"])
        .output();
    let Ok(child) = child else {
        return println!("skipped {TEST}: prlimit (util-linux) is not installed");
    };
    let (stdout, stderr) =
        (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    print!("{stdout}");
    assert!(child.status.success() && stdout.contains("1 passed"), "{stdout}\n{stderr}");
}

fn in_child() {
    let mut sets = rustix::thread::capabilities(None).expect("capabilities");
    sets.effective.remove(CapabilitySet::IPC_LOCK);
    rustix::thread::set_capabilities(None, sets).expect("fewer capabilities");
    let Some(engine) = uring() else { return };
    let slot_bytes = 1 << 20;
    let spec = SegmentSpec { id: SegmentId(1), domain: 0, slot_bytes, slots: 4, lock: false };
    let segment = Segment::create(&spec).expect("a segment");
    let refused = engine.register(&segment).expect_err("4 MiB with a limit of 1 MiB");
    assert!(matches!(refused, RegisterError::Memlock { limit: Some(1_048_576), .. }), "{refused}");
    assert!(refused.to_string().contains("LimitMEMLOCK"), "{refused}");
    let directory = temp_dir();
    let file = crate::file(directory.path(), "x");
    file.truncate(1 << 20).expect("a file of zeroes");
    let mut writer = segment.writer(SlotIndex(3)).expect("a slot");
    writer.as_mut_slice().fill(1);
    let read = engine.read(&file, FileOffset(0), writer, 0..slot_bytes);
    let read = futures::executor::block_on(read).expect("a read into memory that is not locked");
    assert!(read.target.as_slice().iter().all(|&byte| byte == 0));
    assert_eq!(engine.stats().registered_ops_total, 0);
}
