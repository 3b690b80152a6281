//! Whatever the contents, frames, tiles and runs: what was packed comes back.

use forebay_codec::coding::{PlaneRun, Width};
use forebay_codec::decode::{FrameDecoder, StreamDecoder, WINDOW_LOG_MAX};
use forebay_codec::encode::{EncodeSettings, FrameEncoder, TILE_BYTES};
use forebay_codec::{planes, scan};
use proptest::prelude::*;

use crate::contents::{KINDS, Kind, contents, pack, range, unpack};

/// Runs out of gaps and lengths, as far as they fit.
fn runs(parts: &[(u64, u64, bool)], object_bytes: u64) -> Vec<PlaneRun> {
    let mut at = 0;
    let mut runs = Vec::new();
    for (gap, bytes, wide) in parts {
        let width = if *wide { Width::Four } else { Width::Two };
        let run = PlaneRun { offset: at + gap, bytes: *bytes, width };
        if run.end() > object_bytes {
            break;
        }
        at = run.end();
        runs.push(run);
    }
    runs
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn what_is_packed_comes_back(
        kind in 0..KINDS.len(),
        bytes in 0usize..200_000,
        seed in any::<u64>(),
        frame_bytes in prop_oneof![1usize..5000, 5000usize..300_000],
        tile in prop_oneof![16u32..300, 300u32..60_000].prop_map(|quarter| quarter * 4),
        parts in proptest::collection::vec((0u64..3000, 1u64..60_000, any::<bool>()), 0..8),
        level in 1i32..4,
    ) {
        let frame_bytes = frame_bytes.max(bytes / 100);
        let plain = contents(KINDS[kind], bytes, seed);
        let planes = runs(&parts, bytes as u64);
        let packed = pack(plain, planes, frame_bytes, EncodeSettings { level, tile });
        let mut decoder = FrameDecoder::new().unwrap();
        let plain = unpack(&mut decoder, &packed.coding, &packed.stored).unwrap();
        prop_assert!(plain == packed.plain, "other bytes came back");

        // A reader that knows nothing of us finds the same frames, and the reordered form in them.
        let bare: Vec<_> = packed.coding.frames().iter().cloned()
            .map(|mut frame| { frame.digest = None; frame })
            .collect();
        prop_assert_eq!(scan::scan_whole(&packed.stored).unwrap(), bare.clone());
        let table_bytes = scan::seek_table_bytes(&packed.stored).unwrap().unwrap();
        let table = &packed.stored[packed.stored.len() - usize::try_from(table_bytes).unwrap()..];
        let table = scan::seek_table(table, packed.stored.len() as u64).unwrap();
        let planed = !packed.coding.planes().is_empty();
        prop_assert_eq!(table, scan::SeekTable { frames: bare, planed });
        let mut library = zstd_safe::DCtx::create();
        for frame in packed.coding.frames() {
            let plain = &packed.plain[range(frame.plain_range())];
            let mut out = vec![0; plain.len()];
            let stored = &packed.stored[range(frame.stored_range())];
            prop_assert_eq!(library.decompress(&mut out[..], stored), Ok(plain.len()));
            let mut expected = vec![0; plain.len()];
            let tile = tile as usize;
            let mut offset = frame.plain_offset;
            for (from, into) in plain.chunks(tile).zip(expected.chunks_mut(tile)) {
                planes::split(packed.coding.planes(), offset, from, into);
                offset += from.len() as u64;
            }
            prop_assert!(out == expected, "the stored form is not the documented one");
        }
    }

    /// Frames of a useful size never take more than a thousandth more than they hold.
    #[test]
    fn nothing_grows(
        kind in 0..KINDS.len(),
        bytes in 64usize << 10..600_000,
        seed in any::<u64>(),
        tile in prop_oneof![Just(TILE_BYTES), 16u32..100_000].prop_map(|tile| tile / 4 * 4),
        parts in proptest::collection::vec((0u64..3000, 1u64..90_000, any::<bool>()), 0..30),
    ) {
        let tile = tile.max(64);
        let plain = contents(KINDS[kind], bytes, seed);
        let planes = runs(&parts, bytes as u64);
        let packed = pack(plain, planes, bytes, EncodeSettings { level: 1, tile });
        let stored = packed.coding.frames()[0].stored_bytes;
        prop_assert!(stored <= bytes as u64 + bytes as u64 / 1000, "{stored} bytes for {bytes}");
    }
}

#[test]
fn weights_shrink_to_two_thirds() {
    let bytes = 4 << 20;
    let plain = contents(Kind::Weights, bytes, 7);
    let run = PlaneRun { offset: 0, bytes: bytes as u64, width: Width::Two };
    let packed = pack(plain, vec![run], bytes, EncodeSettings::default());
    let share = packed.stored.len() * 1000 / bytes;
    assert!(share <= 670, "{share} thousandths");
}

#[test]
fn measuring_says_where_planes_pay() {
    let mut encoder = FrameEncoder::new(EncodeSettings::default()).unwrap();
    let weights = contents(Kind::Weights, 256 << 10, 1);
    let measured = encoder.measure(Width::Two, &[&weights[..128 << 10], &weights[128 << 10..]]);
    let measured = measured.unwrap();
    assert_eq!(measured.raw_bytes, 256 << 10);
    assert!(measured.planes_pay(), "{measured:?}");
    for kind in [Kind::Random, Kind::Text] {
        let sample = contents(kind, 256 << 10, 2);
        let measured = encoder.measure(Width::Two, &[&sample]).unwrap();
        assert!(!measured.planes_pay(), "{kind:?}: {measured:?}");
    }
}

#[test]
fn a_large_frame_streams_in_any_steps() {
    let packed =
        pack(contents(Kind::Text, 700_000, 3), Vec::new(), 300_000, EncodeSettings::default());
    for (input_step, output_step) in [(1, 50_000), (100_000, 7), (3000, 3000), (1 << 20, 1 << 20)] {
        let mut decoder = StreamDecoder::new(WINDOW_LOG_MAX).unwrap();
        let (mut at, mut plain, mut ended) = (0, Vec::new(), false);
        let mut room = vec![0; output_step];
        loop {
            let input = &packed.stored[at..packed.stored.len().min(at + input_step)];
            let step = decoder.decode(input, &mut room).unwrap();
            at += step.consumed;
            plain.extend_from_slice(&room[..step.produced]);
            ended = if step.consumed + step.produced > 0 { step.finished } else { ended };
            if at == packed.stored.len() && step.produced < output_step {
                break;
            }
        }
        assert!(ended, "the last frame did not end");
        assert!(plain == packed.plain, "in steps of {input_step}, {output_step}");
    }
}

#[test]
fn ranges_find_their_frames() {
    let packed = pack(contents(Kind::Text, 10_000, 3), vec![], 4096, EncodeSettings::default());
    let coding = &packed.coding;
    for (range, frames) in [
        (0..1, 0..1),
        (0..4096, 0..1),
        (4095..4097, 0..2),
        (4096..10_000, 1..3),
        (9999..10_000, 2..3),
    ] {
        assert_eq!(coding.frames_over(range.clone()), frames, "{range:?}");
    }
    assert!(coding.frames_over(10_000..10_001).is_empty());
    let frames = coding.frames();
    let both = frames[0].stored_offset..frames[1].stored_offset + frames[1].stored_bytes;
    assert_eq!(coding.stored_range(0..2), both);
    assert_eq!(coding.stored_range(2..2), 0..0);
    assert_eq!(coding.stored_range(2..7), 0..0);
}
