//! Endpoints and addresses that are slow, dead, throttling or lying, and what the engine makes of
//! it.

use std::sync::Arc;
use std::time::Duration;

use forebay_origin::{
    AddressStats, AttemptOutcome, BreakerState, EndpointStats, EngineSettings, Lane, ObjectMeta,
    OriginBlock, OriginErrorKind, OriginSettings, OriginStore, Origins, ReadTerms,
};
use forebay_testkit::{Content, Fault, FaultRule, LinkOptions, Seed, Site, SiteOptions};
use futures::StreamExt;
use tokio::time::{Instant, sleep};

use crate::{quick, request, uri};

const BYTES: u64 = 128 << 10;

fn content() -> Content {
    Content::synthetic(7, BYTES)
}

/// A site that answers at the first `served` of `named` addresses; with `close`, a connection
/// serves one request.
pub(crate) async fn site_of(served: u8, named: u8, close: bool) -> Site {
    let site = Site::start(SiteOptions { named, served, close, ..SiteOptions::default() }).await;
    site.put("o", content());
    site
}

pub(crate) fn origins(site: &Site, settings: OriginSettings) -> Origins {
    Origins::new(settings, Arc::new(site.dns().clone())).unwrap()
}

pub(crate) async fn open(site: &Site, origins: &Origins) -> (Arc<dyn OriginStore>, ObjectMeta) {
    let uri = uri(&site.url("o"));
    let store = origins.open(&uri).unwrap();
    let meta = store.head(uri.key()).await.unwrap();
    (store, meta)
}

/// Limits on phases that a busy machine keeps and a dead address does not; no second copies.
pub(crate) fn settings() -> OriginSettings {
    let mut settings = quick();
    settings.timeouts.connect_first = Duration::from_millis(400);
    settings.timeouts.first_byte = Duration::from_secs(2);
    settings.engine.hedging = false;
    settings
}

async fn reads(
    store: &dyn OriginStore,
    meta: &ObjectMeta,
    count: usize,
    at_once: usize,
) -> Vec<Result<u32, OriginErrorKind>> {
    let one = |_| async {
        let mut bytes = vec![0; usize::try_from(meta.bytes).unwrap()];
        let record = store.read(&request(meta, 0..meta.bytes), &mut bytes).await;
        record.map_err(|error| error.kind).map(|record| {
            assert!(content().matches(0, &bytes), "wrong bytes");
            record.attempts
        })
    };
    futures::stream::iter(0..count).map(one).buffer_unordered(at_once).collect().await
}

fn stats_of(origins: &Origins, last: u8) -> AddressStats {
    let all = origins.addresses();
    all.into_iter().find(|stats| stats.address == Site::ip(last)).unwrap()
}

fn endpoint(origins: &Origins) -> EndpointStats {
    let [endpoint] = &origins.endpoints()[..] else { panic!("one endpoint") };
    endpoint.clone()
}

/// Reads until an address is left out. Fewer than half of the reads may need a second attempt.
async fn ejected(origins: &Origins, store: &dyn OriginStore, meta: &ObjectMeta, last: u8) {
    for _ in 0..100 {
        assert!(reads(store, meta, 16, 8).await.iter().all(Result::is_ok));
        if stats_of(origins, last).ejected.is_some() {
            return;
        }
    }
    panic!("not left out: {:?}", origins.addresses());
}

/// Connections to the last address do not grow, and no read needs a second attempt.
async fn is_avoided(origins: &Origins, store: &dyn OriginStore, meta: &ObjectMeta) {
    let before = stats_of(origins, 8).ejections;
    assert!(reads(store, meta, 64, 8).await.iter().all(|read| *read == Ok(1)));
    assert_eq!(stats_of(origins, 8).ejections, before);
}

#[tokio::test]
async fn an_address_that_refuses_is_left_out() {
    let site = site_of(7, 8, true).await;
    let origins = origins(&site, settings());
    let (store, meta) = open(&site, &origins).await;
    ejected(&origins, &*store, &meta, 8).await;
    is_avoided(&origins, &*store, &meta).await;
}

#[tokio::test]
async fn an_address_that_swallows_connections_is_left_out() {
    let mut site = site_of(7, 8, true).await;
    site.swallow(8);
    let origins = origins(&site, settings());
    let (store, meta) = open(&site, &origins).await;
    ejected(&origins, &*store, &meta, 8).await;
    is_avoided(&origins, &*store, &meta).await;
}

#[tokio::test]
async fn an_address_that_crawls_is_left_out() {
    let mut site = site_of(7, 8, true).await;
    let link = LinkOptions { bytes_per_second: Some(BYTES * 2), ..LinkOptions::default() };
    site.serve(8, link).await;
    let origins = origins(&site, settings());
    let (store, meta) = open(&site, &origins).await;
    ejected(&origins, &*store, &meta, 8).await;
    is_avoided(&origins, &*store, &meta).await;
}

#[tokio::test]
async fn an_address_that_lies_is_left_out_and_tried_again_later() {
    let mut site = site_of(7, 8, true).await;
    let bad = site.serve(8, LinkOptions::default()).await;
    // At most one fault strikes a request: this one takes the place of the closing.
    bad.clear_faults();
    bad.fault(FaultRule::new("o", Fault::WrongRange(1)));
    let ejection = Duration::from_millis(300);
    let engine = EngineSettings { ejection, hedging: false, ..EngineSettings::default() };
    let origins = origins(&site, OriginSettings { engine, ..settings() });
    let (store, meta) = open(&site, &origins).await;
    ejected(&origins, &*store, &meta, 8).await;
    let bad = site.origin(8);
    bad.clear_faults();
    let before = bad.counts("o").gets;
    while bad.counts("o").gets == before {
        assert!(reads(&*store, &meta, 16, 8).await.iter().all(Result::is_ok));
    }
    assert_eq!(stats_of(&origins, 8).failures, 0);
}

#[tokio::test]
async fn a_retry_goes_to_another_address_over_a_new_connection() {
    let site = site_of(2, 2, false).await;
    let origins = origins(&site, settings());
    let (store, meta) = open(&site, &origins).await;
    let faults: Vec<_> = site
        .origins()
        .map(|origin| origin.fault(FaultRule::new("o", Fault::ResetAfter(1000))))
        .collect();
    for _ in 0..4 {
        let before: Vec<u64> = faults.iter().map(|fault| fault.hits()).collect();
        let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
        let error = store.read(&request(&meta, 0..BYTES), &mut bytes).await.unwrap_err();
        assert!(error.attempt_log[1..].iter().all(|attempt| attempt.connect.is_some()));
        let hits = faults.iter().zip(before).map(|(fault, before)| fault.hits() - before);
        let hits: Vec<u64> = hits.collect();
        assert!(hits == [2, 1] || hits == [1, 2], "{hits:?}");
    }
}

#[tokio::test]
async fn where_all_addresses_are_dead_the_breaker_opens_and_a_probe_closes_it() {
    let mut site = site_of(2, 2, false).await;
    let opened = Duration::from_millis(100);
    let mut settings = settings();
    settings.engine.breaker_open = opened;
    settings.engine.breaker_open_cap = opened * 2;
    let origins = origins(&site, settings);
    let (store, meta) = open(&site, &origins).await;
    site.stop(1);
    site.stop(2);
    let failed = reads(&*store, &meta, 60, 8).await;
    assert!(failed.iter().all(Result::is_err));
    assert_eq!(endpoint(&origins).breaker_opened, 1);
    let decisions = endpoint(&origins).decisions;
    assert_eq!(decisions.breaker_openings.values().sum::<u64>(), 1, "{decisions:?}");
    let why_not = |why| decisions.retries.get(&(false, why)).copied().unwrap_or_default();
    assert!(why_not("breaker_open") + why_not("attempts_spent") > 0, "{decisions:?}");
    let error = loop {
        let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
        let error = store.read(&request(&meta, 0..BYTES), &mut bytes).await.unwrap_err();
        if error.kind == OriginErrorKind::BreakerOpen {
            break error;
        }
        // It was the probe.
        assert_eq!((error.kind, error.attempts), (OriginErrorKind::Unreachable, 1));
    };
    assert_eq!(error.attempts, 0);
    assert!(error.retry_after.is_some() && error.to_string().contains("unreachable"), "{error}");

    site.serve(1, LinkOptions::default()).await;
    insists(&*store, &meta).await;
    assert_eq!(endpoint(&origins).breaker, BreakerState::Closed);
    // What is back is asked for everything at once.
    assert!(reads(&*store, &meta, 20, 8).await.iter().all(|read| *read == Ok(1)));
}

/// Reads until it is done, as long after each failure as the failure says.
async fn insists(store: &dyn OriginStore, meta: &ObjectMeta) {
    let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
    while let Err(error) = store.read(&request(meta, 0..BYTES), &mut bytes).await {
        let kinds = [
            OriginErrorKind::Throttled,
            OriginErrorKind::BreakerOpen,
            OriginErrorKind::Unreachable,
        ];
        assert!(kinds.contains(&error.kind), "{error}");
        sleep(error.retry_after.unwrap_or(Duration::from_millis(30))).await;
    }
    assert!(content().matches(0, &bytes));
}

/// 200 callers during an outage of 31 times the breaker's first wait, as 30 s are of 1 s.
#[tokio::test]
async fn a_throttling_storm_is_not_fed() {
    const CALLERS: usize = 200;
    let site = site_of(1, 1, false).await;
    let opened = Duration::from_millis(30);
    let mut settings = settings();
    settings.engine.breaker_open = opened;
    settings.engine.breaker_open_cap = opened * 30;
    let origins = origins(&site, settings);
    let (store, meta) = open(&site, &origins).await;
    let throttled = Fault::Status { code: 503, retry_after: None };
    let storm = site.origin(1).fault(FaultRule::new("o", throttled));
    let caller = |_| insists(&*store, &meta);
    let callers = futures::stream::iter(0..CALLERS).map(caller).buffer_unordered(CALLERS);
    let calm = async {
        sleep(opened * 31).await;
        let during = endpoint(&origins);
        assert!(during.limit < EngineSettings::default().limit_start, "{during:?}");
        assert!(during.throttled >= 20);
        storm.remove();
    };
    futures::join!(callers.collect::<Vec<()>>(), calm);
    let sent = site.origin(1).counts("o").gets;
    assert!(sent * 10 <= CALLERS as u64 * 12, "{sent} requests for {CALLERS}");
    assert_eq!(endpoint(&origins).inflight, 0);
}

#[tokio::test]
async fn a_failing_read_costs_as_many_requests_as_it_may() {
    for (deadline, limit) in
        [(None, 3), (Some(Duration::from_secs(60)), 5), (Some(Duration::ZERO), 0)]
    {
        let site = site_of(1, 1, false).await;
        let origins = origins(&site, settings());
        let (store, meta) = open(&site, &origins).await;
        let failure = Fault::Status { code: 500, retry_after: None };
        site.origin(1).fault(FaultRule::new("o", failure));
        let deadline = deadline.map(|time| Instant::now() + time);
        let terms = ReadTerms::new(Lane::Prefetch, deadline);
        let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
        let read = store.read_on(&request(&meta, 0..BYTES), terms, bytes[..].as_mut().into()).await;
        assert_eq!(read.unwrap_err().attempts, limit);
        assert_eq!(site.origin(1).counts("o").gets, u64::from(limit));
        // A transient failure costs 14 tokens for each retry; the head that went well was free.
        assert_eq!(endpoint(&origins).tokens, 500 - 14 * limit.saturating_sub(1));
    }
}

#[tokio::test]
async fn tokens_end_the_retries_of_all_callers() {
    let site = site_of(1, 1, false).await;
    let origins = origins(&site, settings());
    let (store, meta) = open(&site, &origins).await;
    // Good reads between keep the breaker closed.
    let fault = Fault::Status { code: 500, retry_after: None };
    site.origin(1).fault(FaultRule::new("o", fault).on_any());
    let mut sent = 0;
    for _ in 0..40 {
        let read = reads(&*store, &meta, 1, 1).await;
        read[0].unwrap_err();
        sent = site.origin(1).counts("o").gets;
    }
    let stats = endpoint(&origins);
    assert!(stats.retries <= 35 && sent <= 20 + 35, "{sent} {stats:?}");
}

#[tokio::test]
async fn a_herd_uses_no_more_connections_than_are_allowed() {
    let site = site_of(1, 1, false).await;
    let block = OriginBlock {
        prefix: "http://".to_owned(),
        max_connections: Some(6),
        ..OriginBlock::default()
    };
    let origins = origins(&site, OriginSettings { origins: vec![block], ..settings() });
    let (store, meta) = open(&site, &origins).await;
    assert!(reads(&*store, &meta, 1000, 1000).await.iter().all(|read| *read == Ok(1)));
    let stats = endpoint(&origins);
    assert!(stats.limit <= 6 && stats.waiting == 0 && stats.inflight == 0, "{stats:?}");
    // One may be closing while its successor is opened.
    assert!(site.origin(1).connections().peak <= 7, "{:?}", site.origin(1).connections());
}

#[tokio::test]
async fn a_reset_costs_no_byte_twice() {
    resets(8).await;
}

#[tokio::test]
async fn a_thousand_resets_cost_no_byte_twice() {
    if std::env::var_os("FOREBAY_SLOW_TESTS").is_none_or(|value| value != "1") {
        println!("skipped: a thousand resets take a minute and run with FOREBAY_SLOW_TESTS=1");
        return;
    }
    resets(200).await;
}

async fn resets(rounds: u32) {
    let site = site_of(1, 1, false).await;
    let origins = origins(&site, settings());
    let (store, meta) = open(&site, &origins).await;
    let (mut received, mut wanted) = (0, 0);
    for round in 0..rounds {
        let seed = Seed::new(u64::from(round));
        let mut random = seed.prng();
        for sent in [0, 1, BYTES / 2, BYTES - 1, random.below(BYTES)] {
            let fault = site.origin(1).fault(FaultRule::new("o", Fault::ResetAfter(sent)).nth(1));
            let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
            let record = store.read(&request(&meta, 0..BYTES), &mut bytes).await.unwrap();
            fault.remove();
            assert!(content().matches(0, &bytes), "round {round}, reset at {sent}");
            assert_eq!((record.attempts, fault.hits()), (2, 1));
            received += record.bytes_received;
            wanted += BYTES;
            // The breaker is not what is tested here.
            assert!(reads(&*store, &meta, 2, 2).await.iter().all(|read| *read == Ok(1)));
        }
    }
    assert!(received * 100 <= wanted * 105, "{received} bytes for {wanted}");
    assert_eq!(endpoint(&origins).breaker_opened, 0);
}

#[tokio::test]
async fn a_read_that_stalls_is_asked_for_twice_and_only_for_its_tail() {
    for (fault, from) in [(Fault::StallBeforeHeaders, 0), (Fault::StallAfter(BYTES / 2), BYTES / 2)]
    {
        let site = site_of(1, 1, false).await;
        let mut settings = quick();
        settings.engine.hedge_after_min = Duration::from_millis(100);
        let origins = origins(&site, settings);
        let (store, meta) = open(&site, &origins).await;
        assert!(reads(&*store, &meta, 160, 4).await.iter().all(|read| *read == Ok(1)));
        let before = endpoint(&origins);
        site.origin(1).fault(FaultRule::new("o", fault).nth(1));
        let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
        let record = store.read(&request(&meta, 0..BYTES), &mut bytes).await.unwrap();
        assert!(content().matches(0, &bytes));
        assert_eq!((record.attempts, record.hedges, record.hedge_wins), (1, 1, 1), "{record:?}");
        assert_eq!(record.attempt_log[0].outcome, AttemptOutcome::Overtaken);
        assert_eq!((record.wasted_bytes, record.bytes_received), (0, BYTES));
        let last = site.origin(1).records().pop().and_then(|record| record.range);
        assert_eq!(last, Some(from..BYTES), "only the tail");
        assert_eq!(endpoint(&origins).hedge_wins, before.hedge_wins + 1);
        assert!(record.attempt_log[0].copied.is_some_and(|at| at > record.attempt_log[0].started));
        let made = |stats: &EndpointStats| stats.decisions.hedges.get(&(true, "slow")).copied();
        assert_eq!(made(&endpoint(&origins)), Some(made(&before).unwrap_or_default() + 1));
    }
}
