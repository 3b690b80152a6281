//! Forebay's own store against each fault: it gets the right bytes again, or fails with the right
//! kind, over S3 and over plain HTTP alike.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use forebay_origin::OriginErrorKind as Kind;
use forebay_origin::{
    ObjectKey, OriginError, OriginSettings, OriginStore, OriginUri, Origins, ReadRecord,
    ReadRequest, RetryPolicy, Timeouts,
};
use forebay_testkit::{
    Chaos, Content, FakeDns, Fault, FaultRule, HttpOptions, HttpOrigin, Origin, S3Options,
    S3Origin, chaos,
};

const BYTES: u64 = 300_000;

enum Fake {
    S3(S3Origin),
    Http(HttpOrigin),
}

impl Deref for Fake {
    type Target = Origin;

    fn deref(&self) -> &Origin {
        match self {
            Self::S3(origin) => origin,
            Self::Http(origin) => origin,
        }
    }
}

impl Fake {
    async fn both() -> [Self; 2] {
        let s3 = S3Origin::start(S3Options::default()).await;
        s3.put("bucket", "k", content());
        let http = HttpOrigin::start(HttpOptions::default()).await;
        http.put("k", content());
        [Self::S3(s3), Self::Http(http)]
    }

    /// A store of it that gives up soon.
    fn store(&self, attempts: u32) -> Arc<dyn OriginStore> {
        let (env, uri) = match self {
            Self::S3(origin) => (origin.env(), "s3://bucket/".to_owned()),
            Self::Http(origin) => (vec![], format!("{}/", origin.endpoint())),
        };
        let retry = RetryPolicy {
            attempts,
            transient_base: Duration::from_millis(1),
            throttle_base: Duration::from_millis(1),
            throttle_cap: Duration::from_millis(20),
            ..RetryPolicy::default()
        };
        let timeouts = Timeouts {
            first_byte: Duration::from_secs(1),
            body_idle: Duration::from_secs(1),
            ..Timeouts::default()
        };
        let env = env.into_iter().collect();
        let settings = OriginSettings { env, retry, timeouts, ..OriginSettings::default() };
        let origins = Origins::new(settings, Arc::new(FakeDns::new())).unwrap();
        origins.open(&OriginUri::parse(&uri).unwrap()).unwrap()
    }
}

fn content() -> Content {
    Content::synthetic(1, BYTES)
}

async fn read(store: &dyn OriginStore) -> Result<(Vec<u8>, ReadRecord), OriginError> {
    let key = ObjectKey::parse("k").unwrap();
    let pin = store.head(&key).await?.pin;
    let request = ReadRequest { key, pin, object_bytes: BYTES, range: 100..BYTES };
    let mut into = vec![0; usize::try_from(BYTES).unwrap() - 100];
    let record = store.read(&request, &mut into).await?;
    Ok((into, record))
}

async fn recovers(fault: Fault, wire_bytes_max: u64) {
    for origin in Fake::both().await {
        let struck = origin.fault(FaultRule::new("k", fault.clone()).nth(1));
        let store = origin.store(3);
        let (bytes, record) = read(&*store).await.unwrap();
        assert_eq!(content().first_difference(100, &bytes), None, "{fault:?}");
        assert_eq!((struck.hits(), record.attempts), (1, 2), "{fault:?}: {record:?}");
        let sent = origin.counts("k").body_bytes;
        assert!(sent <= wire_bytes_max, "{fault:?}: {sent} bytes sent");
    }
}

#[tokio::test]
async fn broken_bodies_are_resumed_at_the_missing_byte() {
    let body = BYTES - 100;
    for at in [0, 1, body / 2, body - 1] {
        recovers(Fault::ResetAfter(at), body).await;
        recovers(Fault::TruncateTo(at), body).await;
    }
    recovers(Fault::StallAfter(body / 2), body).await;
}

#[tokio::test]
async fn requests_that_fail_on_the_way_are_made_again() {
    let body = BYTES - 100;
    recovers(Fault::ResetBeforeHeaders, body).await;
    recovers(Fault::CloseBeforeHeaders, body).await;
    recovers(Fault::StallBeforeHeaders, body).await;
    for code in [429, 500, 502, 503, 504] {
        recovers(Fault::Status { code, retry_after: None }, body + 1000).await;
    }
    let retry_after = Some(Duration::ZERO);
    recovers(Fault::Status { code: 503, retry_after }, body + 1000).await;
}

#[tokio::test]
async fn answers_that_do_not_fit_are_not_taken() {
    recovers(Fault::WrongRange(7), 3 * BYTES).await;
    recovers(Fault::FullBodyTo200, 3 * BYTES).await;
    recovers(Fault::Overlong(5), 3 * BYTES).await;
    recovers(Fault::ShortBody(1000), 3 * BYTES).await;
    recovers(Fault::ChunkedTo(1000), 3 * BYTES).await;
    recovers(Fault::CloseDelimitedTo(1000), 3 * BYTES).await;
    recovers(Fault::DropHeader("content-range"), 3 * BYTES).await;
    recovers(Fault::ErrorCode { status: 200, code: "InternalError" }, 3 * BYTES).await;
}

#[tokio::test]
async fn what_cannot_be_put_right_fails_with_its_kind() {
    let status = |code| Fault::Status { code, retry_after: None };
    for (fault, kind, attempts) in [
        (status(400), Kind::Rejected, 1),
        (status(401), Kind::Unauthenticated, 1),
        (status(403), Kind::Denied, 1),
        (status(404), Kind::NotFound, 1),
        (status(412), Kind::Changed, 1),
        (status(416), Kind::Changed, 1),
        (status(500), Kind::Failed, 3),
        (status(503), Kind::Throttled, 3),
        (Fault::ReplaceObject(Content::synthetic(2, BYTES)), Kind::Changed, 1),
        (Fault::RemoveObject, Kind::NotFound, 1),
        (Fault::SetHeader("etag", "\"other\"".to_owned()), Kind::Changed, 1),
        (Fault::ResetBeforeHeaders, Kind::Unreachable, 3),
        (Fault::WrongRange(1), Kind::Malformed, 3),
    ] {
        for origin in Fake::both().await {
            let struck = origin.fault(FaultRule::new("k", fault.clone()));
            let error = read(&*origin.store(3)).await.unwrap_err();
            assert_eq!((error.kind, error.attempts), (kind, attempts), "{fault:?}: {error}");
            assert_eq!(struck.hits(), u64::from(attempts), "{fault:?}");
        }
    }
}

#[tokio::test]
async fn seeded_chaos_never_gives_wrong_bytes() {
    for origin in Fake::both().await {
        let store = origin.store(8);
        for seed in 0..20 {
            storm(&origin, &*store, seed).await;
        }
        assert!(origin.counts("k").gets > 110, "faults were struck");
    }
}

/// Five reads under faults of every kind.
async fn storm(origin: &Origin, store: &dyn OriginStore, seed: u64) {
    let keys = "k".to_owned();
    let plan = Chaos { seed, keys, body_bytes: BYTES - 100, per_mille: 300, flips: false };
    for rule in chaos(&plan) {
        origin.fault(rule);
    }
    for _ in 0..5 {
        let (bytes, _) = read(store).await.unwrap();
        assert_eq!(content().first_difference(100, &bytes), None, "seed {seed}");
    }
    origin.clear_faults();
}
