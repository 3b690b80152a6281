//! One trace identity from the caller to the origin: in reports, errors, the log, and in requests to
//! origins that are told.

use std::collections::BTreeSet;

use forebay_client::{CallOptions, LoadRequest, PrefetchRequest, Reason, TraceParent};
use forebay_proto::pb;
use forebay_proto::pb::load_response::Event;
use forebay_testkit::{Content, Fault, FaultRule};
use serde_json::Value;
use tonic::Request;

use crate::command::{run, text};
use crate::harness::{BUCKET, CHUNK, Node, NodeSpec, digests, failure, s3, s3_uri, until};
use crate::raw::{RawLoad, assert_status, forebay, opening};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// The log's lines with this message.
fn lines(node: &Node, message: &str) -> Vec<Value> {
    let log = node.daemon.log();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["fields"]["message"] == message).collect()
}

/// The one line with this message that is about this load, once it is written.
async fn line(node: &Node, message: &str, load_id: &str) -> Value {
    until("the line is in the log", async || {
        lines(node, message).into_iter().find(|line| line["load_id"] == load_id)
    })
    .await
}

#[tokio::test]
async fn a_trace_goes_through_report_error_and_log() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(1, 3 * CHUNK));
    let node = NodeSpec::of(&origin).start().await;
    let uri = s3_uri("blob");
    let base = ["--format", "json", "--trace-parent", PARENT, "load", "--load-id"];

    let loaded = run(&node, &[&base[..], &["mine", &uri]].concat());
    assert_eq!(loaded.status.code(), Some(0), "{loaded:?}");
    let report: Value = serde_json::from_str(text(&loaded.stdout)).unwrap();
    assert_eq!(report["trace_id"], TRACE);
    let done = line(&node, "load done", "mine").await;
    assert_eq!((&done["trace_id"], &done["lane"]), (&TRACE.into(), &"interactive".into()));
    assert!(done["uid"].is_u64() && done["method"] == "Load", "{done}");

    let failed = run(&node, &[&base[..], &["other", &s3_uri("gone")]].concat());
    assert_eq!(failed.status.code(), Some(3), "{failed:?}");
    let error: Value = serde_json::from_str(text(&failed.stderr).lines().last().unwrap()).unwrap();
    assert_eq!(error["facts"]["trace_id"], TRACE, "{error}");
    let said = line(&node, "request failed", "other").await;
    assert_eq!((&said["trace_id"], &said["level"]), (&TRACE.into(), &"WARN".into()));

    let trace_parent = Some(TraceParent::parse(PARENT).unwrap());
    let client = node.client.with_options(CallOptions { trace_parent, ..CallOptions::default() });
    let mut prefetch = client.prefetch(PrefetchRequest::new(&uri).load_id("kept")).await.unwrap();
    let mut report = None;
    while let Some(event) = prefetch.next().await.unwrap() {
        report = event.into_report();
    }
    assert_eq!(report.unwrap().trace_id, TRACE);
    let kept = line(&node, "prefetch done", "kept").await;
    assert_eq!((&kept["trace_id"], &kept["lane"]), (&TRACE.into(), &"prefetch".into()));
    let error = client.unpin(&uri).await.unwrap_err();
    assert_eq!(error.failure().facts["trace_id"], TRACE, "{error}");

    // Nobody said that the origin may know.
    let told = origin.records().into_iter().filter(|request| request.traceparent.is_some());
    assert_eq!(told.count(), 0);
    node.settled().await;
}

/// A request with these values of `traceparent`.
fn within<T>(message: T, values: &[&str]) -> Request<T> {
    let mut request = Request::new(message);
    for value in values {
        request.metadata_mut().append("traceparent", value.parse().unwrap());
    }
    request
}

#[tokio::test]
async fn what_is_no_traceparent_begins_a_trace() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(1, CHUNK));
    let node = NodeSpec::of(&origin).start().await;
    let bad = [&PARENT.to_uppercase()[..], "00-0-0-00", "ff", ""];
    let mut traces = BTreeSet::new();
    for values in [&[][..], &bad[..1], &bad[1..2], &bad[2..3], &bad[3..], &[PARENT, PARENT]] {
        let with = |stream| within(stream, values);
        let mut load =
            RawLoad::open_with(&node.daemon, opening(&s3_uri("blob")), with).await.unwrap();
        let Some(Event::Opened(opened)) = load.next().await.unwrap() else { panic!("no opening") };
        assert_eq!(opened.trace_id.len(), 32, "{values:?}");
        assert_ne!(opened.trace_id, TRACE, "{values:?}");
        traces.insert(opened.trace_id);
    }
    assert_eq!(traces.len(), 6, "each call is a trace of its own: {traces:?}");
    assert_eq!(node.sum("forebay_trace_parents_rejected_total").await, 5.0);

    let mut unpin = within(pb::UnpinRequest { uri: s3_uri("blob") }, &[PARENT]);
    unpin.metadata_mut().append("tracestate", "vendor=canary".parse().unwrap());
    assert_status(forebay(&node.daemon).await.unpin(unpin).await, Reason::NvmeOff);
    assert!(!node.daemon.log().contains("canary"));
    node.settled().await;
}

/// The traces that an origin was told of, and how many spans.
fn told(origin: &forebay_testkit::Origin) -> (BTreeSet<String>, usize) {
    let headers: Vec<String> =
        origin.records().into_iter().filter_map(|request| request.traceparent).collect();
    let field = |header: &String, n: usize| header.split('-').nth(n).unwrap().to_owned();
    let spans: BTreeSet<String> = headers.iter().map(|header| field(header, 2)).collect();
    assert_eq!(spans.len(), headers.len(), "each request is a span of its own: {headers:?}");
    assert!(headers.iter().all(|header| TraceParent::parse(header).is_ok()), "{headers:?}");
    (headers.iter().map(|header| field(header, 1)).collect(), spans.len())
}

#[tokio::test]
async fn origins_are_told_where_that_is_wanted() {
    let origin = s3().await;
    let content = Content::synthetic(1, 4 * CHUNK);
    origin.put(BUCKET, "m/blob", content.clone());
    origin.put(BUCKET, "quiet/blob", content);
    // An attempt that breaks is another span of the same trace.
    let rule = origin.fault(FaultRule::new("m/blob", Fault::ResetAfter(1000)).nth(3));
    let dir = forebay_testkit::temp_dir();
    let config = dir.path().join("forebay.toml");
    let block = format!(
        "[[origin]]\nprefix = \"s3://{BUCKET}/quiet\"\ntrace = false\nallow_http = true\n\
         endpoint = \"{}\"\n",
        origin.endpoint()
    );
    std::fs::write(&config, block).unwrap();
    let node = NodeSpec::of(&origin).config(&config).set("trace_origins", "true").start().await;
    let trace_parent = Some(TraceParent::parse(PARENT).unwrap());
    let client = node.client.with_options(CallOptions { trace_parent, ..CallOptions::default() });

    // The origin checks every signature: what is not signed does not break one.
    digests(&client, LoadRequest::new(s3_uri("m/"))).await.unwrap();
    assert_eq!(rule.hits(), 1);
    let (traces, requests) = told(&origin);
    assert_eq!(traces, BTreeSet::from([TRACE.to_owned()]));
    assert_eq!(requests as u64, origin.total().requests());
    assert!(requests >= 6, "a listing, four parts and one of them again: {requests}");

    let error = failure(&client, LoadRequest::new(s3_uri("quiet/gone"))).await;
    assert_eq!(error.reason(), Reason::ObjectNotFound);
    digests(&client, LoadRequest::new(s3_uri("quiet/"))).await.unwrap();
    assert_eq!(told(&origin).1, requests, "a block of its own says no");
    node.settled().await;
}
