//! Deadlines: nought, a millisecond, none, and texts that are none.

use std::time::Duration;

use forebay_client::{CallOptions, Failure, LoadRequest, PrefetchRequest, Reason};
use forebay_proto::pb;
use forebay_testkit::{Content, Fault, FaultRule, LinkOptions, Op, S3Options, S3Origin};
use tonic::Request;

use crate::harness::{BUCKET, CHUNK, NodeSpec, assert_ends, digests, failure, s3, s3_uri, until};
use crate::raw::{RawLoad, assert_status, forebay, opening, within};

#[tokio::test]
async fn a_deadline_of_nothing_starts_nothing() {
    let origin = s3().await;
    let node = NodeSpec::of(&origin).start().await;
    let uri = s3_uri("there/is/something");
    let request = LoadRequest::new(&uri).deadline(Duration::ZERO);
    assert_ends(&failure(&node.client, request).await, Reason::Deadline, 4);
    // The library sends nothing then; others do.
    for nothing in ["0m", "0n", "0H"] {
        let zero = |stream| within(stream, nothing);
        let load = RawLoad::open_with(&node.daemon, opening(&uri), zero).await;
        assert_status(load, Reason::Deadline);
        let mut client = forebay(&node.daemon).await;
        let stat = pb::StatRequest { uri: uri.clone() };
        assert_status(client.stat(within(stat, nothing)).await, Reason::Deadline);
        let status = client.status(within(pb::StatusRequest {}, nothing)).await;
        assert_status(status, Reason::Deadline);
    }
    assert_eq!(origin.total().requests(), 0);
    node.settled().await;
}

#[tokio::test]
async fn a_deadline_of_a_millisecond_ends_every_call() {
    let origin = s3().await;
    // No answer of the origin comes in time.
    origin.fault(FaultRule::new("*", Fault::StallBeforeHeaders).on_any());
    let node = NodeSpec::of(&origin).start().await;
    let uri = s3_uri("there/is/something");
    let millisecond = Duration::from_millis(1);
    let request = LoadRequest::new(&uri).deadline(millisecond);
    assert_ends(&failure(&node.client, request).await, Reason::Deadline, 4);
    let options = CallOptions { deadline: Some(millisecond), ..CallOptions::default() };
    let error = node.client.with_options(options).stat(&uri).await.unwrap_err();
    assert_ends(&error, Reason::Deadline, 4);
    let load = RawLoad::open_with(&node.daemon, opening(&uri), |s| within(s, "1m")).await;
    match load {
        Ok(load) => assert_eq!(load.failure().await.reason, Reason::Deadline),
        Err(status) => assert_eq!(Failure::from_status(&status).reason, Reason::Deadline),
    }
    let asked = pb::PrefetchRequest { uri: uri.clone(), ..Default::default() };
    let prefetch = forebay(&node.daemon).await.prefetch(within(asked, "1m")).await;
    let status = match prefetch {
        Ok(answer) => answer.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(Failure::from_status(&status).reason, Reason::Deadline);
    node.settled().await;
    until("no connection is left", async || (origin.connections().open == 0).then_some(())).await;
}

#[tokio::test]
async fn no_deadline_is_the_one_of_the_configuration() {
    let origin = s3().await;
    let node = NodeSpec::of(&origin).start().await;
    let request = LoadRequest::new(s3_uri("there/is/something"));
    assert_eq!(digests(&node.client, request.clone()).await.unwrap().1.bytes, 6);
    drop(node);

    origin.fault(FaultRule::new("*", Fault::StallBeforeHeaders).on(Op::Head));
    let node = NodeSpec::of(&origin).set("deadline", "200ms").start().await;
    assert_ends(&failure(&node.client, request.clone()).await, Reason::Deadline, 4);
    drop(node);
    // A longer one is cut to the longest there is.
    let node = NodeSpec::of(&origin).set("deadline_max", "200ms").start().await;
    let error = failure(&node.client, request.deadline(Duration::from_secs(3600))).await;
    assert_ends(&error, Reason::Deadline, 4);
    node.settled().await;
}

#[tokio::test]
async fn a_deadline_in_the_middle_says_where_the_time_went() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(1, 40 * CHUNK));
    origin.fault(FaultRule::new("blob", Fault::Drip { bytes_per_second: 16 << 10 }));
    let node = NodeSpec::of(&origin).start().await;
    let request = LoadRequest::new(s3_uri("blob")).deadline(Duration::from_secs(1));
    let error = failure(&node.client, request).await;
    assert_ends(&error, Reason::Deadline, 4);
    let stages = &error.failure().stages;
    let resolve = stages.iter().find(|stage| stage.stage == "resolve");
    assert!(resolve.is_some_and(|stage| !stage.service.is_zero()), "{stages:?}");
    // What was cut off on its way is in the account: at 16 KiB/s no part ended within the second.
    let body = stages.iter().find(|stage| stage.stage == "body");
    assert!(body.is_some_and(|stage| !stage.service.is_zero()), "{stages:?}");
    node.settled().await;
    until("no part goes on", async || (origin.connections().open == 0).then_some(())).await;
    let sent = origin.counts("blob").body_bytes;
    assert!(sent < 40 * CHUNK, "{sent} bytes were sent");
}

#[tokio::test]
async fn a_malformed_grpc_timeout_is_refused() {
    let origin = s3().await;
    let node = NodeSpec::of(&origin).start().await;
    let uri = s3_uri("there/is/something");
    for text in ["", "5", "S", "123456789S", "-1S", "1 S", "1s", "1.5S", "+1S", "x"] {
        let load = RawLoad::open_with(&node.daemon, opening(&uri), |s| within(s, text)).await;
        assert_status(load, Reason::BadDeadline);
        let list = forebay(&node.daemon).await.list(within(pb::ListRequest::default(), text)).await;
        assert_status(list, Reason::BadDeadline);
        let evict = pb::EvictRequest { uri: uri.clone(), ..Default::default() };
        let evict = forebay(&node.daemon).await.evict(within(evict, text)).await;
        assert_status(evict, Reason::BadDeadline);
    }
    assert_eq!(origin.total().requests(), 0);
    let answer = forebay(&node.daemon).await.status(Request::new(pb::StatusRequest {})).await;
    assert!(!answer.unwrap().into_inner().draining);
    node.settled().await;
}

#[tokio::test]
async fn an_origin_that_falls_silent_ends_a_load_long_before_its_deadline() {
    for fault in [Fault::StallBeforeHeaders, Fault::StallAfter(CHUNK / 2)] {
        let origin = s3().await;
        origin.put(BUCKET, "blob", Content::synthetic(2, 20 * CHUNK));
        origin.fault(FaultRule::new("blob", fault.clone()).on(Op::Get));
        let node = NodeSpec::of(&origin).set("no_progress", "300ms").start().await;
        let error = node.refused(&s3_uri("blob")).await;
        assert_ends(&error, Reason::NoProgress, 4);
        assert!(error.to_string().contains("chunks were on their way"), "{fault:?}: {error}");
        let mut prefetch =
            node.client.prefetch(PrefetchRequest::new(s3_uri("blob"))).await.unwrap();
        let mut step = prefetch.next().await;
        while step.is_ok() {
            step = prefetch.next().await;
        }
        let error = step.unwrap_err();
        assert_ends(&error, Reason::NoProgress, 4);
        node.settled().await;
    }
}

#[tokio::test]
async fn an_origin_that_drips_makes_progress() {
    let origin = s3().await;
    let content = Content::synthetic(3, 4 * CHUNK);
    origin.put(BUCKET, "blob", content.clone());
    // A second for each part, and a byte every few milliseconds.
    origin.fault(FaultRule::new("blob", Fault::Drip { bytes_per_second: CHUNK }).on(Op::Get));
    let node = NodeSpec::of(&origin).set("no_progress", "800ms").start().await;
    node.loads(&s3_uri("blob"), &[("blob".to_owned(), content)]).await;
}

#[tokio::test]
async fn a_deadline_that_cannot_be_met_is_refused_at_once() {
    const RATE: u64 = 2 << 20;
    let link = LinkOptions { total_bytes_per_second: Some(RATE), ..Default::default() };
    let origin = S3Origin::start(S3Options { link, ..Default::default() }).await;
    origin.put(BUCKET, "first", Content::synthetic(5, 8 * RATE));
    origin.put(BUCKET, "second", Content::synthetic(6, 3 * RATE));
    let node = NodeSpec::of(&origin).ram("32MiB").set("connections", "4").start().await;
    let load = |name: &str, millis| {
        let request = LoadRequest::new(s3_uri(name)).deadline(Duration::from_millis(millis));
        digests(&node.client, request)
    };
    // Nothing is known yet: it is tried, and the deadline ends it.
    let error = load("second", 100).await.unwrap_err();
    assert_ends(&error, Reason::Deadline, 4);
    node.settled().await;
    node.client.evict(s3_uri("second")).await.unwrap();
    load("first", 60_000).await.unwrap();
    let before = origin.counts("second").body_bytes;
    let error = load("second", 1000).await.unwrap_err();
    assert_ends(&error, Reason::DeadlineInfeasible, 5);
    let fact = |name: &str| error.failure().facts.get(name).and_then(|text| text.parse().ok());
    let fact = |name: &str| -> f64 { fact(name).unwrap_or_else(|| panic!("{name}: {error}")) };
    assert!(fact("needed_seconds") > fact("remaining_seconds"), "{error}");
    assert!(fact("remaining_seconds") <= 1.0, "{error}");
    assert!(fact("missing_bytes") <= (3 * RATE) as f64, "{error}");
    let rate = fact("bytes_per_second");
    assert!((RATE as f64 * 0.5..RATE as f64 * 2.0).contains(&rate), "{error}");
    assert_eq!(origin.counts("second").body_bytes, before, "no byte was asked for");
    let refused = "forebay_admission_rejected_total{reason=\"DEADLINE_INFEASIBLE\"}";
    assert_eq!(node.metric(refused).await, Some(1.0));
    // What is in RAM needs no origin, and with enough time the rest is loaded.
    let warm = load("first", 5000).await.unwrap().1;
    assert_eq!(warm.bytes_by_tier.ram, 8 * RATE);
    load("second", 60_000).await.unwrap();
}
