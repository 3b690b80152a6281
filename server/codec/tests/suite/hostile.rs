//! Frames and tables that lie: about sizes, windows, dictionaries, checksums, ends.

use forebay_codec::coding::{Coding, CodingError, Frame, PlaneRun, Width};
use forebay_codec::decode::{
    DecodeError, DecodeErrorKind as Kind, FrameDecoder, StreamDecoder, WINDOW_LOG_MAX,
};
use forebay_codec::encode::{EncodeError, EncodeSettings, FrameEncoder, seek_table};
use forebay_codec::scan;
use zstd_safe::{CCtx, CParameter};

use crate::contents::{Kind as Content, contents, pack, range, two_runs, unpack};

const MIB: u64 = 1 << 20;

/// A coding of one frame.
fn one(stored: &[u8], plain_bytes: u64, planes: Vec<PlaneRun>) -> Coding {
    let stored_bytes = stored.len() as u64;
    let frame =
        Frame { stored_offset: 0, stored_bytes, plain_offset: 0, plain_bytes, digest: None };
    Coding::new(stored_bytes, plain_bytes, vec![frame], planes, 4096).unwrap()
}

/// What decoding a frame gives, without and with planes.
fn decode(stored: &[u8], plain_bytes: u64) -> [Result<Vec<u8>, Kind>; 2] {
    let planes = vec![PlaneRun { offset: 0, bytes: plain_bytes, width: Width::Two }];
    [vec![], planes].map(|planes| {
        let mut decoder = FrameDecoder::new().unwrap();
        let plain = unpack(&mut decoder, &one(stored, plain_bytes, planes), stored);
        let memory_bytes = decoder.memory_bytes() as u64;
        assert!(memory_bytes <= MIB + 2 * plain_bytes, "{memory_bytes} bytes of memory");
        plain.map_err(|DecodeError { kind, .. }| kind)
    })
}

fn refused(stored: &[u8], plain_bytes: u64) -> [Kind; 2] {
    decode(stored, plain_bytes).map(|outcome| outcome.unwrap_err())
}

fn compressed(plain: &[u8], parameters: &[CParameter]) -> Vec<u8> {
    let mut context = CCtx::create();
    for parameter in parameters {
        context.set_parameter(*parameter).unwrap();
    }
    let mut stored = vec![0; zstd_safe::compress_bound(plain.len())];
    let bytes = context.compress2(&mut stored[..], plain).unwrap();
    stored.truncate(bytes);
    stored
}

/// A frame of `blocks` blocks of 128 KiB of zeros, four bytes each.
fn bomb(content: Option<u64>, window_exponent: u8, blocks: usize) -> Vec<u8> {
    let mut frame = 0xFD2F_B528u32.to_le_bytes().to_vec();
    frame.push(if content.is_some() { 0b1100_0000 } else { 0 });
    frame.push(window_exponent << 3);
    frame.extend(content.map(u64::to_le_bytes).into_iter().flatten());
    for block in 0..blocks {
        let last = u32::from(block + 1 == blocks);
        frame.extend(&(last | 1 << 1 | (128 << 10) << 3).to_le_bytes()[..3]);
        frame.push(0);
    }
    frame
}

#[test]
fn a_bomb_ends_where_its_room_ends() {
    // A kibibyte that says it holds 100 GiB.
    let liar = bomb(Some(100 << 30), 10, 250);
    assert!(liar.len() <= 1024);
    for kind in refused(&liar, MIB) {
        assert_eq!(kind, Kind::DeclaredSize { declared: 100 << 30, expected: MIB });
    }
    let error = scan::scan_whole(&liar).unwrap_err();
    assert_eq!(error.kind, Kind::Corrupt("its blocks cannot hold what it declares"));
    // One that does not say what it holds: 31 MiB.
    let silent = bomb(None, 7, 250);
    assert_eq!(refused(&silent, MIB), [Kind::Long(MIB), Kind::Long(MIB)]);
    assert_eq!(scan::scan_whole(&silent).unwrap_err().kind, Kind::SizeUnknown);
    // One that says less than it holds.
    let modest = bomb(Some(MIB), 7, 250);
    for kind in refused(&modest, MIB) {
        assert!(matches!(kind, Kind::Long(MIB) | Kind::Corrupt(_)), "{kind}");
    }
    // A frame that holds what it says is fine, however few bytes it has.
    for plain in decode(&bomb(Some(MIB), 7, 8), MIB) {
        assert!(plain.unwrap() == vec![0; 1 << 20]);
    }
}

#[test]
fn a_stream_gives_no_more_than_it_is_asked_for() {
    let bomb = bomb(None, 7, 250);
    let mut decoder = StreamDecoder::new(WINDOW_LOG_MAX).unwrap();
    let mut room = [1; 5000];
    let step = decoder.decode(&bomb, &mut room).unwrap();
    assert_eq!((step.produced, step.finished), (5000, false));
    assert!(decoder.memory_bytes() < 1 << 20, "{decoder:?}");
    decoder.reset().unwrap();
    assert_eq!(decoder.decode(b"no frame", &mut room).unwrap_err().kind, Kind::NotAFrame);
    // After an error it says so again, until it is reset.
    decoder.decode(&bomb, &mut room).unwrap_err();
    decoder.reset().unwrap();
    assert_eq!(decoder.decode(&bomb, &mut room).unwrap().produced, 5000);
}

#[test]
fn windows_are_bounded() {
    for (window_log, fits) in [(27, true), (28, false), (31, false), (41, false)] {
        let stored = bomb(None, window_log - 10, 1);
        let mut decoder = StreamDecoder::new(64).unwrap();
        let outcome = decoder.decode(&stored, &mut vec![0; 256 << 10]);
        match fits {
            true => assert_eq!(outcome.unwrap().produced, 128 << 10),
            false => assert_eq!(outcome.unwrap_err().kind, Kind::Window(128 << 20)),
        }
        let [whole, planed] = decode(&stored, 128 << 10);
        assert_eq!(whole.is_ok(), fits, "a window of 2^{window_log}");
        assert_eq!(planed, Err(Kind::Window(128 << 10)));
    }
}

#[test]
fn dictionaries_are_refused() {
    let mut stored = 0xFD2F_B528u32.to_le_bytes().to_vec();
    // A single segment of one byte, with dictionary 77, in one raw block.
    stored.extend([0b10_0001, 77, 1, 0b1001, 0, 0, 5]);
    assert_eq!(refused(&stored, 1), [Kind::Dictionary, Kind::Dictionary]);
    assert_eq!(scan::scan_whole(&stored).unwrap_err().kind, Kind::Dictionary);
    let mut decoder = StreamDecoder::new(WINDOW_LOG_MAX).unwrap();
    assert_eq!(decoder.decode(&stored, &mut [0]).unwrap_err().kind, Kind::Dictionary);
    assert_eq!(scan::frame_head(&stored).unwrap().dictionary, 77);
}

#[test]
fn checksums_are_enforced_where_there_are_any() {
    let plain = contents(Content::Random, 9999, 1);
    let mut stored = compressed(&plain, &[CParameter::ChecksumFlag(true)]);
    assert!(scan::frame_head(&stored).unwrap().checksum);
    assert_eq!(decode(&stored, 9999)[0], Ok(plain));
    *stored.last_mut().unwrap() ^= 1;
    assert_eq!(refused(&stored, 9999), [Kind::Checksum, Kind::Checksum]);
    let mut decoder = StreamDecoder::new(WINDOW_LOG_MAX).unwrap();
    assert_eq!(decoder.decode(&stored, &mut [0; 10_000]).unwrap_err().kind, Kind::Checksum);
}

#[test]
fn a_frame_is_exactly_what_is_stored() {
    let plain = contents(Content::Text, 5000, 1);
    let stored = compressed(&plain, &[]);
    let twice = [&stored[..], &stored[..]].concat();
    let more = stored.len() as u64;
    assert_eq!(refused(&twice, 5000), [Kind::TrailingBytes(more), Kind::TrailingBytes(more)]);
    for kind in refused(&twice, 10_000) {
        assert_eq!(kind, Kind::DeclaredSize { declared: 5000, expected: 10_000 });
    }
    let skippable = [&0x184D_2A53u32.to_le_bytes()[..], &[1, 0, 0, 0, 9]].concat();
    assert_eq!(refused(&skippable, 1), [Kind::NotAFrame, Kind::NotAFrame]);
    assert_eq!(refused(b"PK\x03\x04....", 1), [Kind::NotAFrame, Kind::NotAFrame]);
    // Less than it should hold, where it does not say how much.
    let silent = compressed(&plain, &[CParameter::ContentSizeFlag(false)]);
    for kind in refused(&silent, 5001) {
        assert!(matches!(kind, Kind::Short { held: 5000, expected: 5001 }), "{kind}");
    }
    assert_eq!(refused(&silent, 4999), [Kind::Long(4999), Kind::Long(4999)]);
    // The caller's mistakes.
    let coding = one(&stored, 5000, vec![]);
    let mut decoder = FrameDecoder::new().unwrap();
    let wrong = [
        decoder.decode(&coding, 1, &stored, &mut [0; 5000]),
        decoder.decode(&coding, 0, &stored[1..], &mut [0; 5000]),
        decoder.decode(&coding, 0, &stored, &mut [0; 4999]),
    ];
    for outcome in wrong {
        assert!(matches!(outcome.unwrap_err().kind, Kind::Caller { .. }));
    }
}

#[test]
fn errors_say_where() {
    let packed = pack(contents(Content::Text, 9000, 1), vec![], 4096, EncodeSettings::default());
    let second = packed.coding.frames()[1].stored_offset;
    let mut stored = packed.stored.clone();
    stored[range(second..second + 1)].fill(0);
    let error = unpack(&mut FrameDecoder::new().unwrap(), &packed.coding, &stored).unwrap_err();
    assert_eq!(error, DecodeError { kind: Kind::NotAFrame, stored_offset: second });
}

#[test]
fn truncation_at_every_byte_is_caught() {
    let settings = EncodeSettings { level: 1, tile: 1024 };
    for planes in [vec![], two_runs(5000)] {
        let packed = pack(contents(Content::Weights, 5000, 1), planes.clone(), 5000, settings);
        let frame = &packed.stored[range(packed.coding.frames()[0].stored_range())];
        for end in 1..frame.len() {
            let cut = &frame[..end];
            let coding = one(cut, 5000, planes.clone());
            let outcome = unpack(&mut FrameDecoder::new().unwrap(), &coding, cut);
            assert_eq!(outcome.unwrap_err().kind, Kind::Truncated, "after {end} bytes");
            assert_eq!(scan::scan_whole(cut).unwrap_err().kind, Kind::Truncated);
            let mut decoder = StreamDecoder::new(WINDOW_LOG_MAX).unwrap();
            let step = decoder.decode(cut, &mut [0; 6000]).unwrap();
            assert!(!step.finished, "after {end} bytes");
        }
        let table = &packed.stored[frame.len()..];
        for end in 0..table.len() {
            assert_eq!(scan::seek_table_bytes(&table[..end]), Ok(None));
            scan::seek_table(&table[..end], packed.stored.len() as u64).unwrap_err();
        }
        for begin in 1..table.len() {
            scan::seek_table(&table[begin..], packed.stored.len() as u64).unwrap_err();
        }
    }
}

#[test]
fn a_seek_table_has_to_add_up() {
    let packed = pack(contents(Content::Text, 9000, 1), vec![], 4096, EncodeSettings::default());
    let table_bytes = scan::seek_table_bytes(&packed.stored).unwrap().unwrap();
    assert_eq!(table_bytes, 8 * 3 + 17);
    let at = packed.stored.len() - usize::try_from(table_bytes).unwrap();
    let table = &packed.stored[at..];
    let object_bytes = packed.stored.len() as u64;
    assert_eq!(scan::seek_table(table, object_bytes).unwrap().frames.len(), 3);
    scan::seek_table(table, object_bytes + 1).unwrap_err();
    scan::seek_table(table, 3).unwrap_err();
    // Every changed byte of the head, the sizes in what is stored, and the footer.
    for index in (0..8).chain([8, 16, 24]).chain(32..41) {
        let mut wrong = table.to_vec();
        wrong[index] ^= 0x40;
        let error = scan::seek_table(&wrong, object_bytes);
        assert!(error.is_err(), "byte {index}: {error:?}");
    }
    // A count that would be gigabytes of entries.
    let mut wrong = table.to_vec();
    wrong[32..36].fill(0xFF);
    let error = scan::seek_table_bytes(&wrong).unwrap_err();
    assert!(matches!(error.kind, Kind::Frames(_)), "{error}");
    let frame = |stored_bytes| Frame {
        stored_offset: 0,
        stored_bytes,
        plain_offset: 0,
        plain_bytes: 1,
        digest: None,
    };
    assert_eq!(seek_table(&[frame(5 << 30)], false), Err(EncodeError::TooLarge(5 << 30)));
}

#[test]
fn whole_objects_have_skippable_and_empty_frames_too() {
    let plain = contents(Content::Text, 3000, 1);
    let stored = compressed(&plain, &[]);
    let empty = compressed(&[], &[]);
    let unsized_empty = compressed(&[], &[CParameter::ContentSizeFlag(false)]);
    let skippable = [&0x184D_2A5Fu32.to_le_bytes()[..], &[3, 0, 0, 0, 1, 2, 3]].concat();
    let object = [&skippable[..], &stored, &empty, &unsized_empty, &skippable, &stored].concat();
    let frames = scan::scan_whole(&object).unwrap();
    assert_eq!(frames.len(), 2);
    let coding = Coding::new(object.len() as u64, 6000, frames, vec![], 0).unwrap();
    let mut decoder = FrameDecoder::new().unwrap();
    assert!(unpack(&mut decoder, &coding, &object).unwrap() == [&plain[..], &plain].concat());
    assert_eq!(scan::scan_whole(b""), Ok(vec![]));
    let error = scan::scan_whole(&object[..object.len() - 1]).unwrap_err();
    assert_eq!(error.stored_offset, (object.len() - stored.len()) as u64);
}

#[test]
fn codings_are_checked() {
    let frame = |stored_offset, stored_bytes, plain_offset, plain_bytes| Frame {
        stored_offset,
        stored_bytes,
        plain_offset,
        plain_bytes,
        digest: None,
    };
    let run = |offset, bytes| PlaneRun { offset, bytes, width: Width::Two };
    let coding = |frames: &[Frame], runs: &[PlaneRun], tile| {
        Coding::new(100, 200, frames.to_vec(), runs.to_vec(), tile)
    };
    let good = [frame(0, 50, 0, 100), frame(60, 40, 100, 100)];
    coding(&good, &[run(0, 10), run(10, 190)], 64).unwrap();
    let wrong_frames = [
        [frame(0, 50, 0, 100), frame(60, 41, 100, 100)],
        [frame(0, 50, 0, 100), frame(49, 40, 100, 100)],
        [frame(0, 50, 0, 100), frame(50, 40, 101, 99)],
        [frame(0, 50, 0, 100), frame(50, 40, 99, 101)],
        [frame(0, 50, 0, 200), frame(50, 40, 200, 0)],
        [frame(0, 50, 0, 200), frame(50, 0, 200, 9)],
        [frame(0, 50, 0, 100), frame(50, u64::MAX, 100, 100)],
        [frame(0, 50, 0, 100), frame(50, 50, 100, u64::MAX)],
    ];
    for frames in wrong_frames {
        assert!(matches!(coding(&frames, &[], 0), Err(CodingError::Frame { .. })), "{frames:?}");
    }
    let short = coding(&good[..1], &[], 0);
    assert_eq!(short, Err(CodingError::Length { held: 100, object: 200 }));
    let wrong_runs = [
        [run(0, 10), run(9, 10)],
        [run(0, 10), run(10, 191)],
        [run(0, 0), run(10, 10)],
        [run(0, 10), run(10, u64::MAX)],
    ];
    for runs in wrong_runs {
        assert!(matches!(coding(&good, &runs, 64), Err(CodingError::Run { .. })), "{runs:?}");
    }
    for tile in [0, 63, 65, 5 << 20, u32::MAX] {
        assert_eq!(coding(&good, &[run(0, 10)], tile), Err(CodingError::Tile(tile)));
        FrameEncoder::new(EncodeSettings { level: 1, tile }).unwrap_err();
    }
    for level in [0, -1, 20] {
        let error = FrameEncoder::new(EncodeSettings { level, tile: 64 }).unwrap_err();
        assert_eq!(error, EncodeError::Level(level));
    }
}
