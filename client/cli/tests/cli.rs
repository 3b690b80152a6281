//! The built `forebay` against a daemon that speaks the real protocol: exit codes, what goes to
//! which stream, and files.

#[path = "../../tests/fake/mod.rs"]
mod fake;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use fake::{Fake, Fault, Script};
use forebay_client::{Failure, Reason};
use forebay_proto::pb;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const CHUNK: usize = 16 << 10;

fn checkpoint() -> Script {
    Script::of(&[("b.bin", 5 * CHUNK + 9), ("config.json", 77), ("d e/empty", 0), ("d e/ü", CHUNK)])
        .tensor("w.0", 0, 8..CHUNK)
        .tensor("w.1", 0, CHUNK..3 * CHUNK)
}

fn forebay(endpoint: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.env_remove("XDG_RUNTIME_DIR").env("FOREBAY_ENDPOINT", endpoint).args(args);
    command.stdin(Stdio::null());
    command
}

fn run(fake: &Fake, args: &[&str]) -> Output {
    forebay(&fake.endpoint(), args).output().expect("the command")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("an exit code")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

fn object(line: &str) -> Value {
    serde_json::from_str(line).expect("an object")
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Plain files right in a directory.
fn files_in(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().is_file()).count()
}

#[test]
fn mistakes_on_the_command_line_exit_with_2() {
    for line in [
        "",
        "frobnicate",
        "load",
        "get s3://b/k",
        "prefetch",
        "ls --format xml",
        "ls --deadline 5",
        "ls --deadline -1s",
        "ls --endpoint /no/scheme",
        "ls --trace-parent 00-abc",
        "load s3://b/k --device cuda",
        "load s3://b/k --device fake:0",
        "load s3://b/k --rank 8/8",
        "load s3://b/k --dim 1",
        "load s3://b/k --shard a=1",
        "load s3://b/k --rank 0/8 --shard a",
        "load s3://b/k --lane fast",
        "load s3://b/k --gpu 0",
        "load s3://b/k --gpu 3b:00.0 --numa-node 0",
        "prefetch s3://b/k --numa-node one",
        "load s3://b/k --load-id a/b",
        "load s3://b/k --tensors a,,b",
        "prefetch s3://b/k --tier disk",
        "evict s3://b/k --tier origin",
        "pack s3://b/k",
        "pack s3://b/k s3://b/l --chunk 3MiB",
        "pack s3://b/k s3://b/l --level 20",
        "resize",
        "alias",
        "alias set prod",
        "alias set s3://b/k s3://b/k",
        "alias set last s3://b/k",
        "rollback",
        "rollback a/b",
        "resize --ram 25%",
        "resize --ram 4",
        "evict",
        "pin",
        "unpin s3://b/k s3://b/l",
        "verify",
        "trace",
        "explain a b",
        "health now",
        "health --alive",
    ] {
        let args: Vec<&str> = line.split_whitespace().collect();
        let output = forebay("unix:///nowhere", &args).output().unwrap();
        assert_eq!(code(&output), 2, "{line}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{line}");
        assert!(!output.stderr.is_empty(), "{line}");
    }
}

#[test]
fn help_and_version_go_to_stdout_with_0() {
    for line in ["--help", "--version", "load --help", "get --help", "evict --help"] {
        let args: Vec<&str> = line.split_whitespace().collect();
        let output = forebay("unix:///nowhere", &args).output().unwrap();
        assert_eq!(code(&output), 0, "{line}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{line}");
    }
}

#[test]
fn no_daemon_exits_with_7_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = format!("unix://{}/forebay.sock", dir.path().display());
    let output = forebay(&endpoint, &["status", "--format", "json"]).output().unwrap();
    assert_eq!(code(&output), 7);
    assert!(output.stdout.is_empty());
    let text = stderr(&output);
    let (sentence, json) = text.trim_end().split_once('\n').unwrap();
    assert!(sentence.contains(&endpoint) && sentence.contains("start forebayd"), "{sentence}");
    let json = object(json);
    assert_eq!(json["code"], "UNAVAILABLE");
    assert_eq!(json["reason"], "DAEMON_UNREACHABLE");
    for field in ["message", "stage", "object", "attempt", "origin_status", "retry_after_seconds"] {
        assert!(json.get(field).is_some(), "{field}");
    }
}

#[test]
fn without_an_endpoint_the_default_is_tried() {
    if Path::new("/run/forebay/forebay.sock").exists() {
        println!("skipped: a daemon runs on this machine");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = forebay("", &["ls"]);
    command.env_remove("FOREBAY_ENDPOINT").env("XDG_RUNTIME_DIR", dir.path());
    let output = command.output().unwrap();
    assert_eq!(code(&output), 7);
    let default = dir.path().join("forebay/forebay.sock");
    assert!(stderr(&output).contains(default.to_str().unwrap()), "{}", stderr(&output));
}

#[test]
fn every_kind_of_failure_has_its_exit_code() {
    for (reason, expected) in [
        (Reason::Internal, 1),
        (Reason::BadUri, 2),
        (Reason::ObjectNotFound, 3),
        (Reason::Deadline, 4),
        (Reason::QueueFull, 5),
        (Reason::DigestMismatch, 6),
        (Reason::OriginThrottled, 7),
        (Reason::OriginDenied, 8),
        (Reason::CredentialsExpired, 8),
        (Reason::RevisionChanged, 9),
        (Reason::NotCached, 3),
        (Reason::NvmeExhausted, 5),
        (Reason::NvmeOff, 9),
    ] {
        let failure = Failure::new(reason, "it failed").retry_in(Duration::from_millis(1500));
        let fake = Fake::start(checkpoint().fault(Fault::Refuse(failure)));
        for verb in ["load", "prefetch", "pin", "unpin", "evict", "verify"] {
            let output = run(&fake, &[verb, "s3://b/k", "--format", "json"]);
            assert_eq!(code(&output), expected, "{verb}");
            let text = stderr(&output);
            let json = object(text.lines().last().unwrap());
            assert_eq!(json["reason"], reason.as_str());
            assert_eq!(json["retry_after_seconds"], 1.5);
        }
    }
}

#[test]
fn deadlines_are_sent_and_0_has_passed() {
    let fake = Fake::start(checkpoint());
    let output = run(&fake, &["--deadline", "0", "load", "s3://b/k"]);
    assert_eq!(code(&output), 4, "{}", stderr(&output));
    assert_eq!(code(&run(&fake, &["load", "s3://b/k", "--deadline", "none"])), 0);
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let args = ["load", "s3://b/k", "--deadline", "30s", "--trace-parent", trace];
    assert_eq!(code(&run(&fake, &args)), 0);
    let seen = fake.seen();
    let [none, some] = seen.timeouts.as_slice() else { panic!("{seen:?}") };
    assert!(none.is_none() && some.is_some());
    assert_eq!(seen.trace_parents, [None, Some(trace.to_owned())]);
    fake.set_fault(Fault::Silent);
    assert_eq!(code(&run(&fake, &["status", "--deadline", "50ms"])), 4);
}

#[test]
fn load_prints_the_report_and_the_digests_in_key_order() {
    let fake = Fake::start(checkpoint());
    let output = run(&fake, &["load", "s3://b/k", "--digest", "--lane", "prefetch"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let keys = ["b.bin", "config.json", "d e/empty", "d e/ü"];
    let line = |(index, key)| format!("{}  {key}", sha256(&fake.object(index)));
    let expected: Vec<String> = keys.into_iter().enumerate().map(line).collect();
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[lines.len() - 4..], expected);
    assert!(output.stderr.is_empty(), "{}", stderr(&output));
}

#[test]
fn load_prints_one_object_with_every_field() {
    let fake = Fake::start(checkpoint());
    let args = ["--format", "json", "load", "s3://b/k", "--digest", "--load-id", "mine"];
    let json = object(&stdout(&run(&fake, &args)));
    assert_eq!(json["digests"][3], json!({"key": "d e/ü", "sha256": sha256(&fake.object(3))}));
    for field in [
        "load_id",
        "trace_id",
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
        "hedge_wins",
        "throttles",
        "wasted_bytes",
        "origin_queue_seconds",
        "backoff_seconds",
        "stages",
        "critical_path",
        "unattributed_seconds",
        "device_idle",
        "peak_window_bytes",
    ] {
        assert!(json.get(field).is_some(), "{field}");
    }
    assert_eq!(fake.seen().opens[0].load_id, "mine");
    let json = object(&stdout(&run(&fake, &["--format", "json", "load", "s3://b/k"])));
    assert!(json.get("digests").is_none());
}

#[test]
fn load_to_a_device_reports_its_copies() {
    let fake = Fake::start(checkpoint());
    let args = ["--format", "json", "load", "s3://b/k", "--device", "fake:100"];
    let json = object(&stdout(&run(&fake, &args)));
    let device = &json["device"];
    assert_eq!(device["device"], "fake:100");
    assert_eq!(device["path"], "registered_read_only");
    assert_eq!(device["bytes"], json["bytes"]);
    assert!(device["busy_seconds"].as_f64().unwrap() > 0.0);
    assert!(device["idle_seconds"].as_f64().unwrap() >= 0.0);
    assert!(device["copies"].as_u64().unwrap() > 0);
    let output = run(&fake, &["load", "s3://b/k", "--device", "fake:100", "--rank", "1/2"]);
    assert!(stdout(&output).contains("device fake:100"), "{}", stdout(&output));
    let shard = fake.seen().opens[1].shard.clone().expect("a shard");
    assert_eq!((shard.rank, shard.ranks, shard.rules.len()), (1, 2, 1));
    let output = run(&fake, &["load", "s3://b/k", "--device", "fake:100", "--digest"]);
    assert_eq!(code(&output), 2, "{}", stderr(&output));
}

#[test]
fn load_takes_tensor_globs_by_commas_and_by_repetition() {
    let fake = Fake::start(checkpoint());
    let args = ["load", "s3://b/k", "--tensors", "w.0,w.9", "--tensors", "w.1", "--digest"];
    let output = run(&fake, &args);
    assert_eq!(fake.seen().opens[0].tensors, ["w.0", "w.9", "w.1"]);
    let expected = format!("{}  b.bin", sha256(&fake.object(0)[..3 * CHUNK]));
    assert_eq!(stdout(&output).lines().last().unwrap(), expected);
}

fn assert_is_object(fake: &Fake, index: usize, path: &Path) {
    let bytes = fs::read(path).expect("a file");
    assert!(bytes == fake.object(index), "{}", path.display());
}

#[test]
fn get_writes_every_object_and_replaces_what_was_there() {
    let fake = Fake::start(checkpoint());
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("new");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("b.bin"), vec![1; 5 * CHUNK + 9]).unwrap();
    let output = run(&fake, &["get", "s3://b/k", target.to_str().unwrap(), "--format", "json"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    for (index, key) in ["b.bin", "config.json", "d e/empty", "d e/ü"].iter().enumerate() {
        assert_is_object(&fake, index, &target.join(key));
    }
    assert_eq!(fs::read_dir(&target).unwrap().count(), 3, "no temporary file is left");
    let json = object(&stdout(&output));
    assert_eq!(json["files"][1]["key"], "config.json");
    assert_eq!(json["files"][1]["bytes"], 77);

    let other = dir.path().join("deep/er");
    let args = ["get", "s3://b/k", other.to_str().unwrap(), "--only", "config.json,d e/empty"];
    assert_eq!(code(&run(&fake, &args)), 0);
    assert_is_object(&fake, 1, &other.join("config.json"));
    assert_is_object(&fake, 2, &other.join("d e/empty"));
    assert_eq!(fs::read_dir(&other).unwrap().count(), 2);
}

#[test]
fn a_get_that_fails_changes_nothing() {
    let failure = Failure::new(Reason::RevisionChanged, "it changed");
    let fake = Fake::start(checkpoint().fault(Fault::FailAfter(7, failure)));
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("b.bin"), "before").unwrap();
    let output = run(&fake, &["get", "s3://b/k", dir.path().to_str().unwrap()]);
    assert_eq!(code(&output), 9, "{}", stderr(&output));
    assert_eq!(fs::read(dir.path().join("b.bin")).unwrap(), b"before");
    assert_eq!(files_in(dir.path()), 1, "no temporary file is left");
    assert_eq!(files_in(&dir.path().join("d e")), 0);
    fake.wait_leased(0);
}

#[test]
fn get_refuses_keys_that_are_no_paths() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("inside");
    for key in ["../out", "/out", "a/../../out", "a//b", ".", "a/"] {
        let fake = Fake::start(Script::of(&[("ok", 10), (key, 10)]));
        let args = ["get", "s3://b/k", inside.to_str().unwrap(), "--format", "json"];
        let output = run(&fake, &args);
        assert_eq!(code(&output), 2, "{key}");
        let text = stderr(&output);
        assert_eq!(object(text.lines().last().unwrap())["reason"], "UNSAFE_KEY");
        assert!(!inside.exists() && !dir.path().join("out").exists());
        let only = [&args[..], &["--only", "ok"]].concat();
        assert_eq!(code(&run(&fake, &only)), 0, "{key} can be left out");
        fs::remove_dir_all(&inside).unwrap();
    }
}

#[test]
fn get_follows_no_link_out_of_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("inside");
    fs::create_dir(&inside).unwrap();
    std::os::unix::fs::symlink(dir.path(), inside.join("d e")).unwrap();
    let fake = Fake::start(checkpoint());
    let output = run(&fake, &["get", "s3://b/k", inside.to_str().unwrap()]);
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing beside it");
    assert_eq!(files_in(&inside), 0);
}

#[test]
fn control_verbs_print_tables_and_objects() {
    let fake = Fake::start(checkpoint());
    for (args, words, field) in [
        (&["ls"][..], &["REVISION", "s3://b/k/", "3.0 MiB"][..], "checkpoints"),
        (&["ls"], &["PINNED", "2.0 MiB   yes"], "checkpoints"),
        (&["ls", "s3://b/"], &["s3://b/k/"], "checkpoints"),
        (&["stat", "s3://b/k"], &["config.json", "w.1", "80.0 KiB"], "tensors"),
        (&["stat", "s3://b/k"], &["NVMe 3.0 KiB", "1.0 KiB   3.0 KiB"], "cached"),
        (&["pin", "s3://b/k"], &["2.0 KiB in NVMe", "512 B missing"], "missing_bytes"),
        (&["unpin", "s3://b/k"], &["2 checkpoints unpinned"], "checkpoints"),
        (&["evict", "s3://b/k"], &["2.0 KiB freed", "3 checkpoints"], "freed_bytes"),
        (&["explain"], &["The GPU waited 750.0 ms of 1.00 s.\n", "last-load"], "verdict"),
        (&["explain", "last"], &["origin_throttle", "12 answers (http)"], "causes"),
        (&["explain", "x"], &["as load x", "Ask for a higher request rate."], "longest_gaps"),
        (&["trace", "last"], &["\"resolve\"", "\"copy\"", "\"chunks 0\""], "traceEvents"),
        (&["capacity"], &["origin       2.50 GB/s", "20 %", "2.00 GB/s", "7.00s"], "stages"),
        (&["capacity"], &["decompress   not measured yet", "the best second"], "stages"),
        (&["capacity"], &["at most 2.50 GB/s", "origin (handoff not measured yet)"], "loads"),
        (&["capacity"], &["packed   not measured yet"], "window_seconds"),
        (&["doctor"], &["fake, up 1 s", "io_uring", "warn io_uring: set the sysctl"], "checks"),
        (&["doctor"], &["client\n", "handoff.sock", "cuda_driver"], "endpoint"),
        (&["status"], &["forebayd fake", "memory is not locked"], "degraded"),
        (&["status"], &["NVMe recovering, 3.0 GiB of 100.0 GiB", "threads (io_"], "nvme"),
        (&["status"], &["8-15", "64.0 GiB", "321", "4321", "77"], "numa"),
        (&["status"], &["s3://models", "2500.0 MB/s", "open 3.00s", "486"], "endpoints"),
        (&["status"], &["192.0.2.2", "for 30.00s"], "addresses"),
        (&["alias", "ls", "prod"], &["b3:010101010101", "2023-11-14 22:13:20", "set"], "aliases"),
        (&["rollback", "prod"], &["prod is again s3://b/k", "before: s3://b/k"], "wall_seconds"),
        (&["alias", "rm", "prod"], &["2 revisions may be evicted"], "revisions"),
        (&["status"], &["store.example", "12.00s", "192.0.2.1, 192.0.2.2"], "names"),
    ] {
        let human = run(&fake, args);
        assert_eq!(code(&human), 0, "{args:?}: {}", stderr(&human));
        for word in words {
            assert!(stdout(&human).contains(word), "{args:?} {word}: {}", stdout(&human));
        }
        let json = run(&fake, &[args, &["--format", "json"]].concat());
        assert_eq!(stdout(&json).lines().count(), 1, "{args:?}");
        assert!(object(&stdout(&json)).get(field).is_some(), "{args:?}");
        assert!(human.stderr.is_empty() && json.stderr.is_empty());
    }
}

#[test]
fn the_doctor_ends_with_9_if_something_is_bad_and_with_7_without_a_daemon() {
    let mut script = checkpoint();
    script.fault = Fault::Ill;
    let fake = Fake::start(script);
    let output = run(&fake, &["doctor", "--format", "json"]);
    assert_eq!(code(&output), 9, "{}", stdout(&output));
    let said = object(&stdout(&output));
    let bad = said["checks"].as_array().unwrap().iter().find(|check| check["verdict"] == "bad");
    assert_eq!((bad.unwrap()["found"].as_str(), &said["bad"]), (Some("s3://b: none"), &json!(1)));
    assert_eq!(said["daemon_answered"], true);
    assert!(stderr(&output).contains("BAD_CHECKS"), "{}", stderr(&output));

    let dir = tempfile::tempdir().unwrap();
    let endpoint = format!("unix://{}/forebay.sock", dir.path().display());
    let output = forebay(&endpoint, &["doctor"]).output().unwrap();
    assert_eq!(code(&output), 7, "{}", stderr(&output));
    let page = stdout(&output);
    for word in ["uid", "memlock", "gpu_nodes", "bad socket: start forebayd", "bad handoff"] {
        assert!(page.contains(word), "{word}: {page}");
    }
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
}

#[test]
fn a_trace_is_written_where_it_is_asked_for() {
    let fake = Fake::start(checkpoint());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.json");
    let output = run(&fake, &["trace", "my-load", "-o", file.to_str().unwrap()]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("3 spans of load my-load"), "{}", stdout(&output));
    let trace = object(&fs::read_to_string(&file).unwrap());
    assert_eq!(trace["otherData"]["load_id"], "my-load");
    let nowhere = dir.path().join("no/such/folder");
    let output = run(&fake, &["trace", "last", "-o", nowhere.to_str().unwrap()]);
    assert_eq!(code(&output), 1, "{}", stdout(&output));
}

#[test]
fn objects_have_what_the_nvme_tier_holds() {
    let fake = Fake::start(checkpoint());
    let json =
        |args: &[&str]| object(&stdout(&run(&fake, &[args, &["--format", "json"]].concat())));
    let listed = json(&["ls"]);
    assert_eq!(listed["checkpoints"][0]["pinned"], true);
    assert_eq!(listed["checkpoints"][0]["cached"]["nvme"], 2 << 20);
    assert_eq!(json(&["stat", "s3://b/k"])["objects"][0]["cached_nvme_bytes"], 3072);
    let pinned = json!({"uri": "s3://b/k", "checkpoints": 1, "nvme_bytes": 2048,
        "missing_bytes": 512});
    assert_eq!(json(&["pin", "s3://b/k"]), pinned);
    assert_eq!(json(&["unpin", "s3://b/k"]), json!({"uri": "s3://b/k", "checkpoints": 2}));
    let evicted = json!({"uri": "s3://b/k", "checkpoints": 1, "freed_bytes": 2048,
        "leased_bytes": 1, "nvme_freed_bytes": 4096, "pinned_checkpoints": 3});
    assert_eq!(json(&["evict", "s3://b/k"]), evicted);
    let nvme = json!({"state": "recovering", "budget_bytes": 100_u64 << 30,
        "stored_bytes": 3_u64 << 30, "pinned_bytes": 0, "filling_bytes": 0, "disk_free_bytes": 0,
        "extents": 412, "queued_fills": 0, "engine": "threads",
        "engine_reason": "io_uring is forbidden", "quarantined": 0, "fills_given_up": 0,
        "recovery_seconds": null});
    assert_eq!(json(&["status"])["nvme"], nvme);
}

#[test]
fn tiers_and_pins_are_passed_on() {
    let fake = Fake::start(checkpoint());
    for line in [
        "prefetch s3://b/k",
        "prefetch --tier nvme --pin s3://b/k",
        "prefetch s3://b/k --tier ram",
        "evict s3://b/k",
        "evict s3://b/k --tier nvme",
        "evict --tier ram s3://b/k",
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        let output = run(&fake, &args);
        assert_eq!(code(&output), 0, "{line}: {}", stderr(&output));
        assert_eq!(stdout(&output).contains(", pinned\n"), line.contains("--pin"), "{line}");
    }
    let seen = fake.seen();
    let (none, ram, nvme) = (pb::Tier::Unspecified, pb::Tier::Ram, pb::Tier::Nvme);
    let asked: Vec<_> = seen.prefetches.iter().map(|asked| (asked.tier(), asked.pin)).collect();
    assert_eq!(asked, [(none, false), (nvme, true), (ram, false)]);
    let dropped: Vec<_> = seen.evictions.iter().map(pb::EvictRequest::tier).collect();
    assert_eq!(dropped, [none, nvme, ram]);
}

#[test]
fn places_are_passed_on_and_what_became_of_them_is_told() {
    let fake = Fake::start(checkpoint());
    let loaded = run(&fake, &["load", "s3://b/k", "--gpu", "00000000:3B:00.0"]);
    assert_eq!(code(&loaded), 0, "{}", stderr(&loaded));
    let said =
        "placement: gpu 0000:3b:00.0, slots from node 1, 4.0 KiB near, 1.0 KiB far; why not\n";
    assert!(stdout(&loaded).contains(said), "{}", stdout(&loaded));
    let fetched = run(&fake, &["prefetch", "s3://b/k", "--numa-node", "3", "--format", "json"]);
    assert_eq!(code(&fetched), 0, "{}", stderr(&fetched));
    let report = object(stdout(&fetched).lines().last().unwrap());
    let placement = json!({
        "asked": "node 3", "node": 1, "near_bytes": 4096, "far_bytes": 1024, "degraded": "why not",
    });
    assert_eq!(report["placement"], placement);
    let without = run(&fake, &["load", "s3://b/k", "--format", "json"]);
    assert_eq!(object(&stdout(&without))["placement"], json!(null));
    let seen = fake.seen();
    let near = |placement: &Option<pb::Placement>| placement.clone().and_then(|place| place.near);
    let opens: Vec<_> = seen.opens.iter().map(|open| near(&open.placement)).collect();
    let gpu = pb::placement::Near::Gpu("0000:3b:00.0".into());
    assert_eq!(opens, [Some(gpu), None]);
    let node = pb::placement::Near::NumaNode(3);
    assert_eq!(near(&seen.prefetches[0].placement), Some(node));
}

#[test]
fn verify_shows_progress_beside_what_it_found() {
    let fake = Fake::start(checkpoint());
    let human = run(&fake, &["verify", "s3://b/k"]);
    assert_eq!(code(&human), 0);
    let found = "s3://b/k: 1 checkpoint, RAM 1.0 KiB and NVMe 3.0 KiB checked\n";
    assert_eq!(stdout(&human), found);
    let progress = "s3://b/k: 0 B of 4.0 KiB (0%)\ns3://b/k: 4.0 KiB of 4.0 KiB (100%)\n";
    assert_eq!(stderr(&human), progress);
    let json = run(&fake, &["verify", "s3://b/k", "--format", "json"]);
    assert_eq!(code(&json), 0);
    let text = stdout(&json);
    let [start, done, summary] = text.lines().map(object).collect::<Vec<_>>().try_into().unwrap();
    assert_eq!((&start["event"], &start["checked_bytes"]), (&json!("progress"), &json!(0)));
    assert_eq!(done["checked_bytes"], done["total_bytes"]);
    let none = json!({"ram": 0, "nvme": 0, "origin": 0});
    assert_eq!(
        summary,
        json!({"event": "summary", "uri": "s3://b/k", "checkpoints": 1,
        "checked": {"ram": 1024, "nvme": 3072, "origin": 0}, "bad": none, "unreadable": none})
    );
    assert!(json.stderr.is_empty());
}

#[test]
fn verify_exits_with_6_only_if_something_was_bad() {
    let nvme = |nvme| pb::BytesByTier { nvme, ..Default::default() };
    let both = pb::BytesByTier { ram: 1024, nvme: 2048, origin: 0 };
    let fake = Fake::start(checkpoint());
    for (bad, unreadable, expected) in
        [(nvme(0), nvme(9), 0), (both, nvme(0), 6), (nvme(2048), nvme(9), 6)]
    {
        fake.set_fault(Fault::Decayed { bad, unreadable });
        let human = run(&fake, &["verify", "s3://b/k"]);
        assert_eq!(code(&human), expected);
        let unread = unreadable.nvme > 0;
        assert_eq!(stdout(&human).contains("NVMe 9 B not readable"), unread);
        let text = stderr(&human);
        let sentences: Vec<&str> = text.lines().filter(|l| l.starts_with("forebay: ")).collect();
        assert_eq!(sentences.len(), usize::from(expected == 6), "{text}");
        for sentence in sentences {
            assert!(sentence.contains("NVMe 2.0 KiB") && sentence.contains("fetched again"));
            assert_eq!(sentence.contains("RAM 1.0 KiB"), bad.ram > 0, "{sentence}");
            assert_eq!(sentence.contains("NVMe 9 B could not be read"), unread, "{sentence}");
        }
        let json = run(&fake, &["verify", "s3://b/k", "--format", "json"]);
        assert_eq!(code(&json), expected);
        assert_eq!(object(stdout(&json).lines().last().unwrap())["bad"]["nvme"], bad.nvme);
        let failure = stderr(&json).lines().nth(1).map(object);
        assert_eq!(
            failure.map(|failure| failure["reason"] == "BAD_CACHE"),
            (expected == 6).then_some(true)
        );
    }
    fake.set_fault(Fault::Unfinished);
    assert_eq!(code(&run(&fake, &["verify", "s3://b/k"])), 1);
}

#[test]
fn pack_tells_progress_and_result_in_either_form() {
    let fake = Fake::start(checkpoint());
    let line = ["pack", "s3://b/k", "s3://b/p", "--chunk", "1MiB", "--level", "2"];
    let json = run(&fake, &[&line[..], &["--format", "json"]].concat());
    assert_eq!(code(&json), 0, "{}", stderr(&json));
    let lines: Vec<_> = stdout(&json).lines().map(object).collect();
    assert_eq!(lines[0]["event"], "progress");
    assert_eq!((&lines[1]["event"], &lines[1]["bytes"]), (&"report".into(), &1_048_576.into()));
    let human = run(&fake, &line);
    let said = stdout(&human);
    let begin = "s3://b/k -> s3://b/p: 2 objects, 1.0 MiB in 512.0 KiB (0.500), in 500.0ms";
    assert!(said.starts_with(begin), "{said}");
    assert!(said.contains("; 2 stored as they are; 1 skipped: they were packed already"), "{said}");
    assert!(stderr(&human).contains("50%"), "{}", stderr(&human));
}

#[test]
fn alias_set_tells_what_it_stands_for_and_when_it_is_rolled_back() {
    let fake = Fake::start(checkpoint());
    let rule = ["--rollback-if", "data_losses > 0 over 1h"];
    let args = [&["alias", "set", "prod", "s3://b/k"][..], &rule].concat();
    let lines = run(&fake, &[&args[..], &["--format", "json"]].concat());
    let lines: Vec<_> = stdout(&lines).lines().map(object).collect();
    assert_eq!((&lines[0]["event"], &lines[1]["event"]), (&json!("progress"), &json!("report")));
    assert_eq!((&lines[0]["step"], &lines[0]["total_bytes"]), (&json!("store"), &json!(3)));
    assert_eq!((&lines[1]["name"], &lines[1]["switched"]), (&json!("prod"), &json!(true)));
    assert_eq!(lines[1]["rule"]["window_seconds"], 3600.0);
    let human = run(&fake, &args);
    assert_eq!(code(&human), 0, "{}", stderr(&human));
    for word in ["prod is now s3://b/k", "before: s3://b/k", "min 1 (armed)"] {
        assert!(stdout(&human).contains(word), "{word}: {}", stdout(&human));
    }
}

#[test]
fn resize_tells_what_it_waits_for_and_the_result_in_either_form() {
    let fake = Fake::start(checkpoint());
    let json = run(&fake, &["resize", "--ram", "1MiB", "--format", "json"]);
    assert_eq!(code(&json), 0, "{}", stderr(&json));
    let lines: Vec<_> = stdout(&json).lines().map(object).collect();
    assert_eq!((&lines[0]["event"], &lines[0]["clients"]), (&"progress".into(), &1.into()));
    assert_eq!(
        (&lines[1]["event"], &lines[1]["held_bytes"]),
        (&"report".into(), &1_048_576.into())
    );
    let human = run(&fake, &["resize", "--ram", "1MiB"]);
    let said = "RAM: 1.0 MiB budget, was 2.0 MiB; 1.0 MiB held, after 500.0ms; \
                2 clients of an older version keep 4.0 KiB until they disconnect\n";
    assert_eq!(stdout(&human), said);
    let waits = "RAM: 2.0 MiB of 1.0 MiB, 512.0 KiB in use have to be released, \
                 1 client still mapping 4.0 KiB\n";
    assert_eq!(stderr(&human), waits);
    fake.set_fault(Fault::Unfinished);
    assert_eq!(code(&run(&fake, &["resize", "--ram", "1MiB"])), 1);
}

#[test]
fn prefetch_shows_progress_beside_the_result() {
    let fake = Fake::start(checkpoint());
    let human = run(&fake, &["prefetch", "s3://b/k", "s3://b/l"]);
    assert_eq!(code(&human), 0);
    assert_eq!(stdout(&human).lines().count(), 2);
    assert!(stderr(&human).contains("s3://b/k: 0 B of"), "{}", stderr(&human));
    let json = run(&fake, &["prefetch", "s3://b/k", "--format", "json"]);
    let text = stdout(&json);
    let lines: Vec<Value> = text.lines().map(object).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0]["event"], "progress");
    assert_eq!(lines[2]["event"], "report");
    assert_eq!(lines[1]["done_bytes"], lines[2]["bytes"]);
    assert!(json.stderr.is_empty());
}

#[test]
fn on_a_terminal_the_bar_is_gone_before_the_result() {
    if Command::new("script").arg("--version").output().is_err() {
        println!("skipped: no `script`, which lends a terminal");
        return;
    }
    let fake = Fake::start(checkpoint());
    for verb in ["prefetch", "verify"] {
        let line = format!("'{}' {verb} s3://b/k", env!("CARGO_BIN_EXE_forebay"));
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]).stdin(Stdio::null());
        script.env("FOREBAY_ENDPOINT", fake.endpoint()).env("TERM", "xterm");
        let shown = stdout(&script.output().unwrap());
        // Back to the start of the line, and all of it cleared.
        assert!(shown.contains("\r\u{1b}[2Ks3://b/k"), "{verb}: {shown:?}");
    }
}

#[test]
fn an_interrupt_cancels_and_cleans_up() {
    for (signal, expected) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let fake = Fake::start(checkpoint().fault(Fault::StallAfter(4)));
        let dir = tempfile::tempdir().unwrap();
        let args = ["get", "s3://b/k", dir.path().to_str().unwrap()];
        let mut child = forebay(&fake.endpoint(), &args).spawn().unwrap();
        // Released chunks have been written to temporary files.
        fake.wait(|seen| !seen.released_by_stream.is_empty());
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(expected));
        assert_eq!(files_in(dir.path()), 0);
        fake.wait_leased(0);
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_command_quietly() {
    let script = (0..2000).fold(checkpoint(), |script, n| script.tensor(&format!("t{n}"), 0, 0..9));
    let fake = Fake::start(script);
    let mut command = forebay(&fake.endpoint(), &["stat", "s3://b/k"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
}
