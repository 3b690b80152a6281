//! A fault, cut by the place where it acts on a request.

use std::time::Duration;

use crate::content::Content;
use crate::fault::Fault;

/// What is done to one request.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) before: Before,
    pub(crate) bend: Bend,
    pub(crate) head: Head,
    pub(crate) body: Script,
}

/// Before the backend is asked.
#[derive(Debug, Default)]
pub(crate) enum Before {
    #[default]
    Proceed,
    Delay(Duration),
    Stall,
    Reset,
    Close,
    /// After so many bytes of the request's body.
    ResetUpload(u64),
    StallUpload(u64),
    Refuse(Refusal),
    Replace(Content),
    Remove,
}

/// An error response that the backend words in its protocol.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    /// The error code; by the status and the protocol where it is None.
    pub(crate) code: Option<&'static str>,
    pub(crate) retry_after: Option<Duration>,
    /// The size of the object, which a range was outside of.
    pub(crate) object_bytes: Option<u64>,
}

impl From<u16> for Refusal {
    fn from(status: u16) -> Self {
        Self { status, ..Self::default() }
    }
}

/// How the backend reads the object; travels to it in the request's extensions.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bend {
    pub(crate) ignore_range: bool,
    pub(crate) shift: u64,
}

/// Changes to the response's head.
#[derive(Debug, Default)]
pub(crate) enum Head {
    #[default]
    Keep,
    /// `Content-Length` at most this.
    CutLength(u64),
    /// `Content-Length` this much greater.
    AddLength(u64),
    /// No `Content-Length`.
    DropLength,
    /// No `Content-Length`, and HTTP/1.0.
    DropLengthOld,
    /// Both ends of `Content-Range` this much greater.
    ShiftRange(u64),
    Set(&'static str, String),
    Drop(&'static str),
}

/// What is done to the body.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Script {
    /// Where the body ends before its time, and how.
    pub(crate) end: Option<(u64, End)>,
    /// Bytes added after it.
    pub(crate) pad: u64,
    pub(crate) flip: Flip,
    pub(crate) bytes_per_second: Option<u64>,
}

/// How a body ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As if it were whole.
    Clean,
    Close,
    Reset,
    Stall,
}

/// Which bits of the body are flipped.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Flip {
    #[default]
    None,
    At(u64),
    OnePer {
        seed: u64,
        every: u64,
    },
}

impl From<Fault> for Plan {
    fn from(fault: Fault) -> Self {
        let before = |before| Self { before, ..Self::default() };
        let head = |head| Self { head, ..Self::default() };
        let body = |body| Self { body, ..Self::default() };
        let end = |at, end| Script { end: Some((at, end)), ..Script::default() };
        match fault {
            Fault::Status { code, retry_after } => {
                before(Before::Refuse(Refusal { retry_after, ..Refusal::from(code) }))
            }
            Fault::ErrorCode { status, code } => {
                before(Before::Refuse(Refusal { code: Some(code), ..Refusal::from(status) }))
            }
            Fault::ResetBeforeHeaders => before(Before::Reset),
            Fault::CloseBeforeHeaders => before(Before::Close),
            Fault::Delay(delay) => before(Before::Delay(delay)),
            Fault::StallBeforeHeaders => before(Before::Stall),
            Fault::ResetUpload(at) => before(Before::ResetUpload(at)),
            Fault::StallUpload(at) => before(Before::StallUpload(at)),
            Fault::ReplaceObject(content) => before(Before::Replace(content)),
            Fault::RemoveObject => before(Before::Remove),
            Fault::ResetAfter(at) => body(end(at, End::Reset)),
            Fault::TruncateTo(at) => body(end(at, End::Close)),
            Fault::StallAfter(at) => body(end(at, End::Stall)),
            Fault::ShortBody(at) => Self { head: Head::CutLength(at), ..body(end(at, End::Clean)) },
            Fault::ChunkedTo(at) => Self { head: Head::DropLength, ..body(end(at, End::Clean)) },
            Fault::CloseDelimitedTo(at) => {
                Self { head: Head::DropLengthOld, ..body(end(at, End::Clean)) }
            }
            Fault::Overlong(pad) => {
                let script = Script { pad, ..Script::default() };
                Self { head: Head::AddLength(pad), ..body(script) }
            }
            Fault::WrongRange(shift) => head(Head::ShiftRange(shift)),
            Fault::SetHeader(name, value) => head(Head::Set(name, value)),
            Fault::DropHeader(name) => head(Head::Drop(name)),
            Fault::FullBodyTo200 => {
                Self { bend: Bend { ignore_range: true, shift: 0 }, ..Self::default() }
            }
            Fault::Misplaced(shift) => {
                Self { bend: Bend { ignore_range: false, shift }, ..Self::default() }
            }
            Fault::FlipBit(at) => body(Script { flip: Flip::At(at), ..Script::default() }),
            Fault::FlipBits { seed, every } => {
                let flip = Flip::OnePer { seed, every: every.max(1) };
                body(Script { flip, ..Script::default() })
            }
            Fault::Drip { bytes_per_second } => {
                let bytes_per_second = Some(bytes_per_second.max(1));
                body(Script { bytes_per_second, ..Script::default() })
            }
        }
    }
}
