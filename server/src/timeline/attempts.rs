//! Attempts at an origin as spans: their phases, and what the kernel says of each.
//!
//! A phase is a span. A body is cut further: where nothing came for a while, the silence is a span
//! of its own, with what the socket said when it ended. A loss on the way here shows as segments out
//! of order behind a silence of at least two round trips (a downloader's kernel does not see what
//! the sender sends again); bytes that lay in the socket before they were taken were this side's to
//! take. Pure: records in, spans out.

use std::time::Duration;

use forebay_origin::{
    AttemptOutcome, AttemptRecord, JournalEntry, OriginErrorKind, Silence, TcpDelta,
};
use tokio::time::Instant;

use super::{Clue, Event, Kind, Moment, Span, Stage};

/// Round trips that a silence lasts at least when a loss is to blame for it: sooner nothing is sent
/// again.
const LOSS_ROUND_TRIPS: u32 = 2;

/// Linux's shortest: `TCP_RTO_MIN`.
const RETRANSMIT_TIMEOUT_MIN: Duration = Duration::from_millis(200);

/// The kernel's clock for what came last, at its coarsest.
const STAMP_TICK: Duration = Duration::from_millis(10);

/// The phases of every attempt of a call, one after the other, from when it was offered until it
/// ended; what lies between two attempts is backoff.
pub(crate) fn attempt_spans(log: &[AttemptRecord], offered: Instant, ended: Instant) -> Vec<Span> {
    let mut spans = Vec::new();
    let (mut at, mut before) = (offered, Clue::None);
    for (n, attempt) in log.iter().enumerate() {
        if attempt.started > at {
            // Before the first attempt the part waits for leave of the endpoint.
            let stage = if n == 0 { Stage::ConnAcquire } else { Stage::Backoff };
            let clue = if n == 0 && attempt.rated { Clue::Rated } else { before };
            spans.push(Span::new(stage, Kind::Queue, at, attempt.started).with(clue));
        }
        at = phases(attempt, at.max(attempt.started), &mut spans);
        before = ending(attempt.outcome);
    }
    // The last attempt's body ends when the read returned: rounding between the two clocks' reads
    // belongs to it.
    if let Some(last) = spans.last_mut() {
        last.end = Moment::from(ended).max(last.start);
    }
    spans
}

/// What several calls at a time leave of the time from `start` to `end`: backwards from the end, the
/// call that ended last, then what ended before that one began, and so on. The rest is `idle`.
pub(crate) fn call_spans(
    entries: &[JournalEntry],
    (start, end): (Moment, Moment),
    idle: Stage,
) -> Vec<Span> {
    let mut calls: std::collections::BTreeMap<u64, Vec<&JournalEntry>> = Default::default();
    for entry in entries {
        calls.entry(entry.call).or_default().push(entry);
    }
    let mut calls: Vec<(Instant, Vec<Span>)> = calls.values().map(|call| spans_of(call)).collect();
    calls.sort_by_key(|(ended, _)| *ended);
    let (mut at, mut spans) = (end, Vec::new());
    for (_, call) in calls.iter().rev() {
        for span in call.iter().rev().filter(|span| span.start < span.end) {
            let (from, to) = (span.start.max(start), span.end.min(at));
            if from >= to {
                continue;
            }
            if to < at {
                spans.push(Span::new(idle, Kind::Service, to, at));
            }
            spans.push(Span { start: from, end: to, ..*span });
            at = from;
        }
    }
    if start < at {
        spans.push(Span::new(idle, Kind::Service, start, at));
    }
    spans.reverse();
    spans
}

/// What was decided about attempts: whether one was made again, or copied, and why.
pub(crate) fn attempt_events(entries: &[JournalEntry]) -> Vec<Event> {
    let mut events = Vec::new();
    // By call: how many attempts it has made, and how the last one failed.
    let mut calls: std::collections::BTreeMap<u64, (usize, OriginErrorKind)> = Default::default();
    let sent = entries.iter().filter(|entry| entry.attempt.outcome != AttemptOutcome::Unsent);
    for JournalEntry { call, attempt, ended, not_again, .. } in sent {
        let before = calls.get(call).copied();
        let number = before.map_or(1, |(made, _)| made + 1);
        let mut event = |at, name, detail| events.push(Event { at, name, detail });
        if let Some((_, kind)) = before {
            let detail = format!("attempt {number}, since the one before was {}", said(kind));
            event(attempt.started, "retry", detail);
        }
        if let Some(at) = attempt.copied {
            let faster = attempt.outcome == AttemptOutcome::Overtaken;
            let end = if faster { "was" } else { "was not" };
            event(at, "hedge", format!("a second copy of attempt {number}, which {end} faster"));
        }
        if let Some(why) = attempt.not_copied {
            event(*ended, "no_hedge", format!("no second copy of attempt {number}: {why}"));
        }
        let AttemptOutcome::Failed(kind) = attempt.outcome else { continue };
        // An answer like any other, to who looks whether there is something.
        if kind == OriginErrorKind::NotFound {
            continue;
        }
        let throttled = kind == OriginErrorKind::Throttled;
        let name = if throttled { "throttle" } else { "attempt_failed" };
        event(*ended, name, format!("attempt {number} was {}", said(kind)));
        if let Some(why) = not_again {
            event(*ended, "no_retry", format!("attempt {number} was the last: {why}"));
        }
        calls.insert(*call, (number, kind));
    }
    events
}

/// A kind of failure, as the end of a sentence.
fn said(kind: OriginErrorKind) -> String {
    match kind {
        OriginErrorKind::Throttled => "throttled".to_owned(),
        other => format!("a failure ({})", other.as_str()),
    }
}

/// The spans of one call, and when it ended.
fn spans_of(call: &[&JournalEntry]) -> (Instant, Vec<Span>) {
    let log: Vec<AttemptRecord> = call.iter().map(|entry| entry.attempt.clone()).collect();
    let ended = call.iter().map(|entry| entry.ended).max();
    let Some((first, ended)) = call.first().zip(ended) else { return (Instant::now(), Vec::new()) };
    (ended, attempt_spans(&log, first.wanted, ended))
}

/// How an attempt's end explains its time, and that of the wait after it.
fn ending(outcome: AttemptOutcome) -> Clue {
    match outcome {
        AttemptOutcome::Failed(OriginErrorKind::Throttled | OriginErrorKind::BreakerOpen) => {
            Clue::Throttled
        }
        AttemptOutcome::Failed(_) => Clue::Failed,
        AttemptOutcome::Done
        | AttemptOutcome::Overtaken
        | AttemptOutcome::GivenUp
        | AttemptOutcome::Unsent => Clue::None,
    }
}

/// Adds the phases of one attempt, from `at` on; when it ended.
fn phases(attempt: &AttemptRecord, mut at: Instant, spans: &mut Vec<Span>) -> Instant {
    let throttled = Some(ending(attempt.outcome)).filter(|clue| *clue == Clue::Throttled);
    let connecting =
        [(Stage::Dns, attempt.dns), (Stage::Connect, attempt.connect), (Stage::Tls, attempt.tls)];
    for (stage, length) in connecting.into_iter().filter_map(|(stage, time)| Some((stage, time?))) {
        spans.push(Span::new(stage, Kind::Service, at, at + length));
        at += length;
    }
    if let Some(length) = attempt.first_byte {
        let clue = throttled.unwrap_or_else(|| first_byte(attempt.head_tcp.as_ref(), length));
        spans.push(Span::new(Stage::Ttfb, Kind::Service, at, at + length).with(clue));
        at += length;
    }
    body(attempt, at, throttled, spans);
    at + attempt.body
}

/// Why the first byte took so long.
fn first_byte(tcp: Option<&TcpDelta>, length: Duration) -> Clue {
    let Some(tcp) = tcp else { return Clue::None };
    let lost = tcp.out_of_order + tcp.retransmits;
    if lost > 0 && length >= tcp.rtt.max(tcp.receive_rtt) * LOSS_ROUND_TRIPS {
        return Clue::Lost(u32::try_from(lost).unwrap_or(u32::MAX));
    }
    Clue::None
}

fn body(attempt: &AttemptRecord, start: Instant, throttled: Option<Clue>, spans: &mut Vec<Span>) {
    let end = start + attempt.body;
    let pace = throttled.unwrap_or_else(|| pace(attempt));
    let mut at = start;
    let mut lost_before = 0;
    let mut add = |from: Instant, to: Instant, clue: Clue| {
        if from < to {
            spans.push(Span::new(Stage::Body, Kind::Service, from, to).with(clue));
        }
    };
    for silence in &attempt.silences {
        let (from, to) = (silence.start.max(at), (silence.start + silence.length).min(end));
        if from >= to {
            continue;
        }
        add(at, from, pace);
        let taken = to.checked_sub(late(silence)).unwrap_or(from).max(from);
        let clue = match lost_in(silence, lost_before) {
            0 => Clue::Silent,
            lost => Clue::Lost(u32::try_from(lost).unwrap_or(u32::MAX)),
        };
        lost_before = lost_before.max(silence.out_of_order);
        add(from, taken, throttled.unwrap_or(clue));
        add(taken, to, Clue::Unread);
        at = to;
    }
    // A body that took no time is one still: what follows it begins there.
    if at < end || at == start {
        spans.push(Span::new(Stage::Body, Kind::Service, at, end).with(pace));
    }
}

/// Segments to blame for a silence, of which so many were lost before it in the same body. A segment
/// that is sent again can be lost again, and then nothing comes out of order: it is only sent once
/// more when the sender's timer ends, which takes this long at least.
fn lost_in(silence: &Silence, lost_before: u64) -> u64 {
    match silence.out_of_order {
        0 if silence.length >= RETRANSMIT_TIMEOUT_MIN => lost_before,
        lost if silence.length >= silence.receive_rtt * LOSS_ROUND_TRIPS => lost,
        _ => 0,
    }
}

/// How long the bytes that ended a silence lay in the socket. It was empty when the silence began;
/// a stamp as old as that, while segments were lost, is not of what ended it: the kernel does not
/// stamp every repair.
fn late(silence: &Silence) -> Duration {
    let is_old = silence.late + STAMP_TICK >= silence.length;
    if silence.out_of_order > 0 && is_old { Duration::ZERO } else { silence.late }
}

/// What set the pace of a body beside its silences.
fn pace(attempt: &AttemptRecord) -> Clue {
    if attempt.cold_bytes > 0 {
        return Clue::Cold(u32::try_from(attempt.cold_bytes.div_ceil(1024)).unwrap_or(u32::MAX));
    }
    // What was waited for in a body that was cut off is not known.
    if attempt.outcome != AttemptOutcome::Done || attempt.waited * 10 > attempt.body * 9 {
        return Clue::None;
    }
    let silent: Duration = attempt.silences.iter().map(|silence| silence.length).sum();
    let moving = attempt.body.saturating_sub(silent);
    let waited = attempt.waited.saturating_sub(silent);
    if waited * 2 < moving { Clue::Busy } else { Clue::None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// An attempt that waited for all of its body's bytes.
    fn attempt(started: Instant, first_byte: u64, body: u64) -> AttemptRecord {
        AttemptRecord {
            started,
            rated: false,
            dns: None,
            connect: None,
            tls: None,
            first_byte: Some(ms(first_byte)),
            body: ms(body),
            bytes: 0,
            address: None,
            tcp: None,
            head_tcp: None,
            waited: ms(body),
            silences: Vec::new(),
            cold_bytes: 0,
            copied: None,
            not_copied: None,
            outcome: AttemptOutcome::Done,
        }
    }

    fn seen(zero: Instant, spans: &[Span]) -> Vec<(Stage, u128, u128, Clue)> {
        let at = |at: Moment| (at - Moment::from(zero)).as_millis();
        spans.iter().map(|s| (s.stage, at(s.start), at(s.end), s.clue)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_become_spans_without_a_gap() {
        let start = Instant::now();
        let mut first = attempt(start + ms(10), 20, 30);
        first.connect = Some(ms(5));
        first.outcome = AttemptOutcome::Failed(OriginErrorKind::Throttled);
        let log = [first, attempt(start + ms(85), 10, 20)];
        assert_eq!(
            seen(start, &attempt_spans(&log, start, start + ms(116))),
            [
                (Stage::ConnAcquire, 0, 10, Clue::None),
                (Stage::Connect, 10, 15, Clue::None),
                (Stage::Ttfb, 15, 35, Clue::Throttled),
                (Stage::Body, 35, 65, Clue::Throttled),
                (Stage::Backoff, 65, 85, Clue::Throttled),
                (Stage::Ttfb, 85, 95, Clue::None),
                (Stage::Body, 95, 116, Clue::None),
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_cut_where_nothing_came() {
        let start = Instant::now();
        let mut one = attempt(start, 10, 190);
        let silence = |from: u64, length: u64, late: u64, out_of_order: u64| Silence {
            start: start + ms(from),
            length: ms(length),
            late: ms(late),
            out_of_order,
            receive_rtt: ms(10),
        };
        // A pause of the origin; a loss; one too short to be a loss; bytes that this side left.
        one.silences = vec![
            silence(20, 30, 0, 0),
            silence(60, 40, 0, 3),
            silence(110, 15, 0, 2),
            silence(130, 50, 50, 0),
        ];
        one.waited = ms(135);
        assert_eq!(
            seen(start, &attempt_spans(&[one], start, start + ms(200))),
            [
                (Stage::Ttfb, 0, 10, Clue::None),
                (Stage::Body, 10, 20, Clue::Busy),
                (Stage::Body, 20, 50, Clue::Silent),
                (Stage::Body, 50, 60, Clue::Busy),
                (Stage::Body, 60, 100, Clue::Lost(3)),
                (Stage::Body, 100, 110, Clue::Busy),
                (Stage::Body, 110, 125, Clue::Silent),
                (Stage::Body, 125, 130, Clue::Busy),
                (Stage::Body, 130, 180, Clue::Unread),
                (Stage::Body, 180, 200, Clue::Busy),
            ]
        );
    }

    fn silence(start: Instant, length: u64, late: u64, out_of_order: u64) -> Silence {
        let (length, late) = (ms(length), ms(late));
        Silence { start, length, late, out_of_order, receive_rtt: ms(10) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_of_the_sender_behind_a_loss_belongs_to_it() {
        let start = Instant::now();
        let clues = |silences: [(u64, u64, u64, u64); 2]| {
            let mut one = attempt(start, 0, 1000);
            one.silences = silences
                .map(|(at, length, late, lost)| silence(start + ms(at), length, late, lost))
                .to_vec();
            let spans = attempt_spans(&[one], start, start + ms(1000));
            let of_silences = spans.into_iter().filter(|span| span.clue != Clue::None);
            of_silences.map(|span| (span.length().as_millis(), span.clue)).collect::<Vec<_>>()
        };
        let both = [(210, Clue::Lost(2)), (205, Clue::Lost(2))];
        assert_eq!(clues([(0, 210, 0, 2), (300, 205, 0, 0)]), both);
        // Sooner than the timer, and with no loss before.
        let first = [(210, Clue::Lost(2)), (150, Clue::Silent)];
        assert_eq!(clues([(0, 210, 0, 2), (300, 150, 0, 0)]), first);
        let none = [(210, Clue::Silent), (205, Clue::Silent)];
        assert_eq!(clues([(0, 210, 0, 0), (300, 205, 0, 0)]), none);
        // A stamp as old as the silence says nothing, if segments were lost.
        let stamped = [(210, Clue::Lost(2)), (205, Clue::Unread)];
        assert_eq!(clues([(0, 210, 206, 2), (300, 205, 205, 0)]), stamped);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_was_cut_off_or_waited_most_of_its_time_was_not_this_side_s_to_take() {
        let start = Instant::now();
        let clue = |outcome, waited: u64| {
            let mut one = attempt(start, 0, 100);
            (one.outcome, one.waited) = (outcome, ms(waited));
            // All of it but one millisecond.
            one.silences = vec![silence(start, waited.max(1) - 1, 0, 0)];
            attempt_spans(&[one], start, start + ms(100)).last().unwrap().clue
        };
        assert_eq!(clue(AttemptOutcome::Done, 20), Clue::Busy);
        assert_eq!(clue(AttemptOutcome::Overtaken, 20), Clue::None);
        assert_eq!(clue(AttemptOutcome::Done, 95), Clue::None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_for_the_configured_rate_says_so() {
        let start = Instant::now();
        let one = AttemptRecord { rated: true, ..attempt(start + ms(30), 5, 5) };
        let spans = attempt_spans(&[one], start, start + ms(40));
        assert_eq!(seen(start, &spans)[0], (Stage::ConnAcquire, 0, 30, Clue::Rated));
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_byte_after_lost_segments_is_the_path_s() {
        let start = Instant::now();
        let mut one = attempt(start, 300, 10);
        let tcp = TcpDelta { rtt: ms(20), retransmits: 1, ..TcpDelta::default() };
        one.head_tcp = Some(tcp);
        let spans = attempt_spans(&[one.clone()], start, start + ms(310));
        assert_eq!(spans[0].clue, Clue::Lost(1));
        one.head_tcp = Some(TcpDelta { rtt: ms(200), ..tcp });
        let spans = attempt_spans(&[one], start, start + ms(310));
        assert_eq!(spans[0].clue, Clue::None, "sooner than it could be sent again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_decided_is_told_by_call() {
        let start = Instant::now();
        let entry = |call: u64, at: u64, outcome| {
            let attempt = AttemptRecord { outcome, ..attempt(start + ms(at), 5, 5) };
            let ended = start + ms(at + 10);
            JournalEntry { call, wanted: start, attempt, ended, not_again: None }
        };
        let mut copied = entry(1, 60, AttemptOutcome::Overtaken);
        copied.attempt.copied = Some(start + ms(65));
        let mut last = entry(4, 70, AttemptOutcome::Failed(OriginErrorKind::Timeout));
        (last.not_again, last.attempt.not_copied) = (Some("deadline"), Some("budget"));
        // One that was never sent is no attempt.
        let unsent = entry(4, 90, AttemptOutcome::Unsent);
        let failed = |kind| AttemptOutcome::Failed(kind);
        let entries = [
            entry(1, 0, failed(OriginErrorKind::Throttled)),
            entry(2, 5, AttemptOutcome::Done),
            entry(3, 7, failed(OriginErrorKind::NotFound)),
            entry(1, 30, failed(OriginErrorKind::Truncated)),
            copied,
            last,
            unsent,
        ];
        let seen: Vec<_> = attempt_events(&entries)
            .into_iter()
            .map(|event| ((event.at - start).as_millis(), event.name, event.detail))
            .collect();
        let expected = [
            (10, "throttle", "attempt 1 was throttled"),
            (30, "retry", "attempt 2, since the one before was throttled"),
            (40, "attempt_failed", "attempt 2 was a failure (truncated)"),
            (60, "retry", "attempt 3, since the one before was a failure (truncated)"),
            (65, "hedge", "a second copy of attempt 3, which was faster"),
            (80, "no_hedge", "no second copy of attempt 1: budget"),
            (80, "attempt_failed", "attempt 1 was a failure (timeout)"),
            (80, "no_retry", "attempt 1 was the last: deadline"),
        ];
        assert_eq!(seen, expected.map(|(at, name, detail)| (at, name, detail.to_owned())));
    }

    #[tokio::test(start_paused = true)]
    async fn calls_side_by_side_leave_one_chain() {
        let start = Instant::now();
        let entry = |call: u64, wanted: u64, first_byte: u64, body: u64| JournalEntry {
            call,
            wanted: start + ms(wanted),
            attempt: attempt(start + ms(wanted), first_byte, body),
            ended: start + ms(wanted + first_byte + body),
            not_again: None,
        };
        // One by itself; then two at once, the second of which ends last.
        let entries = [entry(1, 0, 20, 10), entry(2, 40, 10, 5), entry(3, 40, 30, 10)];
        let spans = call_spans(&entries, (start.into(), (start + ms(90)).into()), Stage::Resolve);
        assert_eq!(
            seen(start, &spans),
            [
                (Stage::Ttfb, 0, 20, Clue::None),
                (Stage::Body, 20, 30, Clue::None),
                (Stage::Resolve, 30, 40, Clue::None),
                (Stage::Ttfb, 40, 70, Clue::None),
                (Stage::Body, 70, 80, Clue::None),
                (Stage::Resolve, 80, 90, Clue::None),
            ]
        );
        assert!(attempt_events(&entries).is_empty());
        assert_eq!(
            call_spans(&[], (start.into(), (start + ms(9)).into()), Stage::Resolve).len(),
            1
        );
    }
}
