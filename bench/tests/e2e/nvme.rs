//! The NVMe tier as its users see it: what was fetched once is not fetched again, the verbs about
//! what is stored, and what does not fit.

use forebay_client::model::{BytesByTier, PrefetchEvent, Report, VerifyEvent, VerifySummary};
use forebay_client::{
    Client, ClientError, EvictRequest, KeepTier, LoadRequest, PrefetchRequest, Reason,
};
use forebay_testkit::{Checkpoint, CheckpointSpec, Content, HttpOptions, HttpOrigin, S3Origin};
use serde_json::Value;

use crate::command::{run, text};
use crate::harness::{
    BUCKET, CHUNK, Node, NodeSpec, assert_adds_up, assert_ends, digests, expected_digests, files,
    s3, s3_uri, until,
};
use crate::nvme_files::{extents, fetched, flip};

/// Where a test's checkpoint comes from, and what it consists of.
struct Source {
    uri: String,
    expected: Vec<(String, Content)>,
    bytes: u64,
}

fn checkpoint(seed: u64, bytes: u64, shards: usize) -> Checkpoint {
    forebay_testkit::checkpoint(CheckpointSpec::new(seed, bytes).shards(shards))
}

/// A folder, an index and its shards, a single file, an object that is no safetensors.
fn sources(origin: &S3Origin) -> Vec<Source> {
    let sharded = checkpoint(1, 700 << 10, 3);
    origin.put_checkpoint(BUCKET, "sharded/", &sharded);
    let single = checkpoint(2, 300 << 10, 1);
    origin.put_checkpoint(BUCKET, "single/", &single);
    origin.put(BUCKET, "blob", Content::synthetic(3, 5 * CHUNK + 77));
    let by_index: Vec<_> =
        files(&sharded).into_iter().filter(|(key, _)| key.contains("safetensors")).collect();
    let model = single.file("model.safetensors").unwrap().clone();
    let source = |key: &str, expected: Vec<(String, Content)>| {
        let bytes = expected.iter().map(|(_, content)| content.len()).sum();
        Source { uri: s3_uri(key), expected, bytes }
    };
    vec![
        source("sharded/", files(&sharded)),
        source("sharded/model.safetensors.index.json", by_index),
        source("single/model.safetensors", vec![("model.safetensors".to_owned(), model)]),
        source("blob", vec![("blob".to_owned(), Content::synthetic(3, 5 * CHUNK + 77))]),
    ]
}

pub(crate) async fn prefetch(
    client: &Client,
    request: PrefetchRequest,
) -> Result<Report, ClientError> {
    let mut events = client.prefetch(request).await?;
    loop {
        match events.next().await?.expect("a report comes last") {
            PrefetchEvent::Report(report) => {
                assert_adds_up(&report);
                return Ok(*report);
            }
            PrefetchEvent::Progress(_) => {}
        }
    }
}

/// Loads everything and sees that it comes from NVMe, and no byte of an object from the origin.
async fn all_from_nvme(node: &Node, origin: &S3Origin, sources: &[Source]) {
    let before = fetched(origin);
    for Source { uri, expected, bytes } in sources {
        let report = node.loads(uri, expected).await;
        let tiers = BytesByTier { nvme: *bytes, ..Default::default() };
        assert_eq!((report.bytes_by_tier, report.origin_bytes), (tiers, 0), "{uri}");
        // Else the index's shards would come from RAM, where the folder's load left them.
        node.client.evict(EvictRequest::new(uri).tier(KeepTier::Ram)).await.unwrap();
    }
    assert_eq!(fetched(origin), before, "nothing is asked for again");
    assert_eq!(node.sum("forebay_cache_quarantined_total").await, 0.0);
}

fn spec(origin: &S3Origin) -> NodeSpec {
    NodeSpec::of(origin).nvme("64MiB")
}

#[tokio::test]
async fn what_was_prefetched_is_read_from_nvme_after_a_restart() {
    let origin = s3().await;
    let sources = sources(&origin);
    let node = spec(&origin).start().await;
    for Source { uri, bytes, .. } in &sources {
        let report = prefetch(&node.client, PrefetchRequest::new(uri)).await.unwrap();
        assert_eq!(report.bytes, *bytes);
    }
    let node = spec(&origin).dir(node.stopped().await).start().await;
    all_from_nvme(&node, &origin, &sources).await;
}

#[tokio::test]
async fn what_was_prefetched_survives_a_kill() {
    let origin = s3().await;
    let sources = sources(&origin);
    let mut dir = tempfile::TempDir::with_prefix("forebay-").unwrap();
    for Source { uri, .. } in &sources {
        let node = spec(&origin).dir(dir).start().await;
        prefetch(&node.client, PrefetchRequest::new(uri)).await.unwrap();
        dir = node.daemon.kill().unwrap();
    }
    let node = spec(&origin).dir(dir).start().await;
    all_from_nvme(&node, &origin, &sources).await;
}

#[tokio::test]
async fn what_was_loaded_is_stored_before_the_daemon_ends() {
    let origin = s3().await;
    let sources = sources(&origin);
    let node = spec(&origin).start().await;
    for Source { uri, expected, .. } in &sources {
        node.loads(uri, expected).await;
    }
    let node = spec(&origin).dir(node.stopped().await).start().await;
    all_from_nvme(&node, &origin, &sources).await;
    let node = spec(&origin).dir(node.stopped().await).start().await;
    all_from_nvme(&node, &origin, &sources).await;
}

#[tokio::test]
async fn a_web_origin_is_asked_only_whether_all_is_as_it_was() {
    let origin = HttpOrigin::start(HttpOptions::default()).await;
    let made = checkpoint(4, 300 << 10, 1);
    let model = made.file("model.safetensors").unwrap().clone();
    origin.put("m/model.safetensors", model.clone());
    let (uri, expected) =
        (origin.url("m/model.safetensors"), [("model.safetensors".to_owned(), model.clone())]);
    let node = NodeSpec::new().nvme("64MiB").start().await;
    prefetch(&node.client, PrefetchRequest::new(&uri)).await.unwrap();
    let node = NodeSpec::new().nvme("64MiB").dir(node.daemon.kill().unwrap()).start().await;
    let before = origin.total();
    let report = node.loads(&uri, &expected).await;
    assert_eq!(report.bytes_by_tier.nvme, model.len());
    let after = origin.total();
    assert_eq!((after.gets, after.body_bytes), (before.gets, before.body_bytes));
    // Another version is another checkpoint.
    let other = checkpoint(5, 300 << 10, 1).file("model.safetensors").unwrap().clone();
    origin.replace("m/model.safetensors", other.clone());
    let report = node.loads(&uri, &[("model.safetensors".to_owned(), other.clone())]).await;
    assert_eq!(report.bytes_by_tier.origin, other.len());
}

/// Two prefetches of one checkpoint at a time keep its headers once, and whole.
#[tokio::test]
async fn prefetches_side_by_side_survive_a_kill() {
    let origin = s3().await;
    let sources = sources(&origin);
    for _ in 0..3 {
        let node = spec(&origin).start().await;
        for Source { uri, bytes, .. } in &sources {
            let (one, two, three) = tokio::join!(
                prefetch(&node.client, PrefetchRequest::new(uri)),
                prefetch(&node.client, PrefetchRequest::new(uri).tier(KeepTier::Nvme)),
                prefetch(&node.client, PrefetchRequest::new(uri)),
            );
            let kept = [one, two, three].map(|report| report.unwrap().bytes);
            assert_eq!(kept, [*bytes; 3]);
        }
        let node = spec(&origin).dir(node.daemon.kill().unwrap()).start().await;
        all_from_nvme(&node, &origin, &sources).await;
    }
}

#[tokio::test]
async fn one_load_takes_its_chunks_from_all_three_tiers() {
    let origin = s3().await;
    let made = checkpoint(6, 1 << 20, 2);
    origin.put_checkpoint(BUCKET, "m/", &made);
    let uri = s3_uri("m/");
    let node = spec(&origin).start().await;
    let half = |what: &str| LoadRequest::new(&uri).tensors([what]);
    let names: Vec<_> = made.tensors().map(|tensor| tensor.name.clone()).collect();
    let (first, last) = (&names[0], &names[names.len() - 1]);
    // On NVMe only; then another part in RAM too; then everything.
    digests_of(&node, half(first)).await;
    until("it is stored", async || {
        let status = node.client.status().await.unwrap().nvme;
        (status.queued_fills == 0 && status.filling_bytes == 0 && status.extents > 0).then_some(())
    })
    .await;
    node.client.evict(EvictRequest::new(&uri).tier(KeepTier::Ram)).await.unwrap();
    let on_nvme = node.client.stat(&uri).await.unwrap().summary.cached;
    digests_of(&node, half(last)).await;
    let in_ram = node.client.stat(&uri).await.unwrap().summary.cached.ram;
    assert!(on_nvme.ram == 0 && on_nvme.nvme > 0 && in_ram > 0, "{on_nvme:?} {in_ram}");
    let before = fetched(&origin);
    let report = node.loads(&uri, &files(&made)).await;
    let origin_bytes = made.bytes() - on_nvme.nvme - in_ram;
    assert!(origin_bytes > 0);
    let tiers = BytesByTier { ram: in_ram, nvme: on_nvme.nvme, origin: origin_bytes };
    assert_eq!(report.bytes_by_tier, tiers);
    assert_eq!(fetched(&origin).1 - before.1, origin_bytes);
}

async fn digests_of(node: &Node, request: LoadRequest) {
    let mut load = node.client.load(request).await.unwrap();
    while let Some(chunk) = load.next_chunk().await.unwrap() {
        chunk.release();
    }
    load.finish().await.unwrap();
    node.settled().await;
}

#[tokio::test]
async fn a_checkpoint_larger_than_ram_is_served_from_nvme() {
    let origin = s3().await;
    let made = checkpoint(7, 2 << 20, 2);
    origin.put_checkpoint(BUCKET, "m/", &made);
    let uri = s3_uri("m/");
    let spec = || spec(&origin).ram("512KiB");
    let node = spec().start().await;
    let error = prefetch(&node.client, PrefetchRequest::new(&uri)).await.unwrap_err();
    assert_ends(&error, Reason::RamExhausted, 5);
    let output = run(&node, &["--format", "json", "prefetch", "--tier", "nvme", &uri]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap();
    assert_eq!(report["bytes_by_tier"]["origin"], made.bytes(), "{report}");
    let stat = node.client.stat(&uri).await.unwrap().summary;
    assert_eq!(stat.cached.nvme, made.bytes());
    let before = fetched(&origin);
    let again = async |node: &Node| {
        let request = PrefetchRequest::new(&uri).tier(KeepTier::Nvme);
        let report = prefetch(&node.client, request).await.unwrap();
        assert_eq!(report.bytes_by_tier.nvme, made.bytes());
    };
    let report = node.loads(&uri, &files(&made)).await;
    assert_eq!(report.bytes_by_tier.origin, 0, "{report:?}");
    again(&node).await;
    // At once, while the daemon may still look at what it has.
    let node = spec().dir(node.stopped().await).start().await;
    again(&node).await;
    assert_eq!(node.loads(&uri, &files(&made)).await.bytes_by_tier.nvme, made.bytes());
    assert_eq!(fetched(&origin), before);
}

#[tokio::test]
async fn what_does_not_fit_is_said_and_leaves_no_pin() {
    let origin = s3().await;
    let large = checkpoint(8, 2 << 20, 1);
    let small = checkpoint(9, 512 << 10, 1);
    origin.put_checkpoint(BUCKET, "large/", &large);
    origin.put_checkpoint(BUCKET, "small/", &small);
    let node = NodeSpec::of(&origin).nvme("1MiB").ram("4MiB").start().await;
    for args in [&["prefetch", "--tier", "nvme"][..], &["prefetch", "--pin"]] {
        let output = run(&node, &[args, &[&s3_uri("large/")]].concat());
        assert_eq!(output.status.code(), Some(5), "{output:?}");
        assert!(text(&output.stderr).contains("NVME_EXHAUSTED"), "{output:?}");
        let listed = node.client.list(None).await.unwrap();
        assert!(listed.iter().all(|listed| !listed.pinned), "{listed:?}");
    }
    // Whatever was stored of it makes room for what fits.
    let request = PrefetchRequest::new(s3_uri("small/")).pin();
    let report = prefetch(&node.client, request).await.unwrap();
    assert_eq!(report.bytes, small.bytes());
    let stat = node.client.stat(s3_uri("small/")).await.unwrap().summary;
    assert_eq!(stat.cached.nvme, small.bytes());
    // Without RAM that holds it, an ordinary load stores what it can, and goes on serving.
    node.loads(&s3_uri("large/"), &files(&large)).await;
    let stored = node.client.status().await.unwrap().nvme;
    assert!(stored.stored_bytes <= stored.budget_bytes, "{stored:?}");
    assert_eq!(stored.pinned_bytes, small.bytes());
}

async fn verify(node: &Node, uri: &str) -> VerifySummary {
    let mut events = node.client.verify(uri).await.unwrap();
    loop {
        match events.next().await.unwrap().expect("a summary comes last") {
            VerifyEvent::Summary(summary) => return summary,
            VerifyEvent::Progress(_) => {}
        }
    }
}

#[tokio::test]
async fn pins_hold_against_pressure_and_over_restarts() {
    let origin = s3().await;
    let made: Vec<_> = (0..3).map(|n| checkpoint(10 + n, 512 << 10, 1)).collect();
    for (n, made) in made.iter().enumerate() {
        origin.put_checkpoint(BUCKET, &format!("m{n}/"), made);
    }
    let uri = |n: usize| s3_uri(&format!("m{n}/"));
    let spec = || NodeSpec::of(&origin).nvme("1400KiB").ram("1MiB");
    let mut node = spec().start().await;
    prefetch(&node.client, PrefetchRequest::new(uri(0)).tier(KeepTier::Nvme).pin()).await.unwrap();
    for round in 0..3 {
        for n in [1, 2] {
            let request = PrefetchRequest::new(uri(n)).tier(KeepTier::Nvme);
            prefetch(&node.client, request).await.unwrap();
            node.loads(&uri(n), &files(&made[n])).await;
        }
        let listed = node.client.list(Some(&uri(0))).await.unwrap();
        assert!(listed.len() == 1 && listed[0].pinned, "{round}: {listed:?}");
        assert_eq!(listed[0].cached.nvme, made[0].bytes());
        let evicted = node.client.evict(&uri(0)).await.unwrap();
        assert_eq!((evicted.nvme_freed_bytes, evicted.pinned_checkpoints), (0, 1));
        let dir = if round % 2 == 0 { node.stopped().await } else { node.daemon.kill().unwrap() };
        node = spec().dir(dir).start().await;
    }
    let before = fetched(&origin);
    let report = node.loads(&uri(0), &files(&made[0])).await;
    assert_eq!(report.bytes_by_tier.nvme, made[0].bytes());
    assert_eq!(fetched(&origin), before);
    assert_eq!(node.client.unpin(uri(0)).await.unwrap().checkpoints, 1);
    let evicted = node.client.evict(&uri(0)).await.unwrap();
    assert_eq!((evicted.nvme_freed_bytes, evicted.pinned_checkpoints), (made[0].bytes(), 0));
    assert!(node.client.list(Some(&uri(0))).await.unwrap().is_empty());
}

fn json(node: &Node, args: &[&str]) -> Value {
    let output = run(node, &[&["--format", "json"], args].concat());
    assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap()
}

#[tokio::test]
async fn the_verbs_about_the_tiers_do_what_they_say() {
    let origin = s3().await;
    let made = checkpoint(13, 1 << 20, 2);
    origin.put_checkpoint(BUCKET, "m/", &made);
    let uri = s3_uri("m/");
    let node = spec(&origin).start().await;
    let bytes = made.bytes();
    for verb in ["pin", "unpin", "verify"] {
        let output = run(&node, &[verb, &uri]);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert!(text(&output.stderr).contains("NOT_CACHED"), "{output:?}");
    }
    json(&node, &["prefetch", "--pin", &uri]);
    let listed = json(&node, &["ls"]);
    let listed = &listed["checkpoints"][0];
    assert_eq!((&listed["pinned"], &listed["cached"]["nvme"]), (&true.into(), &bytes.into()));
    let pinned = json(&node, &["pin", &uri]);
    assert_eq!((&pinned["nvme_bytes"], &pinned["missing_bytes"]), (&bytes.into(), &0.into()));
    assert_eq!(json(&node, &["evict", "--tier", "nvme", &uri])["pinned_checkpoints"], 1);
    assert_eq!(json(&node, &["evict", "--tier", "ram", &uri])["freed_bytes"], bytes);
    assert_eq!(json(&node, &["stat", &uri])["cached"]["nvme"], bytes);
    assert_eq!(json(&node, &["load", &uri])["bytes_by_tier"]["nvme"], bytes);
    assert_eq!(json(&node, &["unpin", &uri])["checkpoints"], 1);
    assert_eq!(json(&node, &["unpin", &uri])["checkpoints"], 0);
    assert_eq!(json(&node, &["evict", "--tier", "nvme", &uri])["nvme_freed_bytes"], bytes);
    let status = json(&node, &["status"]);
    assert_eq!(
        (&status["nvme"]["stored_bytes"], &status["nvme"]["extents"]),
        (&0.into(), &0.into())
    );
    assert!(extents(node.daemon.dir()).is_empty());
    // It is in RAM still, and stored again from there.
    let report = json(&node, &["prefetch", "--tier", "nvme", &uri]);
    assert_eq!(report["bytes_by_tier"]["ram"], bytes, "{report}");
    assert_eq!(json(&node, &["evict", &uri])["checkpoints"], 1);
    assert!(node.client.list(None).await.unwrap().is_empty());
    node.settled().await;
}

#[tokio::test]
async fn verify_finds_what_the_disk_has_done() {
    let origin = s3().await;
    let made = checkpoint(14, 1 << 20, 1);
    origin.put_checkpoint(BUCKET, "m/", &made);
    let uri = s3_uri("m/");
    let node = spec(&origin).start().await;
    prefetch(&node.client, PrefetchRequest::new(&uri)).await.unwrap();
    let right = verify(&node, &uri).await;
    assert_eq!((right.checked.ram, right.checked.nvme), (made.bytes(), made.bytes()));
    assert_eq!((right.bad, right.unreadable), Default::default());
    let bad = extents(node.daemon.dir()).swap_remove(3);
    flip(&bad.path, 8 * 4096 + 12345);
    let output = run(&node, &["verify", &uri]);
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    assert!(text(&output.stderr).contains("BAD_CACHE"), "{output:?}");
    assert_eq!(node.sum("forebay_cache_quarantined_total").await, 1.0);
    assert!(!bad.path.exists());
    assert_eq!(run(&node, &["verify", &uri]).status.code(), Some(0));
    node.client.evict(EvictRequest::new(&uri).tier(KeepTier::Ram)).await.unwrap();
    let report = node.loads(&uri, &files(&made)).await;
    let tiers =
        BytesByTier { ram: 0, nvme: made.bytes() - bad.content_bytes, origin: bad.content_bytes };
    assert_eq!(report.bytes_by_tier, tiers);
}

#[tokio::test]
async fn without_the_tier_its_verbs_say_so() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(15, CHUNK));
    let node = NodeSpec::of(&origin).start().await;
    let uri = s3_uri("blob");
    for args in [
        &["pin", &uri][..],
        &["unpin", &uri],
        &["evict", "--tier", "nvme", &uri],
        &["prefetch", "--tier", "nvme", &uri],
        &["prefetch", "--pin", &uri],
    ] {
        let output = run(&node, args);
        assert_eq!(output.status.code(), Some(9), "{args:?}: {output:?}");
        assert!(text(&output.stderr).contains("NVME_OFF"), "{output:?}");
    }
    json(&node, &["prefetch", "--tier", "ram", &uri]);
    assert_eq!(json(&node, &["status"])["nvme"]["state"], "off");
    assert!(!node.daemon.dir().join("cache/nvme").exists());
}

/// Row 27: what was a hit before a restart is one after it.
#[tokio::test]
async fn the_cache_is_as_warm_after_a_restart_as_before() {
    let origin = s3().await;
    let made: Vec<_> = (0..4).map(|n| checkpoint(20 + n, 512 << 10, 1)).collect();
    for (n, made) in made.iter().enumerate() {
        origin.put_checkpoint(BUCKET, &format!("m{n}/"), made);
    }
    let spec = || spec(&origin).ram("512KiB");
    let loads = async |node: &Node| {
        let mut hits = 0;
        for (n, made) in made.iter().enumerate() {
            let report = node.loads(&s3_uri(&format!("m{n}/")), &files(made)).await;
            hits += report.bytes_by_tier.ram + report.bytes_by_tier.nvme;
        }
        hits
    };
    for kill in [false, true] {
        let node = spec().start().await;
        loads(&node).await;
        let before = loads(&node).await;
        assert!(before > 0);
        let dir = if kill { node.daemon.kill().unwrap() } else { node.stopped().await };
        let node = spec().dir(dir).start().await;
        let after = loads(&node).await;
        assert!(after * 100 >= before * 95, "kill {kill}: {after} of {before}");
    }
}

/// Chunks leave RAM while other loads read them from NVMe, or wait for them to be stored.
#[tokio::test]
async fn loads_side_by_side_in_little_ram_are_right() {
    let origin = s3().await;
    let made = checkpoint(30, 1 << 20, 2);
    origin.put_checkpoint(BUCKET, "m/", &made);
    let node = spec(&origin).ram("768KiB").start().await;
    let expected = expected_digests(&files(&made));
    let loads = (0..4).map(|_| digests(&node.client, LoadRequest::new(s3_uri("m/"))));
    for loaded in futures::future::join_all(loads).await {
        assert_eq!(loaded.unwrap().0, expected);
    }
    node.settled().await;
}
