//! What is exposed on `/metrics` after loads of every kind: only what the document lists, what the
//! dashboard and the alert rules look at, and nothing that promtool objects to. The decisions of a
//! load are on its timeline too.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use forebay_client::model::{TraceSpan, TraceTrack};
use forebay_client::{EvictRequest, KeepTier, LoadRequest, PrefetchRequest, Reason};
use forebay_testkit::{Content, Fault, FaultRule, Op, When, temp_dir};
use serde_json::Value;

use crate::command::{command, run, text};
use crate::harness::{BUCKET, CHUNK, Node, NodeSpec, digests, failure, s3, s3_uri, until};
use crate::nvme::prefetch;
use crate::nvme_files::{extents, flip};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A metric of the document: its type, and the values of each label; none where they come from the
/// settings or the machine.
#[derive(Debug, Default)]
struct Documented {
    kind: String,
    labels: BTreeMap<String, Option<BTreeSet<String>>>,
}

/// The document, read as people read it.
fn document() -> BTreeMap<String, Documented> {
    let text = std::fs::read_to_string(root().join("server/METRICS.md")).unwrap();
    let mut metrics: BTreeMap<String, Documented> = BTreeMap::new();
    let mut last = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("## forebay_") {
            last = format!("forebay_{name}");
            metrics.insert(last.clone(), Documented::default());
            continue;
        }
        let Some(metric) = metrics.get_mut(&last) else { continue };
        if let Some((kind @ ("counter" | "gauge" | "histogram"), _)) = line.split_once(',') {
            metric.kind = kind.to_owned();
        } else if let Some((key, values)) =
            line.strip_prefix("- `").and_then(|l| l.split_once("`: "))
        {
            let closed = !values.ends_with(']');
            let values = values.split('`').skip(1).step_by(2).map(str::to_owned);
            metric.labels.insert(key.to_owned(), closed.then(|| values.collect()));
        }
    }
    metrics
}

/// A line of the exposition.
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

fn samples(exposition: &str) -> Vec<Sample> {
    let lines = exposition.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
        let labels = labels.map(|label| {
            let (key, value) = label.split_once('=').unwrap();
            (key.to_owned(), value.trim_matches('"').to_owned())
        });
        Sample { name: name.to_owned(), labels: labels.collect(), value: value.parse().unwrap() }
    };
    lines.map(sample).collect()
}

/// The documented metric that a sample is of.
fn metric_of(documented: &BTreeMap<String, Documented>, name: &str) -> Option<String> {
    let parts =
        ["_bucket", "_sum", "_count"].into_iter().filter_map(|part| name.strip_suffix(part));
    let histogram = |name: &&str| documented.get(*name).is_some_and(|of| of.kind == "histogram");
    let whole = Some(name).filter(|name| documented.contains_key(*name));
    whole.or_else(|| parts.into_iter().find(histogram)).map(str::to_owned)
}

/// A daemon that has served every kind of load there is: from each tier, for each of its workloads,
/// to a device, ahead of need, throttled, denied, too late, given up.
async fn with_loads_of_every_kind() -> (forebay_testkit::S3Origin, Node) {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(1, 8 * CHUNK));
    origin.put(BUCKET, "second", Content::synthetic(2, 8 * CHUNK));
    let spec = NodeSpec::of(&origin).nvme("64MiB").set("workloads", "serving,training");
    let node = spec.start().await;
    let blob = s3_uri("blob");
    let load = |workload: &str| LoadRequest::new(&blob).workload(workload);
    let slow_down = Fault::Status { code: 503, retry_after: Some(Duration::ZERO) };
    origin.fault(FaultRule::new("blob", slow_down).on(Op::Get).when(When::First(1)));
    digests(&node.client, load("serving")).await.unwrap();
    digests(&node.client, load("training")).await.unwrap();
    digests(&node.client, load("nobody-listed-this")).await.unwrap();
    let prefetch = PrefetchRequest::new(s3_uri("second")).tier(KeepTier::Nvme).workload("serving");
    crate::nvme::prefetch(&node.client, prefetch).await.unwrap();
    let evict = EvictRequest::new(s3_uri("second")).tier(KeepTier::Ram);
    node.client.evict(evict).await.unwrap();
    digests(&node.client, LoadRequest::new(s3_uri("second"))).await.unwrap();
    let device = ["load", &blob, "--device", "fake:1", "--workload", "serving", "--numa-node", "0"];
    let device = run(&node, &device);
    assert_eq!(device.status.code(), Some(0), "{device:?}");
    let missing = LoadRequest::new(s3_uri("missing"));
    assert_eq!(failure(&node.client, missing).await.reason(), Reason::ObjectNotFound);
    origin.put(BUCKET, "stalls", Content::synthetic(3, CHUNK));
    origin.fault(FaultRule::new("stalls", Fault::StallAfter(10)).on(Op::Get));
    let late = LoadRequest::new(s3_uri("stalls")).deadline(Duration::from_millis(300));
    assert_eq!(failure(&node.client, late).await.reason(), Reason::Deadline);
    let asked = origin.counts("stalls").gets;
    let mut client = command(&node);
    let client = client.args(["load", &s3_uri("stalls"), "--workload", "serving"]);
    let mut client = client.stdout(Stdio::null()).spawn().unwrap();
    until("it is on its way", async || (origin.counts("stalls").gets > asked).then_some(())).await;
    client.kill().unwrap();
    client.wait().unwrap();
    node.settled().await;
    let given_up = "forebay_loads_total{workload=\"serving\",outcome=\"cancelled\"}";
    until("the load that was given up is counted", async || {
        (node.metric(given_up).await == Some(1.0)).then_some(())
    })
    .await;
    (origin, node)
}

#[tokio::test]
async fn what_is_exposed_is_what_the_document_lists() {
    let (_origin, node) = with_loads_of_every_kind().await;
    let (documented, exposition) = (document(), node.get("/metrics").await.1);
    assert!(documented.len() > 80, "{}", documented.len());
    for Sample { name, labels, .. } in samples(&exposition) {
        let metric = metric_of(&documented, &name);
        let metric = metric.unwrap_or_else(|| panic!("{name} is not in the document"));
        let metric = &documented[&metric];
        for (key, value) in labels.iter().filter(|(key, _)| *key != "le") {
            let values = metric.labels.get(key);
            let values = values.unwrap_or_else(|| panic!("{name} has no {key} in the document"));
            let known = values.as_ref().is_none_or(|values| values.contains(value));
            assert!(known, "{name}: {key}={value:?} is not in the document");
        }
        assert_eq!(labels.keys().filter(|key| *key != "le").count(), metric.labels.len(), "{name}");
    }
    // Workloads are those of the settings.
    let classes: BTreeSet<String> =
        samples(&exposition).iter().filter_map(|s| s.labels.get("workload").cloned()).collect();
    let expected = ["none", "other", "serving", "training"].map(str::to_owned);
    assert_eq!(classes, expected.into());
}

#[tokio::test]
async fn every_load_counts_towards_goodput_and_leaves_its_reasons() {
    let (_origin, node) = with_loads_of_every_kind().await;
    let exposition = node.get("/metrics").await.1;
    let sum = |name: &str, wanted: &[(&str, &str)]| {
        let is_it = |sample: &Sample| {
            let has =
                |(key, value): &(&str, &str)| sample.labels.get(*key).is_some_and(|of| of == value);
            sample.name == name && wanted.iter().all(has)
        };
        samples(&exposition).into_iter().filter(is_it).map(|sample| sample.value).sum::<f64>()
    };
    let serving = ("workload", "serving");
    let loads = |outcome| sum("forebay_loads_total", &[("outcome", outcome)]);
    let outcomes = ["ok", "error", "deadline", "cancelled"].map(loads);
    assert_eq!(outcomes, [6.0, 1.0, 1.0, 1.0]);
    assert_eq!(sum("forebay_loads_in_deadline_total", &[]), 6.0);
    assert_eq!(sum("forebay_loads_in_deadline_total", &[serving]), 3.0);
    let of_stage = "forebay_stage_service_seconds_count";
    let to_device = [serving, ("device", "fake"), ("tier", "ram"), ("outcome", "ok")];
    assert!(sum(of_stage, &to_device) >= 1.0, "{exposition}");
    for labels in
        [[("tier", "nvme"), ("outcome", "ok")], [("tier", "origin"), ("outcome", "deadline")]]
    {
        assert!(sum(of_stage, &labels) >= 1.0, "{labels:?}\n{exposition}");
    }
    let retried = [("made", "true"), ("reason", "throttled")];
    assert_eq!(sum("forebay_retry_decisions_total", &retried), 1.0);
    let chosen =
        |tier, reason| sum("forebay_tier_decisions_total", &[("tier", tier), ("reason", reason)]);
    assert_eq!(chosen("nvme", "stored"), 8.0);
    assert!(chosen("origin", "not_stored") >= 16.0 && chosen("ram", "cached") >= 24.0);
}

/// Runs promtool, if it is installed, with this on its standard input.
fn promtool(args: &[&str], input: &str) -> Option<String> {
    let mut command = Command::new("promtool");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            println!("skipped: promtool cannot be run ({error}): apt-get install prometheus");
            return None;
        }
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "promtool {args:?}: {said}");
    Some(said)
}

#[tokio::test]
async fn promtool_has_no_objection() {
    let (_origin, node) = with_loads_of_every_kind().await;
    let exposition = node.get("/metrics").await.1;
    if let Some(said) = promtool(&["check", "metrics"], &exposition) {
        assert_eq!(said, "");
    }
}

#[test]
fn promtool_takes_the_rules_and_the_panels() {
    let rules = root().join("docker/grafana/rules.yml");
    let Some(said) = promtool(&["check", "rules", rules.to_str().unwrap()], "") else { return };
    assert!(said.contains("SUCCESS"), "{said}");
    // The panels' expressions, as recording rules; JSON is YAML.
    let rules = panels().into_iter().enumerate().map(|(n, expression)| {
        let expression = expression.replace("$__rate_interval", "5m");
        serde_json::json!({ "record": format!("panel:{n}"), "expr": expression })
    });
    let rules =
        serde_json::json!({ "groups": [{ "name": "x", "rules": rules.collect::<Vec<_>>() }] });
    let dir = temp_dir();
    let file = dir.path().join("panels.yml");
    std::fs::write(&file, rules.to_string()).unwrap();
    promtool(&["check", "rules", file.to_str().unwrap()], "");
}

/// The expressions of the dashboard.
fn panels() -> Vec<String> {
    let file = root().join("docker/grafana/dashboard.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

/// What only appears when something goes wrong that did not, or on other machines.
const ONLY_SOMETIMES: [&str; 9] = [
    "forebay_breaker_openings_total",
    "forebay_limiter_steps_total",
    "forebay_cache_quarantined_total",
    "forebay_cache_fill_aborted_total",
    "forebay_fallbacks_total",
    "forebay_nvme_io_errors_total",
    "forebay_hedge_decisions_total",
    "forebay_retry_delay_seconds",
    "forebay_runtime_lag_seconds",
];

#[tokio::test]
async fn what_people_watch_is_there_after_loads() {
    let (_origin, node) = with_loads_of_every_kind().await;
    let exposition = node.get("/metrics").await.1;
    let live: BTreeSet<String> = samples(&exposition).into_iter().map(|s| s.name).collect();
    let rules = std::fs::read_to_string(root().join("docker/grafana/rules.yml")).unwrap();
    let rules = rules.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    let watched =
        panels().into_iter().chain(rules.map(str::to_owned)).collect::<Vec<_>>().join(" ");
    let words = watched.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let watched: BTreeSet<&str> = words.filter(|word| word.starts_with("forebay_")).collect();
    assert!(watched.len() > 40, "{watched:?}");
    let sometimes = |name: &str| ONLY_SOMETIMES.iter().any(|of| name.starts_with(of));
    let missing: Vec<_> =
        watched.iter().filter(|name| !live.contains(**name) && !sometimes(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// The decisions on the timeline of a load.
async fn decisions(node: &Node, load_id: &str) -> Vec<TraceSpan> {
    let trace = node.client.trace(Some(load_id)).await.unwrap();
    trace.spans.into_iter().filter(|span| span.track == TraceTrack::Event).collect()
}

#[track_caller]
fn assert_decided(decisions: &[TraceSpan], name: &str, why: &str) {
    let found = decisions.iter().any(|of| of.name == name && of.clue.contains(why));
    assert!(found, "{name}: {why} is not in {decisions:?}");
    assert!(decisions.iter().all(|of| of.length.is_zero() && of.kind.is_empty()));
}

#[tokio::test]
async fn decisions_are_on_the_timeline_of_their_load() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(1, 40 * CHUNK));
    origin.put(BUCKET, "other", Content::synthetic(2, 60 * CHUNK));
    // 64 slots, so that the second load takes room from the first.
    let node = NodeSpec::of(&origin).start().await;
    let slow_down = Fault::Status { code: 503, retry_after: Some(Duration::ZERO) };
    origin.fault(FaultRule::new("blob", slow_down).on(Op::Get).when(When::First(1)));
    let load = |key: &str| LoadRequest::new(s3_uri(key)).load_id(key);
    digests(&node.client, load("blob")).await.unwrap();
    let told = decisions(&node, "blob").await;
    assert_decided(&told, "throttle", "attempt 1 was throttled");
    assert_decided(&told, "retry", "attempt 2, since the one before was throttled");
    assert_decided(&told, "tier", "origin, no_nvme");
    digests(&node.client, load("other")).await.unwrap();
    assert_decided(&decisions(&node, "other").await, "evict", "chunks of RAM made room");
    digests(&node.client, load("other")).await.unwrap();
    // Which chunk is the first that stayed hangs on how soon the leases of the load before ended.
    assert_decided(&decisions(&node, "other").await, "tier", "and on: ram, cached");
    assert_eq!(failure(&node.client, load("missing")).await.reason(), Reason::ObjectNotFound);
    assert_decided(&decisions(&node, "missing").await, "failed", "OBJECT_NOT_FOUND");

    let trace = run(&node, &["trace", "blob", "-o", "-"]);
    let trace: Value = serde_json::from_str(text(&trace.stdout)).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let moments = || events.iter().filter(|event| event["ph"] == "i");
    assert!(moments().any(|event| event["name"] == "throttle"), "{events:?}");
    assert!(moments().all(|event| event["s"] == "t" && event["ts"].is_f64()));
}

#[tokio::test]
async fn a_fallback_from_nvme_to_the_origin_is_told_and_counted() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(1, 4 * CHUNK));
    let node = NodeSpec::of(&origin).nvme("64MiB").start().await;
    let uri = s3_uri("blob");
    let keep = PrefetchRequest::new(&uri).tier(KeepTier::Nvme);
    prefetch(&node.client, keep).await.unwrap();
    let dir = node.stopped().await;
    flip(&extents(dir.path())[0].path, 8 * 40_000);
    let node = NodeSpec::of(&origin).nvme("64MiB").dir(dir);
    // Else the scrub may find it first, and then it is simply not there.
    let node = node.set("scrub_bytes_per_second", "0").start().await;
    digests(&node.client, LoadRequest::new(&uri).load_id("bad")).await.unwrap();
    let told = decisions(&node, "bad").await;
    assert_decided(&told, "fallback", "to the origin, since NVMe is no help: bad_extent");
    assert_decided(&told, "tier", "origin, bad_extent");
    let counted = "forebay_fallbacks_total{to=\"origin\",reason=\"bad_extent\"}";
    assert_eq!(node.metric(counted).await, Some(1.0));
}
