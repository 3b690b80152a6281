//! An object that is sent in parts: multipart uploads of S3 and Google, block lists of Azure.
//!
//! All parts but the last have the same size, as some stores want it. One that is full is sent by a
//! task of the upload's own while the next one is filled; so many at a time bound its memory. What
//! turns out to fit into one part is sent whole, as a small object is. The store is told of an
//! upload before its first part only, and told to forget it unless it is finished.
//!
//! Whether an end whose answer was lost came about shows in the object: it is another one than was
//! there before the upload began, which is why that one is looked at first.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::{MultipartId, PutPayload};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::Upload;
use super::cloud::CloudSink;
use crate::error::{OriginError, OriginErrorKind};
use crate::filling::length;
use crate::key::ObjectKey;
use crate::pin::Pin;
use crate::store::OriginStore;
use crate::trace::TraceTag;

/// The smallest part: S3 and Google want 5 MiB.
const PART_BYTES_MIN: u64 = 8 << 20;
/// Parts have a multiple of this size.
const PART_STEP: u64 = 1 << 20;
/// The most parts that all stores take.
const PARTS_MAX: usize = 10_000;
/// Parts that an upload is planned to have at most: it may grow by a ninth.
const PARTS_PLANNED: u64 = 9_000;
/// Parts of one upload under way at a time.
const SENDING_MAX: usize = 4;

/// An object on its way, in parts.
pub(super) struct CloudUpload {
    whole: Arc<Whole>,
    part_bytes: usize,
    runtime: Handle,
    /// The part that is being filled.
    filling: Vec<Bytes>,
    filled: usize,
    written: u64,
    /// What the store calls the upload, from the first part on.
    begun: Option<Begun>,
    sending: JoinSet<Result<(usize, PartId), OriginError>>,
    parts: Vec<Option<PartId>>,
    /// An upload that failed is not gone on with.
    failed: bool,
}

/// An upload that the store knows of. It is told to forget it when this is dropped.
#[derive(Debug)]
struct Begun {
    whole: Arc<Whole>,
    /// None once there is nothing to forget.
    id: Option<MultipartId>,
    before: Before,
    runtime: Handle,
}

/// What was there before an upload began.
#[derive(Debug)]
enum Before {
    Nothing,
    Object(Pin),
    /// It could not be had: who may write need not be allowed to look.
    Unknown,
}

impl Before {
    /// Whether an object that is there now is another one for certain. Tags that are made of the
    /// content are the same when the same content is written again, but then the time is not.
    fn is_not(&self, now: &Pin) -> bool {
        match self {
            Self::Nothing => true,
            Self::Object(old) => old.is_replaced_by(now),
            Self::Unknown => false,
        }
    }
}

/// What the parts belong to.
#[derive(Debug)]
struct Whole {
    sink: CloudSink,
    key: ObjectKey,
    path: Path,
}

impl fmt::Debug for CloudUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudUpload")
            .field("key", &self.whole.key)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl Whole {
    /// Tells the store of an upload. This is done to its end even if nobody waits any more: it is
    /// the answer that says what the store has to forget.
    async fn begin(self: &Arc<Self>, runtime: &Handle) -> Result<Begun, OriginError> {
        let before = self.before().await;
        let (reply, answer) = oneshot::channel();
        let (whole, own) = (Arc::clone(self), runtime.clone());
        let work = async move {
            let begin = || whole.sink.parts.create_multipart(&whole.path);
            let begun = whole.sink.tried(&whole.key, begin, |_, fault| Err(fault)).await;
            let whole = Arc::clone(&whole);
            let begun = begun.map(|id| Begun { whole, id: Some(id), before, runtime: own });
            if reply.send(begun).is_err() {
                tracing::debug!("an upload was given up before it began");
            }
        };
        self.sink.strays.take(runtime, work);
        answer.await.unwrap_or_else(|_| {
            let text = "too many uploads begin at once";
            let error = OriginError::new(OriginErrorKind::LimitExceeded, &self.key, text);
            Err(error.at(&self.sink.origin.origin))
        })
    }

    async fn before(&self) -> Before {
        match self.sink.origin.head(&self.key).await {
            Ok(meta) => Before::Object(meta.pin),
            Err(error) if error.kind == OriginErrorKind::NotFound => Before::Nothing,
            Err(error) => {
                tracing::debug!(%error, "what an upload replaces is not known");
                Before::Unknown
            }
        }
    }

    async fn send(
        self: Arc<Self>,
        id: MultipartId,
        number: usize,
        payload: PutPayload,
    ) -> Result<(usize, PartId), OriginError> {
        let send = || self.sink.parts.put_part(&self.path, &id, number, payload.clone());
        let part = self.sink.tried(&self.key, send, |_, fault| Err(fault)).await?;
        Ok((number, part))
    }

    async fn complete(
        &self,
        (id, before): (&MultipartId, &Before),
        parts: Vec<PartId>,
        bytes: u64,
    ) -> Result<Pin, OriginError> {
        let complete = || self.sink.parts.complete_multipart(&self.path, id, parts.clone());
        match self.sink.tried(&self.key, complete, |_, fault| Err(fault)).await {
            Ok(written) => Ok(Pin::written(written)),
            // The upload is not known any more if an attempt went well whose answer was lost.
            Err(error) if error.kind == OriginErrorKind::NotFound && error.attempts > 1 => {
                match self.sink.origin.head(&self.key).await {
                    Ok(meta) if meta.bytes == bytes && before.is_not(&meta.pin) => Ok(meta.pin),
                    _ => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    async fn forget(&self, id: MultipartId) {
        let abort = || self.sink.parts.abort_multipart(&self.path, &id);
        let forgotten = self.sink.tried(&self.key, abort, |_, fault| match fault.kind {
            OriginErrorKind::NotFound => Ok(()),
            _ => Err(fault),
        });
        if let Err(error) = forgotten.await {
            tracing::warn!(%error, "an upload that was given up could not be cleared away");
        }
    }
}

impl Begun {
    async fn forget(mut self) {
        if let Some(id) = self.id.take() {
            self.whole.forget(id).await;
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let whole = Arc::clone(&self.whole);
        self.whole.sink.strays.take(&self.runtime, async move { whole.forget(id).await });
    }
}

impl CloudUpload {
    pub(super) fn begin(sink: CloudSink, key: ObjectKey, path: Path, bytes: u64) -> Self {
        Self {
            whole: Arc::new(Whole { sink, key, path }),
            part_bytes: usize::try_from(part_bytes(bytes)).unwrap_or(usize::MAX),
            runtime: Handle::current(),
            filling: Vec::new(),
            filled: 0,
            written: 0,
            begun: None,
            sending: JoinSet::new(),
            parts: Vec::new(),
            failed: false,
        }
    }

    async fn take(&mut self, mut bytes: Bytes) -> Result<(), OriginError> {
        self.written += length(bytes.len());
        while !bytes.is_empty() {
            // Only with more to come: the last part goes with the end.
            if self.filled == self.part_bytes {
                self.send().await?;
            }
            let piece = bytes.split_to(bytes.len().min(self.part_bytes - self.filled));
            self.filled += piece.len();
            self.filling.push(piece);
        }
        Ok(())
    }

    /// Sends what is filled, once there is room for it among the parts under way.
    async fn send(&mut self) -> Result<(), OriginError> {
        if self.parts.len() >= PARTS_MAX {
            let text = format!(
                "more than {PARTS_MAX} parts of {} bytes: say before how many bytes it has",
                self.part_bytes
            );
            let kind = OriginErrorKind::LimitExceeded;
            let error = OriginError::new(kind, &self.whole.key, text);
            return Err(error.at(&self.whole.sink.origin.origin));
        }
        while self.sending.len() >= SENDING_MAX {
            self.sent().await?;
        }
        if self.begun.is_none() {
            self.begun = Some(self.whole.begin(&self.runtime).await?);
        }
        let id = self.begun.as_ref().and_then(|begun| begun.id.clone());
        let id = id.ok_or_else(|| self.is_failed())?;
        let payload = self.filling.drain(..).collect();
        self.filled = 0;
        let number = self.parts.len();
        self.parts.push(None);
        let sending = Arc::clone(&self.whole).send(id, number, payload);
        self.sending.spawn(TraceTag::carry(sending));
        Ok(())
    }

    /// Waits for one of the parts under way.
    async fn sent(&mut self) -> Result<(), OriginError> {
        let sent = match self.sending.join_next().await {
            None => return Ok(()),
            Some(Ok(sent)) => sent,
            Some(Err(error)) => {
                let kind = OriginErrorKind::Local(std::io::ErrorKind::Other);
                Err(OriginError::new(kind, &self.whole.key, error.to_string()))
            }
        };
        let (number, part) = sent?;
        if let Some(place) = self.parts.get_mut(number) {
            *place = Some(part);
        }
        Ok(())
    }

    async fn complete(&mut self) -> Result<Pin, OriginError> {
        if self.failed {
            return Err(self.is_failed());
        }
        if self.begun.is_none() {
            let payload = self.filling.drain(..).collect();
            return self.whole.sink.put_whole(&self.whole.key, &self.whole.path, payload).await;
        }
        if self.filled > 0 {
            self.send().await?;
        }
        while !self.sending.is_empty() {
            self.sent().await?;
        }
        let parts = std::mem::take(&mut self.parts).into_iter().flatten().collect();
        let Some(Begun { id: Some(id), before, .. }) = &self.begun else {
            return Err(self.is_failed());
        };
        let pin = self.whole.complete((id, before), parts, self.written).await?;
        if let Some(begun) = &mut self.begun {
            begun.id = None;
        }
        Ok(pin)
    }

    fn is_failed(&self) -> OriginError {
        let text = "the upload has failed before: begin another one";
        let kind = OriginErrorKind::Local(std::io::ErrorKind::BrokenPipe);
        OriginError::new(kind, &self.whole.key, text).at(&self.whole.sink.origin.origin)
    }

    async fn clear(&mut self) {
        // A part that arrives after its upload was forgotten would stay.
        self.sending.shutdown().await;
        if let Some(begun) = self.begun.take() {
            begun.forget().await;
        }
    }
}

#[async_trait]
impl Upload for CloudUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), OriginError> {
        if self.failed {
            return Err(self.is_failed());
        }
        // Whatever is dropped below may have lost bytes.
        self.failed = true;
        self.take(bytes).await?;
        self.failed = false;
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<Pin, OriginError> {
        let finished = self.complete().await;
        if finished.is_err() {
            self.clear().await;
        }
        finished
    }

    async fn abort(mut self: Box<Self>) {
        self.clear().await;
    }
}

impl Drop for CloudUpload {
    fn drop(&mut self) {
        let Some(begun) = self.begun.take() else { return };
        let mut sending = std::mem::take(&mut self.sending);
        let clear = async move {
            sending.shutdown().await;
            begun.forget().await;
        };
        self.whole.sink.strays.take(&self.runtime, clear);
    }
}

/// How large the parts of an object of so many bytes are.
fn part_bytes(bytes: u64) -> u64 {
    bytes.div_ceil(PARTS_PLANNED).next_multiple_of(PART_STEP).max(PART_BYTES_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_few_enough_and_large_enough() {
        assert_eq!([0, 1, 70 << 30].map(part_bytes), [8 << 20; 3]);
        assert_eq!(part_bytes(90 << 30), 11 << 20);
        for bytes in [1 << 30, 600 << 30, 5 << 40] {
            let part = part_bytes(bytes);
            assert!(
                bytes.div_ceil(part) <= PARTS_PLANNED && part.is_multiple_of(PART_STEP),
                "{bytes}"
            );
            // S3's largest.
            assert!(part <= 5 << 30, "{bytes}");
        }
    }
}
