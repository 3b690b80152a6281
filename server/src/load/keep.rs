//! Fetching a checkpoint to keep it in a tier, without lending it.
//!
//! *In RAM*: every chunk is brought in and has to be there in the end; where there is an NVMe tier,
//! the answer waits until it has them too, so that what was fetched survives a restart. *On NVMe*:
//! what is not stored yet is brought through RAM, chunk by chunk; a chunk keeps its slot, and its
//! token of the window, until it is stored. A pin is set before the first byte is written, so that
//! nothing written is evicted again, and taken back if that is all that comes of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use forebay_proto::{Failure, Reason};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;

use super::filler::{Filler, Ready};
use super::proofs;
use super::{
    Entry, Head, LoadRequest, Stages, answered, in_time, keeper, open, report, state_of, superseded,
};
use crate::admission::AdmissionPermit;
use crate::handoff::SessionStay;
use crate::nvme::NvmeTier;
use crate::plan::{ChunkSpec, FetchPlan};
use crate::report::{Report, Tally, Tier, Verified};
use crate::resolve::Manifest;
use crate::timeline::{Kind, Stage, Timeline};

/// Chunks that are waited for side by side until they are stored.
const SETTLING: usize = 64;

/// Where the checkpoint has to be in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keep {
    /// In RAM, or on NVMe.
    pub(crate) on_nvme: bool,
    /// Pinned, and so on NVMe in any case.
    pub(crate) pin: bool,
}

/// How far a [`keep`] is.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    /// What is fetched.
    pub(crate) manifest: Arc<Manifest>,
    /// Bytes that are cached now.
    pub(crate) done_bytes: u64,
    /// So far.
    pub(crate) tally: Tally,
}

/// Fetches the checkpoint into a tier and keeps it there.
pub(crate) async fn keep(
    stages: &Arc<Stages>,
    request: &LoadRequest,
    keep: Keep,
    timeline: &Arc<Timeline>,
    stay: SessionStay,
    progress: mpsc::Sender<Progress>,
) -> Result<Report, Failure> {
    let _sampling = stages.evidence.begin();
    let entry = stages.loads.enter(stay.load(), state_of(request, timeline));
    let state = Arc::clone(entry.state());
    let keeper = keeper(stages, request, timeline);
    let keeping = keep_all(stages, (request, keep), timeline, &entry, &progress);
    let kept = tokio::select! {
        kept = in_time(request.deadline, keeping) => kept,
        () = state.superseded.cancelled() => Err(superseded(request)),
    };
    answered(stages, request, &kept);
    keeper.keep(kept.as_ref());
    kept
}

async fn keep_all(
    stages: &Arc<Stages>,
    (request, keep): (&LoadRequest, Keep),
    timeline: &Timeline,
    entry: &Entry<'_>,
    progress: &mpsc::Sender<Progress>,
) -> Result<Report, Failure> {
    if (keep.on_nvme || keep.pin) && stages.nvme.is_none() {
        return Err(Failure::new(Reason::NvmeOff, "this daemon has no NVMe tier"));
    }
    let (head, permit) = open(stages, request, timeline, entry).await?;
    if let Some(nvme) = stages.nvme.as_ref().filter(|_| keep.on_nvme || keep.pin) {
        can_store(nvme, &head.plan).await?;
    }
    let nvme = stages.nvme.as_ref().filter(|_| keep.pin);
    let pin = nvme.map(|nvme| nvme.pin_revision(head.plan.manifest().revision()));
    let keeping = Keeping { stages, request, timeline, head: &head, permit: &permit, progress };
    let tally = match &stages.nvme {
        Some(nvme) if keep.on_nvme => keeping.on_nvme(nvme).await?,
        _ => keeping.in_ram(keep.pin).await?,
    };
    let storing = timeline.begin(Stage::NvmeWrite, Kind::Service);
    if let Some(nvme) = &stages.nvme {
        // Else the headers would be asked for again after a kill.
        nvme.blobs_kept().await;
    }
    if let Some(pin) = pin {
        pin.keep().await;
    }
    drop(storing);
    let tally = Tally { peak_slots: permit.peak_slots(), ..tally };
    stages.evidence.look_after(timeline.opened());
    Ok(report(stages, request, &head, timeline, tally))
}

/// One checkpoint being kept.
struct Keeping<'a> {
    stages: &'a Arc<Stages>,
    request: &'a LoadRequest,
    timeline: &'a Timeline,
    head: &'a Head<'a>,
    permit: &'a AdmissionPermit,
    progress: &'a mpsc::Sender<Progress>,
}

impl Keeping<'_> {
    async fn in_ram(&self, stored_too: bool) -> Result<Tally, Failure> {
        let (stages, plan) = (self.stages, &self.head.plan);
        let budget = stages.ram.pool().spec().budget_bytes;
        let needed = plan.chunks().len() as u64 * stages.chunk_bytes;
        if needed > budget {
            return Err(not_kept(format!(
                "the checkpoint takes {needed} bytes of slots and the RAM tier has {budget}"
            )));
        }
        let mut filler =
            Filler::new(stages, (plan, self.head.entry), self.permit, self.request, self.timeline);
        let mut done_bytes = 0;
        loop {
            let look_again = filler.quiet(stages.no_progress)?;
            let ready = tokio::select! {
                ready = filler.next() => ready?,
                () = tokio::time::sleep_until(look_again) => continue,
            };
            let Some(ready) = ready else { break };
            done_bytes += ready.spec.bytes;
            filler.granted(&ready);
            self.tell(done_bytes, filler.tally());
        }
        let gone = plan.chunks().iter().filter(|chunk| !stages.ram.holds(&chunk.key)).count();
        if gone > 0 {
            let chunks = plan.chunks().len();
            return Err(not_kept(format!(
                "{gone} of {chunks} chunks had to make room again: other loads use the RAM tier, or it shrank"
            )));
        }
        if let Some(nvme) = &stages.nvme {
            self.stored_too(nvme, stored_too).await?;
        }
        Ok(Tally { verified: self.verified(&filler), ..filler.tally() })
    }

    fn verified(&self, filler: &Filler<'_>) -> Verified {
        let (plan, expected) = (&self.head.plan, &self.request.expected);
        proofs::verified_by(self.stages, plan, expected, filler.proven())
    }

    /// Waits until the chunks are stored as well. Without a need for that, what is not stored is as
    /// it is: the checkpoint is in RAM.
    async fn stored_too(&self, nvme: &Arc<NvmeTier>, needed: bool) -> Result<(), Failure> {
        if !nvme.known().await && !needed {
            return Ok(());
        }
        let _storing = self.timeline.begin(Stage::NvmeWrite, Kind::Service);
        let revision = self.head.plan.manifest().revision();
        let chunks: Vec<_> =
            self.head.plan.chunks().iter().map(|chunk| (chunk.key, chunk.bytes)).collect();
        let settled = chunks
            .into_iter()
            .map(|(key, bytes)| async move { (bytes, nvme.settled(&key, revision).await) });
        let mut settled = futures::stream::iter(settled).buffer_unordered(SETTLING);
        while let Some((bytes, stored)) = settled.next().await {
            match stored {
                Err(why) if needed => return Err(not_stored(nvme, bytes, why)),
                _ => {}
            }
        }
        Ok(())
    }

    async fn on_nvme(&self, nvme: &Arc<NvmeTier>) -> Result<Tally, Failure> {
        let (stages, plan) = (self.stages, &self.head.plan);
        let revision = plan.manifest().revision();
        let due = proofs::due(stages, plan, &self.request.expected);
        let due: BTreeSet<usize> = due.into_iter().map(|(index, _)| index).collect();
        let is_due = |chunk: &ChunkSpec| chunk.extents.iter().any(|e| due.contains(&e.object));
        // What is stored of an object that is to be held to something is looked at too.
        let missing = plan.without(|c| nvme.holds_for(&c.key, revision) && !is_due(c));
        let missing = Arc::new(missing);
        let mut tally = Tally { slot_bytes: stages.chunk_bytes, ..Tally::default() };
        tally.tiers.add(Tier::Nvme, plan.bytes() - missing.bytes());
        let mut done_bytes = plan.bytes() - missing.bytes();
        let with = (&missing, self.head.entry);
        let mut filler = Filler::new(stages, with, self.permit, self.request, self.timeline);
        let mut storing = FuturesUnordered::new();
        let mut complete = false;
        while !(complete && storing.is_empty()) {
            let look_again = filler.quiet(stages.no_progress)?;
            tokio::select! {
                Some((bytes, stored)) = storing.next() => {
                    let stored: Result<(), &'static str> = stored;
                    // What was given up is not stored either; the filler says why, when it is gone.
                    let Err(why) = stored else {
                        done_bytes += bytes;
                        self.tell(done_bytes, filler.tally());
                        continue;
                    };
                    if filler.failure().is_none() {
                        return Err(not_stored(nvme, bytes, why));
                    }
                }
                ready = filler.next(), if !complete => match ready? {
                    Some(ready) => {
                        filler.granted(&ready);
                        storing.push(self.store(nvme, ready));
                    }
                    None => complete = true,
                },
                () = tokio::time::sleep_until(look_again) => {}
            }
        }
        tally.near = filler.tally().near;
        let brought = filler.tally().tiers;
        tally.tiers.ram += brought.ram;
        tally.tiers.nvme += brought.nvme;
        tally.tiers.origin += brought.origin;
        tally.verified = self.verified(&filler);
        Ok(tally)
    }

    /// Holds a chunk until it is stored, or will not be.
    async fn store(&self, nvme: &Arc<NvmeTier>, ready: Ready) -> (u64, Result<(), &'static str>) {
        let revision = self.head.plan.manifest().revision();
        let _storing = self.timeline.begin_of(ready.spec.index, Stage::NvmeWrite);
        let stored = nvme.settled(&ready.spec.key, revision).await;
        (ready.spec.bytes, stored)
    }

    /// Progress is a courtesy: a reader that is behind misses steps, not the report.
    fn tell(&self, done_bytes: u64, tally: Tally) {
        let manifest = Arc::clone(self.head.plan.manifest());
        drop(self.progress.try_send(Progress { manifest, done_bytes, tally }));
    }
}

fn not_kept(message: String) -> Failure {
    Failure::new(Reason::RamExhausted, &message).with_quota(format!("ram: {message}"))
}

/// Refuses at once what cannot end well: nothing is fetched for it.
async fn can_store(nvme: &NvmeTier, plan: &FetchPlan) -> Result<(), Failure> {
    if !nvme.known().await {
        return Err(nvme_off("it is not known yet what it holds"));
    }
    let state = nvme.state();
    if state.state != "normal" {
        return Err(nvme_off(&format!("its disk is {}", state.state)));
    }
    let manifest = plan.manifest();
    if let Some(object) = manifest.objects().iter().find(|object| !object.pinned) {
        let message = format!(
            "{} cannot be stored: its origin gives no ETag, version or time to know it again by",
            object.name
        );
        return Err(Failure::new(Reason::BadRequest, message).for_object(&object.name));
    }
    let (bytes, budget) = (plan.bytes(), state.budget);
    let of_others = nvme.pinned_beside(manifest.revision());
    if bytes > budget.saturating_sub(of_others) {
        return Err(nvme_exhausted(format!(
            "the checkpoint has {bytes} bytes and the NVMe tier {budget}, {of_others} of them pinned"
        )));
    }
    Ok(())
}

fn not_stored(nvme: &NvmeTier, bytes: u64, why: &str) -> Failure {
    let state = nvme.state().state;
    if state != "normal" {
        return nvme_off(&format!("its disk is {state}"));
    }
    nvme_exhausted(format!("{bytes} bytes of a chunk are not stored: {why}"))
}

fn nvme_off(why: &str) -> Failure {
    Failure::new(Reason::NvmeOff, format!("the NVMe tier cannot take it: {why}"))
}

fn nvme_exhausted(message: String) -> Failure {
    Failure::new(Reason::NvmeExhausted, &message).with_quota(format!("nvme: {message}"))
}
