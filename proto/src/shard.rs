//! Slices of tensors for tensor parallelism: which bytes of a tensor a rank wants. One function for
//! both ends, so that the daemon fetches exactly what the client copies.
//!
//! A tensor is cut along one dimension into as many slices as there are ranks, as even as they can
//! be: rank `r` of `n` has indexes `r * size / n` up to `(r + 1) * size / n`, rounded down, so a size
//! that `n` divides gives equal slices and every index belongs to one rank. In memory a slice along
//! the outermost dimension is one run; along another it is a run per index of the dimensions before.
//! Block-quantised types (GGUF) are cut along their innermost dimension between blocks only.

use std::ops::Range;

use crate::pb;

/// Ranks at most: far above any machine, so that a typing error is one.
const RANKS_MAX: u32 = 1 << 16;

/// Rules at most.
const RULES_MAX: usize = 1024;

/// A rank of tensor parallelism, and along which dimension each tensor is cut for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    rank: u32,
    ranks: u32,
    rules: Vec<(String, u32)>,
}

/// What makes a shard, or a slice, impossible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadShard {
    /// There is no such rank.
    #[error("rank {rank} of {ranks} is none: give R/N with R below N and N at most {RANKS_MAX}")]
    NoSuchRank {
        /// Which rank.
        rank: u32,
        /// Of how many.
        ranks: u32,
    },
    /// More rules than are taken.
    #[error("{0} rules of tensor parallelism are too many: give at most {RULES_MAX}")]
    TooManyRules(usize),
    /// The tensor's type has blocks that this dimension cannot be cut between.
    #[error(
        "tensor {name:?} of type {dtype} cannot be cut along its innermost dimension: its block size \
         is not known"
    )]
    Blocks {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// Sizes that are no tensor.
    #[error("tensor {name:?} has {bytes} bytes, which its shape does not divide")]
    Uneven {
        /// The tensor.
        name: String,
        /// Its size.
        bytes: u64,
    },
}

/// The bytes of a tensor that a rank wants: `runs` runs of `run_bytes`, `pitch` apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Where the first run begins in the tensor's data.
    pub start: u64,
    /// Bytes of a run.
    pub run_bytes: u64,
    /// How many runs.
    pub runs: u64,
    /// From the start of a run to that of the next.
    pub pitch: u64,
    /// Dimensions of the slice, outermost first.
    pub shape: Vec<u64>,
}

/// A part of a slice that lies in some range of the tensor, as rows of equal length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlicePart {
    /// Where the first row begins in the tensor's data.
    pub tensor_start: u64,
    /// Where it begins in the slice's data, whose rows follow each other without a gap.
    pub slice_start: u64,
    /// Bytes of a row.
    pub row_bytes: u64,
    /// How many rows; in the tensor they are the slice's pitch apart.
    pub rows: u64,
}

impl Shard {
    /// Rank `rank` of `ranks`, with no tensor cut yet.
    pub fn new(rank: u32, ranks: u32) -> Result<Self, BadShard> {
        if rank >= ranks || ranks > RANKS_MAX {
            return Err(BadShard::NoSuchRank { rank, ranks });
        }
        Ok(Self { rank, ranks, rules: Vec::new() })
    }

    /// Cuts the tensors whose names match `glob` along dimension `dim`, 0 being the outermost. The
    /// first rule that matches counts; a tensor without such a dimension is whole.
    pub fn along(mut self, glob: impl Into<String>, dim: u32) -> Result<Self, BadShard> {
        self.rules.push((glob.into(), dim));
        match self.rules.len() {
            count if count > RULES_MAX => Err(BadShard::TooManyRules(count)),
            _ => Ok(self),
        }
    }

    /// Which rank.
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Of how many.
    #[must_use]
    pub fn ranks(&self) -> u32 {
        self.ranks
    }

    /// Reads one that came over the wire.
    pub fn receive(shard: pb::Shard) -> Result<Self, BadShard> {
        let rules = shard.rules.into_iter();
        rules.take(RULES_MAX + 1).try_fold(Self::new(shard.rank, shard.ranks)?, |shard, rule| {
            shard.along(rule.tensors, rule.dim)
        })
    }

    /// As it travels.
    #[must_use]
    pub fn to_wire(&self) -> pb::Shard {
        let rule =
            |(tensors, dim): &(String, u32)| pb::ShardRule { tensors: tensors.clone(), dim: *dim };
        let rules = self.rules.iter().map(rule).collect();
        pb::Shard { rank: self.rank, ranks: self.ranks, rules }
    }

    /// The bytes of a tensor of `bytes` bytes that this rank wants. `shape` is outermost first.
    pub fn slice(
        &self,
        name: &str,
        dtype: &str,
        shape: &[u64],
        bytes: u64,
    ) -> Result<Slice, BadShard> {
        let rule = self.rules.iter().find(|(glob, _)| glob_match::glob_match(glob, name));
        let dim = rule.and_then(|(_, dim)| usize::try_from(*dim).ok());
        let Some((dim, size)) = dim.and_then(|dim| Some((dim, *shape.get(dim)?))) else {
            return Ok(Slice::whole(shape, bytes));
        };
        let uneven = || BadShard::Uneven { name: name.to_owned(), bytes };
        let outer = shape.get(..dim).unwrap_or_default();
        let runs = outer.iter().try_fold(1_u64, |all, size| all.checked_mul(*size));
        let runs = runs.ok_or_else(uneven)?;
        if bytes == 0 || runs == 0 || size == 0 {
            let whole = Slice::whole(shape, bytes);
            return if bytes == 0 { Ok(self.cut_shape(whole, dim, 1)) } else { Err(uneven()) };
        }
        let pitch = bytes / runs;
        let block = match dim + 1 == shape.len() {
            true => block_of(dtype, pitch, size).ok_or_else(|| BadShard::Blocks {
                name: name.to_owned(),
                dtype: dtype.to_owned(),
            })?,
            false => 1,
        };
        let units = size / block;
        if !bytes.is_multiple_of(runs)
            || !size.is_multiple_of(block)
            || !pitch.is_multiple_of(units)
        {
            return Err(uneven());
        }
        let mine = self.share(units);
        let unit_bytes = pitch / units;
        let slice = Slice {
            start: mine.start * unit_bytes,
            run_bytes: (mine.end - mine.start) * unit_bytes,
            runs,
            pitch,
            shape: shape.to_vec(),
        };
        Ok(self.cut_shape(slice, dim, block))
    }

    fn cut_shape(&self, mut slice: Slice, dim: usize, block: u64) -> Slice {
        if let Some(size) = slice.shape.get_mut(dim) {
            let mine = self.share(*size / block);
            *size = (mine.end - mine.start) * block;
        }
        slice
    }

    /// This rank's part of `size` indexes.
    fn share(&self, size: u64) -> Range<u64> {
        let at = |rank: u32| {
            let index = u128::from(size) * u128::from(rank) / u128::from(self.ranks);
            u64::try_from(index).unwrap_or(size)
        };
        at(self.rank)..at(self.rank + 1)
    }
}

/// How many elements of an innermost dimension of `size` elements in `pitch` bytes cannot be parted.
fn block_of(dtype: &str, pitch: u64, size: u64) -> Option<u64> {
    const PLAIN: &[&str] = &[
        "BOOL",
        "U8",
        "I8",
        "U16",
        "I16",
        "F16",
        "BF16",
        "U32",
        "I32",
        "F32",
        "U64",
        "I64",
        "F64",
        "F8_E4M3",
        "F8_E5M2",
        "F8_E8M0",
        "F8_E4M3FNUZ",
        "F8_E5M2FNUZ",
        "C64",
    ];
    const BLOCKS: &[(&str, u64)] = &[
        ("Q4_0", 32),
        ("Q4_1", 32),
        ("Q5_0", 32),
        ("Q5_1", 32),
        ("Q8_0", 32),
        ("Q8_1", 32),
        ("IQ4_NL", 32),
        ("MXFP4", 32),
        ("NVFP4", 64),
        ("Q4_0_4_4", 32),
        ("Q4_0_4_8", 32),
        ("Q4_0_8_8", 32),
        ("IQ4_NL_4_4", 32),
        ("IQ4_NL_4_8", 32),
        ("IQ4_NL_8_8", 32),
        ("Q2_K", 256),
        ("Q3_K", 256),
        ("Q4_K", 256),
        ("Q5_K", 256),
        ("Q6_K", 256),
        ("Q8_K", 256),
        ("IQ2_XXS", 256),
        ("IQ2_XS", 256),
        ("IQ2_S", 256),
        ("IQ3_XXS", 256),
        ("IQ3_S", 256),
        ("IQ1_S", 256),
        ("IQ1_M", 256),
        ("IQ4_XS", 256),
        ("TQ1_0", 256),
        ("TQ2_0", 256),
        ("F4", 2),
        ("F6_E2M3", 4),
        ("F6_E3M2", 4),
    ];
    let block = BLOCKS.iter().find(|(name, _)| *name == dtype).map(|(_, block)| *block);
    let plain = PLAIN.contains(&dtype) && pitch.is_multiple_of(size);
    block.or_else(|| plain.then_some(1))
}

impl Slice {
    /// All of a tensor.
    #[must_use]
    pub fn whole(shape: &[u64], bytes: u64) -> Self {
        Self { start: 0, run_bytes: bytes, runs: 1, pitch: bytes, shape: shape.to_vec() }
    }

    /// How many bytes it has.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.run_bytes * self.runs
    }

    /// Whether a byte of it lies in `range` of the tensor.
    #[must_use]
    pub fn touches(&self, range: Range<u64>) -> bool {
        self.parts(range).next().is_some()
    }

    /// What of it lies in `range` of the tensor: at most a begun row, whole rows, and the beginning
    /// of one more.
    pub fn parts(&self, range: Range<u64>) -> impl Iterator<Item = SlicePart> + use<> {
        let Self { start, run_bytes, runs, pitch, .. } = *self;
        // The run that holds, or follows, a place in the tensor; and how far into it that is.
        let at = |place: u64| {
            let past = place.saturating_sub(start);
            let (run, within) = match pitch {
                0 => (0, 0),
                pitch => (past / pitch, past % pitch),
            };
            match (run >= runs, within >= run_bytes) {
                (true, _) => (runs, 0),
                (false, true) => (run + 1, 0),
                (false, false) => (run, within),
            }
        };
        let ((first, skipped), (last, begun)) = (at(range.start), at(range.end.max(range.start)));
        // Where a run behind the last one would begin may be no number; it has no bytes, and goes.
        let part = move |run: u64, within: u64, row_bytes: u64, rows: u64| SlicePart {
            tensor_start: run.saturating_mul(pitch).saturating_add(start + within),
            slice_start: run * run_bytes + within,
            row_bytes,
            rows,
        };
        let parts = match first == last {
            true => [Some(part(first, skipped, begun.saturating_sub(skipped), 1)), None, None],
            false => {
                let whole = first + u64::from(skipped > 0);
                [
                    (skipped > 0).then(|| part(first, skipped, run_bytes - skipped, 1)),
                    Some(part(whole, 0, run_bytes, last.saturating_sub(whole))),
                    Some(part(last, 0, begun, 1)),
                ]
            }
        };
        parts.into_iter().flatten().filter(|part| part.row_bytes > 0 && part.rows > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a slice holds, found the slow way: an element at a time.
    fn by_elements(shape: &[u64], dim: usize, mine: &Range<u64>, element: u64) -> Vec<u64> {
        let inner: u64 = shape[dim + 1..].iter().product();
        let all: u64 = shape.iter().product();
        let wanted = (0..all).filter(|index| mine.contains(&(index / inner % shape[dim])));
        wanted.flat_map(|index| index * element..(index + 1) * element).collect()
    }

    fn bytes_of(slice: &Slice, range: Range<u64>) -> Vec<(u64, u64)> {
        let row = |part: &SlicePart, row: u64| {
            let (at, to) =
                (part.tensor_start + row * slice.pitch, part.slice_start + row * slice.run_bytes);
            (0..part.row_bytes).map(move |byte| (to + byte, at + byte)).collect::<Vec<_>>()
        };
        slice
            .parts(range)
            .flat_map(|part| (0..part.rows).flat_map(move |n| row(&part, n)).collect::<Vec<_>>())
            .collect()
    }

    /// A rank's slice brings its elements, in order, whatever the ranges it comes in; gives them.
    fn check(shape: &[u64], dim: usize, rank: u32, ranks: u32) -> Vec<u64> {
        let bytes = shape.iter().product::<u64>() * 2;
        let along = u32::try_from(dim).unwrap();
        let shard = Shard::new(rank, ranks).unwrap().along("w.*", along).unwrap();
        let slice = shard.slice("w.q", "BF16", shape, bytes).unwrap();
        let wanted = by_elements(shape, dim, &shard.share(shape[dim]), 2);
        assert_eq!(slice.bytes(), wanted.len() as u64);
        assert_eq!(slice.shape.iter().product::<u64>() * 2, slice.bytes());
        for step in [1, 2, 3, 5, bytes] {
            let starts = (0..bytes).step_by(usize::try_from(step).unwrap());
            let pieces = starts.flat_map(|at| bytes_of(&slice, at..(at + step).min(bytes)));
            let mut pieces: Vec<_> = pieces.collect();
            pieces.sort_unstable();
            let (to, from): (Vec<_>, Vec<_>) = pieces.into_iter().unzip();
            assert_eq!(to, (0..slice.bytes()).collect::<Vec<_>>());
            assert_eq!(from, wanted, "{shape:?} {dim} {rank}/{ranks} by {step}");
        }
        wanted
    }

    #[test]
    fn slices_hold_their_elements_and_every_byte_is_of_one_rank() {
        for shape in [vec![7_u64], vec![4, 6], vec![5, 3, 4], vec![1, 8], vec![3, 2]] {
            let dims = (0..shape.len()).flat_map(|dim| (1..5).map(move |ranks| (dim, ranks)));
            for (dim, ranks) in dims {
                let slices = (0..ranks).flat_map(|rank| check(&shape, dim, rank, ranks));
                let mut all: Vec<_> = slices.collect();
                all.sort_unstable();
                assert_eq!(all, (0..shape.iter().product::<u64>() * 2).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn the_first_rule_counts_and_what_has_no_rule_or_dimension_is_whole() {
        let shard = Shard::new(1, 2).unwrap().along("*.o", 1).unwrap().along("*", 0).unwrap();
        let along = |name: &str, shape: &[u64]| shard.slice(name, "F32", shape, 64).unwrap().shape;
        assert_eq!(along("a.o", &[4, 4]), [4, 2]);
        assert_eq!(along("a.q", &[4, 4]), [2, 4]);
        assert_eq!(along("a.o", &[16]), [16]);
        assert_eq!(shard.slice("scale", "F32", &[], 4).unwrap(), Slice::whole(&[], 4));
        let none = Shard::new(0, 2).unwrap();
        assert_eq!(none.slice("a", "F32", &[4, 4], 64).unwrap(), Slice::whole(&[4, 4], 64));
    }

    #[test]
    fn a_slice_may_end_where_numbers_do() {
        let shard = Shard::new(1, 2).unwrap().along("**", 0).unwrap();
        let bytes = u64::MAX - 1;
        let slice = shard.slice("w", "U8", &[bytes], bytes).unwrap();
        let parts: Vec<_> = slice.parts(0..bytes).collect();
        let half = bytes / 2;
        let all = SlicePart { tensor_start: half, slice_start: 0, row_bytes: half, rows: 1 };
        assert_eq!(parts, [all]);
    }

    #[test]
    fn blocks_are_not_parted() {
        let shard = Shard::new(0, 2).unwrap().along("**", 1).unwrap();
        let slice = shard.slice("w", "Q4_K", &[2, 768], 2 * 3 * 144).unwrap();
        assert_eq!((slice.run_bytes, slice.runs, slice.pitch), (144, 2, 432));
        assert_eq!(slice.shape, [2, 256]);
        shard.slice("w", "GGML_99", &[2, 768], 2 * 3 * 144).unwrap_err();
        let outer = Shard::new(0, 2).unwrap().along("**", 0).unwrap();
        assert_eq!(outer.slice("w", "GGML_99", &[2, 768], 864).unwrap().bytes(), 432);
    }

    #[test]
    fn what_is_no_shard_or_no_tensor_is_refused() {
        Shard::new(0, 0).unwrap_err();
        Shard::new(2, 2).unwrap_err();
        Shard::new(0, RANKS_MAX + 1).unwrap_err();
        let shard = Shard::new(0, 2).unwrap().along("**", 0).unwrap();
        shard.slice("w", "F32", &[3, 3], 35).unwrap_err();
        shard.slice("w", "F32", &[0, 3], 36).unwrap_err();
        shard.slice("w", "F32", &[u64::MAX, u64::MAX, 3], 36).unwrap_err();
        assert_eq!(shard.slice("w", "F32", &[4, 0], 0).unwrap().shape, [2, 0]);
        let rule = pb::ShardRule { tensors: "*".into(), dim: 0 };
        let wire = pb::Shard { rank: 0, ranks: 2, rules: vec![rule; RULES_MAX + 1] };
        assert_eq!(Shard::receive(wire), Err(BadShard::TooManyRules(RULES_MAX + 1)));
        assert_eq!(Shard::receive(shard.to_wire()), Ok(shard));
    }
}
