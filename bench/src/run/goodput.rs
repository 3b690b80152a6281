//! What a phase with arrivals came to: loads in time for each second, how long admitted ones took,
//! how fast refusals were answered, and how long after the end the daemon was itself again.

use super::sample::{Ended, Sample};
use super::statistics::quantile_of;

/// The first part of a phase, in which queues fill, does not count.
const WARM_UP: f64 = 0.2;

/// Loads in a row that have to be as fast as alone.
const STEADY_AGAIN: usize = 3;

/// A phase, summed up.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Sums {
    /// Loads that arrived, and what became of them.
    pub(super) arrived: usize,
    pub(super) met: usize,
    pub(super) late: usize,
    pub(super) refused: usize,
    pub(super) expired: usize,
    pub(super) failed: usize,
    /// Loads a second that met their deadline.
    pub(super) goodput: f64,
    /// Seconds from when loads that were let in were to begin to their end, which may be that their
    /// time was over.
    pub(super) median: f64,
    pub(super) p99: f64,
    /// Seconds until a refusal was there.
    pub(super) refusal_median: f64,
    pub(super) refusal_p99: f64,
    /// Seconds by which loads began later than they should have, for the generator's sake.
    pub(super) behind_p99: f64,
}

/// Sums up a phase in which loads arrived for so many seconds.
pub(super) fn sums(samples: &[Sample], seconds: f64) -> Sums {
    let count = |outcome: Ended| samples.iter().filter(|sample| sample.outcome == outcome).count();
    let latencies: Vec<f64> =
        samples.iter().filter(|sample| sample.was_let_in()).map(Sample::latency).collect();
    let refused = samples.iter().filter(|sample| sample.outcome == Ended::Refused);
    let answers: Vec<f64> = refused.map(|sample| sample.ended - sample.started).collect();
    let behind: Vec<f64> = samples.iter().map(|sample| sample.started - sample.scheduled).collect();
    Sums {
        arrived: samples.len(),
        met: count(Ended::Met),
        late: count(Ended::Late),
        refused: count(Ended::Refused),
        expired: count(Ended::Expired),
        failed: count(Ended::Failed),
        goodput: goodput(samples, seconds),
        median: quantile_of(&latencies, 500),
        p99: quantile_of(&latencies, 990),
        refusal_median: quantile_of(&answers, 500),
        refusal_p99: quantile_of(&answers, 990),
        behind_p99: quantile_of(&behind, 990),
    }
}

/// Loads a second that met their deadline, over the phase less its warm-up. What ends after the
/// last arrival does not count: others had stopped to compete with it.
fn goodput(samples: &[Sample], seconds: f64) -> f64 {
    let met = samples.iter().filter(|sample| sample.outcome == Ended::Met);
    let ended = met.filter(|sample| (WARM_UP * seconds..seconds).contains(&sample.ended));
    ended.count() as f64 / (seconds * (1.0 - WARM_UP))
}

/// The ends of loads that met their deadline, counted by pieces of the phase after its warm-up, as
/// loads a second: the raw samples of a goodput.
pub(super) fn by_piece(ends: &[f64], seconds: f64, pieces: u32) -> Vec<f64> {
    let (from, length) = (WARM_UP * seconds, seconds * (1.0 - WARM_UP) / f64::from(pieces));
    let piece = |number: u32| {
        let begin = from + length * f64::from(number);
        let within = ends.iter().filter(|end| (begin..begin + length).contains(*end));
        within.count() as f64 / length
    };
    (0..pieces).map(piece).collect()
}

/// Seconds after the end of a phase at which loads, one after the other, were as fast as alone
/// again: when the first of some in a row had ended. `probes` are seconds since that end at which
/// each ended, and what it took, if it ended well.
pub(super) fn recovery(probes: &[(f64, Option<f64>)], threshold: f64) -> Option<f64> {
    let fast = |(_, took): &(f64, Option<f64>)| took.is_some_and(|took| took <= threshold);
    let row = probes.windows(STEADY_AGAIN).find(|row| row.iter().all(fast))?;
    row.first().map(|(ended, _)| *ended)
}

/// What a load may take to count as fast as alone, by loads that ran alone: as long as the slowest
/// of them, or half more than usual.
pub(super) fn threshold(alone: &[f64]) -> f64 {
    let slowest = alone.iter().copied().fold(f64::NAN, f64::max);
    slowest.max(1.5 * quantile_of(alone, 500))
}

/// Whether the probes so far tell when the daemon was itself again.
pub(super) fn is_known(probes: &[(f64, Option<f64>)], threshold: f64) -> bool {
    recovery(probes, threshold).is_some()
}

#[cfg(test)]
mod tests {
    use super::super::sample::tests::sample;
    use super::*;

    #[test]
    fn goodput_is_of_loads_in_time_that_ended_while_others_came() {
        // Ten a second for ten seconds, each of a tenth of a second; every other one is refused.
        let at = (0..100).map(|tenth| f64::from(tenth) / 10.0);
        let samples: Vec<Sample> = at
            .enumerate()
            .map(|(n, at)| match n % 2 {
                0 => sample(at, 0.1, Ended::Met),
                _ => sample(at, 0.002, Ended::Refused),
            })
            .chain([sample(9.95, 5.0, Ended::Met), sample(3.0, 4.0, Ended::Late)])
            .collect();
        let sums = sums(&samples, 10.0);
        assert!((sums.goodput - 5.0).abs() < 1e-9, "{sums:?}");
        assert_eq!((sums.arrived, sums.met, sums.late, sums.refused), (102, 51, 1, 50));
        assert!((sums.median - 0.1).abs() < 1e-9 && sums.p99 > 3.9, "{sums:?}");
        assert!((sums.refusal_p99 - 0.002).abs() < 1e-9, "{sums:?}");
        // One whose time was over had been let in as well.
        let expired = [sample(0.0, 0.1, Ended::Met), sample(0.0, 1.0, Ended::Expired)];
        assert!(super::sums(&expired, 10.0).p99 > 0.9);
        let ends: Vec<f64> = samples
            .iter()
            .filter(|sample| sample.outcome == Ended::Met)
            .map(|sample| sample.ended)
            .collect();
        let pieces = by_piece(&ends, 10.0, 8);
        assert_eq!(pieces.len(), 8);
        assert!(pieces.iter().all(|rate| (4.0..=6.0).contains(rate)), "{pieces:?}");
    }

    #[test]
    fn the_daemon_is_itself_again_when_loads_in_a_row_are_fast() {
        let probes = [
            (0.7, Some(0.7)),
            (0.71, Some(0.01)),
            (0.72, None),
            (0.80, Some(0.01)),
            (0.81, Some(0.012)),
            (0.82, Some(0.01)),
        ];
        assert_eq!(recovery(&probes, 0.015), Some(0.80));
        assert_eq!(recovery(&probes[..5], 0.015), None);
        assert!(!is_known(&probes[..5], 0.015));
        assert!((threshold(&[0.01, 0.012, 0.011]) - 0.0165).abs() < 1e-9);
        assert!((threshold(&[0.01, 0.05, 0.011]) - 0.05).abs() < 1e-9);
    }

    #[test]
    fn an_empty_phase_has_no_latency() {
        let sums = sums(&[], 1.0);
        assert!(sums.median.is_nan() && sums.goodput.abs() < 1e-12);
    }
}
