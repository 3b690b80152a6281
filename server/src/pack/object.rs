//! One object on its way: read frame by frame, coded on the workers, written in order.
//!
//! ```text
//!   source ── reads side by side ──► frame ──► worker: BLAKE3, zstd ──┐   (several at a time)
//!                                                                     ▼ in order
//!                         worker: BLAKE3, SHA-256, checksums of the object ──► upload
//! ```
//!
//! A frame takes its share of the memory for all packs before it is read, in order, and keeps it
//! until it is handed to the upload: so the frame that is next always has one. An object of one
//! frame is looked at as a whole; of a larger one samples decide how it is stored, and if they were
//! wrong it is given up and stored as it is. Nothing is there under its name before all checksums
//! of its source fit.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use forebay_codec::coding::{Frame, PlaneRun};
use forebay_codec::decode::{DecodeError, FrameDecoder};
use forebay_codec::encode::{
    EncodeError, EncodeSettings, FrameEncoder, seek_table, seek_table_bytes,
};
use forebay_codec::manifest::{CODED_SUFFIX, PackedFrame, PackedObject, PackedRun};
use forebay_codec::tensor::TensorEntry;
use forebay_origin::{Checksums, OriginStore, ReadTerms};
use futures::{StreamExt, TryStreamExt};

use super::digests::{Digested, Digests};
use super::place::{self, Place, facts};
use super::plan::{Parameters, Wanted};
use super::row::Row;
use super::{PackError, Steps, sample};
use crate::cpu::Workers;
use crate::resolve::Object;
use crate::staging::{Staged, Staging, StagingShare};

/// Frames of an object that are read, coded and waiting to be written, at most.
const FRAMES_AT_ONCE: usize = 16;

/// Samples of an object that are read at a time.
const SAMPLES_AT_ONCE: usize = 16;

/// What the objects of one pack are made with.
#[derive(Debug)]
pub(super) struct Shop {
    pub(super) source: Arc<dyn OriginStore>,
    pub(super) place: Place,
    pub(super) terms: ReadTerms,
    pub(super) workers: Arc<Workers>,
    pub(super) staging: Arc<Staging>,
    pub(super) coders: Arc<Coders>,
    pub(super) parameters: Parameters,
    pub(super) steps: Steps,
}

/// An object that is to be written.
#[derive(Debug)]
pub(super) struct Job<'a> {
    pub(super) object: &'a Object,
    pub(super) wanted: &'a Wanted,
    pub(super) tensors: Option<Vec<TensorEntry>>,
    pub(super) may_be_coded: bool,
}

/// How an object is stored.
#[derive(Debug, Clone)]
struct Form {
    coded: bool,
    planes: Vec<PlaneRun>,
}

/// A frame that can be written.
struct Ready {
    plain: Staged,
    /// None: as it is.
    stored: Option<Vec<u8>>,
    blake3: [u8; 32],
    _share: StagingShare,
}

/// An object that is written.
struct Written {
    form: Form,
    frames: Vec<PackedFrame>,
    stored_bytes: u64,
    digested: Digested,
}

impl Shop {
    /// Writes an object. It is at the destination when this answers.
    pub(super) async fn write(&self, job: Job<'_>) -> Result<PackedObject, PackError> {
        let checksums = self.checksums(&job).await?;
        let written = if job.object.bytes <= self.parameters.frame_bytes {
            self.write_at_once(&job, checksums).await?
        } else {
            self.write_in_frames(&job, checksums).await?
        };
        let Written { form, frames, stored_bytes, digested } = written;
        let tile = if form.planes.is_empty() { 0 } else { self.coders.settings.tile };
        Ok(PackedObject {
            name: job.object.name.clone(),
            bytes: job.object.bytes,
            stored_name: stored_name(&job, &form),
            stored_bytes,
            coded: form.coded,
            blake3: digested.blake3,
            sha256: digested.sha256,
            frames,
            planes: form.planes.into_iter().map(PackedRun).collect(),
            tile,
            tensors: job.tensors,
            source: job.wanted.source.clone(),
        })
    }

    /// What the source's store says of the object's bytes: of this version of it.
    async fn checksums(&self, job: &Job<'_>) -> Result<Checksums, PackError> {
        let meta = self.source.head(&job.object.key).await?;
        let seen = facts(&meta.pin, meta.bytes);
        let known = &job.wanted.source;
        let same_tag = match (&seen.etag, &known.etag) {
            (Some(seen), Some(known)) => seen == known,
            _ => true,
        };
        if seen.bytes != known.bytes || !same_tag {
            return Err(PackError::Changed { name: job.object.name.clone() });
        }
        Ok(meta.checksums)
    }

    async fn write_at_once(
        &self,
        job: &Job<'_>,
        checksums: Checksums,
    ) -> Result<Written, PackError> {
        let bytes = job.object.bytes;
        let share = self.staging.share(2 * bytes).await?;
        let mut plain = share.buffer(usize::try_from(bytes).unwrap_or(usize::MAX))?;
        self.read(job.object, 0..bytes, plain.as_mut_slice()).await?;
        let candidates = sample::candidates(job.tensors.iter().flatten());
        let coders = Arc::clone(&self.coders);
        let may_be_coded = job.may_be_coded;
        let work = move || {
            let mut digests = Digests::new(checksums);
            digests.update(plain.as_slice());
            let coded = match may_be_coded {
                true => coders.encode_whole(&candidates, plain.as_slice())?,
                false => None,
            };
            Ok::<_, EncodeError>((plain, digests.finish(), coded))
        };
        let (plain, digested, coded) = self.workers.run(work).await??;
        let digested = digested.map_err(|checksum| mismatch(job, checksum))?;
        let blake3 = digested.blake3;
        let (form, stored, frame_bytes) = match coded {
            Some((planes, stored, frame_bytes)) => {
                (Form { coded: true, planes }, Bytes::from(stored), frame_bytes)
            }
            None => {
                let form = Form { coded: false, planes: Vec::new() };
                (form, Bytes::copy_from_slice(plain.as_slice()), bytes)
            }
        };
        let stored_bytes = stored.len() as u64;
        let key = self.place.key(&stored_name(job, &form))?;
        self.place.sink().put(&key, stored).await?;
        self.steps.done(bytes);
        let frame = PackedFrame { stored_bytes: frame_bytes, blake3 };
        let frames = if bytes == 0 { Vec::new() } else { vec![frame] };
        Ok(Written { form, frames, stored_bytes, digested })
    }

    async fn write_in_frames(
        &self,
        job: &Job<'_>,
        checksums: Checksums,
    ) -> Result<Written, PackError> {
        if job.may_be_coded {
            let form = self.form(job).await?;
            if form.coded
                && let Some(written) = self.stream(job, form, checksums).await?
            {
                return Ok(written);
            }
        }
        let form = Form { coded: false, planes: Vec::new() };
        let written = self.stream(job, form, checksums).await?;
        // Only compression can turn out not to pay.
        written.ok_or_else(|| PackError::Changed { name: job.object.name.clone() })
    }

    /// How the object is to be stored, as far as samples tell.
    async fn form(&self, job: &Job<'_>) -> Result<Form, PackError> {
        let candidates = sample::candidates(job.tensors.iter().flatten());
        let measuring = sample::measured(&candidates).into_iter().filter_map(|at| {
            let candidate = candidates.get(at)?;
            Some((at, candidate.width, candidate.samples()))
        });
        let measuring: Vec<_> = measuring
            .map(|(at, width, spots)| async move {
                let samples = self.samples(job.object, spots).await?;
                let coders = Arc::clone(&self.coders);
                let work = move || {
                    coders.with_encoder(|encoder| sample::measure(encoder, width, &samples))
                };
                Ok::<_, PackError>((at, self.workers.run(work).await??))
            })
            .collect();
        let measured: BTreeMap<_, _> = futures::stream::iter(measuring)
            .buffer_unordered(SAMPLES_AT_ONCE)
            .try_collect()
            .await?;
        let planes = sample::runs(&candidates, &measured);
        let spots = sample::of_object(job.object.bytes);
        let samples = self.samples(job.object, spots.clone()).await?;
        let (coders, runs) = (Arc::clone(&self.coders), planes.clone());
        let work = move || {
            let samples = spots.iter().map(|spot| spot.start).zip(&samples);
            coders.with_encoder(|encoder| sample::shrinks(encoder, samples, &runs))
        };
        Ok(Form { coded: self.workers.run(work).await??, planes })
    }

    async fn samples(
        &self,
        object: &Object,
        spots: Vec<Range<u64>>,
    ) -> Result<Vec<Vec<u8>>, PackError> {
        let reads: Vec<_> = spots
            .into_iter()
            .map(|spot| async move {
                let length = usize::try_from(spot.end - spot.start).unwrap_or(0);
                let mut bytes = vec![0; length];
                self.read(object, spot, &mut bytes).await?;
                Ok::<_, PackError>(bytes)
            })
            .collect();
        futures::stream::iter(reads).buffered(SAMPLES_AT_ONCE).try_collect().await
    }

    /// Reads, codes and writes all frames; none if the compressed form would not pay after all.
    async fn stream(
        &self,
        job: &Job<'_>,
        form: Form,
        checksums: Checksums,
    ) -> Result<Option<Written>, PackError> {
        let (object, bytes) = (job.object, job.object.bytes);
        let (form, frame_bytes) = (Arc::new(form), self.parameters.frame_bytes);
        let key = self.place.key(&stored_name(job, &form))?;
        let mut upload = self.place.sink().upload(&key, bytes).await?;
        let ranges = (0..bytes.div_ceil(frame_bytes)).map(|number| {
            let range = number * frame_bytes..bytes.min((number + 1) * frame_bytes);
            let share_bytes = 2 * (range.end - range.start);
            (range, share_bytes)
        });
        let mut row = Row::new(&self.staging, FRAMES_AT_ONCE, ranges, |range, share| {
            self.frame(object, Arc::clone(&form), (range, share))
        });
        let table_bytes = match form.coded {
            true => seek_table_bytes(bytes.div_ceil(frame_bytes)),
            false => 0,
        };
        let mut digests = Digests::new(checksums);
        let (mut frames, mut stored_bytes, mut plain_bytes) = (Vec::new(), table_bytes, 0);
        while let Some(mut ready) = row.next().await? {
            let work = move || {
                digests.update(ready.plain.as_slice());
                (digests, ready)
            };
            (digests, ready) = row.meanwhile(self.workers.run(work)).await?;
            let plain = ready.plain.as_slice();
            let stored = match ready.stored.take() {
                Some(stored) => Bytes::from(stored),
                None => Bytes::copy_from_slice(plain),
            };
            frames.push(PackedFrame { stored_bytes: stored.len() as u64, blake3: ready.blake3 });
            stored_bytes += stored.len() as u64;
            if form.coded && !sample::pays(stored_bytes, bytes) {
                drop(row);
                upload.abort().await;
                self.steps.undone(plain_bytes);
                return Ok(None);
            }
            row.meanwhile(upload.write(stored)).await?;
            plain_bytes += plain.len() as u64;
            self.steps.done(plain.len() as u64);
        }
        drop(row);
        let digested = digests.finish().map_err(|checksum| mismatch(job, checksum))?;
        if form.coded {
            let table = table_of(&frames, (frame_bytes, bytes), !form.planes.is_empty())?;
            upload.write(Bytes::from(table)).await?;
        }
        upload.finish().await?;
        let form = Arc::unwrap_or_clone(form);
        Ok(Some(Written { form, frames, stored_bytes, digested }))
    }

    async fn frame(
        &self,
        object: &Object,
        form: Arc<Form>,
        (range, share): (Range<u64>, StagingShare),
    ) -> Result<Ready, PackError> {
        let offset = range.start;
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut plain = share.buffer(length)?;
        self.read(object, range, plain.as_mut_slice()).await?;
        let coders = Arc::clone(&self.coders);
        let work = move || {
            let blake3 = *blake3::hash(plain.as_slice()).as_bytes();
            let stored = match form.coded {
                true => Some(coders.encode(plain.as_slice(), offset, &form.planes)?),
                false => None,
            };
            Ok::<_, EncodeError>(Ready { plain, stored, blake3, _share: share })
        };
        Ok(self.workers.run(work).await??)
    }

    /// Fills memory with a range of an object of the source.
    async fn read(
        &self,
        object: &Object,
        range: Range<u64>,
        into: &mut [u8],
    ) -> Result<(), PackError> {
        let version = (&object.key, &object.pin, object.bytes);
        place::read(&*self.source, version, range, (&self.terms, into)).await
    }
}

/// The seek table of an object of such frames.
pub(super) fn table_of(
    frames: &[PackedFrame],
    (frame_bytes, bytes): (u64, u64),
    planed: bool,
) -> Result<Vec<u8>, EncodeError> {
    let frame = |(number, packed): (usize, &PackedFrame)| Frame {
        stored_offset: 0,
        stored_bytes: packed.stored_bytes,
        plain_offset: 0,
        plain_bytes: frame_bytes.min(bytes.saturating_sub(number as u64 * frame_bytes)),
        digest: None,
    };
    seek_table(&frames.iter().enumerate().map(frame).collect::<Vec<_>>(), planed)
}

fn stored_name(job: &Job<'_>, form: &Form) -> String {
    let suffix = if form.coded { CODED_SUFFIX } else { "" };
    format!("{}{suffix}", job.object.name)
}

fn mismatch(job: &Job<'_>, checksum: &'static str) -> PackError {
    PackError::Checksum { name: job.object.name.clone(), checksum }
}

/// Encoders and decoders that are not in use. There are never more than there are workers.
#[derive(Debug)]
pub(super) struct Coders {
    settings: EncodeSettings,
    encoders: Mutex<Vec<FrameEncoder>>,
    decoders: Mutex<Vec<FrameDecoder>>,
}

/// Plane runs, what is stored, and bytes of the one frame in it.
type EncodedWhole = (Vec<PlaneRun>, Vec<u8>, u64);

impl Coders {
    pub(super) fn new(level: i32) -> Self {
        let settings = EncodeSettings { level, ..EncodeSettings::default() };
        Self { settings, encoders: Mutex::default(), decoders: Mutex::default() }
    }

    fn with_encoder<T>(
        &self,
        work: impl FnOnce(&mut FrameEncoder) -> Result<T, EncodeError>,
    ) -> Result<T, EncodeError> {
        let idle = self.encoders.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut encoder = idle.map_or_else(|| FrameEncoder::new(self.settings), Ok)?;
        let done = work(&mut encoder);
        self.encoders.lock().unwrap_or_else(PoisonError::into_inner).push(encoder);
        done
    }

    /// The same with a decoder.
    pub(super) fn with_decoder<T>(
        &self,
        work: impl FnOnce(&mut FrameDecoder) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        let idle = self.decoders.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut decoder = idle.map_or_else(FrameDecoder::new, Ok)?;
        let done = work(&mut decoder);
        self.decoders.lock().unwrap_or_else(PoisonError::into_inner).push(decoder);
        done
    }

    fn encode(
        &self,
        plain: &[u8],
        offset: u64,
        planes: &[PlaneRun],
    ) -> Result<Vec<u8>, EncodeError> {
        self.with_encoder(|encoder| {
            let mut out = Vec::new();
            encoder.encode(plain, offset, planes, &mut out)?;
            Ok(out)
        })
    }

    /// An object of one frame, with its seek table, if that pays.
    fn encode_whole(
        &self,
        candidates: &[sample::Candidate],
        plain: &[u8],
    ) -> Result<Option<EncodedWhole>, EncodeError> {
        self.with_encoder(|encoder| {
            let planes = sample::runs_of_whole(encoder, candidates, plain)?;
            let mut out = Vec::new();
            let frame_bytes = encoder.encode(plain, 0, &planes, &mut out)?;
            let bytes = plain.len() as u64;
            let frame = PackedFrame { stored_bytes: frame_bytes, blake3: [0; 32] };
            out.extend(table_of(&[frame], (bytes, bytes), !planes.is_empty())?);
            Ok(sample::pays(out.len() as u64, bytes).then_some((planes, out, frame_bytes)))
        })
    }
}
