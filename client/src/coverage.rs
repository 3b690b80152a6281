//! Which bytes of which object have been granted.
//!
//! The daemon grants every byte at most once. Holding it to that makes counting enough to know
//! that a tensor is complete, and turns a confused daemon into an error instead of wrong bytes.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use forebay_proto::model::{Extent, Grant, Malformed, ObjectIndex};

/// Disjoint ranges per object, neighbours joined.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    /// Start to end.
    granted: HashMap<ObjectIndex, BTreeMap<u64, u64>>,
    chunks: u64,
    bytes: u64,
}

impl Coverage {
    /// Takes what a grant holds.
    pub(crate) fn add(&mut self, grant: &Grant) -> Result<(), Malformed> {
        for Extent { object, object_range, .. } in &grant.extents {
            if !insert(self.granted.entry(*object).or_default(), object_range) {
                let what = format!("chunk {} holds bytes that were granted before", grant.chunk.0);
                return Err(Malformed::new("Grant", what));
            }
        }
        self.chunks += 1;
        self.bytes += grant.bytes();
        Ok(())
    }

    /// Chunks and bytes granted.
    pub(crate) fn totals(&self) -> (u64, u64) {
        (self.chunks, self.bytes)
    }
}

/// False if a byte of it is there already.
fn insert(ranges: &mut BTreeMap<u64, u64>, range: &Range<u64>) -> bool {
    let before = ranges.range(..=range.start).next_back().map(|(start, end)| (*start, *end));
    let after = ranges.range(range.start..).next().map(|(start, end)| (*start, *end));
    if before.is_some_and(|(_, end)| end > range.start)
        || after.is_some_and(|(start, _)| start < range.end)
    {
        return false;
    }
    let (mut start, mut end) = (range.start, range.end);
    if let Some((before, _)) = before.filter(|(_, end)| *end == range.start) {
        start = before;
    }
    if let Some((after, after_end)) = after.filter(|(start, _)| *start == range.end) {
        ranges.remove(&after);
        end = after_end;
    }
    ranges.insert(start, end);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_join_and_overlaps_are_refused() {
        let mut ranges = BTreeMap::new();
        for range in [10..20, 30..40, 20..30, 0..5] {
            assert!(insert(&mut ranges, &range));
        }
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(&0, &5), (&10, &40)]);
        for range in [0..1, 4..6, 9..11, 10..40, 15..16, 39..50, 0..100] {
            assert!(!insert(&mut ranges, &range), "{range:?}");
        }
        assert!(insert(&mut ranges, &(5..10)));
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(&0, &40)]);
    }
}
