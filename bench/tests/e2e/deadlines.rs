//! Deadlines: nought, a millisecond, none, and texts that are none.

use std::time::Duration;

use forebay_client::{CallOptions, Failure, LoadRequest, Reason};
use forebay_proto::pb;
use forebay_testkit::{Content, Fault, FaultRule, Op};
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
    let options = CallOptions { deadline: Some(millisecond), trace_parent: None };
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
    let fetch = stages.iter().find(|stage| stage.stage == "fetch");
    assert!(fetch.is_some_and(|stage| !stage.service.is_zero()), "{stages:?}");
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
        let evict = pb::EvictRequest { uri: uri.clone() };
        let evict = forebay(&node.daemon).await.evict(within(evict, text)).await;
        assert_status(evict, Reason::BadDeadline);
    }
    assert_eq!(origin.total().requests(), 0);
    let answer = forebay(&node.daemon).await.status(Request::new(pb::StatusRequest {})).await;
    assert!(!answer.unwrap().into_inner().draining);
    node.settled().await;
}
