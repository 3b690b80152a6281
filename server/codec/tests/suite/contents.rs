//! What the tests pack: seeded contents of several kinds, and objects packed in memory.

use forebay_codec::coding::{Coding, Frame, PlaneRun, Width};
use forebay_codec::decode::{DecodeError, FrameDecoder};
use forebay_codec::encode::{EncodeSettings, FrameEncoder, seek_table};
use sha2::{Digest, Sha256};

/// A generator of pseudo-random numbers.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Weights,
    Random,
    Zeros,
    Text,
}

pub(crate) const KINDS: [Kind; 4] = [Kind::Weights, Kind::Random, Kind::Zeros, Kind::Text];

pub(crate) fn contents(kind: Kind, bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    match kind {
        // Sums of uniform numbers are close enough to normal ones.
        Kind::Weights => (0..bytes.div_ceil(2))
            .flat_map(|_| {
                let sum: i64 = (0..6).map(|_| i64::from(random.next() as u16) - 32768).sum();
                let [.., a, b] = ((sum as f32) / 4e6).to_le_bytes();
                [a, b]
            })
            .take(bytes)
            .collect(),
        Kind::Random => (0..bytes).map(|_| random.next() as u8).collect(),
        Kind::Zeros => vec![0; bytes],
        Kind::Text => {
            let words =
                ["\"model", ".layers.", "17", ".weight\"", ": ", "0.25", ",\n", " and more"];
            let text = std::iter::repeat_with(|| words[random.below(words.len())].bytes());
            text.flatten().take(bytes).collect()
        }
    }
}

/// An object packed in memory.
#[derive(Debug, Clone)]
pub(crate) struct Packed {
    pub(crate) plain: Vec<u8>,
    pub(crate) stored: Vec<u8>,
    pub(crate) coding: Coding,
}

pub(crate) fn pack(
    plain: Vec<u8>,
    planes: Vec<PlaneRun>,
    frame_bytes: usize,
    settings: EncodeSettings,
) -> Packed {
    let mut encoder = FrameEncoder::new(settings).unwrap();
    let (mut stored, mut frames) = (Vec::new(), Vec::new());
    for (index, frame) in plain.chunks(frame_bytes).enumerate() {
        let plain_offset = (index * frame_bytes) as u64;
        let stored_offset = stored.len() as u64;
        let stored_bytes = encoder.encode(frame, plain_offset, &planes, &mut stored).unwrap();
        let digest = Some(*blake3::hash(frame).as_bytes());
        let plain_bytes = frame.len() as u64;
        frames.push(Frame { stored_offset, stored_bytes, plain_offset, plain_bytes, digest });
    }
    stored.extend(seek_table(&frames, !planes.is_empty()).unwrap());
    let plain_bytes = plain.len() as u64;
    let coding =
        Coding::new(stored.len() as u64, plain_bytes, frames, planes, settings.tile).unwrap();
    Packed { plain, stored, coding }
}

pub(crate) fn range(range: std::ops::Range<u64>) -> std::ops::Range<usize> {
    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
}

/// Decodes all frames of `coding` out of `stored`.
pub(crate) fn unpack(
    decoder: &mut FrameDecoder,
    coding: &Coding,
    stored: &[u8],
) -> Result<Vec<u8>, DecodeError> {
    let mut plain = vec![0xA5; usize::try_from(coding.plain_bytes()).unwrap()];
    for (index, frame) in coding.frames().iter().enumerate() {
        let into = &mut plain[range(frame.plain_range())];
        decoder.decode(coding, index, &stored[range(frame.stored_range())], into)?;
    }
    Ok(plain)
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Two tensors of 2 and of 4 bytes with gaps around them, in an object of `bytes`.
pub(crate) fn two_runs(bytes: u64) -> Vec<PlaneRun> {
    let half = bytes / 2;
    vec![
        PlaneRun { offset: 11, bytes: half - 20, width: Width::Two },
        PlaneRun { offset: half + 3, bytes: half - 9, width: Width::Four },
    ]
}

/// Whether tests may take minutes; says so if not.
pub(crate) fn slow(what: &str) -> bool {
    let slow = std::env::var_os("FOREBAY_SLOW_TESTS").is_some();
    if !slow {
        println!("{what}: a small part only; all of it with FOREBAY_SLOW_TESTS=1");
    }
    slow
}
