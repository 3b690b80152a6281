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
use crate::store::{
    Destination, FileRead, FileReader, ObjectMeta, OriginStore, ReadRecord, ReadRequest, ReadTerms,
};
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
        let fits = u64::try_from(to.into.len()).ok() == range.end.checked_sub(range.start);
        if !fits || range.end > request.object_bytes {
            let text = format!("{} bytes for bytes {}..{}", to.into.len(), range.start, range.end);
            return Err(self.misfit(request, text));
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

    fn holds_files(&self) -> bool {
        matches!(self.backend, Backend::File { .. })
    }

    async fn read_file(
        &self,
        request: &ReadRequest,
        terms: ReadTerms,
        reader: &mut dyn FileReader,
    ) -> Result<ReadRecord, OriginError> {
        let path = self.path(&request.key)?;
        let range = &request.range;
        if range.is_empty() || range.end > request.object_bytes {
            let text = format!("bytes {}..{} of it", range.start, range.end);
            return Err(self.misfit(request, text));
        }
        let bytes = range.end - range.start;
        let mut tries = self.tries_on(&request.key, Some(range.clone()), terms.clone());
        loop {
            let attempt = tries.begin(bytes).await?;
            let work = self.read_file_once((request, &path), &terms, reader, &attempt.probe);
            let read = attempt.run(work).await;
            match read {
                Ok(()) => return Ok(tries.done(attempt, bytes)),
                Err(fault) => tries.failed(attempt, 0, fault).await?,
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

    fn misfit(&self, request: &ReadRequest, text: String) -> OriginError {
        let kind = OriginErrorKind::Local(std::io::ErrorKind::InvalidInput);
        OriginError::new(kind, &request.key, text).at(&self.origin)
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

    /// What the store answers. A file is opened only if it is a regular one: opening a pipe would
    /// block a thread until someone writes. One thread that may block does both; object_store works
    /// in place there, as it is outside of the runtime.
    pub(crate) async fn get(
        &self,
        store: &dyn ObjectStore,
        path: &Path,
        options: GetOptions,
    ) -> Result<object_store::Result<GetResult>, Fault> {
        let Backend::File { files, readers } = &self.backend else {
            return Ok(store.get_opts(path, options).await);
        };
        let place = files.path_to_filesystem(path).map_err(|error| Fault::of_file(&error))?;
        if place.as_os_str().as_encoded_bytes().strip_prefix(b"/") != Some(path.as_ref().as_bytes())
        {
            // The url crate takes a name that ends like `c:` for a drive of Windows.
            let text = format!("object_store would open {} instead", place.display());
            return Err(Fault::new(OriginErrorKind::Unsupported, &Seen::default(), text));
        }
        let (files, path) = (Arc::clone(&self.store), path.clone());
        let opened = readers.run(move || {
            if !std::fs::metadata(place)?.is_file() {
                let text = "it is no regular file";
                return Err(std::io::Error::new(std::io::ErrorKind::NotFound, text));
            }
            let opened = files.get_opts(&path, options).now_or_never();
            opened.ok_or_else(|| std::io::Error::other("object_store waits for something"))
        });
        opened.await.map_err(|error| Fault::of_io(&error))
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
        let direct = Direct::default();
        let mut options = conditional(&request.pin, wanted.clone(), probe);
        options.extensions.insert(direct.clone());
        let answer = self.get(&*self.store, path, options).await?;
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
                self.copy_file(file, wanted, filling, probe).await?;
                self.check_unchanged(request, path).await
            }
        }
    }

    /// One attempt by a reader with a place of its own.
    async fn read_file_once(
        &self,
        (request, path): (&ReadRequest, &Path),
        terms: &ReadTerms,
        reader: &mut dyn FileReader,
        probe: &Probe,
    ) -> Result<(), Fault> {
        let range = request.range.clone();
        let options = conditional(&request.pin, range.clone(), probe);
        let answer = self.get(&*self.store, path, options).await?;
        let seen = probe.seen();
        let answer = answer.map_err(|error| self.fault_of(&error, &seen))?;
        check_answer(request, &range, &answer, &seen)?;
        let GetResultPayload::File(file, _) = answer.payload else {
            return Err(Fault::new(OriginErrorKind::Unsupported, &seen, "no file as an answer"));
        };
        let bytes = range.end - range.start;
        match reader.read(file, range.clone()).await.map_err(|error| Fault::of_io(&error))? {
            FileRead::Done { cold_bytes } => {
                self.counters.received(usize::try_from(bytes).unwrap_or(usize::MAX));
                probe.note(|seen| seen.cold_bytes += cold_bytes);
                terms.landed(bytes);
            }
            FileRead::Unsuited(file) => {
                let gone =
                    || Fault::of_io(&std::io::Error::other("the place to read it to is gone"));
                let to = reader.destination().ok_or_else(gone)?;
                let mut filling = Filling::of(to).counted_by(terms);
                self.copy_file(file, range, &mut filling, probe).await?;
            }
        }
        self.check_unchanged(request, path).await
    }

    /// Copies a range of an open file.
    async fn copy_file(
        &self,
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
        filling.complete(&seen)
    }

    /// Whether a file that was read was written to meanwhile: nothing else would tell a mix of two
    /// versions from one.
    async fn check_unchanged(&self, request: &ReadRequest, path: &Path) -> Result<(), Fault> {
        let after = self.head_once(&*self.store, &request.key, path, &Probe::new()).boxed().await?;
        match request.pin.difference(&after.pin) {
            Some(difference) => {
                Err(Fault::new(OriginErrorKind::Changed, &Seen::default(), difference))
            }
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
