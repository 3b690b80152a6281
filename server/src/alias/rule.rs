//! Whether a rule is to act: what was measured of an alias' loads since its last switch, and the
//! verdict on that. The time is an argument.

use std::collections::VecDeque;

use forebay_proto::{ErrorKind, Failure, Reason, RollbackRule, RuleMetric};
use tokio::time::Instant;

/// Loads that are remembered of an alias; the oldest make room.
const SAMPLES_MAX: usize = 10_000;

/// How a load ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Ended {
    /// Everything was handed over, after so many seconds.
    Well(f64),
    /// It failed...
    Badly {
        /// ... for want of time,
        late: bool,
        /// ... or because bytes were wrong.
        lost: bool,
    },
}

impl Ended {
    /// What a failure says of the revision; nothing if it says nothing of it: what the client did,
    /// and a node that is full or going away.
    pub(crate) fn of(failure: &Failure) -> Option<Self> {
        match failure.reason {
            // A revision without the tensors that are asked for is a bad one.
            Reason::UnknownTensor | Reason::OriginRejected => {}
            Reason::DaemonUnreachable
            | Reason::Superseded
            | Reason::Draining
            | Reason::QueueFull
            | Reason::RamExhausted
            | Reason::NvmeExhausted
            | Reason::DeviceUnavailable
            | Reason::DeviceExhausted
            | Reason::DeviceFailed
            | Reason::UidNotAllowed
            | Reason::UriNotAllowed
            | Reason::LaneNotAllowed
            | Reason::TokenUnknown => return None,
            // Of a client that keeps what it was lent, and not of an origin that sends nothing.
            Reason::NoProgress if failure.stage.as_deref() != Some("fetch") => return None,
            reason if reason.kind() == ErrorKind::InvalidArgument => return None,
            _ => {}
        }
        Some(Self::Badly {
            late: failure.kind() == ErrorKind::DeadlineExceeded
                || failure.reason == Reason::DeadlineInfeasible,
            lost: failure.kind() == ErrorKind::DataLoss,
        })
    }
}

/// What a rule says now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Verdict {
    /// Loads in the window that count.
    pub(crate) loads: u64,
    /// Of the metric; none while there is nothing to measure.
    pub(crate) value: Option<f64>,
    /// Whether it is to act.
    pub(crate) acts: bool,
}

/// The loads of an alias since its last switch.
#[derive(Debug, Default)]
pub(crate) struct Window(VecDeque<(Instant, Ended)>);

impl Window {
    /// A load has ended.
    pub(crate) fn push(&mut self, at: Instant, ended: Ended) {
        if self.0.len() >= SAMPLES_MAX {
            self.0.pop_front();
        }
        self.0.push_back((at, ended));
    }

    /// What the rule says at `now`. It never acts on fewer loads than it wants.
    pub(crate) fn verdict(&self, rule: &RollbackRule, now: Instant) -> Verdict {
        let recent = |at: Instant| now.saturating_duration_since(at) <= rule.window;
        let within = || self.0.iter().filter(|(at, _)| recent(*at)).map(|(_, ended)| *ended);
        let all = within().count();
        let share = |of: fn(Ended) -> bool| {
            (all > 0).then(|| number(within().filter(|ended| of(*ended)).count()) / number(all))
        };
        let mut seconds: Vec<f64> = within()
            .filter_map(|ended| match ended {
                Ended::Well(seconds) => Some(seconds),
                Ended::Badly { .. } => None,
            })
            .collect();
        let (loads, value) = match rule.metric {
            RuleMetric::LoadFailureRatio => {
                (all, share(|ended| matches!(ended, Ended::Badly { .. })))
            }
            RuleMetric::DeadlineMissRatio => {
                (all, share(|ended| matches!(ended, Ended::Badly { late: true, .. })))
            }
            RuleMetric::LoadSecondsP50 => (seconds.len(), quantile(&mut seconds, 50)),
            RuleMetric::LoadSecondsP99 => (seconds.len(), quantile(&mut seconds, 99)),
            RuleMetric::DataLosses => {
                let lost = |ended: &Ended| matches!(ended, Ended::Badly { lost: true, .. });
                (all, Some(number(within().filter(lost).count())))
            }
            // A metric of a newer contract is not measured.
            _ => (0, None),
        };
        let loads = loads as u64;
        let above = value.is_some_and(|value| value > rule.bound);
        Verdict { loads, value, acts: above && loads >= rule.min_loads }
    }
}

/// The value that so many in a hundred do not exceed: the nearest rank.
fn quantile(values: &mut [f64], percent: usize) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100);
    values.get(rank.checked_sub(1)?).copied()
}

#[expect(clippy::cast_precision_loss, reason = "no more than there are samples")]
fn number(count: usize) -> f64 {
    count as f64
}

/// What was measured, in a sentence.
pub(crate) fn why(rule: &RollbackRule, verdict: Verdict) -> String {
    let value = verdict.value.unwrap_or_default();
    format!(
        "{} was {value:.3} over {} loads of the last {} s, and its bound is {}",
        rule.metric.as_str(),
        verdict.loads,
        rule.window.as_secs_f64(),
        rule.bound
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const BAD: Ended = Ended::Badly { late: false, lost: false };
    const LATE: Ended = Ended::Badly { late: true, lost: false };
    const LOST: Ended = Ended::Badly { late: false, lost: true };

    fn rule(text: &str) -> RollbackRule {
        RollbackRule::parse(text).unwrap()
    }

    fn window(now: Instant, samples: &[(u64, Ended)]) -> Window {
        let mut window = Window::default();
        for (ago, ended) in samples {
            window.push(now.checked_sub(Duration::from_secs(*ago)).unwrap(), *ended);
        }
        window
    }

    #[tokio::test(start_paused = true)]
    async fn it_waits_for_enough_loads() {
        tokio::time::advance(Duration::from_secs(3600)).await;
        let (now, rule) = (Instant::now(), rule("load_failure_ratio > 0.5 over 10m min 4"));
        let three = window(now, &[(3, BAD), (2, BAD), (1, BAD)]);
        let verdict = three.verdict(&rule, now);
        assert_eq!(verdict, Verdict { loads: 3, value: Some(1.0), acts: false });
        let four = window(now, &[(4, Ended::Well(1.0)), (3, BAD), (2, BAD), (1, BAD)]);
        let verdict = four.verdict(&rule, now);
        assert_eq!(verdict, Verdict { loads: 4, value: Some(0.75), acts: true });
        let nothing = Window::default().verdict(&rule, now);
        assert_eq!(nothing, Verdict { loads: 0, value: None, acts: false });
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_older_than_the_window_does_not_count() {
        tokio::time::advance(Duration::from_secs(3600)).await;
        let (now, rule) = (Instant::now(), rule("load_failure_ratio > 0.5 over 10m min 2"));
        let window = window(now, &[(601, BAD), (600, BAD), (1, BAD)]);
        assert_eq!(window.verdict(&rule, now).loads, 2, "the edge belongs to it");
        let later = now + Duration::from_secs(1);
        assert!(!window.verdict(&rule, later).acts);
        assert_eq!(window.verdict(&rule, now + Duration::from_secs(700)).value, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bound_is_not_reached_by_being_equal() {
        tokio::time::advance(Duration::from_secs(60)).await;
        let now = Instant::now();
        let window = window(now, &[(1, BAD), (1, Ended::Well(1.0))]);
        assert!(!window.verdict(&rule("load_failure_ratio > 0.5 over 1m min 1"), now).acts);
        assert!(window.verdict(&rule("load_failure_ratio > 0.49 over 1m min 1"), now).acts);
    }

    #[tokio::test(start_paused = true)]
    async fn each_metric_counts_what_it_says() {
        tokio::time::advance(Duration::from_secs(60)).await;
        let now = Instant::now();
        let mut samples: Vec<_> = (1..=98).map(|n| (1, Ended::Well(f64::from(n)))).collect();
        samples.extend([(1, LATE), (1, LOST)]);
        let window = window(now, &samples);
        let value = |text: &str| window.verdict(&rule(text), now);
        assert_eq!(value("load_failure_ratio > 0 over 1m").value, Some(0.02));
        assert_eq!(value("deadline_miss_ratio > 0 over 1m").value, Some(0.01));
        assert_eq!(
            value("data_losses > 0 over 1m"),
            Verdict { loads: 100, value: Some(1.0), acts: true }
        );
        let median = value("load_seconds_p50 > 49 over 1m");
        assert_eq!(median, Verdict { loads: 98, value: Some(49.0), acts: false });
        assert_eq!(value("load_seconds_p99 > 0 over 1m").value, Some(98.0));
    }

    #[test]
    fn failures_that_say_nothing_of_the_revision_do_not_count() {
        let of = |reason| Ended::of(&Failure::new(reason, "x"));
        for reason in [
            Reason::DaemonUnreachable,
            Reason::Superseded,
            Reason::Draining,
            Reason::QueueFull,
            Reason::RamExhausted,
            Reason::NvmeExhausted,
            Reason::DeviceUnavailable,
            Reason::DeviceExhausted,
            Reason::DeviceFailed,
            Reason::BadRequest,
            Reason::BadDeadline,
            Reason::UidNotAllowed,
            Reason::UriNotAllowed,
            Reason::LaneNotAllowed,
            Reason::TokenUnknown,
            Reason::NoProgress,
        ] {
            assert_eq!(of(reason), None, "{reason:?}");
        }
        assert_eq!(of(Reason::UnknownTensor), Some(BAD));
        assert_eq!(of(Reason::OriginFailed), Some(BAD));
        assert_eq!(of(Reason::OriginRejected), Some(BAD));
        assert_eq!(of(Reason::RevisionChanged), Some(BAD));
        assert_eq!(of(Reason::Deadline), Some(LATE));
        let silent = Failure::new(Reason::NoProgress, "the origin sent no byte").at_stage("fetch");
        assert_eq!(Ended::of(&silent), Some(LATE));
        assert_eq!(of(Reason::DeadlineInfeasible), Some(LATE));
        assert_eq!(of(Reason::DigestMismatch), Some(LOST));
        assert_eq!(of(Reason::Truncated), Some(LOST));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let now = Instant::now();
        let mut window = Window::default();
        for _ in 0..=SAMPLES_MAX {
            window.push(now, BAD);
        }
        let rule = rule("load_failure_ratio > 0.5 over 1m");
        assert_eq!(window.verdict(&rule, now).loads, SAMPLES_MAX as u64);
        assert!(why(&rule, window.verdict(&rule, now)).contains("10000 loads"));
    }
}
