//! Writing while the origin, the network or the disk does not play along.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_origin::{
    OriginBlock, OriginError, OriginErrorKind, OriginSettings, OriginSink, Origins, Pin, Timeouts,
};
use forebay_testkit::{
    AzureOptions, AzureOrigin, Content, Fault, FaultRule, GcsOptions, GcsOrigin, HttpOptions,
    HttpOrigin, Op, Origin, S3Options, S3Origin, temp_dir,
};

use crate::{origins, quick, uri};

const PART: u64 = 8 << 20;

struct Place {
    origins: Origins,
    sink: Arc<dyn OriginSink>,
}

fn place(settings: OriginSettings, env: Vec<(String, String)>, at: &str) -> Place {
    let origins = origins(OriginSettings { env: env.into_iter().collect(), ..settings });
    let sink = origins.open_sink(&uri(at)).unwrap();
    Place { origins, sink }
}

async fn s3() -> S3Origin {
    let origin = S3Origin::start(S3Options::default()).await;
    origin.put("bucket", "other", "makes the bucket");
    origin
}

async fn upload(sink: &dyn OriginSink, key: &str, content: &Content) -> Result<Pin, OriginError> {
    let mut upload = sink.upload(uri(&format!("s3://x/{key}")).key(), content.len()).await?;
    for start in (0..content.len()).step_by(3 << 20) {
        upload.write(content.slice(start..start + (3 << 20))).await?;
    }
    upload.finish().await
}

fn holds(origin: &Origin, key: &str, content: &Content) -> bool {
    let stored = origin.contents().content("bucket", key).map(|stored| stored.to_bytes());
    stored.is_some_and(|stored| stored.len() as u64 == content.len() && content.matches(0, &stored))
}

/// Faults that strike one part of four, and pass.
async fn survive(origin: &Origin, env: Vec<(String, String)>, at: &str) {
    let place = place(quick(), env, at);
    let content = Content::synthetic(1, 3 * PART + 5);
    for (number, fault) in [
        Fault::Status { code: 503, retry_after: None },
        Fault::Status { code: 500, retry_after: None },
        Fault::ResetUpload(3 << 20),
        Fault::ResetBeforeHeaders,
        Fault::CloseBeforeHeaders,
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("k/{number}");
        let struck = origin.fault(FaultRule::new(&*key, fault.clone()).on(Op::Put).nth(2));
        let puts = origin.counts(&key).puts;
        upload(&*place.sink, &key, &content).await.unwrap();
        assert!(holds(origin, &key, &content), "{fault:?}");
        assert_eq!((struck.hits(), origin.counts(&key).puts - puts), (1, 5), "{fault:?}");
    }
    assert_eq!(origin.contents().unfinished(), 0);
}

#[tokio::test]
async fn a_part_that_fails_is_sent_again_and_no_other() {
    let origin = s3().await;
    survive(&origin, origin.env(), "s3://bucket/").await;
    let origin = GcsOrigin::start(GcsOptions::default()).await;
    origin.put("bucket", "other", "makes the bucket");
    survive(&origin, origin.env(), "gs://bucket/").await;
    let origin = AzureOrigin::start(AzureOptions::default()).await;
    origin.put("bucket", "other", "makes the bucket");
    // A list of blocks is put as well, but is none of them.
    survive(&origin, origin.env(), "az://bucket/").await;
}

#[tokio::test]
async fn an_upload_that_is_refused_leaves_nothing() {
    let origin = s3().await;
    let place = place(quick(), origin.env(), "s3://bucket/");
    let content = Content::synthetic(2, 3 * PART);
    for (number, op, nth, kind) in [
        (0, Op::Other, 1, OriginErrorKind::Denied),
        (1, Op::Put, 1, OriginErrorKind::Denied),
        (2, Op::Put, 3, OriginErrorKind::Denied),
        (3, Op::Other, 2, OriginErrorKind::Denied),
    ] {
        let key = format!("refused/{number}");
        let status = Fault::Status { code: 403, retry_after: None };
        origin.fault(FaultRule::new(&*key, status).on(op).nth(nth));
        let error = upload(&*place.sink, &key, &content).await.unwrap_err();
        assert_eq!((error.kind, error.status), (kind, Some(403)), "{error}");
        place.origins.cleared().await;
        assert!(origin.contents().content("bucket", &key).is_none(), "{key}");
        assert_eq!(origin.contents().unfinished(), 0, "{key}");
    }
    let key = uri("s3://bucket/small");
    let status = Fault::Status { code: 403, retry_after: None };
    origin.fault(FaultRule::new("small", status).on(Op::Put));
    let error = place.sink.put(key.key(), Bytes::from_static(b"x")).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (OriginErrorKind::Denied, 1));
}

#[tokio::test]
async fn what_keeps_failing_fails_with_its_cause_and_is_cleared_away() {
    let origin = s3().await;
    let place = place(quick(), origin.env(), "s3://bucket/");
    let fault = Fault::Status { code: 503, retry_after: None };
    origin.fault(FaultRule::new("k", fault).on(Op::Put));
    let error = upload(&*place.sink, "k", &Content::synthetic(3, 2 * PART)).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (OriginErrorKind::Throttled, 3), "{error}");
    place.origins.cleared().await;
    assert_eq!(origin.contents().unfinished(), 0);
}

#[tokio::test]
async fn a_body_that_nobody_takes_is_left() {
    let origin = s3().await;
    let timeouts =
        Timeouts { body_idle: Duration::from_millis(300), ..OriginSettings::default().timeouts };
    let place = place(OriginSettings { timeouts, ..quick() }, origin.env(), "s3://bucket/");
    // More than the buffers of two sockets hold.
    let content = Content::synthetic(4, 24 << 20);
    origin.fault(FaultRule::new("once", Fault::StallUpload(1 << 20)).on(Op::Put).nth(1));
    place.sink.put(uri("s3://bucket/once").key(), content.to_bytes()).await.unwrap();
    assert!(holds(&origin, "once", &content));
    origin.fault(FaultRule::new("ever", Fault::StallUpload(1 << 20)).on(Op::Put));
    let put = place.sink.put(uri("s3://bucket/ever").key(), content.to_bytes()).await;
    let error = put.unwrap_err();
    assert_eq!((error.kind, error.attempts), (OriginErrorKind::Timeout, 3), "{error}");
    assert!(error.to_string().contains("no byte of the body was taken"), "{error}");
}

#[tokio::test]
async fn an_upload_whose_end_was_not_heard_of_is_looked_for() {
    let origin = s3().await;
    let place = place(quick(), origin.env(), "s3://bucket/");
    let content = Content::synthetic(5, 2 * PART);
    // The second of the others is the one that completes.
    let cut = origin.fault(FaultRule::new("k", Fault::ResetAfter(0)).on(Op::Other).nth(2));
    let pin = upload(&*place.sink, "k", &content).await.unwrap();
    assert!(cut.hits() == 1 && holds(&origin, "k", &content));
    assert_eq!(pin.etag, origin.contents().etag("bucket", "k"));
}

#[tokio::test]
async fn an_object_that_was_there_before_is_not_taken_for_an_upload_whose_end_was_lost() {
    let origin = s3().await;
    let place = place(quick(), origin.env(), "s3://bucket/");
    let (old, new) = (Content::synthetic(10, 2 * PART), Content::synthetic(11, 2 * PART));
    let lost = |key: &str| {
        // The request that completes does not arrive, and then the store has forgotten the upload.
        let forgotten = Fault::ErrorCode { status: 404, code: "NoSuchUpload" };
        origin.fault(FaultRule::new(key, Fault::ResetBeforeHeaders).on(Op::Other).nth(2));
        origin.fault(FaultRule::new(key, forgotten).on(Op::Other).nth(3))
    };
    for (key, there) in [("old", true), ("none", false)] {
        if there {
            origin.put("bucket", key, old.clone());
        }
        let struck = lost(key);
        let error = upload(&*place.sink, key, &new).await.unwrap_err();
        assert_eq!((error.kind, struck.hits()), (OriginErrorKind::NotFound, 1), "{key}: {error}");
        assert_eq!(holds(&origin, key, &old), there, "{key}");
    }
    // And one that did take its place is found, whatever was there.
    origin.put("bucket", "replaced", old.clone());
    let cut = origin.fault(FaultRule::new("replaced", Fault::ResetAfter(0)).on(Op::Other).nth(2));
    let pin = upload(&*place.sink, "replaced", &new).await.unwrap();
    assert!(cut.hits() == 1 && holds(&origin, "replaced", &new));
    assert_eq!(pin.etag, origin.contents().etag("bucket", "replaced"));
    // Nobody knows of one that could not be looked at before: with the question and without.
    for nth in [1, 2] {
        let denied = Fault::Status { code: 403, retry_after: None };
        origin.fault(FaultRule::new("dark", denied).on(Op::Head).nth(nth));
    }
    origin.fault(FaultRule::new("dark", Fault::ResetAfter(0)).on(Op::Other).nth(2));
    let error = upload(&*place.sink, "dark", &new).await.unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::NotFound, "{error}");
    assert!(holds(&origin, "dark", &new) && origin.counts("dark").heads == 3);
}

#[tokio::test]
async fn an_error_that_is_answered_well_is_an_error() {
    let origin = s3().await;
    let place = place(quick(), origin.env(), "s3://bucket/");
    let content = Content::synthetic(9, 2 * PART);
    for (key, code) in [("a", "InternalError"), ("b", "SomethingElse")] {
        let fault = Fault::ErrorCode { status: 200, code };
        // The second of the others is the one that completes.
        let struck = origin.fault(FaultRule::new(key, fault).on(Op::Other).nth(2));
        upload(&*place.sink, key, &content).await.unwrap();
        assert_eq!((struck.hits(), origin.counts(key).others), (1, 3), "{code}");
        assert!(holds(&origin, key, &content), "{code}");
    }
    assert_eq!(origin.contents().unfinished(), 0);
}

#[tokio::test]
async fn parts_keep_to_the_connections_there_may_be() {
    let origin = s3().await;
    let block =
        OriginBlock { prefix: "s3://".into(), max_connections: Some(2), ..OriginBlock::default() };
    let settings = OriginSettings { origins: vec![block], ..quick() };
    let place = place(settings, origin.env(), "s3://bucket/");
    let (first, second) = (Content::synthetic(6, 5 * PART), Content::synthetic(7, 5 * PART));
    let (one, two) =
        futures::join!(upload(&*place.sink, "one", &first), upload(&*place.sink, "two", &second));
    one.and(two).unwrap();
    assert!(holds(&origin, "one", &first) && holds(&origin, "two", &second));
    assert!(origin.connections().peak <= 2, "{:?}", origin.connections());
}

#[tokio::test]
async fn web_servers_are_not_written_to() {
    let origin = HttpOrigin::start(HttpOptions::default()).await;
    let origins = origins(quick());
    let error = origins.open_sink(&uri(&origin.url("models/"))).unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::Unsupported);
    assert!(error.to_string().contains("write to s3://"), "{error}");
}

#[tokio::test]
async fn a_store_that_refuses_to_be_asked_for_checksums_is_read_all_the_same() {
    let options = S3Options { refuse_checksum_mode: true, ..S3Options::default() };
    let origin = S3Origin::start(options).await;
    for key in ["a", "b"] {
        origin.put("bucket", key, "content");
    }
    let env = origin.env().into_iter().collect();
    let store = origins(OriginSettings { env, ..quick() }).open(&uri("s3://bucket/")).unwrap();
    for (key, heads) in [("a", 2), ("b", 1)] {
        let meta = store.head(uri(&format!("s3://bucket/{key}")).key()).await.unwrap();
        assert_eq!((meta.bytes, origin.counts(key).heads), (7, heads), "{key}");
        assert!(meta.checksums.md5.is_some() && meta.checksums.sha256.is_none());
    }
    let error = store.head(uri("s3://bucket/missing").key()).await.unwrap_err();
    assert_eq!((error.kind, origin.counts("missing").heads), (OriginErrorKind::NotFound, 1));
}

/// The names in a folder that are those of drafts, or nearly so.
fn drafts(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut drafts: Vec<String> = names.filter(|name| name.contains("forebay-")).collect();
    drafts.sort_unstable();
    drafts
}

fn written_hours_ago(file: &Path, hours: u64) {
    let file = std::fs::File::options().write(true).open(file).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.set_modified(modified - Duration::from_secs(hours * 3600)).unwrap();
}

#[tokio::test]
async fn what_a_killed_process_left_is_not_listed_and_goes_when_its_folder_is_written_to() {
    let folder = temp_dir();
    let at = format!("file://{}/", folder.path().display());
    let key = |name: &str| uri(&format!("{at}{name}"));
    // A sink of another process, as far as locks and names go.
    let other = place(quick(), vec![], &at);
    let mut alive = other.sink.upload(key("alive").key(), 7).await.unwrap();
    alive.write(Bytes::from_static(b"content")).await.unwrap();
    let [alive_name] = drafts(folder.path()).try_into().unwrap();
    written_hours_ago(&folder.path().join(&alive_name), 5);

    let name = |digit: u8| format!(".forebay-{digit:016x}.part");
    let (left, fresh, elsewhere, link, dir) = (name(1), name(2), name(3), name(4), name(5));
    let near = [".forebay-1.part", "forebay-0000000000000001.part"].map(str::to_owned);
    std::fs::create_dir(folder.path().join("below")).unwrap();
    let below = format!("below/{elsewhere}");
    for name in [&left, &fresh, &below, &near[0], &near[1], &"object".to_owned()] {
        std::fs::write(folder.path().join(name), "half of it").unwrap();
        if *name != fresh {
            written_hours_ago(&folder.path().join(name), 5);
        }
    }
    std::os::unix::fs::symlink("object", folder.path().join(&link)).unwrap();
    std::fs::create_dir(folder.path().join(&dir)).unwrap();

    let place = place(quick(), vec![], &at);
    let store = place.origins.open(&uri(&at)).unwrap();
    let listed = async || {
        let found = store.list(uri(&at).key(), 9).await.unwrap();
        let names = found.into_iter().map(|meta| meta.key.file_name().to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(listed().await, [near[0].as_str(), near[1].as_str(), "object"]);

    place.sink.put(key("new").key(), Bytes::from_static(b"x")).await.unwrap();
    let mut kept = vec![alive_name, fresh, link, dir];
    kept.extend(near.clone());
    kept.sort_unstable();
    assert_eq!(drafts(folder.path()), kept);
    assert_eq!(drafts(&folder.path().join("below")), [elsewhere], "nobody wrote there");
    place.sink.put(key("below/new").key(), Bytes::from_static(b"x")).await.unwrap();
    assert!(drafts(&folder.path().join("below")).is_empty());
    alive.finish().await.unwrap();
    assert_eq!(std::fs::read(folder.path().join("alive")).unwrap(), b"content");
    assert_eq!(listed().await.len(), 6);
}

#[tokio::test]
async fn files_have_the_modes_of_a_persons_and_links_are_not_followed() {
    let (folder, elsewhere) = (temp_dir(), temp_dir());
    let root = folder.path().join("root");
    std::fs::create_dir_all(&root).unwrap();
    let at = format!("file://{}/", root.display());
    let place = place(quick(), vec![], &at);
    let put = async |below: &str| {
        let key = uri(&format!("{at}{below}"));
        place.sink.put(key.key(), Bytes::from_static(b"content")).await
    };
    put("a/b/file").await.unwrap();
    let probe = root.join("probe");
    std::fs::write(&probe, "").unwrap();
    std::fs::create_dir(root.join("probes")).unwrap();
    let mode = |path: &str| std::fs::metadata(root.join(path)).unwrap().permissions().mode();
    // The umask is the process's: what the standard library makes has it too.
    assert_eq!(mode("a/b/file"), mode("probe") & !0o022);
    assert_eq!(mode("a/b"), mode("probes") & !0o022);

    std::os::unix::fs::symlink(elsewhere.path(), root.join("out")).unwrap();
    for (below, kind) in [
        ("out/file", OriginErrorKind::Local(std::io::ErrorKind::InvalidInput)),
        ("out/deep/file", OriginErrorKind::Local(std::io::ErrorKind::InvalidInput)),
        ("a/b/file/below", OriginErrorKind::Local(std::io::ErrorKind::InvalidInput)),
        ("a/b", OriginErrorKind::Local(std::io::ErrorKind::IsADirectory)),
    ] {
        let error = put(below).await.unwrap_err();
        assert_eq!(error.kind, kind, "{below}: {error}");
    }
    let outside = place.sink.put(uri("file:///tmp/forebay-elsewhere").key(), Bytes::new()).await;
    assert_eq!(outside.unwrap_err().kind, OriginErrorKind::Unsupported);
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    // A link in the place of the object itself is replaced, not written through.
    let target = elsewhere.path().join("target");
    std::fs::write(&target, "kept").unwrap();
    std::os::unix::fs::symlink(&target, root.join("link")).unwrap();
    put("link").await.unwrap();
    assert_eq!(std::fs::read(&target).unwrap(), b"kept");
    assert_eq!(std::fs::read(root.join("link")).unwrap(), b"content");
    place.origins.cleared().await;
    let left = std::fs::read_dir(root.join("a")).unwrap().chain(std::fs::read_dir(&root).unwrap());
    let drafts = left.filter(|entry| {
        entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".forebay-")
    });
    assert_eq!(drafts.count(), 0);
}

/// A file system with room for a megabyte, until it is dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn mount() -> Result<Self, String> {
        let folder = temp_dir();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(folder.path())
            .output();
        match mount {
            Ok(output) if output.status.success() => Ok(Self(folder)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // What cannot be unmounted fails the removal of its folder, which says so.
        Command::new("umount").arg(self.0.path()).status().ok();
    }
}

#[tokio::test]
async fn a_full_disk_is_said_to_be_full_and_nothing_is_left_on_it() {
    let small = match Small::mount() {
        Ok(small) => small,
        Err(why) => {
            println!("skipped: no small file system can be had: {why}");
            return;
        }
    };
    let at = format!("file://{}/", small.0.path().display());
    let place = place(quick(), vec![], &at);
    let key = uri(&format!("{at}object"));
    let whole = Content::synthetic(8, 2 << 20).to_bytes();
    let error = place.sink.put(key.key(), whole.clone()).await.unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::Local(std::io::ErrorKind::StorageFull), "{error}");
    let mut upload = place.sink.upload(key.key(), 2 << 20).await.unwrap();
    assert!(upload.write(whole).await.is_err());
    assert!(upload.write(Bytes::from_static(b"x")).await.is_err(), "it stays failed");
    upload.finish().await.unwrap_err();
    assert_eq!(std::fs::read_dir(small.0.path()).unwrap().count(), 0);
    place.sink.put(key.key(), Bytes::from(vec![7; 900 << 10])).await.unwrap();
}
