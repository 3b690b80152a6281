//! Places: on this machine, whatever its nodes are, and in a guest that has three, with and without
//! memory.
//!
//! `.ci/numa-guest` boots it under software emulation; the guest runs `guest/init`, which tells
//! what it finds in lines of its console. Where qemu, the kernel or another tool is missing, the
//! test prints which and is skipped.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use forebay_client::{LoadRequest, Placement};
use forebay_testkit::{Content, sha256, temp_dir, write_content};
use serde_json::Value;

use crate::binaries::{forebay, forebayd};
use crate::harness::{BUCKET, NodeSpec, digests, s3, s3_uri};

const INIT: &str = include_str!("guest/init");
/// A slot of the guest's daemons.
const CHUNK: u64 = 256 << 10;

/// What exit code 77 of the script means.
const SKIPPED: i32 = 77;

/// What the guest told, by name.
struct Told(BTreeMap<String, Vec<String>>);

impl Told {
    fn parse(console: &str) -> Self {
        let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let lines = console.lines().filter_map(|line| line.trim_end().split_once("@@"));
        for (name, text) in lines.filter_map(|(_, line)| line.split_once(' ')) {
            told.entry(name.to_owned()).or_default().push(text.to_owned());
        }
        Self(told)
    }

    #[track_caller]
    fn all(&self, name: &str) -> &[String] {
        self.0.get(name).unwrap_or_else(|| panic!("the guest did not tell {name}: {:?}", self.0))
    }

    #[track_caller]
    fn json(&self, name: &str) -> Value {
        let text = &self.all(name)[0];
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{name}: {error}: {text}"))
    }
}

fn data(seed: u64) -> [(&'static str, Content); 2] {
    [
        ("a.bin", Content::synthetic(seed, 5 * CHUNK)),
        ("b.bin", Content::synthetic(seed + 1, 3 * CHUNK)),
    ]
}

/// Runs the guest; none, and a line that says why, if it cannot be had.
fn boot() -> Option<Told> {
    let root = temp_dir();
    let put = |from: &Path, to: &str| {
        let to = root.path().join(to);
        std::fs::create_dir_all(to.parent().expect("a path in a folder")).expect("a folder");
        std::fs::copy(from, to).expect("a copy");
    };
    put(forebayd(), "bin/forebayd");
    put(forebay(), "bin/forebay");
    let init = root.path().join("init");
    std::fs::write(&init, INIT).expect("a file");
    std::fs::set_permissions(&init, PermissionsExt::from_mode(0o755)).expect("a mode");
    for (folder, seed) in [("data", 1), ("gpu", 10)] {
        for (name, content) in data(seed) {
            write_content(&root.path().join(folder).join(name), &content).expect("a file");
        }
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/numa-guest");
    let run = Command::new(script).arg("boot").arg(root.path()).output().expect("bash runs");
    let console = String::from_utf8_lossy(&run.stdout);
    if run.status.code() == Some(SKIPPED) {
        println!("{}", console.trim());
        return None;
    }
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{}: {errors}\n{console}", run.status);
    let told = Told::parse(&console);
    assert!(!told.0.contains_key("failed"), "{:?}", told.0["failed"]);
    Some(told)
}

#[track_caller]
fn placed(report: &Value, node: Option<u64>, near: u64, far: u64) -> String {
    let placement = &report["placement"];
    assert_eq!(placement["node"].as_u64(), node, "{report}");
    assert_eq!(placement["near_bytes"].as_u64(), Some(near), "{report}");
    assert_eq!(placement["far_bytes"].as_u64(), Some(far), "{report}");
    placement["degraded"].as_str().unwrap_or_default().to_owned()
}

#[track_caller]
fn digests_are_right(report: &Value, seed: u64) {
    let expected: Vec<(String, String)> =
        data(seed).iter().map(|(name, content)| ((*name).to_owned(), sha256(content))).collect();
    let found = report["digests"].as_array().expect("digests").iter().map(|digest| {
        let text = |field: &str| digest[field].as_str().expect("a text").to_owned();
        (text("key"), text("sha256"))
    });
    assert_eq!(found.collect::<Vec<_>>(), expected);
}

fn node(status: &Value, node: usize) -> &Value {
    let found = &status["numa"]["nodes"][node];
    assert_eq!(found["node"], node, "{status}");
    found
}

/// Bytes come whatever is asked for, and every one of them is accounted for.
#[tokio::test]
async fn a_place_is_never_a_reason_to_fail() {
    let origin = s3().await;
    let object = Content::synthetic(3, 5 * CHUNK + 1);
    origin.put(BUCKET, "weights", object.clone());
    let node = NodeSpec::of(&origin).start().await;
    let status = node.client.status().await.expect("a status");
    let nodes = &status.numa.nodes;
    let slots: u64 = nodes.iter().map(|node| node.slots * status.ram.chunk_bytes).sum();
    assert_eq!(slots, status.ram.populated_bytes, "every slot is on a node: {status:?}");
    let own = nodes.iter().find(|node| node.slots > 0).expect("a node with slots").node;
    let gpu = Placement::Gpu("fffedcba:ff:1f.7".parse().expect("an address"));
    for (placement, is_there) in
        [(Placement::Node(own), true), (Placement::Node(60_000), false), (gpu, false)]
    {
        let request = LoadRequest::new(s3_uri("weights")).placement(placement);
        let (found, report) = digests(&node.client, request).await.expect("a load");
        assert_eq!(found.values().next(), Some(&sha256(&object)));
        let told = report.placement.expect("a placement was asked for");
        assert_eq!((told.node == Some(own), told.degraded.is_none()), (is_there, is_there));
        let counted = told.near_bytes + told.far_bytes;
        assert_eq!(counted, if placement == gpu { 0 } else { report.bytes }, "{told:?}");
        if nodes.len() == 1 && is_there {
            assert_eq!(told.far_bytes, 0);
        }
    }
    let without = digests(&node.client, LoadRequest::new(s3_uri("weights"))).await;
    assert_eq!(without.expect("a load").1.placement, None);
    let unplaced = node.metric("forebay_numa_unplaced_total{reason=\"no_node\"}").await;
    assert_eq!(unplaced, Some(2.0));
    node.settled().await;
}

#[test]
fn slots_and_workers_are_on_the_node_that_a_load_names() {
    let Some(told) = boot() else { return };

    let load = told.json("load");
    assert_eq!(placed(&load, Some(1), 8 * CHUNK, 0), "");
    digests_are_right(&load, 1);
    let status = told.json("status");
    let (zero, one, two) = (node(&status, 0), node(&status, 1), node(&status, 2));
    assert_eq!((&zero["cached_bytes"], &one["cached_bytes"]), (&0.into(), &(8 * CHUNK).into()));
    assert_eq!((&zero["strayed_slots"], &one["strayed_slots"]), (&0.into(), &0.into()));
    let slots = |node: &Value| node["slots"].as_u64().expect("a number");
    assert_eq!((slots(zero) + slots(one), slots(two)), (64, 0), "{status}");
    assert!(slots(one) >= 16 && slots(zero) > slots(one), "by memory: {status}");
    assert_eq!(two["memory_bytes"], Value::Null);

    workers_run_on_their_nodes(&told, &status);
    the_kernel_has_the_pages_there(&told, slots(one));

    let gpu = told.json("gpu");
    assert_eq!(placed(&gpu, Some(1), 8 * CHUNK, 0), "");
    assert_eq!(gpu["placement"]["asked"], "gpu 0000:81:01.0");
    digests_are_right(&gpu, 10);
    what_cannot_be_had_is_said(&told);
    a_full_node_overflows(&told, slots(one));
    a_cpu_that_leaves_takes_nothing_with_it(&told);
    a_daemon_kept_off_a_node_works_from_elsewhere(&told);
}

/// Threads are pinned, and the digests of the chunks were taken on node 1.
fn workers_run_on_their_nodes(told: &Told, status: &Value) {
    for (id, cpu) in [(0, "0"), (1, "1"), (2, "2")] {
        let node = node(status, id);
        assert_eq!((&node["cpus"], &node["workers"]), (&cpu.into(), &1.into()), "{status}");
        assert_eq!((&node["pinned_workers"], &node["offnode_jobs"]), (&1.into(), &0.into()));
        let thread = format!("forebay-n{id}-0 {cpu}");
        assert!(told.all("thread").contains(&thread), "{thread}: {:?}", told.all("thread"));
    }
    assert_eq!(node(status, 1)["worker_jobs"], 8, "one for each chunk: {status}");
    assert_eq!(
        (&node(status, 0)["worker_jobs"], &node(status, 2)["worker_jobs"]),
        (&0.into(), &0.into())
    );
}

/// Not as the daemon says, but as the kernel does: every page of the slots of node 1.
fn the_kernel_has_the_pages_there(told: &Told, slots: u64) {
    let maps = told.all("map").iter().filter(|map| map.contains(" prefer:1 "));
    let mut pages = 0;
    for map in maps {
        let on = |node: &str| {
            let word = map.split(' ').find_map(|word| word.strip_prefix(node));
            word.map_or(0, |pages| pages.parse::<u64>().expect("a number"))
        };
        assert_eq!((on("N0="), on("N2=")), (0, 0), "{map}");
        pages += on("N1=");
    }
    assert!(pages >= slots * CHUNK / 4096, "{pages}: {:?}", told.all("map"));
}

fn what_cannot_be_had_is_said(told: &Told) {
    // Node 1 is nearer to node 2 than node 0; what is cached lies there.
    let why = placed(&told.json("memoryless"), Some(1), 0, 8 * CHUNK);
    assert!(why.contains("node 2 has no slots"), "{why}");
    let why = placed(&told.json("unknown"), None, 0, 0);
    assert!(why.contains("firmware"), "{why}");
    let why = placed(&told.json("missing"), None, 0, 8 * CHUNK);
    assert!(why.contains("no node 7"), "{why}");
    let status = told.json("status");
    let degraded = status["degraded"].to_string();
    assert!(degraded.contains("numa: node 2: it has no memory"), "{degraded}");
}

/// 30 chunks near a node with fewer slots: what was idle there made room, the rest lies elsewhere.
fn a_full_node_overflows(told: &Told, slots: u64) {
    let prefetch = told.json("prefetch");
    let (near, far) = (slots * CHUNK, (30 - slots) * CHUNK);
    assert_eq!(placed(&prefetch, Some(1), near, far), "");
    let status = told.json("full");
    assert_eq!(status["numa"]["misplaced_slots"], 30 - slots, "{status}");
    let metrics = &told.all("metrics")[0];
    for line in [
        format!("forebay_numa_misplaced_slots_total {}", 30 - slots),
        format!("forebay_numa_local_bytes_total{{stage=\"handoff\"}} {}", 16 * CHUNK + near),
        "forebay_numa_unplaced_total{reason=\"no_slots_there\"} 1".to_owned(),
        "forebay_numa_unplaced_total{reason=\"no_node\"} 2".to_owned(),
        format!("forebay_numa_slot_bytes{{node=\"1\",state=\"cached\"}} {near}"),
        "forebay_worker_offnode_total{node=\"1\"} 0".to_owned(),
    ] {
        assert!(metrics.split(';').any(|metric| metric == line), "{line}: {metrics}");
    }
    assert!(metrics.contains("forebay_runtime_lag_seconds_count"), "{metrics}");
}

/// The kernel moves workers from a CPU that is unplugged to others; what they do there is counted.
fn a_cpu_that_leaves_takes_nothing_with_it(told: &Told) {
    let load = told.json("unplugged");
    assert_eq!(placed(&load, Some(1), 8 * CHUNK, 0), "");
    digests_are_right(&load, 1);
    let status = told.json("unplugged_status");
    assert_eq!(node(&status, 1)["offnode_jobs"], 8, "{status}");
    assert_eq!(told.all("ended"), ["0"]);
}

/// It may run on CPU 0 only: memory is where it was asked for, work on it is not, and that is
/// counted.
fn a_daemon_kept_off_a_node_works_from_elsewhere(told: &Told) {
    let load = told.json("confined");
    assert_eq!(placed(&load, Some(1), 8 * CHUNK, 0), "");
    digests_are_right(&load, 1);
    let status = told.json("confined_status");
    let zero = node(&status, 0);
    assert_eq!((&zero["worker_jobs"], &zero["offnode_jobs"]), (&8.into(), &8.into()), "{status}");
    assert_eq!(node(&status, 1)["workers"], 0);
    let degraded = status["degraded"].to_string();
    assert!(degraded.contains("numa: node 1: this process may not run on its CPUs"), "{degraded}");
}
