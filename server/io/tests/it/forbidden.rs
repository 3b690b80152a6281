//! Where the kernel forbids a system call: the test runs itself again in a child that installs a
//! seccomp filter on itself, as a container's runtime does, and shows what is used instead.

#![expect(unsafe_code, reason = "installing a seccomp filter has no safe wrapper")]

use std::process::Command;

use forebay_io::{Directory, EngineKind, EngineReason, FileOffset, OpenHow, Preference, choose};

use crate::{buffer, settings};

/// A filter that matches no test: its presence tells a child that it is one.
const CHILD: &str = "confined-child";

/// Whether this process is the child. If it is not, runs it and checks that the test passed there.
pub(crate) fn confined(test: &str) -> bool {
    if std::env::args().any(|argument| argument == CHILD) {
        return true;
    }
    let executable = std::env::current_exe().expect("this test");
    let child = Command::new(executable)
        .args(["--exact", test, "--skip", CHILD, "--nocapture"])
        .output()
        .expect("the child runs");
    let (stdout, stderr) =
        (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success(), "{test}:\n{stdout}\n{stderr}");
    assert!(stdout.contains("1 passed"), "{test} did not run:\n{stdout}");
    false
}

/// From now on, in this thread and those it starts, a system call answers with an error.
pub(crate) fn forbid(call: libc::c_long, errno: i32) {
    let step = |code: u32, skip_unless: u8, value: u32| libc::sock_filter {
        code: u16::try_from(code).expect("a code of 16 bits"),
        jt: 0,
        jf: skip_unless,
        k: value,
    };
    let call = u32::try_from(call).expect("the number of a call");
    let errno = u32::try_from(errno).expect("an errno");
    let mut program = [
        // The number of the call is the first word of seccomp_data.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, call),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | errno),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: takes only numbers; it gives up privileges of this thread.
    let sealed = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(sealed, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the program and its description live until the kernel has copied them, in this call.
    let installed =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    assert_eq!(installed, 0, "{}", std::io::Error::last_os_error());
}

fn writes_and_reads(engine: &std::sync::Arc<dyn forebay_io::IoEngine>) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = crate::file(directory.path(), "x");
    let mut source = buffer(8192);
    source.fill(7);
    let write = engine.write(&file, FileOffset(0), source, 0..8192);
    assert_eq!(futures::executor::block_on(write).expect("a write").bytes, 8192);
    let read = engine.read(&file, FileOffset(4096), buffer(8192), 0..8192);
    let read = futures::executor::block_on(read).expect("a read");
    assert_eq!((read.bytes, &read.target[..4096]), (4096, &[7; 4096][..]));
}

#[test]
fn threads_take_over_where_io_uring_is_forbidden() {
    if !confined("forbidden::threads_take_over_where_io_uring_is_forbidden") {
        return;
    }
    forbid(libc::SYS_io_uring_setup, libc::EPERM);
    let choice = choose(&settings(), Preference::Auto).expect("an engine");
    assert_eq!(choice.engine.stats().kind, EngineKind::Threads);
    let by_sysctl = matches!(choice.reason, EngineReason::DisabledBySysctl(_));
    assert!(by_sysctl || choice.reason == EngineReason::Forbidden, "{:?}", choice.reason);
    let remedy = if by_sysctl { "kernel.io_uring_disabled" } else { "seccomp profile" };
    assert!(choice.reason.to_string().contains(remedy), "{}", choice.reason);
    writes_and_reads(&choice.engine);
}

#[test]
fn threads_take_over_where_the_kernel_has_no_io_uring() {
    if !confined("forbidden::threads_take_over_where_the_kernel_has_no_io_uring") {
        return;
    }
    forbid(libc::SYS_io_uring_setup, libc::ENOSYS);
    let choice = choose(&settings(), Preference::Auto).expect("an engine");
    assert_eq!(choice.reason, EngineReason::NotInKernel);
    writes_and_reads(&choice.engine);
}

#[test]
fn threads_take_over_where_a_ring_cannot_be_asked_what_it_can() {
    if !confined("forbidden::threads_take_over_where_a_ring_cannot_be_asked_what_it_can") {
        return;
    }
    forbid(libc::SYS_io_uring_register, libc::EPERM);
    let choice = choose(&settings(), Preference::Auto).expect("an engine");
    assert_eq!(choice.reason.kind(), EngineKind::Threads, "{}", choice.reason);
    writes_and_reads(&choice.engine);
}

#[test]
fn directories_are_safe_without_openat2() {
    if !confined("forbidden::directories_are_safe_without_openat2") {
        return;
    }
    forbid(libc::SYS_openat2, libc::ENOSYS);
    let path = tempfile::tempdir().expect("a directory");
    let directory = Directory::open(path.path()).expect("a directory of our own");
    directory.file("real", OpenHow::NEW).expect("a file can be made");
    std::os::unix::fs::symlink(path.path().join("real"), path.path().join("link")).expect("a link");
    std::os::unix::fs::symlink(path.path(), path.path().join("loop")).expect("a link");
    directory.file("real", OpenHow::READ).expect("it can be opened");
    directory.subdirectory("below", true).expect("a directory can be made");
    directory.file("link", OpenHow::READ).unwrap_err();
    directory.subdirectory("loop", false).unwrap_err();
}
