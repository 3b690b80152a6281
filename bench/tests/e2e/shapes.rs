//! Checkpoints of every shape: ten thousand objects, none with bytes, strange keys, hostile
//! headers.

use std::fs::File;
use std::path::Path;

use forebay_client::{LoadRequest, Reason};
use forebay_testkit::{
    CheckpointSpec, Content, HttpOptions, HttpOrigin, cached_pages, checkpoint, temp_dir,
    write_checkpoint,
};

use crate::harness::{
    BUCKET, CHUNK, NodeSpec, assert_ends, digests, expected_digests, failure, files, s3, s3_uri,
};

#[tokio::test]
async fn ten_thousand_small_objects_share_chunks_and_grants() {
    let origin = s3().await;
    let small: Vec<(String, Content)> = (0..10_000_u64)
        .map(|n| (format!("{n:05}.json"), Content::synthetic(n, 40 + n % 100)))
        .collect();
    for (key, content) in &small {
        origin.put(BUCKET, &format!("many/{key}"), content.clone());
    }
    let node = NodeSpec::of(&origin).set("chunk", "1MiB").ram("16MiB").start().await;
    let report = node.loads(&s3_uri("many/"), &small).await;
    assert_eq!(report.bytes, small.iter().map(|(_, content)| content.len()).sum::<u64>());
    assert_eq!(report.attempts, 10_000);
    assert_eq!(origin.total().lists, 10, "pages of a thousand");
    let stat = node.client.stat(s3_uri("many/")).await.unwrap();
    assert_eq!(stat.manifest.objects().len(), 10_000);
    assert_eq!(stat.summary.cached.ram, report.bytes);
    let warm = node.loads(&s3_uri("many"), &small).await;
    assert_eq!((warm.attempts, warm.bytes_by_tier.ram), (0, report.bytes));
}

#[tokio::test]
async fn objects_without_bytes_are_loaded_like_others() {
    let s3 = s3().await;
    let http = HttpOrigin::start(HttpOptions::default()).await;
    let objects = [("a/empty", 0), ("a/full", 3 * CHUNK), ("a/z.json", 0)];
    for (key, bytes) in objects {
        s3.put(BUCKET, key, Content::synthetic(1, bytes));
        http.put(key, Content::synthetic(1, bytes));
    }
    let node = NodeSpec::of(&s3).start().await;
    let empty = [("empty".to_owned(), Content::synthetic(1, 0))];
    for uri in [s3_uri("a/empty"), http.url("a/empty")] {
        let report = node.loads(&uri, &empty).await;
        assert_eq!((report.bytes, report.attempts), (0, 0));
    }
    let all = objects.map(|(key, bytes)| (key[2..].to_owned(), Content::synthetic(1, bytes)));
    node.loads(&s3_uri("a/"), &all).await;

    let mut load = node.client.load(LoadRequest::new(s3_uri("a/"))).await.unwrap();
    let mut keys = Vec::new();
    while let Some(object) = load.next_object().await.unwrap() {
        keys.push((object.key().to_owned(), object.bytes().len() as u64));
    }
    load.finish().await.unwrap();
    keys.sort();
    assert_eq!(keys, all.map(|(key, content)| (key, content.len())));

    s3.put(BUCKET, "bad/m.safetensors", "");
    assert_ends(&node.refused(&s3_uri("bad/")).await, Reason::DecodeFailed, 6);
}

/// Keys that stores hold and that a URL, a path or a listing could read differently.
fn strange_keys() -> Vec<String> {
    let mut keys: Vec<String> = [
        "with space/and  two",
        " leading and trailing ",
        "a..b/..c/d..",
        "percent%2e%2E%2fkept",
        "%2e%2e",
        "%",
        "100%25",
        "plus+and&and=and;and,",
        "hash#and@and:and!and$'()*",
        "quotes\"<>{}|\\^`~[]",
        "modèle/重み/веса.bin",
        "e\u{301} is not é",
        "🦀",
    ]
    .map(str::to_owned)
    .to_vec();
    keys.push("k".repeat(1024));
    keys.push(format!("{}/{}", "重".repeat(170), "x".repeat(513)));
    assert_eq!(keys.last().map(String::len), Some(1024));
    keys
}

#[tokio::test]
async fn strange_keys_are_kept_byte_for_byte_over_s3() {
    let origin = s3().await;
    let mut under = Vec::new();
    let keys = strange_keys().into_iter().chain(["what?x=1".to_owned()]);
    let node = NodeSpec::of(&origin).start().await;
    for (n, key) in (10..).zip(keys) {
        let content = Content::synthetic(n, 100 + n);
        origin.put(BUCKET, &key, content.clone());
        let name = key.rsplit('/').next().unwrap().to_owned();
        node.loads(&s3_uri(&key), &[(name, content.clone())]).await;
        if key.len() < 1000 {
            origin.put(BUCKET, &format!("un der/{key}"), content.clone());
            under.push((key, content));
        }
    }
    node.loads(&s3_uri("un der/"), &under).await;
    node.loads(&s3_uri("un der"), &under).await;
}

#[tokio::test]
async fn strange_keys_are_decoded_once_over_http() {
    let origin = HttpOrigin::start(HttpOptions::default()).await;
    let node = NodeSpec::new().start().await;
    for (n, key) in (10..).zip(strange_keys().into_iter().chain(["what?x=1".to_owned()])) {
        let content = Content::synthetic(n, 100 + n);
        origin.put(&key, content.clone());
        let name = key.rsplit('/').next().unwrap().to_owned();
        node.loads(&origin.url(&key), &[(name, content)]).await;
    }
}

#[tokio::test]
async fn keys_that_could_be_read_differently_are_refused() {
    let s3 = s3().await;
    let http = HttpOrigin::start(HttpOptions::default()).await;
    let node = NodeSpec::of(&s3).start().await;
    let base = http.endpoint();
    let uris = [
        s3_uri("a/../there/is/something"),
        s3_uri(".."),
        s3_uri("./x"),
        s3_uri("a//b"),
        s3_uri("a\nb"),
        s3_uri(&"k".repeat(1025)),
        format!("{base}/a/%2e%2e/b"),
        format!("{base}/a/../b"),
        format!("{base}/a%2fb"),
        format!("{base}/a%zz"),
        format!("{base}/%ff"),
        format!("{base}/a#b"),
        "s3://".to_owned(),
        "s3:///x".to_owned(),
        "ftp://host/x".to_owned(),
        "x".to_owned(),
        String::new(),
        "file://host/x".to_owned(),
        "https://user:canary@host/x".to_owned(),
    ];
    for uri in uris {
        let error = node.refused(&uri).await;
        assert_ends(&error, Reason::BadUri, 2);
        assert!(!error.to_string().contains("canary"), "{error}");
    }
    assert_eq!((s3.total().requests(), http.total().requests()), (0, 0));
}

#[tokio::test]
async fn a_listing_with_a_key_that_no_path_can_have_is_refused_whole() {
    let origin = s3().await;
    let node = NodeSpec::of(&origin).start().await;
    for (n, bad) in ["a/../x", "a//x", "a/./x", "a/\u{1b}[31mx"].iter().enumerate() {
        origin.put(BUCKET, &format!("p{n}/good"), "x");
        origin.put(BUCKET, &format!("p{n}/{bad}"), "x");
        let error = node.refused(&s3_uri(&format!("p{n}/"))).await;
        assert_ends(&error, Reason::OriginRejected, 2);
        assert!(!error.to_string().contains(char::is_control), "{:?}", error.to_string());
    }
    // What consoles make for a folder is no object.
    origin.put(BUCKET, "folder/", "");
    origin.put(BUCKET, "folder/in/", "");
    origin.put(BUCKET, "folder/in/blob", "x");
    node.loads(&s3_uri("folder/"), &[("in/blob".to_owned(), Content::bytes("x"))]).await;
}

/// A safetensors file with this header and these bytes after it.
fn safetensors(header: &str, data: u64) -> Content {
    let length = (header.len() as u64).to_le_bytes().to_vec();
    Content::concat(vec![
        Content::bytes(length),
        Content::bytes(header.to_owned()),
        Content::synthetic(1, data),
    ])
}

#[tokio::test]
async fn hostile_headers_are_data_loss() {
    let tensor = |begin: u64, end: u64| {
        let length = end.saturating_sub(begin);
        format!("{{\"dtype\":\"U8\",\"shape\":[{length}],\"data_offsets\":[{begin},{end}]}}")
    };
    let pair = |a: String, b: String| safetensors(&format!("{{\"a\":{a},\"b\":{b}}}"), 1000);
    let claims = |length: u64| {
        let rest = Content::synthetic(1, 1000);
        Content::concat(vec![Content::bytes(length.to_le_bytes().to_vec()), rest])
    };
    let hostile = [
        ("2^63 bytes of header", claims(1 << 63)),
        ("2^64-1 bytes of header", claims(u64::MAX)),
        ("one byte of header too many", claims(1001)),
        ("100 MB of header", claims(100_000_001)),
        ("no header", claims(0)),
        ("four bytes", Content::bytes("\u{1}\u{0}\u{0}\u{0}")),
        ("overlapping tensors", pair(tensor(0, 600), tensor(599, 1000))),
        ("the same tensor twice", pair(tensor(0, 500), tensor(0, 500))),
        ("a tensor beyond the end", pair(tensor(0, 500), tensor(500, 1001))),
        ("a tensor that ends before it begins", pair(tensor(0, 500), tensor(1000, 500))),
        ("2^63 as an offset", pair(tensor(0, 500), tensor(500, 1 << 63))),
        ("no JSON", safetensors("{\"a\":", 10)),
        ("no object", safetensors("[1, 2]", 10)),
        ("a deep nest", safetensors(&"[".repeat(50_000), 10)),
        (
            "a shape whose product overflows",
            safetensors(
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,4],\
                 \"data_offsets\":[0,0]}}",
                0,
            ),
        ),
        (
            "a shape that is not its bytes",
            safetensors("{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8),
        ),
    ];
    let origin = s3().await;
    let node = NodeSpec::of(&origin).start().await;
    for (what, content) in hostile {
        origin.put(BUCKET, "hostile/model.safetensors", content);
        let error = node.refused(&s3_uri("hostile/")).await;
        assert_eq!(error.reason(), Reason::DecodeFailed, "{what}: {error}");
        assert_eq!(error.failure().object.as_deref(), Some("model.safetensors"), "{what}");
        assert_eq!(error.failure().stage.as_deref(), Some("resolve"), "{what}");
    }
    let limit = node.daemon.peak_resident_bytes().unwrap();
    assert!(limit < 150 << 20, "{limit} bytes resident after hostile headers");
}

#[tokio::test]
async fn an_index_leads_to_its_shards_and_nowhere_else() {
    let origin = s3().await;
    let made = checkpoint(CheckpointSpec::new(2, 400 << 10).shards(3));
    origin.put_checkpoint(BUCKET, "m/", &made);
    let node = NodeSpec::of(&origin).start().await;
    let mut expected = files(&made);
    expected.retain(|(key, _)| key.contains(".safetensors"));
    node.loads(&s3_uri("m/model.safetensors.index.json"), &expected).await;

    origin.put(BUCKET, "secret.safetensors", Content::synthetic(1, 100));
    for shard in ["../secret.safetensors", "/secret.safetensors", "", "a/../../secret"] {
        let index = format!("{{\"weight_map\":{{\"t\":\"{shard}\"}}}}");
        origin.put(BUCKET, "h/model.safetensors.index.json", index);
        let error = node.refused(&s3_uri("h/model.safetensors.index.json")).await;
        assert_ends(&error, Reason::DecodeFailed, 6);
    }
    assert_eq!(origin.counts("secret.safetensors").requests(), 0);
    let index = "{\"weight_map\":{\"t\":\"gone.safetensors\"}}";
    origin.put(BUCKET, "h/model.safetensors.index.json", index);
    let error = node.refused(&s3_uri("h/model.safetensors.index.json")).await;
    assert_ends(&error, Reason::ObjectNotFound, 3);
}

#[tokio::test]
async fn files_are_an_origin_too() {
    let dir = temp_dir();
    let made = checkpoint(CheckpointSpec::new(3, 300 << 10).shards(2));
    write_checkpoint(&dir.path().join("my model"), &made).unwrap();
    let node = NodeSpec::new().start().await;
    let folder = dir.path().to_str().unwrap();
    let uri = format!("file://{folder}/my%20model/");
    node.loads(&uri, &files(&made)).await;
    let error = node.refused(&format!("file://{folder}/nothing")).await;
    assert_ends(&error, Reason::ObjectNotFound, 3);
    let (index, _) =
        digests(&node.client, LoadRequest::new(format!("{uri}config.json"))).await.unwrap();
    let config = made.file("config.json").unwrap().clone();
    assert_eq!(index, expected_digests(&[("config.json".to_owned(), config)]));
}

/// A file of 1 MiB of which nothing is in the page cache.
fn cold_file(path: &Path, content: &Content) -> File {
    std::fs::write(path, content.to_bytes()).unwrap();
    let file = File::open(path).unwrap();
    rustix::fs::fdatasync(&file).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    file
}

#[tokio::test]
async fn files_that_are_cold_are_read_past_the_page_cache() {
    let dir = temp_dir();
    let content = Content::synthetic(9, 1 << 20);
    let path = dir.path().join("blob");
    let file = cold_file(&path, &content);
    let direct = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECT;
    if cached_pages(&file) != Some(0)
        || rustix::fs::open(&path, direct, rustix::fs::Mode::empty()).is_err()
    {
        return println!("skipped: no O_DIRECT here, or no page cache that is empty and tells so");
    }
    let node = NodeSpec::new().start().await;
    let uri = format!("file://{}", path.display());
    node.loads(&uri, &[("blob".to_owned(), content)]).await;
    assert_eq!(cached_pages(&file), Some(0), "it came through the page cache");
}

#[tokio::test]
async fn a_tensor_filter_brings_the_tensors_it_names() {
    let origin = s3().await;
    let made = checkpoint(CheckpointSpec::new(4, 3 << 20).shards(2));
    origin.put_checkpoint(BUCKET, "m/", &made);
    let node = NodeSpec::of(&origin).start().await;
    let request = || LoadRequest::new(s3_uri("m/"));
    let mut load =
        node.client.load(request().tensors(["model.layers.0.self_attn.*"])).await.unwrap();
    let mut names = Vec::new();
    while let Some(tensor) = load.next_tensor().await.unwrap() {
        assert_eq!(tensor.bytes(), made.tensor_bytes(tensor.name()).unwrap(), "{}", tensor.name());
        assert_eq!(tensor.dtype(), "BF16");
        assert_eq!(tensor.shape(), made.tensor(tensor.name()).unwrap().shape);
        names.push(tensor.name().to_owned());
    }
    let report = load.finish().await.unwrap();
    let is_wanted = |name: &str| name.starts_with("model.layers.0.self_attn.");
    let expected: Vec<_> =
        made.tensors().map(|t| t.name.clone()).filter(|name| is_wanted(name)).collect();
    names.sort();
    assert_eq!(names, expected);
    assert!(!names.is_empty() && report.bytes < made.bytes() / 2, "{}", report.bytes);

    let error = failure(&node.client, request().tensors(["lm_head.bias"])).await;
    assert_ends(&error, Reason::UnknownTensor, 2);
    node.settled().await;
}
