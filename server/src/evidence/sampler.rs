//! When the machine is looked at: at the begin and the end of each load that is not over in a
//! moment, and at a pace while one runs.
//!
//! One task for the whole daemon looks every [`PACE`], and thoroughly every [`THOROUGH_EVERY`]th
//! time; with no load it sleeps until the next. It reads on the runtime's thread: a thorough look
//! took 0.3 ms in a debug build, a glance 0.02 ms, which makes 0.3 % of one CPU. [`Sampling`] is
//! held by a load and counts it. Owns the looks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::host::{HostEvidence, HostSample, Source, SourceState};
use super::samples::Samples;
use crate::metrics;

/// Between two looks: gaps that matter to a load are longer.
pub(crate) const PACE: Duration = Duration::from_millis(25);

/// Every so many looks one reads everything.
pub(crate) const THOROUGH_EVERY: u32 = 4;

/// A thorough look that is not older than this stands for one at the end of a load: many short loads
/// do not look without end.
const FRESH: Duration = PACE;

/// A load that took no longer ends with a glance: a thorough look takes a third of a millisecond, and
/// nobody may wait a hundredth of a load's time for evidence.
const LOOKED_AT: Duration = Duration::from_millis(100);

/// A load that is over sooner is not looked at: the counters say nothing of so short a time, and it
/// would pay for the look.
const SHORT: Duration = Duration::from_millis(5);

/// Looks at the machine while loads run.
#[derive(Debug)]
pub(crate) struct Evidence {
    /// None: nobody looks.
    host: Option<Arc<dyn HostEvidence>>,
    samples: Samples,
    active: AtomicUsize,
    /// The task is told, and has not slept again: loads that follow each other wake it once.
    told: AtomicBool,
    begun: Notify,
}

/// A load that runs. Dropping it takes the last look of the load.
#[derive(Debug)]
#[must_use]
pub(crate) struct Sampling {
    evidence: Arc<Evidence>,
    begun: Instant,
}

impl Evidence {
    /// Looks with `host`, once loads begin and [`Self::watch`] runs.
    pub(crate) fn new(host: Arc<dyn HostEvidence>) -> Self {
        Self { host: Some(host), ..Self::off() }
    }

    /// Looks at nothing.
    pub(crate) fn off() -> Self {
        let samples = Samples::default();
        let (active, told) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { host: None, samples, active, told, begun: Notify::new() }
    }

    /// Has the machine looked at in a moment, beside the caller, and then at the usual pace for as long
    /// as the answer is held.
    pub(crate) fn begin(self: &Arc<Self>) -> Sampling {
        let is_first = self.active.fetch_add(1, Ordering::AcqRel) == 0;
        if is_first && !self.told.swap(true, Ordering::AcqRel) {
            self.begun.notify_one();
        }
        Sampling { evidence: Arc::clone(self), begun: Instant::now() }
    }

    /// Looks, unless someone just did, before the books of a load are closed that was opened then: at
    /// everything, if it took long. One that took less than a pace has nothing to compare with.
    pub(crate) fn look_after(&self, opened: Instant) {
        match opened.elapsed() {
            lasted if lasted >= LOOKED_AT => self.look(),
            lasted if lasted >= PACE => self.glance(),
            _ => {}
        }
    }

    fn glance(&self) {
        let stale = || !self.samples.has_any_since(Instant::now() - SHORT);
        if let Some(host) = self.host.as_ref().filter(|_| stale()) {
            self.take(&**host, false, None);
        }
    }

    /// Looks, and books what that took of the CPU: who tells others what they waited for tells what
    /// it costs them.
    fn take(&self, host: &dyn HostEvidence, thorough: bool, late: Option<Duration>) {
        let before = own_time();
        let (look, sample) =
            if thorough { ("thorough", host.sample()) } else { ("glance", host.glance()) };
        metrics::looked(look, own_time().saturating_sub(before));
        self.samples.record(HostSample { late, ..sample });
    }

    fn look(&self) {
        let stale = || !self.samples.has_thorough_since(Instant::now() - FRESH);
        if let Some(host) = self.host.as_ref().filter(|_| stale()) {
            self.take(&**host, true, None);
        }
    }

    /// Looks at the pace while a load runs, for ever.
    pub(crate) async fn watch(&self) {
        let Some(host) = &self.host else { return std::future::pending().await };
        loop {
            while self.active.load(Ordering::Acquire) == 0 {
                self.begun.notified().await;
                tokio::time::sleep(SHORT).await;
                self.told.store(false, Ordering::Release);
            }
            self.look();
            self.look_at_the_pace(&**host).await;
            // Who begins from here on tells, or is seen at once.
            self.told.store(false, Ordering::Release);
        }
    }

    /// Looks until no load runs.
    async fn look_at_the_pace(&self, host: &dyn HostEvidence) {
        let mut looks = 0_u32;
        loop {
            let due = Instant::now() + PACE;
            tokio::time::sleep_until(due).await;
            if self.active.load(Ordering::Acquire) == 0 {
                return;
            }
            let late = Some(Instant::now().saturating_duration_since(due));
            looks = looks.wrapping_add(1);
            self.take(host, looks.is_multiple_of(THOROUGH_EVERY), late);
        }
    }

    /// The looks that were taken.
    pub(crate) fn samples(&self) -> &Samples {
        &self.samples
    }

    /// What can be read here.
    pub(crate) fn sources(&self) -> Vec<SourceState> {
        let off = || {
            let why = "the setting `evidence` is false".to_owned();
            Source::ALL.map(|source| SourceState { source, available: false, why: why.clone() })
        };
        self.host.as_ref().map_or_else(|| off().to_vec(), |host| host.sources())
    }
}

/// The CPU time of this thread so far.
fn own_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanos)
}

impl Drop for Sampling {
    fn drop(&mut self) {
        self.evidence.look_after(self.begun);
        self.evidence.active.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::super::proc_tests::FakeHost;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_machine_is_looked_at_while_a_load_runs_and_at_no_other_time() {
        let host = Arc::new(FakeHost::default());
        let evidence = Arc::new(Evidence::new(Arc::clone(&host) as _));
        let mut tasks = tokio::task::JoinSet::new();
        let watching = Arc::clone(&evidence);
        tasks.spawn(async move { watching.watch().await });
        tokio::time::sleep(PACE * 10).await;
        assert_eq!(host.looks(), (0, 0), "no load runs");

        let opened = Instant::now();
        let one = evidence.begin();
        tokio::time::sleep(SHORT + SHORT / 2).await;
        assert_eq!(host.looks(), (1, 0), "as soon as it is no short one");
        let other = evidence.begin();
        tokio::task::yield_now().await;
        assert_eq!(host.looks(), (1, 0), "the same look is good for both");
        tokio::time::sleep(PACE * 8 + PACE / 2).await;
        let (thorough, glances) = host.looks();
        assert_eq!((thorough, glances), (1 + 2, 6));
        drop(one);
        assert_eq!(host.looks().0, thorough, "one was taken just before");
        tokio::time::sleep(PACE * 4).await;
        assert!(host.looks().1 > glances, "the other load runs");
        drop(other);
        tokio::time::sleep(PACE * 2).await;
        let ended = host.looks();
        tokio::time::sleep(PACE * 100).await;
        assert_eq!(host.looks(), ended);

        let delta = evidence.samples().between(opened, opened + PACE * 12).unwrap();
        assert!(delta.over >= PACE * 12 - PACE / 2, "{delta:?}");
        let again = evidence.begin();
        tokio::time::sleep(PACE * 3).await;
        assert!(host.looks().1 > ended.1, "a load after a pause is looked at again");
        let before = host.looks();
        drop(again);
        assert_eq!(host.looks(), (before.0, before.1 + 1), "it was not long");
        tokio::time::sleep(PACE * 3).await;
        let long = evidence.begin();
        tokio::time::sleep(PACE * 7).await;
        let before = host.looks().0;
        drop(long);
        assert_eq!(host.looks().0, before + 1, "the last look of a long load is thorough");

        tokio::time::sleep(PACE * 3).await;
        let ended = host.looks();
        for _ in 0..50 {
            let short = evidence.begin();
            tokio::time::sleep(SHORT / 2).await;
            drop(short);
            tokio::time::sleep(SHORT).await;
        }
        assert_eq!(host.looks(), ended, "short loads do not pay for looks");
    }
}
