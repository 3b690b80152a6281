//! S3, Google and Azure: which requests are sent, and what becomes of their answers.

use forebay_origin::{ObjectKey, OriginBlock, OriginError, OriginErrorKind, OriginSettings};

use crate::server::{Act, Asked, Server, Thing, response, status};
use crate::{origins, pattern, quick, uri, whole};

fn env(settings: &mut OriginSettings, vars: &[(&str, &str)]) {
    settings.env = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
}

fn s3_settings(server: &Server) -> OriginSettings {
    let mut settings = quick();
    let endpoint = format!("http://{}", server.address);
    let vars = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ACCESS_KEY_ID", "AKID"),
        ("AWS_SECRET_ACCESS_KEY", "canary"),
        ("AWS_REGION", "eu-test-1"),
        ("AWS_SESSION_TOKEN", ""),
    ];
    env(&mut settings, &vars);
    settings
}

fn dated() -> Thing {
    let modified = Some("Tue, 01 Jan 2030 00:00:00 GMT".to_owned());
    Thing { modified, ..Thing::new(pattern(10)) }
}

/// A page of S3's and Google's XML listing.
fn page(entries: &[(&str, usize)], next: Option<&str>) -> Vec<u8> {
    let entries: String = entries
        .iter()
        .map(|(key, size)| {
            format!(
                "<Contents><Key>{key}</Key><LastModified>2030-01-01T00:00:00.123Z</LastModified>\
                 <ETag>&quot;v1&quot;</ETag><Size>{size}</Size></Contents>"
            )
        })
        .collect();
    let next = next.map(|token| format!("<NextContinuationToken>{token}</NextContinuationToken>"));
    let next = next.unwrap_or_default();
    let body =
        format!("<?xml version=\"1.0\"?><ListBucketResult>{entries}{next}</ListBucketResult>");
    response(200, &[], body.as_bytes())
}

fn query(asked: &Asked, name: &str) -> Option<String> {
    let url = url::Url::parse(&format!("http://h{}", asked.target)).unwrap();
    url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

async fn list(
    settings: OriginSettings,
    text: &str,
    limit: usize,
) -> Result<Vec<(String, u64)>, OriginError> {
    let uri = uri(text);
    let store = origins(settings).open(&uri).unwrap();
    let found = store.list(uri.key(), limit).await?;
    Ok(found.into_iter().map(|meta| (meta.key.to_string(), meta.bytes)).collect())
}

#[tokio::test]
async fn s3_reads_are_signed_and_keys_are_raw() {
    let thing = Thing::new(pattern(10));
    let server = Server::start(move |asked| thing.serve(asked)).await;
    let origins = origins(s3_settings(&server));
    let long = "k".repeat(1024);
    let table = [
        ("k", "/b/k"),
        ("a b", "/b/a%20b"),
        ("%2e", "/b/%252e"),
        ("ü?#", "/b/%C3%BC%3F%23"),
        ("a+b", "/b/a%2Bb"),
        (long.as_str(), ""),
    ];
    for (key, target) in table {
        let uri = uri(&format!("s3://b/{key}"));
        let store = origins.open(&uri).unwrap();
        let meta = store.head(uri.key()).await.unwrap();
        assert_eq!(whole(&*store, &meta).await, pattern(10));
        let asked = server.asked().pop().unwrap();
        if !target.is_empty() {
            assert_eq!(asked.target, target);
        }
        let authorization = asked.header("authorization").unwrap();
        assert!(authorization.contains("AKID/") && authorization.contains("/eu-test-1/s3/"));
        assert_eq!(asked.header("if-match"), Some("\"v1\""));
        assert_eq!(asked.header("x-amz-security-token"), None);
    }
}

#[tokio::test]
async fn blocks_win_over_the_environment() {
    let thing = Thing::new(pattern(10));
    let server = Server::start(move |asked| thing.serve(asked)).await;
    let mut settings = quick();
    let vars = [
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1"),
        ("AWS_ACCESS_KEY_ID", "AKID"),
        ("AWS_SECRET_ACCESS_KEY", "canary"),
        ("AWS_DEFAULT_REGION", "eu-test-1"),
    ];
    env(&mut settings, &vars);
    let here = OriginBlock {
        prefix: "s3://b".into(),
        endpoint: Some(format!("http://{}/", server.address)),
        region: Some("us-test-9".into()),
        ..OriginBlock::default()
    };
    let public = OriginBlock { prefix: "s3://b/public".into(), anonymous: true, ..here.clone() };
    settings.origins = vec![here, public];
    let origins = origins(settings);
    for (text, signed) in [("s3://b/k", true), ("s3://b/public/k", false)] {
        let uri = uri(text);
        origins.open(&uri).unwrap().head(uri.key()).await.unwrap();
        let asked = server.asked().pop().unwrap();
        let authorization = asked.header("authorization");
        assert_eq!(authorization.is_some_and(|text| text.contains("us-test-9")), signed);
        assert_eq!(authorization.is_some(), signed);
    }
}

const ASKS: &str = "x-amz-checksum-mode";
const CRC: [(&str, &str); 2] =
    [("etag", "\"25f9e794323b453885f5181f1b624d0b\""), ("x-amz-checksum-crc32c", "4waSgw==")];

#[tokio::test]
async fn an_object_of_which_it_is_forbidden_to_ask_for_checksums_is_the_only_one_without() {
    let server = Server::start(|asked| {
        if asked.header(ASKS).is_none() {
            return vec![Act::Send(response(200, &CRC[..1], b""))];
        }
        if asked.path() == "/b/kms" {
            status(403)
        } else {
            vec![Act::Send(response(200, &CRC, b""))]
        }
    })
    .await;
    let store = origins(s3_settings(&server)).open(&uri("s3://b/")).unwrap();
    // First before the store has ever told of a checksum, then when it has.
    for (key, told) in [("kms", false), ("a", true), ("kms", false), ("a", true)] {
        let before = server.asked().len();
        let meta = store.head(uri(&format!("s3://b/{key}")).key()).await.unwrap();
        assert_eq!(meta.checksums.crc32c.is_some(), told, "{key}");
        let asked = server.asked().split_off(before);
        assert!(asked[0].header(ASKS).is_some(), "{key} is asked of each time");
        assert_eq!(asked.last().unwrap().header(ASKS).is_some(), told, "{key}");
    }
}

#[tokio::test]
async fn a_store_that_does_not_know_the_question_is_asked_once() {
    for code in [400, 405, 501] {
        let server = Server::start(move |asked| match asked.header(ASKS) {
            Some(_) => status(code),
            None => vec![Act::Send(response(200, &CRC[..1], b""))],
        })
        .await;
        let store = origins(s3_settings(&server)).open(&uri("s3://b/")).unwrap();
        for key in ["s3://b/a", "s3://b/b"] {
            store.head(uri(key).key()).await.unwrap();
        }
        let asked = server.asked();
        let without = asked.iter().filter(|asked| asked.header(ASKS).is_none()).count();
        assert_eq!(without, 2, "{code}");
        assert!(asked.iter().filter(|asked| asked.path() == "/b/b").count() == 1, "{code}");
    }
}

#[tokio::test]
async fn checksums_that_are_not_wanted_are_neither_asked_for_nor_told() {
    let md5 = [
        ("etag", "\"25f9e794323b453885f5181f1b624d0b\""),
        ("content-md5", "AAAAAAAAAAAAAAAAAAAAAA=="),
    ];
    let server = Server::start(move |_| {
        let dated = ("last-modified", "Tue, 01 Jan 2030 00:00:00 GMT");
        vec![Act::Send(response(200, &[md5[0], md5[1], CRC[1], dated], b""))]
    })
    .await;
    let web = server.url("o");
    for (text, checksums) in [
        ("s3://b/o", true),
        ("s3://b/o", false),
        ("az://c/o", true),
        ("az://c/o", false),
        (web.as_str(), true),
        (web.as_str(), false),
    ] {
        let mut settings = s3_settings(&server);
        let endpoint = format!("http://{}", server.address);
        let prefix = text.strip_suffix("/o").unwrap().to_owned();
        let account = Some("account".to_owned());
        let anonymous = text.starts_with("az");
        let endpoint = (!text.starts_with("http")).then_some(endpoint);
        let block = OriginBlock { prefix, endpoint, account, anonymous, ..OriginBlock::default() };
        assert!(block.checksums, "by default");
        settings.origins = vec![OriginBlock { checksums, ..block }];
        let uri = uri(text);
        let meta = origins(settings).open(&uri).unwrap().head(uri.key()).await.unwrap();
        assert_eq!(meta.checksums.is_empty(), !checksums, "{text}");
        assert_eq!(meta.pin.etag.as_deref(), Some(md5[0].1), "{text}");
        let asks = server.asked().pop().unwrap().header(ASKS).is_some();
        assert_eq!(asks, checksums && text.starts_with("s3"), "{text}");
    }
}

#[tokio::test]
async fn anonymous_by_variable_is_unsigned() {
    let thing = Thing::new(pattern(10));
    let server = Server::start(move |asked| thing.serve(asked)).await;
    let mut settings = s3_settings(&server);
    settings.env.insert("AWS_SKIP_SIGNATURE".into(), "true".into());
    let uri = uri("s3://b/k");
    origins(settings).open(&uri).unwrap().head(uri.key()).await.unwrap();
    assert_eq!(server.asked()[0].header("authorization"), None);
}

#[tokio::test]
async fn s3_lists_page_by_page_without_folder_markers() {
    let empty = Thing::new(Vec::new());
    let server = Server::start(move |asked| {
        match (asked.method.as_str(), asked.path()) {
            ("HEAD", "/b/p/empty") => return empty.serve(asked),
            ("HEAD", _) => return status(404),
            _ => {}
        }
        let token = query(asked, "continuation-token");
        let page = match token.as_deref() {
            None => page(&[("p/", 0), ("p/z a", 5), ("p/empty", 0)], Some("t+/=")),
            Some("t+/=") => page(&[("p/d/", 0), ("p/d/x&amp;y", 7)], None),
            Some(other) => panic!("token {other}"),
        };
        vec![Act::Send(page)]
    })
    .await;
    let found = list(s3_settings(&server), "s3://b/p/", 3).await.unwrap();
    let wanted = [("p/d/x&y", 7), ("p/empty", 0), ("p/z a", 5)];
    assert_eq!(found, wanted.map(|(key, bytes)| (key.to_owned(), bytes)));
    let first = &server.asked()[0];
    assert_eq!(query(first, "prefix").as_deref(), Some("p/"));
    assert_eq!(query(first, "max-keys").as_deref(), Some("4"));
    let error = list(s3_settings(&server), "s3://b/p/", 2).await.unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::LimitExceeded);
    assert_eq!(list(s3_settings(&server), "s3://b", 3).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_listing_with_an_ambiguous_key_is_an_error_that_names_it() {
    for key in ["p/a//b", "p/../x", "p/./x"] {
        let body = page(&[("p/good", 1), (key, 1)], None);
        let server = Server::start(move |_| vec![Act::Send(body.clone())]).await;
        let error = list(s3_settings(&server), "s3://b/p/", 9).await.unwrap_err();
        assert_eq!((error.kind, error.attempts), (OriginErrorKind::Unsupported, 1), "{error}");
        assert!(error.to_string().contains(key), "{error}");
    }
}

#[tokio::test]
async fn listed_keys_keep_their_spaces() {
    let keys = ["p/ lead", "p/trail ", "p/two  spaces", "p/&lt;&amp;&quot;"];
    let body = page(&keys.map(|key| (key, 1)), None);
    let server = Server::start(move |_| vec![Act::Send(body.clone())]).await;
    let found = list(s3_settings(&server), "s3://b/p/", 9).await.unwrap();
    let found: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(found, ["p/ lead", "p/<&\"", "p/trail ", "p/two  spaces"]);
}

#[tokio::test]
async fn a_throttled_page_is_asked_for_again() {
    let server = Server::start(|asked| match asked.number {
        0 => status(503),
        _ => vec![Act::Send(page(&[("p/x", 1)], None))],
    })
    .await;
    assert_eq!(list(s3_settings(&server), "s3://b/p/", 9).await.unwrap().len(), 1);
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn an_error_under_a_good_status_is_no_empty_page() {
    use OriginErrorKind as K;
    for (code, kind) in [("InternalError", K::Failed), ("SlowDown", K::Throttled)] {
        let server = Server::start(move |_| {
            let body = format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code></Error>");
            vec![Act::Send(response(200, &[], body.as_bytes()))]
        })
        .await;
        let error = list(s3_settings(&server), "s3://b/p/", 9).await.unwrap_err();
        assert_eq!((error.kind, error.attempts), (kind, 3), "{error}");
        assert!(error.to_string().contains(code), "{error}");
    }
}

#[tokio::test]
async fn an_endless_page_is_refused() {
    let server = Server::start(|_| {
        let head =
            response(200, &[("content-length", "1000000000000")], b"<?xml version=\"1.0\"?>");
        vec![Act::Send(head), Act::Flood(vec![b' '; 1 << 16])]
    })
    .await;
    let error = list(s3_settings(&server), "s3://b/p/", 9).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (OriginErrorKind::LimitExceeded, 1), "{error}");
}

#[tokio::test]
async fn refusals_are_told_with_the_codes_of_the_cloud() {
    use OriginErrorKind as K;
    let table = [
        (403, "AccessDenied", K::Denied),
        (400, "ExpiredToken", K::Unauthenticated),
        (404, "NoSuchBucket", K::NotFound),
        (301, "PermanentRedirect", K::Rejected),
    ];
    for (code, name, kind) in table {
        let server = Server::start(move |_| {
            let body = format!("<Error><Code>{name}</Code><Message>canary</Message></Error>");
            let headers = [("x-amz-bucket-region", "ap-test-2"), ("x-amz-request-id", "R1")];
            vec![Act::Send(response(code, &headers, body.as_bytes()))]
        })
        .await;
        let error = list(s3_settings(&server), "s3://b/p/", 9).await.unwrap_err();
        assert_eq!((error.kind, error.attempts), (kind, 1), "{error}");
        assert!(code == 301 || error.to_string().contains(name), "{error}");
        assert!(error.to_string().contains("ap-test-2"), "{error}");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
}

#[tokio::test]
async fn missing_credentials_are_no_mystery() {
    let imds = Server::start(|_| status(500)).await;
    let mut settings = quick();
    let metadata = format!("http://{}", imds.address);
    env(&mut settings, &[("AWS_METADATA_ENDPOINT", &metadata)]);
    let uri = uri("s3://b/k");
    let error = origins(settings).open(&uri).unwrap().head(uri.key()).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (OriginErrorKind::Unauthenticated, 1), "{error}");
    assert!(error.to_string().contains("no credentials could be had"), "{error}");
    assert!(!imds.asked().is_empty());
}

#[tokio::test]
async fn a_token_is_not_sent_in_the_clear() {
    let sts = Server::start(|_| status(500)).await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "canary").unwrap();
    let mut settings = quick();
    let endpoint = format!("http://{}", sts.address);
    let vars = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
        ("AWS_ENDPOINT_URL_STS", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
    ];
    env(&mut settings, &vars);
    let uri = uri("s3://b/k");
    let error = origins(settings).open(&uri).unwrap().head(uri.key()).await.unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::Unauthenticated, "{error}");
    assert!(sts.asked().is_empty());
    assert!(!format!("{error} {error:?}").contains("canary"));
}

#[tokio::test]
async fn google_is_read_through_its_xml_interface() {
    let thing = dated();
    let server = Server::start(move |asked| match query(asked, "list-type") {
        Some(_) => vec![Act::Send(page(&[("p/a b", 10)], None))],
        None => thing.serve(asked),
    })
    .await;
    let mut settings = quick();
    env(&mut settings, &[("STORAGE_EMULATOR_HOST", &server.address.to_string())]);
    let uri = uri("gs://b/p/");
    let store = origins(settings).open(&uri).unwrap();
    let found = store.list(uri.key(), 9).await.unwrap();
    assert_eq!(found[0].key, ObjectKey::parse("p/a b").unwrap());
    assert_eq!(whole(&*store, &found[0]).await, pattern(10));
    let asked = server.asked().pop().unwrap();
    assert_eq!((asked.target.as_str(), asked.header("authorization")), ("/b/p%2Fa%20b", None));
    assert_eq!(asked.header("if-match"), Some("\"v1\""));
}

#[tokio::test]
async fn azure_is_read_with_the_account_of_the_settings() {
    let thing = Thing { etag: Some("\"0x8D\"".into()), ..dated() };
    let server = Server::start(move |asked| match query(asked, "comp") {
        Some(_) => {
            let body = "<?xml version=\"1.0\"?><EnumerationResults><Blobs><Blob><Name>p/a b</Name>\
                <Properties><Last-Modified>Tue, 01 Jan 2030 00:00:00 GMT</Last-Modified>\
                <Content-Length>10</Content-Length><Content-Type>x</Content-Type><Etag>0x8D</Etag>\
                </Properties></Blob></Blobs></EnumerationResults>";
            vec![Act::Send(response(200, &[], body.as_bytes()))]
        }
        None => thing.serve(asked),
    })
    .await;
    let endpoint = format!("http://{}", server.address);
    let mut settings = quick();
    settings.origins = vec![OriginBlock {
        prefix: "az://".into(),
        endpoint: Some(endpoint),
        account: Some("acct".into()),
        ..OriginBlock::default()
    }];
    env(&mut settings, &[("AZURE_STORAGE_KEY", "a2V5")]);
    let uri = uri("az://cont/p/");
    let store = origins(settings).open(&uri).unwrap();
    let found = store.list(uri.key(), 9).await.unwrap();
    assert_eq!(found[0].pin.etag.as_deref(), Some("\"0x8D\""));
    assert_eq!(whole(&*store, &found[0]).await, pattern(10));
    let asked = server.asked().pop().unwrap();
    assert_eq!(asked.path(), "/cont/p/a%20b");
    assert!(asked.header("authorization").unwrap().starts_with("SharedKey acct:"));
    assert_eq!(asked.header("if-match"), Some("\"0x8D\""));
}

#[tokio::test]
async fn azure_without_an_account_says_so() {
    let error = origins(quick()).open(&uri("az://cont/p")).unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::Rejected);
    assert!(error.to_string().contains("Account must be specified"), "{error}");
}

#[tokio::test]
async fn a_prefix_that_is_none_is_refused_at_once() {
    for prefix in ["b/k", "ftp//x", "s3://a//b"] {
        let mut settings = quick();
        settings.origins = vec![OriginBlock { prefix: prefix.into(), ..OriginBlock::default() }];
        let resolve = std::sync::Arc::new(forebay_origin::SystemResolver);
        let error = forebay_origin::Origins::new(settings, resolve).unwrap_err();
        assert!(error.to_string().contains(prefix), "{error}");
    }
}
