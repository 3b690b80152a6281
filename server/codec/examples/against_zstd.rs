//! Measures encoding and decoding of frames against the zstd library.
//!
//! `cargo run --release -p forebay-codec --example against_zstd [-- ROUNDS [TILE_KIB ..]]`
//!
//! Frames of 8 MiB of bf16 weights, N(0, 0.02), are decoded by a `FrameDecoder`, and by the library
//! in one call into scratch memory with a plain undoing of the planes after it: one thread, every
//! frame another one, runs interleaved, medians. Then the sizes of other contents.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "an example prints, and may fail")]
#![allow(clippy::disallowed_methods, reason = "it measures time")]

use std::hint::black_box;
use std::time::Instant;

use forebay_codec::coding::{Coding, Frame, PlaneRun, Width};
use forebay_codec::decode::FrameDecoder;
use forebay_codec::encode::{EncodeSettings, FrameEncoder, TILE_BYTES};
use forebay_codec::planes;

const FRAME_BYTES: usize = 8 << 20;
const FRAMES: usize = 8;

/// A generator of pseudo-random numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    #[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Normally distributed, by Box and Muller.
    #[allow(clippy::cast_possible_truncation, reason = "that is what f32 weights are")]
    fn normal(&mut self, deviation: f64) -> f32 {
        let radius = (-2.0 * self.unit().ln()).sqrt();
        ((radius * (std::f64::consts::TAU * self.unit()).cos()) * deviation) as f32
    }
}

fn bf16(bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut one = || {
        let bits = random.normal(0.02).to_bits();
        // Rounded to nearest even, as frameworks do.
        let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
        [rounded.to_le_bytes()[2], rounded.to_le_bytes()[3]]
    };
    (0..bytes / 2).flat_map(|_| one()).collect()
}

fn f32s(bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..bytes / 4).flat_map(|_| random.normal(0.02).to_le_bytes()).collect()
}

/// f16 of normally distributed weights in their normal range, cut off below.
fn f16(bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut one = || {
        let bits = random.normal(0.02).to_bits();
        let sign = bits >> 16 & 0x8000;
        let exponent = (bits >> 23 & 0xFF).saturating_sub(112);
        let half = if exponent == 0 { sign } else { sign | exponent << 10 | bits >> 13 & 0x3FF };
        [half.to_le_bytes()[0], half.to_le_bytes()[1]]
    };
    (0..bytes / 2).flat_map(|_| one()).collect()
}

fn fp8(bytes: usize, seed: u64) -> Vec<u8> {
    f16(bytes * 2, seed).as_chunks::<2>().0.iter().map(|pair| pair[1]).collect()
}

fn random(bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..bytes / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

fn text(bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut text = Vec::new();
    while text.len() < bytes {
        let weight = random.next() % 1000;
        text.extend(format!("\"model.layers.{}.w{weight}\": ", random.next() % 80).bytes());
    }
    text.truncate(bytes);
    text
}

struct Packed {
    coding: Coding,
    stored: Vec<u8>,
    seconds: f64,
}

fn pack(plain: &[u8], width: Option<Width>, settings: EncodeSettings) -> Packed {
    let bytes = plain.len() as u64;
    let runs: Vec<_> =
        width.map(|width| PlaneRun { offset: 0, bytes, width }).into_iter().collect();
    let mut encoder = FrameEncoder::new(settings).unwrap();
    let (mut stored, mut frames) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    let mut plain_offset = 0;
    for frame in plain.chunks(FRAME_BYTES) {
        let stored_offset = stored.len() as u64;
        let stored_bytes = encoder.encode(frame, plain_offset, &runs, &mut stored).unwrap();
        let plain_bytes = frame.len() as u64;
        frames.push(Frame { stored_offset, stored_bytes, plain_offset, plain_bytes, digest: None });
        plain_offset += plain_bytes;
    }
    let seconds = begin.elapsed().as_secs_f64();
    let coding = Coding::new(stored.len() as u64, bytes, frames, runs, settings.tile).unwrap();
    Packed { coding, stored, seconds }
}

fn range(range: std::ops::Range<u64>) -> std::ops::Range<usize> {
    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
}

fn ours(decoder: &mut FrameDecoder, packed: &Packed, into: &mut [u8]) -> f64 {
    let begin = Instant::now();
    for (index, frame) in packed.coding.frames().iter().enumerate() {
        let stored = &packed.stored[range(frame.stored_range())];
        let plain = &mut into[range(frame.plain_range())];
        decoder.decode(&packed.coding, index, stored, plain).unwrap();
    }
    begin.elapsed().as_secs_f64()
}

/// The library in one call, then the planes undone the straightforward way.
fn library(
    context: &mut zstd_safe::DCtx<'static>,
    scratch: &mut [u8],
    packed: &Packed,
    into: &mut [u8],
    undo: bool,
) -> f64 {
    let tile_bytes = packed.coding.tile() as usize;
    let begin = Instant::now();
    for frame in packed.coding.frames() {
        let stored = &packed.stored[range(frame.stored_range())];
        let plain = &mut into[range(frame.plain_range())];
        let scratch = &mut scratch[..plain.len()];
        assert_eq!(context.decompress(scratch, stored).unwrap(), plain.len());
        if undo {
            for (from, into) in scratch.chunks(tile_bytes).zip(plain.chunks_mut(tile_bytes)) {
                straightforward(from, into);
            }
        }
    }
    begin.elapsed().as_secs_f64()
}

fn straightforward(from: &[u8], into: &mut [u8]) {
    let (high, low) = from.split_at(from.len() / 2);
    for (index, element) in into.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let bits = u16::from_le_bytes([low[index], high[index]]);
        *element = bits.rotate_right(1).to_le_bytes();
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[allow(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
fn gbps(bytes: usize, seconds: f64) -> f64 {
    bytes as f64 / seconds / 1e9
}

#[allow(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
fn share(packed: &Packed) -> f64 {
    packed.coding.stored_bytes() as f64 / packed.coding.plain_bytes() as f64
}

fn decode(plain: &[u8], tile: u32, rounds: usize) {
    let bytes = plain.len();
    let packed = pack(plain, Some(Width::Two), EncodeSettings { tile, ..Default::default() });
    let mut decoder = FrameDecoder::new().unwrap();
    let mut context = zstd_safe::DCtx::create();
    let (mut scratch, mut into) = (vec![0; FRAME_BYTES], vec![0; bytes]);
    let (mut own, mut other, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        own.push(ours(&mut decoder, &packed, &mut into));
        assert!(into == plain, "decoded bytes differ");
        other.push(library(&mut context, &mut scratch, &packed, &mut into, true));
        assert!(into == plain, "the library's bytes differ");
        bare.push(library(&mut context, &mut scratch, &packed, &mut into, false));
        black_box(&into);
    }
    let (own, other, bare) = (median(own), median(other), median(bare));
    println!(
        "tile {:4} KiB: size {:.4}, encode {:.2} GB/s; decode {:.2} GB/s, library {:.2} (without \
         planes undone {:.2}), ratio {:.3}",
        tile >> 10,
        share(&packed),
        gbps(bytes, packed.seconds),
        gbps(bytes, own),
        gbps(bytes, other),
        gbps(bytes, bare),
        other / own,
    );
}

/// The speed of reordering alone, of a tile that stays in the cache.
fn reorder(plain: &[u8], width: Width, rounds: usize) {
    let tile = &plain[..TILE_BYTES as usize];
    let runs = [PlaneRun { offset: 0, bytes: tile.len() as u64, width }];
    let (mut reordered, mut back) = (vec![0; tile.len()], vec![0; tile.len()]);
    let mut speed = |undo: bool| {
        let mut one = || {
            let begin = Instant::now();
            for _ in 0..64 {
                match undo {
                    false => planes::split(&runs, 0, black_box(tile), &mut reordered),
                    true => planes::unsplit(&runs, 0, black_box(&reordered), &mut back),
                }
            }
            begin.elapsed().as_secs_f64()
        };
        gbps(64 * tile.len(), median((0..rounds).map(|_| one()).collect()))
    };
    let (split, unsplit) = (speed(false), speed(true));
    println!("planes of {width:?} alone: split {split:.2} GB/s, unsplit {unsplit:.2} GB/s");
    assert!(back == tile, "reordered bytes differ");
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|number| number.parse::<u32>().unwrap());
    let rounds = arguments.next().unwrap_or(11) as usize;
    let mut tiles: Vec<_> = arguments.map(|kib| kib << 10).collect();
    if tiles.is_empty() {
        tiles.push(TILE_BYTES);
    }
    let plain = bf16(FRAMES * FRAME_BYTES, 1);
    for tile in tiles {
        decode(&plain, tile, rounds);
    }
    for width in [Width::Two, Width::Four] {
        reorder(&plain, width, rounds);
    }
    let two = Some(Width::Two);
    let contents = [
        ("bf16 as it is", plain, None),
        ("f16 in planes", f16(FRAME_BYTES * 2, 2), two),
        ("f32 in planes", f32s(FRAME_BYTES * 2, 3), Some(Width::Four)),
        ("fp8", fp8(FRAME_BYTES * 2, 4), None),
        ("random", random(FRAME_BYTES * 2, 5), None),
        ("random in planes", random(FRAME_BYTES * 2, 6), two),
        ("zeros", vec![0; FRAME_BYTES * 2], None),
        ("zeros in planes", vec![0; FRAME_BYTES * 2], two),
        ("text", text(FRAME_BYTES * 2, 7), None),
    ];
    let mut decoder = FrameDecoder::new().unwrap();
    for (what, plain, width) in contents {
        let packed = pack(&plain, width, EncodeSettings::default());
        let mut into = vec![0; plain.len()];
        let times = (0..rounds).map(|_| ours(&mut decoder, &packed, &mut into)).collect();
        assert!(into == plain, "{what}: decoded bytes differ");
        println!(
            "{what:>16}: size {:.5}, encode {:.2} GB/s, decode {:.2} GB/s",
            share(&packed),
            gbps(plain.len(), packed.seconds),
            gbps(plain.len(), median(times)),
        );
    }
}
