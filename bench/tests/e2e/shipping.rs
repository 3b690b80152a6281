//! What `docker/` ships, at work: the image in container roots, the probe, the prolog.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use forebay_client::LoadRequest;
use forebay_testkit::Content;
use rustix::process::Signal;

use crate::binaries::{forebay, forebayd};
use crate::command::text;
use crate::harness::{BUCKET, CHUNK, NodeSpec, s3, s3_uri, until};

fn docker() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("docker")
}

/// What the probe ends with, and prints.
fn health(socket: &Path, args: &[&str]) -> (Option<i32>, String) {
    let endpoint = format!("unix://{}", socket.display());
    let mut probe = Command::new(forebay());
    let output =
        probe.env_clear().env("FOREBAY_ENDPOINT", endpoint).arg("health").args(args).output();
    let Output { status, stdout, stderr } = output.unwrap();
    (status.code(), text(&[stdout, stderr].concat()).to_owned())
}

#[tokio::test]
async fn health_is_for_probes() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(1, 4 * CHUNK));
    let mut node = NodeSpec::of(&origin).start().await;
    let socket = node.daemon.socket();
    assert_eq!(health(&socket, &[]), (Some(0), "ready\n".into()));
    let (code, json) = health(&socket, &["--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["state"]), (Some(0), &"ready".into()));

    // A load that is under way keeps the daemon from ending.
    let mut load = node.client.load(LoadRequest::new(s3_uri("blob"))).await.unwrap();
    let held = load.next_chunk().await.unwrap().unwrap();
    node.daemon.signal(Signal::TERM).unwrap();
    let refused = until("it takes no more loads", async || {
        let (code, said) = health(&socket, &[]);
        (code == Some(7)).then_some(said)
    })
    .await;
    assert!(refused.contains("(DRAINING)"), "{refused}");
    assert_eq!(health(&socket, &["--live"]), (Some(0), "draining\n".into()));
    drop(held);
    drop(load);
    until("it has ended", async || node.daemon.try_wait().unwrap()).await;
    assert_eq!(health(&socket, &["--live"]).0, Some(7));
}

/// The prolog, with what Slurm says of the job.
fn prolog(endpoint: &str, comment: &str) -> Output {
    let ours = forebay().parent().unwrap().display();
    Command::new(docker().join("slurm/prolog"))
        .env_clear()
        .env("FOREBAY_PATH", format!("{ours}:/usr/bin:/bin"))
        .env("FOREBAY_ENDPOINT", endpoint)
        .env("SLURM_JOB_COMMENT", comment)
        .env("SLURM_JOB_UID", rustix::process::getuid().as_raw().to_string())
        .env("SLURM_JOB_GID", rustix::process::getgid().as_raw().to_string())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[tokio::test]
async fn the_prolog_fetches_what_a_job_names_and_fails_for_nothing() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(1, 4 * CHUNK));
    origin.put(BUCKET, "other", Content::synthetic(2, CHUNK));
    let node = NodeSpec::of(&origin).start().await;
    let endpoint = format!("unix://{}", node.daemon.socket().display());
    for comment in ["", "nothing of ours", "forebay:--help", "forebay:; forebay:$(touch x) *"] {
        assert_eq!(prolog(&endpoint, comment).status.code(), Some(0), "{comment}");
    }
    assert_eq!(prolog("unix:///nowhere/forebay.sock", "forebay:s3://b/k").status.code(), Some(0));
    let comment = format!("lr=3 forebay:{} forebay:{}", s3_uri("blob"), s3_uri("other"));
    assert_eq!(prolog(&endpoint, &comment).status.code(), Some(0));
    let bytes = (5 * CHUNK) as f64;
    until("both are cached", async || {
        let cached = node.metric("forebay_pinned_bytes{state=\"cached\"}").await;
        (cached >= Some(bytes)).then_some(())
    })
    .await;
    assert_eq!(origin.counts("blob").gets, 4, "and nothing else was asked for");
    node.settled().await;
}

/// Why the image cannot be tried here.
fn no_image() -> Option<String> {
    let has = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !rustix::process::getuid().is_root() {
        return Some("making container roots needs root".into());
    }
    if let Some(missing) = ["buildah", "unshare", "nsenter", "strip"].iter().find(|of| !has(of)) {
        return Some(format!("{missing} is not installed"));
    }
    let base = std::env::var_os("FOREBAY_BASES").unwrap_or_else(|| "/var/tmp/forebay-bases".into());
    let bases = std::fs::read_dir(base).into_iter().flatten().flatten();
    let is_slow =
        !bases.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|of| of == "tar"));
    let wanted = std::env::var_os("FOREBAY_SLOW_TESTS").is_some();
    (is_slow && !wanted).then(|| {
        "the base of the image is made by debootstrap, from a mirror, in a minute: run docker/build-image once, or \
         set FOREBAY_SLOW_TESTS=1"
            .into()
    })
}

#[test]
fn the_image_serves_a_load_to_another_container_root_and_uid() {
    if let Some(why) = no_image() {
        println!("skipped: {why}");
        return;
    }
    // Both are built, and lie beside each other.
    let binaries = forebayd().parent().unwrap().to_owned();
    assert_eq!(forebay().parent(), Some(&*binaries));
    let tag = format!("localhost/forebay-test:{}", std::process::id());
    let script = |name: &str, args: &[&str]| {
        let output = Command::new(docker().join(name)).args(args).output().unwrap();
        let (said, complained) = (text(&output.stdout), text(&output.stderr));
        println!("{said}{complained}");
        assert!(output.status.success(), "docker/{name}: {}\n{said}{complained}", output.status);
        said.to_owned()
    };
    let image = Image(tag.clone());
    let binaries = binaries.display().to_string();
    script("build-image", &["--binaries", &binaries, "--tag", &tag]);
    let said = script("try-image", &["--image", &tag, "--megabytes", "24"]);
    assert!(said.ends_with("all of it works\n"), "{said}");
    drop(image);

    // It fails when there is something wrong: an image that is not there.
    let none =
        Command::new(docker().join("try-image")).args(["--image", "localhost/no-such"]).output();
    assert!(!none.unwrap().status.success());
}

/// An image that is removed again.
struct Image(String);

impl Drop for Image {
    fn drop(&mut self) {
        drop(Command::new("buildah").args(["--storage-driver", "vfs", "rmi", &self.0]).output());
    }
}
