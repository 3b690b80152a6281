//! Every fault of the testkit at once: right bytes or a typed error, and nothing left behind.

use std::sync::Arc;

use forebay_origin::{ObjectMeta, OriginErrorKind, OriginSettings, OriginStore, Origins};
use forebay_testkit::{
    Content, Fault, FaultRule, HttpOptions, HttpOrigin, S3Options, S3Origin, Seed, When,
};
use futures::StreamExt;

use crate::{origins, quick, request, uri};

const BYTES: u64 = 300_000;
const READS: usize = 300;

/// Faults that can be told from right answers without a digest, and without waiting.
fn faults() -> Vec<Fault> {
    vec![
        Fault::Status { code: 500, retry_after: None },
        Fault::Status { code: 503, retry_after: None },
        Fault::ErrorCode { status: 400, code: "RequestTimeout" },
        Fault::ErrorCode { status: 200, code: "InternalError" },
        Fault::ResetBeforeHeaders,
        Fault::CloseBeforeHeaders,
        Fault::ResetAfter(0),
        Fault::ResetAfter(1),
        Fault::ResetAfter(70_000),
        Fault::TruncateTo(0),
        Fault::TruncateTo(99_999),
        Fault::ShortBody(1234),
        Fault::ChunkedTo(50_000),
        Fault::CloseDelimitedTo(50_000),
        Fault::Overlong(1),
        Fault::Overlong(100_000),
        Fault::WrongRange(1),
        Fault::FullBodyTo200,
        Fault::DropHeader("content-length"),
        Fault::DropHeader("content-range"),
        Fault::DropHeader("etag"),
        Fault::SetHeader("content-range", "bytes 0-18446744073709551615/1".to_owned()),
        Fault::SetHeader("last-modified", "yesterday".to_owned()),
    ]
}

fn settings(env: Vec<(String, String)>) -> OriginSettings {
    OriginSettings { env: env.into_iter().collect(), ..quick() }
}

/// Reads ranges side by side while a third of all answers are wrong.
async fn weather(
    origins: &Origins,
    store: Arc<dyn OriginStore>,
    meta: ObjectMeta,
    content: Content,
) {
    let seed = Seed::new(0x5eed);
    let mut random = seed.prng();
    let ranges: Vec<(u64, u64)> = (0..READS)
        .map(|_| {
            let start = random.below(BYTES - 1);
            (start, start + 1 + random.below(BYTES - start - 1))
        })
        .collect();
    let reads = futures::stream::iter(ranges).map(|(start, end)| {
        let (store, meta, content) = (&store, &meta, &content);
        async move {
            let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
            match store.read(&request(meta, start..end), &mut bytes).await {
                Ok(record) => {
                    assert!(content.matches(start, &bytes), "wrong bytes in {start}..{end}");
                    assert!((1..=3).contains(&record.attempts));
                    assert_eq!(record.attempt_log.len(), record.attempts as usize);
                    None
                }
                Err(error) => {
                    assert!(error.kind.is_transient(), "{error}");
                    assert_eq!((error.attempts, error.attempt_log.len()), (3, 3), "{error}");
                    Some(error.kind)
                }
            }
        }
    });
    let failed: Vec<OriginErrorKind> =
        reads.buffer_unordered(16).filter_map(std::future::ready).collect().await;
    assert!(failed.len() * 2 < READS, "{failed:?}");
    let stats = origins.stats();
    assert_eq!(stats[0].inflight, 0);
    assert!(stats[0].errors > READS as u64 / 10, "{stats:?}");
}

/// Error codes are for origins that have any.
fn rules(codes: bool) -> impl Iterator<Item = FaultRule> {
    let plain = move |fault: &Fault| codes || !matches!(fault, Fault::ErrorCode { .. });
    (0..)
        .zip(faults().into_iter().filter(plain))
        .map(|(seed, fault)| FaultRule::new("o", fault).when(When::Chance { seed, per_mille: 14 }))
}

#[tokio::test]
async fn s3_weathers_a_storm() {
    let origin = S3Origin::start(S3Options::default()).await;
    let content = Content::synthetic(1, BYTES);
    origin.put("bucket", "o", content.clone());
    let origins = origins(settings(origin.env()));
    let uri = uri("s3://bucket/o");
    let store = origins.open(&uri).unwrap();
    let meta = store.head(uri.key()).await.unwrap();
    rules(true).for_each(|rule| drop(origin.fault(rule)));
    weather(&origins, store, meta, content).await;
}

#[tokio::test]
async fn a_web_server_weathers_a_storm() {
    let origin = HttpOrigin::start(HttpOptions::default()).await;
    let content = Content::synthetic(2, BYTES);
    origin.put("o", content.clone());
    let origins = origins(settings(Vec::new()));
    let uri = uri(&origin.url("o"));
    let store = origins.open(&uri).unwrap();
    let meta = store.head(uri.key()).await.unwrap();
    rules(false).for_each(|rule| drop(origin.fault(rule)));
    weather(&origins, store, meta, content).await;
}

#[tokio::test]
async fn a_resumed_read_fetches_next_to_nothing_twice() {
    let origin = S3Origin::start(S3Options::default()).await;
    let content = Content::synthetic(3, BYTES);
    origin.put("bucket", "o", content.clone());
    let store_uri = uri("s3://bucket/o");
    let store = origins(settings(origin.env())).open(&store_uri).unwrap();
    let meta = store.head(store_uri.key()).await.unwrap();
    for sent in [0, 1, BYTES / 2, BYTES - 1] {
        let fault = origin.fault(FaultRule::new("o", Fault::ResetAfter(sent)).first(1));
        let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
        let record = store.read(&request(&meta, 0..BYTES), &mut bytes).await.unwrap();
        assert!(content.matches(0, &bytes));
        assert_eq!((record.attempts, fault.hits()), (2, 1));
        // What was sent before the reset may be lost in the kernel, but never comes twice.
        assert!(record.bytes_received <= BYTES, "{}", record.bytes_received);
        fault.remove();
    }
}

#[tokio::test]
async fn odd_keys_and_markers_pass_a_checked_signature() {
    let origin = S3Origin::start(S3Options { page_keys: 2, ..S3Options::default() }).await;
    let long = format!("p/{}", "k".repeat(1022));
    let keys = ["p/%2e", "p/%2E%2e/x", "p/a b", "p/empty", "p/ü?#&=+", long.as_str()];
    for key in keys.into_iter().chain(["p/", "p/d/"]) {
        let marker = key.ends_with('/') || key == "p/empty";
        origin.put("bucket", key, if marker { Vec::new() } else { key.as_bytes().to_vec() });
    }
    let prefix = uri("s3://bucket/p/");
    let store = origins(settings(origin.env())).open(&prefix).unwrap();
    let found = store.list(prefix.key(), keys.len()).await.unwrap();
    let mut wanted = keys;
    wanted.sort_unstable();
    assert_eq!(found.iter().map(|meta| meta.key.as_str()).collect::<Vec<_>>(), wanted);
    for meta in &found {
        let bytes = crate::whole(&*store, meta).await;
        let empty = meta.key.as_str() == "p/empty";
        assert_eq!(bytes, if empty { b"" } else { meta.key.as_str().as_bytes() });
    }
}
