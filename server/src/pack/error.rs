//! Why a checkpoint could not be packed.

use forebay_codec::decode::DecodeError;
use forebay_codec::encode::EncodeError;
use forebay_codec::manifest::{MANIFEST_NAME, ManifestError};
use forebay_origin::{OriginError, UriError};
use forebay_proto::{Failure, Reason};

use super::{PACKS_MAX, PACKS_RETRY};
use crate::admission::AdmissionError;
use crate::cpu::Stopped;
use crate::error::origin_failure;
use crate::resolve::ResolveError;
use crate::staging::StagingError;

/// See the module's head.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    /// Not a URI of an origin.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// A web server is no place to write to.
    #[error("web servers are only read from: pack to s3://, gs://, az:// or a local folder")]
    Web,
    /// The destination would become part of the source.
    #[error("the destination lies in the source, or is the same: give a folder beside it")]
    Inside,
    /// The daemon writes files for its own uid and for root only.
    #[error(
        "the daemon runs as uid {own} and writes no files for uid {uid}: files would be its own"
    )]
    NotAllowed {
        /// Who asked.
        uid: u32,
        /// Whom the daemon runs as.
        own: u32,
    },
    /// A size of frames that there is not.
    #[error("frames of {0} bytes: a power of two from 64 KiB to 16 MiB is possible")]
    FrameBytes(u64),
    /// A level that zstd does not have.
    #[error("level {0} is none of 1 to 19")]
    Level(i32),
    /// Nobody may start now.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// Too many packs run.
    #[error("{PACKS_MAX} packs are running, which is as many as this daemon runs")]
    Full,
    /// Another pack runs there.
    #[error("another pack is writing to {destination}")]
    Busy {
        /// Where.
        destination: String,
    },
    /// The source cannot be resolved, or is packed already.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// An origin failed.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// The daemon is going away.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// There is no memory for a frame.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// Something lies where an object is to be written.
    #[error("{name} is there already, and no pack of this source has written it")]
    InTheWay {
        /// The name.
        name: String,
    },
    /// A pack of another source lies there.
    #[error("{what} of another source lies there")]
    OtherSource {
        /// Finished or not.
        what: &'static str,
    },
    /// The manifest that lies there is damaged.
    #[error("the {MANIFEST_NAME} that is there cannot be read: {problem}; remove it to pack anew")]
    OldManifest {
        /// What is wrong.
        problem: ManifestError,
    },
    /// A name that the destination cannot have.
    #[error("{name:?} cannot be written there: {problem}")]
    Name {
        /// The name, clipped.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An object is another one than when the source was resolved.
    #[error("{name} changed while it was packed")]
    Changed {
        /// The object.
        name: String,
    },
    /// The bytes of the source are not those of which its store has a checksum.
    #[error("{name}: its bytes do not fit the {checksum} that its store has of it")]
    Checksum {
        /// The object.
        name: String,
        /// Which checksum.
        checksum: &'static str,
    },
    /// What was written is not what came back.
    #[error("{name} was written, but came back damaged and was removed: {problem}")]
    Damaged {
        /// The object, as it is stored.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// The manifest would not be one.
    #[error("the manifest cannot be made: {problem}")]
    Manifest {
        /// What is wrong.
        problem: ManifestError,
    },
    /// Bytes could not be encoded.
    #[error("frames cannot be made: {0}")]
    Encode(#[from] EncodeError),
    /// There is no decoder.
    #[error("frames cannot be read: {0}")]
    Decode(#[from] DecodeError),
    /// A value has no form as JSON.
    #[error("the journal cannot be written: {0}")]
    Encoded(String),
}

impl From<PackError> for Failure {
    fn from(error: PackError) -> Self {
        let message = error.to_string();
        match error {
            PackError::Uri(_) => Self::new(Reason::BadUri, message),
            PackError::Web
            | PackError::Inside
            | PackError::FrameBytes(_)
            | PackError::Level(_)
            | PackError::Name { .. } => Self::new(Reason::BadRequest, message),
            PackError::NotAllowed { .. } => Self::new(Reason::WriteNotAllowed, message),
            PackError::Admission(error) => error.into(),
            PackError::Full => {
                let quota = format!("packs: {message}");
                Self::new(Reason::QueueFull, message).with_quota(quota).retry_in(PACKS_RETRY)
            }
            PackError::Busy { .. }
            | PackError::OtherSource { .. }
            | PackError::OldManifest { .. } => Self::new(Reason::DestinationInUse, message),
            PackError::InTheWay { name } => {
                Self::new(Reason::DestinationInUse, message).for_object(&name)
            }
            PackError::Resolve(error) => error.into(),
            PackError::Origin(error) => origin_failure(error),
            PackError::Stopped(stopped) => stopped.into(),
            PackError::Staging(error) => error.into(),
            PackError::Changed { name } => {
                Self::new(Reason::RevisionChanged, message).for_object(&name)
            }
            PackError::Checksum { name, .. } | PackError::Damaged { name, .. } => {
                Self::new(Reason::DigestMismatch, message).for_object(&name)
            }
            PackError::Manifest {
                problem: ManifestError::TooLarge(_) | ManifestError::Objects(_),
            } => Self::new(Reason::LimitExceeded, &message).with_quota(message),
            PackError::Manifest { .. }
            | PackError::Encode(_)
            | PackError::Decode(_)
            | PackError::Encoded(_) => Self::new(Reason::Internal, message),
        }
        .at_stage("pack")
    }
}
