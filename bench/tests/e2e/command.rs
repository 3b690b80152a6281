//! The `forebay` command and the demo, as a person or a script runs them.

use std::process::{Command, Output, Stdio};

use forebay_testkit::{CheckpointSpec, Content, Fault, FaultRule, checkpoint, sha256_of, temp_dir};
use serde_json::Value;

use crate::binaries::forebay;
use crate::canary;
use crate::harness::{BUCKET, CHUNK, Node, NodeSpec, s3, s3_uri, until};
use crate::raw::{RawLoad, opening};

/// The command, towards a daemon.
pub(crate) fn command(node: &Node) -> Command {
    let mut command = Command::new(forebay());
    let endpoint = format!("unix://{}", node.daemon.socket().display());
    command.arg("--endpoint").arg(endpoint).env_clear().stdin(Stdio::null());
    command
}

/// Runs the command to its end.
pub(crate) fn run(node: &Node, args: &[&str]) -> Output {
    let output = command(node).args(args).output().unwrap();
    canary::check("the command", [&output.stdout[..], &output.stderr].concat());
    output
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The one object that a command printed.
pub(crate) fn object(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = text(&output.stdout);
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    serde_json::from_str(said).unwrap()
}

#[tokio::test]
async fn the_verbs_do_what_they_say() {
    let origin = s3().await;
    let made = checkpoint(CheckpointSpec::new(1, 1 << 20).shards(2));
    origin.put_checkpoint(BUCKET, "m/", &made);
    let node = NodeSpec::of(&origin).start().await;
    let uri = s3_uri("m/");
    let json = |args: &[&str]| run(&node, &[&["--format", "json"], args].concat());

    let prefetched = json(&["prefetch", &uri]);
    assert_eq!(prefetched.status.code(), Some(0), "{prefetched:?}");
    let lines: Vec<Value> =
        text(&prefetched.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.last().unwrap()["bytes_by_tier"]["origin"], made.bytes());

    let report = object(&json(&["load", &uri, "--digest"]));
    assert_eq!(report["bytes_by_tier"]["ram"], made.bytes());
    for field in [
        "load_id",
        "uri",
        "revision",
        "bytes",
        "wall_seconds",
        "time_to_first_chunk_seconds",
        "bytes_by_tier",
        "origin_bytes",
        "attempts",
        "retries",
        "hedges",
        "stages",
        "critical_path",
        "unattributed_seconds",
        "device_idle",
        "peak_window_bytes",
        "digests",
    ] {
        assert!(!report[field].is_null(), "{field}: {report}");
    }
    for digest in report["digests"].as_array().unwrap() {
        let key = digest["key"].as_str().unwrap();
        assert_eq!(digest["sha256"], made.file(key).unwrap().sha256(), "{key}");
    }
    assert_eq!(report["digests"].as_array().unwrap().len(), made.files().len());

    let listed = object(&json(&["ls"]));
    assert_eq!(listed["checkpoints"][0]["revision"], report["revision"]);
    let stat = object(&json(&["stat", &uri]));
    assert_eq!(stat["tensors"].as_array().unwrap().len(), made.tensors().count());
    let status = object(&json(&["status"]));
    assert_eq!(status["draining"], false, "{status}");
    let evicted = object(&json(&["evict", &uri]));
    assert_eq!(evicted["checkpoints"], 1, "{evicted}");

    let dir = temp_dir();
    let into = dir.path().join("a b");
    let got = run(&node, &["get", &uri, into.to_str().unwrap()]);
    assert_eq!(got.status.code(), Some(0), "{got:?}");
    for (key, content) in made.files() {
        let bytes = std::fs::read(into.join(key)).unwrap();
        assert_eq!(sha256_of(&bytes), content.sha256(), "{key}");
    }
    assert_eq!(std::fs::read_dir(&into).unwrap().count(), made.files().len());
    for verb in [&["ls"][..], &["status"], &["stat", &uri], &["load", &uri], &["evict", &uri]] {
        let output = run(&node, verb);
        assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{output:?}");
        assert!(!output.stdout.is_empty(), "{verb:?}");
    }
    node.settled().await;
}

#[tokio::test]
async fn failures_are_a_sentence_and_an_exit_code() {
    let origin = s3().await;
    for key in ["blob", "slow", "replaced", "held"] {
        origin.put(BUCKET, key, Content::synthetic(2, 4 * CHUNK));
    }
    // One part, so that its attempts do not open the breaker for the others.
    origin.put(BUCKET, "cut", Content::synthetic(2, CHUNK));
    origin.put(BUCKET, "bad.safetensors", Content::synthetic(3, 100));
    origin.fault(FaultRule::new("cut", Fault::TruncateTo(10)));
    origin.fault(FaultRule::new("slow", Fault::StallBeforeHeaders));
    let other = Content::synthetic(4, 4 * CHUNK);
    origin.fault(FaultRule::new("replaced", Fault::ReplaceObject(other)).nth(2));
    origin.fault(FaultRule::new("denied", Fault::Status { code: 403, retry_after: None }).on_any());
    let spec = NodeSpec::of(&origin).ram("256KiB").set("no_progress", "2s");
    let node = spec.start().await;
    let cases = [
        (2, "BAD_URI", &["load", "nowhere"][..]),
        (2, "UNKNOWN_TENSOR", &["load", &s3_uri("blob"), "--tensors", "x"]),
        (3, "OBJECT_NOT_FOUND", &["load", &s3_uri("gone")]),
        (4, "DEADLINE", &["--deadline", "200ms", "load", &s3_uri("slow")]),
        (4, "DEADLINE", &["--deadline", "0", "load", &s3_uri("blob")]),
        (6, "TRUNCATED", &["load", &s3_uri("cut")]),
        (6, "DECODE_FAILED", &["stat", &s3_uri("bad.safetensors")]),
        (7, "ORIGIN_UNREACHABLE", &["load", "http://127.0.0.1:1/x"]),
        (8, "ORIGIN_DENIED", &["load", &s3_uri("denied")]),
        (9, "REVISION_CHANGED", &["load", &s3_uri("replaced")]),
    ];
    for (code, reason, args) in cases {
        let output = run(&node, args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(reason) && said.starts_with("forebay: "), "{args:?}: {said}");
        assert_eq!((said.trim_end().lines().count(), output.stdout.len()), (1, 0), "{said}");
    }
    let usage = run(&node, &["load"]);
    assert_eq!(usage.status.code(), Some(2), "{usage:?}");
    let mut hoarder = RawLoad::open(&node.daemon, opening(&s3_uri("held"))).await;
    hoarder.hold(4).await;
    let overloaded = run(&node, &["--format", "json", "load", &s3_uri("blob")]);
    assert_eq!(overloaded.status.code(), Some(5), "{overloaded:?}");
    let object = text(&overloaded.stderr).lines().last().unwrap();
    let object: Value = serde_json::from_str(object).unwrap();
    assert_eq!(
        (&object["reason"], &object["code"]),
        (&"RAM_EXHAUSTED".into(), &"RESOURCE_EXHAUSTED".into())
    );
    hoarder.report().await.unwrap();
    node.settled().await;

    let mut alone = command(&node);
    drop(node);
    let output = alone.arg("ls").output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert!(text(&output.stderr).contains("DAEMON_UNREACHABLE"), "{output:?}");
}

#[tokio::test]
async fn a_command_that_is_killed_gives_everything_back() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(5, 32 * CHUNK));
    origin.fault(FaultRule::new("blob", Fault::StallAfter(1)).nth(20));
    let node = NodeSpec::of(&origin).ram("512KiB").start().await;
    let mut load = command(&node);
    let mut load = load.args(["load", &s3_uri("blob")]).stdout(Stdio::null()).spawn().unwrap();
    until("the load hangs", async || {
        (node.metric("forebay_flights").await? == 1.0 && origin.counts("blob").gets == 32)
            .then_some(())
    })
    .await;
    load.kill().unwrap();
    load.wait().unwrap();
    node.settled().await;
    assert_eq!(node.metric("forebay_sessions").await, Some(0.0));
}

#[test]
fn the_demo_runs_cold_and_warm_and_proves_its_bytes() {
    let demo = Command::new(env!("CARGO_BIN_EXE_forebay-bench"))
        .args(["demo", "--mib", "24"])
        .output()
        .unwrap();
    let said = text(&demo.stdout);
    assert_eq!(demo.status.code(), Some(0), "{demo:?}");
    for needed in ["cold ", "warm ", "every byte mapped is what the origin holds", "cleaned up"] {
        assert!(said.contains(needed), "{needed}:\n{said}");
    }
}

#[test]
fn the_bench_of_loads_to_a_device_fills_every_row() {
    let bench = Command::new(env!("CARGO_BIN_EXE_forebay-bench"))
        .args(["device", "--mib", "24", "--runs", "1", "--origin", "2000", "--format", "json"])
        .output()
        .unwrap();
    let table = object(&bench);
    let rows = table["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["row"].as_str().unwrap()).collect();
    assert_eq!(names, ["warm", "open", "cold", "ranks"]);
    for row in rows {
        for figure in row["figures"].as_array().unwrap() {
            assert!(figure["median"].is_number(), "{figure}");
        }
    }
    // What is counted holds at any speed; times are for a machine that does nothing else.
    let counted = |bound: &&Value| bound["what"].as_str().unwrap().starts_with("copied");
    let copied: Vec<&Value> =
        rows[3]["bounds"].as_array().unwrap().iter().filter(counted).collect();
    assert_eq!(copied.len(), 2);
    assert!(copied.iter().all(|bound| bound["holds"] == true), "{copied:?}");
}
