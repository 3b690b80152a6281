//! Signatures of presigned URLs and credentials stay out of whatever the daemon says, and what it
//! knows stays in it when it crashes. That the search for them finds what there is to find.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay_client::{
    Access, CallOptions, Client, Endpoint, LoadRequest, PackRequest, PrefetchRequest, Reason,
    TraceParent,
};
use forebay_testkit::{
    CANARY, Content, Fault, FaultRule, HttpOptions, HttpOrigin, canary_in, temp_dir,
};
use rustix::process::Signal;
use serde_json::Value;
use tracing_subscriber::filter::LevelFilter;

use crate::canary;
use crate::harness::{BUCKET, CHUNK, Node, NodeSpec, digests, failure, s3, s3_uri, until};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const QUERY: &str = "X-Amz-Signature=canary-Kanarienvogel-sig&X-Amz-Credential=canary%2Fcred";

/// Lines about loads say whose they are: what is looked through has the spans in it.
#[track_caller]
fn assert_traced(log: &str) {
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let traced = |line: &Value| line["trace_id"] == PARENT[3..35] && line["load_id"].is_string();
    assert!(lines.filter(traced).count() > 5, "{log}");
}

/// What the daemon tells of itself.
async fn told(node: &Node) -> String {
    let status = node.client.status().await.expect("its status");
    let checks = node.client.doctor().await.expect("its checks");
    format!("{status:?} {checks:?} {:?}", node.client.capacity().await.expect("its rates"))
}

/// Neither what was heard nor what the daemon wrote has a part of the query.
async fn show_nothing(node: &Node, mut heard: Vec<String>) {
    heard.push(node.get("/metrics").await.1);
    let log = node.daemon.log();
    assert_traced(&log);
    heard.push(log);
    for text in heard {
        assert!(!text.contains("canary"), "{text}");
    }
    node.settled().await;
}

/// What verbs say that keep a URI: by a name, pinned, packed, read again.
async fn kept(node: &Node, uri: &str) -> String {
    let client = &node.client;
    let mut heard = format!("{:?}", client.pin(uri).await);
    match client.set_alias("kept", uri, None).await {
        Ok(mut setting) => {
            while let Ok(Some(event)) = setting.next().await {
                heard += &format!("{event:?}");
            }
        }
        Err(error) => heard += &format!("{error} {error:?}"),
    }
    heard += &format!("{:?}", client.aliases(Some("kept")).await);
    let dir = temp_dir();
    let packed = format!("file://{}/", dir.path().join("packed").display());
    for (from, to) in [(uri, &*packed), (&*packed, uri)] {
        match client.pack(PackRequest::new(from, to)).await {
            Ok(mut pack) => loop {
                match pack.next().await {
                    Ok(Some(event)) => heard += &format!("{event:?}"),
                    Ok(None) => break,
                    Err(error) => break heard += &format!("{error} {error:?}"),
                }
            },
            Err(error) => heard += &format!("{error} {error:?}"),
        }
    }
    let mut verify = client.verify(uri).await.unwrap();
    while let Ok(Some(event)) = verify.next().await {
        heard += &format!("{event:?}");
    }
    heard + &format!("{:?}", client.unpin(uri).await)
}

#[tokio::test]
async fn a_presigned_query_is_shown_by_nothing() {
    let options = HttpOptions { query: Some(QUERY.to_owned()), ..Default::default() };
    let origin = HttpOrigin::start(options).await;
    let content = Content::synthetic(1, 4 * CHUNK);
    for key in ["blob", "cut", "slow", "replaced", "broken", "busy"] {
        origin.put(key, content.clone());
    }
    // One part, so that its attempts do not open the breaker for the others.
    origin.put("cut", Content::synthetic(1, CHUNK));
    origin.fault(FaultRule::new("cut", Fault::TruncateTo(10)));
    origin.fault(FaultRule::new("slow", Fault::StallBeforeHeaders).on_any());
    origin.fault(FaultRule::new("replaced", Fault::ReplaceObject(Content::synthetic(2, 9))).nth(3));
    origin.fault(FaultRule::new("broken", Fault::ResetBeforeHeaders).on_any());
    origin.fault(FaultRule::new("busy", Fault::Status { code: 500, retry_after: None }).on_any());
    // With a disk: what is kept of it there is looked through at the end.
    let node = NodeSpec::new().nvme("64MiB").start().await;
    let mut heard = Vec::new();

    let mut load = node.client.load(LoadRequest::new(origin.url("blob"))).await.unwrap();
    let chunk = load.next_chunk().await.unwrap().unwrap();
    heard.push(format!("{:?}", load.opened().uri));
    heard.push(told(&node).await);
    chunk.release();
    heard.push(format!("{:?}", load.finish().await.unwrap()));
    heard.push(format!("{:?}", node.client.stat(origin.url("blob")).await.unwrap()));
    let mut prefetch =
        node.client.prefetch(PrefetchRequest::new(origin.url("blob"))).await.unwrap();
    while let Some(event) = prefetch.next().await.unwrap() {
        heard.push(format!("{event:?}"));
    }
    heard.push(format!("{:?}", node.client.list(None).await.unwrap()));
    assert_eq!(node.client.list(Some(&origin.url("blob"))).await.unwrap().len(), 1);

    heard.push(kept(&node, &origin.url("blob")).await);

    let host = origin.endpoint();
    let failing = [
        (origin.url("gone"), Some(Reason::ObjectNotFound)),
        (format!("{host}/blob?{QUERY}canary-wrong"), Some(Reason::OriginDenied)),
        (origin.url("cut"), Some(Reason::Truncated)),
        (origin.url("slow"), Some(Reason::Deadline)),
        (origin.url("replaced"), Some(Reason::RevisionChanged)),
        (origin.url("broken"), Some(Reason::OriginUnreachable)),
        (origin.url("busy"), Some(Reason::OriginFailed)),
        (format!("http://127.0.0.1:1/blob?{QUERY}"), Some(Reason::OriginUnreachable)),
        (format!("http://no-such-host.invalid/blob?{QUERY}"), None),
        (format!("{host}/a/../blob?{QUERY}"), Some(Reason::BadUri)),
        (format!("{host}/a%zz?{QUERY}"), Some(Reason::BadUri)),
        (format!("{host}/a?{QUERY}#canary"), Some(Reason::BadUri)),
        (format!("http://host:99999/a?{QUERY}"), Some(Reason::BadUri)),
        (format!("ftp://host/a?{QUERY}"), Some(Reason::BadUri)),
        (format!("host/a?{QUERY}"), Some(Reason::BadUri)),
        (format!("{host}?{QUERY}"), None),
        (format!("{host}/blob/?{QUERY}"), None),
    ];
    let trace_parent = Some(TraceParent::parse(PARENT).unwrap());
    let options = CallOptions {
        deadline: Some(Duration::from_secs(2)),
        trace_parent,
        ..CallOptions::default()
    };
    let client = node.client.with_options(options);
    for (uri, reason) in failing {
        let error = failure(&client, LoadRequest::new(&uri)).await;
        if let Some(reason) = reason {
            assert_eq!(error.reason(), reason, "{error}");
        }
        heard.push(format!("{error} {error:?}"));
        heard.push(format!("{:?}", client.evict(&uri).await));
    }
    // One id, two URIs that differ in their signature only.
    let named = |uri: String| LoadRequest::new(uri).load_id("again");
    digests(&node.client, named(origin.url("blob"))).await.unwrap();
    let error = failure(&node.client, named(format!("{host}/blob?canary-other"))).await;
    heard.push(format!("{error:?}"));

    show_nothing(&node, heard).await;
}

#[tokio::test]
async fn credentials_are_shown_by_nothing() {
    let origin = s3().await;
    let secrets = [
        ("AWS_ACCESS_KEY_ID", "AKIACANARY0000000000"),
        ("AWS_SECRET_ACCESS_KEY", "canary/secret"),
        ("AWS_SESSION_TOKEN", "canary-token"),
    ];
    let secrets = secrets.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let node = NodeSpec::of(&origin).env(secrets).start().await;
    let error = node.refused(&s3_uri("there/is/something")).await;
    assert_eq!(error.kind().exit_code(), 8, "{error}");
    let told = told(&node).await;
    assert!(told.contains("an access key of the environment"), "{told}");
    for text in
        [format!("{error} {error:?}"), told, node.daemon.log(), node.get("/metrics").await.1]
    {
        assert!(!text.to_lowercase().contains("canary"), "{text}");
    }
}

/// What the search says when this daemon ends, and where it found something.
fn found_at_the_end(node: Node) -> String {
    let Node { daemon, .. } = node;
    let panic = catch_unwind(AssertUnwindSafe(|| drop(daemon))).expect_err("it was told");
    let said = panic.downcast_ref::<String>().expect("a message").clone();
    assert!(said.contains("tells a secret"), "{said}");
    said
}

/// The search can fail: with the mark put where a leak would be, it is found there.
#[tokio::test]
async fn the_search_finds_what_is_told() {
    let origin = s3().await;
    origin.put(BUCKET, "m", Content::synthetic(1, CHUNK));
    let loaded = async |node: &Node, request: LoadRequest| {
        let mut load = node.client.load(request).await.unwrap();
        while load.next_chunk().await.unwrap().is_some() {}
        load.finish().await.unwrap();
    };
    let request = || LoadRequest::new(s3_uri("m"));

    // An answer: the id of a load is in that of `explain`.
    let node = NodeSpec::of(&origin).start().await;
    loaded(&node, request().load_id(CANARY)).await;
    let said = found_at_the_end(node);
    assert!(said.starts_with("a daemon that is asked"), "{said}");

    // The log: of one that is killed nothing else is left.
    let node = NodeSpec::of(&origin).start().await;
    loaded(&node, request().load_id(CANARY)).await;
    let daemon = node.daemon;
    let panic = catch_unwind(AssertUnwindSafe(|| daemon.kill())).expect_err("it was told");
    let said = panic.downcast_ref::<String>().unwrap();
    assert!(said.contains("/log tells a secret"), "{said}");

    // A metric: the name of a workload is a label.
    let name = CANARY.to_lowercase();
    let node = NodeSpec::of(&origin).set("workloads", &name).start().await;
    loaded(&node, request().workload(&name)).await;
    let said = found_at_the_end(node);
    assert!(said.starts_with("a daemon that is asked") && said.contains("workload="), "{said}");

    // A file of the cache, in which it stands as base64.
    let node = NodeSpec::of(&origin).nvme("16MiB").start().await;
    let below = node.daemon.dir().join("cache/a/b");
    std::fs::create_dir_all(&below).unwrap();
    std::fs::write(below.join("extent"), b"\xff\x00Basic eDpLYW5hcmllbnZvZ2VsIQ==").unwrap();
    let said = found_at_the_end(node);
    assert!(said.contains("cache/a/b/extent tells a secret"), "{said}");

    // A client.
    let told = catch_unwind(|| canary::check("a client", format!("{:?}", CANARY.as_bytes())));
    told.unwrap_err();
}

/// The environment that the suite gives a daemon arrives there, and its log is at its most verbose:
/// otherwise nothing could be found.
#[tokio::test]
async fn every_daemon_has_something_to_hide_and_says_all_it_can() {
    for spec in [NodeSpec::new(), NodeSpec::of(&s3().await)] {
        let node = spec.start().await;
        let environment = std::fs::read(format!("/proc/{}/environ", node.daemon.pid())).unwrap();
        let environment = String::from_utf8(environment).unwrap();
        let marked = environment.split('\0').filter(|variable| variable.contains(CANARY)).count();
        assert!(marked >= 5, "{marked}");
        node.client.status().await.unwrap();
        let log = node.daemon.log();
        assert!(log.contains("\"level\":\"TRACE\"") && log.contains("\"target\":\"h2"), "{log}");
    }
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A process that loads may log at its most verbose, too: its token is not in that.
#[tokio::test]
async fn a_token_is_in_no_log_of_a_client() {
    let token = format!("token-{CANARY}-0123");
    let (_dir, path) = crate::tenants::configured(&crate::tenants::block("blue", &token, ""));
    let origin = s3().await;
    origin.put(BUCKET, "m", Content::synthetic(1, 4 * CHUNK));
    let node = NodeSpec::of(&origin).config(&path).start().await;
    let heard = Lines::default();
    let writer = heard.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // This runtime has one thread: whatever the client does happens in it.
    let logging = tracing::subscriber::set_default(subscriber);
    let access = Access::new().token(&token).unwrap();
    let endpoint = Endpoint::unix(&node.daemon.socket()).unwrap();
    let client = Client::connect_with(endpoint, access).await.unwrap();
    digests(&client, LoadRequest::new(s3_uri("m"))).await.unwrap();
    let wrong = Access::new().token(&format!("wrong-{CANARY}")).unwrap();
    let endpoint = Endpoint::unix(&node.daemon.socket()).unwrap();
    let stranger = Client::connect_with(endpoint, wrong).await.unwrap();
    let error = failure(&stranger, LoadRequest::new(s3_uri("m"))).await;
    assert_eq!(error.reason(), Reason::TokenUnknown);
    drop(logging);
    let heard = heard.0.lock().unwrap().clone();
    assert!(String::from_utf8_lossy(&heard).contains(" TRACE "), "{}", heard.len());
    canary::check("the log of a client", heard);
}

/// A daemon that may leave a core file in `dir` as far as its caller is concerned.
async fn unlimited(spec: NodeSpec, dir: &Path) -> Node {
    let script = "cd \"$0\" && ulimit -c unlimited && exec \"$@\"";
    spec.under(&["sh", "-c", script, &dir.display().to_string()]).start().await
}

async fn crashed(node: &mut Node) -> std::process::ExitStatus {
    node.daemon.signal(Signal::ABORT).unwrap();
    let daemon = &mut node.daemon;
    until("the daemon has crashed", async || daemon.try_wait().unwrap()).await
}

#[tokio::test]
async fn a_crash_leaves_no_core_dump_unless_it_was_asked_for() {
    let (origin, dir) = (s3().await, temp_dir());
    let weights = Content::synthetic(7, 4 * CHUNK);
    origin.put(BUCKET, "m", weights.clone());
    let check = async |node: &Node| {
        let checks = node.client.doctor().await.unwrap();
        let check = checks.into_iter().find(|check| check.name == "core_dumps").unwrap();
        format!("{:?}: {}", check.verdict, check.found)
    };
    let mut node = unlimited(NodeSpec::of(&origin), dir.path()).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", node.daemon.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
    assert!(check(&node).await.contains("none; root alone"));
    let ended = crashed(&mut node).await;
    assert!(ended.signal().is_some() && !ended.core_dumped(), "{ended:?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

    let spec = NodeSpec::of(&origin).set("core_dumps", "true");
    let mut node = unlimited(spec, dir.path()).await;
    assert!(check(&node).await.contains("allowed"));
    digests(&node.client, LoadRequest::new(s3_uri("m"))).await.unwrap();
    let ended = crashed(&mut node).await;
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    if !ended.core_dumped() || !pattern.starts_with("core") {
        println!("skipped in part: this machine writes no core files here: {pattern}");
        return;
    }
    // What is in it is why there is none otherwise; but slots are not.
    let core = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    let core = std::fs::read(core).unwrap();
    assert!(canary_in(&core, &[]).is_some(), "{} bytes", core.len());
    // From the middle of a chunk: its first bytes came with the head of their response.
    let some = weights.slice(CHUNK + CHUNK / 2..CHUNK + CHUNK / 2 + 64);
    assert!(!core.windows(64).any(|bytes| bytes == &some[..]), "a slot is in the core file");
}

/// One that is no root's is closed to its own uid, and can still read its own counters.
#[tokio::test]
async fn a_daemon_is_closed_to_others_of_its_own_uid() {
    let wrapper = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let able = std::process::Command::new(wrapper[0]).args(&wrapper[1..]).arg("true").status();
    if !able.is_ok_and(|status| status.success()) {
        println!("skipped: nothing can be run as somebody else");
        return;
    }
    for (setting, owner) in [("false", 0), ("true", 65_534)] {
        let dir = tempfile::TempDir::with_prefix("forebay-").unwrap();
        std::os::unix::fs::chown(dir.path(), Some(65_534), Some(65_534)).unwrap();
        let spec = NodeSpec::new().dir(dir).under(&wrapper).set("core_dumps", setting);
        let node = spec.start().await;
        let memory = std::fs::metadata(format!("/proc/{}/mem", node.daemon.pid())).unwrap();
        assert_eq!(memory.uid(), owner);
        let checks = node.client.doctor().await.unwrap();
        let evidence = checks.iter().filter(|check| check.group == "evidence");
        let hidden: Vec<_> = evidence
            .filter(|check| check.found.starts_with("cannot") && check.found.contains("self/"))
            .collect();
        assert!(hidden.is_empty(), "{hidden:?}");
        node.settled().await;
    }
}
