//! `libforebay.so`: the blocking Rust library for C.
//!
//! The text of the public items is that of `include/forebay.h`, which a test generates and
//! compares.
//!
//! ```text
//!   C ── fb_… ──► entry (no panic, no signal) ──► handles (a number → an object) ──► blocking::Client
//!                   │                                │
//!                   └─ status, fb_last_error          ├─ OpenLoad ── lends ──► Lent ── released by C
//!                                                     │                         │ fb_copy_tensor
//!                                                     └─ OpenDevice, OpenStream ◄┘ (thread in copies)
//! ```
//!
//! * `access` reads what a caller is known by.
//! * `memory` is where the caller's memory is read and written; every function hands it the
//!   promises of the header, which are its callers' to keep.
//! * `handles` never dereferences a handle.

#![expect(
    clippy::missing_safety_doc,
    reason = "the text of each function is its contract: what pointers have to be, who owns what"
)]

mod access;
mod client;
mod copies;
mod device;
mod entry;
mod handles;
mod lent;
mod load;
mod memory;
mod options;
mod status;

use std::ffi::{c_char, c_void};

pub use client::{FbClient, fb_close, fb_connect, fb_connect_with, fb_prefetch, fb_status};
pub use device::{
    FbCopy, FbDevice, FbStream, fb_copy_query, fb_copy_release, fb_copy_tensor, fb_copy_wait,
    fb_device_close, fb_device_open, fb_stream_close, fb_stream_open, fb_stream_wait,
};
pub use lent::{FbTensor, fb_tensor_get_info, fb_tensor_release};
pub use load::{
    FbLoad, FbTensorCallback, fb_load_all, fb_load_close, fb_load_describe_object,
    fb_load_describe_tensor, fb_load_finish, fb_load_get_info, fb_load_next_object,
    fb_load_next_tensor, fb_load_open, fb_load_report_json, fb_load_to_device,
};
pub use options::*;
pub use status::*;

use status::meaning;

/// The version of this interface that the header describes. It rises when something is added; what
/// is there stays.
pub const FB_ABI_VERSION: u32 = 3;

/// The version of the interface that the library has. It has to be at least the `FB_ABI_VERSION` of
/// the header that the program was compiled with.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn fb_abi_version() -> u32 {
    FB_ABI_VERSION
}

/// What a status means, in a few words. The text lives for ever.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn fb_strerror(status: i32) -> *const c_char {
    meaning(status).as_ptr().cast()
}

/// Writes one sentence about the last call that failed with this handle (a client, load, ...), with
/// a NUL and cut to `bytes`, to `buffer`, which may be NULL. With NULL, or a handle that is closed,
/// it is about the last call of this thread that failed. A call that works leaves it as it is.
/// Returns the bytes that the sentence needs, its NUL included.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_last_error(
    handle: *const c_void,
    buffer: *mut c_char,
    bytes: usize,
) -> usize {
    let said = handles::noted(handle.addr()).unwrap_or_else(entry::last_of_thread);
    // SAFETY: NULL or the caller's buffer.
    unsafe { memory::give_text(&said, buffer, bytes) }
}
