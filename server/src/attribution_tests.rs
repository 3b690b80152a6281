//! What each rule charges, and that the sums come out.

use super::*;
use crate::timeline::Timeline;

const ALL: Duration = Duration::from_millis(100);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A load of spans in milliseconds; each list is a chunk.
struct Scene {
    zero: Moment,
    timeline: Timeline,
}

type Piece = (Stage, Kind, u64, u64, Clue);

impl Scene {
    fn new(load: &[Piece], chunks: &[&[Piece]]) -> Self {
        let zero = Instant::now();
        let scene = Self { zero: zero.into(), timeline: Timeline::new(zero) };
        load.iter().for_each(|piece| scene.timeline.load_span(scene.span(piece)));
        for (index, chunk) in chunks.iter().enumerate() {
            scene.timeline.chunk_spans(index, chunk.iter().map(|piece| scene.span(piece)));
        }
        scene
    }

    fn at(&self, millis: u64) -> Moment {
        self.zero + ms(millis)
    }

    fn span(&self, &(stage, kind, start, end, clue): &Piece) -> Span {
        Span::new(stage, kind, self.at(start), self.at(end)).with(clue)
    }

    fn charged(&self, gaps: &[(u64, u64)], host: &dyn HostTroubles) -> Attribution {
        let gaps: Vec<_> = gaps.iter().map(|(from, to)| (self.at(*from), self.at(*to))).collect();
        let done = self.timeline.read(|paths| {
            let from = gaps.first().map_or(self.zero, |(from, _)| *from);
            let to = gaps.last().map_or(self.zero, |(_, to)| *to);
            attribute(&gaps, paths, (&paths.walk(from, to), (from, to)), host)
        });
        let idle: Duration = gaps.iter().map(|(from, to)| *to - *from).sum();
        assert_eq!(done.idle, idle, "every moment is charged once: {done:?}");
        let charges: Duration = done.charges.iter().map(Charge::length).sum();
        assert_eq!(charges, idle);
        assert!(done.charges.windows(2).all(|pair| pair[0].to <= pair[1].from), "{done:?}");
        done
    }

    fn sums(&self, gaps: &[(u64, u64)], host: &dyn HostTroubles) -> Vec<(Cause, u128)> {
        let done = self.charged(gaps, host);
        done.sums().map(|(cause, time)| (cause, time.as_millis())).collect()
    }
}

/// A chunk that was fetched in one phase, is readable at 90 and copied from 100 on.
fn fetched_so(stage: Stage, kind: Kind, clue: Clue) -> Scene {
    Scene::new(
        &[],
        &[&[
            (stage, kind, 0, 90, clue),
            (Stage::Publish, Kind::Service, 90, 90, Clue::None),
            (Stage::ClientAck, Kind::Service, 90, 200, Clue::None),
        ]],
    )
}

/// The same troubles all the time.
#[derive(Debug, Clone, Copy)]
struct Always(Troubles);

impl HostTroubles for Always {
    fn between(&self, _from: Instant, _to: Instant) -> Option<Troubles> {
        Some(self.0)
    }
}

fn quiet() -> Always {
    Always(Troubles {
        over: ALL,
        same_within: None,
        throttled: Some(ms(0)),
        run_queue: Some((ms(1), ms(50))),
    })
}

#[test]
fn each_stage_with_its_clue_has_its_cause() {
    use Kind::{Queue, Service};
    for (stage, kind, clue, cause) in [
        (Stage::Admission, Queue, Clue::None, Cause::AdmissionQueue),
        (Stage::Dns, Service, Clue::None, Cause::Dns),
        (Stage::Connect, Service, Clue::None, Cause::TcpConnect),
        (Stage::Tls, Service, Clue::None, Cause::TcpConnect),
        (Stage::LeaseAlloc, Queue, Clue::None, Cause::LeaseMemory),
        (Stage::LeaseAlloc, Service, Clue::None, Cause::LeaseMemory),
        (Stage::NvmeRead, Queue, Clue::None, Cause::NvmeQueue),
        (Stage::NvmeRead, Service, Clue::None, Cause::NvmeService),
        (Stage::Decompress, Queue, Clue::None, Cause::DecompressQueue),
        (Stage::Decompress, Service, Clue::None, Cause::DecompressCpu),
        (Stage::VerifyPart, Service, Clue::None, Cause::Verify),
        (Stage::VerifyObject, Queue, Clue::None, Cause::Verify),
        (Stage::Ttfb, Service, Clue::None, Cause::OriginSlow),
        (Stage::Ttfb, Service, Clue::Lost(2), Cause::TcpRetransmit),
        (Stage::Ttfb, Service, Clue::Throttled, Cause::OriginThrottle),
        (Stage::Body, Service, Clue::None, Cause::OriginSlow),
        (Stage::Body, Service, Clue::Silent, Cause::OriginSlow),
        (Stage::Body, Service, Clue::Lost(1), Cause::TcpRetransmit),
        (Stage::Body, Service, Clue::Cold(9), Cause::PageCache),
        (Stage::Body, Service, Clue::Busy, Cause::Unknown),
        (Stage::Backoff, Queue, Clue::Throttled, Cause::OriginThrottle),
        (Stage::Backoff, Queue, Clue::Failed, Cause::OriginSlow),
        (Stage::ConnAcquire, Queue, Clue::None, Cause::OriginSlow),
        (Stage::ConnAcquire, Queue, Clue::Rated, Cause::OriginThrottle),
        (Stage::Plan, Service, Clue::None, Cause::Unknown),
    ] {
        let scene = fetched_so(stage, kind, clue);
        let sums = scene.sums(&[(0, 100)], &quiet());
        assert_eq!(sums, [(cause, 90), (Cause::Client, 10)], "{stage:?} {kind:?} {clue:?}");
    }
}

#[test]
fn every_cause_can_be_charged_and_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<_> = Cause::ALL.iter().map(|c| c.as_str()).collect();
    assert_eq!(names.len(), Cause::ALL.len());
}

#[test]
fn a_gap_is_the_matter_of_the_chunk_that_ended_it() {
    // The first chunk is copied from 20 to 40 while the second waits for its decoder, to 60. The
    // third, slow to come, decides the end of the load and nothing about this gap.
    let chunk = |from: u64, to: u64, stage: Stage| -> Vec<Piece> {
        vec![
            (stage, Kind::Service, from, to, Clue::None),
            (Stage::Publish, Kind::Service, to, to, Clue::None),
            (Stage::ClientAck, Kind::Service, to, to + 20, Clue::None),
        ]
    };
    let chunks =
        [chunk(0, 20, Stage::Body), chunk(10, 60, Stage::Decompress), chunk(10, 90, Stage::Ttfb)];
    let chunks: Vec<&[Piece]> = chunks.iter().map(Vec::as_slice).collect();
    let scene = Scene::new(&[], &chunks);
    let sums = scene.sums(&[(0, 20), (40, 60), (80, 90)], &quiet());
    let slow = (Cause::OriginSlow, 30);
    assert_eq!(sums, [slow, (Cause::DecompressCpu, 20)]);
}

#[test]
fn a_client_that_has_something_to_copy_waits_for_itself() {
    let scene = Scene::new(
        &[],
        &[&[
            (Stage::Body, Kind::Service, 0, 10, Clue::None),
            (Stage::Publish, Kind::Service, 10, 10, Clue::None),
            (Stage::ClientAck, Kind::Service, 10, 200, Clue::None),
        ]],
    );
    // Nothing became readable in the second gap, and it holds a chunk.
    assert_eq!(scene.sums(&[(0, 10), (20, 80)], &quiet())[0], (Cause::Client, 60));
}

#[test]
fn what_lies_before_the_first_chunk_is_the_load_s_own() {
    let scene = Scene::new(
        &[
            (Stage::Admission, Kind::Queue, 0, 30, Clue::None),
            (Stage::Dns, Kind::Service, 30, 50, Clue::None),
            (Stage::Ttfb, Kind::Service, 50, 60, Clue::None),
        ],
        &[&[
            (Stage::Body, Kind::Service, 65, 90, Clue::None),
            (Stage::Publish, Kind::Service, 90, 90, Clue::None),
        ]],
    );
    let sums = scene.sums(&[(0, 90)], &quiet());
    let expected = [
        (Cause::OriginSlow, 35),
        (Cause::AdmissionQueue, 30),
        (Cause::Dns, 20),
        (Cause::Unknown, 5),
    ];
    assert_eq!(sums, expected);
    // A load that has no chunk yet has the same beginning.
    let sums = scene.sums(&[(0, 40)], &quiet());
    assert_eq!(sums, [(Cause::AdmissionQueue, 30), (Cause::Dns, 10)]);
}

#[test]
fn our_own_restraint_after_a_throttle_is_the_origin_s_doing() {
    let chunk = |clue: Clue| -> Vec<Piece> {
        vec![
            (Stage::Backoff, Kind::Queue, 0, 10, clue),
            (Stage::ConnAcquire, Kind::Queue, 10, 60, Clue::None),
            (Stage::Body, Kind::Service, 60, 60, Clue::None),
            (Stage::Publish, Kind::Service, 60, 60, Clue::None),
        ]
    };
    let of = |clue| Scene::new(&[], &[&chunk(clue)]).sums(&[(0, 60)], &quiet());
    assert_eq!(of(Clue::Throttled), [(Cause::OriginThrottle, 60)]);
    assert_eq!(of(Clue::Failed), [(Cause::OriginSlow, 60)]);
}

#[test]
fn a_quota_takes_everything_and_a_full_run_queue_what_is_ours() {
    let throttled = Troubles { throttled: Some(ms(30)), ..quiet().0 };
    let starved = Troubles { run_queue: Some((ms(40), ms(60))), ..quiet().0 };
    let little =
        Troubles { throttled: Some(ms(19)), run_queue: Some((ms(19), ms(81))), ..quiet().0 };
    for (stage, clue, troubles, cause) in [
        (Stage::Decompress, Clue::None, throttled, Cause::CpuThrottle),
        (Stage::Ttfb, Clue::None, throttled, Cause::CpuThrottle),
        (Stage::Decompress, Clue::None, starved, Cause::CpuThrottle),
        (Stage::Body, Clue::Busy, starved, Cause::CpuThrottle),
        (Stage::Body, Clue::None, starved, Cause::OriginSlow),
        (Stage::Decompress, Clue::None, little, Cause::DecompressCpu),
    ] {
        let scene = fetched_so(stage, Kind::Service, clue);
        let done = scene.charged(&[(0, 90)], &Always(troubles));
        assert_eq!(done.causes[0].cause, cause, "{stage:?} {troubles:?}");
        assert_eq!(done.causes.len(), 1);
        if cause == Cause::CpuThrottle {
            let throttled = troubles.throttled.unwrap().mul_f64(0.9);
            assert_eq!(done.causes[0].throttled, throttled, "90 of the 100 ms between the looks");
        }
    }
}

#[test]
fn who_waits_for_a_decoder_does_not_want_the_cpu() {
    let starved = Troubles { run_queue: Some((ms(40), ms(60))), ..quiet().0 };
    let scene = fetched_so(Stage::Decompress, Kind::Queue, Clue::None);
    assert_eq!(scene.sums(&[(0, 90)], &Always(starved)), [(Cause::DecompressQueue, 90)]);
}

#[test]
fn where_nothing_is_at_work_the_cpu_is_asked_for() {
    // Nothing is known of the time from 0 to 60.
    let scene = Scene::new(
        &[],
        &[&[
            (Stage::Ttfb, Kind::Service, 60, 90, Clue::None),
            (Stage::Publish, Kind::Service, 90, 90, Clue::None),
        ]],
    );
    let starved = Troubles { run_queue: Some((ms(40), ms(60))), ..quiet().0 };
    let slow = (Cause::OriginSlow, 30);
    let sums = scene.sums(&[(0, 90)], &Always(starved));
    assert_eq!(sums, [(Cause::CpuThrottle, 60), slow]);
    assert_eq!(scene.sums(&[(0, 90)], &quiet()), [(Cause::Unknown, 60), slow]);
}

/// Two chunks that come one after the other, and are handed over while the next one comes.
fn in_turn(hand_over: u64) -> Scene {
    let chunk = |from: u64| -> Vec<Piece> {
        let to = from + 40;
        vec![
            (Stage::ConnAcquire, Kind::Queue, 0, from, Clue::None),
            (Stage::Body, Kind::Service, from, to, Clue::None),
            (Stage::Publish, Kind::Service, to, to + 1, Clue::None),
            (Stage::ClientAck, Kind::Service, to + 1, to + 1 + hand_over, Clue::None),
        ]
    };
    Scene::new(&[], &[&chunk(0), &chunk(40)])
}

#[test]
fn a_hand_over_while_the_next_bytes_come_is_not_what_is_waited_for() {
    // Copies from 44 to 46, and from 84 on. Without the 4 ms after the first one's last byte it
    // would have been copied sooner, and the second one not.
    let sums = in_turn(3).sums(&[(0, 44), (46, 84)], &quiet());
    assert_eq!(sums, [(Cause::OriginSlow, 78), (Cause::Client, 3), (Cause::Unknown, 1)]);
    // A client that takes its time is no latency.
    let sums = in_turn(20).sums(&[(0, 61), (62, 101)], &quiet());
    assert_eq!(sums[1], (Cause::Client, 40), "{sums:?}");
}

#[test]
fn confidence_says_for_how_much_of_the_time_everything_could_be_looked_at() {
    let scene = fetched_so(Stage::Decompress, Kind::Service, Clue::None);
    let close = |got: f64, wanted: f64| assert!((got - wanted).abs() < 1e-9, "{got}");
    close(scene.charged(&[(0, 100)], &quiet()).confidence(), 1.0);
    // It may have been starved; the client's 10 ms need no evidence.
    close(scene.charged(&[(0, 100)], &Unwatched).confidence(), 0.55);
    let scene = fetched_so(Stage::Plan, Kind::Service, Clue::None);
    close(scene.charged(&[(0, 90)], &quiet()).confidence(), 0.0);
    close(scene.charged(&[], &quiet()).confidence(), 1.0);
}

#[test]
fn far_memory_has_what_it_takes_more_than_near_memory() {
    let mut chunks: Vec<Vec<Piece>> = Vec::new();
    for n in 0..6_u64 {
        let (at, clue) = (n * 100, if n < 3 { Clue::None } else { Clue::Far });
        let takes = if n < 3 { 20 } else { 40 };
        chunks.push(vec![
            (Stage::Decompress, Kind::Service, at, at + takes, clue),
            (Stage::Publish, Kind::Service, at + takes, at + takes, Clue::None),
        ]);
    }
    let all: Vec<&[Piece]> = chunks.iter().map(Vec::as_slice).collect();
    let scene = Scene::new(&[], &all);
    let sums = scene.sums(&[(500, 540)], &quiet());
    assert_eq!(sums, [(Cause::DecompressCpu, 20), (Cause::NumaRemote, 20)]);
    // Of one alone nothing can be said.
    let scene = Scene::new(&[], &all[5..]);
    assert_eq!(scene.sums(&[(500, 540)], &quiet()), [(Cause::DecompressCpu, 40)]);
}

#[test]
fn a_load_of_many_chunks_is_charged_in_a_moment_and_keeps_the_longest_charges() {
    let zero = Instant::now();
    let timeline = Timeline::new(zero);
    let mut gaps = Vec::new();
    for n in 0..20_000_usize {
        let at = Moment::from(zero) + Duration::from_micros(100) * u32::try_from(n).unwrap();
        let end = at + Duration::from_micros(50);
        timeline.chunk_spans(
            n,
            [
                Span::new(Stage::Turn, Kind::Queue, zero, at),
                Span::new(Stage::Body, Kind::Service, at, end),
                Span::new(Stage::Publish, Kind::Service, end, end),
            ],
        );
        gaps.push((at, end));
    }
    let nothing = CriticalPath { segments: Vec::new(), unattributed: Duration::ZERO };
    let at = Moment::from(zero);
    // Of other times: it finds its own.
    let done = timeline.read(|paths| attribute(&gaps, paths, (&nothing, (at, at)), &Unwatched));
    assert_eq!(done.gaps, 20_000);
    assert_eq!(done.idle, Duration::from_secs(1));
    assert_eq!(done.charges.len(), 4096);
    assert_eq!(done.causes.len(), 1);
}
