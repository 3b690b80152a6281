//! The one implementation of [`OriginStore`]: attempts around object_store, and the body's way into
//! the destination.
//!
//! A read keeps what has arrived: an attempt that broke is followed by one for the missing tail only.
//! Nothing is written outside the destination whatever the origin sends, and nothing counts before
//! ETag, size and range of the answer are those that were asked for.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, GetResultPayload, ObjectStore};

use crate::error::{OriginError, OriginErrorKind};
use crate::fault::Fault;
use crate::file::FileReaders;
use crate::key::ObjectKey;
use crate::pin::Pin;
use crate::schedule::RetryPolicy;
use crate::stats::Counters;
use crate::store::{ObjectMeta, OriginStore, ReadRecord, ReadRequest};
use crate::transport::probe::{Probe, Seen};
use crate::transport::service::Transport;
use crate::tries::{Subject, Tries};

/// Keys asked for in one page of a listing: what S3 gives at most.
const PAGE_KEYS: usize = 1000;
/// Requests at a time that look closer at what a listing said.
pub(crate) const LOOKS_AT_ONCE: usize = 8;

/// How a store lists and where its bodies come from.
#[derive(Clone)]
pub(crate) enum Backend {
    /// Pages of keys.
    Cloud(Arc<dyn PaginatedListStore>),
    /// No listing of its own: see [`crate::web`].
    Web(Box<WebBackend>),
    /// A directory walk; bodies are read by threads of ours.
    File(Arc<FileReaders>),
}

/// What listing a web server takes.
#[derive(Debug, Clone)]
pub(crate) struct WebBackend {
    pub(crate) base: String,
    pub(crate) transport: Transport,
    /// Metadata by a ranged GET: a signature covers the method.
    pub(crate) signed: bool,
}

/// One bucket, container, host or file system.
pub(crate) struct ObjectOrigin {
    pub(crate) origin: String,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) backend: Backend,
    pub(crate) retry: RetryPolicy,
    pub(crate) counters: Arc<Counters>,
}

impl std::fmt::Debug for ObjectOrigin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectOrigin").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// A destination and how far it is filled.
struct Filling<'a> {
    into: &'a mut [u8],
    filled: usize,
    received: u64,
}

#[async_trait]
impl OriginStore for ObjectOrigin {
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, OriginError> {
        let path = self.path(key)?;
        let mut tries = self.tries(key, None);
        loop {
            let attempt = tries.begin();
            match attempt.run(self.head_once(key, &path, &attempt.probe)).await {
                Ok(meta) => return Ok(meta),
                Err(fault) => tries.failed(attempt, 0, fault).await?,
            }
        }
    }

    async fn list(&self, prefix: &ObjectKey, limit: usize) -> Result<Vec<ObjectMeta>, OriginError> {
        let mut found = match &self.backend {
            Backend::Cloud(pages) => self.list_pages(&**pages, prefix, limit).await?,
            Backend::Web(web) => self.list_web(web, prefix, limit).await?,
            Backend::File(_) => self.list_files(prefix, limit).await?,
        };
        found.sort_by(|a, b| a.key.cmp(&b.key));
        found.dedup_by(|a, b| a.key == b.key);
        Ok(found)
    }

    async fn read(
        &self,
        request: &ReadRequest,
        into: &mut [u8],
    ) -> Result<ReadRecord, OriginError> {
        let path = self.path(&request.key)?;
        let range = &request.range;
        let fits = u64::try_from(into.len()).ok() == range.end.checked_sub(range.start)
            && range.end <= request.object_bytes;
        if !fits {
            let kind = OriginErrorKind::Local(std::io::ErrorKind::InvalidInput);
            let text = format!("{} bytes for bytes {}..{}", into.len(), range.start, range.end);
            return Err(OriginError::new(kind, &request.key, text).at(&self.origin));
        }
        if into.is_empty() {
            return Ok(ReadRecord::default());
        }
        let mut tries = self.tries(&request.key, Some(range.clone()));
        let mut filling = Filling { into, filled: 0, received: 0 };
        loop {
            let attempt = tries.begin();
            filling.received = 0;
            let work = self.read_once(request, &path, &mut filling, &attempt.probe);
            match attempt.run(work).await {
                Ok(()) => return Ok(tries.done(&attempt, filling.received)),
                Err(fault) => tries.failed(attempt, filling.received, fault).await?,
            }
        }
    }
}

impl ObjectOrigin {
    pub(crate) fn tries<'a>(&'a self, key: &'a ObjectKey, range: Option<Range<u64>>) -> Tries<'a> {
        Tries::new(&self.retry, &self.counters, Subject { origin: &self.origin, key, range })
    }

    /// The key as object_store wants it: parsed, which keeps it as it is.
    pub(crate) fn path(&self, key: &ObjectKey) -> Result<Path, OriginError> {
        Path::parse(key.as_str()).map_err(|error| {
            OriginError::new(OriginErrorKind::Unsupported, key, error.to_string()).at(&self.origin)
        })
    }

    async fn head_once(
        &self,
        key: &ObjectKey,
        path: &Path,
        probe: &Probe,
    ) -> Result<ObjectMeta, Fault> {
        if matches!(&self.backend, Backend::Web(web) if web.signed) {
            return self.head_by_get(key, path, probe).await;
        }
        let mut options = GetOptions { head: true, ..GetOptions::default() };
        options.extensions.insert(probe.clone());
        let answer = self.store.get_opts(path, options).await;
        let answer = answer.map_err(|error| Fault::of(&error, &probe.seen()))?;
        Ok(ObjectMeta { key: key.clone(), bytes: answer.meta.size, pin: Pin::of(&answer.meta) })
    }

    /// Metadata from the answer to a GET of the first byte.
    async fn head_by_get(
        &self,
        key: &ObjectKey,
        path: &Path,
        probe: &Probe,
    ) -> Result<ObjectMeta, Fault> {
        let range = Some(GetRange::Bounded(0..1));
        let mut options = GetOptions { range, ..GetOptions::default() };
        options.extensions.insert(probe.clone());
        let error = match self.store.get_opts(path, options).await {
            Ok(GetResult { meta, .. }) => {
                return Ok(ObjectMeta { key: key.clone(), bytes: meta.size, pin: Pin::of(&meta) });
            }
            Err(error) => error,
        };
        let seen = probe.seen();
        let empty = seen.status == Some(416) && seen.content_range.as_deref() == Some("bytes */0");
        let empty = empty || (seen.status == Some(200) && seen.content_length == Some(0));
        if empty {
            let pin = Pin { etag: seen.etag, ..Pin::default() };
            return Ok(ObjectMeta { key: key.clone(), bytes: 0, pin });
        }
        Err(Fault::of(&error, &seen))
    }

    async fn read_once(
        &self,
        request: &ReadRequest,
        path: &Path,
        filling: &mut Filling<'_>,
        probe: &Probe,
    ) -> Result<(), Fault> {
        let start = request.range.start + length(filling.filled);
        let wanted = start..request.range.end;
        let options = conditional(&request.pin, wanted.clone(), probe);
        let answer = self.store.get_opts(path, options).await;
        let seen = probe.seen();
        let answer = answer.map_err(|error| Fault::of(&error, &seen))?;
        check_answer(request, &wanted, &answer, &seen)?;
        match (answer.payload, &self.backend) {
            (GetResultPayload::Stream(mut body), _) => {
                let begun = filling.filled;
                while let Some(bytes) = body.next().await {
                    let bytes = bytes.map_err(|error| Fault::of(&error, &probe.seen()))?;
                    filling.take(&bytes, begun, &seen)?;
                }
            }
            (GetResultPayload::File(file, _), Backend::File(readers)) => {
                let mut pieces = readers.read(file, wanted);
                while let Some(bytes) = pieces.next().await {
                    let bytes = bytes.map_err(|error| local_fault(&error, &seen))?;
                    self.counters.received(bytes.len());
                    filling.take(bytes, filling.filled, &seen)?;
                }
            }
            (GetResultPayload::File(..), _) => {
                return Err(Fault::new(OriginErrorKind::Unsupported, &seen, "a file as an answer"));
            }
        }
        filling.complete(&seen)
    }

    async fn list_pages(
        &self,
        pages: &dyn PaginatedListStore,
        prefix: &ObjectKey,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, OriginError> {
        let text = (!prefix.is_root()).then(|| format!("{prefix}/"));
        let mut found: Vec<ObjectMeta> = Vec::new();
        let mut page_token = None;
        loop {
            let mut tries = self.tries(prefix, None);
            let page = loop {
                let attempt = tries.begin();
                let mut options = PaginatedListOptions {
                    max_keys: Some(limit.saturating_add(1).min(PAGE_KEYS)),
                    page_token: page_token.clone(),
                    ..PaginatedListOptions::default()
                };
                options.extensions.insert(attempt.probe.clone());
                let page = attempt.run(pages.list_paginated(text.as_deref(), options)).await;
                match page.map_err(|error| Fault::of(&error, &attempt.probe.seen())) {
                    Ok(page) => break page,
                    Err(fault) => tries.failed(attempt, 0, fault).await?,
                }
            };
            for meta in &page.result.objects {
                found.extend(self.listed(meta, prefix)?);
            }
            self.check_limit(found.len(), prefix, limit)?;
            page_token = page.page_token;
            if page_token.is_none() {
                return self.without_markers(found).await;
            }
        }
    }

    /// object_store cuts the trailing slash off the key of a folder marker, which makes it look like
    /// an empty object. There are few of either, so each is asked for: a marker is not there.
    async fn without_markers(
        &self,
        found: Vec<ObjectMeta>,
    ) -> Result<Vec<ObjectMeta>, OriginError> {
        let (empty, mut kept): (Vec<_>, Vec<_>) = found.into_iter().partition(|m| m.bytes == 0);
        let looked: Vec<Option<ObjectMeta>> = futures::stream::iter(empty)
            .map(|meta| async move { absent_is_none(self.head(&meta.key).await) })
            .buffer_unordered(LOOKS_AT_ONCE)
            .try_collect()
            .await?;
        kept.extend(looked.into_iter().flatten());
        Ok(kept)
    }

    async fn list_files(
        &self,
        prefix: &ObjectKey,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, OriginError> {
        let path = self.path(prefix)?;
        let mut tries = self.tries(prefix, None);
        let attempt = tries.begin();
        let mut walk = self.store.list(Some(&path));
        let mut found = Vec::new();
        while let Some(meta) = walk.next().await {
            let meta = match meta {
                Ok(meta) => meta,
                Err(error) => {
                    let fault = Fault::of(&error, &Seen::default());
                    tries.failed(attempt, 0, fault).await?;
                    return Ok(found);
                }
            };
            found.extend(self.listed(&meta, prefix)?);
            self.check_limit(found.len(), prefix, limit)?;
        }
        Ok(found)
    }

    /// A listed object, unless it is the prefix itself.
    pub(crate) fn listed(
        &self,
        meta: &object_store::ObjectMeta,
        prefix: &ObjectKey,
    ) -> Result<Option<ObjectMeta>, OriginError> {
        let key = ObjectKey::parse(meta.location.as_ref()).map_err(|error| {
            OriginError::new(OriginErrorKind::Unsupported, prefix, error.to_string())
                .at(&self.origin)
        })?;
        if key.relative_to(prefix).is_none() {
            return Ok(None);
        }
        Ok(Some(ObjectMeta { key, bytes: meta.size, pin: Pin::of(meta) }))
    }

    pub(crate) fn check_limit(
        &self,
        found: usize,
        prefix: &ObjectKey,
        limit: usize,
    ) -> Result<(), OriginError> {
        if found <= limit {
            return Ok(());
        }
        let text = format!("more than {limit} objects under it");
        Err(OriginError::new(OriginErrorKind::LimitExceeded, prefix, text).at(&self.origin))
    }
}

impl Filling<'_> {
    /// Appends bytes of the body. Too many are an error, and then none of this attempt's count.
    fn take(&mut self, bytes: &[u8], begun: usize, seen: &Seen) -> Result<(), Fault> {
        self.received += length(bytes.len());
        let end = self.filled.saturating_add(bytes.len());
        let Some(place) = self.into.get_mut(self.filled..end) else {
            self.filled = begun;
            return Err(Fault::new(OriginErrorKind::Malformed, seen, "more bytes than the range"));
        };
        place.copy_from_slice(bytes);
        self.filled = end;
        Ok(())
    }

    fn complete(&self, seen: &Seen) -> Result<(), Fault> {
        let missing = self.into.len() - self.filled;
        if missing == 0 {
            return Ok(());
        }
        let text = format!("{missing} bytes are missing");
        Err(Fault::new(OriginErrorKind::Truncated, seen, text))
    }
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// `None` for an object that is not there.
pub(crate) fn absent_is_none(
    head: Result<ObjectMeta, OriginError>,
) -> Result<Option<ObjectMeta>, OriginError> {
    match head {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if error.kind == OriginErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn conditional(pin: &Pin, range: Range<u64>, probe: &Probe) -> GetOptions {
    let mut options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
    match pin.strong_etag() {
        Some(etag) => options.if_match = Some(etag.to_owned()),
        None => options.if_unmodified_since = pin.last_modified.map(Into::into),
    }
    options.extensions.insert(probe.clone());
    options
}

/// Whether the head of an answer is that of the pinned version and of the wanted range.
fn check_answer(
    request: &ReadRequest,
    wanted: &Range<u64>,
    answer: &GetResult,
    seen: &Seen,
) -> Result<(), Fault> {
    if answer.meta.size != request.object_bytes {
        let text = format!("{} bytes, not {}", answer.meta.size, request.object_bytes);
        return Err(Fault::new(OriginErrorKind::Changed, seen, text));
    }
    if let Some(difference) = request.pin.difference(&Pin::of(&answer.meta)) {
        return Err(Fault::new(OriginErrorKind::Changed, seen, difference));
    }
    let long = seen.content_length.is_some_and(|bytes| bytes > wanted.end - wanted.start);
    if answer.range != *wanted || long {
        return Err(Fault::new(OriginErrorKind::Malformed, seen, "more bytes than the range"));
    }
    Ok(())
}

fn local_fault(error: &std::io::Error, seen: &Seen) -> Fault {
    let kind = match error.kind() {
        std::io::ErrorKind::UnexpectedEof => OriginErrorKind::Changed,
        kind => OriginErrorKind::Local(kind),
    };
    Fault::new(kind, seen, error.to_string())
}
