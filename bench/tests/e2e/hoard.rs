//! A client that never releases: nothing takes its memory from it, who needs some is told who has
//! it, and when it goes all of it is back.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use forebay_client::{Access, Client, ClientError, Endpoint, LoadRequest, Reason};
use forebay_testkit::Content;
use sha2::{Digest, Sha256};

use crate::harness::{
    BUCKET, CHUNK, Node, NodeSpec, assert_ends, digests, failure, s3, s3_uri, until,
};
use crate::tenants::{BLUE, RED, block, configured, with};

const OLDEST: &str = "forebay_leases_oldest_seconds";

/// Another process that loads all of an object, holds it, and reads it again when it is told to.
struct Hoarder {
    child: Child,
    said: Lines<BufReader<ChildStdout>>,
}

impl Hoarder {
    fn start(node: &Node, token: Option<&str>) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "hoard::a_child_that_never_releases", "--nocapture"])
            .env("FOREBAY_E2E_SOCKET", node.daemon.socket())
            .env("FOREBAY_E2E_URI", s3_uri("hoarded"))
            .envs(token.map(|token| ("FOREBAY_E2E_TOKEN", token)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut hoarder = Self { child, said };
        hoarder.answer();
        hoarder
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// The digest of what it holds.
    fn answer(&mut self) -> String {
        let digest =
            self.said.find_map(|line| Some(line.unwrap().split_once("holding ")?.1.to_owned()));
        digest.expect("the child answers")
    }

    /// The same, read anew.
    fn reads(&mut self) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "again").unwrap();
        self.answer()
    }

    /// kill -9.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The child's side.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_child_that_never_releases() {
    let names = ["FOREBAY_E2E_SOCKET", "FOREBAY_E2E_URI"];
    let [Some(socket), Some(uri)] = names.map(std::env::var_os) else {
        println!("skipped: other tests start this one as a process of its own");
        return;
    };
    let access = match std::env::var_os("FOREBAY_E2E_TOKEN") {
        Some(token) => Access::new().token(token.to_str().unwrap()).unwrap(),
        None => Access::new(),
    };
    let endpoint = Endpoint::unix(socket.as_ref()).unwrap();
    let client = Client::connect_with(endpoint, access).await.unwrap();
    let request = LoadRequest::new(uri.to_str().unwrap()).load_id("hoarder");
    let mut load = client.load(request).await.unwrap();
    let mut held = Vec::new();
    while let Some(chunk) = load.next_chunk().await.unwrap() {
        held.push(chunk);
    }
    held.sort_by_key(|chunk| chunk.extents().next().map(|extent| extent.offset()));
    let digest = || {
        let extents = held.iter().flat_map(|chunk| chunk.extents());
        let hasher =
            extents.fold(Sha256::new(), |hasher, extent| hasher.chain_update(extent.bytes()));
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    println!("\nholding {}", digest());
    tokio::task::block_in_place(|| {
        for line in std::io::stdin().lines() {
            line.unwrap();
            println!("\nholding {}", digest());
        }
    });
}

/// The facts of a refusal for want of RAM.
#[track_caller]
fn held_by(error: &ClientError, pid: &str) -> f64 {
    assert_ends(error, Reason::RamExhausted, 5);
    let failure = error.failure();
    let fact = |name: &str| failure.facts.get(name).map(String::as_str);
    assert_eq!(fact("holder_load"), Some("hoarder"), "{error:?}");
    assert_eq!(fact("holder_pid"), Some(pid), "{error:?}");
    assert_eq!(fact("holder_uid"), Some(&*rustix::process::getuid().as_raw().to_string()));
    assert_eq!(fact("holder_slots"), Some("8"));
    assert!(failure.retry_after.is_some_and(|after| !after.is_zero()), "{error:?}");
    assert!(failure.quota.as_ref().is_some_and(|quota| quota.contains("load hoarder")));
    fact("holder_seconds").unwrap().parse().unwrap()
}

async fn oldest(node: &Node) -> f64 {
    node.metric(OLDEST).await.unwrap()
}

#[tokio::test]
async fn nothing_is_taken_from_who_never_releases() {
    let origin = s3().await;
    let hoarded = Content::synthetic(5, 8 * CHUNK);
    origin.put(BUCKET, "hoarded", hoarded.clone());
    for n in 0..4 {
        origin.put(BUCKET, &format!("other{n}"), Content::synthetic(20 + n, 3 * CHUNK));
    }
    // Eight slots, and one client has them all.
    let node = NodeSpec::of(&origin).ram("512KiB").set("no_progress", "1s").start().await;
    assert_eq!(oldest(&node).await, 0.0);
    let mut hoarder = Hoarder::start(&node, None);
    let first = oldest(&node).await;
    let mut ages = Vec::new();
    for n in 0..4 {
        let error = failure(&node.client, LoadRequest::new(s3_uri(&format!("other{n}")))).await;
        ages.push(held_by(&error, &hoarder.pid()));
        assert_eq!(hoarder.reads(), hoarded.sha256());
    }
    // It goes on, as the metric does.
    assert!(ages.is_sorted() && ages[0] > 0.0, "{ages:?}");
    until("the oldest lease gets older", async || (oldest(&node).await > first).then_some(()))
        .await;

    // What an operator does takes nothing from it either.
    let evicted = node.client.evict(s3_uri("hoarded")).await.unwrap();
    assert_eq!((evicted.freed_bytes, evicted.leased_bytes), (0, 8 * CHUNK));
    let error = failure(&node.client, LoadRequest::new(s3_uri("other0"))).await;
    held_by(&error, &hoarder.pid());
    assert_eq!(hoarder.reads(), hoarded.sha256());
    assert_eq!(node.metric("forebay_leases").await, Some(8.0));
    assert_eq!(node.metric("forebay_leased_bytes").await, Some(8.0 * CHUNK as f64));

    hoarder.kill();
    node.settled().await;
    for n in 0..4 {
        let content = Content::synthetic(20 + n, 3 * CHUNK);
        node.loads(&s3_uri(&format!("other{n}")), &[(format!("other{n}"), content)]).await;
    }
}

/// Its domain is its own trouble: others load on, and are told nothing of it.
#[tokio::test]
async fn another_domain_neither_lacks_what_is_hoarded_nor_hears_of_it() {
    let origin = s3().await;
    let hoarded = Content::synthetic(5, 8 * CHUNK);
    origin.put(BUCKET, "hoarded", hoarded.clone());
    origin.put(BUCKET, "mine", Content::synthetic(6, 8 * CHUNK));
    origin.put(BUCKET, "more", Content::synthetic(7, 2 * CHUNK));
    let (_dir, path) = configured(&(block("blue", BLUE, "") + &block("red", RED, "")));
    let spec = NodeSpec::of(&origin).ram("1MiB").config(&path).set("no_progress", "1s");
    let node = spec.start().await;
    let (blue, red) = (with(&node, BLUE).await, with(&node, RED).await);
    let mut hoarder = Hoarder::start(&node, Some(BLUE));
    let error = failure(&blue, LoadRequest::new(s3_uri("more"))).await;
    held_by(&error, &hoarder.pid());
    for name in ["mine", "more", "hoarded"] {
        digests(&red, LoadRequest::new(s3_uri(name))).await.unwrap();
    }
    // Whoever of the other domain is refused is told who holds its own memory.
    let mut own = red.load(LoadRequest::new(s3_uri("mine")).load_id("of-red")).await.unwrap();
    let mut held = Vec::new();
    while let Some(chunk) = own.next_chunk().await.unwrap() {
        held.push(chunk);
    }
    let error = failure(&red, LoadRequest::new(s3_uri("more"))).await;
    assert_ends(&error, Reason::RamExhausted, 5);
    let said = format!("{error} {error:?}");
    assert!(said.contains("of-red"), "{said}");
    for secret in ["hoarder", "blue", &hoarder.pid()] {
        assert!(!said.contains(secret), "{said}");
    }
    assert_eq!(hoarder.reads(), hoarded.sha256());
    drop((held, own));
    hoarder.kill();
    node.settled().await;
    digests(&blue, LoadRequest::new(s3_uri("more"))).await.unwrap();
    node.settled().await;
}
