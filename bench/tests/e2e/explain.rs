//! Where the time went, as the daemon explains it: the stall is put there, and the explanation has
//! to find it. Stalls that need more than this process are those of `forebay-bench accuracy`, once
//! each.

use std::process::Command;
use std::time::Duration;

use forebay_client::model::{Explanation, Report, TraceTrack};
use forebay_client::{Endpoint, KeepTier, LoadRequest, PrefetchRequest, Reason};
use forebay_testkit::{Content, Fault, FaultRule, Op, S3Origin, When};
use serde_json::Value;

use crate::chrome;
use crate::command::{object, run, text};
use crate::harness::{BUCKET, CHUNK, Node, NodeSpec, digests, failure, s3, s3_uri, until};

/// A checkpoint of one object, and a node to load it with.
async fn with_object(chunks: u64) -> (S3Origin, Node) {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(1, chunks * CHUNK));
    // What these tests hold is where time goes: none of it should go into lines of a log.
    let node = NodeSpec::of(&origin).set("log_level", "info").start().await;
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
    let late = Fault::Delay(Duration::from_secs(1));
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
    let late = Fault::Delay(Duration::from_secs(1));
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
            tokio::time::sleep(Duration::from_secs(1)).await;
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
    // The first attempt is given up after a second, and another one begins.
    let request = request.deadline(Duration::from_millis(1500));
    assert_eq!(failure(&node.client, request).await.reason(), Reason::Deadline);
    let told = node.client.explain(Some("it")).await.unwrap();
    assert!(told.verdict.starts_with("It failed with DEADLINE after"), "{}", told.verdict);
    assert!(told.failure.is_some() && told.report.is_none());
    assert_first(&told, "origin_slow", "for the origin");
    let unknown = node.client.trace(Some("other")).await.unwrap_err();
    assert_eq!((unknown.reason(), unknown.kind().exit_code()), (Reason::LoadNotKept, 3));
    let endpoint = Endpoint::unix(&node.daemon.socket()).unwrap();
    drop(forebay_client::Client::connect(endpoint).await.unwrap());
}

/// Decisions of these kinds are on the timeline, each with its reason.
async fn assert_decided(node: &Node, load_id: &str, kinds: &[&str]) {
    let trace = node.client.trace(Some(load_id)).await.expect("it is kept");
    let events = trace.spans.iter().filter(|span| span.track == TraceTrack::Event);
    let told: Vec<(&str, &str)> = events.map(|of| (of.name.as_str(), of.clue.as_str())).collect();
    for kind in kinds {
        let there = told.iter().any(|(name, why)| name == kind && !why.is_empty());
        assert!(there, "no {kind} among {told:?}");
    }
}

#[tokio::test]
async fn what_a_load_waited_for_when_it_was_cut_off_or_gave_up_is_told() {
    let (origin, node) = with_object(4).await;
    let slow_down = |seconds| {
        let retry_after = Some(Duration::from_secs(seconds));
        FaultRule::new("blob", Fault::Status { code: 503, retry_after })
    };
    // In the middle of the wait that the origin asked for.
    origin.fault(slow_down(3).on(Op::Get));
    let load = |id: &str| LoadRequest::new(s3_uri("blob")).load_id(id);
    let mut cut = node.client.load(load("left")).await.unwrap();
    let next = tokio::time::timeout(Duration::from_millis(1500), cut.next_chunk()).await;
    assert!(next.is_err(), "no chunk comes");
    drop(cut);
    let told = until("it is kept", async || node.client.explain(Some("left")).await.ok()).await;
    assert_first(&told, "origin_throttle", "throttles");
    assert_decided(&node, "left", &["throttle", "limit"]).await;

    // Until there are no attempts left.
    origin.clear_faults();
    origin.fault(slow_down(0).on(Op::Get));
    let error = failure(&node.client, load("gave-up")).await;
    assert_eq!(error.reason(), Reason::OriginThrottled, "{error}");
    let told = node.client.explain(Some("gave-up")).await.unwrap();
    assert_first(&told, "origin_throttle", "throttles");
    assert_decided(&node, "gave-up", &["throttle", "retry", "no_retry", "failed"]).await;

    // While the first answer is waited for.
    let (origin, node) = with_object(4).await;
    origin.fault(FaultRule::new("blob", Fault::Delay(Duration::from_secs(9))).on(Op::Head));
    let request = load("head").deadline(Duration::from_millis(1500));
    assert_eq!(failure(&node.client, request).await.reason(), Reason::Deadline);
    let told = node.client.explain(Some("head")).await.unwrap();
    assert_first(&told, "origin_slow", "for the origin");
}

/// Every moment of a load is somebody's: at most a hundredth of it is nobody's.
fn is_attributed(report: &Report) -> bool {
    report.unattributed * 100 <= report.wall
}

/// Of several loads at least one; all of its time. A machine that runs much else beside takes time
/// from between two stages of a load; not of each.
async fn assert_one_attributed(what: &str, mut load: impl AsyncFnMut() -> Report) -> Report {
    let mut reports = vec![load().await];
    while reports.len() < 5 && !reports.last().is_some_and(is_attributed) {
        reports.push(load().await);
    }
    assert!(reports.last().is_some_and(is_attributed), "{what}: {reports:#?}");
    reports.remove(reports.len() - 1)
}

#[tokio::test]
async fn nothing_is_left_unattributed_of_a_load_of_many_chunks_or_of_a_prefetch() {
    let dir = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..96_u32 << 20).step_by(4).flat_map(u32::to_le_bytes).collect();
    std::fs::write(dir.path().join("blob"), bytes).unwrap();
    let uri = format!("file://{}", dir.path().join("blob").display());
    let node = NodeSpec::new().ram("256MiB").nvme("512MiB").start().await;
    assert_one_attributed("cold", async || {
        node.client.evict(&uri).await.unwrap();
        digests(&node.client, LoadRequest::new(&uri)).await.unwrap().1
    })
    .await;
    let kept = assert_one_attributed("a prefetch", async || {
        node.client.evict(&uri).await.unwrap();
        let request = PrefetchRequest::new(&uri).tier(KeepTier::Nvme);
        let mut prefetch = node.client.prefetch(request).await.unwrap();
        let mut kept = None;
        while let Some(event) = prefetch.next().await.unwrap() {
            kept = event.into_report();
        }
        kept.expect("a report")
    })
    .await;
    assert!(kept.stages.iter().any(|stage| stage.stage == "nvme_write"), "{kept:?}");
    assert_one_attributed("from the NVMe tier", async || {
        digests(&node.client, LoadRequest::new(&uri)).await.unwrap().1
    })
    .await;
}

#[tokio::test]
async fn the_command_explains_and_writes_a_trace_that_perfetto_takes() {
    let (origin, node) = with_object(8).await;
    let late = Fault::Delay(Duration::from_millis(500));
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
    assert_eq!(chrome::problem(&trace), None);
    let told = node.client.explain(None).await.unwrap();
    let known: Vec<&str> = told.causes.iter().map(|cause| cause.cause.as_str()).collect();
    for gap in events.iter().filter(|event| event["cat"] == "gap") {
        assert!(known.contains(&gap["name"].as_str().unwrap()), "{gap}: {known:?}");
    }
    let has = |category: &str| events.iter().any(|event| event["cat"] == category);
    assert!(has("load") && has("chunk") && has("copy") && has("gap"));

    let known = node.client.trace(None).await.unwrap();
    let copied = known.spans.iter().filter(|span| span.track == TraceTrack::Copy).count();
    assert_eq!(copied, 8);
}

/// Of a stall that was put there once, on a machine that has other things to do.
const CHARGED_MIN: f64 = 0.6;

/// Of how many measurements of a row one has to hold: what else the machine does while a load runs
/// takes time from one of them, and not from each.
const TRIES: usize = 3;

/// What the bench charged of the stall of each row; none of one that cannot be put there, which is
/// said.
#[expect(clippy::print_stderr, reason = "why a row is skipped, and what was measured")]
fn charged(rows: &[&str], more: &[&str]) -> Vec<Option<f64>> {
    let only = rows.iter().flat_map(|row| ["--only", row]);
    let bench = Command::new(env!("CARGO_BIN_EXE_forebay-bench"))
        .args(["accuracy", "--mib", "16", "--runs", "1", "--format", "json"])
        .args(only)
        .args(more)
        .output()
        .expect("the bench runs");
    let table = object(&bench);
    let found = table["rows"].as_array().expect("rows");
    let names: Vec<&str> = found.iter().map(|row| row["row"].as_str().expect("a name")).collect();
    assert_eq!(names, rows);
    let charged = |row: &Value| {
        let what = row["what"].as_str().expect("a sentence");
        if what.starts_with("skipped: ") {
            eprintln!("{}: {what}", row["row"]);
            return None;
        }
        let charged = row["bounds"][0]["value"].as_f64().expect("a share");
        if charged < CHARGED_MIN {
            eprintln!("{row}\n{}", text(&bench.stderr));
        }
        Some(charged)
    };
    found.iter().map(charged).collect()
}

/// Each row has to charge most of its stall, once of a few times, or to say why it cannot be put
/// there. Whether all could be.
fn assert_charged(rows: &[&str], more: &[&str]) -> bool {
    let (mut left, mut were_put) = (rows.to_vec(), true);
    for _ in 0..TRIES {
        let found = charged(&left, more);
        were_put &= found.iter().all(Option::is_some);
        let holds = |charged: &Option<f64>| charged.is_none_or(|charged| charged >= CHARGED_MIN);
        let mut found = found.iter();
        left.retain(|_| !found.next().is_some_and(holds));
        if left.is_empty() {
            break;
        }
    }
    assert!(left.is_empty(), "{left:?} did not charge what they put there, {TRIES} times");
    were_put
}

#[test]
fn stalls_of_the_network_and_the_machine_are_charged_to_their_causes() {
    assert_charged(&["dns", "tcp_connect", "page_cache", "cpu_throttle"], &[]);
}

#[test]
fn waits_for_what_others_have_are_charged_to_their_causes() {
    assert_charged(&["configured_rate", "admission_queue", "lease_memory"], &[]);
}

#[test]
fn the_first_sentence_names_a_slow_disk_and_a_starved_decoder() {
    for (row, words) in [("disk", "for the NVMe tier's disk"), ("decompress", "decod")] {
        let dir = tempfile::tempdir().unwrap();
        if !assert_charged(&[row], &["--traces", dir.path().to_str().unwrap()]) {
            continue;
        }
        // Named after when the load began: the last one had the stall.
        let files = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let told = std::fs::read_to_string(files.max().expect("a trace")).unwrap();
        let first = told.lines().next().unwrap();
        assert!(first.contains(words), "{row}: {first}");
    }
}
