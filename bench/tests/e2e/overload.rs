//! More than the daemon can do: what it takes it does, and the rest is told so at once.
//!
//! Arrivals are counted, not timed: for each load that is served, as many come as the test is
//! about, so that overload is as deep on a slow machine as on a fast one. How long answers took is
//! printed.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use forebay_client::{CallOptions, Client, ClientError, Endpoint, Failure, LoadRequest, Reason};
use forebay_proto::pb;
use forebay_testkit::{Content, Fault, FaultRule, LinkOptions, S3Options, S3Origin};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::harness::{
    BUCKET, CHUNK, Digests, Node, NodeSpec, assert_ends, connect, digests, expected_digests,
    s3_uri, until,
};
use crate::raw::{RawLoad, opening, within};
use crate::tenants::{BLUE, RED, block, configured, open_to_all, with};

/// Bytes of an object here.
const BYTES: u64 = 4 * CHUNK;

/// Loads that somebody waits for and that wait for their turn.
const DEPTH: &str = "forebay_admission_queue_depth{lane=\"interactive\"}";

/// An object that only one load is for: nothing of it is in RAM when that comes.
fn object(name: &str, n: usize) -> (String, Content) {
    let seed = name.bytes().fold(n as u64, |seed, byte| seed * 31 + u64::from(byte));
    (format!("{name}-{n}"), Content::synthetic(seed, BYTES))
}

/// An origin that sends so much a second, with a bucket.
async fn origin_at(bytes_per_second: u64) -> S3Origin {
    let link = LinkOptions { total_bytes_per_second: Some(bytes_per_second), ..Default::default() };
    let origin = S3Origin::start(S3Options { link, ..Default::default() }).await;
    origin.put(BUCKET, "there/is/something", "beside");
    origin
}

/// What came of a caller's loads.
#[derive(Debug, Default)]
struct Came {
    offered: usize,
    served: BTreeSet<usize>,
    refused: BTreeSet<usize>,
    served_in: Vec<Duration>,
    refused_in: Vec<Duration>,
    /// The lengths of the queue that refusals told of.
    lengths: BTreeSet<usize>,
}

/// Somebody who offers loads, each of an object of its own.
struct Caller {
    name: &'static str,
    clients: Vec<Client>,
    running: JoinSet<(usize, Duration, Result<Digests, ClientError>)>,
    came: Came,
}

impl Caller {
    /// With some connections that hold nothing back, and a token if it has one.
    async fn new(node: &Node, name: &'static str, token: Option<&str>) -> Self {
        let mut clients = Vec::new();
        for _ in 0..4 {
            let client = match token {
                Some(token) => with(node, token).await,
                None => connect(&node.daemon).await,
            };
            let options = CallOptions { unthrottled: true, ..CallOptions::default() };
            clients.push(client.with_options(options));
        }
        Self { name, clients, running: JoinSet::new(), came: Came::default() }
    }

    /// So many more loads, whatever becomes of those before.
    fn offer(&mut self, origin: &S3Origin, loads: usize) {
        for _ in 0..loads {
            let n = self.came.offered;
            self.came.offered += 1;
            let (key, content) = object(self.name, n);
            origin.put(BUCKET, &key, content);
            let client = self.clients[n % self.clients.len()].clone();
            self.running.spawn(async move {
                let since = Instant::now();
                let loaded = digests(&client, LoadRequest::new(s3_uri(&key))).await;
                (n, since.elapsed(), loaded.map(|(mapped, _)| mapped))
            });
        }
    }

    /// Waits for the next load to end; whether it was served. What is served has to be right, and
    /// what is refused has to be told why, with a queue no longer than `limit`.
    async fn ended(&mut self, limit: usize) -> Option<bool> {
        let (n, took, ended) = self.running.join_next().await?.unwrap();
        let is_served = ended.is_ok();
        match ended {
            Ok(mapped) => {
                assert_eq!(mapped, expected_digests(&[object(self.name, n)]), "{} {n}", self.name);
                self.came.served.insert(n);
                self.came.served_in.push(took);
            }
            Err(error) => {
                let length = length_told(&error);
                assert!(length <= limit, "{error}");
                self.came.lengths.insert(length);
                self.came.refused.insert(n);
                self.came.refused_in.push(took);
            }
        }
        Some(is_served)
    }

    fn tell(&self) {
        let Came { offered, served, refused, served_in, refused_in, lengths } = &self.came;
        let p99 = |times: &[Duration]| {
            let mut times = times.to_vec();
            times.sort();
            times.get(times.len().saturating_sub(1) * 99 / 100).copied().unwrap_or_default()
        };
        println!(
            "{}: {offered} offered; {} served, p99 {:.1?}; {} refused, p99 {:.1?}, queues of {lengths:?}",
            self.name,
            served.len(),
            p99(served_in),
            refused.len(),
            p99(refused_in),
        );
    }
}

/// How long `Load` calls took by the daemon's clock, from their heads to their ends.
async fn tell_of_loads(node: &Node) {
    let mut told = Vec::new();
    for le in ["0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "+Inf"] {
        let of = "forebay_request_duration_seconds_bucket";
        let bucket = format!("{of}{{method=\"Load\",le=\"{le}\"}}");
        told.push(format!("{le}: {}", node.metric(&bucket).await.unwrap_or_default()));
    }
    println!("Load calls that took at most so many seconds: {}", told.join(", "));
}

/// The length of the queue that a refusal tells of. It says when to come again, too.
#[track_caller]
fn length_told(error: &ClientError) -> usize {
    assert_ends(error, Reason::QueueFull, 5);
    let failure = error.failure();
    assert!(failure.retry_after.is_some_and(|after| !after.is_zero()), "{error:?}");
    assert_eq!(failure.stage.as_deref(), Some("admission"), "{error:?}");
    let length = failure.facts["queue_length"].parse().unwrap();
    let told = format!("admission queue: {length} waiting");
    assert_eq!(failure.quota.as_ref(), Some(&told), "{error:?}");
    length
}

/// Looks at the queues until it is dropped, and fails if one is longer than its bound.
struct Watch(JoinSet<()>);

impl Watch {
    fn begin(client: Client) -> Self {
        let mut looking = JoinSet::new();
        looking.spawn(async move {
            loop {
                let queues = client.status().await.unwrap().queues;
                assert!(queues.iter().all(|queue| queue.depth <= queue.limit), "{queues:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Self(looking)
    }

    fn end(mut self) {
        assert!(self.0.try_join_next().is_none(), "a queue was longer than its bound");
    }
}

/// The node learns what one load at a time brings; it is soon known how much that is, and not all
/// that come are let in any more. False if this machine is too slow to tell.
async fn learns(node: &Node, origin: &S3Origin) -> bool {
    const LONG: u64 = 64 * CHUNK;
    let width = async || node.metric("forebay_admission_width").await;
    assert_eq!(width().await, Some(64.0), "nothing is known");
    let began = Instant::now();
    // Twice as many chunks, and half as many seconds again, as make it known.
    for n in 0..4 {
        let made = (format!("long-{n}"), Content::synthetic(n, LONG));
        origin.put(BUCKET, &made.0, made.1.clone());
        node.loads(&s3_uri(&made.0), &[made]).await;
    }
    let took = began.elapsed();
    if took >= Duration::from_secs(8) {
        // That would be known of loads that bring nothing.
        println!("skipped: four loads took {took:?} on this machine");
        return false;
    }
    assert_eq!(width().await, Some(6.0), "one level above the least, after {took:?}");
    true
}

/// Those that run share a slow link, for half a minute; it is not the time for another one, which
/// waits until nobody should wait for longer. But what wants the same as one of them starts beside
/// it, before one that came earlier.
#[tokio::test]
async fn who_wants_what_another_one_brings_does_not_wait_for_a_place() {
    let origin = origin_at(8 << 20).await;
    let node = NodeSpec::of(&origin).ram("128MiB").start().await;
    if !learns(&node, &origin).await {
        return;
    }
    let open = async |key: &str, load_id: &str| {
        // Of the first little will have come in all the time that this takes.
        let chunks = if key == "held-1" { 4096 } else { 256 };
        origin.put(BUCKET, key, Content::synthetic(3, chunks * CHUNK));
        let open = pb::LoadOpen { load_id: load_id.to_owned(), ..opening(&s3_uri(key)) };
        RawLoad::open(&node.daemon, open).await
    };
    // By the daemon's clock, however late this process is.
    let waited = async |load_id: &str| {
        let ended = async || node.client.explain(Some(load_id)).await.ok();
        let explained = until("it has ended", ended).await;
        let steps = explained.critical_path.into_iter();
        steps.filter(|step| step.stage == "admission").map(|step| step.time).sum::<Duration>()
    };
    let mut holders = Vec::new();
    // Until one has to wait, however many that takes on this machine.
    let began = Instant::now();
    for n in 1..64 {
        if began.elapsed() > Duration::from_secs(20) {
            println!("skipped: this machine is too slow for as many loads as make one wait");
            return;
        }
        let key = format!("held-{n}");
        let mut load = open(&key, &key).await;
        let has_come = async || {
            let waits = node.metric(DEPTH).await > Some(0.0);
            let active = node.metric("forebay_loads_active").await.unwrap_or_default();
            // One that runs waits for its turn at the origin, or has a flight.
            let flies = node.metric("forebay_flights").await >= Some(1.0);
            (waits || (active > holders.len() as f64 && flies)).then_some(waits)
        };
        if holders.is_empty() || !until("it runs or waits", has_come).await {
            holders.push(load);
            continue;
        }
        let same_id = format!("same-{n}");
        let mut same = open("held-1", &same_id).await;
        for load in [&mut load, &mut same] {
            load.next().await.unwrap();
        }
        drop((load, same));
        let (other, same) = (waited(&key).await, waited(&same_id).await);
        println!("one that wants the same waited for {same:?}, another one for {other:?}");
        // What got its place while this process looked away tells nothing.
        if other > Duration::from_millis(500) {
            assert!(2 * same < other, "{same:?} and {other:?}");
            return;
        }
    }
    panic!("all are let in");
}

/// CPU time of a process's threads of this name, in nanoseconds.
fn cpu_of(pid: u32, name: &str) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |task: PathBuf| {
        let comm = std::fs::read_to_string(task.join("comm")).ok()?;
        let spent = std::fs::read_to_string(task.join("schedstat")).ok()?;
        let is_it = comm.trim() == name;
        is_it.then(|| spent.split_whitespace().next()?.parse::<u64>().ok()).flatten()
    };
    tasks.filter_map(|task| of(task.ok()?.path())).sum()
}

/// What an origin sends is not read by the threads that answer calls, however much that is.
#[tokio::test]
async fn bytes_are_moved_where_no_call_waits_behind_them() {
    let origin = origin_at(1 << 30).await;
    let made = ("large".to_owned(), Content::synthetic(5, 64 << 20));
    origin.put(BUCKET, &made.0, made.1.clone());
    let spec = NodeSpec::of(&origin).ram("80MiB").set("chunk", "1MiB").set("log_level", "info");
    let node = spec.start().await;
    let spent = || ["forebay-bytes", "forebay-calls"].map(|name| cpu_of(node.daemon.pid(), name));
    let before = spent();
    node.loads(&s3_uri("large"), &[made]).await;
    let after = spent();
    if after == [0, 0] {
        println!("skipped: this kernel does not tell the CPU time of a thread");
        return;
    }
    // Threads that had nothing to do may be gone.
    let [bytes, calls] = [0, 1].map(|of: usize| after[of].saturating_sub(before[of]) / 1000);
    println!("{bytes} us for bytes, {calls} us for calls");
    assert!(bytes > calls, "{bytes} us for bytes, {calls} us for calls");
}

/// Two places are taken for as long as their holders like, and eighty loads come at once.
#[tokio::test]
async fn who_comes_to_a_full_queue_is_told_how_long_it_is() {
    let origin = origin_at(1 << 30).await;
    origin.put(BUCKET, "long", Content::synthetic(11, 5 << 20));
    let node = NodeSpec::of(&origin).set("max_loads", "2").set("max_queue", "8").start().await;
    let mut holders = Vec::new();
    for _ in 0..2 {
        let mut holder = RawLoad::open(&node.daemon, opening(&s3_uri("long"))).await;
        holder.hold(1).await;
        holders.push(holder);
    }
    let mut caller = Caller::new(&node, "flood", None).await;
    caller.offer(&origin, 80);
    while caller.came.refused.len() < 72 {
        assert_eq!(caller.ended(8).await, Some(false), "nobody can be served yet");
    }
    assert_eq!(caller.came.lengths, [8].into());
    assert_eq!(node.metric(DEPTH).await, Some(8.0));
    let rejected = "forebay_admission_rejected_total{reason=\"QUEUE_FULL\"}";
    assert_eq!(node.metric(rejected).await, Some(72.0));
    assert_eq!(node.metric("forebay_refusal_duration_seconds_count").await, Some(72.0));
    tell_of_loads(&node).await;
    for holder in holders {
        holder.report().await.unwrap();
    }
    while caller.ended(8).await.is_some() {}
    caller.tell();
    assert_eq!((caller.came.served.len(), caller.came.refused.len()), (8, 72));
    node.settled().await;
}

/// Ten come for each that is served. All that is served is right, nothing is done for those that
/// are refused, and when it is over the daemon is as it was before.
#[tokio::test]
async fn at_ten_times_the_load_everything_that_is_done_is_of_use() {
    const LIMIT: usize = 8;
    const SERVED: usize = 60;
    let origin = origin_at(16 << 20).await;
    let node = NodeSpec::of(&origin).set("max_loads", "2").set("max_queue", "8").start().await;
    let mut caller = Caller::new(&node, "open", None).await;
    let watch = Watch::begin(connect(&node.daemon).await);
    caller.offer(&origin, 20);
    let mut served = 0;
    while served < SERVED {
        // What a caller had refused comes back as one of those that come next.
        if caller.ended(LIMIT).await.expect("there are always more") {
            served += 1;
            caller.offer(&origin, 10);
        }
    }
    while caller.ended(LIMIT).await.is_some() {}
    watch.end();
    caller.tell();
    let Came { offered, served, refused, .. } = &caller.came;
    assert_eq!(served.len() + refused.len(), *offered);
    assert!(refused.len() >= SERVED * 4, "{} of {offered} were refused", refused.len());
    let of = |which: &BTreeSet<usize>| -> Vec<_> {
        which.iter().map(|n| origin.counts(&object("open", *n).0)).collect()
    };
    let sent: u64 = of(served).iter().map(|counts| counts.body_bytes).sum();
    // Once, but for second copies of what was late.
    let copies = "forebay_hedge_decisions_total{made=\"true\",reason=\"slow\"}";
    let copies = node.metric(copies).await.unwrap_or_default();
    let more = sent as f64 - (served.len() as u64 * BYTES) as f64;
    assert!((0.0..=copies * CHUNK as f64).contains(&more), "{more} more, in {copies} copies");
    let asked: u64 = of(refused).iter().map(|counts| counts.requests()).sum();
    assert_eq!(asked, 0, "nothing was asked for in vain");
    let rejected = "forebay_admission_rejected_total{reason=\"QUEUE_FULL\"}";
    assert_eq!(node.metric(rejected).await, Some(refused.len() as f64));
    tell_of_loads(&node).await;
    node.settled().await;
    // One at a time there is room for all.
    let mut after = Caller::new(&node, "after", None).await;
    for _ in 0..10 {
        after.offer(&origin, 1);
        assert_eq!(after.ended(LIMIT).await, Some(true));
    }
    after.tell();
    node.settled().await;
}

/// A flood at fifty times the rate of a caller that always has something to load. All of that one's
/// loads are served, and it gets its part of what is served in that time.
async fn flooded(origin: &S3Origin, node: &Node, [flood, modest]: [(&'static str, &str); 2]) {
    const LIMIT: usize = 8;
    const ROUNDS: usize = 24;
    /// In the two places of its domain, and as many behind them.
    const OUTSTANDING: usize = 4;
    let mut flood = Caller::new(node, flood.0, Some(flood.1)).await;
    let mut modest = Caller::new(node, modest.0, Some(modest.1)).await;
    flood.offer(origin, OUTSTANDING * 50);
    modest.offer(origin, OUTSTANDING);
    while modest.came.served.len() < ROUNDS {
        tokio::select! {
            ended = modest.ended(LIMIT) => {
                assert_eq!(ended, Some(true), "it asks for no more than its part");
                modest.offer(origin, 1);
                flood.offer(origin, 50);
            }
            ended = flood.ended(LIMIT) => drop(ended.expect("there are always more")),
        }
    }
    let [of_flood, of_modest] = [&flood, &modest].map(|caller| caller.came.served.len());
    flood.tell();
    modest.tell();
    // Half of it, but for places that stand empty while this process is busy with the flood: 0.40 to
    // 0.47 with twelve of these tests side by side on two cores. If each load counted for one, it
    // would be a fiftieth.
    assert!(3 * of_modest >= of_flood + of_modest, "{of_modest} beside {of_flood}");
    assert!(of_flood > 0, "what is left over is not left idle");
    assert!(flood.came.refused.len() >= 10 * ROUNDS, "{}", flood.came.refused.len());
    for caller in [&mut flood, &mut modest] {
        while caller.ended(LIMIT).await.is_some() {}
    }
    assert!(modest.came.refused.is_empty());
    node.settled().await;
}

#[tokio::test]
async fn a_domain_at_fifty_times_the_load_leaves_the_other_its_share() {
    let origin = origin_at(8 << 20).await;
    let (_dir, path) = configured(&(block("blue", BLUE, "") + &block("red", RED, "")));
    let spec = NodeSpec::of(&origin).ram("8MiB").config(&path).set("connections", "4");
    let node = spec.set("max_loads", "4").set("max_queue", "16").start().await;
    flooded(&origin, &node, [("flood", BLUE), ("modest", RED)]).await;
}

/// The child's side: loads one object after the other, as whoever it is.
#[tokio::test]
async fn a_child_that_loads_in_turn() {
    let names = ["FOREBAY_E2E_SOCKET", "FOREBAY_E2E_LOADS"];
    let [Some(socket), Some(loads)] = names.map(std::env::var_os) else {
        println!("skipped: another test starts this one as a process of its own");
        return;
    };
    let client = Client::connect(Endpoint::unix(socket.as_ref()).unwrap()).await.unwrap();
    for n in 0..loads.to_str().unwrap().parse().unwrap() {
        let request = LoadRequest::new(s3_uri(&object("child", n).0));
        let loaded = digests(&client, request).await;
        match loaded {
            Ok((mapped, _)) => assert_eq!(mapped, expected_digests(&[object("child", n)])),
            Err(error) => println!("\nrefused {n}: {error}"),
        }
    }
    println!("\nserved all");
}

/// Two uids of one domain: the queue that the flood makes is not that of somebody else.
#[tokio::test]
async fn a_uid_that_floods_the_queue_has_nobody_else_refused() {
    const LIMIT: usize = 64;
    const LOADS: usize = 20;
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can run a child as somebody else");
        return;
    }
    let origin = origin_at(4 << 20).await;
    (0..LOADS).map(|n| object("child", n)).for_each(|(key, of)| origin.put(BUCKET, &key, of));
    let (_dir, path) = configured("allow_uids = [0, 65534]\n");
    let spec = NodeSpec::of(&origin).config(&path).set("max_loads", "2").set("max_queue", "64");
    let node = spec.start().await;
    open_to_all(&node);
    let mut flood = Caller::new(&node, "flood", None).await;
    flood.offer(&origin, 100);
    // So many have started while others waited that it is known how long that takes.
    while flood.came.served.len() < 10 {
        flood.ended(LIMIT).await.expect("there are more");
        flood.offer(&origin, 1);
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "overload::a_child_that_loads_in_turn", "--nocapture"])
        .env("FOREBAY_E2E_SOCKET", node.daemon.socket())
        .env("FOREBAY_E2E_LOADS", LOADS.to_string())
        .uid(65_534)
        .gid(65_534)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut waiting = JoinSet::new();
    waiting.spawn_blocking(move || child.wait_with_output().unwrap());
    let output = loop {
        tokio::select! {
            output = waiting.join_next() => break output.unwrap().unwrap(),
            ended = flood.ended(LIMIT) => drop(ended.expect("there are always more")),
        }
        flood.offer(&origin, 1);
    };
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains("served all"), "{said}");
    assert!(!said.contains("refused"), "{said}");
    while flood.ended(LIMIT).await.is_some() {}
    flood.tell();
    assert!(flood.came.refused.len() > LOADS, "{}", flood.came.refused.len());
    node.settled().await;
}

/// What a load is told that was not taken: its reason, and how long it would have waited.
async fn refusal(node: &Node, open: pb::LoadOpen, timeout: &str) -> Failure {
    match RawLoad::open_with(&node.daemon, open, |stream| within(stream, timeout)).await {
        Ok(load) => load.failure().await,
        Err(status) => Failure::from_status(&status),
    }
}

/// A node whose places are all held, and that knows how fast loads start; one load waits.
struct Held {
    node: Node,
    caller: Caller,
    /// Each keeps a place until it is dropped: what it asks for is never answered.
    holders: Vec<RawLoad>,
    /// What has waited for longer than the one, and since when.
    early: Option<(RawLoad, Instant)>,
}

/// Waits until so many loads wait.
async fn waiting(node: &Node, depth: usize) {
    let is_so = async || (node.metric(DEPTH).await == Some(depth as f64)).then_some(());
    until("so many loads wait", is_so).await;
}

impl Held {
    async fn start(origin: &S3Origin, places: usize, early: Option<&str>) -> Self {
        const LOADS: usize = 10;
        origin.fault(FaultRule::new("held-*", Fault::StallBeforeHeaders).on_any());
        let spec = NodeSpec::of(origin).set("max_loads", &places.to_string());
        let node = spec.set("max_queue", "64").start().await;
        let open = async |key: &str| RawLoad::open(&node.daemon, opening(&s3_uri(key))).await;
        let mut first = Vec::new();
        for n in 0..places {
            let key = format!("held-{n}");
            first.push(open(&key).await);
            let is_asked = async || (origin.counts(&key).requests() > 0).then_some(());
            until("it has a place", is_asked).await;
        }
        let mut caller = Caller::new(&node, "between", None).await;
        caller.offer(origin, LOADS);
        waiting(&node, LOADS).await;
        let mut holders = Vec::new();
        for _ in 0..places {
            holders.push(open("held-again").await);
            waiting(&node, LOADS + holders.len()).await;
        }
        let early = match early {
            Some(timeout) => {
                let request = |stream| within(stream, timeout);
                let open = RawLoad::open_with(&node.daemon, opening(&s3_uri("early")), request);
                Some((open.await.unwrap(), Instant::now()))
            }
            None => None,
        };
        let ahead = LOADS + places + usize::from(early.is_some());
        waiting(&node, ahead).await;
        // While this one waits, it stays known how fast they start.
        caller.offer(origin, 1);
        waiting(&node, ahead + 1).await;
        drop(first);
        for _ in 0..LOADS {
            assert_eq!(caller.ended(64).await, Some(true));
        }
        waiting(&node, ahead - LOADS - places + 1).await;
        Self { node, caller, holders, early }
    }
}

/// Two ranks of a load come to a queue that is too slow for the first, which has little time.
#[tokio::test]
async fn all_ranks_of_a_load_are_told_what_the_first_is() {
    let origin = origin_at(1 << 20).await;
    let held = Held::start(&origin, 2, None).await;
    let node = &held.node;
    // Two run, and one is over every 0.2 s: behind another one, a load would wait for 0.4 s.
    let part = |rank| pb::LoadOpen {
        shard: Some(pb::Shard { rank, ranks: 2, rules: Vec::new() }),
        ..opening(&s3_uri("parts"))
    };
    let told = refusal(node, part(0), "1S").await;
    assert_eq!(told.reason, Reason::QueueFull, "{told}");
    // This one could wait.
    let too = refusal(node, part(1), "600S").await;
    let wait = |told: &Failure| told.facts["wait_seconds"].clone();
    assert_eq!((too.reason, wait(&too)), (told.reason, wait(&told)), "{too}");
    // Who comes again comes with all others, and now all are taken.
    let mut taken = Vec::new();
    for (rank, timeout) in [(0, "600S"), (1, "60S")] {
        let open = RawLoad::open_with(&node.daemon, part(rank), |stream| within(stream, timeout));
        taken.push(open.await.unwrap());
        waiting(node, 1 + taken.len()).await;
    }
}

/// What has waited until it could not end in time is not begun in the place of one that can.
#[tokio::test]
async fn who_waited_for_too_long_makes_way() {
    let origin = origin_at(640 << 10).await;
    // Eight run, and one is over every 0.2 s: each takes 1.8 s.
    let mut held = Held::start(&origin, 8, Some("24S")).await;
    let (told, since) = held.early.take().unwrap();
    tokio::time::sleep_until(since + Duration::from_secs(23)).await;
    drop(held.holders.remove(0));
    let told = told.failure().await;
    assert_eq!(told.reason, Reason::QueueFull, "{told}");
    assert_eq!(held.caller.ended(64).await, Some(true));
}
