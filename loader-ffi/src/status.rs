//! Status numbers, and what a failed call leaves behind.
//!
//! The numbers of errors are those of `ErrorKind::c_status`, so that every library and the wire
//! tell the same kinds apart; a test holds the two together.

use forebay_client::ClientError;

/// It worked.
pub const FB_OK: i32 = 0;
/// It worked, and there is no further one. No error.
pub const FB_END: i32 = 1;
/// It is not done yet. No error.
pub const FB_PENDING: i32 = 2;
/// The callback of the caller ended the load.
pub const FB_CANCELLED: i32 = -1;
/// The caller's mistake: correct the call.
pub const FB_INVALID_ARGUMENT: i32 = -3;
/// The time budget is spent.
pub const FB_DEADLINE_EXCEEDED: i32 = -4;
/// No such object.
pub const FB_NOT_FOUND: i32 = -5;
/// The daemon or the origin's policy refuses the caller.
pub const FB_PERMISSION_DENIED: i32 = -7;
/// Overload on this node: wait and call again. Or the device has no room.
pub const FB_RESOURCE_EXHAUSTED: i32 = -8;
/// The world changed: load again to get the new revision.
pub const FB_FAILED_PRECONDITION: i32 = -9;
/// A bug of Forebay.
pub const FB_INTERNAL: i32 = -13;
/// The daemon, the origin or the device cannot be had or fails: retry later, or see what
/// `fb_last_error` says of the driver.
pub const FB_UNAVAILABLE: i32 = -14;
/// The bytes are wrong.
pub const FB_DATA_LOSS: i32 = -15;
/// Credentials are missing or have expired.
pub const FB_UNAUTHENTICATED: i32 = -16;
/// Another thread is inside of this handle, or tensors of the load are not released yet.
pub const FB_BUSY: i32 = -100;
/// The handle is NULL, closed, or of another kind.
pub const FB_BAD_HANDLE: i32 = -101;

/// A call that failed: its status, and a sentence for a person.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) status: i32,
    pub(crate) text: String,
}

impl Fault {
    pub(crate) fn new(status: i32, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::new(FB_INVALID_ARGUMENT, text)
    }
}

impl From<ClientError> for Fault {
    fn from(error: ClientError) -> Self {
        Self::new(error.kind().c_status(), error.to_string())
    }
}

/// What a status means, for a person; ends with a NUL.
pub(crate) fn meaning(status: i32) -> &'static [u8] {
    match status {
        FB_OK => b"ok\0",
        FB_END => b"nothing follows\0",
        FB_PENDING => b"not done yet\0",
        FB_CANCELLED => b"ended by the caller's callback\0",
        FB_INVALID_ARGUMENT => b"invalid argument: correct the call\0",
        FB_DEADLINE_EXCEEDED => b"deadline exceeded: the time budget is spent\0",
        FB_NOT_FOUND => b"not found: there is no such object\0",
        FB_PERMISSION_DENIED => b"permission denied by the daemon or the origin\0",
        FB_RESOURCE_EXHAUSTED => b"resource exhausted on this node: wait and call again\0",
        FB_FAILED_PRECONDITION => b"failed precondition: the world changed, load again\0",
        FB_INTERNAL => b"internal error: a bug of Forebay\0",
        FB_UNAVAILABLE => b"unavailable: the daemon, the origin or the device fails\0",
        FB_DATA_LOSS => b"data loss: the bytes are wrong\0",
        FB_UNAUTHENTICATED => b"unauthenticated: credentials are missing or have expired\0",
        FB_BUSY => b"busy: in use by another thread, or with tensors that are not released\0",
        FB_BAD_HANDLE => b"bad handle: NULL, closed, or of another kind\0",
        _ => b"no status of this version of Forebay\0",
    }
}

#[cfg(test)]
mod tests {
    use forebay_client::ErrorKind;

    use super::*;

    /// Every kind with the number that the header promises for it.
    const PROMISED: [(ErrorKind, i32); 10] = [
        (ErrorKind::InvalidArgument, FB_INVALID_ARGUMENT),
        (ErrorKind::NotFound, FB_NOT_FOUND),
        (ErrorKind::PermissionDenied, FB_PERMISSION_DENIED),
        (ErrorKind::Unauthenticated, FB_UNAUTHENTICATED),
        (ErrorKind::ResourceExhausted, FB_RESOURCE_EXHAUSTED),
        (ErrorKind::Unavailable, FB_UNAVAILABLE),
        (ErrorKind::DeadlineExceeded, FB_DEADLINE_EXCEEDED),
        (ErrorKind::FailedPrecondition, FB_FAILED_PRECONDITION),
        (ErrorKind::DataLoss, FB_DATA_LOSS),
        (ErrorKind::Internal, FB_INTERNAL),
    ];

    #[test]
    fn numbers_are_those_of_the_kinds() {
        for (kind, status) in PROMISED {
            assert_eq!(kind.c_status(), status, "{kind:?}");
        }
    }
}
