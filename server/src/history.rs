//! The last loads, with all that is known of where their time went.
//!
//! A load is kept when it ends, however it ends: a [`Keeper`] that is dropped keeps what was cut
//! off. What is kept is bounded in loads and in spans, the oldest go first, and it ends with the
//! daemon.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use forebay_proto::{Failure, Reason};
use tokio::time::Instant;

use crate::evidence::{HostDelta, Samples};
use crate::metrics;
use crate::report::{Report, Subject, Tally, close};
use crate::timeline::Timeline;

/// Loads that are kept.
const LOADS_MAX: usize = 64;

/// Spans of all kept loads together, of some 64 bytes each; the last load is kept in any case.
const SPANS_MAX: usize = 500_000;

/// A load that has ended.
#[derive(Debug)]
pub(crate) struct KeptLoad {
    /// What it came to.
    pub(crate) report: Report,
    /// Why it failed, if it did.
    pub(crate) failure: Option<Failure>,
    /// Its spans and copies.
    pub(crate) timeline: Arc<Timeline>,
    /// When it was opened, by the clock on the wall.
    pub(crate) opened_at: SystemTime,
    /// What the machine went through meanwhile.
    pub(crate) host: Option<HostDelta>,
}

/// The last loads of a daemon.
#[derive(Debug, Default)]
pub(crate) struct History(Mutex<VecDeque<Arc<KeptLoad>>>);

/// Who and what a load is, from its request on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opening<'a> {
    /// The load's id.
    pub(crate) load_id: &'a str,
    /// What is loaded, without a query.
    pub(crate) uri: &'a str,
    /// By which alias; empty if by none.
    pub(crate) alias: &'a str,
    /// In which lane.
    pub(crate) lane: &'static str,
}

/// A load that will be kept.
pub(crate) struct Keeper<'a> {
    history: &'a History,
    opening: Opening<'a>,
    timeline: &'a Arc<Timeline>,
    host: &'a Samples,
    opened_at: SystemTime,
    kept: bool,
}

impl History {
    /// A load begins.
    #[expect(clippy::disallowed_methods, reason = "people look for a load by the time of day")]
    pub(crate) fn keeper<'a>(
        &'a self,
        opening: Opening<'a>,
        timeline: &'a Arc<Timeline>,
        host: &'a Samples,
    ) -> Keeper<'a> {
        let since = timeline.opened().elapsed();
        let now = SystemTime::now();
        let opened_at = now.checked_sub(since).unwrap_or(now);
        Keeper { history: self, opening, timeline, host, opened_at, kept: false }
    }

    /// The last one to end.
    pub(crate) fn last(&self) -> Option<Arc<KeptLoad>> {
        self.lock().back().cloned()
    }

    /// The last one of this id.
    pub(crate) fn find(&self, load_id: &str) -> Option<Arc<KeptLoad>> {
        self.lock().iter().rev().find(|load| load.report.load_id == load_id).cloned()
    }

    /// The last one that was opened by this alias.
    pub(crate) fn find_alias(&self, name: &str) -> Option<Arc<KeptLoad>> {
        self.lock().iter().rev().find(|load| load.report.alias == name).cloned()
    }

    fn push(&self, load: KeptLoad) {
        let mut loads = self.lock();
        loads.push_back(Arc::new(load));
        let mut spans: usize = loads.iter().map(|load| load.timeline.len()).sum();
        while loads.len() > LOADS_MAX || (spans > SPANS_MAX && loads.len() > 1) {
            spans -= loads.pop_front().map_or(0, |load| load.timeline.len());
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<KeptLoad>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper<'_> {
    /// It has ended.
    pub(crate) fn keep(mut self, ended: Result<&Report, &Failure>) {
        self.kept = true;
        match ended {
            Ok(report) => self.push(report.clone(), None),
            Err(failure) => self.failed(failure.clone()),
        }
    }

    fn failed(&self, failure: Failure) {
        let name = match failure.reason {
            Reason::QueueFull
            | Reason::RamExhausted
            | Reason::Draining
            | Reason::DeadlineInfeasible => "shed",
            Reason::BreakerOpen => "breaker",
            _ => "failed",
        };
        self.timeline.event(name, failure.reason.as_str());
        let report = self.cut_off();
        metrics::waited(&report);
        self.push(report, Some(failure));
    }

    /// What is known of a load without an end of its own.
    fn cut_off(&self) -> Report {
        let Opening { load_id, uri, alias, lane } = self.opening;
        let (revision, placed, device) = ("", None, None);
        let subject = Subject { load_id, uri, alias, revision, lane, placed, device };
        let tally = Tally { cost: self.timeline.cost(), ..Tally::default() };
        close(subject, self.timeline, tally, (Instant::now(), self.host))
    }

    fn push(&self, report: Report, failure: Option<Failure>) {
        let timeline = Arc::clone(self.timeline);
        let opened = timeline.opened();
        let host = self.host.between(opened, opened + report.wall);
        let opened_at = self.opened_at;
        self.history.push(KeptLoad { report, failure, timeline, opened_at, host });
    }
}

impl Drop for Keeper<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let why = "the client left, or the daemon was stopped, before the load had ended";
            let failure = Failure::new(Reason::DaemonUnreachable, why);
            self.failed(failure);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::attribution::Cause;
    use crate::timeline::{Kind, Span, Stage};

    fn opening(load_id: &str) -> Opening<'_> {
        Opening { load_id, uri: "s3://b/k", alias: "", lane: "interactive" }
    }

    fn timeline(spans: u32) -> Arc<Timeline> {
        let zero = Instant::now();
        let timeline = Timeline::new(zero);
        for n in 0..spans {
            let at = zero + Duration::from_millis(1) * n;
            timeline.load_span(Span::new(
                Stage::Dns,
                Kind::Service,
                at,
                at + Duration::from_millis(1),
            ));
        }
        Arc::new(timeline)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_cut_off_is_kept_with_what_it_waited_for() {
        let (history, samples) = (History::default(), Samples::default());
        let timeline = timeline(20);
        let keeper = history.keeper(opening("a"), &timeline, &samples);
        tokio::time::advance(Duration::from_millis(20)).await;
        drop(keeper);
        let kept = history.last().unwrap();
        assert!(kept.failure.is_some());
        let (events, unkept) = kept.timeline.decided();
        assert_eq!(
            (events[0].name, &*events[0].detail, unkept),
            ("failed", "DAEMON_UNREACHABLE", 0)
        );
        assert_eq!(kept.report.wall, Duration::from_millis(20));
        let sums: Vec<_> = kept.report.idle.sums().collect();
        assert_eq!(sums, [(Cause::Dns, Duration::from_millis(20))]);
        assert!(history.find("b").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_go_first_and_an_id_means_its_last_load() {
        let (history, samples) = (History::default(), Samples::default());
        let failure = Failure::new(Reason::Deadline, "late");
        let keep = |id: &str, spans: u32| {
            let timeline = timeline(spans);
            history.keeper(opening(id), &timeline, &samples).keep(Err(&failure));
        };
        for n in 0..=LOADS_MAX {
            keep(&n.to_string(), 1);
        }
        assert!(history.find("0").is_none() && history.find("1").is_some());
        keep("1", 2);
        assert_eq!(history.find("1").unwrap().timeline.len(), 2);
        keep("big", u32::try_from(SPANS_MAX + 1).unwrap());
        assert!(history.find("1").is_none());
        assert_eq!(history.last().unwrap().report.load_id, "big");
    }
}
