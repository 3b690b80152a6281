//! Records under torn writes, kills at every step, and flipped bits.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::alias::record::{By, Target, hex};
use crate::resolve::Revision;

/// Ends everything after so many steps, as a kill does: nothing that follows is carried out.
#[derive(Debug)]
pub(in crate::alias) struct Fuse(AtomicUsize);

impl Default for Fuse {
    fn default() -> Self {
        Self(AtomicUsize::new(usize::MAX))
    }
}

impl Fuse {
    /// After so many steps.
    pub(in crate::alias) fn set(&self, steps: usize) {
        self.0.store(steps, Ordering::Relaxed);
    }

    pub(super) fn burn(&self) -> Result<(), FileError> {
        let left = self.0.load(Ordering::Relaxed);
        if left == 0 {
            let source = io::Error::other("killed");
            return Err(FileError::System { operation: "live", source });
        }
        self.0.store(left - 1, Ordering::Relaxed);
        Ok(())
    }
}

fn target(n: u8) -> Target {
    let revision = hex(Revision([n; 32]));
    Target { uri: format!("s3://b/{n}/"), revision, bytes: 10, objects: 1 }
}

fn record(name: &str) -> Record {
    Record::new(name, target(1), None, Duration::from_secs(1))
}

fn names(found: &Found) -> Vec<&str> {
    found.records.iter().map(|record| record.name.as_str()).collect()
}

#[test]
fn what_was_kept_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert!(store.records().unwrap().records.is_empty());
    let one = record("one").set(target(2), None, Duration::from_millis(1_234_567_890_123));
    store.keep(&one).unwrap();
    store.keep(&record("two")).unwrap();
    let body = vec![7; 3 * PIECE_BYTES + 5];
    store.keep_manifest(&target(1).revision, &body).unwrap();
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    let mut found = store.records().unwrap();
    found.records.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(found.records, [one, record("two")]);
    assert_eq!(store.manifest(&target(1).revision).unwrap(), body);
    let missing = store.manifest(&target(2).revision).unwrap_err();
    assert!(matches!(missing, BadFile::File(FileError::NotFound(_))), "{missing}");
    store.forget("one").unwrap();
    assert_eq!(names(&store.records().unwrap()), ["two"]);
    store.forget("one").unwrap();
}

/// Kills a switch at every step there is; whoever starts then finds the old record or the new one,
/// with its manifest.
#[test]
fn a_kill_leaves_the_old_one_or_the_new_one() {
    let old = record("prod");
    let new = old.set(target(2), None, Duration::from_secs(2));
    let (mut olds, mut news) = (0, 0);
    for steps in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.keep_manifest(&target(1).revision, b"one").unwrap();
        store.keep(&old).unwrap();
        store.fuse.set(steps);
        let switch = || -> Result<(), StoreError> {
            store.keep_manifest(&target(2).revision, b"two")?;
            store.keep(&new)?;
            Ok(store.sweep(&[target(2).revision].into())?)
        };
        let done = switch().is_ok();
        let after = Store::open(dir.path()).unwrap();
        let found = after.records().unwrap();
        assert!(found.bad.is_empty(), "{steps}: {:?}", found.bad);
        let [found] = &found.records[..] else { panic!("{steps}: {found:?}") };
        match *found == new {
            true => news += 1,
            false => {
                assert_eq!(*found, old, "{steps}");
                olds += 1;
            }
        }
        after.manifest(&found.current.revision).unwrap();
        after.sweep(&[found.current.revision.clone()].into()).unwrap();
        let left: Vec<_> = after.names().unwrap();
        assert_eq!(left.len(), 2, "{left:?}");
        // The next switch is not in the way of what was left.
        after
            .keep(&found.rolled_back(&By::Caller, Duration::ZERO).unwrap_or_else(|_| old.clone()))
            .unwrap();
        if done {
            break;
        }
    }
    assert!(olds >= 7 && news >= 2, "{olds} {news}");
}

#[test]
fn a_torn_or_flipped_file_is_put_aside_and_costs_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let path = dir.path().join("aliases").join(format!("{}{ALIAS}", stem_of("bad")));
    store.keep(&record("good")).unwrap();
    store.keep(&record("bad")).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let aside = path.with_extension("alias.bad");
    let mut bents: Vec<Vec<u8>> =
        [0, 1, 40, MAGIC.len() + DIGEST_BYTES, whole.len() - 1].map(|n| whole[..n].to_vec()).into();
    for at in [0, 20, 90, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        bents.push(flipped);
    }
    // Whole, and another alias' record.
    bents.push(
        std::fs::read(dir.path().join("aliases").join(format!("{}{ALIAS}", stem_of("good"))))
            .unwrap(),
    );
    for bent in bents {
        std::fs::write(&path, &bent).unwrap();
        let found = store.records().unwrap();
        assert_eq!(names(&found), ["good"]);
        assert_eq!(found.bad.len(), 1);
        assert_eq!(found.bad[0].0, stem_of("bad"));
        assert!(!path.exists() && std::fs::read(&aside).unwrap() == bent);
        assert!(store.records().unwrap().bad.is_empty(), "once");
    }
    store.forget("bad").unwrap();
    assert!(!aside.exists());
}

#[test]
fn a_record_that_leads_elsewhere_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut record = record("x");
    record.current.revision = "../../etc/passwd".into();
    store.keep(&record).unwrap();
    assert_eq!(store.records().unwrap().bad.len(), 1);
}
