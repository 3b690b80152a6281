//! The connection, and the calls on it that are not loads.

use std::ffi::c_char;
use std::time::Duration;

use forebay_client::blocking::Client;
use forebay_client::{CallOptions, Endpoint};

use crate::access;
use crate::entry::enter;
use crate::handles;
use crate::load::told;
use crate::memory::{check, put, take, tell, text};
use crate::options::{FbConnectOptions, FbDaemonStatus, FbPrefetchOptions, FbReport};
use crate::status::{FB_OK, Fault};

/// A connection to the daemon of this node.
#[derive(Debug)]
pub struct FbClient(());

/// Connects to the daemon at `endpoint`, `unix:///run/forebay/forebay.sock`, and sets `*client`.
///
/// Ownership: the caller closes the client with `fb_close`.
/// Threads: any. The client can be used by several threads at once.
/// Errors: `FB_INVALID_ARGUMENT`, `FB_UNAVAILABLE`, `FB_PERMISSION_DENIED`. Then `*client` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_connect(endpoint: *const c_char, client: *mut *mut FbClient) -> i32 {
    enter(std::ptr::null::<FbClient>(), || {
        // SAFETY: NULL or the caller's variable.
        unsafe { put(client, std::ptr::null_mut(), "client") }?;
        // SAFETY: NULL or a text of the caller's.
        let endpoint = unsafe { text(endpoint, "endpoint") }?;
        let connected = Client::connect(Endpoint::parse(endpoint)?)?;
        // SAFETY: as above.
        unsafe { put(client, handles::insert(connected), "client") }?;
        Ok(FB_OK)
    })
}

/// Connects as a caller who is known by more than its uid: by the token of a security domain, and over
/// TCP by a certificate. Sets `*client`.
///
/// Ownership: the caller closes the client with `fb_close`.
/// Threads: any. The client can be used by several threads at once.
/// Errors: those of `fb_connect`. A file that cannot be read, a token that is none, and settings that
/// contradict each other are `FB_INVALID_ARGUMENT`. Who has the wrong token or certificate is told so
/// by the first call. Then `*client` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_connect_with(
    options: *const FbConnectOptions,
    client: *mut *mut FbClient,
) -> i32 {
    enter(std::ptr::null::<FbClient>(), || {
        // SAFETY: NULL or the caller's variable.
        unsafe { put(client, std::ptr::null_mut(), "client") }?;
        // SAFETY: NULL or the caller's struct.
        let options = unsafe { take(options) }?;
        // SAFETY: the caller fills the fields as they say.
        let endpoint = unsafe { text(options.endpoint, "endpoint") }?;
        // SAFETY: as above.
        let access = unsafe { access::read(&options) }?;
        let connected = Client::connect_with(Endpoint::parse(endpoint)?, access)?;
        // SAFETY: as above.
        unsafe { put(client, handles::insert(connected), "client") }?;
        Ok(FB_OK)
    })
}

/// Closes a client. Its loads, tensors, devices and streams stay usable until they are closed and
/// released; loads are opened no more. NULL is no error.
///
/// Threads: any, also while other threads use the client: their calls end as if it were open.
/// Errors: `FB_BAD_HANDLE`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_close(client: *mut FbClient) -> i32 {
    enter(client, || {
        if !client.is_null() {
            handles::remove::<Client, _>(client)?;
        }
        Ok(FB_OK)
    })
}

/// Fetches a checkpoint into a tier of this node and keeps it, and waits until it is there.
/// `report` may be NULL.
///
/// Threads: any, also several at once on one client.
/// Errors: all but `FB_CANCELLED` and `FB_BUSY`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_prefetch(
    client: *mut FbClient,
    options: *const FbPrefetchOptions,
    report: *mut FbReport,
) -> i32 {
    enter(client, || {
        let client = handles::find::<Client, _>(client)?;
        // SAFETY: NULL or the caller's struct.
        let options = unsafe { take(options) }?;
        // SAFETY: the caller fills the fields as they say.
        let request = unsafe { options.request() }?;
        if !report.is_null() {
            // SAFETY: the caller's struct.
            unsafe { check(report) }?;
        }
        let deadline =
            (options.deadline_ms > 0).then(|| Duration::from_millis(options.deadline_ms));
        let client = client.with_options(CallOptions { deadline, ..CallOptions::default() });
        let done = client.prefetch(request, |_| {})?;
        if !report.is_null() {
            // SAFETY: the caller's struct.
            unsafe { tell(report, &told(&done)) }?;
        }
        Ok(FB_OK)
    })
}

/// Asks the daemon how it is.
///
/// Threads: any, also several at once on one client.
/// Errors: `FB_BAD_HANDLE`, `FB_INVALID_ARGUMENT`, `FB_UNAVAILABLE`, `FB_PERMISSION_DENIED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fb_status(client: *mut FbClient, status: *mut FbDaemonStatus) -> i32 {
    enter(client, || {
        let client = handles::find::<Client, _>(client)?;
        // SAFETY: NULL or the caller's struct.
        unsafe { check(status) }?;
        let now = client.status().map_err(Fault::from)?;
        let answer = FbDaemonStatus {
            size: 0,
            ram_budget_bytes: now.ram.budget_bytes,
            ram_cached_bytes: now.ram.cached_bytes,
            ram_leased_bytes: now.ram.leased_bytes,
            nvme_budget_bytes: now.nvme.budget_bytes,
            nvme_stored_bytes: now.nvme.stored_bytes,
            loads: u64::try_from(now.loads.len()).unwrap_or(u64::MAX),
            uptime_seconds: now.uptime.as_secs_f64(),
            draining: i32::from(now.draining),
            reserved: 0,
        };
        // SAFETY: NULL or the caller's struct.
        unsafe { tell(status, &answer) }?;
        Ok(FB_OK)
    })
}
