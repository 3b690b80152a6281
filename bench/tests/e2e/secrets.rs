//! Signatures of presigned URLs and credentials stay out of whatever the daemon says.

use std::time::Duration;

use forebay_client::{CallOptions, LoadRequest, PrefetchRequest, Reason, TraceParent};
use forebay_testkit::{Content, Fault, FaultRule, HttpOptions, HttpOrigin};
use serde_json::Value;

use crate::harness::{CHUNK, Node, NodeSpec, digests, failure, s3, s3_uri};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const QUERY: &str = "X-Amz-Signature=canary-sig&X-Amz-Credential=canary%2Fcred";

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

#[tokio::test]
async fn a_presigned_query_is_shown_by_nothing() {
    let options = HttpOptions { query: Some(QUERY.to_owned()), ..Default::default() };
    let origin = HttpOrigin::start(options).await;
    let content = Content::synthetic(1, 4 * CHUNK);
    for key in ["blob", "cut", "slow", "replaced", "broken", "busy"] {
        origin.put(key, content.clone());
    }
    origin.fault(FaultRule::new("cut", Fault::TruncateTo(10)));
    origin.fault(FaultRule::new("slow", Fault::StallBeforeHeaders).on_any());
    origin.fault(FaultRule::new("replaced", Fault::ReplaceObject(Content::synthetic(2, 9))).nth(3));
    origin.fault(FaultRule::new("broken", Fault::ResetBeforeHeaders).on_any());
    origin.fault(FaultRule::new("busy", Fault::Status { code: 500, retry_after: None }).on_any());
    let node = NodeSpec::new().start().await;
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
    let options = CallOptions { deadline: Some(Duration::from_secs(2)), trace_parent };
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

    heard.push(node.get("/metrics").await.1);
    let log = node.daemon.log();
    assert_traced(&log);
    heard.push(log);
    for text in heard {
        assert!(!text.contains("canary"), "{text}");
    }
    node.settled().await;
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
