//! Names over a store, without a daemon and without an NVMe tier.

use super::*;
use crate::resolve::manifest_at;

fn open(dir: &Path) -> Arc<Aliases> {
    let mut degraded = Vec::new();
    let files = AliasFiles::read(Some(dir), &mut degraded);
    assert!(degraded.is_empty(), "{degraded:?}");
    Aliases::open(files, None, &Resolver::for_tests()).unwrap()
}

fn name(text: &str) -> AliasName {
    AliasName::parse(text).unwrap()
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What `begin` gives where there is an NVMe tier.
fn setting(aliases: &Arc<Aliases>, text: &str) -> Setting {
    let name = name(text);
    let generation = aliases.table().entries.get(&name).map(|entry| entry.record.generation);
    aliases.table().setting.insert(name.clone(), "s3://b/".into());
    Setting { aliases: Arc::clone(aliases), name, domain: "blue".to_owned(), generation }
}

async fn set(aliases: &Arc<Aliases>, text: &str, bytes: u64, rule: Option<&str>) -> View {
    let rule = rule.map(|rule| RollbackRule::parse(rule).unwrap());
    let manifest = manifest_at(&format!("file:///data/{bytes}/"), bytes);
    let setting = setting(aliases, text);
    aliases.switch(&setting, manifest, rule, at(bytes)).await.unwrap().0
}

async fn roll_back(aliases: &Arc<Aliases>, text: &str) -> Result<View, Failure> {
    aliases.roll_back(name(text), By::Caller, None, at(99)).await
}

fn bytes_of(aliases: &Arc<Aliases>, text: &str) -> u64 {
    aliases.given(&name(text)).unwrap().unwrap().manifest.bytes()
}

fn reason<T: std::fmt::Debug>(result: Result<T, Failure>) -> Reason {
    result.unwrap_err().reason
}

#[tokio::test]
async fn a_name_survives_its_daemon_with_both_revisions_and_its_history() {
    let dir = tempfile::tempdir().unwrap();
    let aliases = open(dir.path());
    assert!(aliases.given(&name("prod")).unwrap().is_none());
    assert_eq!(reason(roll_back(&aliases, "prod").await), Reason::AliasUnknown);
    set(&aliases, "prod", 1, None).await;
    assert_eq!(reason(roll_back(&aliases, "prod").await), Reason::NoPreviousRevision);
    set(&aliases, "prod", 2, Some("data_losses > 0 over 1h")).await;
    let before = aliases.list(None).unwrap().remove(0).record;
    drop(aliases);
    let aliases = open(dir.path());
    let after = aliases.list(None).unwrap().remove(0).record;
    assert_eq!((&after, &*after.domain), (&before, "blue"));
    assert_eq!((bytes_of(&aliases, "prod"), aliases.counts()), (2, (1, 1)));
    let given = aliases.given(&name("prod")).unwrap().unwrap();
    assert_eq!(given.manifest.tensors().len(), 1);
    let view = roll_back(&aliases, "prod").await.unwrap();
    assert_eq!((bytes_of(&aliases, "prod"), view.record.history.len()), (1, 3));
    // What began before goes on with what it began with.
    assert_eq!(given.manifest.bytes(), 2);
    let aliases = open(dir.path());
    assert_eq!(bytes_of(&aliases, "prod"), 1);
    assert_eq!(aliases.counts(), (1, 0));
    roll_back(&aliases, "prod").await.unwrap();
    assert_eq!(bytes_of(&aliases, "prod"), 2);
    assert_eq!(aliases.remove(name("prod")).await.unwrap(), 2);
    assert_eq!(reason(aliases.remove(name("prod")).await), Reason::AliasUnknown);
    let left = std::fs::read_dir(dir.path().join("aliases")).unwrap().count();
    assert_eq!((left, open(dir.path()).counts().0), (0, 0));
}

#[tokio::test]
async fn only_what_a_name_needs_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let aliases = open(dir.path());
    for bytes in 1..=5 {
        set(&aliases, "a", bytes, None).await;
    }
    set(&aliases, "b", 4, None).await;
    // Two records; 5 and 4 of the one, and 4 of the other.
    let left = std::fs::read_dir(dir.path().join("aliases")).unwrap().count();
    assert_eq!((left, aliases.table().revisions().len()), (4, 2));
    assert_eq!(aliases.remove(name("a")).await.unwrap(), 1, "the other alias keeps one");
    assert_eq!(bytes_of(&aliases, "b"), 4);
}

#[tokio::test]
async fn a_write_that_fails_switches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let aliases = open(dir.path());
    set(&aliases, "prod", 1, None).await;
    set(&aliases, "prod", 2, None).await;
    let store = &aliases.kept.as_ref().unwrap().store;
    let mut failed = 0;
    for steps in 0.. {
        store.fuse.set(steps);
        let rolled = roll_back(&aliases, "prod").await;
        store.fuse.set(usize::MAX);
        match rolled {
            Ok(_) => break,
            Err(failure) => assert_eq!(failure.reason, Reason::AliasNotKept),
        }
        // Memory and disk agree, whatever the step.
        let now = bytes_of(&aliases, "prod");
        assert_eq!(bytes_of(&open(dir.path()), "prod"), now, "{steps}");
        if now == 1 {
            // It was in its place, and only that it stays there was not sure.
            roll_back(&aliases, "prod").await.unwrap();
        }
        failed += 1;
    }
    assert!(failed >= 5, "{failed}");
    assert_eq!(bytes_of(&aliases, "prod"), 1);
}

#[tokio::test]
async fn who_sets_what_another_has_switched_switches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let aliases = open(dir.path());
    set(&aliases, "prod", 1, None).await;
    set(&aliases, "prod", 2, None).await;
    let slow = setting(&aliases, "prod");
    assert_eq!(aliases.list(None).unwrap()[0].setting.as_deref(), Some("s3://b/"));
    assert_eq!(reason(aliases.remove(name("prod")).await), Reason::AliasBusy);
    roll_back(&aliases, "prod").await.unwrap();
    let late = aliases.switch(&slow, manifest_at("file:///x/", 3), None, at(3)).await;
    assert_eq!(reason(late), Reason::AliasChanged);
    drop(slow);
    assert_eq!(bytes_of(&aliases, "prod"), 1);
    assert_eq!(aliases.list(None).unwrap()[0].setting, None);
    set(&aliases, "prod", 3, None).await;
}

#[tokio::test]
async fn what_is_damaged_costs_its_own_name_and_is_mended_by_setting_it() {
    let dir = tempfile::tempdir().unwrap();
    let aliases = open(dir.path());
    set(&aliases, "one", 1, None).await;
    set(&aliases, "one", 2, None).await;
    set(&aliases, "two", 3, None).await;
    let revision = |n: usize| aliases.list(None).unwrap()[n].record.current.revision.clone();
    let folder = dir.path().join("aliases");
    let flip = |file: String| {
        let path = folder.join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
    };
    flip(format!("{}.manifest", revision(0)));
    flip(format!("{}.alias", store::stem_of("two")));
    let aliases = open(dir.path());
    assert_eq!(reason(aliases.given(&name("one"))), Reason::AliasDamaged);
    assert_eq!(reason(aliases.given(&name("two"))), Reason::AliasDamaged);
    assert_eq!(reason(roll_back(&aliases, "two").await), Reason::AliasDamaged);
    let troubles = aliases.troubles(|_| true);
    assert!(aliases.troubles(|_| false).len() < troubles.len(), "others' names are not told");
    assert_eq!(troubles.len(), 2, "{troubles:?}");
    assert!(troubles.iter().all(|why| why.starts_with("aliases: ")), "{troubles:?}");
    let view = aliases.list(Some(&name("one"))).unwrap().remove(0);
    assert!(view.revisions[0].1.is_some() && view.revisions[1].1.is_none());
    // The one before is whole: there is a way out at once.
    roll_back(&aliases, "one").await.unwrap();
    assert_eq!(bytes_of(&aliases, "one"), 1);
    assert_eq!(reason(roll_back(&aliases, "one").await), Reason::AliasDamaged);
    set(&aliases, "one", 2, None).await;
    set(&aliases, "two", 3, None).await;
    assert!(aliases.troubles(|_| true).is_empty());
    let aliases = open(dir.path());
    assert_eq!((bytes_of(&aliases, "one"), bytes_of(&aliases, "two")), (2, 3));
}

/// Lets the task that watches see what has happened, and the disk's thread do what it has to.
async fn until(what: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it did not come to that");
}

#[tokio::test]
async fn a_rule_acts_once_and_only_on_loads_of_its_own_switch() {
    const BAD: Ended = Ended::Badly { late: false, lost: false };
    let dir = tempfile::tempdir().unwrap();
    let aliases = open(dir.path());
    set(&aliases, "prod", 1, None).await;
    let old = aliases.given(&name("prod")).unwrap().unwrap();
    set(&aliases, "prod", 2, Some("load_failure_ratio > 0.5 over 10m min 3")).await;
    let new = aliases.given(&name("prod")).unwrap().unwrap();
    let now = Instant::now();
    (0..9).for_each(|_| aliases.ended(&old, BAD, now));
    (0..2).for_each(|_| aliases.ended(&new, BAD, now));
    assert!(aliases.due(now).is_empty(), "not enough loads of this revision");
    let view = aliases.list(None).unwrap().remove(0);
    assert_eq!(view.verdict, Some(Verdict { loads: 2, value: Some(1.0), acts: false }));
    aliases.ended(&new, Ended::Well(1.0), now);
    assert_eq!(aliases.due(now).len(), 1);
    assert!(aliases.due(now + at(601)).is_empty(), "the window has passed");
    let watching = aliases.watch();
    let acting = until(|| bytes_of(&aliases, "prod") == 1);
    tokio::select! {
        () = watching => {}
        () = acting => {}
    }
    let record = aliases.list(None).unwrap().remove(0).record;
    let event = record.history.last().unwrap();
    assert_eq!(event.kind.as_str(), "rule");
    assert!(event.why.contains("load_failure_ratio was 0.667 over 3 loads"), "{}", event.why);
    assert_eq!(record.rule.as_ref().unwrap().state, RuleState::Acted);
    // A person goes forward again; the rule has had its turn.
    roll_back(&aliases, "prod").await.unwrap();
    let again = aliases.given(&name("prod")).unwrap().unwrap();
    (0..9).for_each(|_| aliases.ended(&again, BAD, now));
    assert!(aliases.due(now).is_empty());
    assert_eq!(open(dir.path()).counts(), (1, 0));
}

#[tokio::test]
async fn a_rule_that_comes_too_late_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let aliases = open(dir.path());
    set(&aliases, "prod", 1, None).await;
    set(&aliases, "prod", 2, Some("data_losses > 0 over 1h")).await;
    let given = aliases.given(&name("prod")).unwrap().unwrap();
    aliases.ended(&given, Ended::Badly { late: false, lost: true }, Instant::now());
    let (name, generation, by) = aliases.due(Instant::now()).remove(0);
    set(&aliases, "prod", 3, None).await;
    let late = aliases.roll_back(name, by, Some(generation), at(9)).await;
    assert_eq!(reason(late), Reason::AliasChanged);
    assert_eq!(bytes_of(&aliases, "prod"), 3);
}

#[tokio::test]
async fn without_an_nvme_tier_or_a_cache_directory_nothing_is_set() {
    let dir = tempfile::tempdir().unwrap();
    let aliases = open(dir.path());
    assert_eq!(reason(aliases.begin((&name("a"), ""), "s3://b/")), Reason::NvmeOff);
    let nowhere = AliasFiles::read(None, &mut Vec::new());
    let aliases = Aliases::open(nowhere, None, &Resolver::for_tests()).unwrap();
    assert_eq!(reason(aliases.begin((&name("a"), ""), "s3://b/")), Reason::NvmeOff);
    assert_eq!(reason(roll_back(&aliases, "a").await), Reason::NvmeOff);
    assert!(aliases.given(&name("a")).unwrap().is_none());
}
