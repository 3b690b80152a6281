//! Every fault does on the wire what its name says.

use std::io::ErrorKind;
use std::time::Duration;

use forebay_testkit::{Content, Fault, FaultRule, HttpOptions, HttpOrigin, Op, When};

use super::client::{client, get, get_range, send, send_with};

const BYTES: u64 = 3_000_000;

fn content() -> Content {
    Content::synthetic(1, BYTES)
}

async fn origin_with(fault: Fault) -> HttpOrigin {
    let origin = HttpOrigin::start(HttpOptions::default()).await;
    origin.put("k", content());
    origin.fault(FaultRule::new("k", fault));
    origin
}

#[tokio::test]
async fn a_status_comes_with_its_retry_after() {
    let retry_after = Some(Duration::from_secs(7));
    let origin = origin_with(Fault::Status { code: 503, retry_after }).await;
    let reply = get(&origin.url("k")).await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, "7"));
    let origin = origin_with(Fault::ErrorCode { status: 200, code: "InternalError" }).await;
    let reply = get(&origin.url("k")).await;
    assert_eq!((reply.status, reply.text().trim()), (200, "InternalError"));
}

#[tokio::test]
async fn connections_end_without_a_response() {
    let origin = origin_with(Fault::ResetBeforeHeaders).await;
    assert_eq!(send("GET", &origin.url("k"), &[]).await.unwrap_err(), ErrorKind::ConnectionReset);
    let origin = origin_with(Fault::CloseBeforeHeaders).await;
    assert_eq!(send("GET", &origin.url("k"), &[]).await.unwrap_err(), ErrorKind::UnexpectedEof);
    assert_eq!(origin.records()[0].status, 0);
}

#[tokio::test]
async fn a_reset_comes_after_exactly_the_bytes_it_names() {
    for bytes in [0, 1, 700_000, BYTES - 1] {
        let origin = origin_with(Fault::ResetAfter(bytes)).await;
        let reply = get(&origin.url("k")).await;
        assert_eq!(reply.header("content-length"), BYTES.to_string());
        assert_eq!(reply.broken, Some(ErrorKind::ConnectionReset), "after {bytes} bytes");
        assert_eq!(reply.body.len() as u64, bytes);
        assert!(content().matches(0, &reply.body));
        assert_eq!(origin.counts("k").body_bytes, bytes);
    }
}

#[tokio::test]
async fn a_truncated_body_ends_in_an_orderly_close() {
    for bytes in [0, 1, 700_000, BYTES - 1] {
        let origin = origin_with(Fault::TruncateTo(bytes)).await;
        let reply = get(&origin.url("k")).await;
        assert_eq!(reply.header("content-length"), BYTES.to_string());
        assert_eq!(reply.broken, Some(ErrorKind::UnexpectedEof), "after {bytes} bytes");
        assert_eq!(reply.body.len() as u64, bytes);
    }
}

#[tokio::test]
async fn short_bodies_are_whole_by_the_rules_of_http() {
    for (fault, length) in [
        (Fault::ShortBody(1000), "1000"),
        (Fault::ChunkedTo(1000), ""),
        (Fault::CloseDelimitedTo(1000), ""),
    ] {
        let origin = origin_with(fault.clone()).await;
        let reply = get(&origin.url("k")).await;
        assert_eq!(reply.header("content-length"), length, "{fault:?}");
        assert_eq!((reply.broken, reply.body.len()), (None, 1000), "{fault:?}");
        assert!(content().matches(0, &reply.body));
    }
}

#[tokio::test]
async fn an_overlong_body_brings_what_it_announces() {
    let origin = origin_with(Fault::Overlong(500_000)).await;
    let reply = get_range(&origin.url("k"), "bytes=10-19").await;
    assert_eq!((reply.status, reply.header("content-length")), (206, "500010"));
    assert_eq!(reply.header("content-range"), format!("bytes 10-19/{BYTES}"));
    assert_eq!(reply.body.len(), 500_010);
    assert!(content().matches(10, &reply.body[..10]));
}

#[tokio::test]
async fn ranges_go_wrong_in_head_or_body() {
    let origin = origin_with(Fault::WrongRange(5)).await;
    let reply = get_range(&origin.url("k"), "bytes=10-19").await;
    assert_eq!(reply.header("content-range"), format!("bytes 15-24/{BYTES}"));
    assert!(content().matches(10, &reply.body));

    let origin = origin_with(Fault::Misplaced(4096)).await;
    let reply = get_range(&origin.url("k"), "bytes=10-19").await;
    assert_eq!(reply.header("content-range"), format!("bytes 10-19/{BYTES}"));
    assert!(content().matches(4106, &reply.body));
    let last = get_range(&origin.url("k"), "bytes=2999990-").await;
    assert_eq!(last.body.len(), 10);
    assert!(!content().matches(2_999_990, &last.body));

    let origin = origin_with(Fault::FullBodyTo200).await;
    let reply = get_range(&origin.url("k"), "bytes=10-19").await;
    assert_eq!((reply.status, reply.header("content-range")), (200, ""));
    assert!(content().matches(0, &reply.body) && reply.body.len() as u64 == BYTES);
}

#[tokio::test]
async fn a_flipped_bit_is_the_only_difference() {
    for offset in [0, 262_144, BYTES - 1] {
        let origin = origin_with(Fault::FlipBit(offset)).await;
        let mut reply = get(&origin.url("k")).await;
        assert_eq!(content().first_difference(0, &reply.body), Some(offset));
        reply.body[usize::try_from(offset).unwrap()] ^= 1;
        assert!(content().matches(0, &reply.body));
    }
}

#[tokio::test]
async fn flipped_bits_are_one_per_window_and_seeded() {
    let fault = Fault::FlipBits { seed: 3, every: 65_536 };
    let origin = origin_with(fault.clone()).await;
    let first = get(&origin.url("k")).await.body;
    assert_eq!(first, get(&origin.url("k")).await.body);
    let right = content().to_bytes();
    for (window, (got, right)) in first.chunks(65_536).zip(right.chunks(65_536)).enumerate() {
        let flipped: u32 = got.iter().zip(right).map(|(a, b)| (a ^ b).count_ones()).sum();
        let whole = right.len() == 65_536;
        assert!(flipped == 1 || (!whole && flipped == 0), "{flipped} in window {window}");
    }
}

#[tokio::test]
async fn stalls_last_until_the_client_goes() {
    for fault in [Fault::StallBeforeHeaders, Fault::StallAfter(1000)] {
        let origin = origin_with(fault.clone()).await;
        let url = origin.url("k");
        let request = send("GET", &url, &[]);
        let stalled = tokio::time::timeout(Duration::from_millis(100), request).await;
        assert!(stalled.is_err(), "{fault:?}");
        while origin.connections().open > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn a_delay_comes_before_the_head() {
    let origin = origin_with(Fault::Delay(Duration::from_millis(50))).await;
    let asked = tokio::time::Instant::now();
    assert_eq!(get(&origin.url("k")).await.status, 200);
    assert!(asked.elapsed() >= Duration::from_millis(50));
}

#[tokio::test]
async fn a_dripping_body_takes_its_time_and_is_right() {
    let origin = origin_with(Fault::Drip { bytes_per_second: 20_000 }).await;
    let asked = tokio::time::Instant::now();
    let reply = get_range(&origin.url("k"), "bytes=0-3999").await;
    assert!(asked.elapsed() >= Duration::from_millis(150), "{:?}", asked.elapsed());
    assert!(content().matches(0, &reply.body) && reply.body.len() == 4000);
}

#[tokio::test]
async fn objects_change_when_the_request_comes() {
    let origin = HttpOrigin::start(HttpOptions::default()).await;
    origin.put("k", "old");
    origin.fault(FaultRule::new("k", Fault::ReplaceObject(Content::bytes("new"))).nth(2));
    origin.fault(FaultRule::new("k", Fault::RemoveObject).nth(4));
    let first = get(&origin.url("k")).await;
    let etag = first.header("etag").to_owned();
    let second = send("GET", &origin.url("k"), &[("if-match", &etag)]).await.unwrap();
    assert_eq!((first.text().as_str(), second.status), ("old", 412));
    assert_eq!(get(&origin.url("k")).await.text(), "new");
    assert_eq!(get(&origin.url("k")).await.status, 404);
}

#[tokio::test]
async fn headers_can_lie_or_go_missing() {
    let origin = origin_with(Fault::SetHeader("etag", "\"other\"".to_owned())).await;
    assert_eq!(get(&origin.url("k")).await.header("etag"), "\"other\"");
    let origin = origin_with(Fault::DropHeader("last-modified")).await;
    assert_eq!(get(&origin.url("k")).await.header("last-modified"), "");
}

#[tokio::test]
async fn a_fault_that_ends_leaves_the_rest_of_the_origin_alone() {
    let origin = HttpOrigin::start(HttpOptions::default()).await;
    origin.put("a", content());
    origin.put("b", content());
    let fault = FaultRule::new("a", Fault::ResetAfter(10)).when(When::Every(2));
    let handle = origin.fault(fault);
    let client = client();
    for round in 0..4 {
        for key in ["a", "b"] {
            let reply = send_with(&client, "GET", &origin.url(key), &[]).await.unwrap();
            assert_eq!(reply.broken.is_some(), key == "a" && round % 2 == 1, "{key} {round}");
        }
    }
    let head = send("HEAD", &origin.url("a"), &[]).await.unwrap();
    assert_eq!((head.status, handle.hits(), handle.matched()), (200, 2, 4));
    handle.remove();
    assert!(get(&origin.url("a")).await.broken.is_none());
    let heads = origin.records().into_iter().filter(|record| record.op == Op::Head).count();
    assert_eq!(heads, 1);
}
