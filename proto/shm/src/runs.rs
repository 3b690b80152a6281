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
    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<usize>> {
        self.0.iter().map(|(&start, &end)| start..end)
    }
}
