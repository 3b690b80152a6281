//! Bytes made on the fly: a pure function of a pattern, a seed and an offset.
//!
//! The stream is cut into blocks of 4 KiB. Each block has eight xorshift64 lanes whose start states
//! come from the seed and the block's number, so any block is made without the ones before it, and
//! the lanes go through the CPU's vector units together. `Noise` hands the words out as they are;
//! `Weights` maps each 16 bits to a bf16 number as trained weights have them: any sign and
//! mantissa, magnitudes from 2^-12 to 2^-6, never an infinity or a NaN. `Normal` gives bf16 numbers
//! of a normal distribution, which costs more to make and is what a measure of sizes needs.

use crate::random::mix;

/// Bytes of one block, the unit that can be made alone.
pub(crate) const BLOCK: usize = 4096;
const LANES: usize = 8;

/// What the random words are turned into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Uniform bytes: nothing compresses them.
    Noise,
    /// Little-endian bf16 numbers.
    Weights,
    /// Little-endian bf16 numbers, normally distributed with mean 0 and deviation 0.02.
    Normal,
}

/// Of `Normal`.
const DEVIATION: f32 = 0.02;

/// Makes block number `index` of the stream of `seed`.
pub(crate) fn block(pattern: Pattern, seed: u64, index: u64, out: &mut [u8; BLOCK]) {
    let mut lanes = [0u64; LANES];
    let start = mix(seed ^ mix(index.wrapping_add(0x51_7c_c1_b7_27_22_0a_95)));
    for (lane, step) in lanes.iter_mut().zip(1u64..) {
        *lane = mix(start.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15))) | 1;
    }
    match pattern {
        Pattern::Noise => rounds(&mut lanes, out, |word| word),
        Pattern::Weights => rounds(&mut lanes, out, weights),
        Pattern::Normal => rounds(&mut lanes, out, normal),
    }
}

#[inline(always)]
fn rounds(lanes: &mut [u64; LANES], out: &mut [u8; BLOCK], map: impl Fn(u64) -> u64) {
    for row in out.chunks_exact_mut(LANES * 8) {
        for (lane, bytes) in lanes.iter_mut().zip(row.chunks_exact_mut(8)) {
            *lane ^= *lane << 13;
            *lane ^= *lane >> 7;
            *lane ^= *lane << 17;
            bytes.copy_from_slice(&map(*lane).to_le_bytes());
        }
    }
}

/// Four bf16 numbers from 64 random bits: sign and mantissa as drawn, and six bits of each 16 are
/// counted to give an exponent with the bell shape that trained weights show.
#[inline(always)]
fn weights(word: u64) -> u64 {
    const SIGN_MANTISSA: u64 = 0x807f_807f_807f_807f;
    const SIX: u64 = 0x003f_003f_003f_003f;
    const ONES: u64 = 0x0001_0001_0001_0001;
    let drawn = (word >> 7) & SIX;
    let pairs = drawn - ((drawn >> 1) & (ONES * 0x15));
    let quads = (pairs & (ONES * 0x33)) + ((pairs >> 2) & (ONES * 0x33));
    let count = (quads + (quads >> 4)) & (ONES * 0x0f);
    (word & SIGN_MANTISSA) | ((count + ONES * 115) << 7)
}

/// Four bf16 numbers from 64 random bits, two from each half, by Box and Muller: its lower 16 bits
/// give the radius, and the upper ones the angle.
fn normal(word: u64) -> u64 {
    let uniform = |bits: u64| f32::from(u16::try_from(bits & 0xffff).unwrap_or(0));
    let pair = |half: u64| {
        let radius = (-2.0 * ((uniform(half) + 0.5) / 65536.0).ln()).sqrt() * DEVIATION;
        let (sin, cos) = (uniform(half >> 16) / 65536.0 * std::f32::consts::TAU).sin_cos();
        bf16(radius * sin) | bf16(radius * cos) << 16
    };
    pair(word) | pair(word >> 32) << 32
}

/// A number as a bf16, rounded to nearest even, as frameworks do.
fn bf16(value: f32) -> u64 {
    let bits = value.to_bits();
    u64::from(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(pattern: Pattern, seed: u64, index: u64) -> Vec<u8> {
        let mut out = [0; BLOCK];
        block(pattern, seed, index, &mut out);
        out.to_vec()
    }

    #[test]
    fn blocks_differ_by_seed_index_and_pattern() {
        let base = one(Pattern::Noise, 1, 0);
        assert_eq!(base, one(Pattern::Noise, 1, 0));
        assert_ne!(base, one(Pattern::Noise, 1, 1));
        assert_ne!(base, one(Pattern::Noise, 2, 0));
        assert_ne!(base, one(Pattern::Weights, 1, 0));
    }

    #[test]
    fn noise_uses_every_byte_value_about_equally() {
        let mut counts = [0u32; 256];
        for index in 0..64 {
            for byte in one(Pattern::Noise, 5, index) {
                counts[usize::from(byte)] += 1;
            }
        }
        assert!(counts.iter().all(|count| (800..1250).contains(count)), "{counts:?}");
    }

    #[test]
    fn weights_are_finite_small_and_of_both_signs() {
        let (mut negative, mut total) = (0, 0);
        for pair in one(Pattern::Weights, 11, 3).chunks_exact(2) {
            let bits = u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16;
            let value = f32::from_bits(bits);
            assert!(value.is_finite() && value.abs() < 0.032 && value.abs() > 0.0002, "{value}");
            negative += u32::from(value < 0.0);
            total += 1;
        }
        assert_eq!(total, 2048);
        assert!((900..1150).contains(&negative), "{negative} negative of {total}");
    }

    #[test]
    fn normal_numbers_have_their_mean_deviation_and_tails() {
        let (mut count, mut sum, mut squares, mut beyond) = (0.0, 0.0, 0.0, 0.0);
        for index in 0..64 {
            for pair in one(Pattern::Normal, 3, index).chunks_exact(2) {
                let bits = u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16;
                let value = f64::from(f32::from_bits(bits)) / f64::from(DEVIATION);
                (count, sum, squares) = (count + 1.0, sum + value, squares + value * value);
                beyond += f64::from(u8::from(value.abs() > 2.0));
            }
        }
        let (mean, variance, beyond) = (sum / count, squares / count, beyond / count);
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        // 4.55 % lie beyond two deviations.
        assert!((beyond - 0.0455).abs() < 0.003, "{beyond}");
    }
}
