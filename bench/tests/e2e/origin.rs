//! What origins do to a load: objects that are missing, refused, replaced or cut short.

use forebay_client::{ClientError, Load, LoadRequest, Reason};
use forebay_testkit::{
    CheckpointSpec, Content, EntityTag, Fault, FaultRule, HttpOptions, HttpOrigin, S3Options,
    S3Origin, checkpoint,
};

use crate::harness::{BUCKET, CHUNK, NodeSpec, assert_ends, digests, failure, files, s3, s3_uri};

#[tokio::test]
async fn a_checkpoint_is_loaded_as_the_origin_holds_it() {
    let origin = s3().await;
    let made = checkpoint(CheckpointSpec::new(1, 1 << 20).shards(3));
    origin.put_checkpoint(BUCKET, "llama/", &made);
    let node = NodeSpec::of(&origin).start().await;
    let cold = node.loads(&s3_uri("llama"), &files(&made)).await;
    assert_eq!((cold.bytes, cold.bytes_by_tier.origin), (made.bytes(), made.bytes()));
    let warm = node.loads(&s3_uri("llama/"), &files(&made)).await;
    assert_eq!((warm.bytes_by_tier.ram, warm.origin_bytes), (made.bytes(), 0));
}

#[tokio::test]
async fn a_missing_object_is_not_found() {
    let origin = s3().await;
    let node = NodeSpec::of(&origin).start().await;
    for uri in [s3_uri("no/such"), s3_uri("no/such/"), "s3://no-such-bucket/x".to_owned()] {
        let error = node.refused(&uri).await;
        assert_ends(&error, Reason::ObjectNotFound, 3);
        assert!(error.to_string().contains("no"), "{error}");
    }
    let error = failure(&node.client, LoadRequest::new(s3_uri("there/is")).objects(["x*"])).await;
    assert_ends(&error, Reason::ObjectNotFound, 3);
    node.settled().await;
}

#[tokio::test]
async fn an_object_that_goes_away_during_the_load_is_not_found() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(2, 8 * CHUNK));
    origin.fault(FaultRule::new("blob", Fault::RemoveObject).nth(5));
    let node = NodeSpec::of(&origin).set("connections", "1").start().await;
    let error = node.refused(&s3_uri("blob")).await;
    assert_ends(&error, Reason::ObjectNotFound, 3);
}

#[tokio::test]
async fn a_wrong_secret_is_denied() {
    let origin = s3().await;
    let wrong = [("AWS_SECRET_ACCESS_KEY".to_owned(), "wrong-secret-canary".to_owned())];
    let node = NodeSpec::of(&origin).env(wrong).start().await;
    let error = node.refused(&s3_uri("there/is/something")).await;
    assert_ends(&error, Reason::OriginDenied, 8);
    assert_eq!(error.failure().origin_status, Some(403));
    assert!(!error.to_string().contains("canary"), "{error}");
    assert!(!node.daemon.log().contains("canary"));
}

#[tokio::test]
async fn an_anonymous_daemon_reads_what_is_public_and_nothing_else() {
    let private = s3().await;
    let public = S3Origin::start(S3Options { anonymous: true, ..Default::default() }).await;
    public.put(BUCKET, "blob", Content::synthetic(3, 3 * CHUNK));
    for (origin, expected) in [(&private, Err(Reason::OriginDenied)), (&public, Ok(3 * CHUNK))] {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("forebay.toml");
        let text = format!(
            "[[origin]]\nprefix = \"s3://{BUCKET}/\"\nendpoint = \"{}\"\nallow_http = true\n\
             region = \"us-east-1\"\nanonymous = true\n",
            origin.endpoint()
        );
        std::fs::write(&config, text).unwrap();
        let node = NodeSpec::new().config(&config).start().await;
        let key = if expected.is_ok() { "blob" } else { "there/is/something" };
        let loaded = digests(&node.client, LoadRequest::new(s3_uri(key))).await;
        let loaded = loaded.map(|(_, report)| report.bytes).map_err(|error| error.reason());
        assert_eq!(loaded, expected);
        node.settled().await;
    }
}

#[tokio::test]
async fn an_object_that_is_replaced_ends_the_load_and_is_never_mixed() {
    let old = Content::synthetic(4, 16 * CHUNK);
    let new = Content::synthetic(5, 16 * CHUNK);
    for nth in [1, 9, 16] {
        let origin = s3().await;
        origin.put(BUCKET, "blob", old.clone());
        origin.fault(FaultRule::new("blob", Fault::ReplaceObject(new.clone())).nth(nth));
        let node = NodeSpec::of(&origin).set("connections", "2").start().await;
        let mut load = node.client.load(LoadRequest::new(s3_uri("blob"))).await.unwrap();
        let error = until_it_fails(&mut load, &old).await;
        assert_ends(&error, Reason::RevisionChanged, 9);
        assert_eq!(error.failure().origin_status, Some(412), "{error}");
        drop(load);
        node.settled().await;
        // What was cached of the old revision is not taken for the new one.
        node.loads(&s3_uri("blob"), &[("blob".to_owned(), new.clone())]).await;
    }
}

/// Reads on until the load fails; every byte until then has to be one of `content`.
async fn until_it_fails(load: &mut Load, content: &Content) -> ClientError {
    loop {
        let chunk = match load.next_chunk().await {
            Ok(chunk) => chunk.expect("the load is not complete"),
            Err(error) => return error,
        };
        for extent in chunk.extents() {
            assert!(content.matches(extent.offset(), extent.bytes()), "a byte of another version");
        }
    }
}

#[tokio::test]
async fn over_http_a_replaced_object_is_seen_by_tag_or_by_date() {
    let old = Content::synthetic(6, 8 * CHUNK);
    let new = Content::synthetic(7, 8 * CHUNK);
    for etag in [EntityTag::Strong, EntityTag::Weak, EntityTag::None] {
        let origin = HttpOrigin::start(HttpOptions { etag, ..Default::default() }).await;
        origin.put("a/blob", old.clone());
        let node = NodeSpec::new().start().await;
        node.loads(&origin.url("a/blob"), &[("blob".to_owned(), old.clone())]).await;
        node.client.evict(origin.url("a/blob")).await.unwrap();
        origin.fault(FaultRule::new("a/blob", Fault::ReplaceObject(new.clone())).nth(6));
        let error = node.refused(&origin.url("a/blob")).await;
        assert_ends(&error, Reason::RevisionChanged, 9);
        node.loads(&origin.url("a/blob"), &[("blob".to_owned(), new.clone())]).await;
    }
}

#[tokio::test]
async fn a_body_that_is_cut_is_fetched_again_from_where_it_broke() {
    let content = Content::synthetic(8, 8 * CHUNK);
    for fault in [Fault::TruncateTo(1000), Fault::ShortBody(1000), Fault::ResetAfter(1000)] {
        let origin = s3().await;
        origin.put(BUCKET, "blob", content.clone());
        let rule = origin.fault(FaultRule::new("blob", fault.clone()).nth(3));
        let node = NodeSpec::of(&origin).start().await;
        let report = node.loads(&s3_uri("blob"), &[("blob".to_owned(), content.clone())]).await;
        assert_eq!(rule.hits(), 1);
        assert_eq!((report.attempts, report.retries), (9, 1), "{fault:?}");
        let sent = origin.counts("blob").body_bytes;
        assert!(report.origin_bytes <= sent, "{fault:?}: {} of {sent}", report.origin_bytes);
    }
}

#[tokio::test]
async fn a_body_that_is_always_cut_is_data_loss() {
    for fault in [Fault::TruncateTo(1000), Fault::ShortBody(1000)] {
        let origin = s3().await;
        origin.put(BUCKET, "blob", Content::synthetic(9, 8 * CHUNK));
        origin.fault(FaultRule::new("blob", fault.clone()));
        let node = NodeSpec::of(&origin).start().await;
        let error = node.refused(&s3_uri("blob")).await;
        assert_ends(&error, Reason::Truncated, 6);
        // Three attempts, and up to five while there is time and most tokens are left.
        let attempt = error.failure().attempt;
        assert!(attempt.is_some_and(|attempt| (3..=5).contains(&attempt)), "{fault:?}: {error}");
        let fact = |name: &str| error.failure().facts.get(name)?.parse::<u64>().ok();
        assert!(fact("attempts").is_some_and(|attempts| attempts >= 3), "{fault:?}: {error}");
        assert!(fact("retries").is_some_and(|retries| retries >= 2), "{fault:?}: {error}");
        assert_eq!(error.failure().object.as_deref(), Some("blob"), "{error}");
    }
}
