//! What two sets of raw samples say: whether a quantile changed beyond noise.
//!
//! The test is a permutation test: if nothing changed, whether a sample is of the first or of the
//! second run is chance, so the same difference is looked for after they were dealt out anew, many
//! times. How often it comes out as large is the probability that chance did it; nothing is assumed
//! of how the samples are distributed. Samples that follow each other are alike (they waited in the
//! same queue), so blocks of them are dealt out, not single ones. A test stops early when chance
//! has clearly done it (Besag and Clifford, 1991). Of many tests at once some come out wrong:
//! [`holm`] holds the probability that any does to what is asked for (Holm, 1979).

use forebay_testkit::Prng;

/// How often samples are dealt out anew, at most.
const DEALS_MAX: usize = 2000;
/// As often as large as found: chance.
const ENOUGH: usize = 40;
/// Samples in both runs together that a test is made of, at most.
const SAMPLES_MAX: usize = 4000;

/// The value that `per_mille` of 1,000 values do not exceed: the nearest rank. NaN of none.
pub(super) fn quantile(values: &mut [f64], per_mille: usize) -> f64 {
    let rank = (values.len() * per_mille).div_ceil(1000).max(1);
    if values.is_empty() {
        return f64::NAN;
    }
    *values.select_nth_unstable_by(rank - 1, f64::total_cmp).1
}

/// The same of values that are kept as they are.
pub(super) fn quantile_of(values: &[f64], per_mille: usize) -> f64 {
    quantile(&mut values.to_vec(), per_mille)
}

/// The mean; NaN of none.
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// What is compared of two runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Measure {
    /// The value that so many of 1,000 do not exceed.
    Quantile(usize),
    /// How many reach the value that so many of 1,000 of both runs do not exceed. A high
    /// quantile itself jumps with one sample more or less, and shows little.
    Beyond(usize),
    /// The mean, as of counts.
    Mean,
}

impl Measure {
    /// It, of some samples, which it may put into another order.
    fn of(self, values: &mut [f64]) -> f64 {
        match self {
            Self::Quantile(per_mille) => quantile(values, per_mille),
            Self::Mean | Self::Beyond(_) => mean(values),
        }
    }
}

/// The probability that chance makes a measure of two runs as different as it is. `block` samples
/// that follow each other are kept together. One, if there is nothing to compare.
pub(super) fn chance(one: &[f64], other: &[f64], measure: Measure, block: usize, seed: u64) -> f64 {
    let (mut one, mut other) = (thinned(one), thinned(other));
    if let Measure::Beyond(per_mille) = measure {
        let limit = quantile(&mut [one.as_slice(), &other].concat(), per_mille);
        let marks = one.iter_mut().chain(&mut other);
        marks.for_each(|value| *value = f64::from(u8::from(*value >= limit)));
    }
    let blocks: Vec<&[f64]> = one.chunks(block.max(1)).chain(other.chunks(block.max(1))).collect();
    let first = one.len().div_ceil(block.max(1));
    if first == 0 || first == blocks.len() {
        return 1.0;
    }
    let (mut left, mut right) = (one.clone(), other.clone());
    let found = (measure.of(&mut left) - measure.of(&mut right)).abs();
    let mut prng = Prng::new(seed);
    let mut order = blocks;
    let mut as_large = 0;
    for deals in 1..=DEALS_MAX {
        prng.shuffle(&mut order);
        let dealt = |into: &mut Vec<f64>, from: &[&[f64]]| {
            into.clear();
            into.extend(from.iter().flat_map(|block| block.iter()));
            measure.of(into)
        };
        let (some, rest) = order.split_at(first);
        let difference = (dealt(&mut left, some) - dealt(&mut right, rest)).abs();
        // Rounding must not make a difference that is the same seem smaller.
        as_large += usize::from(difference >= found * (1.0 - 1e-9));
        if as_large >= ENOUGH {
            return as_large as f64 / deals as f64;
        }
    }
    (as_large + 1) as f64 / (DEALS_MAX + 1) as f64
}

/// Every so manieth of too many samples.
fn thinned(values: &[f64]) -> Vec<f64> {
    let step = values.len().div_ceil(SAMPLES_MAX / 2).max(1);
    values.iter().copied().step_by(step).collect()
}

/// How many samples that follow each other are kept together, of so many: none with less than 30.
pub(super) fn block(samples: usize) -> usize {
    samples.div_ceil(30).isqrt().max(1)
}

/// Which of several findings, by the probability that chance made each, hold together: with
/// probability `1 - level` chance made none of them.
pub(super) fn holm(chances: &[f64], level: f64) -> Vec<bool> {
    let mut order: Vec<usize> = (0..chances.len()).collect();
    order.sort_by(|a, b| chances[*a].total_cmp(&chances[*b]));
    let mut holds = vec![false; chances.len()];
    for (before, index) in order.into_iter().enumerate() {
        if chances[index] > level / (chances.len() - before) as f64 {
            break;
        }
        holds[index] = true;
    }
    holds
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEDIAN: Measure = Measure::Quantile(500);
    const P99: Measure = Measure::Beyond(990);

    /// Latencies with a tail, times `scale`.
    fn drawn(seed: u64, count: usize, scale: f64) -> Vec<f64> {
        let mut prng = Prng::new(seed);
        let mut unit = move || (prng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        (0..count).map(|_| scale * (0.01 - 0.002 * (1.0 - unit()).ln())).collect()
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(quantile(&mut values, 990).total_cmp(&99.0), std::cmp::Ordering::Equal);
        assert_eq!(quantile(&mut values, 500).total_cmp(&50.0), std::cmp::Ordering::Equal);
        assert!(quantile(&mut [], 500).is_nan() && mean(&[]).is_nan());
    }

    #[test]
    fn the_same_distribution_is_rarely_called_another() {
        let alarms = |measure, block| {
            let alarm = |seed: &u64| {
                let (one, other) = (drawn(*seed, 60, 1.0), drawn(*seed + 1000, 60, 1.0));
                chance(&one, &other, measure, block, *seed) < 0.05
            };
            (0..200).filter(alarm).count()
        };
        // Of 200 tests at a level of 5 %, ten; more than twenty would be one in a thousand.
        for (measure, block) in [(MEDIAN, 1), (P99, 1), (Measure::Mean, 1), (MEDIAN, 4)] {
            let found = alarms(measure, block);
            assert!(found <= 20, "{measure:?} {block}: {found} of 200");
        }
    }

    #[test]
    fn a_shift_is_found() {
        for seed in 0..20 {
            let (one, other) = (drawn(seed, 60, 1.0), drawn(seed + 1000, 60, 1.2));
            assert!(chance(&one, &other, MEDIAN, 1, seed) < 0.01, "{seed}");
        }
    }

    #[test]
    fn a_longer_tail_is_found_although_the_median_is_the_same() {
        for seed in 0..20 {
            let one = drawn(seed, 500, 1.0);
            let mut other = drawn(seed + 1000, 500, 1.0);
            other.iter_mut().step_by(40).for_each(|late| *late = 0.08);
            assert!(chance(&one, &other, P99, 1, seed) < 0.01, "{seed}");
            assert!(chance(&one, &other, MEDIAN, 1, seed) > 0.001, "{seed}");
        }
    }

    #[test]
    fn without_samples_nothing_is_found() {
        assert!(chance(&[], &[1.0], MEDIAN, 1, 0) >= 1.0);
        assert!(chance(&[1.0], &[], MEDIAN, 1, 0) >= 1.0);
        assert_eq!((block(0), block(20), block(3000)), (1, 1, 10));
        assert!(thinned(&drawn(1, 90_000, 1.0)).len() <= SAMPLES_MAX / 2);
    }

    #[test]
    fn of_many_findings_only_those_hold_that_chance_does_not_explain() {
        assert_eq!(holm(&[0.001, 0.04, 0.03, 0.9], 0.05), [true, false, false, false]);
        assert_eq!(holm(&[0.01, 0.02], 0.05), [true, true]);
        assert_eq!(holm(&[], 0.05), [false; 0]);
    }
}
