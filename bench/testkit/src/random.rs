//! Seeded pseudo-random numbers for fixtures and fault schedules.
//!
//! One splitmix64 state, owned by its caller: a test names the seed, so that a failure is replayed
//! by running it again. Not for anything that must be hard to guess.

/// A seeded generator: the same seed gives the same numbers on every machine.
#[derive(Clone, Debug)]
pub struct Prng(u64);

impl Prng {
    /// A generator that starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`; 0 where `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.next_u64()) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// True in `per_mille` of 1,000 draws.
    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1000) < u64::from(per_mille)
    }

    /// Fills `out` with random bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let word = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    /// Puts `items` into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let bound = u64::try_from(last + 1).unwrap_or(u64::MAX);
            let other = usize::try_from(self.below(bound)).unwrap_or(0);
            items.swap(last, other);
        }
    }
}

/// A seed that is told when the test that holds it fails.
#[derive(Debug)]
pub struct Seed(u64);

impl Seed {
    /// Holds a seed until the end of what depends on it.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The seed itself.
    pub fn get(&self) -> u64 {
        self.0
    }

    /// A generator that starts at it.
    pub fn prng(&self) -> Prng {
        Prng::new(self.0)
    }
}

impl Drop for Seed {
    #[expect(clippy::print_stderr, reason = "for who reads the failure of a test")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the seed of this run: {}", self.0);
        }
    }
}

/// The finaliser of splitmix64: spreads every input bit over the whole word.
pub(crate) fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let (mut a, mut b, mut c) = (Prng::new(7), Prng::new(7), Prng::new(8));
        let draws: Vec<u64> = (0..32).map(|_| a.next_u64()).collect();
        assert_eq!(draws, (0..32).map(|_| b.next_u64()).collect::<Vec<_>>());
        assert_ne!(draws, (0..32).map(|_| c.next_u64()).collect::<Vec<_>>());
    }

    #[test]
    fn below_stays_in_bounds_and_reaches_both_ends() {
        let mut prng = Prng::new(1);
        let mut seen = [false; 5];
        for _ in 0..1000 {
            seen[usize::try_from(prng.below(5)).unwrap()] = true;
        }
        assert_eq!(seen, [true; 5]);
        assert_eq!(prng.below(0), 0);
    }

    #[test]
    fn chance_is_near_its_rate() {
        let mut prng = Prng::new(3);
        let hits = (0..10_000).filter(|_| prng.chance(100)).count();
        assert!((800..1200).contains(&hits), "{hits} of 10,000 at 100 per mille");
    }

    #[test]
    fn shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..100).collect();
        Prng::new(9).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
