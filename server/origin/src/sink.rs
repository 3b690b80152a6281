//! The seam between Forebay and a place that it writes to: whole objects, objects that come in
//! pieces, and their removal.
//!
//! ```text
//! Origins --open_sink--> CloudSink (cloud.rs) --> tries.rs, engine/: as for reads, in the lane of
//!                |          |                     those for whom nobody waits
//!                |          \- CloudUpload (parts.rs): parts, several under way; object_store
//!                |                 \- Strays (strays.rs): what was begun and given up is aborted
//!                \-----> FileSink (file.rs): a Draft (draft.rs) beside its place, synced, then renamed
//! ```
//!
//! An object is not there before all its bytes are: readers see the old one or the new one. Web
//! servers are not written to.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{OriginError, OriginErrorKind};
use crate::file::FileThreads;
use crate::key::ObjectKey;
use crate::object::{Backend, ObjectOrigin};
use crate::pin::Pin;
use crate::uri::OriginUri;

mod cloud;
pub(crate) mod draft;
mod file;
mod parts;
pub(crate) mod strays;

use cloud::CloudSink;
use file::FileSink;
use strays::Strays;

/// An object store, or a bucket or folder of it, that objects are written to.
///
/// Every call retries transient failures itself and is safe to drop at any point: an object that
/// was being written is then either as it was before or, if its last request was under way,
/// complete.
#[async_trait]
pub trait OriginSink: Send + Sync + Debug {
    /// Writes an object whole, in place of the one that was there.
    async fn put(&self, key: &ObjectKey, bytes: Bytes) -> Result<Pin, OriginError>;

    /// Begins an object whose bytes come in pieces, about so many of them. More than that is fine
    /// as long as the store takes so many parts.
    async fn upload(&self, key: &ObjectKey, bytes: u64) -> Result<Box<dyn Upload>, OriginError>;

    /// Removes an object. One that is not there is removed already.
    async fn delete(&self, key: &ObjectKey) -> Result<(), OriginError>;
}

/// An object on its way to a sink. It is not there before it is finished, and never will be if it
/// is dropped: then what was sent is cleared away, as far as the store has a way to do that.
#[async_trait]
pub trait Upload: Send + Debug {
    /// The next bytes. Waits while enough of those before are under way. An upload that failed here
    /// stays failed.
    async fn write(&mut self, bytes: Bytes) -> Result<(), OriginError>;

    /// That was all: the object is there when this answers.
    async fn finish(self: Box<Self>) -> Result<Pin, OriginError>;

    /// Gives it up, and waits until what was sent is cleared away.
    async fn abort(self: Box<Self>);
}

/// What sinks share with each other.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) strays: Arc<Strays>,
    pub(crate) writers: Arc<FileThreads>,
}

/// The sink of a URI.
pub(crate) fn open(
    origin: Arc<ObjectOrigin>,
    uri: &OriginUri,
    ground: Ground,
) -> Result<Arc<dyn OriginSink>, OriginError> {
    match &origin.backend {
        Backend::Cloud(cloud) => {
            let parts = Arc::clone(&cloud.parts);
            Ok(Arc::new(CloudSink::new(Arc::clone(&origin), parts, ground.strays)))
        }
        Backend::File { .. } => Ok(Arc::new(FileSink::new(uri, ground.writers))),
        Backend::Web(_) => {
            let text = "web servers are only read from: write to s3://, gs://, az:// or file://";
            let error = OriginError::new(OriginErrorKind::Unsupported, uri.key(), text);
            Err(error.at(&origin.origin))
        }
    }
}
