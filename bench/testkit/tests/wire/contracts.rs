//! The contract suites over Forebay's own implementations: both sides are tested at once.

use std::path::Path;
use std::sync::Arc;

use forebay_origin::{
    Checksums, ObjectKey, OriginErrorKind, OriginSettings, OriginStore, OriginUri, Origins,
    ReadRequest,
};
use forebay_testkit::contract::{OriginSubject, SinkSubject, origin_sink, origin_store};
use forebay_testkit::{
    AzureOptions, AzureOrigin, Content, EntityTag, FakeDns, GcsOptions, GcsOrigin, HttpOptions,
    HttpOrigin, Origin, S3Options, S3Origin, temp_dir, write_content,
};

fn open(env: Vec<(String, String)>, uri: &str) -> Arc<dyn OriginStore> {
    let env = env.into_iter().collect();
    let settings = OriginSettings { env, ..OriginSettings::default() };
    let origins = Origins::new(settings, Arc::new(FakeDns::new())).unwrap();
    origins.open(&OriginUri::parse(uri).unwrap()).unwrap()
}

async fn check_bucket(
    origin: &Origin,
    store: Arc<dyn OriginStore>,
    known: fn(Checksums) -> Checksums,
) {
    origin.put("bucket", "other", "makes the bucket");
    let seed = |key: &str, content: Option<Content>| match content {
        Some(content) => origin.put("bucket", key, content),
        None => assert!(origin.remove("bucket", key)),
    };
    let claim = |key: &str, checksums| assert!(origin.contents().claim("bucket", key, checksums));
    let subject = OriginSubject::new(store, &seed).under("suite/");
    origin_store(subject.claiming(&claim, known)).await;
}

#[tokio::test]
async fn s3_keeps_the_contract() {
    let origin = S3Origin::start(S3Options { page_keys: 3, ..S3Options::default() }).await;
    check_bucket(&origin, open(origin.env(), "s3://bucket/"), |all| all).await;
    assert!(origin.counts("suite/list/").lists >= 3, "pages were followed");
    let reads = origin.records().into_iter().filter(|record| record.status == 206);
    assert!(reads.into_iter().all(|record| record.if_match.is_some()), "every read is conditional");
}

#[tokio::test]
async fn gcs_keeps_the_contract() {
    let origin = GcsOrigin::start(GcsOptions { page_keys: 3, ..GcsOptions::default() }).await;
    let known = |all| Checksums { crc64_nvme: None, sha256: None, ..all };
    check_bucket(&origin, open(origin.env(), "gs://bucket/"), known).await;
}

#[tokio::test]
async fn azure_keeps_the_contract() {
    let options = AzureOptions { page_blobs: 3, ..AzureOptions::default() };
    let origin = AzureOrigin::start(options).await;
    let known = |all: Checksums| Checksums { md5: all.md5, ..Checksums::default() };
    check_bucket(&origin, open(origin.env(), "az://bucket/"), known).await;
}

#[tokio::test]
async fn http_keeps_the_contract_with_any_entity_tag() {
    for etag in [EntityTag::Strong, EntityTag::Weak, EntityTag::None] {
        let origin = HttpOrigin::start(HttpOptions { etag, ..HttpOptions::default() }).await;
        let store = open(vec![], &format!("{}/", origin.endpoint()));
        let seed = |key: &str, content: Option<Content>| match content {
            Some(content) => origin.put(key, content),
            None => assert!(origin.remove(key)),
        };
        let claim = |key: &str, checksums| assert!(origin.contents().claim("", key, checksums));
        let known = |all| Checksums { crc64_nvme: None, crc32c: None, ..all };
        let subject = OriginSubject::new(store, &seed).without_listing();
        origin_store(subject.claiming(&claim, known)).await;
    }
}

#[tokio::test]
async fn files_keep_the_contract() {
    let directory = temp_dir();
    let root = directory.path().to_str().unwrap();
    let store = open(vec![], &format!("file://{root}/"));
    let seed = |key: &str, content: Option<Content>| {
        let path = Path::new("/").join(key);
        match content {
            Some(content) => write_content(&path, &content).unwrap(),
            None => std::fs::remove_file(path).unwrap(),
        }
    };
    let prefix = format!("{}/", root.trim_start_matches('/'));
    origin_store(OriginSubject::new(store, &seed).under(prefix)).await;
}

fn opened(env: Vec<(String, String)>) -> Origins {
    let env = env.into_iter().collect();
    let settings = OriginSettings { env, ..OriginSettings::default() };
    Origins::new(settings, Arc::new(FakeDns::new())).unwrap()
}

async fn check_sink(origin: &Origin, env: Vec<(String, String)>, uri: &str) {
    origin.put("bucket", "other", "makes the bucket");
    let (origins, contents) = (opened(env), origin.contents().clone());
    origin_sink(SinkSubject {
        sink: origins.open_sink(&OriginUri::parse(uri).unwrap()).unwrap(),
        origins: &origins,
        stored: &|key| contents.content("bucket", key),
        garbage: &|| contents.unfinished(),
        prefix: "suite/".to_owned(),
    })
    .await;
}

#[tokio::test]
async fn s3_keeps_the_contract_of_sinks() {
    let origin = S3Origin::start(S3Options::default()).await;
    check_sink(&origin, origin.env(), "s3://bucket/").await;
}

#[tokio::test]
async fn gcs_keeps_the_contract_of_sinks() {
    let origin = GcsOrigin::start(GcsOptions::default()).await;
    check_sink(&origin, origin.env(), "gs://bucket/").await;
}

#[tokio::test]
async fn azure_keeps_the_contract_of_sinks() {
    let origin = AzureOrigin::start(AzureOptions::default()).await;
    origin.put("bucket", "other", "makes the bucket");
    let (origins, contents) = (opened(origin.env()), origin.contents().clone());
    origin_sink(SinkSubject {
        sink: origins.open_sink(&OriginUri::parse("az://bucket/").unwrap()).unwrap(),
        origins: &origins,
        stored: &|key| contents.content("bucket", key),
        // Blocks cannot be taken back: Azure drops them after a week.
        garbage: &|| 0,
        prefix: "suite/".to_owned(),
    })
    .await;
}

/// Files below a folder whose names are those of files that have not their names yet.
fn drafts(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.file_type().unwrap().is_dir() {
            true => drafts(&entry.path()),
            false => usize::from(entry.file_name().to_string_lossy().starts_with(".forebay-")),
        })
        .sum()
}

#[tokio::test]
async fn files_keep_the_contract_of_sinks() {
    let directory = temp_dir();
    let root = directory.path().join("made on demand");
    let uri = format!("file://{}/", root.to_str().unwrap().replace(' ', "%20"));
    let origins = opened(vec![]);
    origin_sink(SinkSubject {
        sink: origins.open_sink(&OriginUri::parse(&uri).unwrap()).unwrap(),
        origins: &origins,
        stored: &|key| std::fs::read(Path::new("/").join(key)).ok().map(Content::bytes),
        garbage: &|| drafts(&root),
        prefix: format!("{}/", root.to_str().unwrap().trim_start_matches('/')),
    })
    .await;
}

#[tokio::test]
async fn s3_tells_a_wrong_key_from_a_right_one() {
    let origin = S3Origin::start(S3Options::default()).await;
    origin.put("bucket", "k", "content");
    let key = ObjectKey::parse("k").unwrap();
    let mut env = origin.env();
    for (name, value) in &mut env {
        if name == "AWS_SECRET_ACCESS_KEY" {
            value.push('x');
        }
    }
    let refused = open(env, "s3://bucket/").head(&key).await.unwrap_err();
    assert_eq!(refused.kind, OriginErrorKind::Denied);
    let store = open(origin.env(), "s3://bucket/");
    let meta = store.head(&key).await.unwrap();
    let request = ReadRequest { key, pin: meta.pin, object_bytes: 7, range: 0..7 };
    let mut into = [0; 7];
    store.read(&request, &mut into).await.unwrap();
    assert_eq!(&into, b"content");
}
