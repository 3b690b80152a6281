//! A flipped bit is caught or harmless, wherever it is.

use forebay_codec::coding::Coding;
use forebay_codec::decode::FrameDecoder;
use forebay_codec::encode::EncodeSettings;
use forebay_codec::manifest::PackManifest;

use crate::contents::{Kind, Packed, Random, contents, pack, range, slow, two_runs, unpack};
use crate::manifest::manifest_of;

/// What became of a flip.
#[derive(Debug, Default)]
struct Caught {
    by_decoder: usize,
    by_digest: usize,
    harmless: usize,
}

impl Caught {
    /// Decodes and verifies as a load does.
    fn try_one(&mut self, decoder: &mut FrameDecoder, packed: &Packed, stored: &[u8]) {
        let Ok(plain) = unpack(decoder, &packed.coding, stored) else {
            self.by_decoder += 1;
            return;
        };
        if verified(&packed.coding, &plain) {
            assert!(plain == packed.plain, "other bytes were served");
            self.harmless += 1;
        } else {
            self.by_digest += 1;
        }
    }
}

fn verified(coding: &Coding, plain: &[u8]) -> bool {
    coding.frames().iter().all(|frame| {
        frame.digest == Some(*blake3::hash(&plain[range(frame.plain_range())]).as_bytes())
    })
}

fn small() -> Packed {
    let settings = EncodeSettings { level: 1, tile: 1024 };
    pack(contents(Kind::Weights, 6000, 1), two_runs(6000), 4096, settings)
}

fn flip(bytes: &mut [u8], bit: usize) {
    bytes[bit / 8] ^= 1 << (bit % 8);
}

#[test]
fn every_bit_of_a_packed_object() {
    let packed = small();
    let mut decoder = FrameDecoder::new().unwrap();
    let mut caught = Caught::default();
    let mut stored = packed.stored.clone();
    for bit in 0..stored.len() * 8 {
        flip(&mut stored, bit);
        caught.try_one(&mut decoder, &packed, &stored);
        flip(&mut stored, bit);
    }
    assert!(caught.by_decoder > 100 && caught.by_digest > 1000, "{caught:?}");
    // Nothing of a frame but what its decoder does not look at: the seek table is not a frame.
    let table_bits = (17 + 8 * packed.coding.frames().len()) * 8;
    assert!(caught.harmless <= table_bits + 64, "{caught:?}");
}

#[test]
fn every_bit_of_a_manifest() {
    let packed = small();
    let manifest = manifest_of(&packed, 4096);
    let mut bytes = manifest.to_bytes().unwrap();
    for bit in 0..bytes.len() * 8 {
        flip(&mut bytes, bit);
        assert!(PackManifest::parse(&bytes).is_err(), "bit {bit}");
        flip(&mut bytes, bit);
    }
    assert_eq!(PackManifest::parse(&bytes), Ok(manifest));
}

#[test]
fn seeded_flips_in_larger_objects() {
    let flips = if slow("flips in larger objects") { 100_000 } else { 3000 };
    let settings = EncodeSettings { level: 1, tile: 8192 };
    let packed = pack(contents(Kind::Weights, 60_000, 2), two_runs(60_000), 32_768, settings);
    let text = pack(contents(Kind::Text, 60_000, 3), Vec::new(), 32_768, settings);
    let manifest = manifest_of(&packed, 32_768).to_bytes().unwrap();
    let mut random = Random(4);
    let mut decoder = FrameDecoder::new().unwrap();
    let mut caught = Caught::default();
    for round in 0..flips {
        match round % 3 {
            0 => {
                let mut bytes = manifest.clone();
                flip(&mut bytes, random.below(manifest.len() * 8));
                PackManifest::parse(&bytes).unwrap_err();
            }
            which => {
                let packed = if which == 1 { &packed } else { &text };
                let mut stored = packed.stored.clone();
                flip(&mut stored, random.below(packed.stored.len() * 8));
                caught.try_one(&mut decoder, packed, &stored);
            }
        }
    }
    println!("{flips} flips: {caught:?}");
    assert!(caught.by_decoder > 0 && caught.by_digest > 0, "{caught:?}");
}
