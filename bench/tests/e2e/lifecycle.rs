//! The daemon's life: a second one, bad settings, no cache, draining, kill -9 and coming back.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Output};

use forebay_bench::process::DaemonProcess;
use forebay_client::{ErrorKind, LoadRequest, Reason};
use forebay_testkit::{CheckpointSpec, Content, Fault, FaultRule, checkpoint, temp_dir};
use rustix::process::Signal;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::binaries::forebayd;
use crate::harness::{
    BUCKET, CHUNK, Node, NodeSpec, assert_ends, connect, digests, expected_digests, failure, files,
    read, s3, s3_uri, until,
};
use crate::raw::{Wire, forebay, wire};

/// Runs `forebayd` to its end.
fn run<'a>(args: impl IntoIterator<Item = &'a OsStr>, env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(forebayd());
    command.args(args).env_clear().envs(env.iter().copied());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn a_second_daemon_on_the_same_socket_leaves_the_first_alone() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(1, 6 * CHUNK));
    let node = NodeSpec::of(&origin).start().await;
    let mut load = node.client.load(LoadRequest::new(s3_uri("blob"))).await.unwrap();
    let held = load.next_chunk().await.unwrap().unwrap();
    let dir = temp_dir();
    let listen = format!("unix://{}", node.daemon.socket().display());
    let args = ["--listen", &listen, "--metrics", "off", "--ram", "1MiB", "--cache-dir"];
    let args = args.iter().map(OsStr::new).chain([dir.path().as_os_str()]);
    let second = run(args, &[("FOREBAY_CHUNK", "64KiB")]);
    assert_eq!(second.status.code(), Some(9), "{second:?}");
    let said = text(&second.stderr);
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert!(said.contains(&node.daemon.socket().display().to_string()), "{said}");
    assert!(said.contains("--listen"), "what to do: {said}");

    drop(held);
    read_rest(&mut load).await;
    load.finish().await.unwrap();
    let client = connect(&node.daemon).await;
    digests(&client, LoadRequest::new(s3_uri("blob"))).await.unwrap();
    node.settled().await;
}

async fn read_rest(load: &mut forebay_client::Load) {
    while let Some(chunk) = load.next_chunk().await.unwrap() {
        chunk.release();
    }
}

/// Loads and says that it keeps no digests, with a cache directory that `spoil` made.
async fn degrades(what: &str, spoil: impl FnOnce(&Path)) {
    let origin = s3().await;
    let content = Content::synthetic(2, 3 * CHUNK);
    origin.put(BUCKET, "blob", content.clone());
    let dir = tempfile::TempDir::with_prefix("forebay-").unwrap();
    spoil(&dir.path().join("cache"));
    let node = NodeSpec::of(&origin).dir(dir).start().await;
    node.loads(&s3_uri("blob"), &[("blob".to_owned(), content)]).await;
    let degraded = node.client.status().await.unwrap().degraded;
    assert!(degraded.iter().any(|line| line.starts_with("cache-dir: ")), "{what}: {degraded:?}");
    let metric = "forebay_degraded{what=\"cache-dir\"}";
    assert_eq!(node.metric(metric).await, Some(1.0), "{what}");
    assert!(node.daemon.log().contains("degraded: cache-dir"), "{what}");
}

#[tokio::test]
async fn a_cache_directory_that_cannot_be_used_degrades_the_daemon() {
    degrades("a file in its place", |cache| std::fs::write(cache, b"x").unwrap()).await;
    degrades("others may write to it", |cache| {
        std::fs::create_dir(cache).unwrap();
        std::fs::set_permissions(cache, PermissionsExt::from_mode(0o777)).unwrap();
    })
    .await;
    degrades("a link to nowhere", |cache| {
        std::os::unix::fs::symlink("/proc/nowhere", cache).unwrap();
    })
    .await;
    if rustix::process::getuid().is_root() {
        degrades("another user's", |cache| {
            std::fs::create_dir(cache).unwrap();
            std::os::unix::fs::chown(cache, Some(12345), None).unwrap();
        })
        .await;
    }
}

async fn health(wire: &Wire, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(wire.clone()).check(request).await.unwrap();
    answer.into_inner().status()
}

/// Sends SIGTERM and waits until the daemon says that it drains.
async fn begin_drain(node: &Node, wire: &Wire) {
    assert_eq!(health(wire, "").await, ServingStatus::Serving);
    node.daemon.signal(Signal::TERM).unwrap();
    until("health is NOT_SERVING", async || {
        (health(wire, "").await == ServingStatus::NotServing).then_some(())
    })
    .await;
    assert_eq!(health(wire, "forebay.v1.Forebay").await, ServingStatus::NotServing);
}

/// How it ended, once it has.
async fn ended(daemon: &mut DaemonProcess) -> ExitStatus {
    until("the daemon has ended", async || daemon.try_wait().unwrap()).await
}

#[tokio::test]
async fn sigterm_lets_running_loads_finish_and_takes_no_more() {
    let origin = s3().await;
    let made = checkpoint(CheckpointSpec::new(3, 2 << 20));
    origin.put_checkpoint(BUCKET, "m/", &made);
    let mut node = NodeSpec::of(&origin).ram("512KiB").start().await;
    let mut load = node.client.load(LoadRequest::new(s3_uri("m/"))).await.unwrap();
    let wire = wire(&node.daemon).await;
    begin_drain(&node, &wire).await;

    let refused = failure(&node.client, LoadRequest::new(s3_uri("m/"))).await;
    assert_ends(&refused, Reason::Draining, 7);
    assert!(refused.failure().retry_after.is_some());
    assert!(node.client.status().await.unwrap().draining);
    assert_eq!(node.get("/readyz").await.0, 503);
    assert_eq!(node.get("/healthz").await.0, 200);
    assert!(node.daemon.try_wait().unwrap().is_none(), "a load still runs");

    // Twice the pool is still to come.
    assert_eq!(read(&mut load).await.unwrap(), expected_digests(&files(&made)));
    load.finish().await.unwrap();
    let status = ended(&mut node.daemon).await;
    assert_eq!(status.code(), Some(0), "{}", node.daemon.log());
    assert!(!node.daemon.socket().exists(), "sockets are removed");
    assert!(!node.daemon.socket().with_file_name("handoff.sock").exists());
}

#[tokio::test]
async fn a_second_sigterm_ends_at_once() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(4, 32 * CHUNK));
    let mut node = NodeSpec::of(&origin).ram("512KiB").set("drain", "1h").start().await;
    let mut load = node.client.load(LoadRequest::new(s3_uri("blob"))).await.unwrap();
    let held = load.next_chunk().await.unwrap().unwrap();
    let wire = wire(&node.daemon).await;
    begin_drain(&node, &wire).await;
    node.daemon.signal(Signal::TERM).unwrap();
    let status = ended(&mut node.daemon).await;
    assert_eq!(status.code(), Some(0), "{}", node.daemon.log());
    // What the client holds is its own.
    let run = held.extents().next().unwrap();
    assert!(Content::synthetic(4, 32 * CHUNK).matches(run.offset(), run.bytes()));
    let error = loop {
        match load.next_chunk().await {
            Ok(chunk) => chunk.expect("the pool is smaller than the load").release(),
            Err(error) => break error,
        }
    };
    // Whether the daemon still said why, or was gone.
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.failure().retry_after.is_some(), "{error}");
}

#[tokio::test]
async fn a_client_that_does_not_listen_does_not_hold_up_the_end() {
    let origin = s3().await;
    for n in 0..10_000 {
        origin.put(BUCKET, &format!("many/{n:01000}"), "x");
    }
    let mut node = NodeSpec::of(&origin).set("drain", "200ms").start().await;
    // Ten megabytes of pages, of which nobody reads one.
    let request = forebay_proto::pb::StatRequest { uri: s3_uri("many/") };
    let unread = forebay(&node.daemon).await.stat(request).await.unwrap();
    until("the listing was read", async || (origin.total().lists == 10).then_some(())).await;
    node.settled().await;
    node.daemon.signal(Signal::TERM).unwrap();
    let status = ended(&mut node.daemon).await;
    assert_eq!(status.code(), Some(0), "{}", node.daemon.log());
    drop(unread);
}

#[tokio::test]
async fn a_daemon_that_was_killed_comes_back_in_the_same_directory() {
    let origin = s3().await;
    let content = Content::synthetic(5, 16 * CHUNK);
    let expected = [("blob".to_owned(), content.clone())];
    origin.put(BUCKET, "blob", content.clone());
    let node = NodeSpec::of(&origin).start().await;
    node.loads(&s3_uri("blob"), &expected).await;
    // Killed in the middle of a load, with leases held.
    origin.put(BUCKET, "slow", Content::synthetic(6, 16 * CHUNK));
    let slow = origin
        .fault(FaultRule::new("slow", Fault::StallAfter(9)).when(forebay_testkit::When::After(3)));
    let mut load = node.client.load(LoadRequest::new(s3_uri("slow"))).await.unwrap();
    let held = load.next_chunk().await.unwrap().unwrap();
    until("a part stalls", async || (slow.hits() > 0).then_some(())).await;
    let Node { client, daemon, .. } = node;
    let dir = daemon.kill().unwrap();

    let run = held.extents().next().unwrap();
    let slow_content = Content::synthetic(6, 16 * CHUNK);
    assert!(slow_content.matches(run.offset(), run.bytes()), "the mapping outlives the daemon");
    let error = loop {
        match load.next_chunk().await {
            Ok(chunk) => drop(chunk.expect("the load is not complete")),
            Err(error) => break error,
        }
    };
    assert_ends(&error, Reason::DaemonUnreachable, 7);
    assert_ends(&client.status().await.unwrap_err(), Reason::DaemonUnreachable, 7);
    drop(load);

    origin.clear_faults();
    let node = NodeSpec::of(&origin).dir(dir).start().await;
    let report = node.loads(&s3_uri("blob"), &expected).await;
    assert_eq!(report.bytes_by_tier.origin, 16 * CHUNK, "the RAM tier went with the daemon");
    node.loads(&s3_uri("slow"), &[("slow".to_owned(), slow_content.clone())]).await;
    let run = held.extents().next().unwrap();
    assert!(slow_content.matches(run.offset(), run.bytes()), "still");

    // The digest of the first fetch is enforced by the daemon that came back: bytes that differ are
    // asked for once more, and refused if they differ again.
    node.client.evict(s3_uri("blob")).await.unwrap();
    origin.fault(FaultRule::new("blob", Fault::FlipBit(77)).nth(4));
    node.loads(&s3_uri("blob"), &expected).await;
    node.client.evict(s3_uri("blob")).await.unwrap();
    origin.fault(FaultRule::new("blob", Fault::FlipBit(77)));
    let error = node.refused(&s3_uri("blob")).await;
    assert_ends(&error, Reason::DigestMismatch, 6);
    assert!(node.metric("forebay_digest_mismatches_total").await >= Some(1.0));
    origin.clear_faults();
    node.loads(&s3_uri("blob"), &expected).await;
}

#[test]
fn check_config_prints_what_is_resolved_and_no_secret() {
    let dir = temp_dir();
    let config = dir.path().join("forebay.toml");
    let file = "ram = \"64MiB\"\nconnections = 3\nno_progress = \"5s\"\n[[origin]]\n\
                prefix = \"s3://b/\"\nendpoint = \"http://user:canary-1@localhost:9\"\n";
    std::fs::write(&config, file).unwrap();
    let args = ["--check-config", "--ram", "32MiB", "--config", config.to_str().unwrap()];
    let env = [
        ("AWS_SECRET_ACCESS_KEY", "canary-2"),
        ("AWS_SESSION_TOKEN", "canary-3"),
        ("FOREBAY_CONNECTIONS", "4"),
        ("FOREBAY_RAM", "16MiB"),
        ("XDG_RUNTIME_DIR", "/run/user/0"),
    ];
    let checked = run(args.iter().map(OsStr::new), &env);
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    let said = text(&checked.stdout);
    for line in [
        "ram = \"32MiB\"",
        "connections = 4",
        "no_progress = \"5000ms\"",
        "prefix = \"s3://b/\"",
        "# AWS_SECRET_ACCESS_KEY = ***",
    ] {
        assert!(said.lines().any(|said| said == line), "{line}:\n{said}");
    }
    assert!(!said.contains("canary"), "{said}");
    // What is printed is a configuration.
    std::fs::write(&config, &said).unwrap();
    let again = run(["--check-config", "--config", config.to_str().unwrap()].map(OsStr::new), &[]);
    assert_eq!(again.status.code(), Some(0), "{again:?}");
}

#[test]
fn a_bad_setting_is_named_with_its_place() {
    let dir = temp_dir();
    let config = dir.path().join("forebay.toml");
    let place = config.display().to_string();
    let cases = [
        (
            "ram = \"64MiB\"\nmax_lods = 3\n",
            vec![format!("{place}:2"), "max_lods".into(), "max_loads".into()],
        ),
        ("ram = \"64\"\n", vec![format!("{place}:1"), "ram".into(), "512MiB".into()]),
        ("log = \"human\"\n\nram = \"1MiB\"\n", vec![format!("{place}:3"), "ram".into()]),
        ("deadline = \"5\"\n", vec![format!("{place}:1"), "deadline".into()]),
        ("[[origin]]\nprefix = \"s3://b\"\nregin = \"x\"\n", vec![place.clone(), "region".into()]),
        ("ram = \n", vec![format!("{place}:1")]),
    ];
    for (file, wanted) in cases {
        std::fs::write(&config, file).unwrap();
        let args = ["--check-config", "--config", config.to_str().unwrap()].map(OsStr::new);
        let refused = run(args, &[]);
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{file}{said}");
        assert!(wanted.iter().all(|wanted| said.contains(wanted)), "{file}{said}");
    }
    let refused = run(["--check-config"].map(OsStr::new), &[("FOREBAY_MAX_LODS", "3")]);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("FOREBAY_MAX_LODS") && said.contains("max_loads"), "{said}");
    let refused = run(["--no-such-flag"].map(OsStr::new), &[]);
    assert_eq!(refused.status.code(), Some(2));
    let version = run(["--version"].map(OsStr::new), &[]);
    assert_eq!(text(&version.stdout), format!("forebayd {}\n", env!("CARGO_PKG_VERSION")));
}
