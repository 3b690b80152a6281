//! Where the time went, as the daemon explains it: the stall is put there, and the explanation has
//! to find it. Stalls that need more than this process are those of `forebay-bench accuracy`, once
//! each.

use std::process::Command;
use std::time::Duration;

use forebay_client::model::{Explanation, TraceTrack};
use forebay_client::{Endpoint, LoadRequest, Reason};
use forebay_testkit::{Content, Fault, FaultRule, Op, S3Origin, When};
use serde_json::Value;

use crate::command::{object, run, text};
use crate::harness::{BUCKET, CHUNK, Node, NodeSpec, digests, failure, s3, s3_uri};

/// A checkpoint of one object, and a node to load it with.
async fn with_object(chunks: u64) -> (S3Origin, Node) {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(1, chunks * CHUNK));
    let node = NodeSpec::of(&origin).start().await;
    (origin, node)
}

/// Loads `blob`, and has the load explained.
async fn explained(node: &Node) -> Explanation {
    let request = LoadRequest::new(s3_uri("blob")).load_id("it");
    digests(&node.client, request).await.expect("the load succeeds");
    let explained = node.client.explain(Some("it")).await.expect("it is known");
    let sum: Duration = explained.causes.iter().map(|cause| cause.time).sum();
    let off = sum.abs_diff(explained.idle);
    assert!(off < Duration::from_micros(100), "the causes sum to the waiting: {explained:?}");
    let path: Duration = explained.critical_path.iter().map(|step| step.time).sum();
    let off = (path + explained.unattributed).abs_diff(explained.wall);
    assert!(off < Duration::from_micros(100), "the path sums to the wall time: {explained:?}");
    explained
}

/// The share of the waiting that went to a cause.
fn share(explained: &Explanation, cause: &str) -> f64 {
    let found = explained.causes.iter().find(|found| found.cause == cause);
    found.map_or(0.0, |found| found.share)
}

#[track_caller]
fn assert_first(explained: &Explanation, cause: &str, word: &str) {
    assert_eq!(explained.causes[0].cause, cause, "{explained:?}");
    assert!(share(explained, cause) > 0.6, "{explained:?}");
    let verdict = &explained.verdict;
    assert!(verdict.contains(word) && verdict.contains(cause), "{verdict}");
    assert!(!explained.causes[0].evidence.is_empty() && !explained.causes[0].advice.is_empty());
    assert_eq!(explained.longest_gaps.iter().filter(|gap| gap.cause == cause).count().min(1), 1);
}

#[tokio::test]
async fn an_origin_that_throttles_is_told_from_one_that_is_slow() {
    let (origin, node) = with_object(4).await;
    let slow_down = Fault::Status { code: 503, retry_after: Some(Duration::from_secs(1)) };
    origin.fault(FaultRule::new("blob", slow_down).on(Op::Get).when(When::First(2)));
    let told = explained(&node).await;
    assert_first(&told, "origin_throttle", "throttles");
    let fact = told.causes[0].evidence.iter().find(|fact| fact.source == "http").unwrap();
    assert!(fact.value >= 1.0, "{fact:?}");

    let (origin, node) = with_object(4).await;
    let late = Fault::Delay(Duration::from_millis(300));
    origin.fault(FaultRule::new("blob", late).on(Op::Get));
    let told = explained(&node).await;
    assert_first(&told, "origin_slow", "for the origin");

    let (origin, node) = with_object(4).await;
    origin.fault(FaultRule::new("blob", Fault::Drip { bytes_per_second: 256 << 10 }).on(Op::Get));
    let told = explained(&node).await;
    assert_first(&told, "origin_slow", "for the origin");
}

#[tokio::test]
async fn what_resolving_waits_for_is_told_too() {
    let (origin, node) = with_object(1).await;
    let late = Fault::Delay(Duration::from_millis(300));
    origin.fault(FaultRule::new("blob", late).on(Op::Head));
    let told = explained(&node).await;
    assert_first(&told, "origin_slow", "for the origin");
    let steps: Vec<_> = told.critical_path.iter().map(|step| step.stage.as_str()).collect();
    assert!(steps.contains(&"ttfb") && steps.contains(&"connect"), "{steps:?}");
}

#[tokio::test]
async fn a_client_that_keeps_what_it_was_given_waits_for_itself() {
    let (_origin, node) = with_object(30).await;
    let request = LoadRequest::new(s3_uri("blob")).load_id("it");
    let mut load = node.client.load(request).await.unwrap();
    let mut taken = 0;
    while let Some(chunk) = load.next_chunk().await.unwrap() {
        taken += 1;
        if taken == 3 {
            // Until nothing more comes: the pool of this test is smaller than the object.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        drop(chunk);
    }
    load.finish().await.unwrap();
    let told = node.client.explain(None).await.unwrap();
    assert_first(&told, "client", "the client itself");
}

#[tokio::test]
async fn a_load_that_fails_is_explained_and_one_that_nobody_knows_is_not_found() {
    let (origin, node) = with_object(4).await;
    let none = node.client.explain(None).await.unwrap_err();
    assert_eq!(none.reason(), Reason::LoadNotKept);
    origin.fault(FaultRule::new("blob", Fault::StallAfter(10)).on(Op::Get));
    let request = LoadRequest::new(s3_uri("blob")).load_id("it");
    let request = request.deadline(Duration::from_millis(700));
    assert_eq!(failure(&node.client, request).await.reason(), Reason::Deadline);
    let told = node.client.explain(Some("it")).await.unwrap();
    assert!(told.verdict.starts_with("It failed with DEADLINE after"), "{}", told.verdict);
    assert!(told.failure.is_some() && told.report.is_none());
    let unknown = node.client.trace(Some("other")).await.unwrap_err();
    assert_eq!((unknown.reason(), unknown.kind().exit_code()), (Reason::LoadNotKept, 3));
    let endpoint = Endpoint::unix(&node.daemon.socket()).unwrap();
    drop(forebay_client::Client::connect(endpoint).await.unwrap());
}

#[tokio::test]
async fn the_command_explains_and_writes_a_trace_that_perfetto_takes() {
    let (origin, node) = with_object(8).await;
    let late = Fault::Delay(Duration::from_millis(100));
    origin.fault(FaultRule::new("blob", late).on(Op::Get));
    let uri = s3_uri("blob");
    let load = run(&node, &["load", &uri, "--device", "fake:1"]);
    assert_eq!(load.status.code(), Some(0), "{load:?}");
    let page = run(&node, &["explain", "last"]);
    let first = text(&page.stdout).lines().next().unwrap().to_owned();
    assert!(first.starts_with("The device waited ") && first.contains("(origin_slow)"), "{first}");

    let trace = run(&node, &["trace", "last", "-o", "-"]);
    let trace: Value = serde_json::from_str(text(&trace.stdout)).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let wall = trace["otherData"]["wall_seconds"].as_f64().unwrap() * 1e6;
    // What the format asks of complete events, and that none lies outside of the load.
    for event in events.iter().filter(|event| event["ph"] == "X") {
        let number = |field: &str| event[field].as_f64().unwrap_or(-1.0);
        assert!(event["name"].is_string() && event["cat"].is_string(), "{event}");
        assert!(event["pid"].is_u64() && event["tid"].is_u64(), "{event}");
        let (start, length) = (number("ts"), number("dur"));
        assert!(start >= 0.0 && length >= 0.0 && start + length <= wall + 1.0, "{event}");
    }
    let has = |category: &str| events.iter().any(|event| event["cat"] == category);
    assert!(has("load") && has("chunk") && has("copy") && has("gap"));

    let known = node.client.trace(None).await.unwrap();
    let copied = known.spans.iter().filter(|span| span.track == TraceTrack::Copy).count();
    assert_eq!(copied, 8);
}

/// Of a stall that was put there once, on a machine that has other things to do.
const CHARGED_MIN: f64 = 0.6;

/// Has the bench measure rows once; each has to charge most of its stall, or say why it cannot be
/// put there.
#[expect(clippy::print_stderr, reason = "why a row is skipped")]
fn assert_charged(rows: &[&str]) {
    let only = rows.iter().flat_map(|row| ["--only", row]);
    let bench = Command::new(env!("CARGO_BIN_EXE_forebay-bench"))
        .args(["accuracy", "--mib", "16", "--runs", "1", "--format", "json"])
        .args(only)
        .output()
        .expect("the bench runs");
    let table = object(&bench);
    let found = table["rows"].as_array().expect("rows");
    let names: Vec<&str> = found.iter().map(|row| row["row"].as_str().expect("a name")).collect();
    assert_eq!(names, rows);
    for row in found {
        let what = row["what"].as_str().expect("a sentence");
        if what.starts_with("skipped: ") {
            eprintln!("{}: {what}", row["row"]);
            continue;
        }
        let charged = row["bounds"][0]["value"].as_f64().expect("a share");
        assert!(charged >= CHARGED_MIN, "{row}\n{}", text(&bench.stderr));
    }
}

#[test]
fn stalls_of_the_network_and_the_machine_are_charged_to_their_causes() {
    assert_charged(&["dns", "tcp_connect", "page_cache", "disk", "cpu_throttle"]);
}

#[test]
fn waits_for_what_others_have_are_charged_to_their_causes() {
    assert_charged(&["configured_rate", "decompress", "admission_queue", "lease_memory"]);
}
