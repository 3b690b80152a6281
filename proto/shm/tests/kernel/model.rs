//! Random uses of a segment against a reference model: what each slot is used for, its
//! generation, and what every holder and every client must read.

use std::sync::Arc;

use forebay_shm::{
    Generation, Segment, SegmentMap, ShmError, SlotIndex, SlotReader, SlotState, SlotWriter,
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::{SLOT_BYTES, opened, segment};

const SLOTS: u32 = 3;

/// One use. A holder is chosen by a number, taken modulo how many there are.
#[derive(Debug, Clone)]
enum Use {
    Take { slot: u32 },
    Write { holder: usize, value: u8 },
    Publish { holder: usize },
    Abandon { holder: usize },
    Share { holder: usize },
    End { holder: usize },
    Grant { holder: usize },
}

fn uses() -> impl Strategy<Value = Use> {
    let holder = || 0..8_usize;
    prop_oneof![
        4 => (0..SLOTS + 1).prop_map(|slot| Use::Take { slot }),
        3 => (holder(), any::<u8>()).prop_map(|(holder, value)| Use::Write { holder, value }),
        4 => holder().prop_map(|holder| Use::Publish { holder }),
        1 => holder().prop_map(|holder| Use::Abandon { holder }),
        2 => holder().prop_map(|holder| Use::Share { holder }),
        4 => holder().prop_map(|holder| Use::End { holder }),
        2 => holder().prop_map(|holder| Use::Grant { holder }),
    ]
}

/// What the model knows of one slot.
#[derive(Debug, Clone, Default)]
struct Expected {
    writing: bool,
    readers: u64,
    generation: u64,
    value: u8,
}

struct Run {
    segment: Arc<Segment>,
    map: Arc<SegmentMap>,
    expected: Vec<Expected>,
    writers: Vec<SlotWriter>,
    readers: Vec<SlotReader>,
    grants: Vec<(SlotIndex, Generation)>,
}

fn chosen<T>(holders: &mut Vec<T>, holder: usize) -> Option<T> {
    (!holders.is_empty()).then(|| holders.swap_remove(holder % holders.len()))
}

impl Run {
    fn new() -> Self {
        let segment = segment(1, SLOTS);
        let map = opened(&segment);
        let expected = vec![Expected::default(); SLOTS as usize];
        Self { segment, map, expected, writers: vec![], readers: vec![], grants: vec![] }
    }

    fn slot(&mut self, slot: SlotIndex) -> &mut Expected {
        &mut self.expected[slot.0 as usize]
    }

    fn apply(&mut self, step: Use) {
        match step {
            Use::Take { slot } => self.take(SlotIndex(slot)),
            Use::Write { holder, value } => {
                if let Some(mut writer) = chosen(&mut self.writers, holder) {
                    writer.as_mut_slice().fill(value);
                    self.slot(writer.slot()).value = value;
                    self.writers.push(writer);
                }
            }
            Use::Publish { holder } => {
                if let Some(writer) = chosen(&mut self.writers, holder) {
                    let slot = self.slot(writer.slot());
                    (slot.writing, slot.readers) = (false, 1);
                    self.readers.push(writer.publish());
                }
            }
            Use::Abandon { holder } => {
                if let Some(writer) = chosen(&mut self.writers, holder) {
                    self.slot(writer.slot()).writing = false;
                }
            }
            Use::Share { holder } => {
                if let Some(reader) = chosen(&mut self.readers, holder) {
                    self.slot(reader.slot()).readers += 1;
                    self.readers.extend([reader.clone(), reader]);
                }
            }
            Use::End { holder } => {
                if let Some(reader) = chosen(&mut self.readers, holder) {
                    self.slot(reader.slot()).readers -= 1;
                }
            }
            Use::Grant { holder } => {
                if let Some(reader) = chosen(&mut self.readers, holder) {
                    self.grants.push((reader.slot(), reader.generation()));
                    self.readers.push(reader);
                }
            }
        }
    }

    fn take(&mut self, slot: SlotIndex) {
        let taken = self.segment.writer(slot);
        let Some(expected) = self.expected.get_mut(slot.0 as usize) else {
            assert!(matches!(taken, Err(ShmError::NoSuchSlot { .. })), "{taken:?}");
            return;
        };
        if expected.writing || expected.readers > 0 {
            assert!(matches!(taken, Err(ShmError::SlotBusy { .. })), "{taken:?}");
            return;
        }
        let writer = taken.expect("the model says free");
        expected.writing = true;
        expected.generation += 1;
        assert_eq!(writer.generation(), Generation(expected.generation));
        let kept = writer.as_slice().iter().all(|&byte| byte == expected.value);
        assert!(kept, "taking a slot changes no byte of it");
        self.writers.push(writer);
    }

    fn check(&self) {
        for (slot, expected) in (0..).map(SlotIndex).zip(&self.expected) {
            let state = match (expected.writing, expected.readers) {
                (true, _) => SlotState::Writing,
                (false, 0) => SlotState::Free,
                (false, readers) => SlotState::Reading(readers),
            };
            assert_eq!(self.segment.state(slot), Some(state));
            assert_eq!(self.segment.generation(slot), Generation(expected.generation));
            assert_eq!(self.map.generation(slot), Generation(expected.generation));
        }
        for reader in &self.readers {
            let expected = &self.expected[reader.slot().0 as usize];
            assert_eq!(reader.generation(), Generation(expected.generation));
            assert!(reader.bytes().iter().all(|&byte| byte == expected.value));
        }
        for &(slot, generation) in &self.grants {
            let expected = &self.expected[slot.0 as usize];
            let view = self.map.view(slot, generation, SLOT_BYTES);
            if generation == Generation(expected.generation) {
                let view = view.expect("not taken since the grant");
                assert!(view.bytes().iter().all(|&byte| byte == expected.value));
            } else {
                assert!(matches!(view, Err(ShmError::Stale { .. })), "{view:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(2),
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_use_agrees_with_the_model(uses in proptest::collection::vec(uses(), 1..60)) {
        let mut run = Run::new();
        for step in uses {
            run.apply(step);
            run.check();
        }
        let Run { segment, writers, readers, .. } = run;
        drop((writers, readers));
        for slot in (0..SLOTS).map(SlotIndex) {
            prop_assert_eq!(segment.state(slot), Some(SlotState::Free));
        }
    }
}
