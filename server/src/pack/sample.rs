//! What to do with an object's bytes, measured on samples of them: which tensors are stored as byte
//! planes, and whether compression pays at all.
//!
//! A sample is as long as a tile, so that its planes are coded as those of a frame are. A tensor
//! has up to three, at its beginning, in its middle and at its end. Of very many tensors only the
//! largest are measured; the others do as those of their type did together.

use std::collections::BTreeMap;
use std::ops::Range;

use forebay_codec::coding::{PlaneRun, Width};
use forebay_codec::encode::{EncodeError, FrameEncoder, Measured, TILE_BYTES};
use forebay_codec::tensor::TensorEntry;

/// Bytes of a sample.
pub(super) const SAMPLE_BYTES: u64 = TILE_BYTES as u64;

/// Samples of a tensor.
const SAMPLES_PER_TENSOR: u64 = 3;

/// Tensors of an object that are measured.
const MEASURED_MAX: usize = 512;

/// A smaller tensor's planes would not get blocks of their own.
const TENSOR_BYTES_MIN: u64 = 16 << 10;

/// Samples of a whole object: one for so many bytes of it, within bounds.
const OBJECT_BYTES_PER_SAMPLE: u64 = 8 << 20;
const OBJECT_SAMPLES: Range<u64> = 4..32;

/// A tensor that byte planes may help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) width: Width,
    dtype: String,
}

impl Candidate {
    /// Where its samples lie in the object. Each begins with a whole element.
    pub(super) fn samples(&self) -> Vec<Range<u64>> {
        let whole = self.bytes / self.width.bytes() * self.width.bytes();
        let spots = spots(whole, SAMPLES_PER_TENSOR, self.width.bytes());
        spots.into_iter().map(|spot| self.offset + spot.start..self.offset + spot.end).collect()
    }
}

/// The tensors that may be stored as planes, in the order of their bytes; none of them overlap.
pub(super) fn candidates<'a>(tensors: impl IntoIterator<Item = &'a TensorEntry>) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = tensors
        .into_iter()
        .filter(|tensor| tensor.bytes >= TENSOR_BYTES_MIN)
        .filter_map(|tensor| {
            let (width, dtype) = (tensor.plane_width()?, tensor.dtype.clone());
            Some(Candidate { offset: tensor.offset, bytes: tensor.bytes, width, dtype })
        })
        .collect();
    found.sort_by_key(|candidate| candidate.offset);
    let mut end = 0;
    found.retain(|candidate| {
        let is_behind = candidate.offset >= end;
        if is_behind {
            end = candidate.offset.saturating_add(candidate.bytes);
        }
        is_behind
    });
    found
}

/// Those that are measured, by their place among all.
pub(super) fn measured(candidates: &[Candidate]) -> Vec<usize> {
    let mut largest: Vec<usize> = (0..candidates.len()).collect();
    largest
        .sort_by_key(|at| candidates.get(*at).map(|candidate| std::cmp::Reverse(candidate.bytes)));
    largest.truncate(MEASURED_MAX);
    largest
}

/// The plane runs of an object, of what was measured of its candidates. Neighbours are one run.
pub(super) fn runs(
    candidates: &[Candidate],
    measured: &BTreeMap<usize, Measured>,
) -> Vec<PlaneRun> {
    let mut of_type: BTreeMap<&str, Measured> = BTreeMap::new();
    for (at, measured) in measured {
        let Some(candidate) = candidates.get(*at) else { continue };
        let none = Measured { raw_bytes: 0, whole_bytes: 0, planes_bytes: 0 };
        let sum = of_type.entry(&candidate.dtype).or_insert(none);
        sum.raw_bytes += measured.raw_bytes;
        sum.whole_bytes += measured.whole_bytes;
        sum.planes_bytes += measured.planes_bytes;
    }
    let mut runs: Vec<PlaneRun> = Vec::new();
    for (at, candidate) in candidates.iter().enumerate() {
        let known = measured.get(&at).or_else(|| of_type.get(candidate.dtype.as_str()));
        if !known.is_some_and(Measured::planes_pay) {
            continue;
        }
        let Candidate { offset, bytes, width, .. } = *candidate;
        match runs.last_mut() {
            Some(last)
                if last.end() == offset
                    && last.width == width
                    && last.bytes.is_multiple_of(width.bytes()) =>
            {
                last.bytes += bytes;
            }
            _ => runs.push(PlaneRun { offset, bytes, width }),
        }
    }
    runs
}

/// Measures a tensor on its samples.
pub(super) fn measure(
    encoder: &mut FrameEncoder,
    width: Width,
    samples: &[Vec<u8>],
) -> Result<Measured, EncodeError> {
    let samples: Vec<&[u8]> = samples.iter().map(Vec::as_slice).collect();
    encoder.measure(width, &samples)
}

/// The plane runs of an object that is in memory.
pub(super) fn runs_of_whole(
    encoder: &mut FrameEncoder,
    candidates: &[Candidate],
    object: &[u8],
) -> Result<Vec<PlaneRun>, EncodeError> {
    let mut known = BTreeMap::new();
    for at in measured(candidates) {
        let Some(candidate) = candidates.get(at) else { continue };
        let slice = |spot: Range<u64>| {
            let (start, end) = (usize::try_from(spot.start), usize::try_from(spot.end));
            object.get(start.ok()?..end.ok()?)
        };
        let samples: Vec<&[u8]> = candidate.samples().into_iter().filter_map(slice).collect();
        known.insert(at, encoder.measure(candidate.width, &samples)?);
    }
    Ok(runs(candidates, &known))
}

/// Where the samples of a whole object lie.
pub(super) fn of_object(bytes: u64) -> Vec<Range<u64>> {
    let count = (bytes / OBJECT_BYTES_PER_SAMPLE).clamp(OBJECT_SAMPLES.start, OBJECT_SAMPLES.end);
    spots(bytes, count, 1)
}

/// Whether samples of an object, each with its place, shrink enough with these plane runs.
pub(super) fn shrinks<'a>(
    encoder: &mut FrameEncoder,
    samples: impl Iterator<Item = (u64, &'a Vec<u8>)>,
    runs: &[PlaneRun],
) -> Result<bool, EncodeError> {
    let (mut stored, mut plain, mut out) = (0, 0, Vec::new());
    for (offset, sample) in samples {
        stored += encoder.encode(sample, offset, runs, &mut out)?;
        plain += sample.len() as u64;
        out.clear();
    }
    Ok(pays(stored, plain))
}

/// Whether storing so many bytes instead of so many pays: at least a fiftieth has to be saved, for
/// what decoding costs every load.
pub(super) fn pays(stored_bytes: u64, plain_bytes: u64) -> bool {
    u128::from(stored_bytes) * 50 < u128::from(plain_bytes) * 49
}

/// At most so many spots of a run of bytes, spread evenly from its beginning to its end: all of it,
/// if that is no more than they have together.
fn spots(bytes: u64, count: u64, align: u64) -> Vec<Range<u64>> {
    if bytes <= SAMPLE_BYTES * count {
        let starts = (0..bytes).step_by(usize::try_from(SAMPLE_BYTES).unwrap_or(usize::MAX));
        return starts.map(|start| start..bytes.min(start + SAMPLE_BYTES)).collect();
    }
    let last = bytes - SAMPLE_BYTES;
    let gaps = count.saturating_sub(1).max(1);
    let start = |n: u64| {
        let at = u128::from(last) * u128::from(n) / u128::from(gaps);
        u64::try_from(at).unwrap_or(last) / align * align
    };
    (0..count).map(start).map(|start| start..start + SAMPLE_BYTES).collect()
}

#[cfg(test)]
mod tests {
    use forebay_codec::encode::EncodeSettings;
    use proptest::prelude::*;

    use super::*;

    fn tensor(name: &str, dtype: &str, offset: u64, bytes: u64) -> TensorEntry {
        let (name, dtype) = (name.into(), dtype.into());
        TensorEntry { name, dtype, shape: vec![bytes], offset, bytes }
    }

    fn pay(planes_pay: bool) -> Measured {
        let planes_bytes = if planes_pay { 70 } else { 95 };
        Measured { raw_bytes: 100, whole_bytes: 90, planes_bytes }
    }

    #[test]
    fn only_floating_point_of_some_size_is_a_candidate_and_none_overlap() {
        let big = TENSOR_BYTES_MIN;
        let tensors = [
            tensor("late", "F32", 4 * big, big),
            tensor("bf16", "BF16", 0, big),
            tensor("inside", "F16", big / 2, big),
            tensor("int", "I64", big, big),
            tensor("small", "BF16", 2 * big, big - 1),
        ];
        let found = candidates(&tensors);
        let places: Vec<_> = found.iter().map(|found| (found.offset, found.width)).collect();
        assert_eq!(places, [(0, Width::Two), (4 * big, Width::Four)]);
    }

    #[test]
    fn neighbours_are_one_run_and_the_unmeasured_do_as_their_type() {
        let big = TENSOR_BYTES_MIN;
        let tensors: Vec<_> = [("BF16", 0), ("BF16", 1), ("F32", 2), ("BF16", 3), ("BF16", 5)]
            .map(|(dtype, at)| tensor("t", dtype, at * big, big))
            .into();
        let found = candidates(&tensors);
        let known = BTreeMap::from([(0, pay(true)), (1, pay(true)), (2, pay(false))]);
        let two = |offset, bytes| PlaneRun { offset, bytes, width: Width::Two };
        assert_eq!(runs(&found, &known), [two(0, 2 * big), two(3 * big, big), two(5 * big, big)]);
        assert_eq!(runs(&found, &BTreeMap::new()), []);
        let known = BTreeMap::from([(0, pay(true)), (1, pay(false)), (3, pay(true))]);
        assert_eq!(runs(&found, &known)[0], two(0, big));
    }

    #[test]
    fn normally_distributed_weights_get_planes_and_noise_gets_none() {
        let mut state = 7_u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 33
        };
        // Sums of uniform numbers: close to normal, in bf16.
        let mut normal = Vec::new();
        let mut noise = Vec::new();
        for _ in 0..200_000 {
            let sum: u64 = (0..12).map(|_| random() % 1_000_000).sum();
            #[expect(clippy::cast_precision_loss, reason = "seven digits")]
            let value = (sum as f32 - 6e6) / 1e8;
            normal.extend_from_slice(&value.to_bits().to_le_bytes()[2..]);
            noise.extend_from_slice(&random().to_le_bytes()[..2]);
        }
        let mut encoder = FrameEncoder::new(EncodeSettings::default()).unwrap();
        for (bytes, planes) in [(normal, true), (noise, false)] {
            let found = candidates(&[tensor("t", "BF16", 0, bytes.len() as u64)]);
            let runs = runs_of_whole(&mut encoder, &found, &bytes).unwrap();
            assert_eq!(!runs.is_empty(), planes);
            let mut out = Vec::new();
            let stored = encoder.encode(&bytes, 0, &runs, &mut out).unwrap();
            assert_eq!(pays(stored, bytes.len() as u64), planes, "{stored}");
        }
    }

    proptest! {
        #[test]
        fn spots_lie_in_the_run_in_order(
            bytes in 0_u64..1 << 40, count in 1_u64..40, wide in any::<bool>(),
        ) {
            let align = if wide { 4 } else { 2 };
            let spots = spots(bytes, count, align);
            prop_assert!(spots.len() as u64 <= count);
            prop_assert_eq!(spots.is_empty(), bytes == 0);
            let mut end = 0;
            for spot in &spots {
                prop_assert!(spot.start < spot.end && spot.end <= bytes);
                prop_assert!(spot.start % align == 0 && spot.end - spot.start <= SAMPLE_BYTES);
                prop_assert!(spot.end > end);
                end = spot.end;
            }
            // The end is sampled, but for what alignment leaves.
            prop_assert!(count == 1 || bytes - end < align);
        }
    }
}
