//! Which bytes of an object are there: a set of disjoint runs, merged where they touch.
//!
//! Runs are marked in whole pages as seen from their start: the last one may end inside a page,
//! and that page then belongs to it. Pure bookkeeping: nothing here knows about memory.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint runs by start, none touching the next.
#[derive(Debug, Default)]
pub(crate) struct Runs(BTreeMap<usize, usize>);

impl Runs {
    /// Whether every byte of a range, which is not empty, lies in one run.
    pub(crate) fn contains(&self, range: &Range<usize>) -> bool {
        self.0.range(..=range.start).next_back().is_some_and(|(_, &end)| range.end <= end)
    }

    /// Whether any byte of a range lies in a run.
    pub(crate) fn intersects(&self, range: &Range<usize>) -> bool {
        self.0.range(..range.end).next_back().is_some_and(|(_, &end)| end > range.start)
    }

    /// Adds a range that intersects nothing.
    pub(crate) fn insert(&mut self, range: Range<usize>) {
        debug_assert!(!self.intersects(&range), "{range:?} is there already");
        let Range { mut start, mut end } = range;
        if let Some((&before, &before_end)) = self.0.range(..start).next_back()
            && before_end == start
        {
            start = before;
        }
        if let Some(after_end) = self.0.remove(&end) {
            end = after_end;
        }
        self.0.insert(start, end);
    }

    /// Takes a range out, splitting the runs that leave it.
    pub(crate) fn remove(&mut self, range: &Range<usize>) {
        while let Some((&start, &end)) = self.0.range(..range.end).next_back()
            && end > range.start
        {
            self.0.remove(&start);
            if end > range.end {
                self.0.insert(range.end, end);
            }
            if start < range.start {
                self.0.insert(start, range.start);
            }
        }
    }

    /// The runs in order.
    #[cfg(test)]
    fn iter(&self) -> impl Iterator<Item = Range<usize>> {
        self.0.iter().map(|(&start, &end)| start..end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUND: usize = 24;

    #[derive(Debug, Clone)]
    enum Change {
        Insert(Range<usize>),
        Remove(Range<usize>),
    }

    fn ranges() -> impl Strategy<Value = Range<usize>> {
        (0..BOUND, 1..8_usize).prop_map(|(start, len)| start..BOUND.min(start + len))
    }

    fn changes() -> impl Strategy<Value = Change> {
        prop_oneof![
            3 => ranges().prop_map(Change::Insert),
            1 => ranges().prop_map(Change::Remove),
        ]
    }

    /// Runs as they are read off a map of single bytes.
    fn runs_of(bytes: &[bool; BOUND]) -> Vec<Range<usize>> {
        let starts = (0..BOUND).filter(|&at| bytes[at] && (at == 0 || !bytes[at - 1]));
        starts.map(|start| start..(start..BOUND).find(|&at| !bytes[at]).unwrap_or(BOUND)).collect()
    }

    fn apply(change: Change, runs: &mut Runs, bytes: &mut [bool; BOUND]) {
        match change {
            Change::Insert(range) if !runs.intersects(&range) => {
                bytes[range.clone()].fill(true);
                runs.insert(range);
            }
            Change::Insert(_) => {}
            Change::Remove(range) => {
                bytes[range.clone()].fill(false);
                runs.remove(&range);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 256,
            failure_persistence: None,
            rng_seed: proptest::test_runner::RngSeed::Fixed(2),
            ..ProptestConfig::default()
        })]

        #[test]
        fn runs_agree_with_a_map_of_bytes(
            changes in proptest::collection::vec(changes(), 1..40),
            asked in ranges(),
        ) {
            let (mut runs, mut bytes) = (Runs::default(), [false; BOUND]);
            for change in changes {
                apply(change, &mut runs, &mut bytes);
                prop_assert_eq!(runs.iter().collect::<Vec<_>>(), runs_of(&bytes));
                let part = &bytes[asked.clone()];
                prop_assert_eq!(runs.contains(&asked), part.iter().all(|&there| there));
                prop_assert_eq!(runs.intersects(&asked), part.iter().any(|&there| there));
            }
        }
    }
}
