//! What the daemon and the command find to be in the way of loads.

use std::os::unix::fs::PermissionsExt;

use forebay_client::model::{Check, Verdict};
use forebay_testkit::temp_dir;
use serde_json::Value;

use crate::command::{command, run, text};
use crate::harness::{NodeSpec, s3, s3_uri};

/// The verdict on the first check of that name in a group.
#[track_caller]
fn verdict<'a>(checks: &'a [Check], group: &str, name: &str) -> (Verdict, &'a str) {
    let found = checks.iter().find(|check| check.group == group && check.name == name);
    let found = found.unwrap_or_else(|| panic!("{group}/{name} is not there: {checks:?}"));
    assert_eq!(found.verdict == Verdict::Ok, found.advice.is_empty(), "{found:?}");
    (found.verdict, &found.found)
}

#[tokio::test]
async fn a_poor_daemon_is_found_to_be_one() {
    let cache = temp_dir();
    let open = cache.path().join("open-to-all");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    let little = "ulimit -l 64 && exec \"$0\" \"$@\"";
    let spec = NodeSpec::new().nvme("1GiB").cache(&open).under(&["bash", "-c", little]);
    let node = spec.start().await;
    let checks = node.client.doctor().await.unwrap();
    assert_eq!(verdict(&checks, "memory", "memlock_bytes"), (Verdict::Warn, "65536"));
    assert_eq!(verdict(&checks, "nvme", "tier"), (Verdict::Bad, "there is none"));
    let (degraded, why) = verdict(&checks, "degraded", "cache-dir");
    assert!(degraded == Verdict::Warn && why.contains("chmod go-w"), "{why}");

    let output = run(&node, &["doctor"]);
    assert_eq!(output.status.code(), Some(9), "{output:?}");
    let page = text(&output.stdout);
    let advice = page.split("What to do\n").nth(1).unwrap();
    assert!(advice.starts_with("  bad tier: "), "{page}");
    assert!(text(&output.stderr).contains("BAD_CHECKS"), "{output:?}");
    node.settled().await;
}

#[tokio::test]
async fn what_is_there_is_told_and_what_goes_away_is_bad() {
    let origin = s3().await;
    let node = NodeSpec::of(&origin).nvme("1GiB").start().await;
    node.client.stat(s3_uri("there/is/something")).await.unwrap();
    let checks = node.client.doctor().await.unwrap();
    let (tier, state) = verdict(&checks, "nvme", "tier");
    // It may recover yet.
    assert!(tier == Verdict::Ok && state.ends_with(" of 1GiB stored"), "{state}");
    verdict(&checks, "nvme", "engine");
    verdict(&checks, "nvme", "cache_mount");
    verdict(&checks, "nvme", "io_uring");
    verdict(&checks, "memory", "numa_nodes");
    verdict(&checks, "memory", "locked");
    verdict(&checks, "daemon", "runtime_lag");
    let uid = rustix::process::getuid().as_raw();
    let (_, who) = verdict(&checks, "daemon", "allow_uids");
    assert!(who.ends_with(&format!("the daemon is uid {uid}")), "{who}");
    let (socket, found) = verdict(&checks, "daemon", "socket");
    assert!(socket == Verdict::Ok && found.contains("mode 0660"), "{found}");
    let (keys, found) = verdict(&checks, "credentials", "found");
    assert_eq!((keys, found), (Verdict::Ok, "s3://models: an access key of the environment"));
    let (_, origin) = verdict(&checks, "network", "origin");
    assert!(origin.starts_with("s3://models answers"), "{origin}");
    assert!(checks.iter().any(|check| check.group == "evidence"), "{checks:?}");

    // The client is connected already; nobody new can be.
    std::fs::remove_file(node.daemon.socket().with_file_name("handoff.sock")).unwrap();
    let checks = node.client.doctor().await.unwrap();
    assert_eq!(verdict(&checks, "daemon", "handoff").0, Verdict::Bad);
    let output = run(&node, &["--format", "json", "doctor"]);
    assert_eq!(output.status.code(), Some(9), "{output:?}");
    let said: Value = serde_json::from_str(text(&output.stdout)).unwrap();
    let is_bad = |group: &str| {
        said["checks"].as_array().unwrap().iter().any(|check| {
            check["group"] == group && check["name"] == "handoff" && check["verdict"] == "bad"
        })
    };
    assert!(is_bad("client") && is_bad("daemon"), "{said}");

    let mut alone = command(&node);
    drop(node);
    let output = alone.arg("doctor").output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert!(text(&output.stdout).contains("bad socket: start forebayd"), "{output:?}");
}
