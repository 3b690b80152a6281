//! The one implementation of [`OriginStore`]: attempts around object_store, and the body's way into
//! the destination.
//!
//! A read keeps what has arrived: an attempt that broke is followed by one for the missing tail
//! only. Nothing is written outside the destination whatever the origin sends, and nothing counts
//! before ETag, size and range of the answer are those that were asked for.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use object_store::list::PaginatedListStore;
use object_store::local::LocalFileSystem;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, GetResultPayload, ObjectStore};
use tokio::time::Instant;

use crate::checksum::{Asking, Checksums};
use crate::credentials::Renews;
use crate::engine::endpoint::Endpoint;
use crate::error::{OriginError, OriginErrorKind};
use crate::fault::Fault;
use crate::file::FileThreads;
use crate::filling::{Filling, length};
use crate::hedge::{Race, Subject};
use crate::key::ObjectKey;
use crate::pin::Pin;
use crate::schedule::RetryPolicy;
use crate::settings::Timeouts;
use crate::stats::Counters;
use crate::store::{Destination, ObjectMeta, OriginStore, ReadRecord, ReadRequest, ReadTerms};
use crate::transport::direct::Direct;
use crate::transport::probe::{Probe, Seen};
use crate::transport::service::Transport;
use crate::tries::{self, Ground, Tries};

/// An attempt that takes so many times as long as one of its size usually does is left.
const TIMES_USUAL: u32 = 4;

/// How a store lists and where its bodies come from.
#[derive(Clone)]
pub(crate) enum Backend {
    /// Pages of keys, and uploads in parts.
    Cloud(CloudBackend),
    /// No listing of its own: see [`crate::web`].
    Web(Box<WebBackend>),
    /// A directory walk; bodies are read by threads of ours.
    File { files: LocalFileSystem, readers: Arc<FileThreads> },
}

/// What a cloud's store can do beyond objects that are read and written whole.
#[derive(Clone)]
pub(crate) struct CloudBackend {
    pub(crate) pages: Arc<dyn PaginatedListStore>,
    pub(crate) parts: Arc<dyn MultipartStore>,
    /// How it is asked for checksums, if that has to be done.
    pub(crate) asking: Option<Asking>,
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
    pub(crate) timeouts: Timeouts,
    pub(crate) counters: Arc<Counters>,
    /// None for files.
    pub(crate) endpoint: Option<Arc<Endpoint>>,
    pub(crate) renewal: Renews,
    /// What it says of its objects' checksums is told.
    pub(crate) checksums: bool,
    /// Its entity tags are MD5s, where they look so.
    pub(crate) tags_are_md5: bool,
}

impl std::fmt::Debug for ObjectOrigin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectOrigin").field("origin", &self.origin).finish_non_exhaustive()
    }
}

#[async_trait]
impl OriginStore for ObjectOrigin {
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, OriginError> {
        if key.is_root() {
            let text = "a whole store is no object";
            return Err(OriginError::new(OriginErrorKind::NotFound, key, text).at(&self.origin));
        }
        self.head_of_key(key).await
    }

    async fn list(&self, prefix: &ObjectKey, limit: usize) -> Result<Vec<ObjectMeta>, OriginError> {
        let mut found = match &self.backend {
            Backend::Cloud(cloud) => self.list_pages(&*cloud.pages, prefix, limit).await?,
            Backend::Web(web) => self.list_web(web, prefix, limit).await?,
            Backend::File { .. } => self.list_files(prefix, limit).await?,
        };
        found.sort_by(|a, b| a.key.cmp(&b.key));
        found.dedup_by(|a, b| a.key == b.key);
        Ok(found)
    }

    async fn read_on(
        &self,
        request: &ReadRequest,
        terms: ReadTerms,
        to: Destination<'_>,
    ) -> Result<ReadRecord, OriginError> {
        let path = self.path(&request.key)?;
        let range = &request.range;
        let fits = u64::try_from(to.into.len()).ok() == range.end.checked_sub(range.start)
            && range.end <= request.object_bytes;
        if !fits {
            let kind = OriginErrorKind::Local(std::io::ErrorKind::InvalidInput);
            let text = format!("{} bytes for bytes {}..{}", to.into.len(), range.start, range.end);
            return Err(OriginError::new(kind, &request.key, text).at(&self.origin));
        }
        if to.into.is_empty() {
            return Ok(ReadRecord::default());
        }
        let mut tries = self.tries_on(&request.key, Some(range.clone()), terms.clone());
        let mut filling = Filling::of(to).counted_by(&terms);
        loop {
            let attempt = tries.begin(length(filling.missing())).await?;
            filling.received = 0;
            let subject = Subject { request, path: &path, lane: terms.lane() };
            let (race, copy) = self.race(subject, &mut filling, &attempt).await;
            tries.copied(copy);
            match race {
                Race::Done => return Ok(tries.done(attempt, filling.received)),
                Race::Overtaken(why) => {
                    return Ok(tries.overtaken(attempt, filling.received, why));
                }
                Race::Failed(fault) => {
                    // Whole, and yet wrong: there is no rest to ask for.
                    if filling.missing() == 0 {
                        filling.take_back(0);
                    }
                    tries.failed(attempt, filling.received, fault).await?;
                }
            }
        }
    }
}

impl ObjectOrigin {
    pub(crate) fn tries<'a>(&'a self, key: &'a ObjectKey, range: Option<Range<u64>>) -> Tries<'a> {
        self.tries_on(key, range, ReadTerms::default())
    }

    pub(crate) fn tries_on<'a>(
        &'a self,
        key: &'a ObjectKey,
        range: Option<Range<u64>>,
        terms: ReadTerms,
    ) -> Tries<'a> {
        let endpoint = self.endpoint.as_ref();
        let renewal = self.renewal.as_deref();
        let ground = Ground { policy: &self.retry, counters: &self.counters, endpoint, renewal };
        Tries::new(ground, tries::Subject { origin: &self.origin, key, range }, terms)
    }

    /// The key as object_store wants it: parsed, which keeps it as it is.
    pub(crate) fn path(&self, key: &ObjectKey) -> Result<Path, OriginError> {
        Path::parse(key.as_str()).map_err(|error| {
            OriginError::new(OriginErrorKind::Unsupported, key, error.to_string()).at(&self.origin)
        })
    }

    pub(crate) fn fault_of(&self, error: &object_store::Error, seen: &Seen) -> Fault {
        match self.backend {
            Backend::File { .. } => Fault::of_file(error),
            Backend::Cloud(_) | Backend::Web(_) => Fault::of(error, seen),
        }
    }

    /// Refuses what is no regular file: opening a pipe would block a thread until someone writes.
    pub(crate) async fn check_regular(&self, path: &Path) -> Result<(), Fault> {
        let Backend::File { files, readers } = &self.backend else { return Ok(()) };
        let place = files.path_to_filesystem(path).map_err(|error| Fault::of_file(&error))?;
        if place.as_os_str().as_encoded_bytes().strip_prefix(b"/") != Some(path.as_ref().as_bytes())
        {
            // The url crate takes a name that ends like `c:` for a drive of Windows.
            let text = format!("object_store would open {} instead", place.display());
            return Err(Fault::new(OriginErrorKind::Unsupported, &Seen::default(), text));
        }
        match readers.is_regular(place).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Fault::of_io(&std::io::Error::new(
                std::io::ErrorKind::NotFound,
                "it is no regular file",
            ))),
            Err(error) => Err(Fault::of_io(&error)),
        }
    }

    /// How long the body of so many bytes may take in all. An origin that is slow as a whole is
    /// given the time that it usually takes, and more; one part that only drips is left.
    fn body_limit(&self, bytes: u64) -> Option<Duration> {
        let endpoint = self.endpoint.as_ref()?;
        let usual = endpoint.usual(bytes).unwrap_or_default();
        Some(self.timeouts.part(bytes).max(usual * TIMES_USUAL))
    }

    pub(crate) async fn read_once(
        &self,
        request: &ReadRequest,
        path: &Path,
        filling: &mut Filling<'_>,
        probe: &Probe,
    ) -> Result<(), Fault> {
        let start = request.range.start + length(filling.filled);
        let wanted = start..request.range.end;
        self.check_regular(path).await?;
        let direct = Direct::default();
        let mut options = conditional(&request.pin, wanted.clone(), probe);
        options.extensions.insert(direct.clone());
        let answer = self.store.get_opts(path, options).await;
        let seen = probe.seen();
        let answer = answer.map_err(|error| self.fault_of(&error, &seen))?;
        check_answer(request, &wanted, &answer, &seen)?;
        match answer.payload {
            GetResultPayload::Stream(_empty) => {
                let body = direct.take().ok_or_else(|| {
                    Fault::new(OriginErrorKind::Malformed, &seen, "an answer without a body")
                })?;
                // From the head on: the wait for that has a limit of its own.
                let limit = self.body_limit(length(filling.missing()));
                let until = limit.map(|limit| Instant::now() + limit);
                if let Err(stopped) = body.fill(filling, until).await {
                    probe.note(|seen| seen.broke = Some((stopped.broke, stopped.text.clone())));
                    return Err(Fault::of_break(stopped.broke, &seen, &stopped.text));
                }
                filling.complete(&seen)
            }
            GetResultPayload::File(file, _) => {
                self.read_file((request, path), file, wanted, filling, probe).await
            }
        }
    }

    /// Copies a range of an open file, and looks afterwards whether it was written to meanwhile:
    /// nothing else would tell a mix of two versions from one.
    async fn read_file(
        &self,
        (request, path): (&ReadRequest, &Path),
        file: std::fs::File,
        wanted: Range<u64>,
        filling: &mut Filling<'_>,
        probe: &Probe,
    ) -> Result<(), Fault> {
        let seen = Seen::default();
        let Backend::File { readers, .. } = &self.backend else {
            return Err(Fault::new(OriginErrorKind::Unsupported, &seen, "a file as an answer"));
        };
        let mut pieces = readers.read(file, wanted);
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| Fault::of_io(&error))?;
            self.counters.received(piece.bytes.len());
            if piece.cold_bytes > 0 {
                probe.note(|seen| seen.cold_bytes += piece.cold_bytes);
            }
            filling.take(&piece.bytes, filling.filled, &seen)?;
        }
        filling.complete(&seen)?;
        let after = self.head_once(&*self.store, &request.key, path, &Probe::new()).boxed().await?;
        match request.pin.difference(&after.pin) {
            Some(difference) => Err(Fault::new(OriginErrorKind::Changed, &seen, difference)),
            None => Ok(()),
        }
    }
}

pub(crate) fn meta_of(key: &ObjectKey, meta: &object_store::ObjectMeta) -> ObjectMeta {
    let checksums = Checksums::default();
    ObjectMeta { key: key.clone(), bytes: meta.size, pin: Pin::of(meta), checksums }
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
