//! The way into every function: no panic and no signal leaves it.
//!
//! A panic becomes `FB_INTERNAL`. `SIGPIPE`, which a write to a daemon that died raises, is blocked
//! in the calling thread for the time of a call, and taken back if it came: the process of a C
//! caller has not been told to ignore it, as a Rust program is.

use std::any::Any;
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use crate::handles;
use crate::status::{FB_INTERNAL, Fault};

thread_local! {
    /// What the last failed call of this thread said.
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs a call with `handle`, and notes its failure for `fb_last_error`.
pub(crate) fn enter<H>(handle: *const H, call: impl FnOnce() -> Result<i32, Fault>) -> i32 {
    let quiet = QuietPipe::new();
    // What a panic leaves half done is behind a lock of its own, and the load it befell says so.
    let answer = catch_unwind(AssertUnwindSafe(call));
    drop(quiet);
    let fault = match answer {
        Ok(Ok(status)) => return status,
        Ok(Err(fault)) => fault,
        Err(panic) => panicked(panic.as_ref()),
    };
    handles::note(handle.addr(), &fault.text);
    // A thread that is ending has no place for it any more.
    let _gone = LAST.try_with(|last| last.replace(fault.text));
    fault.status
}

/// What the last failed call of this thread said.
pub(crate) fn last_of_thread() -> String {
    LAST.try_with(|last| last.borrow().clone()).unwrap_or_default()
}

/// What a panic says.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Fault {
    let said = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let said = said.unwrap_or("it says nothing");
    Fault::new(FB_INTERNAL, format!("a bug of Forebay, please report it: {said}"))
}

/// Blocks every signal in this thread, which is one of ours: handlers of the caller's run on
/// theirs.
pub(crate) fn block_signals() {
    let mut all = empty_set();
    // SAFETY: the set is initialised memory.
    unsafe { libc::sigfillset(&mut all) };
    // SAFETY: the set is initialised; the call changes this thread's mask, and tells no old one.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &all, ptr::null_mut()) };
}

/// `SIGPIPE` blocked in this thread, unless one is pending already.
struct QuietPipe {
    before: Option<libc::sigset_t>,
}

impl QuietPipe {
    fn new() -> Self {
        if is_pending() {
            return Self { before: None };
        }
        let mut before = empty_set();
        let pipe = pipe_set();
        // SAFETY: both sets are initialised and live; the call changes this thread's mask only.
        let blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &pipe, &mut before) };
        Self { before: (blocked == 0).then_some(before) }
    }
}

impl Drop for QuietPipe {
    fn drop(&mut self) {
        let Some(before) = self.before else { return };
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        if is_pending() {
            // SAFETY: the set and the time are initialised and live, and no information is asked.
            unsafe { libc::sigtimedwait(&pipe_set(), ptr::null_mut(), &now) };
        }
        // SAFETY: the set is the one that the mask was before; no old one is asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut()) };
    }
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the set is writable memory of its type.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised by `sigemptyset`, and every bit pattern is a set.
    unsafe { set.assume_init() }
}

fn pipe_set() -> libc::sigset_t {
    let mut set = empty_set();
    // SAFETY: the set is initialised, and the signal exists.
    unsafe { libc::sigaddset(&mut set, libc::SIGPIPE) };
    set
}

fn is_pending() -> bool {
    let mut pending = empty_set();
    // SAFETY: the set is initialised memory that the call overwrites.
    unsafe { libc::sigpending(&mut pending) };
    // SAFETY: the set is initialised, and the signal exists.
    unsafe { libc::sigismember(&pending, libc::SIGPIPE) == 1 }
}
