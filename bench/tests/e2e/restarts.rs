//! A daemon that ends under load and comes back: what fifty clients see of it, and what is a hit.

use futures::future::join_all;

use forebay_client::{
    Chunk, Client, ClientError, ErrorKind, KeepTier, Load, LoadRequest, PrefetchRequest, Reason,
};
use forebay_testkit::{Checkpoint, CheckpointSpec, S3Origin, checkpoint};
use rustix::process::Signal;

use crate::harness::{
    BUCKET, Node, NodeSpec, connect, digests, expected_digests, failure, files, s3, s3_uri, until,
};
use crate::nvme::prefetch;
use crate::nvme_files::fetched;

const CLIENTS: usize = 50;

fn request() -> LoadRequest {
    LoadRequest::new(s3_uri("m/"))
}

/// The load that a client opens again, with the next daemon, too.
fn same(client: usize) -> LoadRequest {
    request().load_id(format!("pod-{client}"))
}

/// UNAVAILABLE, with a word on when to come again.
#[track_caller]
fn assert_hinted(error: &ClientError, reason: Reason) {
    assert_eq!((error.reason(), error.kind()), (reason, ErrorKind::Unavailable), "{error}");
    assert!(error.failure().retry_after.is_some(), "{error}");
}

#[track_caller]
fn assert_right(made: &Checkpoint, chunk: &Chunk) {
    for run in chunk.extents() {
        let content = made.file(run.key()).expect("a key of the checkpoint");
        assert!(content.matches(run.offset(), run.bytes()), "{} at {}", run.key(), run.offset());
    }
}

/// Loads that have begun, each with a chunk that its client holds.
async fn begun(clients: &[Client]) -> Vec<(Load, Chunk)> {
    let begin = async |(n, client): (usize, &Client)| {
        let mut load = client.load(same(n)).await.unwrap();
        let held = load.next_chunk().await.unwrap().expect("a chunk");
        (load, held)
    };
    join_all(clients.iter().enumerate().map(begin)).await
}

/// Every client loads everything; the bytes that were hits, of how many.
async fn all_load(clients: &[Client], made: &Checkpoint) -> (u64, u64) {
    let expected = expected_digests(&files(made));
    let clients = clients.iter().enumerate();
    let loaded = join_all(clients.map(|(n, client)| digests(client, same(n)))).await;
    let tiers = loaded.into_iter().map(|loaded| {
        let (mapped, report) = loaded.expect("the client has found the next daemon");
        assert_eq!(mapped, expected);
        (report.bytes_by_tier.ram + report.bytes_by_tier.nvme, report.bytes)
    });
    tiers.fold((0, 0), |sum, (hits, bytes)| (sum.0 + hits, sum.1 + bytes))
}

fn spec(origin: &S3Origin) -> NodeSpec {
    // Four slots for each of them.
    NodeSpec::of(origin).ram("16MiB").nvme("32MiB")
}

/// The next daemon is as warm as the last one was.
async fn assert_warm(origin: &S3Origin, clients: &[Client], made: &Checkpoint) {
    let before = fetched(origin);
    let (hits, bytes) = all_load(clients, made).await;
    assert!(hits * 100 >= bytes * 95, "{hits} of {bytes} bytes were hits");
    assert_eq!(fetched(origin), before, "nothing is fetched again");
}

#[tokio::test]
async fn fifty_clients_find_the_next_daemon_after_sigkill_and_after_sigterm() {
    let origin = s3().await;
    let made = checkpoint(CheckpointSpec::new(31, 2 << 20).shards(2));
    origin.put_checkpoint(BUCKET, "m/", &made);
    let node = spec(&origin).start().await;
    prefetch(&node.client, PrefetchRequest::new(s3_uri("m/")).tier(KeepTier::Nvme)).await.unwrap();
    let clients = join_all((0..CLIENTS).map(|_| connect(&node.daemon))).await;
    assert_warm(&origin, &clients, &made).await;

    let loads = begun(&clients).await;
    let dir = node.daemon.kill().unwrap();
    let mut kept = Vec::new();
    for (mut load, held) in loads {
        let error = loop {
            match load.next_chunk().await {
                Ok(Some(chunk)) => assert_right(&made, &chunk),
                // All of it had been granted.
                Ok(None) => break load.finish().await.unwrap_err(),
                Err(error) => break error,
            }
        };
        assert_hinted(&error, Reason::DaemonUnreachable);
        assert_right(&made, &held);
        kept.push(held);
    }
    for error in join_all(clients.iter().map(|client| failure(client, request()))).await {
        assert_hinted(&error, Reason::DaemonUnreachable);
    }
    let node = spec(&origin).dir(dir).start().await;
    assert_warm(&origin, &clients, &made).await;
    kept.iter().for_each(|held| assert_right(&made, held));
    drop(kept);

    let node = drained(node, &clients, &made).await;
    let node = spec(&origin).dir(node.daemon.kill().unwrap()).start().await;
    assert_warm(&origin, &clients, &made).await;
    drop(clients);
    node.settled().await;
}

/// SIGTERM amid fifty loads: they end as they should, and nobody begins another.
async fn drained(mut node: Node, clients: &[Client], made: &Checkpoint) -> Node {
    let loads = begun(clients).await;
    node.daemon.signal(Signal::TERM).unwrap();
    until("it drains", async || node.client.status().await.unwrap().draining.then_some(())).await;
    for error in join_all(clients.iter().map(|client| failure(client, request()))).await {
        assert_hinted(&error, Reason::Draining);
    }
    assert!(node.daemon.try_wait().unwrap().is_none(), "loads still run");
    for (mut load, held) in loads {
        assert_right(made, &held);
        drop(held);
        while let Some(chunk) = load.next_chunk().await.unwrap() {
            assert_right(made, &chunk);
        }
        load.finish().await.unwrap();
    }
    let daemon = &mut node.daemon;
    let status = until("the daemon has ended", async || daemon.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(0), "{}", node.daemon.log());
    node
}
