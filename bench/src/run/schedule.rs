//! When loads arrive, and what each of them is: drawn from a seed, before anything runs.
//!
//! Arrivals do not wait for loads that are under way (an open loop): each has its moment, and its
//! latency counts from there, so that a load that could not even be begun in time is not left out.

use forebay_testkit::Prng;

/// 2^-53: what turns 53 random bits into a number below one.
const UNIT: f64 = 1.0 / 9_007_199_254_740_992.0;

/// A number from 0 up to and without 1.
fn unit(prng: &mut Prng) -> f64 {
    (prng.next_u64() >> 11) as f64 * UNIT
}

/// The moments, in seconds, at which loads arrive that come at `rate` a second and know nothing of
/// each other: the gaps between them are exponential.
pub(super) fn arrivals(rate: f64, seconds: f64, seed: u64) -> Vec<f64> {
    let mut prng = Prng::new(seed);
    let mut at = 0.0;
    std::iter::from_fn(|| {
        at -= (1.0 - unit(&mut prng)).ln() / rate;
        (at < seconds).then_some(at)
    })
    .collect()
}

/// Which of several kinds the `number`th load is, by their shares, which sum to one.
pub(super) fn kind<T: Copy>(number: u64, seed: u64, shares: &[(T, f64)]) -> Option<T> {
    let drawn = unit(&mut Prng::new(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let mut below = 0.0;
    let found = shares.iter().find(|(_, share)| {
        below += share;
        drawn < below
    });
    found.or_else(|| shares.last()).map(|(kind, _)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_those_of_the_seed_and_as_many_as_the_rate_says() {
        let drawn = arrivals(50.0, 200.0, 7);
        assert_eq!(drawn, arrivals(50.0, 200.0, 7));
        assert_ne!(drawn, arrivals(50.0, 200.0, 8));
        assert!((9_600..10_400).contains(&drawn.len()), "{}", drawn.len());
        assert!(drawn.is_sorted() && drawn.iter().all(|at| (0.0..200.0).contains(at)));
    }

    #[test]
    fn gaps_are_exponential() {
        let drawn = arrivals(10.0, 2_000.0, 1);
        let gaps: Vec<f64> = drawn.windows(2).map(|two| two[1] - two[0]).collect();
        let share = |longer: f64| {
            gaps.iter().filter(|gap| **gap > longer).count() as f64 / gaps.len() as f64
        };
        for (longer, expected) in [(0.05, 0.607), (0.1, 0.368), (0.3, 0.050)] {
            assert!((share(longer) - expected).abs() < 0.02, "{longer}: {}", share(longer));
        }
    }

    #[test]
    fn kinds_come_as_often_as_their_shares_say() {
        let shares = [('r', 0.6), ('n', 0.25), ('c', 0.15)];
        let drawn: Vec<char> = (0..10_000).filter_map(|n| kind(n, 3, &shares)).collect();
        for (wanted, share) in shares {
            let found = drawn.iter().filter(|found| **found == wanted).count() as f64 / 1e4;
            assert!((found - share).abs() < 0.02, "{wanted}: {found}");
        }
        assert_eq!(kind(4, 3, &shares), kind(4, 3, &shares));
        assert_eq!(kind::<char>(4, 3, &[]), None);
    }
}
