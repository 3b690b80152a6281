//! Objects in a bucket or container, through object_store.
//!
//! Each request is one attempt or several, in the terms of the endpoint: what it lets in, what its
//! retries may cost and when its breaker is open. Bytes that are sent do not count against the
//! limit on bytes that it brings.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStoreExt, PutOptions, PutPayload};

use super::parts::CloudUpload;
use super::strays::Strays;
use super::{OriginSink, Upload};
use crate::error::{OriginError, OriginErrorKind};
use crate::fault::Fault;
use crate::key::ObjectKey;
use crate::object::ObjectOrigin;
use crate::pin::Pin;
use crate::store::{Lane, ReadTerms};
use crate::transport::probe::Seen;

/// A bucket or container.
#[derive(Clone)]
pub(crate) struct CloudSink {
    pub(super) origin: Arc<ObjectOrigin>,
    pub(super) parts: Arc<dyn MultipartStore>,
    pub(super) strays: Arc<Strays>,
}

impl fmt::Debug for CloudSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudSink").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl CloudSink {
    pub(crate) fn new(
        origin: Arc<ObjectOrigin>,
        parts: Arc<dyn MultipartStore>,
        strays: Arc<Strays>,
    ) -> Self {
        Self { origin, parts, strays }
    }

    /// The key of an object, as object_store wants it.
    pub(super) fn path(&self, key: &ObjectKey) -> Result<Path, OriginError> {
        if key.is_root() {
            let text = "a whole store is no object";
            let error = OriginError::new(OriginErrorKind::Unsupported, key, text);
            return Err(error.at(&self.origin.origin));
        }
        self.origin.path(key)
    }

    /// Makes a request as often as it takes. `judge` has the last word on what an answer means.
    pub(super) async fn tried<T, Work>(
        &self,
        key: &ObjectKey,
        mut request: impl FnMut() -> Work,
        judge: impl Fn(&StoreError, Fault) -> Result<T, Fault>,
    ) -> Result<T, OriginError>
    where
        Work: Future<Output = object_store::Result<T>>,
    {
        let terms = ReadTerms::new(Lane::Prefetch, None);
        let mut tries = self.origin.tries_on(key, None, terms);
        loop {
            let attempt = tries.begin(0).await?;
            let answer = attempt.write(request()).await.or_else(|error| {
                let fault = Fault::of(&error, &attempt.probe.seen());
                judge(&error, fault)
            });
            match answer {
                Ok(answer) => {
                    tries.done(attempt, 0);
                    return Ok(answer);
                }
                Err(fault) => tries.failed(attempt, 0, fault).await?,
            }
        }
    }

    pub(super) async fn put_whole(
        &self,
        key: &ObjectKey,
        path: &Path,
        payload: PutPayload,
    ) -> Result<Pin, OriginError> {
        let store = &self.origin.store;
        let put = || store.put_opts(path, payload.clone(), PutOptions::default());
        self.tried(key, put, |_, fault| Err(fault)).await.map(Pin::written)
    }
}

#[async_trait]
impl OriginSink for CloudSink {
    async fn put(&self, key: &ObjectKey, bytes: Bytes) -> Result<Pin, OriginError> {
        let path = self.path(key)?;
        self.put_whole(key, &path, bytes.into()).await
    }

    async fn upload(&self, key: &ObjectKey, bytes: u64) -> Result<Box<dyn Upload>, OriginError> {
        let path = self.path(key)?;
        Ok(Box::new(CloudUpload::begin(self.clone(), key.clone(), path, bytes)))
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), OriginError> {
        let path = self.path(key)?;
        let delete = || self.origin.store.delete(&path);
        self.tried(key, delete, deleted).await
    }
}

/// What a failed delete comes to. Azure deletes in batches, and answers well that it did not.
fn deleted(error: &StoreError, fault: Fault) -> Result<(), Fault> {
    if matches!(error, StoreError::NotFound { .. }) || fault.kind == OriginErrorKind::NotFound {
        return Ok(());
    }
    let within = fault.status.is_some_and(|status| status < 300);
    let refused = fault.detail.as_deref().is_some_and(|detail| detail.ends_with("(code: 403)"));
    if within && refused {
        let text = fault.detail.unwrap_or_default();
        return Err(Fault::new(OriginErrorKind::Denied, &Seen::default(), text));
    }
    Err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As object_store words what a batch of Azure's says of one blob.
    fn in_batch(code: &str) -> Result<(), OriginErrorKind> {
        let text = format!("Bulk delete request failed for key k: reason (code: {code})");
        let seen = Seen { status: Some(202), ..Seen::default() };
        let error = StoreError::Generic { store: "MicrosoftAzure", source: text.clone().into() };
        let fault = Fault::new(OriginErrorKind::Malformed, &seen, text);
        deleted(&error, fault).map_err(|fault| fault.kind)
    }

    #[test]
    fn a_refusal_within_a_good_answer_is_one() {
        assert_eq!(in_batch("403"), Err(OriginErrorKind::Denied));
        assert_eq!(in_batch("500"), Err(OriginErrorKind::Malformed), "which is tried again");
        let error = StoreError::NotFound { path: "k".into(), source: "(code: 404)".into() };
        let fault = Fault::new(OriginErrorKind::Malformed, &Seen::default(), "");
        assert_eq!(deleted(&error, fault).map_err(|fault| fault.kind), Ok(()), "it is gone");
    }
}
