//! Rows of the reliability table that are about one read as a whole: what it may cost, whom its
//! time is charged to, and what is left when it is dropped.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use forebay_origin::{
    AttemptOutcome, ObjectMeta, OriginErrorKind, OriginSettings, OriginStore, Origins,
};
use forebay_testkit::{
    Content, Fault, FaultRule, HttpOptions, HttpOrigin, LinkOptions, S3Options, S3Origin, Seed,
};

use crate::engine::{open, origins as origins_of, settings, site_of};
use crate::{origins, quick, request, uri};

const BYTES: u64 = 128 << 10;
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

fn content() -> Content {
    Content::synthetic(7, BYTES)
}

async fn s3() -> (S3Origin, Origins, Arc<dyn OriginStore>, ObjectMeta) {
    let origin = S3Origin::start(S3Options::default()).await;
    origin.put("bucket", "o", content());
    let mut settings = quick();
    settings.env = origin.env().into_iter().collect();
    settings.engine.hedging = false;
    let origins = origins(settings);
    let uri = uri("s3://bucket/o");
    let store = origins.open(&uri).unwrap();
    let meta = store.head(uri.key()).await.unwrap();
    (origin, origins, store, meta)
}

/// Waits for what another task or thread brings about.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect(what);
}

/// Row 2: a body that drips is cut off when its part's time is up, though never silent for long,
/// and its rest is asked of another address.
#[tokio::test]
async fn a_body_that_drips_is_cut_off_and_its_rest_comes_from_elsewhere() {
    drips(1).await;
    drips(64 << 10).await;
}

async fn drips(bytes_per_second: u64) {
    let site = site_of(2, 2, true).await;
    let mut settings = settings();
    settings.timeouts.part_base = Duration::from_millis(300);
    let limit = settings.timeouts.part(BYTES);
    assert!(limit < Duration::from_millis(400), "1 s + bytes / 4 MB/s, but for the base");
    let origins = origins_of(&site, settings);
    let (store, meta) = open(&site, &origins).await;
    let slow = site.origin(2);
    slow.clear_faults();
    let drip = slow.fault(FaultRule::new("o", Fault::Drip { bytes_per_second }));
    let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
    // Until one of them chooses the slow address.
    let record = loop {
        bytes.fill(0);
        let record = store.read(&request(&meta, 0..BYTES), &mut bytes).await.unwrap();
        assert!(content().matches(0, &bytes));
        if drip.hits() > 0 {
            break record;
        }
    };
    let [cut, rest] = &record.attempt_log[..] else { panic!("{record:?}") };
    assert_eq!(cut.outcome, AttemptOutcome::Failed(OriginErrorKind::Timeout));
    assert!(cut.body > cut.first_byte.unwrap(), "the body was slow: {cut:?}");
    assert_eq!((rest.outcome, cut.bytes + rest.bytes), (AttemptOutcome::Done, BYTES));
    assert!(cut.bytes > 0 && rest.connect.is_some(), "what had come was kept");
    let last = site.origin(1).records().pop().unwrap();
    assert_eq!(last.range, Some(cut.bytes..BYTES));
}

/// Row 2: the clock of a body starts with its head, and not with its request.
#[tokio::test]
async fn a_head_that_comes_late_leaves_the_body_its_time() {
    let site = site_of(1, 1, false).await;
    let mut settings = settings();
    settings.timeouts.part_base = Duration::from_millis(300);
    let late = settings.timeouts.part(BYTES) * 2;
    let origins = origins_of(&site, settings);
    let (store, meta) = open(&site, &origins).await;
    site.origin(1).fault(FaultRule::new("o", Fault::Delay(late)));
    let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
    let record = store.read(&request(&meta, 0..BYTES), &mut bytes).await.unwrap();
    assert!(content().matches(0, &bytes));
    assert_eq!(record.attempts, 1, "{record:?}");
}

/// Row 3: silence before the head is time to the first byte, silence after it is time of the body.
#[tokio::test]
async fn silence_is_charged_to_the_phase_it_falls_into() {
    for fault in [Fault::StallBeforeHeaders, Fault::StallAfter(0), Fault::StallAfter(1000)] {
        let site = site_of(1, 1, false).await;
        let mut settings = settings();
        let limit = Duration::from_millis(300);
        settings.timeouts.first_byte = limit;
        settings.timeouts.body_idle = limit;
        settings.retry.attempts = 1;
        let origins = origins_of(&site, settings);
        let (store, meta) = open(&site, &origins).await;
        site.origin(1).fault(FaultRule::new("o", fault.clone()));
        let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
        let error = store.read(&request(&meta, 0..BYTES), &mut bytes).await.unwrap_err();
        assert_eq!(error.kind, OriginErrorKind::Timeout, "{error}");
        let [attempt] = &error.attempt_log[..] else { panic!("{error:?}") };
        let first_byte = attempt.first_byte.unwrap();
        match fault {
            Fault::StallBeforeHeaders => {
                assert_eq!(attempt.body, Duration::ZERO);
                assert!(first_byte >= limit, "{attempt:?}");
            }
            _ => assert!(attempt.body >= limit && first_byte < limit, "{attempt:?}"),
        }
    }
}

/// Row 5: errors under any status, and whether they are worth another attempt.
#[tokio::test]
async fn every_error_of_s3_is_of_its_class() {
    use OriginErrorKind as K;
    let table = [
        (200, "InternalError", K::Failed, 3),
        (200, "SlowDown", K::Throttled, 3),
        (400, "RequestTimeout", K::Timeout, 3),
        (400, "InvalidRequest", K::Rejected, 1),
        (403, "AccessDenied", K::Denied, 1),
        (404, "NoSuchKey", K::NotFound, 1),
        (412, "PreconditionFailed", K::Changed, 1),
        (416, "InvalidRange", K::Changed, 1),
        (429, "TooManyRequests", K::Throttled, 3),
        (500, "InternalError", K::Failed, 3),
        (502, "BadGateway", K::Failed, 3),
        (503, "SlowDown", K::Throttled, 3),
        (503, "ServiceUnavailable", K::Throttled, 3),
        (504, "GatewayTimeout", K::Failed, 3),
    ];
    for (status, code, kind, attempts) in table {
        let (origin, _origins, store, meta) = s3().await;
        origin.fault(FaultRule::new("o", Fault::ErrorCode { status, code }));
        let mut bytes = vec![0; 1000];
        let error = store.read(&request(&meta, 0..1000), &mut bytes).await.unwrap_err();
        assert_eq!((error.kind, error.attempts), (kind, attempts), "{status} {code}: {error}");
        assert_eq!((error.status, error.bytes_received), (Some(status), 0), "{code}");
        assert_eq!(origin.counts("o").gets, u64::from(attempts), "{code}");
    }
}

/// Row 6: an object that is replaced while its parts are read gives parts of the old version and an
/// error, and never a byte of the new one.
#[tokio::test]
async fn an_object_replaced_at_any_part_is_never_mixed() {
    for replaced_at in 1..=PARTS {
        replaced(replaced_at, false).await;
        replaced(replaced_at, true).await;
    }
}

const PARTS: u64 = 8;

/// With `broken`, the part is under way when the object is replaced, and resumed after that.
async fn replaced(at: u64, broken: bool) {
    let seed = Seed::new(at);
    let (origin, _origins, store, meta) = s3().await;
    let sent = seed.prng().below(BYTES / PARTS);
    let cut = Fault::TruncateTo(sent);
    let cut = broken.then(|| origin.fault(FaultRule::new("o", cut).nth(at)));
    let new = Fault::ReplaceObject(Content::synthetic(99, BYTES));
    origin.fault(FaultRule::new("o", new).nth(at + u64::from(cut.is_some())));
    for part in 0..PARTS {
        let (start, end) = (part * BYTES / PARTS, (part + 1) * BYTES / PARTS);
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        let read = store.read(&request(&meta, start..end), &mut bytes).await;
        if part + 1 < at {
            read.unwrap();
            assert!(content().matches(start, &bytes), "part {part}");
            continue;
        }
        let error = read.unwrap_err();
        assert_eq!(error.kind, OriginErrorKind::Changed, "part {part}: {error}");
        assert!(error.attempts <= 2);
    }
}

/// Row 7: a body that is too short, however it says so, is resumed; and if it is short every time
/// it is an error.
#[tokio::test]
async fn a_body_that_is_cut_short_is_resumed_however_it_ends() {
    type Cut = fn(u64) -> Fault;
    let cuts: [Cut; 4] =
        [Fault::TruncateTo, Fault::ShortBody, Fault::ChunkedTo, Fault::CloseDelimitedTo];
    for cut in cuts {
        for seed in 0..4 {
            let seed = Seed::new(seed);
            let sent = seed.prng().below(BYTES);
            let (origin, _origins, store, meta) = s3().await;
            let once = origin.fault(FaultRule::new("o", cut(sent)).nth(1));
            let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
            let record = store.read(&request(&meta, 0..BYTES), &mut bytes).await.unwrap();
            assert!(content().matches(0, &bytes), "{:?}", cut(sent));
            assert_eq!((record.attempts, record.bytes_received), (2, BYTES), "{:?}", cut(sent));
            once.remove();
            origin.fault(FaultRule::new("o", cut(10)));
            let error = store.read(&request(&meta, 0..BYTES), &mut bytes).await.unwrap_err();
            assert_eq!((error.kind, error.attempts), (OriginErrorKind::Truncated, 3), "{error}");
        }
    }
}

/// Row 29: whatever goes wrong, the requests on the wire are those of this layer's limit.
#[tokio::test]
async fn no_failure_costs_more_requests_than_the_limit() {
    let faults = [
        Fault::Status { code: 500, retry_after: None },
        Fault::Status { code: 503, retry_after: Some(Duration::ZERO) },
        Fault::ErrorCode { status: 400, code: "ExpiredToken" },
        Fault::ErrorCode { status: 403, code: "RequestTimeTooSkewed" },
        Fault::ErrorCode { status: 200, code: "InternalError" },
        Fault::ResetBeforeHeaders,
        Fault::CloseBeforeHeaders,
        Fault::ResetAfter(1000),
        Fault::TruncateTo(1000),
        Fault::Overlong(1),
        Fault::WrongRange(1),
        Fault::FullBodyTo200,
        Fault::DropHeader("content-range"),
    ];
    for fault in faults {
        let (origin, origins, store, meta) = s3().await;
        origin.fault(FaultRule::new("o", fault.clone()));
        // One after the other: a pooled connection that was closed is no attempt, and no request.
        for call in 1..=3_u64 {
            let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
            let error = store.read(&request(&meta, 0..BYTES), &mut bytes).await.unwrap_err();
            assert!(error.attempts <= 3, "{fault:?}: {error}");
            assert_eq!(error.attempt_log.len(), error.attempts as usize, "{fault:?}");
            assert!(origin.counts("o").gets <= 3 * call, "{fault:?}: {:?}", origin.counts("o"));
        }
        let stats = &origins.stats()[0];
        // The head that went well is one of the requests.
        assert_eq!(stats.requests, 1 + origin.counts("o").gets, "{fault:?}");
    }
}

/// Drops a future at its `polls`th poll; what it came to if it was done before.
async fn dropped_at<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

/// Drops reads at one await point after another until one is done, and looks each time that nothing
/// is left. Answers how many points there were.
async fn drops(origins: &Origins, store: &dyn OriginStore, meta: &ObjectMeta) -> usize {
    let idle = |origins: &Origins| {
        origins.stats().iter().all(|stats| stats.inflight == 0)
            && origins.endpoints().iter().all(|stats| stats.inflight == 0 && stats.waiting == 0)
    };
    for polls in 0.. {
        let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
        let request = request(meta, 0..BYTES);
        let read = dropped_at(polls, store.read(&request, &mut bytes)).await;
        assert!(idle(origins), "after {polls} polls: {:?}", origins.endpoints());
        if let Some(record) = read {
            record.unwrap();
            assert!(content().matches(0, &bytes));
            return polls;
        }
    }
    unreachable!("a read is done at some poll");
}

/// Row 25: dropped wherever it waits, a read leaves neither permit nor request, and the origin sees
/// its connection end.
#[tokio::test]
async fn a_read_may_be_dropped_at_every_await_point() {
    let faults = [
        None,
        Some(Fault::ResetAfter(BYTES / 2)),
        Some(Fault::Status { code: 503, retry_after: None }),
        Some(Fault::ChunkedTo(BYTES)),
    ];
    for fault in faults {
        let link = LinkOptions {
            bytes_per_second: Some(1 << 20),
            first_byte: Duration::from_millis(1),
            ..LinkOptions::default()
        };
        let origin = HttpOrigin::start(HttpOptions { link, ..HttpOptions::default() }).await;
        origin.put("o", content());
        let origins = origins(quick());
        let uri = uri(&origin.url("o"));
        let store = origins.open(&uri).unwrap();
        let meta = store.head(uri.key()).await.unwrap();
        // Every other request, so that the second attempt of a read is well.
        let rule = fault.clone().map(|fault| {
            origin.fault(FaultRule::new("o", fault).when(forebay_testkit::When::Every(2)))
        });
        let points = drops(&origins, &*store, &meta).await;
        assert!(points > 6, "{points} points with {fault:?}");
        drop(rule);
        // Those of the pools: of metadata, of the read that was done, and of one whose body had
        // been read when it was dropped.
        until("connections end", || origin.connections().open <= 3).await;
        drop((store, origins));
        until("all connections end", || origin.connections().open == 0).await;
    }
}

/// The same while the credentials are fetched, over a connection of their own.
#[tokio::test]
async fn a_read_may_be_dropped_while_its_credentials_are_fetched() {
    let origin = Arc::new(S3Origin::start(S3Options::default()).await);
    origin.put("bucket", "o", content());
    let (metadata, given) = crate::credentials::metadata(&origin).await;
    let settings: OriginSettings = crate::credentials::of_instance(&origin, &metadata);
    let origins = origins(settings);
    let uri = uri("s3://bucket/o");
    let store = origins.open(&uri).unwrap();
    let mut polls = 0;
    let meta = loop {
        if let Some(meta) = dropped_at(polls, store.head(uri.key())).await {
            break meta.unwrap();
        }
        assert!(origins.endpoints().iter().all(|stats| stats.inflight == 0), "{polls} polls");
        polls += 1;
    };
    assert_eq!(meta.bytes, BYTES);
    assert!(given.load(std::sync::atomic::Ordering::Relaxed) >= 1 && polls > 4);
    drops(&origins, &*store, &meta).await;
}
