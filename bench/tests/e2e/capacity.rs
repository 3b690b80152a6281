//! What the daemon says that it can do, after it did some of it over a link whose rate is known.

use std::time::Duration;

use forebay_client::model::{Capacity, LoadCapacity, StageCapacity};
use forebay_client::{EvictRequest, KeepTier};
use forebay_testkit::{Content, LinkOptions, S3Options, S3Origin};
use serde_json::Value;

use crate::command::{run, text};
use crate::harness::{BUCKET, Node, NodeSpec, s3_uri, until};
use crate::pack::{pack, put, request, safetensors, weights};

/// What the link brings.
const RATE: u64 = 24_000_000;

/// Two seconds of it.
const BYTES: u64 = 2 * RATE;

fn stage<'a>(capacity: &'a Capacity, name: &str) -> &'a StageCapacity {
    capacity.stages.iter().find(|stage| stage.stage == name).expect(name)
}

fn rate(capacity: &Capacity, name: &str) -> Option<f64> {
    stage(capacity, name).measured.as_ref().map(|measured| measured.bytes_per_second)
}

fn load<'a>(capacity: &'a Capacity, kind: &str) -> &'a LoadCapacity {
    capacity.loads.iter().find(|load| load.kind == kind).expect(kind)
}

/// Within 15 % of the link. A machine that is too busy to fill it measures what its load got.
#[track_caller]
fn assert_link(bytes_per_second: f64, report: &Value) {
    let got = BYTES as f64 / report["wall_seconds"].as_f64().expect("how long it took");
    let least = (0.85 * RATE as f64).min(0.9 * got);
    let most = 1.15 * RATE as f64;
    assert!((least..most).contains(&bytes_per_second), "{bytes_per_second}, not {RATE}: {report}");
}

async fn shaped() -> S3Origin {
    let link = LinkOptions { total_bytes_per_second: Some(RATE), ..Default::default() };
    let origin = S3Origin::start(S3Options { link, ..Default::default() }).await;
    origin.put(BUCKET, "there/is/something", "beside");
    origin
}

fn loads(node: &Node, uri: &str) -> Value {
    let load = run(node, &["--format", "json", "load", uri, "--device", "fake:1"]);
    assert_eq!(load.status.code(), Some(0), "{load:?}");
    serde_json::from_str(text(&load.stdout)).expect("a report")
}

#[tokio::test]
async fn stages_are_measured_and_the_link_sets_the_ceiling() {
    let origin = shaped().await;
    origin.put(BUCKET, "blob", Content::synthetic(1, BYTES));
    let spec = NodeSpec::of(&origin).set("chunk", "256KiB").ram("128MiB").nvme("1GiB");
    let node = spec.start().await;
    let uri = s3_uri("blob");

    let before = node.client.capacity().await.unwrap();
    assert!(before.stages.iter().all(|stage| stage.measured.is_none()), "{before:?}");
    assert!(before.loads.iter().all(|load| load.ceiling.is_none()), "{before:?}");

    let report = loads(&node, &uri);
    assert_eq!(report["bytes_by_tier"]["origin"], BYTES);
    let cold = node.client.capacity().await.unwrap();
    let link = stage(&cold, "origin").measured.as_ref().expect("it was read from");
    assert_link(link.bytes_per_second, &report);
    assert!(link.age < Duration::from_secs(60) && link.concurrency > 1.0, "{link:?}");
    assert!(stage(&cold, "origin").present_bytes_per_second > 0.0);
    assert_eq!(rate(&cold, "nvme_read"), None, "nothing was read from there");
    let ceiling = load(&cold, "cold").ceiling.as_ref().unwrap();
    assert_eq!(ceiling.limited_by, "origin");
    assert_link(ceiling.bytes_per_second, &report);

    assert_eq!(loads(&node, &uri)["bytes_by_tier"]["ram"], BYTES);
    until("all of it is on the disk", async || {
        let listed = node.client.list(None).await.unwrap();
        (listed[0].cached.nvme == BYTES).then_some(())
    })
    .await;
    node.client.evict(EvictRequest::new(&uri).tier(KeepTier::Ram)).await.unwrap();
    assert_eq!(loads(&node, &uri)["bytes_by_tier"]["nvme"], BYTES);

    let all = node.client.capacity().await.unwrap();
    for name in ["origin", "nvme_read", "nvme_write", "verify", "handoff", "dma"] {
        assert!(rate(&all, name).is_some_and(|rate| rate > 0.0), "{name}: {all:?}");
    }
    assert_eq!(rate(&all, "decompress"), None, "nothing was packed");
    // The device takes the time of 1 GB/s, and no less.
    assert!(rate(&all, "dma").unwrap() < 1.1e9, "{all:?}");
    for kind in ["cold", "nvme", "warm", "fill"] {
        let found = load(&all, kind);
        assert_eq!(found.unmeasured().count(), 0, "{found:?}");
        let ceiling = found.ceiling.as_ref().unwrap();
        let least = found.stages.iter().filter_map(|(_, rate)| *rate).fold(f64::MAX, f64::min);
        assert_eq!(ceiling.bytes_per_second, least, "{found:?}");
    }
    assert_eq!(load(&all, "packed").unmeasured().collect::<Vec<_>>(), ["origin", "decompress"]);

    let page = run(&node, &["capacity"]);
    let page = text(&page.stdout);
    assert!(page.contains("decompress") && page.contains("not measured yet"), "{page}");
    assert!(page.contains("s3://models"), "{page}");
    node.settled().await;
}

#[tokio::test]
async fn what_is_packed_counts_for_what_it_is_unpacked() {
    let origin = shaped().await;
    let weights = safetensors(&[("BF16", 2, weights(7, 4_000_000, 16))]);
    put(&origin, "m/", &vec![("model.safetensors".to_owned(), weights)]);
    let node = NodeSpec::of(&origin).set("chunk", "256KiB").ram("64MiB").start().await;
    let asked = request(&s3_uri("m/"), &s3_uri("p/"));
    let report = pack(&node.client, asked).await.expect("it is packed");
    let ratio = report.packed_bytes as f64 / report.bytes as f64;
    assert!(ratio < 0.9, "{report:?}");
    loads(&node, &s3_uri("p/"));
    let capacity = node.client.capacity().await.unwrap();
    let packed = load(&capacity, "packed");
    let origin = rate(&capacity, "origin").unwrap();
    let (_, worth) = packed.stages.iter().find(|(stage, _)| stage == "origin").unwrap();
    let off = worth.unwrap() * ratio / origin - 1.0;
    assert!(off.abs() < 0.05, "{capacity:?}");
    let decompress = stage(&capacity, "decompress").measured.as_ref().unwrap();
    let scaled = decompress.worker_bytes_per_second.unwrap() * decompress.workers.unwrap() as f64;
    assert!((decompress.bytes_per_second / scaled - 1.0).abs() < 1e-6, "{decompress:?}");
    node.settled().await;
}
