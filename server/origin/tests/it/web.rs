//! Web servers: listing without a listing, signed URLs, redirects, odd names.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use forebay_origin::{ObjectKey, OriginErrorKind};

use crate::server::{Act, Asked, Server, Thing, response, status};
use crate::{log, origins, pattern, quick, request, uri, whole};

fn site(things: &[(&str, &[u8])]) -> impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static {
    let things: BTreeMap<String, Thing> = things
        .iter()
        .map(|(path, bytes)| ((*path).to_owned(), Thing::new(bytes.to_vec())))
        .collect();
    move |asked| match things.get(asked.path()) {
        Some(thing) if asked.method != "PROPFIND" => thing.serve(asked),
        Some(_) => status(405),
        None => status(if asked.method == "PROPFIND" { 405 } else { 404 }),
    }
}

async fn listed(server: &Server, limit: usize) -> Result<Vec<String>, forebay_origin::OriginError> {
    let uri = uri(&server.url("m/"));
    let store = origins(quick()).open(&uri).unwrap();
    let found = store.list(uri.key(), limit).await?;
    Ok(found.iter().map(|meta| meta.key.relative_to(uri.key()).unwrap().to_owned()).collect())
}

#[tokio::test]
async fn an_index_names_the_shards() {
    let index =
        br#"{"weight_map":{"a":"s/1.safetensors","b":"2.safetensors","c":"2.safetensors"}}"#;
    let server = Server::start(site(&[
        ("/m/model.safetensors.index.json", index),
        ("/m/s/1.safetensors", b"one"),
        ("/m/2.safetensors", b"two"),
        ("/m/config.json", b"{}"),
        ("/m/tokenizer.model", b""),
        ("/m/unknown.bin", b"never asked for"),
    ]))
    .await;
    let names = ["2.safetensors", "config.json", "model.safetensors.index.json"];
    let all = [&names[..], &["s/1.safetensors", "tokenizer.model"]].concat();
    assert_eq!(listed(&server, 5).await.unwrap(), all);
    let error = listed(&server, 4).await.unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::LimitExceeded);
}

#[tokio::test]
async fn a_single_file_will_do() {
    let server =
        Server::start(site(&[("/m/model.safetensors", b"weights"), ("/m/config.json", b"{}")]))
            .await;
    assert_eq!(listed(&server, 9).await.unwrap(), ["config.json", "model.safetensors"]);
}

#[tokio::test]
async fn nothing_to_list_says_what_was_tried() {
    let server = Server::start(site(&[("/m/config.json", b"{}")])).await;
    let error = listed(&server, 9).await.unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::NotFound);
    for tried in ["model.safetensors.index.json", "model.safetensors", "WebDAV"] {
        assert!(error.to_string().contains(tried), "{error}");
    }
}

#[tokio::test]
async fn hostile_indexes_are_refused() {
    use OriginErrorKind as K;
    let table: [(&[u8], K, &str); 5] = [
        (b"{", K::Malformed, "EOF"),
        (b"{}", K::Malformed, "weight_map"),
        (br#"{"weight_map":{"a":"../x"}}"#, K::Malformed, "m/../x"),
        (br#"{"weight_map":{"a":"/etc/passwd"}}"#, K::Malformed, "m//etc/passwd"),
        (br#"{"weight_map":{"a":"gone"}}"#, K::NotFound, "m/gone"),
    ];
    for (index, kind, text) in table {
        let server = Server::start(site(&[("/m/model.safetensors.index.json", index)])).await;
        let error = listed(&server, 9).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[tokio::test]
async fn a_webdav_server_is_asked_last() {
    let entry = |href: &str, size: usize, kind: &str| {
        format!(
            "<D:response><D:href>{href}</D:href><D:propstat><D:prop><D:getlastmodified>Tue, 01 Jan \
             2030 00:00:00 GMT</D:getlastmodified><D:getcontentlength>{size}</D:getcontentlength>\
             <D:resourcetype>{kind}</D:resourcetype></D:prop><D:status>HTTP/1.1 200 OK</D:status>\
             </D:propstat></D:response>"
        )
    };
    let body = format!(
        "<?xml version=\"1.0\"?><D:multistatus xmlns:D=\"DAV:\">{}{}{}</D:multistatus>",
        entry("/m/", 0, "<D:collection/>"),
        entry("/m/b%20c", 3, ""),
        entry("/m/a/x", 0, ""),
    );
    let server = Server::start(move |asked| match asked.method.as_str() {
        "PROPFIND" => vec![Act::Send(response(207, &[], body.as_bytes()))],
        _ => status(404),
    })
    .await;
    assert_eq!(listed(&server, 9).await.unwrap(), ["a/x", "b c"]);
    assert_eq!(listed(&server, 1).await.unwrap_err().kind, OriginErrorKind::LimitExceeded);

    let server = Server::start(|asked| match asked.method.as_str() {
        "PROPFIND" => status(503),
        _ => status(404),
    })
    .await;
    let error = listed(&server, 9).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (OriginErrorKind::Throttled, 3));
}

#[tokio::test]
async fn odd_names_arrive_as_they_are() {
    let long = "k".repeat(1000) + "/" + &"ü".repeat(11) + "k";
    assert_eq!(long.len(), 1024);
    let table = [
        ("a%20b", "/a%20b"),
        ("%252e", "/%252e"),
        ("%C3%BC/x", "/%C3%BC/x"),
        ("a+b", "/a+b"),
        ("%23%3F", "/%23%3F"),
    ];
    let long_path = format!("{}/{}k", "k".repeat(1000), "%C3%BC".repeat(11));
    let all = table.into_iter().chain([(long_path.as_str(), "")]);
    for (path, target) in all {
        let thing = Thing::new(pattern(10));
        let server = Server::start(move |asked| thing.serve(asked)).await;
        let uri = uri(&server.url(path));
        let store = origins(quick()).open(&uri).unwrap();
        let meta = store.head(uri.key()).await.unwrap();
        assert_eq!(whole(&*store, &meta).await, pattern(10));
        let want = if target.is_empty() { format!("/{long_path}") } else { target.to_owned() };
        assert!(server.asked().iter().all(|asked| asked.target == want), "{:?}", server.asked());
    }
}

#[tokio::test]
async fn an_empty_object_is_an_object() {
    let server = Server::start(site(&[("/e", b"")])).await;
    for text in ["e", "e?signed"] {
        let uri = uri(&server.url(text));
        let store = origins(quick()).open(&uri).unwrap();
        let meta = store.head(uri.key()).await.unwrap();
        assert_eq!(meta.bytes, 0, "{text}");
        let record = store.read(&request(&meta, 0..0), &mut []).await.unwrap();
        assert_eq!(record.attempts, 0);
    }
}

#[tokio::test]
async fn a_server_without_head_is_asked_by_get() {
    for code in [405, 501] {
        let thing = Thing::new(pattern(10));
        let server = Server::start(move |asked| match asked.method.as_str() {
            "HEAD" => status(code),
            _ => thing.serve(asked),
        })
        .await;
        let uri = uri(&server.url("o"));
        let meta = origins(quick()).open(&uri).unwrap().head(uri.key()).await.unwrap();
        assert_eq!((meta.bytes, meta.pin.etag.as_deref()), (10, Some("\"v1\"")));
    }
}

#[tokio::test]
async fn redirects_are_followed_but_not_for_ever() {
    let thing = Thing::new(pattern(10));
    let target = Server::start(move |asked| match asked.target.as_str() {
        "/cdn/o?sig=canary" => thing.serve(asked),
        _ => status(403),
    })
    .await;
    let to = target.url("cdn/o?sig=canary");
    let server = Server::start(move |asked| match asked.path() {
        "/loop" => vec![Act::Send(response(302, &[("location", "/loop?canary")], b""))],
        "/o" => vec![Act::Send(response(302, &[("location", "/hop")], b""))],
        _ => vec![Act::Send(response(307, &[("location", &to)], b""))],
    })
    .await;
    let hop = uri(&server.url("o"));
    let store = origins(quick()).open(&hop).unwrap();
    let meta = store.head(hop.key()).await.unwrap();
    assert_eq!(whole(&*store, &meta).await, pattern(10));
    let asked = target.asked();
    assert_eq!(asked[1].header("if-match"), Some("\"v1\""));
    assert_eq!(asked[1].header("host"), Some(target.address.to_string().as_str()));

    let error = store.head(&ObjectKey::parse("loop").unwrap()).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (OriginErrorKind::Rejected, 1));
    assert!(!format!("{error} {error:?}").contains("canary"));
}

#[tokio::test]
async fn a_signed_url_is_asked_for_as_signed_and_shown_nowhere() {
    let log = log();
    let thing = Thing::new(pattern(100));
    let broken = Arc::new(Mutex::new(0_u16));
    let script_broken = Arc::clone(&broken);
    let server = Server::start(move |asked| match *script_broken.lock().unwrap() {
        _ if asked.method == "HEAD" => status(403),
        _ if !asked.target.ends_with("?X-Sig=canary%2B&x=1") => status(403),
        0 => thing.serve(asked),
        1 => vec![thing.cut(asked, 3), Act::Reset],
        code => status(code),
    })
    .await;
    let uri = uri(&server.url("dir/a%20b%2Bc?X-Sig=canary%2B&x=1"));
    let origins = origins(quick());
    let store = origins.open(&uri).unwrap();
    let meta = store.head(uri.key()).await.unwrap();
    assert_eq!(whole(&*store, &meta).await, pattern(100));
    assert!(server.asked().iter().all(|a| a.target == "/dir/a%20b%2Bc?X-Sig=canary%2B&x=1"));

    let mut shown = format!("{uri} {uri:?} {store:?} {origins:?} {:?}", origins.stats());
    for code in [1, 400, 403, 404, 429, 500] {
        *broken.lock().unwrap() = code;
        let error = store.read(&request(&meta, 0..100), &mut [0; 100]).await.unwrap_err();
        shown.push_str(&format!("{error} {error:?} {:?}", std::error::Error::source(&error)));
    }
    let sibling = uri.key().parent().join("sibling").unwrap();
    store.head(&sibling).await.unwrap_err();
    assert_eq!(server.asked().last().unwrap().target, "/dir/sibling?X-Sig=canary%2B&x=1");
    shown.push_str(&log.text());
    assert!(shown.contains("attempt failed"), "nothing was logged");
    assert!(!shown.contains("canary"), "{}", shown.lines().find(|l| l.contains("canary")).unwrap());
}
