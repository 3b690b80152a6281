//! Speeds, counters, connections, and what is left when an origin is dropped.

use std::time::Duration;

use forebay_testkit::{
    Content, Fault, FaultRule, HttpOptions, HttpOrigin, LinkOptions, Op, Site, SiteOptions,
};
use futures::future::join_all;
use tokio::time::Instant;

use super::client::{client, get, get_range, send, send_with};

async fn origin(link: LinkOptions) -> HttpOrigin {
    let origin = HttpOrigin::start(HttpOptions { link, ..HttpOptions::default() }).await;
    origin.put("k", Content::synthetic(1, 1 << 20));
    origin
}

#[tokio::test]
async fn each_connection_has_the_speed_it_is_given() {
    let speed = Some(4 << 20);
    let origin = origin(LinkOptions { bytes_per_second: speed, ..LinkOptions::default() }).await;
    let started = Instant::now();
    let url = origin.url("k");
    join_all((0..4).map(|_| get(&url))).await;
    // 1 MiB at 4 MiB/s, less the last piece, which does not wait for itself.
    assert!(started.elapsed() >= Duration::from_millis(220), "{:?}", started.elapsed());
}

#[tokio::test]
async fn all_connections_share_the_total_speed() {
    let speed = Some(16 << 20);
    let link = LinkOptions { total_bytes_per_second: speed, ..LinkOptions::default() };
    let origin = origin(link).await;
    let started = Instant::now();
    let url = origin.url("k");
    for reply in join_all((0..4).map(|_| get(&url))).await {
        assert!(Content::synthetic(1, 1 << 20).matches(0, &reply.body));
    }
    assert!(started.elapsed() >= Duration::from_millis(220), "{:?}", started.elapsed());
}

#[tokio::test]
async fn the_first_byte_is_late() {
    let first_byte = Duration::from_millis(40);
    let origin = origin(LinkOptions { first_byte, ..LinkOptions::default() }).await;
    let started = Instant::now();
    get_range(&origin.url("k"), "bytes=0-0").await;
    assert!(started.elapsed() >= first_byte);
}

#[tokio::test]
async fn requests_and_bytes_are_counted_by_key() {
    let origin = origin(LinkOptions::default()).await;
    let url = origin.url("k");
    get(&url).await;
    get_range(&url, "bytes=100-199").await;
    send("HEAD", &url, &[]).await.unwrap();
    send("GET", &origin.url("missing"), &[("if-match", "\"x\"")]).await.unwrap();
    send("POST", &url, &[]).await.unwrap();
    let counts = origin.counts("k");
    assert_eq!((counts.gets, counts.heads, counts.others, counts.lists), (2, 1, 1, 0));
    assert_eq!(counts.requests(), 4);
    assert!(counts.body_bytes >= (1 << 20) + 100 && counts.body_bytes < (1 << 20) + 200);
    assert_eq!(origin.total().gets, 3);
    let records = origin.records();
    assert_eq!((records[1].op, records[1].range.clone()), (Op::Get, Some(100..200)));
    assert_eq!((records[1].status, records[1].body_bytes), (206, 100));
    assert_eq!((records[3].status, records[3].if_match.as_deref()), (404, Some("\"x\"")));
}

#[tokio::test]
async fn connections_are_counted_and_reused() {
    let origin = origin(LinkOptions::default()).await;
    let (client, url) = (client(), origin.url("k"));
    for _ in 0..3 {
        send_with(&client, "GET", &url, &[]).await.unwrap();
    }
    assert_eq!((origin.connections().accepted, origin.connections().peak), (1, 1));
    let others: Vec<_> = (0..5).map(|_| super::client::client()).collect();
    join_all(others.iter().map(|client| send_with(client, "GET", &url, &[]))).await;
    let seen = origin.connections();
    assert_eq!((seen.accepted, seen.peak), (6, 6));
}

#[tokio::test]
async fn a_dropped_origin_leaves_no_port_thread_or_connection() {
    let origin = origin(LinkOptions { threads: 2, ..LinkOptions::default() }).await;
    let (client, url) = (client(), origin.url("k"));
    send_with(&client, "GET", &url, &[]).await.unwrap();
    drop(origin);
    let refused = send("GET", &url, &[]).await.unwrap_err();
    assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
    assert!(send_with(&client, "GET", &url, &[]).await.is_err(), "a kept connection is closed too");
}

#[tokio::test]
async fn an_object_of_five_gibibytes_is_there() {
    let origin = origin(LinkOptions::default()).await;
    let content = Content::synthetic(9, 5 << 30);
    origin.put("huge", content.clone());
    let reply = get_range(&origin.url("huge"), "bytes=5368709000-").await;
    assert_eq!(reply.header("content-range"), "bytes 5368709000-5368709119/5368709120");
    assert!(content.matches(5_368_709_000, &reply.body) && reply.body.len() == 120);
}

#[tokio::test]
async fn each_address_of_a_site_has_its_own_origin() {
    let options = SiteOptions { named: 4, served: 3, close: true, ..SiteOptions::default() };
    let mut site = Site::start(options).await;
    site.put("k", Content::synthetic(1, 1 << 20));
    let url = |site: &Site, last| format!("http://{}/k", site.address(last));
    assert_eq!(send("GET", &url(&site, 4), &[]).await.map(drop).ok(), None, "nothing is there");
    let link = LinkOptions { bytes_per_second: Some(4 << 20), ..LinkOptions::default() };
    site.serve(4, link).await;
    site.origin(2).clear_faults();
    site.origin(2).fault(FaultRule::new("k", Fault::Status { code: 500, retry_after: None }));
    for (last, status) in [(1, 200), (2, 500), (3, 200), (4, 200)] {
        let started = Instant::now();
        let reply = send("GET", &url(&site, last), &[]).await.unwrap();
        assert_eq!(reply.status, status, "address {last}");
        assert!(last != 4 || started.elapsed() >= Duration::from_millis(220));
        assert_eq!(site.origin(last).counts("k").gets, 1);
    }
    site.stop(1);
    assert_eq!(send("GET", &url(&site, 1), &[]).await.map(drop).ok(), None, "it was stopped");
    assert_eq!(site.origins().count(), 3);
}
