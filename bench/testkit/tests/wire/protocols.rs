//! What each protocol answers, as seen by a plain client.

use forebay_testkit::{
    AzureOptions, AzureOrigin, Content, EntityTag, GcsOptions, GcsOrigin, HttpOptions, HttpOrigin,
    S3Options, S3Origin,
};

use super::client::{get, get_range, send};

async fn http(options: HttpOptions) -> HttpOrigin {
    let origin = HttpOrigin::start(options).await;
    origin.put("a b/k", Content::synthetic(1, 1000));
    origin
}

#[tokio::test]
async fn plain_http_has_ranges_and_conditions() {
    let origin = http(HttpOptions::default()).await;
    let url = origin.url("a b/k");
    let whole = get(&url).await;
    assert_eq!((whole.status, whole.body.len()), (200, 1000));
    let (etag, modified) = (whole.header("etag"), whole.header("last-modified"));
    assert!(etag.starts_with('"') && modified.ends_with(" GMT"), "{etag} {modified}");

    for (range, status, served) in [
        ("bytes=0-0", 206, "bytes 0-0/1000"),
        ("bytes=990-", 206, "bytes 990-999/1000"),
        ("bytes=-10", 206, "bytes 990-999/1000"),
        ("bytes=999-5000", 206, "bytes 999-999/1000"),
        ("bytes=1000-", 416, "bytes */1000"),
        ("bytes=0-1,5-6", 200, ""),
    ] {
        let reply = get_range(&url, range).await;
        assert_eq!((reply.status, reply.header("content-range")), (status, served), "{range}");
    }
    for (name, value, status) in [
        ("if-match", etag, 200),
        ("if-match", "\"no\", *", 412),
        ("if-match", "*", 200),
        ("if-match", "\"no\"", 412),
        ("if-unmodified-since", modified, 200),
        ("if-unmodified-since", "Wed, 31 Dec 2025 23:59:59 GMT", 412),
        ("if-unmodified-since", "nonsense", 200),
    ] {
        let reply = send("GET", &url, &[(name, value)]).await.unwrap();
        assert_eq!(reply.status, status, "{name}: {value}");
    }
    let head = send("HEAD", &url, &[]).await.unwrap();
    assert_eq!((head.header("content-length"), head.header("etag")), ("1000", etag));
    assert!(head.body.is_empty());
    assert_eq!(send("PROPFIND", &url, &[]).await.unwrap().status, 405);
}

#[tokio::test]
async fn plain_http_can_be_simpler() {
    let origin = http(HttpOptions { etag: EntityTag::Weak, ..HttpOptions::default() }).await;
    let etag = get(&origin.url("a b/k")).await.header("etag").to_owned();
    assert!(etag.starts_with("W/\""), "{etag}");
    let reply = send("GET", &origin.url("a b/k"), &[("if-match", &etag)]).await.unwrap();
    assert_eq!(reply.status, 412, "weak tags never match strongly");

    let origin = http(HttpOptions { etag: EntityTag::None, ..HttpOptions::default() }).await;
    assert_eq!(get(&origin.url("a b/k")).await.header("etag"), "");

    let origin = http(HttpOptions { ranges: false, ..HttpOptions::default() }).await;
    let reply = get_range(&origin.url("a b/k"), "bytes=0-9").await;
    assert_eq!((reply.status, reply.header("accept-ranges"), reply.body.len()), (200, "", 1000));
}

#[tokio::test]
async fn a_presigned_url_needs_its_query() {
    let query = Some("sig=a%2Bb&exp=1".to_owned());
    let origin = http(HttpOptions { query, ..HttpOptions::default() }).await;
    let url = origin.url("a b/k");
    assert_eq!(get(&url).await.status, 200);
    assert_eq!(get(url.split('?').next().unwrap()).await.status, 403);
    assert_eq!(get(&url.replace("exp=1", "exp=2")).await.status, 403);
}

#[tokio::test]
async fn s3_refuses_the_unsigned_and_words_its_errors() {
    let origin = S3Origin::start(S3Options::default()).await;
    origin.put("bucket", "k", "content");
    let url = format!("{}/bucket/k", origin.endpoint());
    let reply = get(&url).await;
    assert_eq!(reply.status, 403);
    assert!(reply.text().contains("<Code>AccessDenied</Code>"), "{}", reply.text());

    let origin = S3Origin::start(S3Options { anonymous: true, ..S3Options::default() }).await;
    origin.put("bucket", "k", "content");
    let reply = get(&format!("{}/bucket/k", origin.endpoint())).await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "content"));
    for (path, status, code) in [
        ("bucket/none", 404, "NoSuchKey"),
        ("other-bucket/k", 404, "NoSuchBucket"),
        ("other-bucket?list-type=2", 404, "NoSuchBucket"),
        ("bucket?list-type=2&delimiter=/", 501, "NotImplemented"),
    ] {
        let reply = get(&format!("{}/{path}", origin.endpoint())).await;
        assert_eq!(reply.status, status, "{path}");
        assert!(reply.text().contains(&format!("<Code>{code}</Code>")), "{}", reply.text());
    }
    let reply = get_range(&format!("{}/bucket/k", origin.endpoint()), "bytes=7-").await;
    assert_eq!((reply.status, reply.header("content-range")), (416, "bytes */7"));
}

#[tokio::test]
async fn s3_lists_in_pages() {
    let options = S3Options { anonymous: true, page_keys: 2, ..S3Options::default() };
    let origin = S3Origin::start(options).await;
    for key in ["m/a", "m/b", "m/c d&<é>", "n"] {
        origin.put("bucket", key, "x");
    }
    let base = format!("{}/bucket?list-type=2&prefix=m%2F", origin.endpoint());
    let first = get(&base).await.text();
    assert!(first.contains("<IsTruncated>true</IsTruncated>"), "{first}");
    assert!(first.contains("<Key>m/a</Key>") && first.contains("<Key>m/b</Key>"), "{first}");
    let second = get(&format!("{base}&continuation-token=m%2Fb")).await.text();
    assert!(second.contains("<Key>m/c d&amp;&lt;é&gt;</Key>"), "{second}");
    assert!(second.contains("<IsTruncated>false</IsTruncated>"), "{second}");
    assert_eq!(origin.counts("m/").lists, 2);
}

#[tokio::test]
async fn gcs_and_azure_want_authorisation() {
    let gcs = GcsOrigin::start(GcsOptions::default()).await;
    gcs.put("b", "k", "content");
    let url = format!("{}/b/k", gcs.endpoint());
    assert_eq!(get(&url).await.status, 401);
    let token = [("authorization", "Bearer t")];
    let reply = send("GET", &url, &token).await.unwrap();
    assert_eq!((reply.status, reply.header("x-goog-generation")), (200, "1"));
    let stale = send("GET", &format!("{url}?generation=9"), &token).await.unwrap();
    assert_eq!(stale.status, 404);

    let azure = AzureOrigin::start(AzureOptions::default()).await;
    azure.put("c", "k", "content");
    let url = format!("{}/c/k", azure.endpoint());
    let reply = get(&url).await;
    assert_eq!((reply.status, reply.header("x-ms-error-code")), (403, "AuthenticationFailed"));
    let reply = get(&format!("{url}?sv=1&sig=abc")).await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "content"));
}
