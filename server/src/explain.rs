//! Where the time of a load went, in words: the verdict in one sentence, each cause with its seconds
//! and what they rest on, and what to change.
//!
//! Pure: a kept load in, sentences and figures out. What is said of a cause is said here and
//! nowhere else; figures keep their sources, so that a page can show them and a script can read
//! them.

mod machine;

use std::time::Duration;

use crate::attribution::{Attribution, Cause, CauseTotal, Charge};
use crate::history::KeptLoad;
use crate::report::{DeviceKind, Report};
use crate::timeline::{Kind, LEASE_WAIT, Moment};

/// Gaps that are told one by one: the longest.
const GAPS_TOLD: usize = 20;

/// Below this share of its wall time a load is said not to have waited.
const NOTHING_SHARE: f64 = 0.01;

/// A figure that a cause rests on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fact {
    /// Who says so: `clock` for our own, else the kernel's name of it.
    pub(crate) source: &'static str,
    /// What.
    pub(crate) name: String,
    /// How much.
    pub(crate) value: f64,
    /// Of what: `s`, `B`, or what is counted.
    pub(crate) unit: &'static str,
}

/// One cause.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Told {
    /// Which.
    pub(crate) cause: Cause,
    /// What it means.
    pub(crate) meaning: &'static str,
    /// How long, in all gaps together.
    pub(crate) time: Duration,
    /// Of all gaps.
    pub(crate) share: f64,
    /// The longest stretch.
    pub(crate) longest: Duration,
    /// How sure that is, 0 to 1.
    pub(crate) confidence: f64,
    /// What it rests on.
    pub(crate) evidence: Vec<Fact>,
    /// What to change.
    pub(crate) advice: &'static str,
}

/// A load, explained.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Explanation {
    /// All of it in one sentence.
    pub(crate) verdict: String,
    /// The largest first.
    pub(crate) causes: Vec<Told>,
    /// The longest gaps, in the order of time: since the opening.
    pub(crate) gaps: Vec<(Duration, Duration, Cause)>,
    /// How sure all of it is.
    pub(crate) confidence: f64,
}

/// Explains a load.
pub(crate) fn explain(load: &KeptLoad) -> Explanation {
    let idle = &load.report.idle;
    let opened = Moment::from(load.timeline.opened());
    let mut longest: Vec<&Charge> = idle.charges.iter().collect();
    longest.sort_by_key(|charge| std::cmp::Reverse(charge.to - charge.from));
    longest.truncate(GAPS_TOLD);
    longest.sort_by_key(|charge| charge.from);
    let gaps = longest.into_iter().map(|gap| (gap.from - opened, gap.to - opened, gap.cause));
    Explanation {
        verdict: verdict(load),
        causes: idle.causes.iter().map(|total| told(total, load)).collect(),
        gaps: gaps.collect(),
        confidence: idle.confidence(),
    }
}

fn verdict(load: &KeptLoad) -> String {
    let Report { wall, idle, device, .. } = &load.report;
    let failed = load.failure.as_ref().map_or_else(String::new, |failure| {
        format!("It failed with {} after {}. ", failure.reason.as_str(), seconds(*wall))
    });
    let who = match device.as_ref().map(|device| device.kind) {
        Some(DeviceKind::Cuda) => "The GPU",
        Some(DeviceKind::Fake | DeviceKind::Host) => "The device",
        None => "The client",
    };
    let waited = idle.idle;
    let Some(first) = idle.causes.first().filter(|_| is_worth_it(waited, *wall)) else {
        return format!("{failed}{who} did not wait: all of {} was spent copying.", seconds(*wall));
    };
    let share = percent(share(first.time, waited));
    let because = clause(first.cause);
    let beside = beside(idle);
    format!(
        "{failed}{who} waited {} of {}; {share} of that {because} ({}){beside}.",
        seconds(waited),
        seconds(*wall),
        first.cause.as_str(),
    )
}

/// The second cause, if it has a part in it.
fn beside(idle: &Attribution) -> String {
    let second = idle.causes.get(1).map(|total| (total, share(total.time, idle.idle)));
    match second.filter(|(_, share)| *share >= 0.1) {
        Some((total, share)) => format!(", {} {}", percent(share), clause(total.cause)),
        None => String::new(),
    }
}

fn is_worth_it(waited: Duration, wall: Duration) -> bool {
    share(waited, wall) >= NOTHING_SHARE
}

fn share(part: Duration, whole: Duration) -> f64 {
    if whole.is_zero() { 0.0 } else { part.as_secs_f64() / whole.as_secs_f64() }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds >= 1.0 => format!("{seconds:.2} s"),
        seconds => format!("{:.1} ms", seconds * 1000.0),
    }
}

fn told(total: &CauseTotal, load: &KeptLoad) -> Told {
    Told {
        cause: total.cause,
        meaning: clause(total.cause),
        time: total.time,
        share: share(total.time, load.report.idle.idle),
        longest: total.longest,
        confidence: total.confidence,
        evidence: evidence(total, load),
        advice: advice(total.cause),
    }
}

/// What a cause's seconds rest on: the stages that they were spent in, and what else was seen.
fn evidence(total: &CauseTotal, load: &KeptLoad) -> Vec<Fact> {
    let clock = |(stage, kind, time): (&str, Kind, Duration)| Fact {
        source: "clock",
        name: match kind {
            Kind::Queue => format!("waiting for {stage}"),
            Kind::Service => stage.to_owned(),
        },
        value: time.as_secs_f64(),
        unit: "s",
    };
    let stages = total.stages.iter().map(|(stage, kind, time)| (stage.as_str(), kind, time));
    let mut facts: Vec<Fact> = stages.map(clock).collect();
    let mut add = |source, name: &str, value: f64, unit| {
        if value > 0.0 {
            facts.push(Fact { source, name: name.to_owned(), value, unit });
        }
    };
    let count = |count: u64| count as f64;
    add("tcp_info", "out of order or sent again", count(total.lost_segments), "segments");
    add("rwf_nowait", "not in the page cache", count(total.cold_kib) * 1024.0, "B");
    add("cgroup", "kept off the CPUs by a quota", total.throttled.as_secs_f64(), "s");
    add("schedstat", "threads waiting for a CPU", total.run_queue.as_secs_f64(), "s");
    let cost = load.report.tally.cost;
    match total.cause {
        Cause::OriginThrottle => {
            add("http", "answers that said slow down", count(cost.throttles), "answers");
            add("clock", "waited between attempts, all parts", cost.backoff.as_secs_f64(), "s");
        }
        Cause::OriginSlow => {
            add("http", "requests", count(cost.attempts), "requests");
            add("http", "received", count(cost.bytes), "B");
            add("http", "second copies of slow requests", count(cost.hedges), "requests");
            let queued = cost.queued.as_secs_f64();
            add("clock", "in the line before the origin, all parts", queued, "s");
        }
        Cause::LeaseMemory => {
            let window = load.report.tally.peak_window_bytes();
            add("leases", "the most it held at one time", count(window), "B");
            let (decided, _) = load.timeline.decided();
            let mut waits = decided.into_iter().filter(|event| event.name == LEASE_WAIT);
            if let Some(first) = waits.next() {
                let waits = waits.fold(1.0, |sum, _| sum + 1.0);
                add("leases", &format!("while {}", first.detail), waits, "waits");
            }
        }
        _ => {}
    }
    facts.extend(load.host.iter().flat_map(|host| machine::facts(total.cause, host)));
    facts
}

/// The cause as the end of "… of that …".
fn clause(cause: Cause) -> &'static str {
    match cause {
        Cause::Dns => "for the origin's name to resolve",
        Cause::TcpConnect => "for connections to the origin to be made",
        Cause::TcpRetransmit => "for segments that were lost on the way and sent again",
        Cause::OriginThrottle => "because the origin throttles",
        Cause::OriginSlow => "for the origin, or the network path, to send",
        Cause::PageCache => "for a file that was not in the page cache",
        Cause::NvmeQueue => "in the queue of the NVMe tier's disk",
        Cause::NvmeService => "for the NVMe tier's disk to read or write",
        Cause::DecompressQueue => "for a free decoder",
        Cause::DecompressCpu => "for decoding",
        Cause::NumaRemote => "because work ran on another NUMA node's memory",
        Cause::AdmissionQueue => "in the admission queue, behind other loads",
        Cause::LeaseMemory => "for RAM that other loads held",
        Cause::Verify => "for digests",
        Cause::CpuThrottle => "because the daemon did not get the CPU",
        Cause::Client => "for the client itself: the bytes were readable",
        Cause::Unknown => "for something that left no evidence",
    }
}

/// What to change, as a sentence.
fn advice(cause: Cause) -> &'static str {
    match cause {
        Cause::Dns => {
            "Look at the node's resolver (search domains, ndots, a caching resolver); `forebay status` \
             shows the names and their ages."
        }
        Cause::TcpConnect => {
            "Look for a firewall, a full accept queue or a distant endpoint; a regional endpoint is \
             nearer."
        }
        Cause::TcpRetransmit => {
            "Look for loss between this node and the origin: NIC drops, a policer, an overloaded \
             gateway."
        }
        Cause::OriginThrottle => {
            "Spread keys over prefixes, ask for a higher request rate, or prefetch ahead of the deploy; \
             `max_bytes_per_second` of the origin is a throttle too."
        }
        Cause::OriginSlow => {
            "Prefetch ahead of the deploy or keep the checkpoint on NVMe; pack it to move fewer bytes; \
             `forebay capacity` compares the path with the other stages."
        }
        Cause::PageCache => {
            "Keep the checkpoint on the NVMe tier: its reads do not pass the page cache."
        }
        Cause::NvmeQueue => {
            "The disk has more to do than it can: see who else uses it, or use a faster one."
        }
        Cause::NvmeService => {
            "The disk is the limit: use a faster one, or give more RAM with --ram."
        }
        Cause::DecompressQueue => {
            "Give the daemon more cores, or load fewer checkpoints at a time."
        }
        Cause::DecompressCpu => "Give the daemon more cores, or pack at a lower level.",
        Cause::NumaRemote => {
            "Name the GPU with --gpu, and let the daemon use the cores and the memory of its node."
        }
        Cause::AdmissionQueue => "Raise max_loads, or stagger the loads of this node.",
        Cause::LeaseMemory => "Raise --ram, or have clients release what they have copied earlier.",
        Cause::Verify => {
            "Pack the checkpoint: digests per chunk are computed beside the hand-over."
        }
        Cause::CpuThrottle => {
            "Raise the CPU limit of the daemon's container, or leave it more cores."
        }
        Cause::Client => {
            "The client is the limit: copy on two or more streams, release early, register segments \
             once."
        }
        Cause::Unknown => "See `forebay doctor` for evidence that is not available on this node.",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use forebay_proto::{Failure, Reason};
    use tokio::time::Instant;

    use super::*;
    use crate::evidence::Samples;
    use crate::history::{History, Opening};
    use crate::timeline::{Clue, Span, Stage, Timeline};

    /// A load that waited for throttled answers, to 600 ms, and for a digest, to 700.
    async fn load() -> Arc<KeptLoad> {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let timeline = Arc::new(Timeline::new(zero));
        timeline.chunk_spans(
            0,
            [
                Span::new(Stage::Backoff, Kind::Queue, at(0), at(600)).with(Clue::Throttled),
                Span::new(Stage::VerifyPart, Kind::Service, at(600), at(700)),
                Span::new(Stage::Publish, Kind::Service, at(700), at(700)),
            ],
        );
        let (history, samples) = (History::default(), Samples::default());
        let opening = Opening { load_id: "l", uri: "s3://b/", alias: "", lane: "interactive" };
        let keeper = history.keeper(opening, &timeline, &samples);
        tokio::time::advance(Duration::from_millis(700)).await;
        keeper.keep(Err(&Failure::new(Reason::Deadline, "late")));
        history.last().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_verdict_names_the_first_cause_and_a_second_that_matters() {
        let explained = explain(&*load().await);
        let expected = "It failed with DEADLINE after 700.0 ms. The client waited 700.0 ms of \
                        700.0 ms; 86 % of that because the origin throttles (origin_throttle), \
                        14 % for digests.";
        assert_eq!(explained.verdict, expected);
        let told: Vec<_> = explained.causes.iter().map(|told| told.cause).collect();
        assert!(told.starts_with(&[Cause::OriginThrottle, Cause::Verify]), "{told:?}");
        assert_eq!(explained.gaps[0].2, Cause::OriginThrottle);
        assert_eq!(explained.gaps[0].1, Duration::from_millis(600));
        let shares: f64 = explained.causes.iter().map(|told| told.share).sum();
        assert!((shares - 1.0).abs() < 1e-6, "{shares}");
        let backoff = &explained.causes[0].evidence[0];
        assert_eq!((backoff.name.as_str(), backoff.source), ("waiting for backoff", "clock"));
    }

    #[test]
    fn every_cause_has_words_of_its_own() {
        let words = |of: fn(Cause) -> &'static str| {
            Cause::ALL.iter().map(|cause| of(*cause)).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(words(clause).len(), Cause::ALL.len());
        assert_eq!(words(advice).len(), Cause::ALL.len());
        for cause in Cause::ALL {
            assert!(advice(cause).ends_with('.'), "{cause:?}");
        }
    }
}
