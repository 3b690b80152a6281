//! Bits that flip on the way: told by the digest of the first fetch, and asked for once more.

use forebay_client::{LoadRequest, Reason};
use forebay_testkit::{Content, Fault, FaultRule, HttpOptions, HttpOrigin, When};

use crate::harness::{CHUNK, Node, NodeSpec, assert_ends};

const CHUNKS: u64 = 16;
const MISMATCHES: &str = "forebay_digest_mismatches_total";

async fn mismatches(node: &Node) -> f64 {
    node.metric(MISMATCHES).await.unwrap_or(0.0)
}

/// An origin and a daemon that has fetched its object once and holds nothing of it any more.
async fn known() -> (HttpOrigin, Node, Content, String) {
    let origin = HttpOrigin::start(HttpOptions::default()).await;
    let content = Content::synthetic(31, CHUNKS * CHUNK);
    origin.put("blob", content.clone());
    let uri = origin.url("blob");
    let node = NodeSpec::new().start().await;
    node.loads(&uri, &[("blob".to_owned(), content.clone())]).await;
    node.client.evict(&uri).await.unwrap();
    (origin, node, content, uri)
}

#[tokio::test]
async fn a_flipped_bit_is_seen_and_its_part_fetched_once_more() {
    let (origin, node, content, uri) = known().await;
    for (round, bit) in [0, CHUNK / 2, CHUNK - 1].into_iter().enumerate() {
        let rule = origin.fault(FaultRule::new("blob", Fault::FlipBit(bit)).nth(5));
        let report = node.loads(&uri, &[("blob".to_owned(), content.clone())]).await;
        assert_eq!(rule.hits(), 1);
        assert_eq!(mismatches(&node).await, (round + 1) as f64);
        assert_eq!((report.attempts, report.origin_bytes), (CHUNKS + 1, (CHUNKS + 1) * CHUNK));
        rule.remove();
        node.client.evict(&uri).await.unwrap();
    }
}

#[tokio::test]
async fn bits_that_flip_in_every_part_are_all_seen() {
    let (origin, node, content, uri) = known().await;
    // Each part comes wrong first and right then, whatever the order.
    let flips = Fault::FlipBits { seed: 9, every: CHUNK };
    for chunk in 0..CHUNKS {
        origin.fault(FaultRule::new("blob", flips.clone()).covering(chunk * CHUNK).nth(1));
    }
    let report = node.loads(&uri, &[("blob".to_owned(), content.clone())]).await;
    assert_eq!(mismatches(&node).await, CHUNKS as f64);
    assert_eq!(report.origin_bytes, 2 * CHUNKS * CHUNK);
}

#[tokio::test]
async fn bytes_that_stay_wrong_are_lost_and_nothing_of_them_is_kept() {
    let (origin, node, content, uri) = known().await;
    let rule = origin.fault(FaultRule::new("blob", Fault::FlipBit(7)).covering(3 * CHUNK));
    let error = node.refused(&uri).await;
    assert_ends(&error, Reason::DigestMismatch, 6);
    assert_eq!(error.failure().object.as_deref(), Some("blob"), "{error}");
    assert_eq!(rule.hits(), 2, "once more, and no more");
    assert_eq!(mismatches(&node).await, 2.0);
    rule.remove();
    node.loads(&uri, &[("blob".to_owned(), content)]).await;
}

/// A record outlives the daemon.
#[tokio::test]
async fn what_was_fetched_before_a_restart_is_compared_after_it() {
    let (origin, node, content, uri) = known().await;
    let dir = node.daemon.kill().unwrap();
    let node = NodeSpec::new().dir(dir).start().await;
    origin.fault(FaultRule::new("blob", Fault::FlipBit(1)).when(When::First(1)));
    node.loads(&uri, &[("blob".to_owned(), content)]).await;
    assert_eq!(mismatches(&node).await, 1.0);
    let request = LoadRequest::new(uri);
    drop(node.client.load(request).await.unwrap());
    node.settled().await;
}
