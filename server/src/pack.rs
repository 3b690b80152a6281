//! `forebay pack`: a checkpoint written anew, compressed and with digests of everything.
//!
//! ```text
//!   resolve ─► what lies at the destination, what earlier packs wrote (plan, journal) ─► claim
//!      per object that is not there yet:
//!      read, code, write (object) ─► read again, decode, compare (proof) ─► its entry (journal)
//!   ─► the manifest, when all are there ─► what is left over is removed
//! ```
//!
//! The manifest comes last: a checkpoint is packed when it is whole, and not before. A pack that
//! ends early (a deadline, a client that is gone, a kill) leaves whole objects and their entries,
//! and the next one goes on there. An object that has changed at the source is written over the old
//! one, so between that and the new manifest a load of that object fails with its digest.
//!
//! Objects are packed as the store has them: `.zst` objects of the source are copied, and stay what
//! they are under their own names. Memory is bounded: [`STAGED_BYTES`] of frames for all packs,
//! what uploads hold of [`OBJECTS_AT_ONCE`] objects each (40 MiB), and a coder per worker. The
//! workers have low priority: loads go first.

mod digests;
mod error;
mod journal;
mod object;
mod place;
mod plan;
mod proof;
mod row;
mod sample;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use forebay_codec::manifest::{
    FORMAT, MANIFEST_BYTES_MAX, MANIFEST_NAME, PackManifest, PackedObject,
};
use forebay_codec::tensor::TensorEntry;
use forebay_origin::{Lane, ObjectMeta, OriginUri, Origins, ReadTerms};
use futures::{StreamExt, TryStreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::cpu::Workers;
use crate::deadline::Deadline;
use crate::load::Stages;
use crate::resolve::{Manifest, Object};
use crate::staging::Staging;
use journal::{CLAIM, Claim, Entry};
use object::{Coders, Job, Shop};
use place::Place;
use plan::{Decision, Known, Parameters, Wanted};

pub(crate) use error::PackError;

/// Packs that run at one time.
const PACKS_MAX: usize = 2;

/// Hint to one that has to wait.
const PACKS_RETRY: Duration = Duration::from_secs(30);

/// Memory for the frames of all packs, plain and coded.
const STAGED_BYTES: u64 = 256 << 20;

/// Objects of one pack under way.
const OBJECTS_AT_ONCE: usize = 4;

/// Small requests of one pack under way.
const REQUESTS_AT_ONCE: usize = 16;

/// Workers of all packs.
const WORKERS_MAX: usize = 64;

/// Frames if nothing is said: as chunks are.
const FRAME_BYTES: u64 = 8 << 20;
const FRAME_BYTES_MIN: u64 = 64 << 10;
const FRAME_BYTES_MAX: u64 = 16 << 20;

/// Levels of zstd.
const LEVEL: i32 = 1;

/// What a client asks for.
pub(crate) struct PackRequest {
    /// As given: may hold a query with a signature, so this type has no `Debug`.
    pub(crate) source: String,
    /// As given.
    pub(crate) destination: String,
    /// Zero for the usual.
    pub(crate) frame_bytes: u64,
    /// Zero for the usual.
    pub(crate) level: i32,
    /// Who asks.
    pub(crate) uid: u32,
    /// When it has to be over.
    pub(crate) deadline: Deadline,
}

/// How far a pack is.
#[derive(Debug, Clone)]
pub(crate) struct PackProgress {
    /// Without a query.
    pub(crate) source: Arc<str>,
    /// Without a query.
    pub(crate) destination: Arc<str>,
    /// Written and proved: one half of each byte for either.
    pub(crate) done_bytes: u64,
    /// Of all objects.
    pub(crate) total_bytes: u64,
}

/// What came of a pack.
#[derive(Debug, Clone, Default)]
pub(crate) struct PackReport {
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
    pub(crate) packed_bytes: u64,
    pub(crate) manifest_bytes: u64,
    pub(crate) skipped_objects: u64,
    pub(crate) skipped_bytes: u64,
    pub(crate) raw_objects: u64,
    pub(crate) removed_objects: u64,
    pub(crate) wall: Duration,
}

/// What all packs share.
#[derive(Debug)]
pub(crate) struct Packer {
    origins: Arc<Origins>,
    workers: Arc<Workers>,
    staging: Arc<Staging>,
    /// Where packs are running to.
    running: Mutex<Vec<OriginUri>>,
}

/// A pack's place among those that run. Dropping it gives it back.
#[derive(Debug)]
struct Seat<'a> {
    packer: &'a Packer,
    destination: OriginUri,
}

impl Packer {
    /// Reads and writes through `origins`, with workers of its own.
    pub(crate) fn start(origins: Arc<Origins>) -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let workers = Workers::start_in_background("forebay-pack", cores.min(WORKERS_MAX))?;
        let staging = Staging::new(STAGED_BYTES);
        Ok(Self { origins, workers: Arc::new(workers), staging, running: Mutex::default() })
    }

    /// A place among those that run, if there is one and nobody else writes there.
    fn enter(&self, destination: &OriginUri) -> Result<Seat<'_>, PackError> {
        let mut running = self.running();
        let is_near = |other: &OriginUri| {
            place::is_in(other, destination) || place::is_in(destination, other)
        };
        if running.iter().any(is_near) {
            return Err(PackError::Busy { destination: destination.to_string() });
        }
        if running.len() >= PACKS_MAX {
            return Err(PackError::Full);
        }
        running.push(destination.clone());
        Ok(Seat { packer: self, destination: destination.clone() })
    }

    fn running(&self) -> MutexGuard<'_, Vec<OriginUri>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.packer.running().retain(|running| *running != self.destination);
    }
}

/// Packs a checkpoint. Everything is given back, and nothing half written left, if this is dropped.
pub(crate) async fn pack(
    packer: &Packer,
    stages: &Stages,
    request: &PackRequest,
    progress: mpsc::Sender<PackProgress>,
) -> Result<PackReport, PackError> {
    let begun = Instant::now();
    let parameters = parameters(request)?;
    let destination = place::destination(&request.destination, request.uid)?;
    let source = OriginUri::parse(&request.source)?;
    if place::is_in(&destination, &source) {
        return Err(PackError::Inside);
    }
    let _seat = packer.enter(&destination)?;
    let terms = ReadTerms::new(Lane::Prefetch, Some(request.deadline.at()));
    let permit = stages.admission.look_up()?;
    let manifest = stages.resolver.resolve_as_stored(&permit, &request.source, &terms).await?;
    drop(permit);
    let place = Place::open(&packer.origins, destination, terms.clone())?;
    let steps = Steps::new(&manifest, &place, progress);
    let shop = Shop {
        source: Arc::clone(manifest.store()),
        place,
        terms,
        workers: Arc::clone(&packer.workers),
        staging: Arc::clone(&packer.staging),
        coders: Arc::new(Coders::new(parameters.level)),
        parameters,
        steps,
    };
    let packing = Packing { shop, manifest: &manifest, mark: journal::mark(manifest.uri()) };
    let report = packing.run().await?;
    Ok(PackReport { wall: begun.elapsed(), ..report })
}

fn parameters(request: &PackRequest) -> Result<Parameters, PackError> {
    let frame_bytes = if request.frame_bytes == 0 { FRAME_BYTES } else { request.frame_bytes };
    let level = if request.level == 0 { LEVEL } else { request.level };
    let in_bounds = (FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&frame_bytes);
    if !frame_bytes.is_power_of_two() || !in_bounds {
        return Err(PackError::FrameBytes(frame_bytes));
    }
    if !forebay_codec::encode::LEVELS.contains(&level) {
        return Err(PackError::Level(level));
    }
    Ok(Parameters { frame_bytes, level })
}

/// One pack.
struct Packing<'a> {
    shop: Shop,
    manifest: &'a Manifest,
    /// Of the source.
    mark: String,
}

impl Packing<'_> {
    async fn run(&self) -> Result<PackReport, PackError> {
        let known = self.known().await?;
        let objects = self.objects();
        let wanted: Vec<Wanted> = objects.iter().map(|(_, object)| wanted(object)).collect();
        let decisions = plan::decide(&wanted, &known, self.shop.parameters)?;
        let (mut kept, mut jobs) = (Vec::new(), Vec::new());
        let mut tensors = self.tensors();
        for (((index, object), wanted), decision) in objects.iter().zip(&wanted).zip(decisions) {
            match decision {
                Decision::Keep(packed) => kept.push(*packed),
                Decision::Write { may_be_coded } => {
                    let tensors = tensors.remove(index);
                    jobs.push(Job { object, wanted, tensors, may_be_coded });
                }
            }
        }
        let skipped_objects = kept.len() as u64;
        let skipped_bytes: u64 = kept.iter().map(|packed| packed.bytes).sum();
        self.shop.steps.done(2 * skipped_bytes);
        if !jobs.is_empty() {
            self.claim(&wanted).await?;
        }
        let written = self.write_all(jobs).await?;
        let entries: Vec<String> =
            written.iter().map(|packed| journal::entry_name(&packed.name)).collect();
        let mut packed = kept;
        packed.extend(written);
        packed.sort_by(|a, b| a.name.cmp(&b.name));
        let Parameters { frame_bytes, level } = self.shop.parameters;
        let source = Some(self.mark.clone());
        let manifest = PackManifest { format: FORMAT, frame_bytes, level, source, objects: packed };
        let manifest_bytes = self.publish(&manifest, &known).await?;
        let removed_objects = self.clear(known.leftovers(&manifest), entries).await?;
        let sum = |of: fn(&PackedObject) -> u64| manifest.objects.iter().map(of).sum();
        Ok(PackReport {
            source: self.manifest.uri().to_owned(),
            destination: self.shop.place.uri().to_string(),
            objects: manifest.objects.len() as u64,
            bytes: sum(|packed| packed.bytes),
            packed_bytes: sum(|packed| packed.stored_bytes),
            manifest_bytes,
            skipped_objects,
            skipped_bytes,
            raw_objects: sum(|packed| u64::from(!packed.coded)),
            removed_objects,
            wall: Duration::ZERO,
        })
    }

    /// The objects of the source, with their places in its manifest. What an unfinished pack keeps
    /// there is not part of it.
    fn objects(&self) -> Vec<(usize, &Object)> {
        let objects = self.manifest.objects().iter().enumerate();
        objects.filter(|(_, object)| !object.name.starts_with(journal::FOLDER)).collect()
    }

    /// The tensors of each object that has some.
    fn tensors(&self) -> HashMap<usize, Vec<TensorEntry>> {
        let mut tensors: HashMap<usize, Vec<TensorEntry>> = HashMap::new();
        for tensor in self.manifest.tensors() {
            tensors.entry(tensor.object).or_default().push(tensor.entry.clone());
        }
        tensors
    }

    /// What lies at the destination, and what packs of the same source left there.
    async fn known(&self) -> Result<Known, PackError> {
        let place = &self.shop.place;
        let listed = place.listed().await?;
        let manifest = match listed.get(MANIFEST_NAME) {
            Some(meta) => Some(self.old_manifest(meta).await?),
            None => None,
        };
        let mut claimed = HashSet::new();
        if let Some(meta) = listed.get(CLAIM)
            && let Some(bytes) = place.whole(meta, journal::BYTES_MAX).await?
            && let Some(claim) = journal::unsealed::<Claim>(&bytes)
        {
            self.check_source(Some(&claim.source), "an unfinished pack")?;
            claimed = claim.names.into_iter().collect();
        }
        let is_entry = |name: &str| name.starts_with(journal::FOLDER) && name != CLAIM;
        let reads: Vec<_> = listed
            .iter()
            .filter(|(name, _)| is_entry(name))
            .map(|(_, meta)| place.whole(meta, journal::BYTES_MAX))
            .collect();
        let mut reads = futures::stream::iter(reads).buffer_unordered(REQUESTS_AT_ONCE);
        let mut entries = HashMap::new();
        while let Some(bytes) = reads.try_next().await? {
            let entry = bytes.as_deref().and_then(Entry::parse);
            // Only what the claim covers: entries of another source are none of ours.
            let Some(entry) =
                entry.filter(|entry| entry.manifest.source.as_ref() == Some(&self.mark))
            else {
                continue;
            };
            if let Some(name) = entry.object().map(|packed| packed.name.clone()) {
                entries.insert(name, entry);
            }
        }
        drop(reads);
        Ok(Known { listed, manifest, entries, claimed })
    }

    async fn old_manifest(&self, meta: &ObjectMeta) -> Result<PackManifest, PackError> {
        let bytes = self.shop.place.whole(meta, MANIFEST_BYTES_MAX as u64).await?;
        let bytes = bytes.unwrap_or_default();
        let parsed = self.shop.workers.run(move || PackManifest::parse(&bytes)).await?;
        let manifest = parsed.map_err(|problem| PackError::OldManifest { problem })?;
        self.check_source(manifest.source.as_ref(), "a packed checkpoint")?;
        Ok(manifest)
    }

    fn check_source(&self, mark: Option<&String>, what: &'static str) -> Result<(), PackError> {
        match mark == Some(&self.mark) {
            true => Ok(()),
            false => Err(PackError::OtherSource { what }),
        }
    }

    /// Notes which names are written, before the first one is: after a kill they are known to be
    /// ours.
    async fn claim(&self, wanted: &[Wanted]) -> Result<(), PackError> {
        let names = wanted.iter().map(|wanted| wanted.name.clone()).collect();
        let claim = Claim { source: self.mark.clone(), names };
        let bytes = journal::sealed(&claim)?;
        self.shop.place.put(CLAIM, Bytes::from(bytes)).await
    }

    async fn write_all(&self, jobs: Vec<Job<'_>>) -> Result<Vec<PackedObject>, PackError> {
        let writes: Vec<_> = jobs.into_iter().map(|job| self.write_one(job)).collect();
        futures::stream::iter(writes).buffer_unordered(OBJECTS_AT_ONCE).try_collect().await
    }

    async fn write_one(&self, job: Job<'_>) -> Result<PackedObject, PackError> {
        let packed = self.shop.write(job).await?;
        let stored = self.shop.prove(&packed).await?;
        let Parameters { frame_bytes, level } = self.shop.parameters;
        let objects = vec![packed.clone()];
        let source = Some(self.mark.clone());
        let manifest = PackManifest { format: FORMAT, frame_bytes, level, source, objects };
        let bytes = journal::sealed(&Entry { stored, manifest })?;
        self.shop.place.put(&journal::entry_name(&packed.name), Bytes::from(bytes)).await?;
        Ok(packed)
    }

    /// Puts the manifest in place, unless it is there, and reads it again; its size.
    async fn publish(&self, manifest: &PackManifest, known: &Known) -> Result<u64, PackError> {
        let place = &self.shop.place;
        let written = manifest.clone();
        let encoded = self.shop.workers.run(move || written.to_bytes()).await?;
        let encoded = Bytes::from(encoded.map_err(|problem| PackError::Manifest { problem })?);
        let bytes = encoded.len() as u64;
        if known.manifest.as_ref() == Some(manifest) {
            return Ok(bytes);
        }
        place.put(MANIFEST_NAME, encoded.clone()).await?;
        let meta = place.head(MANIFEST_NAME).await?;
        let seen = place.whole(&meta, bytes).await?;
        if seen.is_none_or(|seen| seen != encoded) {
            place.delete(MANIFEST_NAME).await?;
            let (name, problem) = (MANIFEST_NAME.to_owned(), "its bytes are others".to_owned());
            return Err(PackError::Damaged { name, problem });
        }
        Ok(bytes)
    }

    /// Removes what is left over, and the entries that this pack wrote; how many objects were
    /// removed.
    async fn clear(&self, leftovers: Vec<String>, entries: Vec<String>) -> Result<u64, PackError> {
        let place = &self.shop.place;
        let removed = leftovers.iter().filter(|name| !name.starts_with(journal::FOLDER)).count();
        let mut left: HashSet<String> = leftovers.into_iter().collect();
        if !entries.is_empty() {
            left.insert(CLAIM.to_owned());
        }
        left.extend(entries);
        let deletes: Vec<_> = left.iter().map(|name| place.delete(name)).collect();
        let mut deletes = futures::stream::iter(deletes).buffer_unordered(REQUESTS_AT_ONCE);
        while let Some(()) = deletes.try_next().await? {}
        Ok(removed as u64)
    }
}

fn wanted(object: &Object) -> Wanted {
    Wanted { name: object.name.clone(), source: place::facts(&object.pin, object.bytes) }
}

/// How far a pack is, and who is told.
#[derive(Debug)]
struct Steps {
    source: Arc<str>,
    destination: Arc<str>,
    total_bytes: u64,
    /// Written, and proved: each byte counts twice.
    passed: AtomicU64,
    told: mpsc::Sender<PackProgress>,
}

impl Steps {
    fn new(manifest: &Manifest, place: &Place, told: mpsc::Sender<PackProgress>) -> Self {
        Self {
            source: manifest.uri().into(),
            destination: place.uri().to_string().into(),
            total_bytes: manifest.bytes(),
            passed: AtomicU64::new(0),
            told,
        }
    }

    /// So many bytes are written, or proved. Progress is a courtesy: a reader that is behind misses
    /// steps, not the report.
    fn done(&self, bytes: u64) {
        let passed = self.passed.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let progress = PackProgress {
            source: Arc::clone(&self.source),
            destination: Arc::clone(&self.destination),
            done_bytes: (passed / 2).min(self.total_bytes),
            total_bytes: self.total_bytes,
        };
        drop(self.told.try_send(progress));
    }

    /// So many bytes have to be written once more.
    fn undone(&self, bytes: u64) {
        self.passed.fetch_sub(bytes, Ordering::Relaxed);
    }
}
