//! Looks at the machine, kept for all loads together.
//!
//! A ring of bounded length under a lock: looks come in at one end, and when it is full every
//! second one of its older half goes, the less thorough of two first. So a load of hours keeps its
//! beginning, coarsely. Differences are made when someone asks; nothing else is owned here.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::attribution::{HostTroubles, Troubles};

use super::host::{HostDelta, HostSample};
use super::sampler::PACE;

/// Looks that are kept: 100 seconds at the usual pace, in 3 MB.
pub(super) const SAMPLES_MAX: usize = 4096;

/// Looks among which one is searched that has a part: more than lie between two thorough ones.
const SEARCH_MAX: usize = 64;

/// The ring.
#[derive(Debug)]
pub(crate) struct Samples {
    kept: Mutex<VecDeque<HostSample>>,
    /// That the daemon may run on.
    cpus: u32,
}

impl Default for Samples {
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { kept: Mutex::default(), cpus: u32::try_from(cpus).unwrap_or(u32::MAX) }
    }
}

impl Samples {
    /// Adds a look. One that is older than the last is left out.
    pub(crate) fn record(&self, sample: HostSample) {
        let mut kept = self.lock();
        if kept.back().is_some_and(|last| last.at > sample.at) {
            return;
        }
        if kept.len() >= SAMPLES_MAX {
            thin(&mut kept);
        }
        kept.push_back(sample);
    }

    /// What happened from `from` to `to`: from the last look at or before the one, to the first at
    /// or after the other. Where there is none, one that is at most one pace inside will do. None
    /// if there are no two such looks.
    pub(crate) fn between(&self, from: Instant, to: Instant) -> Option<HostDelta> {
        let kept = self.lock();
        let all = |sample: &HostSample| Some(sample.at);
        let (first, last) = bracket(&kept, from, to, all)?;
        let slow = bracket(&kept, from, to, |s| s.is_thorough().then_some(s.at));
        let steal = bracket(&kept, from, to, |s| s.cpu?.steal);
        let cpu = bracket(&kept, from, to, |s| s.cpu);
        let cpu = cpu.and_then(|(before, after)| after.since(&before)).map(|mut cpu| {
            cpu.steal = steal.map(|(before, after)| after.saturating_sub(before));
            cpu
        });
        let pressure = bracket(&kept, from, to, |s| s.pressure);
        let net = bracket(&kept, from, to, |s| s.net);
        let memory = bracket(&kept, from, to, |s| s.memory);
        let disk = bracket(&kept, from, to, |s| s.disk);
        let sched = bracket(&kept, from, to, |s| s.sched);
        let group_io = bracket(&kept, from, to, |s| s.group_io);
        let within = kept.iter().rev().skip_while(|s| s.at > to).take_while(|s| s.at >= from);
        Some(HostDelta {
            over: last - first,
            over_slow: slow.map_or(Duration::ZERO, |(first, last)| last - first),
            cpu,
            pressure: pressure.and_then(|(before, after)| after.since(&before)),
            net: net.map(|(before, after)| after.since(before)),
            memory: memory.and_then(|(before, after)| after.since(&before)),
            disk: disk.map(|(before, after)| after.since(&before)),
            sched: sched.map(|(before, after)| after.since(&before)),
            group_io: group_io.and_then(|(before, after)| after.since(&before)),
            latest: within.filter_map(|s| s.late).max(),
        })
    }

    /// The same of the CPUs alone, which costs a small part of that: the time between the two looks,
    /// how much of it a quota took, and how long the daemon's threads waited for a CPU that others had, and ran.
    pub(crate) fn cpus(&self, from: Instant, to: Instant) -> Option<Troubles> {
        let kept = self.lock();
        let (first, last) = bracket(&kept, from, to, |s| s.cpu.map(|_| s.at))
            .or_else(|| bracket(&kept, from, to, |s| s.sched.as_ref().map(|_| s.at)))?;
        let cpu = bracket(&kept, from, to, |s| s.cpu);
        let sched = bracket(&kept, from, to, |s| s.sched);
        let cpu = cpu.and_then(|(before, after)| after.since(&before));
        let sched = sched.map(|(before, after)| after.since(&before));
        let over = last - first;
        // Threads are looked at less often, so over a longer time.
        let longer = bracket(&kept, from, to, |s| s.sched.map(|_| s.at));
        let part = longer.map_or(1.0, |(first, last)| {
            (over.as_secs_f64() / (last - first).as_secs_f64()).min(1.0)
        });
        let within = kept.partition_point(|s| s.at <= first);
        let neighbours = kept.get(within).is_some_and(|next| next.at >= last);
        Some(Troubles {
            over,
            same_within: neighbours.then_some((first, last)),
            throttled: cpu.map(|cpu| cpu.throttled),
            run_queue: sched.map(|sched| {
                let (waited, ran) = (sched.run_queue_wait.mul_f64(part), sched.run.mul_f64(part));
                (waited.mul_f64(self.share_of_others(over, ran)), ran)
            }),
        })
    }

    /// The share of the CPUs that the daemon did not have itself, when its threads ran for so long.
    /// Threads that wait for each other are no victims of anybody: a decoder that is one of many
    /// decodes, and is not kept from it.
    fn share_of_others(&self, over: Duration, ran: Duration) -> f64 {
        let all = over.as_secs_f64() * f64::from(self.cpus);
        if all > 0.0 { (1.0 - ran.as_secs_f64() / all).max(0.0) } else { 1.0 }
    }

    /// Whether a thorough look was taken at `since` or later.
    pub(super) fn has_thorough_since(&self, since: Instant) -> bool {
        let kept = self.lock();
        kept.iter().rev().take_while(|s| s.at >= since).any(HostSample::is_thorough)
    }

    /// Whether any look was taken at `since` or later.
    pub(super) fn has_any_since(&self, since: Instant) -> bool {
        self.lock().back().is_some_and(|last| last.at >= since)
    }

    /// The same, on so many CPUs.
    #[cfg(test)]
    pub(super) fn on(cpus: u32) -> Self {
        Self { cpus, ..Self::default() }
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<HostSample>> {
        // A panic while a look is pushed cannot leave the ring inconsistent.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostTroubles for Samples {
    fn between(&self, from: Instant, to: Instant) -> Option<Troubles> {
        self.cpus(from, to)
    }
}

/// A part of the look before `from` that has it, and of the one after `to`.
fn bracket<T>(
    kept: &VecDeque<HostSample>,
    from: Instant,
    to: Instant,
    part: impl Fn(&HostSample) -> Option<T>,
) -> Option<(T, T)> {
    let has = |sample: &&HostSample| part(sample).is_some();
    let within = kept.partition_point(|sample| sample.at <= from);
    let before =
        kept.range(..within).rev().take(SEARCH_MAX).find(has).or_else(|| {
            kept.range(within..).take_while(|sample| sample.at <= from + PACE).find(has)
        })?;
    let beyond = kept.partition_point(|sample| sample.at < to);
    let after = kept.range(beyond..).take(SEARCH_MAX).find(has).or_else(|| {
        kept.range(..beyond).rev().take_while(|sample| sample.at + PACE >= to).find(has)
    })?;
    (before.at < after.at).then(|| part(before).zip(part(after)))?
}

/// Takes every second look out of the older half, but not the first of all.
fn thin(kept: &mut VecDeque<HostSample>) {
    let older = kept.len() / 2;
    let newer = kept.split_off(older);
    let mut old = std::mem::take(kept).into_iter();
    kept.extend(old.next());
    while let Some(first) = old.next() {
        let second = old.next();
        let better = second.filter(|second| second.is_thorough() && !first.is_thorough());
        kept.push_back(better.unwrap_or(first));
    }
    kept.extend(newer);
}

#[cfg(test)]
mod tests {
    use super::super::host::{CpuSample, DiskSample, NetCounters, SchedSample};
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn look(zero: Instant, ms: u32) -> HostSample {
        let throttled = MS * ms * 2;
        let cpu = CpuSample { throttled, ..CpuSample::default() };
        let disk = DiskSample { reads: ms.into(), inflight: 3, ..DiskSample::default() };
        HostSample { cpu: Some(cpu), disk: Some(disk), ..HostSample::blind(zero + MS * ms) }
    }

    fn thorough(zero: Instant, ms: u32) -> HostSample {
        let net = NetCounters { ofo_queue: ms.into(), ..NetCounters::default() };
        let cpu = CpuSample { steal: Some(MS * ms), ..look(zero, ms).cpu.unwrap() };
        HostSample { net: Some(net), cpu: Some(cpu), ..look(zero, ms) }
    }

    #[test]
    fn each_part_is_taken_from_the_closest_looks_that_have_it() {
        let (samples, zero) = (Samples::default(), Instant::now());
        for ms in (0..=400).step_by(25) {
            let whole = ms % 100 == 0;
            samples.record(if whole { thorough(zero, ms) } else { look(zero, ms) });
        }
        let delta = samples.between(zero + MS * 160, zero + MS * 190).unwrap();
        assert_eq!((delta.over, delta.over_slow), (MS * 50, MS * 100));
        let cpu = delta.cpu.unwrap();
        assert_eq!((cpu.throttled, cpu.steal), (MS * 100, Some(MS * 100)));
        assert_eq!(delta.net.unwrap().ofo_queue, 100);
        let disk = delta.disk.unwrap();
        assert_eq!((disk.reads, disk.inflight_at_end), (50, 3));
        assert_eq!((delta.memory, delta.sched, delta.pressure), (None, None, None));
        // Looks at the edges count.
        let delta = samples.between(zero + MS * 100, zero + MS * 200).unwrap();
        assert_eq!((delta.over, delta.over_slow), (MS * 100, MS * 100));
    }

    #[test]
    fn the_latest_that_the_runtime_was_is_of_the_looks_within() {
        let (samples, zero) = (Samples::default(), Instant::now());
        for (ms, late) in [(0, 90), (100, 3), (200, 7), (300, 80)] {
            samples.record(HostSample { late: Some(MS * late), ..look(zero, ms) });
        }
        let latest = |from, to| samples.between(zero + MS * from, zero + MS * to).unwrap().latest;
        assert_eq!((latest(50, 250), latest(50, 150)), (Some(MS * 7), Some(MS * 3)));
        assert_eq!(latest(210, 220), None);
    }

    #[test]
    fn threads_that_wait_for_each_other_are_kept_from_nothing() {
        // They ran so long, and waited for 80 ms, in 100 ms of two CPUs.
        let waited = |ran: u32| {
            let (samples, zero) = (Samples::on(2), Instant::now());
            for (ms, run, wait) in [(0, 0, 0), (100, ran, 80)] {
                let run_queue_wait = MS * wait;
                let sched = SchedSample { run: MS * run, run_queue_wait, ..SchedSample::default() };
                samples.record(HostSample { sched: Some(sched), ..look(zero, ms) });
            }
            samples.cpus(zero, zero + MS * 100).unwrap().run_queue.unwrap()
        };
        assert_eq!(waited(20), (MS * 72, MS * 20), "others had nine tenths of the CPUs");
        assert_eq!(waited(180), (MS * 8, MS * 180), "they had them themselves");
        assert_eq!(waited(220).0, Duration::ZERO, "the kernel's clocks are not one");
    }

    #[test]
    fn without_looks_nothing_is_known() {
        let (samples, zero) = (Samples::default(), Instant::now());
        let at = |ms| zero + MS * ms;
        assert_eq!(samples.between(at(0), at(1)), None);
        samples.record(look(zero, 100));
        assert_eq!(samples.between(at(90), at(110)), None, "one look has no difference");
        samples.record(look(zero, 300));
        // A look may come a pace late, and no more.
        assert_eq!(samples.between(at(80), at(320)).unwrap().over, MS * 200);
        assert_eq!(samples.between(at(70), at(300)), None);
        assert_eq!(samples.between(at(100), at(330)), None);
        samples.record(look(zero, 200));
        assert_eq!(samples.len(), 2, "older than the last");
    }

    #[test]
    fn counters_of_another_cgroup_do_not_compare() {
        let (samples, zero) = (Samples::default(), Instant::now());
        samples.record(look(zero, 0));
        let mut moved = look(zero, 100);
        moved.cpu.as_mut().unwrap().moves = 1;
        samples.record(moved);
        let delta = samples.between(zero, zero + MS * 100).unwrap();
        assert_eq!((delta.cpu, delta.disk.unwrap().reads), (None, 100));
    }

    #[test]
    fn a_full_ring_keeps_its_beginning_and_its_thorough_looks() {
        let (samples, zero) = (Samples::default(), Instant::now());
        for n in 0..10_000 {
            samples.record(if n % 4 == 1 { thorough(zero, n) } else { look(zero, n) });
            assert!(samples.len() <= SAMPLES_MAX);
        }
        let all = samples.between(zero, zero + MS * 9999).unwrap();
        assert_eq!((all.over, all.disk.unwrap().reads), (MS * 9999, 9999));
        let kept = samples.lock();
        assert!(kept.iter().zip(kept.iter().skip(1)).all(|(a, b)| a.at < b.at));
        let near_the_end = kept.iter().rev().take(SAMPLES_MAX / 2);
        assert_eq!(near_the_end.filter(|s| s.is_thorough()).count(), SAMPLES_MAX / 8);
        let older = kept.iter().take(SAMPLES_MAX / 4).filter(|s| s.is_thorough()).count();
        assert!(older >= SAMPLES_MAX / 8, "{older}");
    }
}
