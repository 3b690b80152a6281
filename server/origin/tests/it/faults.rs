//! What origins do wrong, and what a read makes of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay_origin::{
    AttemptOutcome, Journal, JournalEntry, ObjectMeta, OriginError, OriginErrorKind,
    OriginSettings, OriginStore, Origins, ReadRecord,
};
use tokio::task::JoinSet;

use crate::server::{Act, Asked, Server, Thing, response, status};
use crate::{Names, origins, pattern, quick, request, uri};

const BYTES: usize = 100_000;

/// A server of one object at `/o`, whose GETs a script may spoil; and the object as resolved.
async fn spoiled(
    spoil: impl Fn(&Thing, &Asked, usize) -> Option<Vec<Act>> + Send + Sync + 'static,
    settings: OriginSettings,
) -> (Server, Arc<dyn OriginStore>, ObjectMeta) {
    let thing = Thing::new(pattern(BYTES));
    let server = Server::start(move |asked| {
        let gets = asked.number.saturating_sub(1);
        let spoilt = (asked.method == "GET").then(|| spoil(&thing, asked, gets)).flatten();
        spoilt.unwrap_or_else(|| thing.serve(asked))
    })
    .await;
    let uri = uri(&server.url("o"));
    let store = origins(settings).open(&uri).unwrap();
    let meta = store.head(uri.key()).await.unwrap();
    assert_eq!(meta.bytes, BYTES as u64);
    (server, store, meta)
}

/// Reads all but the first and last 10 bytes.
async fn read(
    store: &dyn OriginStore,
    meta: &ObjectMeta,
) -> Result<(Vec<u8>, ReadRecord), OriginError> {
    let mut bytes = vec![0; BYTES - 20];
    let record = store.read(&request(meta, 10..meta.bytes - 10), &mut bytes).await?;
    assert_eq!(bytes, pattern(BYTES)[10..BYTES - 10]);
    Ok((bytes, record))
}

#[tokio::test]
async fn a_good_read_takes_one_attempt_and_reuses_its_connection() {
    let (server, store, meta) = spoiled(|_, _, _| None, quick()).await;
    for round in 0..3 {
        let (_, record) = read(&*store, &meta).await.unwrap();
        assert_eq!((record.attempts, record.bytes_received), (1, BYTES as u64 - 20));
        let [attempt] = &record.attempt_log[..] else { panic!("{record:?}") };
        assert_eq!(attempt.outcome, AttemptOutcome::Done);
        assert!(attempt.first_byte.is_some() && attempt.dns.is_none());
        assert_eq!(attempt.connect.is_some(), round == 0);
    }
    // The first is that of the metadata.
    let connections: Vec<usize> = server.asked().iter().map(|asked| asked.connection).collect();
    assert_eq!(connections, [0, 1, 1, 1]);
    assert_eq!(server.asked()[1].header("if-match"), Some("\"v1\""));
}

/// Breaks the first body after so many bytes; where the second begins, and what the read says.
async fn resumed(sent: usize, broken: Act) -> (usize, ReadRecord) {
    let spoil = move |thing: &Thing, asked: &Asked, gets| {
        (gets == 0).then(|| vec![thing.cut(asked, sent), broken.clone()])
    };
    let (server, store, meta) = spoiled(spoil, quick()).await;
    let (_, record) = read(&*store, &meta).await.unwrap();
    let asked = server.asked();
    assert_eq!((asked.len(), record.attempts), (3, 2));
    assert_eq!(asked[2].header("if-match"), Some("\"v1\""));
    let (start, last) = asked[2].range().unwrap();
    assert_eq!(last, BYTES - 11);
    (start, record)
}

#[tokio::test]
async fn a_broken_body_is_resumed_at_the_missing_byte() {
    let wanted = BYTES - 20;
    for sent in [0, 1, wanted / 2, wanted - 1] {
        let (start, record) = resumed(sent, Act::Close).await;
        assert_eq!((start, record.bytes_received), (10 + sent, wanted as u64));
        // A reset may overtake bytes that were sent before it; a close never does.
        let (start, _) = resumed(sent, Act::Reset).await;
        assert!(start <= 10 + sent);
    }
}

#[tokio::test]
async fn a_body_that_is_short_every_time_is_truncated() {
    let close = |thing: &Thing, asked: &Asked, _| Some(vec![thing.cut(asked, 5), Act::Close]);
    let declared = |thing: &Thing, asked: &Asked, _| {
        let (start, last) = asked.range()?;
        let range = format!("bytes {start}-{last}/{BYTES}");
        let headers = [("content-range", range.as_str()), ("etag", "\"v1\"")];
        Some(vec![Act::Send(response(206, &headers, &thing.bytes[start..start + 5]))])
    };
    type Spoil = Box<dyn Fn(&Thing, &Asked, usize) -> Option<Vec<Act>> + Send + Sync>;
    for spoil in [Box::new(close) as Spoil, Box::new(declared)] {
        let (server, store, meta) = spoiled(spoil, quick()).await;
        let error = read(&*store, &meta).await.unwrap_err();
        assert_eq!(error.kind, OriginErrorKind::Truncated);
        assert_eq!((error.attempts, error.bytes_received), (3, 15));
        assert_eq!(error.attempt_log.len(), 3);
        let starts: Vec<usize> = server.asked()[1..].iter().map(|a| a.range().unwrap().0).collect();
        assert_eq!(starts, [10, 15, 20]);
    }
}

#[tokio::test]
async fn answers_that_do_not_fit_are_malformed_and_never_overrun() {
    type Spoil = fn(&Thing, &Asked, (usize, usize)) -> Vec<u8>;
    let table: [(&str, Spoil); 6] = [
        ("200 with everything", |thing, _, _| response(200, &[("etag", "\"v1\"")], &thing.bytes)),
        ("another range", |thing, _, (start, last)| {
            let range = format!("bytes {}-{}/{BYTES}", start + 1, last + 1);
            response(206, &[("content-range", &range)], &thing.bytes[start + 1..=last + 1])
        }),
        ("no range", |thing, _, (start, last)| response(206, &[], &thing.bytes[start..=last])),
        ("overlong by its length", |thing, _, (start, last)| {
            let range = format!("bytes {start}-{last}/{BYTES}");
            response(206, &[("content-range", &range)], &thing.bytes[start..=last + 5])
        }),
        ("overlong in chunks", |thing, _, (start, last)| {
            let range = format!("bytes {start}-{last}/{BYTES}");
            let body = &thing.bytes[start..=last + 5];
            let mut chunks = format!("{:x}\r\n", body.len()).into_bytes();
            chunks.extend_from_slice(body);
            chunks.extend_from_slice(b"\r\n0\r\n\r\n");
            let headers = [("content-range", range.as_str()), ("transfer-encoding", "chunked")];
            response(206, &headers, &chunks)
        }),
        ("no HTTP", |_, _, _| b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec()),
    ];
    for (name, make) in table {
        let spoil = move |thing: &Thing, asked: &Asked, _| {
            Some(vec![Act::Send(make(thing, asked, asked.range()?)), Act::Close])
        };
        let (_server, store, meta) = spoiled(spoil, quick()).await;
        let error = read(&*store, &meta).await.unwrap_err();
        assert_eq!(error.kind, OriginErrorKind::Malformed, "{name}: {error}");
        assert_eq!(error.attempts, 3, "{name}");
    }
}

#[tokio::test]
async fn chunked_bodies_of_the_right_length_are_read() {
    let spoil = |thing: &Thing, asked: &Asked, _| {
        let (start, last) = asked.range()?;
        let range = format!("bytes {start}-{last}/{BYTES}");
        let mut chunks = Vec::new();
        for part in thing.bytes[start..=last].chunks(7000) {
            chunks.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
            chunks.extend_from_slice(part);
            chunks.extend_from_slice(b"\r\n");
        }
        chunks.extend_from_slice(b"0\r\n\r\n");
        let headers = [("content-range", range.as_str()), ("transfer-encoding", "chunked")];
        Some(vec![Act::Send(response(206, &headers, &chunks))])
    };
    let (_server, store, meta) = spoiled(spoil, quick()).await;
    assert_eq!(read(&*store, &meta).await.unwrap().1.attempts, 1);
}

#[tokio::test]
async fn another_version_is_never_read() {
    type Spoil = fn(&Thing, (usize, usize)) -> Vec<u8>;
    let table: [(&str, Spoil); 4] = [
        ("412", |_, _| response(412, &[], b"")),
        ("416", |_, _| response(416, &[("content-range", "bytes */5")], b"")),
        ("another ETag from a server that ignores If-Match", |thing, (start, last)| {
            let range = format!("bytes {start}-{last}/{BYTES}");
            let headers = [("content-range", range.as_str()), ("etag", "\"v2\"")];
            response(206, &headers, &thing.bytes[start..=last])
        }),
        ("another size", |thing, (start, last)| {
            let range = format!("bytes {start}-{last}/{}", BYTES + 1);
            let headers = [("content-range", range.as_str()), ("etag", "\"v1\"")];
            response(206, &headers, &thing.bytes[start..=last])
        }),
    ];
    for (name, make) in table {
        let spoil = move |thing: &Thing, asked: &Asked, _| {
            Some(vec![Act::Send(make(thing, asked.range()?))])
        };
        let (_server, store, meta) = spoiled(spoil, quick()).await;
        let error = read(&*store, &meta).await.unwrap_err();
        assert_eq!((error.kind, error.attempts), (OriginErrorKind::Changed, 1), "{name}: {error}");
    }
}

#[tokio::test]
async fn an_object_replaced_between_attempts_is_changed() {
    let spoil = |thing: &Thing, asked: &Asked, gets| {
        if gets == 0 {
            return Some(vec![thing.cut(asked, 1000), Act::Close]);
        }
        let new = Thing { etag: Some("\"v2\"".into()), ..thing.clone() };
        Some(new.serve(asked))
    };
    let (_server, store, meta) = spoiled(spoil, quick()).await;
    let error = read(&*store, &meta).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (OriginErrorKind::Changed, 2));
}

#[tokio::test]
async fn weak_and_missing_tags_are_pinned_by_time_and_size() {
    let old = "Tue, 01 Jan 2030 00:00:00 GMT";
    let new = "Tue, 01 Jan 2030 00:00:09 GMT";
    for etag in [Some("W/\"v1\"".to_owned()), None] {
        let thing = Thing { bytes: pattern(50), etag, modified: Some(old.into()) };
        let server = Server::start(move |asked| match asked.number {
            0 | 1 => thing.serve(asked),
            2 => Thing { modified: Some(new.into()), ..thing.clone() }.serve(asked),
            // Ignores the condition.
            _ => {
                let headers = [("content-range", "bytes 0-49/50"), ("last-modified", new)];
                vec![Act::Send(response(206, &headers, &thing.bytes))]
            }
        })
        .await;
        let uri = uri(&server.url("o"));
        let store = origins(quick()).open(&uri).unwrap();
        let meta = store.head(uri.key()).await.unwrap();
        let mut bytes = [0; 50];
        store.read(&request(&meta, 0..50), &mut bytes).await.unwrap();
        for _ in 0..2 {
            let error = store.read(&request(&meta, 0..50), &mut bytes).await.unwrap_err();
            assert_eq!(error.kind, OriginErrorKind::Changed);
        }
        let asked = server.asked();
        assert_eq!(asked[1].header("if-unmodified-since"), Some(old));
        assert_eq!(asked[1].header("if-match"), None);
    }
}

#[tokio::test]
async fn statuses_end_as_documented() {
    use OriginErrorKind as K;
    let table = [
        (400, K::Rejected, 1),
        (401, K::Unauthenticated, 1),
        (403, K::Denied, 1),
        (404, K::NotFound, 1),
        (410, K::NotFound, 1),
        (429, K::Throttled, 3),
        (500, K::Failed, 3),
        (502, K::Failed, 3),
        (503, K::Throttled, 3),
        (504, K::Failed, 3),
    ];
    for (code, kind, attempts) in table {
        let (server, store, meta) = spoiled(move |_, _, _| Some(status(code)), quick()).await;
        let error = read(&*store, &meta).await.unwrap_err();
        assert_eq!((error.kind, error.attempts), (kind, attempts), "{code}");
        assert_eq!(error.status, Some(code));
        assert_eq!(server.asked().len(), 1 + attempts as usize);
        assert!(error.to_string().contains(&format!("status {code}")), "{error}");
    }
}

#[tokio::test]
async fn a_failing_machine_is_left_and_throttles_are_waited_out() {
    let spoil = |_: &Thing, _: &Asked, gets| (gets < 2).then(|| status(503));
    let (server, store, meta) = spoiled(spoil, quick()).await;
    let (_, record) = read(&*store, &meta).await.unwrap();
    assert_eq!(record.attempts, 3);
    assert_eq!(record.attempt_log[1].outcome, AttemptOutcome::Failed(OriginErrorKind::Throttled));
    let connections: Vec<usize> = server.asked().iter().map(|asked| asked.connection).collect();
    assert_eq!(connections, [0, 1, 2, 3]);
    assert!(record.attempt_log[1].connect.is_some());
}

#[tokio::test]
async fn a_far_retry_after_is_handed_on_at_once() {
    let hint = |_: &Thing, _: &Asked, _| {
        let headers = [("retry-after", "120"), ("x-amz-request-id", "R7")];
        Some(vec![Act::Send(response(503, &headers, b"<Error><Code>SlowDown</Code></Error>"))])
    };
    let (_server, store, meta) = spoiled(hint, quick()).await;
    let error = read(&*store, &meta).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (OriginErrorKind::Throttled, 1));
    assert_eq!(error.retry_after, Some(Duration::from_secs(120)));
    assert_eq!(error.request_id.as_deref(), Some("R7"));
    assert!(error.to_string().ends_with("(status 503): SlowDown, request id R7"), "{error}");
}

#[tokio::test]
async fn the_body_of_an_error_has_an_end() {
    let flood = |_: &Thing, _: &Asked, _| {
        let head = response(500, &[("content-length", "1000000000000")], b"");
        Some(vec![Act::Send(head), Act::Flood(vec![b'x'; 4096])])
    };
    let (_server, store, meta) = spoiled(flood, quick()).await;
    let error = read(&*store, &meta).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (OriginErrorKind::Failed, 3));
}

/// Impatient only where the test means it: a busy machine must not look like a stall.
fn impatient() -> OriginSettings {
    let mut settings = quick();
    settings.timeouts.first_byte = Duration::from_millis(500);
    settings.timeouts.body_idle = Duration::from_millis(500);
    settings
}

#[tokio::test]
async fn silence_before_the_head_times_out() {
    let (_server, store, meta) = spoiled(|_, _, _| Some(vec![Act::Stall]), impatient()).await;
    let error = read(&*store, &meta).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (OriginErrorKind::Timeout, 3));
}

#[tokio::test]
async fn a_stalled_body_is_left_and_resumed() {
    let spoil = |thing: &Thing, asked: &Asked, gets| {
        (gets == 0).then(|| vec![thing.cut(asked, 1000), Act::Stall])
    };
    let (server, store, meta) = spoiled(spoil, impatient()).await;
    let (_, record) = read(&*store, &meta).await.unwrap();
    assert_eq!(record.attempt_log[0].outcome, AttemptOutcome::Failed(OriginErrorKind::Timeout));
    assert_eq!(record.attempt_log[0].bytes, 1000);
    assert_eq!(server.asked()[2].range().unwrap().0, 1010);
}

#[tokio::test]
async fn a_dropped_read_closes_its_connection() {
    for sent in [None, Some(1000)] {
        let spoil = move |thing: &Thing, asked: &Asked, _| {
            let head = sent.map(|sent| thing.cut(asked, sent));
            Some(head.into_iter().chain([Act::Stall]).collect())
        };
        let (mut server, store, meta) = spoiled(spoil, quick()).await;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { read(&*store, &meta).await.map(|_| ()) });
        server.was_asked(2).await;
        tasks.shutdown().await;
        server.is_left_alone().await;
    }
}

fn named(names: Vec<(&'static str, Vec<IpAddr>)>) -> Origins {
    Origins::new(quick(), Arc::new(Names(names))).unwrap()
}

#[tokio::test]
async fn names_are_asked_of_the_resolver_and_addresses_tried_in_turn() {
    let thing = Thing::new(pattern(10));
    let server = Server::start(move |asked| thing.serve(asked)).await;
    let local: Vec<IpAddr> = ["127.0.0.9", "127.0.0.1"].map(|text| text.parse().unwrap()).to_vec();
    let origins = named(vec![("origin.test", local)]);
    let uri = uri(&format!("http://origin.test:{}/o", server.address.port()));
    let store = origins.open(&uri).unwrap();
    let meta = store.head(uri.key()).await.unwrap();
    assert_eq!(meta.bytes, 10);
    let host = format!("origin.test:{}", server.address.port());
    assert_eq!(server.asked()[0].header("host"), Some(host.as_str()));
}

#[tokio::test]
async fn what_cannot_be_reached_says_why() {
    let origins = named(vec![]);
    let key = uri("http://nowhere.test/o");
    let error = origins.open(&key).unwrap().head(key.key()).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (OriginErrorKind::DnsFailed, 3));
    assert!(error.attempt_log.iter().all(|a| a.dns.is_some() && a.connect.is_none()));
    assert!(error.to_string().contains("nowhere.test: no such name"), "{error}");

    let server = Server::start(|_| status(200)).await;
    let dead = uri(&server.url("o"));
    drop(server);
    let error = origins.open(&dead).unwrap().head(dead.key()).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (OriginErrorKind::Unreachable, 3));
    assert!(error.attempt_log.iter().all(|attempt| attempt.connect.is_some()));
}

/// A listener whose queue is full: it answers no further connection.
fn deaf_listener() -> (std::net::SocketAddr, Vec<socket2::Socket>) {
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    let make = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let listener = make();
    listener.bind(&any.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = vec![listener];
    loop {
        let one = make();
        let connected = one.connect_timeout(&address, Duration::from_millis(50));
        held.push(one);
        if connected.is_err() {
            return (address.as_socket().unwrap(), held);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_connect_is_given_less_time_than_later_ones() {
    let (address, _held) = deaf_listener();
    let uri = uri(&format!("http://{address}/o"));
    let error = origins(quick()).open(&uri).unwrap().head(uri.key()).await.unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::Timeout, "{error}");
    let seconds: Vec<u64> =
        error.attempt_log.iter().map(|attempt| attempt.connect.unwrap().as_secs()).collect();
    assert_eq!(seconds, [1, 3, 3]);
}

/// A resolver that never answers.
#[derive(Debug)]
struct Deaf;

#[async_trait::async_trait]
impl forebay_origin::Resolve for Deaf {
    async fn resolve(&self, _: &str) -> std::io::Result<Vec<IpAddr>> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_resolver_times_out_as_what_it_is() {
    let uri = uri("http://origin.test/o");
    let origins = Origins::new(quick(), Arc::new(Deaf)).unwrap();
    let error = origins.open(&uri).unwrap().head(uri.key()).await.unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::DnsFailed, "{error}");
    assert!(error.attempt_log.iter().all(|a| a.dns.is_some_and(|dns| dns.as_secs() == 3)));
}

/// Journals that are read while a head is under way, and after it was given up.
async fn looked_at(origins: Origins, url: &str, after: Duration) -> [Vec<JournalEntry>; 2] {
    let (uri, journal) = (uri(url), Journal::default());
    let store = origins.open(&uri).unwrap();
    let mut work = Box::pin(journal.of(store.head(uri.key())));
    tokio::time::timeout(after, &mut work).await.unwrap_err();
    let under_way = journal.entries();
    drop(work);
    [under_way, journal.entries()]
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_while_a_name_resolves_is_charged_to_that() {
    let origins = Origins::new(quick(), Arc::new(Deaf)).unwrap();
    let after = Duration::from_secs(2);
    for entries in looked_at(origins, "http://origin.test/o", after).await {
        let [JournalEntry { attempt, wanted, ended, .. }] = &entries[..] else {
            panic!("{entries:?}")
        };
        assert_eq!(attempt.outcome, AttemptOutcome::GivenUp);
        assert_eq!((attempt.dns, attempt.connect, attempt.first_byte), (Some(after), None, None));
        assert_eq!((*ended - *wanted, attempt.body), (after, Duration::ZERO));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_while_a_connection_is_made_is_charged_to_that() {
    let (address, _held) = deaf_listener();
    let after = Duration::from_millis(700);
    for entries in looked_at(origins(quick()), &format!("http://{address}/o"), after).await {
        let [JournalEntry { attempt, .. }] = &entries[..] else { panic!("{entries:?}") };
        assert_eq!((attempt.dns, attempt.connect), (None, Some(after)));
    }
}

#[tokio::test]
async fn what_is_given_up_later_is_charged_to_what_it_waited_for() {
    // A head that does not come; then an answer that says to come back, and the wait for that.
    let server = Server::start(|_| vec![Act::Stall]).await;
    let after = Duration::from_secs(1);
    for entries in looked_at(origins(quick()), &server.url("o"), after).await {
        let [JournalEntry { attempt, .. }] = &entries[..] else { panic!("{entries:?}") };
        assert!(attempt.first_byte.unwrap() >= after / 2, "{attempt:?}");
        assert!(attempt.address.is_some() && attempt.outcome == AttemptOutcome::GivenUp);
    }
    let slow_down = response(503, &[("retry-after", "5")], b"");
    let server = Server::start(move |_| vec![Act::Send(slow_down.clone())]).await;
    for entries in looked_at(origins(quick()), &server.url("o"), after).await {
        let [throttled, waits] = &entries[..] else { panic!("{entries:?}") };
        assert_eq!(throttled.attempt.outcome, AttemptOutcome::Failed(OriginErrorKind::Throttled));
        assert_eq!((waits.attempt.outcome, waits.call), (AttemptOutcome::Unsent, throttled.call));
        assert!(waits.ended - waits.wanted >= after / 2, "{waits:?}");
    }
}

#[tokio::test]
async fn a_connection_closed_by_its_server_costs_no_attempt() {
    let spoil = |thing: &Thing, asked: &Asked, _| {
        let mut acts = thing.serve(asked);
        acts.push(Act::Close);
        Some(acts)
    };
    let (mut server, store, meta) = spoiled(spoil, quick()).await;
    for _ in 0..3 {
        assert_eq!(read(&*store, &meta).await.unwrap().1.attempts, 1);
        server.is_left_alone().await;
    }
}

#[tokio::test]
async fn counters_tell_requests_errors_and_bytes() {
    let thing = Thing::new(pattern(1000));
    let server = Server::start(move |asked| match asked.number {
        1 => status(500),
        _ => thing.serve(asked),
    })
    .await;
    let origins = origins(quick());
    let uri = uri(&server.url("o"));
    let store = origins.open(&uri).unwrap();
    let meta = store.head(uri.key()).await.unwrap();
    crate::whole(&*store, &meta).await;
    let [stats] = &origins.stats()[..] else { panic!("one origin") };
    assert_eq!(stats.origin, uri.origin());
    assert_eq!((stats.requests, stats.errors, stats.bytes, stats.inflight), (3, 1, 1000, 0));
}

#[tokio::test]
async fn a_destination_of_another_length_is_refused() {
    let (server, store, meta) = spoiled(|_, _, _| None, quick()).await;
    let backwards = std::ops::Range { start: 5, end: 4 };
    for range in [0..11, backwards, BYTES as u64 - 9..BYTES as u64 + 1] {
        let error = store.read(&request(&meta, range), &mut [0; 10]).await.unwrap_err();
        assert!(matches!(error.kind, OriginErrorKind::Local(_)), "{error}");
    }
    assert_eq!(server.asked().len(), 1);
}
