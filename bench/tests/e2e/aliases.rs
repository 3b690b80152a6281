//! Names of revisions as an operator uses them: set, load by name, roll back without a request, and
//! what restarts, kills, damage, bad revisions and rules do to them.

use forebay_client::model::{Alias, AliasReport};
use forebay_client::{
    Client, ClientError, EvictRequest, LoadRequest, PrefetchRequest, Reason, RollbackRule,
};
use forebay_origin::Checksums;
use forebay_testkit::{Checkpoint, CheckpointSpec, Content, Fault, FaultRule, S3Origin};

use crate::command::{object, run, text};
use crate::harness::{
    BUCKET, CHUNK, Node, NodeSpec, assert_ends, digests, expected_digests, failure, files, read,
    s3, s3_uri, until,
};
use crate::nvme::prefetch;
use crate::nvme_files::{extents, flip};

const BYTES: u64 = 700 << 10;

fn made(seed: u64) -> Checkpoint {
    forebay_testkit::checkpoint(CheckpointSpec::new(seed, BYTES).shards(2))
}

fn spec(origin: &S3Origin) -> NodeSpec {
    NodeSpec::of(origin).nvme("64MiB")
}

pub(crate) async fn set(
    client: &Client,
    name: &str,
    uri: &str,
) -> Result<AliasReport, ClientError> {
    set_with(client, name, uri, None).await
}

async fn set_with(
    client: &Client,
    name: &str,
    uri: &str,
    rule: Option<&str>,
) -> Result<AliasReport, ClientError> {
    let rule = rule.map(|rule| RollbackRule::parse(rule).unwrap());
    let mut events = client.set_alias(name, uri, rule.as_ref()).await?;
    loop {
        if let Some(report) = events.next().await?.expect("a report comes last").into_report() {
            return Ok(report);
        }
    }
}

async fn alias(node: &Node, name: &str) -> Alias {
    node.client.aliases(Some(name)).await.unwrap().remove(0)
}

/// An origin with two checkpoints, and a daemon with a name that stood for the first and stands for
/// the second.
struct Switched {
    origin: S3Origin,
    node: Node,
    one: Vec<(String, Content)>,
    two: Vec<(String, Content)>,
}

impl Switched {
    async fn new() -> Self {
        let origin = s3().await;
        let (one, two) = (made(1), made(2));
        origin.put_checkpoint(BUCKET, "v1/", &one);
        origin.put_checkpoint(BUCKET, "v2/", &two);
        let node = spec(&origin).start().await;
        for uri in ["v1/", "v2/"] {
            let report = set(&node.client, "prod", &s3_uri(uri)).await.unwrap();
            assert!(report.switched);
            assert_eq!(report.checked_bytes, report.alias.current.bytes);
        }
        Self { origin, node, one: files(&one), two: files(&two) }
    }

    /// Loads by name, from what is stored here, and asks the origin for nothing.
    async fn loads(&self, node: &Node, expected: &[(String, Content)]) {
        node.client.evict(EvictRequest::new(s3_uri(""))).await.unwrap();
        let before = self.origin.total().requests();
        let report = node.loads("prod", expected).await;
        assert_eq!((report.alias.as_str(), report.origin_bytes), ("prod", 0));
        assert_eq!(report.bytes_by_tier.nvme, report.bytes);
        assert_eq!(self.origin.total().requests(), before, "the origin is asked for nothing");
    }
}

#[tokio::test]
async fn a_rollback_asks_no_origin_and_leaves_loads_that_run_what_they_have() {
    let switched = Switched::new().await;
    let Switched { origin, node, one, two } = &switched;
    switched.loads(node, two).await;
    let mut running = node.client.load(LoadRequest::new("prod").load_id("running")).await.unwrap();
    let status = node.client.status().await.unwrap();
    assert_eq!(status.loads[0].alias, "prod");
    assert_eq!(status.aliases[0].current.uri, s3_uri("v2/"));

    let before = origin.total().requests();
    let began = tokio::time::Instant::now();
    let rolled = node.client.rollback("prod").await.unwrap();
    println!("a rollback took {:?}, {:?} of it in the daemon", began.elapsed(), rolled.wall);
    assert_eq!(origin.total().requests(), before, "a rollback makes no request");
    assert_eq!(rolled.alias.current.uri, s3_uri("v1/"));
    assert_eq!(rolled.alias.current.missing_bytes(), 0);
    assert_eq!(rolled.alias.previous.as_ref().unwrap().uri, s3_uri("v2/"));

    assert_eq!(read(&mut running).await.unwrap(), expected_digests(two));
    running.finish().await.unwrap();
    switched.loads(node, one).await;
    node.client.rollback("prod").await.unwrap();
    switched.loads(node, two).await;
    let kinds: Vec<_> =
        alias(node, "prod").await.history.into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds, ["set", "set", "rollback", "rollback"]);
    assert_eq!(node.metric("forebay_alias_switches_total{by=\"rollback\"}").await, Some(2.0));
    assert_eq!(node.metric("forebay_aliases{rule=\"none\"}").await, Some(1.0));
    let explained = node.client.explain(Some("prod")).await.unwrap();
    assert_eq!(explained.uri, s3_uri("v2/"));
}

#[tokio::test]
async fn what_was_replaced_in_its_place_is_still_there_by_name() {
    let origin = s3().await;
    let (old, new) = (made(3), made(4));
    origin.put_checkpoint(BUCKET, "m/", &old);
    let node = spec(&origin).start().await;
    set(&node.client, "prod", &s3_uri("m/")).await.unwrap();
    set(&node.client, "canary", "prod").await.unwrap();
    origin.put_checkpoint(BUCKET, "m/", &new);
    node.loads(&s3_uri("m/"), &files(&new)).await;
    node.loads("prod", &files(&old)).await;
    assert!(!set(&node.client, "canary", "prod").await.unwrap().switched, "by name: as it is");
    assert!(set(&node.client, "prod", &s3_uri("m/")).await.unwrap().switched);
    assert!(!set(&node.client, "prod", &s3_uri("m/")).await.unwrap().switched);
    node.loads("prod", &files(&new)).await;
    for key in old.files().iter().map(|(key, _)| format!("m/{key}")) {
        origin.remove(BUCKET, &key);
    }
    let before = origin.total().requests();
    node.client.rollback("prod").await.unwrap();
    node.loads("prod", &files(&old)).await;
    node.loads("canary", &files(&old)).await;
    let stat = node.client.stat("prod").await.unwrap();
    assert_eq!(stat.summary.revision, alias(&node, "prod").await.current.revision);
    prefetch(&node.client, PrefetchRequest::new("prod")).await.unwrap();
    assert_eq!(origin.total().requests(), before);
}

#[tokio::test]
async fn names_pins_and_history_survive_a_stop_and_a_kill() {
    let switched = Switched::new().await;
    let mut before = alias(&switched.node, "prod").await;
    let Switched { mut origin, node, mut one, mut two } = switched;
    let mut dir = node.stopped().await;
    for kill in [false, true] {
        let node = spec(&origin).dir(dir).start().await;
        let switched = Switched { origin, node, one, two };
        let node = &switched.node;
        let requests = switched.origin.total().requests();
        // Also before everything that is stored is known again.
        node.client.evict(EvictRequest::new(s3_uri(""))).await.unwrap();
        let now = alias(node, "prod").await;
        assert_eq!((&now.history, &now.previous), (&before.history, &before.previous));
        assert_eq!(switched.origin.total().requests(), requests, "nothing is asked at the start");
        let listed = node.client.list(Some("prod")).await.unwrap();
        assert!(listed.iter().all(|one| one.pinned && one.cached.nvme == one.bytes), "{listed:?}");
        switched.loads(node, &switched.two).await;
        node.client.rollback("prod").await.unwrap();
        switched.loads(node, &switched.one).await;
        node.client.rollback("prod").await.unwrap();
        let Switched { origin: o, node, one: a, two: b } = switched;
        (origin, one, two) = (o, a, b);
        dir = if kill { node.daemon.kill().unwrap() } else { node.stopped().await };
        let node = spec(&origin).dir(dir).start().await;
        assert_eq!(alias(&node, "prod").await.history.len(), before.history.len() + 2);
        assert_eq!(node.client.remove_alias("prod").await.unwrap(), 2);
        let error = node.client.rollback("prod").await.unwrap_err();
        assert_ends(&error, Reason::AliasUnknown, 3);
        for uri in ["v1/", "v2/"] {
            set(&node.client, "prod", &s3_uri(uri)).await.unwrap();
        }
        before = alias(&node, "prod").await;
        dir = node.stopped().await;
    }
}

/// Whatever is wrong with the new one: the error says so, and the name is as it was.
#[tokio::test]
async fn a_bad_revision_leaves_the_old_one() {
    let switched = Switched::new().await;
    let Switched { origin, node, two, .. } = &switched;
    let before = alias(node, "prod").await;
    let big = Content::synthetic(9, 9 * CHUNK);
    for key in ["wrong/blob", "gone/blob", "changed/blob", "short/blob"] {
        origin.put(BUCKET, key, big.clone());
    }
    let md5 = Some([7; 16]);
    origin.contents().claim(BUCKET, "wrong/blob", Checksums { md5, ..Default::default() });
    origin.fault(FaultRule::new("gone/blob", Fault::RemoveObject).nth(5));
    let other = Content::synthetic(10, 9 * CHUNK);
    origin.fault(FaultRule::new("changed/blob", Fault::ReplaceObject(other)).nth(5));
    origin.fault(FaultRule::new("short/blob", Fault::TruncateTo(1000)));
    origin.put(BUCKET, "huge/blob", Content::synthetic(11, 65 << 20));
    for (key, reason, exit_code) in [
        ("nothing/", Reason::ObjectNotFound, 3),
        ("wrong/", Reason::DigestMismatch, 6),
        ("gone/", Reason::ObjectNotFound, 3),
        ("changed/", Reason::RevisionChanged, 9),
        ("huge/", Reason::NvmeExhausted, 5),
    ] {
        let error = set(&node.client, "prod", &s3_uri(key)).await.unwrap_err();
        assert_ends(&error, reason, exit_code);
        let now = alias(node, "prod").await;
        assert_eq!((&now.current, &now.history), (&before.current, &before.history), "{key}");
        assert_eq!(now.setting, None, "{key}");
        let listed = node.client.list(Some(&s3_uri(key))).await.unwrap();
        assert!(listed.iter().all(|one| !one.pinned), "{key}: {listed:?}");
    }
    set(&node.client, "prod", &s3_uri("short/")).await.unwrap_err();
    node.settled().await;
    switched.loads(node, two).await;
}

#[tokio::test]
async fn two_that_set_one_name_do_not_meet() {
    let switched = Switched::new().await;
    let Switched { origin, node, two, .. } = &switched;
    origin.put(BUCKET, "slow/blob", Content::synthetic(12, 3 * CHUNK));
    let stalled = origin.fault(FaultRule::new("slow/blob", Fault::StallAfter(1000)));
    let slow = node.client.set_alias("prod", s3_uri("slow/"), None).await.unwrap();
    until("it has begun", async || (stalled.hits() > 0).then_some(())).await;
    let error = set(&node.client, "prod", &s3_uri("v1/")).await.unwrap_err();
    assert_ends(&error, Reason::AliasBusy, 9);
    assert_eq!(alias(node, "prod").await.setting, Some(s3_uri("slow/")));
    set(&node.client, "other", &s3_uri("v1/")).await.unwrap();
    // Somebody may need the old one now.
    node.client.rollback("prod").await.unwrap();
    // One whose client leaves switches nothing, and is in nobody's way.
    drop(slow);
    until("the name is free", async || alias(node, "prod").await.setting.is_none().then_some(()))
        .await;
    assert_eq!(alias(node, "prod").await.current.uri, s3_uri("v1/"));
    node.client.rollback("prod").await.unwrap();
    node.settled().await;
    switched.loads(node, two).await;
}

#[tokio::test]
async fn missing_bytes_come_in_their_version_or_not_at_all() {
    let switched = Switched::new().await;
    let Switched { origin, node, one, two } = switched;
    let dir = node.daemon.kill().unwrap();
    let flip_all = |dir: &std::path::Path| {
        extents(dir).iter().for_each(|extent| flip(&extent.path, 8 * (4096 + 100)));
    };
    flip_all(dir.path());
    let node = spec(&origin).dir(dir).start().await;
    let report = node.loads("prod", &two).await;
    assert_eq!(report.bytes_by_tier.origin, report.bytes, "{report:?}");
    origin.put_checkpoint(BUCKET, "v1/", &made(5));
    node.client.rollback("prod").await.unwrap();
    let error = failure(&node.client, LoadRequest::new("prod")).await;
    assert_ends(&error, Reason::RevisionChanged, 9);
    assert!(error.to_string().contains("the alias prod stands for"), "{error}");
    node.client.rollback("prod").await.unwrap();
    until("it is stored anew", async || {
        (alias(&node, "prod").await.current.missing_bytes() == 0).then_some(())
    })
    .await;
    node.loads("prod", &two).await;
    drop(one);
}

#[tokio::test]
async fn a_rule_rolls_back_once_and_says_so() {
    let switched = Switched::new().await;
    let Switched { node, one, two, .. } = &switched;
    let rule = "load_failure_ratio > 0.5 over 10m min 3";
    let report = set_with(&node.client, "prod", &s3_uri("v2/"), Some(rule)).await.unwrap();
    assert!(!report.switched);
    assert_eq!(report.alias.rule.unwrap().state, "armed");
    assert_eq!(node.metric("forebay_aliases{rule=\"armed\"}").await, Some(1.0));
    let bad = || LoadRequest::new("prod").tensors(["no.such.tensor"]);
    for _ in 0..2 {
        assert_ends(&failure(&node.client, bad()).await, Reason::UnknownTensor, 2);
    }
    let waiting = alias(node, "prod").await;
    let measured = waiting.rule.as_ref().map(|rule| (rule.loads, rule.value));
    assert_eq!((measured, &*waiting.current.uri), (Some((2, Some(1.0))), &*s3_uri("v2/")));
    failure(&node.client, bad()).await;
    let acted = until("the rule acts", async || {
        let alias = alias(node, "prod").await;
        (alias.current.uri == s3_uri("v1/")).then_some(alias)
    })
    .await;
    assert_eq!(acted.rule.as_ref().unwrap().state, "acted");
    let last = acted.history.last().unwrap();
    assert_eq!(last.kind, "rule");
    assert!(last.why.as_ref().unwrap().contains("was 1.000 over 3 loads"), "{last:?}");
    let is_told = async || node.daemon.log().contains("a rule rolled an alias back").then_some(());
    until("it is in the log", is_told).await;
    switched.loads(node, one).await;
    // A person goes forward; the rule has had its turn, also over a restart.
    node.client.rollback("prod").await.unwrap();
    for _ in 0..6 {
        failure(&node.client, bad()).await;
    }
    switched.loads(node, two).await;
    assert_eq!(node.metric("forebay_alias_switches_total{by=\"rule\"}").await, Some(1.0));
    let Switched { origin, node, .. } = switched;
    let node = spec(&origin).dir(node.stopped().await).start().await;
    let again = alias(&node, "prod").await;
    assert_eq!(again.rule.unwrap().state, "acted");
    assert_eq!(again.history.iter().filter(|event| event.kind == "rule").count(), 1);
}

/// Kills the daemon at one point after the other while it switches.
#[tokio::test]
async fn a_kill_while_it_is_set_leaves_the_old_one_or_the_new_one() {
    let Switched { origin, node, one, two } = Switched::new().await;
    let mut dir = node.daemon.kill().unwrap();
    let mut current = 2;
    for steps in 0..10 {
        let node = spec(&origin).dir(dir).start().await;
        let other = s3_uri(if current == 2 { "v1/" } else { "v2/" });
        let mut setting = node.client.set_alias("prod", &other, None).await.unwrap();
        let mut left = steps;
        while left > 0 && matches!(setting.next().await, Ok(Some(_))) {
            left -= 1;
        }
        dir = node.daemon.kill().unwrap();
        let node = spec(&origin).dir(dir).start().await;
        let now = alias(&node, "prod").await;
        assert!([s3_uri("v1/"), s3_uri("v2/")].contains(&now.current.uri), "{now:?}");
        assert_ne!(now.current.uri, now.previous.as_ref().unwrap().uri);
        current = if now.current.uri == s3_uri("v2/") { 2 } else { 1 };
        node.loads("prod", if current == 2 { &two } else { &one }).await;
        dir = node.daemon.kill().unwrap();
    }
}

#[tokio::test]
async fn the_command_says_what_a_name_stands_for() {
    let switched = Switched::new().await;
    let node = &switched.node;
    let json = |args: &[&str]| object(&run(node, &[&["--format", "json"], args].concat()));
    let listed = json(&["alias", "ls"]);
    assert_eq!(listed["aliases"][0]["uri"], s3_uri("v2/"));
    assert_eq!(listed["aliases"][0]["previous"]["uri"], s3_uri("v1/"));
    assert_eq!(listed["aliases"][0]["history"][1]["kind"], "set");
    let rolled = json(&["rollback", "prod"]);
    assert_eq!(
        (&rolled["uri"], &rolled["current"]["missing_bytes"]),
        (&s3_uri("v1/").into(), &0.into())
    );
    assert!(rolled["wall_seconds"].is_number(), "{rolled}");
    let report = json(&["load", "prod", "--digest"]);
    assert_eq!((&report["alias"], &report["uri"]), (&"prod".into(), &s3_uri("v1/").into()));
    assert_eq!(json(&["stat", "prod"])["revision"], rolled["revision"]);
    assert_eq!(json(&["status"])["aliases"][0]["name"], "prod");
    let verified = run(node, &["verify", "prod"]);
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    for (args, shown) in [
        (
            &["alias", "set", "prod", &s3_uri("v2/"), "--rollback-if", "data_losses > 0 over 1h"][..],
            "rolls back if data_losses > 0 over 3600s min 1 (armed)",
        ),
        (&["alias", "ls"], "armed"),
        (&["alias", "ls", "prod"], "rollback"),
        (&["rollback", "prod"], "prod is again"),
        (&["alias", "ls", "prod"], "off"),
        (&["status"], "ALIAS"),
        (&["alias", "rm", "prod"], "2 revisions may be evicted"),
    ] {
        let output = run(node, args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        assert!(text(&output.stdout).contains(shown), "{args:?}: {}", text(&output.stdout));
    }
    for (code, part, args) in [
        (2, "BAD_URI", &["load", "prod"][..]),
        (2, "1 to 64", &["alias", "set", "a/b", "s3://b/k"]),
        (2, "1 to 64", &["rollback", "s3://b/k"]),
        (2, "for example", &["alias", "set", "a", "s3://b/k", "--rollback-if", "luck > 3"]),
        (2, "BAD_URI", &["alias", "set", "a", "nowhere"]),
        (2, "query", &["alias", "set", "a", "https://h/k?X-Amz-Signature=abc"]),
        (3, "ALIAS_UNKNOWN", &["rollback", "prod"]),
        (3, "ALIAS_UNKNOWN", &["alias", "ls", "prod"]),
        (3, "ALIAS_UNKNOWN", &["alias", "rm", "prod"]),
    ] {
        let output = run(node, args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        let said = text(&output.stderr);
        assert!(said.contains(part) && !said.contains("abc"), "{args:?}: {said}");
    }
}

#[tokio::test]
async fn without_an_nvme_tier_a_name_cannot_be_set() {
    let origin = s3().await;
    origin.put_checkpoint(BUCKET, "m/", &made(6));
    let node = NodeSpec::of(&origin).start().await;
    let error = set(&node.client, "prod", &s3_uri("m/")).await.unwrap_err();
    assert_ends(&error, Reason::NvmeOff, 9);
    assert_eq!(node.client.aliases(None).await.unwrap(), []);
    // Names of before are still what they were, and can be switched.
    let switched = Switched::new().await;
    let dir = switched.node.stopped().await;
    let node = NodeSpec::of(&switched.origin).dir(dir).start().await;
    node.client.rollback("prod").await.unwrap();
    let (mapped, report) = digests(&node.client, LoadRequest::new("prod")).await.unwrap();
    assert_eq!(mapped, expected_digests(&switched.one));
    assert_eq!(report.bytes_by_tier.origin, report.bytes);
}
