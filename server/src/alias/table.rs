//! The names of a node, as loads look at them: what each stands for, and what is known to be damaged.
//!
//! Owned by [`Aliases`](super::Aliases), under its lock.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use forebay_proto::{AliasName, Failure, Reason, RollbackRule};

use super::record::{By, Record, Target};
use super::rule::Window;
use super::store::{Found, Store, stem_of};
use crate::resolve::{Content, Manifest, Resolver, Revision};

/// Objects, tensors and frames of all manifests together: a few hundred megabytes at most.
const ITEMS_MAX: usize = 2 << 20;

/// What a name stands for, or why that cannot be said.
pub(super) type Known = Result<Arc<Manifest>, String>;

/// One name.
#[derive(Debug)]
pub(super) struct Entry {
    /// What is kept of it.
    pub(super) record: Record,
    /// What it stands for.
    pub(super) current: Known,
    /// What it stood for before.
    pub(super) previous: Option<Known>,
    /// Of the loads since the last switch.
    pub(super) window: Window,
}

/// The names of a node.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// All of them.
    pub(super) entries: BTreeMap<AliasName, Entry>,
    /// Digests of names whose record was damaged, and what is wrong with it.
    pub(super) damaged: BTreeMap<String, String>,
    /// Names that are being set, and to what.
    pub(super) setting: BTreeMap<AliasName, String>,
}

impl Table {
    /// Of the records that were found. Of a manifest that cannot be read it is known why.
    pub(super) fn of(store: &Store, found: Found, resolver: &Resolver) -> Self {
        let mut table = Self::default();
        for (stem, bad) in found.bad {
            tracing::warn!(stem, %bad, "a record of an alias cannot be used");
            table.damaged.insert(stem, bad.to_string());
        }
        for record in found.records {
            let Ok(name) = AliasName::parse(&record.name) else { continue };
            let known = |target: &Target| known(store, resolver, &name, target);
            let current = known(&record.current);
            let previous = record.previous.as_ref().map(known);
            let window = Window::default();
            table.entries.insert(name, Entry { record, current, previous, window });
        }
        table
    }

    /// Why there is no such name.
    pub(super) fn unknown(&self, name: &AliasName) -> Failure {
        match self.damaged.get(&stem_of(name.as_str())) {
            Some(why) => damaged(name, why),
            None => Failure::new(Reason::AliasUnknown, format!("there is no alias {name}")),
        }
    }

    /// It stands for something else, or has another rule, from now on.
    pub(super) fn switch(
        &mut self,
        name: &AliasName,
        record: Record,
        manifest: Arc<Manifest>,
        is_new: bool,
    ) {
        let before = self.entries.remove(name);
        let previous = match before {
            Some(before) if is_new => Some(before.current),
            Some(before) => before.previous,
            None => None,
        };
        self.damaged.remove(&stem_of(name.as_str()));
        let entry = Entry { record, current: Ok(manifest), previous, window: Default::default() };
        self.entries.insert(name.clone(), entry);
    }

    /// What the name's record is after a rollback; only if this was its last switch, if one is
    /// given.
    pub(super) fn rolled_back(
        &self,
        name: &AliasName,
        generation: Option<u64>,
        by: &By,
        now: Duration,
    ) -> Result<Record, Failure> {
        let entry = self.entries.get(name).ok_or_else(|| self.unknown(name))?;
        if generation.is_some_and(|generation| generation != entry.record.generation) {
            return Err(changed(name));
        }
        match &entry.previous {
            Some(Err(why)) => Err(damaged(name, why)),
            _ => entry.record.rolled_back(by, now),
        }
    }

    /// It is rolled back.
    pub(super) fn roll_back(&mut self, name: &AliasName, record: Record) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        entry.record = record;
        entry.window = Window::default();
        if let Some(previous) = &mut entry.previous {
            std::mem::swap(previous, &mut entry.current);
        }
    }

    /// What the name's record is when it is set, if it was not switched since this generation; and
    /// whether it stands for something else then.
    pub(super) fn set(
        &self,
        name: &AliasName,
        generation: Option<u64>,
        target: &Target,
        rule: Option<RollbackRule>,
        now: Duration,
    ) -> Result<(Record, bool), Failure> {
        let record = self.entries.get(name).map(|entry| &entry.record);
        if record.map(|record| record.generation) != generation {
            return Err(changed(name));
        }
        let target = target.clone();
        Ok(match record {
            Some(record) => {
                let is_new = record.current.revision != target.revision;
                (record.set(target, rule, now), is_new)
            }
            None => (Record::new(name.as_str(), target, rule, now), true),
        })
    }

    /// Refuses a name that is none, or that is being set.
    pub(super) fn check_free(&self, name: &AliasName) -> Result<(), Failure> {
        if let Some(other) = self.setting.get(name) {
            let message = format!("{name} is being set to {other}");
            return Err(Failure::new(Reason::AliasBusy, message));
        }
        let is_known =
            self.entries.contains_key(name) || self.damaged.contains_key(&stem_of(name.as_str()));
        if is_known { Ok(()) } else { Err(self.unknown(name)) }
    }

    /// It is forgotten.
    pub(super) fn remove(&mut self, name: &AliasName) {
        self.entries.remove(name);
        self.damaged.remove(&stem_of(name.as_str()));
    }

    fn targets(&self) -> impl Iterator<Item = &Target> {
        self.entries.values().flat_map(|entry| entry.record.targets())
    }

    /// What has to stay in the NVMe tier.
    pub(super) fn revisions(&self) -> HashSet<Revision> {
        self.targets().filter_map(Target::revision).collect()
    }

    /// The manifests that have to stay.
    pub(super) fn needed(&self) -> BTreeSet<String> {
        self.targets().map(|target| target.revision.clone()).collect()
    }

    /// Whether there is room for what the name is to stand for.
    pub(super) fn check_room(&self, name: &AliasName, manifest: &Manifest) -> Result<(), Failure> {
        // The previous one of this name goes with the switch.
        let others = self.entries.iter().flat_map(|(other, entry)| {
            let previous = entry.previous.iter().filter(move |_| other != name);
            std::iter::once(&entry.current).chain(previous)
        });
        let held: usize = others.filter_map(|known| known.as_ref().ok()).map(|m| items(m)).sum();
        if held.saturating_add(items(manifest)) <= ITEMS_MAX {
            return Ok(());
        }
        let message = format!(
            "the checkpoint has {} objects, tensors and frames, the aliases have {held}, and \
             {ITEMS_MAX} is the limit of all",
            items(manifest)
        );
        Err(Failure::new(Reason::LimitExceeded, &message).with_quota(message))
    }
}

/// The manifest of a revision, as it was kept.
fn known(store: &Store, resolver: &Resolver, name: &AliasName, target: &Target) -> Known {
    restored(store, resolver, target).inspect_err(|why| {
        tracing::warn!(alias = %name, why, "a revision of an alias cannot be loaded");
    })
}

fn restored(store: &Store, resolver: &Resolver, target: &Target) -> Known {
    let bytes = store.manifest(&target.revision).map_err(|bad| bad.to_string())?;
    let manifest = resolver.restore(&bytes).map_err(|error| error.to_string())?;
    match Some(manifest.revision()) == target.revision() {
        true => Ok(manifest),
        false => Err("what was kept is of another revision".into()),
    }
}

/// What a manifest takes of memory, in items.
fn items(manifest: &Manifest) -> usize {
    let frames = |content: &Content| match content {
        Content::Digested(coding) | Content::Framed(coding) => coding.frames().len(),
        Content::Plain | Content::Stream(_) => 0,
    };
    let objects = manifest.objects();
    let frames: usize = objects.iter().map(|object| frames(&object.content)).sum();
    objects.len() + manifest.tensors().len() + frames
}

/// What was kept of a name is of no use.
pub(super) fn damaged(name: &AliasName, why: &str) -> Failure {
    let message = format!("what was kept of the alias {name} cannot be used: {why}");
    Failure::new(Reason::AliasDamaged, message).with_fact("alias", name)
}

/// Somebody else was there first.
fn changed(name: &AliasName) -> Failure {
    let message = format!("{name} was switched or removed by another call; nothing was switched");
    Failure::new(Reason::AliasChanged, message)
}
