//! Gives the RAM tier the size that it should have, at the start and whenever that changes.
//!
//! One task follows the size that was asked for last ([`Resizer::follow`]), step by step
//! ([`steps`]). To shrink, it takes away the window tokens of a segment's slots first, as they come
//! free, then takes the emptiest segment out of use: so whoever has a token finds a slot at every
//! moment, and loads that run keep what is guaranteed to them. To grow, it makes segments, or takes
//! those back into use that were to go. A new size cuts off what it waits for.
//!
//! Another one lets go of segments out of use when their last slot is back ([`Resizer::reap`]): the
//! disk's engine forgets them, clients are told, and this process unmaps them. The memory is the
//! system's again when no client maps it either; nobody waits for that.
//!
//! Segments are populated and unmapped on a thread of their own: both take a fraction of a second.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forebay_io::NodeId;
use forebay_proto::{Failure, Reason};
use forebay_shm::SegmentId;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::cpu::Workers;
use crate::handoff::{Sessions, Unmapping};
use crate::load::Stages;
use crate::ram::places::SegmentPlan;
use crate::ram::pool::Pool;
use crate::ram::steps::{self, Step};

/// How soon someone who waits looks again, if nothing was said before.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The sizes that the tier may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// At least so many bytes.
    pub(crate) least: u64,
    /// At most so many: what the host or the cgroup allows; 0 if that is not known.
    pub(crate) most: u64,
}

/// What was asked for, by its number among all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    number: u64,
    bytes: u64,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// What was asked for.
    pub(crate) budget: u64,
    /// Slots of all segments.
    pub(crate) held: u64,
    /// Of them: in segments that are out of use.
    pub(crate) retiring: u64,
    /// Of those: lent or being filled.
    pub(crate) busy: u64,
    /// What loads and their clients have to give back before another segment can go out of use.
    pub(crate) owed: u64,
    /// What clients still map of segments that have gone.
    pub(crate) unmapping: Unmapping,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Resizer {
    stages: Arc<Stages>,
    sessions: Arc<Sessions>,
    worker: Workers,
    bounds: Bounds,
    target: watch::Sender<Target>,
    /// The number of the last target that nothing more is to be done for.
    settled: watch::Sender<u64>,
    /// Segments that have gone are being unmapped.
    reaping: AtomicBool,
    /// A segment has gone.
    gone: Notify,
    /// Something has changed.
    moved: Notify,
}

/// A size that was asked for.
#[derive(Debug)]
pub(crate) struct Resizing<'a> {
    resizer: &'a Resizer,
    target: Target,
    told: Option<Standing>,
    /// The size before.
    pub(crate) before: u64,
}

impl Resizer {
    /// A resizer for a pool that has its first segments; [`Resizer::run`] makes the others.
    pub(crate) fn new(
        stages: Arc<Stages>,
        sessions: Arc<Sessions>,
        bounds: Bounds,
    ) -> std::io::Result<Self> {
        let bytes = stages.ram.pool().spec().budget_bytes;
        let resizer = Self {
            stages,
            sessions,
            worker: Workers::start("forebay-pool", 1)?,
            bounds,
            target: watch::channel(Target { number: 1, bytes }).0,
            settled: watch::channel(0).0,
            reaping: AtomicBool::new(false),
            gone: Notify::new(),
            moved: Notify::new(),
        };
        // Before anybody claims a slot.
        resizer.next_step();
        Ok(resizer)
    }

    /// Follows the size that it should have, until `stop` is set.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let _ends = NotGrowing(self.pool());
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow() => {}
            () = self.reap() => {}
        }
    }

    /// From now on the tier should have so many bytes of slots.
    pub(crate) fn resize(&self, bytes: u64) -> Result<Resizing<'_>, Failure> {
        let Bounds { least, most } = self.bounds;
        let refused = |message: String| {
            let failure = Failure::new(Reason::BadRequest, message);
            failure.with_fact("least_bytes", least).with_fact("most_bytes", most)
        };
        if bytes < least {
            let message = format!(
                "loads are lent from RAM, so the tier needs at least {least} bytes (two chunks), \
                 and {bytes} were asked for"
            );
            return Err(refused(message));
        }
        if most > 0 && bytes > most {
            return Err(refused(format!(
                "{bytes} bytes are more than the {most} that this host allows"
            )));
        }
        let mut before = bytes;
        let mut target = Target { number: 0, bytes };
        self.target.send_modify(|current| {
            before = current.bytes;
            target.number = current.number + 1;
            *current = target;
            self.pool().set_budget(bytes);
        });
        tracing::info!(bytes, before, "the RAM tier changes its size");
        Ok(Resizing { resizer: self, target, told: None, before })
    }

    /// How far it is.
    pub(crate) fn standing(&self) -> Standing {
        let sizes = self.stages.ram.sizes();
        Standing {
            budget: sizes.budget,
            held: sizes.populated,
            retiring: sizes.retiring,
            busy: sizes.retiring_busy,
            owed: self.stages.admission.owed() as u64 * sizes.chunk,
            unmapping: self.sessions.unmapping(),
        }
    }

    fn pool(&self) -> &Pool {
        self.stages.ram.pool()
    }

    async fn follow(&self) {
        let mut target = self.target.subscribe();
        loop {
            let number = target.borrow_and_update().number;
            let shortage = self.settle(&mut target).await.err();
            if let Some(why) = &shortage {
                tracing::warn!(why, "the RAM tier does not get the size that it should have");
            }
            if !target.has_changed().unwrap_or(false) {
                self.pool().fall_short(shortage);
                self.settled.send_replace(number);
                self.moved.notify_waiters();
            }
            if target.changed().await.is_err() {
                return;
            }
        }
    }

    /// What is to be done next.
    fn next_step(&self) -> Step {
        let pool = self.pool();
        let step = steps::next(&pool.shares(), &self.stages.ram.uses(), pool.slots_max());
        pool.set_growing(matches!(step, Step::Make(_)));
        step
    }

    /// Goes on until the pool has its size, or should have another; why it cannot, if so. A
    /// segment that is being made is waited for in any case.
    async fn settle(&self, target: &mut watch::Receiver<Target>) -> Result<(), String> {
        let _ends = NotGrowing(self.pool());
        while !target.has_changed().unwrap_or(false) {
            match self.next_step() {
                Step::Done => return Ok(()),
                Step::Wait => drop(unless_changed(target, self.gone.notified()).await),
                Step::Revive(id) => self.revive(id),
                Step::Make(plan) => drop(self.make(plan).await?),
                Step::Retire { node, slots, instead } => {
                    let new = match instead {
                        0 => None,
                        slots => Some(self.make(SegmentPlan { node, slots }).await?),
                    };
                    self.retire((node, slots), new, target).await;
                }
            }
            self.moved.notify_waiters();
        }
        Ok(())
    }

    /// Takes a segment of so many slots out of use, when their tokens are there.
    async fn retire(
        &self,
        what: (NodeId, u32),
        but: Option<SegmentId>,
        target: &mut watch::Receiver<Target>,
    ) {
        let withdrawing = self.stages.admission.withdraw(what.1 as usize);
        let Some(withdrawn) = unless_changed(target, withdrawing).await else { return };
        let ram = &self.stages.ram;
        // Only this task changes what segments there are, so it is still there.
        if steps::victim(&ram.uses(), what, but).is_some_and(|id| ram.retire(id)) {
            withdrawn.spend();
        }
        self.tell_slots();
    }

    fn revive(&self, id: SegmentId) {
        if let Some(slots) = self.pool().revive(id) {
            self.tell_slots();
            self.stages.admission.grow(slots as usize);
        }
    }

    /// The disk's tier hears how many slots there are.
    fn tell_slots(&self) {
        if let Some(nvme) = &self.stages.nvme {
            nvme.slots(self.stages.across.slots());
        }
    }

    async fn make(&self, plan: SegmentPlan) -> Result<SegmentId, String> {
        let falls_short = |why: &dyn fmt::Display| {
            format!("only {} slots could be had: {why}", self.pool().slots())
        };
        if !self.pool().may_make() {
            return Err(falls_short(&"the limit on open files (LimitNOFILE) is reached"));
        }
        let stages = Arc::clone(&self.stages);
        // All of it there, so that whoever stops waiting for it leaves nothing half done.
        let make = move || {
            let segment = stages.ram.pool().make(plan)?;
            if let Some(nvme) = &stages.nvme {
                nvme.register(&segment);
                nvme.slots(stages.across.slots());
            }
            stages.admission.grow(plan.slots as usize);
            Ok::<_, forebay_shm::ShmError>(segment.id())
        };
        let made = self.worker.run(make).await.map_err(|stopped| falls_short(&stopped))?;
        made.map_err(|error| falls_short(&error))
    }

    /// Lets go of segments as the last of their slots comes back.
    async fn reap(&self) {
        loop {
            // Before the first is let go: whoever finds none that is retiring finds this.
            self.reaping.store(true, Ordering::SeqCst);
            while let Some(segment) = self.pool().let_go() {
                let (id, bytes) = (segment.id(), segment.bytes() as u64);
                self.stages.nvme.iter().for_each(|nvme| nvme.unregister(id));
                self.sessions.retire(id, bytes);
                // Else this thread does: the daemon is stopping.
                self.worker.run(move || drop(segment)).await.ok();
                tracing::info!(segment = id.0, bytes, "a segment of the RAM tier has gone");
                self.gone.notify_one();
                self.moved.notify_waiters();
            }
            self.reaping.store(false, Ordering::SeqCst);
            self.moved.notify_waiters();
            self.pool().came_home().await;
        }
    }
}

impl Resizing<'_> {
    /// How far it is, at the start and when that has changed; the last time, when nothing is left
    /// to wait for, with true. Nobody has to ask for it to go on.
    pub(crate) async fn next(&mut self) -> Result<(Standing, bool), Failure> {
        let resizer = self.resizer;
        loop {
            // Enabled before the look: what changes in between is heard.
            let (moved, answered) = (resizer.moved.notified(), resizer.sessions.unmapped());
            tokio::pin!(moved, answered);
            moved.as_mut().enable();
            answered.as_mut().enable();
            let is_settled = *resizer.settled.borrow() >= self.target.number;
            if *resizer.target.borrow() != self.target {
                let message = "another call set another size of the RAM tier meanwhile";
                return Err(Failure::new(Reason::ResizeSuperseded, message));
            }
            if is_settled && let Some(why) = resizer.pool().shortage() {
                return Err(Failure::new(Reason::RamExhausted, &why).with_quota(why));
            }
            let standing = resizer.standing();
            let unmapped = standing.retiring == 0 && !resizer.reaping.load(Ordering::SeqCst);
            let done = is_settled && unmapped && standing.unmapping.told == 0;
            if self.told.replace(standing) != Some(standing) || done {
                return Ok((standing, done));
            }
            tokio::select! {
                () = moved => {}
                () = answered => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }
}

impl Standing {
    /// What it waits for, as a part of a sentence.
    pub(crate) fn waits_for(&self) -> String {
        let Self { busy, owed, unmapping: Unmapping { bytes, told, .. }, .. } = self;
        if busy + owed > 0 {
            return format!("{} bytes are lent to clients or being filled", busy + owed);
        }
        if *told > 0 {
            return format!("{bytes} bytes that have gone are still mapped by clients ({told})");
        }
        "segments are made or let go".to_owned()
    }
}

/// Waits for something, unless another size is asked for meanwhile.
async fn unless_changed<T>(
    target: &mut watch::Receiver<Target>,
    work: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        biased;
        _ = target.changed() => {
            // For whoever looks next.
            target.mark_changed();
            None
        }
        done = work => Some(done),
    }
}

/// Nobody waits for slots that are on their way any more, however the work on them ends.
struct NotGrowing<'a>(&'a Pool);

impl Drop for NotGrowing<'_> {
    fn drop(&mut self) {
        self.0.set_growing(false);
    }
}
