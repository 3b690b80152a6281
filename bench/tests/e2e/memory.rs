//! Checkpoints larger than the RAM tier: they stream through it, and the daemon stays small.

use forebay_bench::process::DaemonProcess;
use forebay_client::{Load, LoadRequest};
use forebay_testkit::{CheckpointSpec, Content, checkpoint};
use futures::future::join_all;

use crate::harness::{
    BUCKET, Node, NodeSpec, connect, digests, expected_digests, files, s3, s3_uri,
};

const MIB: u64 = 1 << 20;

/// Resident beyond `--ram`, at most.
const OVERHEAD: u64 = 150 * MIB;

fn assert_small(daemon: &DaemonProcess, ram: u64) {
    let peak = daemon.peak_resident_bytes().unwrap();
    println!("peak resident {} MiB with {} MiB of RAM tier", peak / MIB, ram / MIB);
    assert!(peak <= ram + OVERHEAD, "{peak} bytes resident with {ram} of RAM tier");
}

/// An object of `bytes` bytes that costs no generation: one block, again and again, with a length
/// that is no part of a chunk, so that a misplaced chunk differs.
fn repeated(bytes: u64) -> (Content, Vec<u8>) {
    let block = Content::synthetic(5, MIB + 4099).to_bytes();
    let length = block.len() as u64;
    let mut parts = vec![Content::bytes(block.clone()); usize::try_from(bytes / length).unwrap()];
    parts.push(Content::bytes(block.slice(..usize::try_from(bytes % length).unwrap())));
    (Content::concat(parts), block.to_vec())
}

/// Reads a load to its end; every byte has to be the one of the repeated block.
async fn compare(load: &mut Load, block: &[u8]) -> u64 {
    let mut total = 0;
    while let Some(chunk) = load.next_chunk().await.unwrap() {
        for extent in chunk.extents() {
            let at = usize::try_from(extent.offset() % block.len() as u64).unwrap();
            let mut rest = extent.bytes();
            let mut expected = &block[at..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(expected.len()));
                assert!(now == &expected[..now.len()], "a byte differs at {}", extent.offset());
                (rest, expected) = (later, block);
            }
            total += extent.bytes().len() as u64;
        }
    }
    total
}

async fn streams_through(node: &Node, bytes: u64, ram: u64) {
    let (content, block) = repeated(bytes);
    assert_eq!(content.len(), bytes);
    let mut load = node.client.load(LoadRequest::new(s3_uri("huge.bin"))).await.unwrap();
    assert_eq!(compare(&mut load, &block).await, bytes);
    let report = load.finish().await.unwrap();
    assert_eq!((report.bytes, report.bytes_by_tier.origin), (bytes, bytes));
    assert!(report.origin_bytes == bytes || report.hedges > 0, "{report:?}");
    assert!(report.peak_window_bytes <= ram, "{}", report.peak_window_bytes);
    assert_small(&node.daemon, ram);
    node.settled().await;
}

#[tokio::test]
async fn an_object_twenty_times_the_pool_streams_through() {
    let bytes = 320 * MIB + 12_345;
    let origin = s3().await;
    origin.put(BUCKET, "huge.bin", repeated(bytes).0);
    let node = NodeSpec::of(&origin).set("chunk", "1MiB").ram("16MiB").start().await;
    streams_through(&node, bytes, 16 * MIB).await;
}

#[tokio::test]
async fn five_gibibytes_stream_through_256_mebibytes() {
    if std::env::var_os("FOREBAY_SLOW_TESTS").is_none_or(|value| value != "1") {
        println!("skipped: 5 GiB through a pool of 256 MiB runs with FOREBAY_SLOW_TESTS=1");
        return;
    }
    let bytes = 5 << 30;
    let origin = s3().await;
    origin.put(BUCKET, "huge.bin", repeated(bytes).0);
    let node = NodeSpec::of(&origin).set("chunk", "8MiB").ram("256MiB").start().await;
    streams_through(&node, bytes, 256 * MIB).await;
}

#[tokio::test]
async fn a_checkpoint_four_times_the_pool_is_read_by_tensors() {
    let origin = s3().await;
    let made = checkpoint(CheckpointSpec::new(6, 64 * MIB).shards(4));
    origin.put_checkpoint(BUCKET, "m/", &made);
    let node = NodeSpec::of(&origin).set("chunk", "1MiB").ram("16MiB").start().await;
    let mut load = node.client.load(LoadRequest::new(s3_uri("m/"))).await.unwrap();
    let mut tensors = 0;
    while let Some(tensor) = load.next_tensor().await.unwrap() {
        let expected = &made.tensor(tensor.name()).unwrap().content;
        assert!(expected.matches(0, tensor.bytes()), "{}", tensor.name());
        tensors += 1;
    }
    assert_eq!(tensors, made.tensors().count());
    let report = load.finish().await.unwrap();
    assert_eq!(report.bytes, made.bytes());
    assert_small(&node.daemon, 16 * MIB);
    node.settled().await;
}

#[tokio::test]
async fn eight_cold_loads_fetch_every_byte_once() {
    let origin = s3().await;
    let made = checkpoint(CheckpointSpec::new(7, 12 * MIB).shards(3));
    origin.put_checkpoint(BUCKET, "m/", &made);
    let node = NodeSpec::of(&origin).set("chunk", "1MiB").ram("32MiB").start().await;
    let loads = (0..8).map(async |_| {
        let client = connect(&node.daemon).await;
        digests(&client, LoadRequest::new(s3_uri("m/"))).await.unwrap()
    });
    let loads = join_all(loads).await;
    let expected = expected_digests(&files(&made));
    for (mapped, report) in &loads {
        assert_eq!(*mapped, expected);
        assert_eq!(report.bytes, made.bytes());
        assert_eq!(report.bytes_by_tier.ram + report.bytes_by_tier.origin, made.bytes());
    }
    let fetched: u64 = loads.iter().map(|(_, report)| report.origin_bytes).sum();
    let keys = || made.files().iter().map(|(key, _)| format!("m/{key}"));
    let sent: u64 = keys().map(|key| origin.counts(&key).body_bytes).sum();
    println!("8 loads of {} bytes: reports say {fetched}, the origin sent {sent}", made.bytes());
    // Resolving reads the first 64 KiB of each shard, once for all eight.
    assert_eq!(fetched, made.bytes() + 3 * (64 << 10));
    assert_eq!(sent, fetched);
    node.settled().await;
}

#[tokio::test]
async fn loads_that_share_a_pool_too_small_for_one_all_finish() {
    let origin = s3().await;
    let mut expected = Vec::new();
    for n in 0..4 {
        let content = Content::synthetic(20 + n, 2 * MIB + n);
        origin.put(BUCKET, &format!("m{n}"), content.clone());
        expected.push((format!("m{n}"), content));
    }
    // Two loads of each object through eight slots.
    let node = NodeSpec::of(&origin).ram("512KiB").start().await;
    let loads = (0..8).map(async |n: usize| {
        let client = connect(&node.daemon).await;
        let key = format!("m{}", n % 4);
        let mapped = digests(&client, LoadRequest::new(s3_uri(&key))).await.unwrap().0;
        assert_eq!(mapped, expected_digests(&expected[n % 4..=n % 4]));
    });
    join_all(loads).await;
    node.settled().await;
}
