//! Where the NVMe tier has to live: disks that are full, folders that are not ours, kernels without
//! io_uring, users without rights. What cannot be had is said, and never costs a load.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use forebay_client::{EvictRequest, KeepTier, PrefetchRequest, Reason};
use forebay_testkit::{Checkpoint, CheckpointSpec, Content, S3Origin, checkpoint};
use tempfile::TempDir;

use crate::harness::{BUCKET, CHUNK, Node, NodeSpec, files, s3, s3_uri, until};
use crate::nvme::prefetch;
use crate::nvme_files::{cache, extents, fetched, files_below};

const URI: &str = "s3://models/m/";

async fn made(seed: u64, bytes: u64) -> (S3Origin, Checkpoint) {
    let origin = s3().await;
    let made = checkpoint(CheckpointSpec::new(seed, bytes).shards(2));
    origin.put_checkpoint(BUCKET, "m/", &made);
    (origin, made)
}

fn new_dir() -> TempDir {
    TempDir::with_prefix("forebay-").unwrap()
}

fn spec(origin: &S3Origin) -> NodeSpec {
    NodeSpec::of(origin).nvme("64MiB")
}

/// Says why a test does not run; whether it does not.
fn skipped(test: &str, missing: Option<&str>) -> bool {
    if let Some(missing) = missing {
        println!("skipped: {test}: {missing}");
    }
    missing.is_some()
}

fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

/// What keeps a program from being started like this, if anything does.
fn cannot_run(words: &[&str]) -> Option<String> {
    match Command::new(words[0]).args(&words[1..]).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Some(format!("{}: {error}", words[0])),
    }
}

async fn degraded(node: &Node) -> Vec<String> {
    node.client.status().await.unwrap().degraded
}

/// Prefetched, ended, begun again: it all comes from NVMe. The last daemon.
async fn works(node: Node, again: NodeSpec, origin: &S3Origin, made: &Checkpoint) -> Node {
    prefetch(&node.client, PrefetchRequest::new(URI)).await.unwrap();
    let node = again.dir(node.stopped().await).start().await;
    let before = fetched(origin);
    let report = node.loads(URI, &files(made)).await;
    assert_eq!(report.bytes_by_tier.nvme, made.bytes(), "{}", node.daemon.log());
    assert_eq!(fetched(origin), before);
    node
}

/// A filesystem of its own, unmounted when dropped.
struct Mount(TempDir);

impl Mount {
    fn tmpfs(size: &str) -> Result<Self, String> {
        let dir = new_dir();
        let at = dir.path().to_str().unwrap();
        let options = format!("size={size},mode=0700");
        let words = ["mount", "-t", "tmpfs", "-o", &options, "tmpfs", at];
        cannot_run(&words).map_or(Ok(Self(dir)), Err)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.0.path()).output());
    }
}

#[tokio::test]
async fn a_small_disk_holds_what_it_can_and_a_full_one_nothing() {
    let mount = Mount::tmpfs("6m");
    if skipped("a small disk", mount.as_ref().err().map(String::as_str)) {
        return;
    }
    let mount = mount.unwrap();
    let (origin, made) = made(50, 2 << 20).await;
    let larger = checkpoint(CheckpointSpec::new(51, 8 << 20));
    origin.put_checkpoint(BUCKET, "larger/", &larger);
    // More than there is: the filesystem sets the bound.
    let spec = || NodeSpec::of(&origin).nvme("1GiB").ram("3MiB").cache(mount.0.path());
    let node = spec().start().await;
    let said = degraded(&node).await;
    assert!(said.iter().all(|said| !said.contains("there is no NVMe tier")), "{said:?}");
    prefetch(&node.client, PrefetchRequest::new(URI).tier(KeepTier::Nvme)).await.unwrap();
    node.client.evict(EvictRequest::new(URI).tier(KeepTier::Ram)).await.unwrap();
    let report = node.loads(URI, &files(&made)).await;
    assert_eq!(report.bytes_by_tier.nvme, made.bytes());
    // More than the disk: what it holds is right, the floor of 5 % stays free, and the rest is
    // said.
    let request = PrefetchRequest::new(s3_uri("larger/")).tier(KeepTier::Nvme);
    let error = prefetch(&node.client, request).await.unwrap_err();
    assert_eq!(error.reason(), Reason::NvmeExhausted, "{error}");
    let nvme = node.client.status().await.unwrap().nvme;
    assert!(nvme.stored_bytes > 3 << 20, "{nvme:?}");
    assert!(nvme.disk_free_bytes >= (6 << 20) / 100 * 5 - CHUNK, "{nvme:?}");
    node.loads(&s3_uri("larger/"), &files(&larger)).await;
    // Others fill it.
    let others = mount.0.path().join("others");
    fill(&others);
    node.client.evict(s3_uri("")).await.unwrap();
    fill(&others);
    node.loads(URI, &files(&made)).await;
    let is_full = |said: &String| said.starts_with("nvme: ") && said.contains("full");
    let is_said = async || {
        // What was removed only now is room too.
        fill(&others);
        degraded(&node).await.iter().any(is_full).then_some(())
    };
    until("it is said that the disk is full", is_said).await;
    assert_eq!(node.metric("forebay_degraded{what=\"nvme\"}").await, Some(1.0));
    assert_eq!(node.client.status().await.unwrap().nvme.state, "normal", "no fault of the disk");
    node.loads(&s3_uri("larger/"), &files(&larger)).await;
    // Room again.
    std::fs::remove_file(&others).unwrap();
    let request = || PrefetchRequest::new(URI).tier(KeepTier::Nvme);
    until("it is stored again", async || prefetch(&node.client, request()).await.ok()).await;
    assert!(degraded(&node).await.iter().all(|said| !said.contains("full")));
    drop(node);
    // A daemon that begins on a disk without a byte left.
    fill(&others);
    let node = spec().start().await;
    node.loads(URI, &files(&made)).await;
    // It gives up what it has, to keep some room; that is taken as well.
    let is_full = |said: &String| said.contains("full") || said.contains("No space");
    let is_said = async || {
        fill(&others);
        degraded(&node).await.iter().any(is_full).then_some(())
    };
    until("it is said that the disk is full", is_said).await;
    assert_eq!(node.sum("forebay_cache_quarantined_total").await, 0.0);
}

/// Makes a file as large as its filesystem lets it be.
fn fill(path: &Path) {
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    let full = std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
}

/// Loads without the tier, which is said in a sentence that begins like this, and in a metric.
async fn bypassed(what: &str, sentence: &str, spoil: impl FnOnce(&Path)) -> TempDir {
    let (origin, made) = made(52, 200 << 10).await;
    let dir = new_dir();
    spoil(dir.path());
    let node = spec(&origin).dir(dir).start().await;
    let report = node.loads(URI, &files(&made)).await;
    assert_eq!(report.bytes_by_tier.origin, made.bytes(), "{what}");
    let said = degraded(&node).await;
    assert!(said.iter().any(|said| said.starts_with(sentence)), "{what}: {said:?}");
    let subject = sentence.split(':').next().unwrap();
    let metric = format!("forebay_degraded{{what=\"{subject}\"}}");
    assert_eq!(node.metric(&metric).await, Some(1.0), "{what}");
    assert_eq!(node.client.status().await.unwrap().nvme.state, "off", "{what}");
    node.stopped().await
}

/// A folder, and a cache directory to be spoiled.
fn cache_of(dir: &Path, mode: u32) {
    std::fs::create_dir(cache(dir)).unwrap();
    std::fs::set_permissions(cache(dir), PermissionsExt::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn folders_that_are_not_ours_alone_are_never_used() {
    let elsewhere = new_dir();
    let is_untouched = || assert!(files_below(elsewhere.path()).is_empty());
    bypassed("a link in its place", "cache-dir: ", |dir| {
        symlink(elsewhere.path(), cache(dir)).unwrap();
    })
    .await;
    is_untouched();
    bypassed("others may write to it", "cache-dir: ", |dir| cache_of(dir, 0o777)).await;
    bypassed("nvme is a link", "nvme: there is no NVMe tier: ", |dir| {
        cache_of(dir, 0o700);
        symlink(elsewhere.path(), cache(dir).join("nvme")).unwrap();
    })
    .await;
    is_untouched();
    bypassed("a shard is a link", "nvme: there is no NVMe tier: ", |dir| {
        cache_of(dir, 0o700);
        std::fs::create_dir_all(cache(dir).join("nvme/extents")).unwrap();
        let of_nvme = |name| cache(dir).join(name);
        for folder in ["nvme", "nvme/extents"].map(of_nvme) {
            std::fs::set_permissions(folder, PermissionsExt::from_mode(0o700)).unwrap();
        }
        symlink(elsewhere.path(), cache(dir).join("nvme/extents/7f")).unwrap();
    })
    .await;
    is_untouched();
    bypassed("others may write to nvme", "nvme: there is no NVMe tier: ", |dir| {
        cache_of(dir, 0o700);
        std::fs::create_dir(cache(dir).join("nvme")).unwrap();
        std::fs::set_permissions(cache(dir).join("nvme"), PermissionsExt::from_mode(0o777))
            .unwrap();
    })
    .await;
    if skipped("another user's folders", (!is_root()).then_some("only root can make them")) {
        return;
    }
    bypassed("another user's", "cache-dir: ", |dir| {
        cache_of(dir, 0o700);
        std::os::unix::fs::chown(cache(dir), Some(12345), None).unwrap();
    })
    .await;
    bypassed("nvme is another user's", "nvme: there is no NVMe tier: ", |dir| {
        cache_of(dir, 0o700);
        std::fs::create_dir(cache(dir).join("nvme")).unwrap();
        std::os::unix::fs::chown(cache(dir).join("nvme"), Some(12345), None).unwrap();
    })
    .await;
}

#[tokio::test]
async fn links_in_place_of_files_are_never_followed() {
    let (origin, made) = made(53, 300 << 10).await;
    let node = spec(&origin).start().await;
    prefetch(&node.client, PrefetchRequest::new(URI)).await.unwrap();
    let dir = node.stopped().await;
    let elsewhere = new_dir();
    let secret = elsewhere.path().join("secret");
    // An extent as whole as can be, but elsewhere; a second name for another one; the index.
    let all = extents(dir.path());
    std::fs::rename(&all[0].path, &secret).unwrap();
    symlink(&secret, &all[0].path).unwrap();
    std::fs::hard_link(&all[1].path, elsewhere.path().join("second name")).unwrap();
    let index = cache(dir.path()).join("nvme/index.redb");
    std::fs::rename(&index, elsewhere.path().join("index")).unwrap();
    symlink(elsewhere.path().join("index"), &index).unwrap();
    let held = |path: &Path| std::fs::read(path).unwrap();
    let before = files_below(elsewhere.path()).iter().map(|path| held(path)).collect::<Vec<_>>();
    let lost = all[0].content_bytes + all[1].content_bytes;
    let node = spec(&origin).dir(dir).start().await;
    let report = node.loads(URI, &files(&made)).await;
    assert_eq!(report.bytes_by_tier.origin, lost, "{}", node.daemon.log());
    assert_eq!(node.sum("forebay_cache_quarantined_total").await, 2.0);
    let dir = node.stopped().await;
    let after = files_below(elsewhere.path()).iter().map(|path| held(path)).collect::<Vec<_>>();
    assert_eq!(after, before, "nothing is written through a link, nor removed behind it");
    let node = spec(&origin).dir(dir).start().await;
    assert_eq!(node.loads(URI, &files(&made)).await.bytes_by_tier.nvme, made.bytes());
}

#[tokio::test]
async fn no_name_in_the_cache_comes_from_a_key() {
    let origin = s3().await;
    let long = format!("{}{}", "l".repeat(1000), ".safetensors-not");
    let keys = ["a/../b", "..", "with space/ and more", "重み/веса", "%2e%2e", "nul\u{1}", &long];
    for (n, key) in keys.iter().enumerate() {
        origin.put(BUCKET, &format!("odd/{key}"), Content::synthetic(n as u64, CHUNK + 5));
    }
    let single = checkpoint(CheckpointSpec::new(54, 100 << 10));
    let model = single.file("model.safetensors").unwrap().clone();
    origin.put(BUCKET, "odd/x ../ü/model.safetensors", model);
    let node = spec(&origin).start().await;
    let uris = keys.iter().map(|key| s3_uri(&format!("odd/{key}"))).chain([s3_uri("odd/")]);
    for uri in uris {
        // Whatever is refused is refused before it has a name.
        drop(prefetch(&node.client, PrefetchRequest::new(uri)).await);
    }
    assert!(!extents(node.daemon.dir()).is_empty(), "{}", node.daemon.log());
    let cache = cache(node.daemon.dir());
    for path in files_below(&cache) {
        let below = path.strip_prefix(&cache).unwrap().to_str().unwrap();
        let known = [".forebay.lock", "first-fetch.2", "nvme/index.redb"].contains(&below);
        let (folder, name) = below.rsplit_once('/').unwrap_or(("", below));
        let is_hex = |text: &str, digits| {
            text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let shard = folder.strip_prefix("nvme/extents/").is_some_and(|shard| is_hex(shard, 2));
        let of_tier = (shard || folder == "nvme/blobs") && is_hex(name, 64);
        assert!(known || of_tier, "{below}");
        let mode = path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{below}");
    }
}

/// What a daemon that may not use io_uring does and says.
async fn on_threads(spec: impl Fn() -> NodeSpec, why: &str, is_degraded: bool) {
    let (origin, made) = made(55, 500 << 10).await;
    let spec = || spec().env(origin.env());
    let node = works(spec().start().await, spec(), &origin, &made).await;
    let nvme = node.client.status().await.unwrap().nvme;
    assert_eq!(nvme.engine.as_deref(), Some("threads"), "{nvme:?}");
    let reason = nvme.engine_reason.unwrap_or_default();
    assert!(reason.contains(why), "{reason}");
    assert_eq!(node.metric("forebay_nvme_io_engine{engine=\"threads\"}").await, Some(1.0));
    assert_eq!(node.metric("forebay_nvme_io_engine{engine=\"io_uring\"}").await, Some(0.0));
    let said = degraded(&node).await;
    let is_said = said.iter().any(|said| said.starts_with("nvme: ") && said.contains(why));
    assert_eq!(is_said, is_degraded, "{said:?}");
    let metric = node.metric("forebay_degraded{what=\"nvme\"}").await.unwrap();
    assert_eq!(metric > 0.0, said.iter().any(|said| said.starts_with("nvme: ")), "{said:?}");
}

#[tokio::test]
async fn threads_serve_where_they_are_asked_for() {
    let spec = || NodeSpec::new().nvme("64MiB").set("nvme_engine", "threads");
    on_threads(spec, "asked", false).await;
}

/// Runs its arguments with a seccomp filter under which io_uring_setup is not permitted.
const FORBID_IO_URING: &str = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
IO_URING_SETUP, EPERM = 425, 1
step = lambda code, jf, k: struct.pack("HBBI", code, 0, jf, k)
program = step(0x20, 0, 0) + step(0x15, 1, IO_URING_SETUP)
program += step(0x06, 0, 0x00050000 | EPERM) + step(0x06, 0, 0x7fff0000)
code = ctypes.create_string_buffer(program, len(program))
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
filter = Filter(4, ctypes.cast(code, ctypes.c_void_p))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(filter)):
    sys.exit("no seccomp filter: errno %d" % ctypes.get_errno())
os.execvp(sys.argv[1], sys.argv[1:])
"#;

#[tokio::test]
async fn threads_serve_where_a_filter_forbids_io_uring() {
    let wrapper = ["python3", "-c", FORBID_IO_URING];
    let missing = cannot_run(&[&wrapper[..], &["true"]].concat());
    if skipped("a seccomp filter", missing.as_deref()) {
        return;
    }
    let spec = || NodeSpec::new().nvme("64MiB").under(&wrapper);
    on_threads(spec, "io_uring", true).await;
}

#[tokio::test]
async fn a_user_without_rights_has_the_tier_too() {
    let wrapper = [
        "prlimit",
        "--memlock=8388608:8388608",
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--no-new-privs",
        "--bounding-set=-all",
    ];
    let missing = match is_root() {
        true => cannot_run(&[&wrapper[..], &["true"]].concat()),
        false => Some("only root can become another user".to_owned()),
    };
    if skipped("another user", missing.as_deref()) {
        return;
    }
    let (origin, made) = made(56, 1 << 20).await;
    let dir = new_dir();
    std::os::unix::fs::chown(dir.path(), Some(65534), Some(65534)).unwrap();
    let spec = || spec(&origin).under(&wrapper);
    let node = works(spec().dir(dir).start().await, spec(), &origin, &made).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.daemon.pid())).unwrap();
    assert!(status.contains("Uid:\t65534"), "{status}");
    let nvme = node.client.status().await.unwrap().nvme;
    assert_eq!(nvme.state, "normal", "{nvme:?}");
    println!("{:?}: {:?}", nvme.engine, degraded(&node).await);
}

#[tokio::test]
async fn a_second_daemon_on_the_same_cache_serves_without_the_tier() {
    let (origin, made) = made(57, 500 << 10).await;
    let first = spec(&origin).start().await;
    prefetch(&first.client, PrefetchRequest::new(URI)).await.unwrap();
    let shared = cache(first.daemon.dir());
    let second = spec(&origin).cache(&shared).start().await;
    let report = second.loads(URI, &files(&made)).await;
    assert_eq!(report.bytes_by_tier.origin, made.bytes());
    let said = degraded(&second).await;
    assert!(
        said.iter()
            .any(|said| said.starts_with("cache-dir: ") && said.contains("another forebayd")),
        "{said:?}"
    );
    assert_eq!(second.client.status().await.unwrap().nvme.state, "off");
    first.client.evict(EvictRequest::new(URI).tier(KeepTier::Ram)).await.unwrap();
    assert_eq!(first.loads(URI, &files(&made)).await.bytes_by_tier.nvme, made.bytes());
}
