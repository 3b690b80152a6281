//! Tests of turns at decoders.

use forebay_codec::encode::{EncodeSettings, FrameEncoder};
use forebay_testkit::Prng;
use futures::FutureExt;

use super::*;
use crate::staging::Staging;

const KEY: StreamKey = [7; 32];
const MIB: usize = 1 << 20;

fn streams() -> Streams {
    Streams::new(NodeWorkers::for_tests())
}

async fn sticks_unless(goes_on: bool, stuck: &Notify) {
    if !goes_on {
        stuck.notify_one();
        std::future::pending::<()>().await;
    }
}

fn part(stored: &[u8], range: Range<u64>) -> Vec<u8> {
    let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).unwrap());
    stored[start..end].to_vec()
}

fn decoder_at(place: u64) -> Option<Decoder> {
    let mut decoder = Decoder::new().unwrap();
    decoder.plain_at = place;
    Some(decoder)
}

fn frame(plain: &[u8]) -> Vec<u8> {
    let mut stored = Vec::new();
    let mut encoder = FrameEncoder::new(EncodeSettings::default()).unwrap();
    encoder.encode(plain, 0, &[], &mut stored).unwrap();
    stored
}

#[tokio::test]
async fn a_chunk_behind_all_decoders_has_its_turn_after_some_of_others() {
    let streams = streams();
    let mut turn = streams.turn(KEY, 100..110).await;
    // The second one is never given back.
    let _second = streams.turn(KEY, 50..60).await;
    let behind = streams.turn(KEY, 0..10);
    tokio::pin!(behind);
    assert!(behind.as_mut().now_or_never().is_none());
    let (mut at, mut turns) = (110, 0);
    let behind = loop {
        let next = streams.turn(KEY, at..at + 10);
        tokio::pin!(next);
        assert!(next.as_mut().now_or_never().is_none(), "its decoder is lent");
        turn.decoder = decoder_at(at);
        drop(turn);
        if let Some(behind) = behind.as_mut().now_or_never() {
            assert!(next.as_mut().now_or_never().is_none());
            break behind;
        }
        turn = next.await;
        (at, turns) = (at + 10, turns + 1);
        assert!(turns <= TURNS_AHEAD_MAX, "it starves");
    };
    assert!(behind.decoder.is_none(), "it begins anew");
    assert_eq!(turns, TURNS_AHEAD_MAX);
}

#[tokio::test]
async fn a_chunk_behind_gets_a_decoder_of_its_own_at_once() {
    let streams = streams();
    let ahead = streams.turn(KEY, 100..110).await;
    let behind = streams.turn(KEY, 0..10).now_or_never().expect("a second decoder");
    assert!(streams.turn(KEY, 10..20).now_or_never().is_none(), "it follows the second one");
    assert!(streams.turn(KEY, 110..120).now_or_never().is_none(), "it follows the first one");
    drop((ahead, behind));
}

#[tokio::test]
async fn objects_that_nobody_wants_are_forgotten() {
    let streams = streams();
    for n in 0..20 {
        let mut turn = streams.turn([n; 32], 0..10).await;
        turn.decoder = decoder_at(10);
        drop(turn);
        assert!(streams.lock().by_object.len() <= IDLE_MAX);
    }
    // One that came to its end gives no decoder back.
    let mut turn = streams.turn([19; 32], 10..20).await;
    assert!(turn.decoder.take().is_some());
    drop(turn);
    assert!(!streams.lock().by_object.contains_key(&[19; 32]));
}

#[test]
fn a_worker_decodes_so_much_at_a_time() {
    let begin = 40 * MIB as u64;
    let mut decoder = Decoder::new().unwrap();
    decoder.rest = frame(&vec![0; 41 * MIB]);
    let (mut out, mut jobs, mut before) = (vec![1; MIB], 0, 0);
    let mut done = Advanced { filled: 0, paused: true };
    while done.paused {
        done = decoder.advance(begin, &mut out, done.filled).unwrap();
        assert!(decoder.plain_at - before <= (JOB_BYTES + MIB) as u64);
        (before, jobs) = (decoder.plain_at, jobs + 1);
    }
    assert_eq!((done.filled, jobs), (MIB, 3));
    assert!(out.iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn what_was_decoded_is_not_lost_with_a_piece_that_is_given_up() {
    let mut plain = vec![0; 7 * MIB];
    Prng::new(5).fill(&mut plain);
    let stored = frame(&plain);
    let streams = streams();
    let staging = Staging::new(64 << 20).share(32 << 20).await.unwrap();
    let piece = |range: Range<usize>| Piece {
        key: KEY,
        range: range.start as u64..range.end as u64,
        plain_bytes: plain.len() as u64,
        stored_bytes: stored.len() as u64,
        staging: &staging,
    };
    let first_reads = READ_BYTES * READS_AT_ONCE;
    let stuck = Notify::new();
    let read = |range: Range<u64>| {
        let (stuck, stored) = (&stuck, &stored);
        let goes_on = range.start < first_reads;
        let reading = async move {
            sticks_unless(goes_on, stuck).await;
            Ok::<_, ()>(part(stored, range))
        };
        reading.boxed()
    };
    tokio::select! {
        done = streams.piece(piece(0..6 * MIB), &read) => panic!("{done:?}"),
        () = stuck.notified() => {}
    }
    let place = streams.lock().by_object[&KEY].idle[0].plain_at;
    assert!(place > 2 * MIB as u64, "{place}");
    let read = |range: Range<u64>| {
        assert!(range.start >= first_reads, "it goes on where it was");
        let bytes = part(&stored, range);
        async move { Ok::<_, ()>(bytes) }.boxed()
    };
    let (end, _) = streams.piece(piece(6 * MIB..7 * MIB), &read).await.unwrap();
    assert!(end.as_slice() == &plain[6 * MIB..]);
    assert!(streams.lock().by_object.is_empty(), "it came to its end");
}
