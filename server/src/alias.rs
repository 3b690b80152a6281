//! Named revisions: what a name stands for, on this node.
//!
//! ```text
//!   set ──► resolve ─► store in NVMe ─► read again ─► commit ─┐         (set.rs: all of it, or nothing)
//!   rollback ─────────────────────────────────────► commit ─┤
//!   rule ◄── how loads of the name ended ──► rollback ──────┘         (rule.rs: once)
//!                                                            └► store (a file each), pins, table
//!   load NAME ──► given: the manifest that the name stands for now
//! ```
//!
//! *Commits* are carried out one after the other by a thread of their own, to their end, whoever asked
//! and went away meanwhile: first the pins of what will be needed, then the file, then the table that
//! loads look at, then what is needed no more. So a switch is seen whole or not at all, and both
//! revisions of a name are pinned in the NVMe tier whenever it is.
//!
//! *A name stands for a manifest*, which is kept beside the record: a load by name asks no origin what
//! there is, after a restart as before, and for missing bytes only in exactly these versions. What of
//! that was damaged on the disk costs its own name: it says so until it is set again.

mod record;
mod rule;
mod set;
mod store;
mod table;

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use forebay_io::FileError;
use forebay_proto::{AliasName, Failure, Reason, RollbackRule};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cpu::Workers;
use crate::load::Given;
use crate::metrics;
use crate::nvme::NvmeTier;
use crate::resolve::{Manifest, Resolver, Revision, saved};
use store::{Found, Store, StoreError};
use table::{Table, damaged};

pub(crate) use record::{By, Event, Record, RuleState, Target};
pub(crate) use rule::{Ended, Verdict};
pub(crate) use set::{Done, Step, Work, set};

/// Names on one node.
pub(crate) const ALIASES_MAX: usize = 64;

/// Where names are kept.
#[derive(Debug)]
struct Kept {
    store: Store,
    disk: Workers,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Aliases {
    kept: Option<Kept>,
    nvme: Option<Arc<NvmeTier>>,
    table: Mutex<Table>,
    /// A load has ended that a rule may act on.
    ended: Notify,
}

/// The files of a cache directory, with the records in them; none if there are no such files.
#[derive(Debug)]
pub(crate) struct AliasFiles(Option<(Store, Found)>);

impl AliasFiles {
    /// Reads the records that are kept in a cache directory. What cannot be read is said.
    pub(crate) fn read(cache_dir: Option<&Path>, degraded: &mut Vec<String>) -> Self {
        let read = |dir| {
            let store = Store::open(dir)?;
            let found = store.records()?;
            Ok::<_, FileError>((store, found))
        };
        match cache_dir.map(read) {
            Some(Ok(read)) => Self(Some(read)),
            Some(Err(error)) => {
                degraded.push(format!("aliases: they cannot be read: {error}"));
                Self(None)
            }
            None => Self(None),
        }
    }

    /// What has to stay in the NVMe tier for them.
    pub(crate) fn revisions(&self) -> HashSet<Revision> {
        let found = self.0.iter().flat_map(|(_, found)| &found.records);
        found.flat_map(Record::targets).filter_map(Target::revision).collect()
    }
}

/// A name as it is shown.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// What is kept of it.
    pub(crate) record: Record,
    /// Bytes in NVMe, and what is damaged, of the current revision and the previous one.
    pub(crate) revisions: [(u64, Option<String>); 2],
    /// What its rule says now, while it watches.
    pub(crate) verdict: Option<Verdict>,
    /// What it is being set to.
    pub(crate) setting: Option<String>,
}

/// A name that is being set. Nobody else sets it until this is dropped.
#[derive(Debug)]
pub(crate) struct Setting {
    aliases: Arc<Aliases>,
    name: AliasName,
    /// Who sets it.
    domain: String,
    /// Of the record as it was when this began; none if there was none.
    generation: Option<u64>,
}

impl Drop for Setting {
    fn drop(&mut self) {
        self.aliases.table().setting.remove(&self.name);
    }
}

impl Aliases {
    /// The names that were read, with what they stand for.
    pub(crate) fn open(
        files: AliasFiles,
        nvme: Option<&Arc<NvmeTier>>,
        resolver: &Resolver,
    ) -> std::io::Result<Arc<Self>> {
        let (kept, table) = match files.0 {
            Some((store, found)) => {
                let table = Table::of(&store, found, resolver);
                let disk = Workers::start_loose("forebay-alias", 1)?;
                (Some(Kept { store, disk }), table)
            }
            None => (None, Table::default()),
        };
        let (nvme, table) = (nvme.cloned(), Mutex::new(table));
        let aliases = Self { kept, nvme, table, ended: Notify::new() };
        aliases.pin(&aliases.table(), None);
        aliases.tidy();
        Ok(Arc::new(aliases))
    }

    /// What a load by this name is of. None if no alias has it.
    pub(crate) fn given(&self, name: &AliasName) -> Result<Option<Given>, Failure> {
        let table = self.table();
        let Some(entry) = table.entries.get(name) else {
            return match table.damaged.get(&store::stem_of(name.as_str())) {
                Some(why) => Err(damaged(name, why)),
                None => Ok(None),
            };
        };
        let manifest = entry.current.as_ref().map_err(|why| damaged(name, why))?;
        let generation = entry.record.generation;
        Ok(Some(Given::new(name.to_string(), generation, Arc::clone(manifest))))
    }

    /// A load by name has ended.
    pub(crate) fn ended(&self, given: &Given, ended: Ended, now: Instant) {
        let Ok(name) = AliasName::parse(&given.name) else { return };
        let mut table = self.table();
        let Some(entry) = table.entries.get_mut(&name) else { return };
        // One of another revision says nothing of this one.
        if entry.record.generation == given.generation {
            entry.window.push(now, ended);
            if entry.record.armed().is_some() {
                self.ended.notify_one();
            }
        }
    }

    /// Has rules act. Never ends.
    pub(crate) async fn watch(self: &Arc<Self>) {
        loop {
            self.ended.notified().await;
            for (name, generation, by) in self.due(Instant::now()) {
                self.act(name, generation, by).await;
            }
        }
    }

    /// Rolls back what a rule says, unless somebody switched the name since.
    async fn act(self: &Arc<Self>, name: AliasName, generation: u64, by: By) {
        let why = match &by {
            By::Rule { why, .. } => why.clone(),
            By::Caller => String::new(),
        };
        match self.roll_back(name.clone(), by, Some(generation), wall_clock()).await {
            Ok(View { record: Record { current, .. }, .. }) => {
                let (uri, revision) = (&current.uri, current.shown());
                tracing::warn!(alias = %name, why, uri, revision, "a rule rolled an alias back");
            }
            Err(failure) if failure.reason == Reason::AliasChanged => {}
            Err(failure) => {
                tracing::error!(alias = %name, why, %failure, "a rule could not roll an alias back");
            }
        }
    }

    /// Rules that are to act at `now`, and on which switch.
    fn due(&self, now: Instant) -> Vec<(AliasName, u64, By)> {
        let table = self.table();
        let due = table.entries.iter().filter_map(|(name, entry)| {
            let rule = entry.record.armed()?;
            let verdict = entry.window.verdict(&rule, now);
            let value = verdict.value.filter(|_| verdict.acts)?;
            let by = By::Rule { value, why: rule::why(&rule, verdict) };
            Some((name.clone(), entry.record.generation, by))
        });
        due.collect()
    }

    /// Switches a name back; only if this was its last switch, if one is given.
    pub(crate) async fn roll_back(
        self: &Arc<Self>,
        name: AliasName,
        by: By,
        generation: Option<u64>,
        now: Duration,
    ) -> Result<View, Failure> {
        let cause = if by == By::Caller { "rollback" } else { "rule" };
        let changing = self.commit(move |aliases, kept| {
            let record = aliases.table().rolled_back(&name, generation, &by, now)?;
            let kept = kept.store.keep(&record);
            let sure = aliases.in_place(&name, kept)?;
            aliases.table().roll_back(&name, record);
            metrics::alias_switched(cause);
            sure?;
            aliases.view(&name)
        });
        changing.await
    }

    /// Nobody else sets the name until what is returned is dropped. It will be of `domain`.
    pub(crate) fn begin(
        self: &Arc<Self>,
        (name, domain): (&AliasName, &str),
        uri: &str,
    ) -> Result<Setting, Failure> {
        self.kept()?;
        if self.nvme.is_none() {
            let why = "an alias keeps its revisions in the NVMe tier, and this daemon has none";
            return Err(Failure::new(Reason::NvmeOff, why));
        }
        let mut table = self.table();
        let is_new = !table.entries.contains_key(name);
        let names = table.entries.len()
            + table.setting.keys().filter(|name| !table.entries.contains_key(name)).count();
        if is_new && names >= ALIASES_MAX {
            let message = format!("there are {ALIASES_MAX} aliases, which is their limit");
            return Err(Failure::new(Reason::LimitExceeded, &message).with_quota(message));
        }
        if table.setting.contains_key(name) {
            // To what is not every caller's business.
            let message = format!("{name} is being set by another call");
            return Err(Failure::new(Reason::AliasBusy, message));
        }
        table.setting.insert(name.clone(), uri.to_owned());
        let generation = table.entries.get(name).map(|entry| entry.record.generation);
        let (name, domain) = (name.clone(), domain.to_owned());
        Ok(Setting { aliases: Arc::clone(self), name, domain, generation })
    }

    /// Switches a name to what was stored and checked for it; whether it stood for something else.
    async fn switch(
        self: &Arc<Self>,
        setting: &Setting,
        manifest: Arc<Manifest>,
        rule: Option<RollbackRule>,
        now: Duration,
    ) -> Result<(View, bool), Failure> {
        let (name, generation) = (setting.name.clone(), setting.generation);
        let domain = setting.domain.clone();
        let changing = self.commit(move |aliases, kept| {
            let bytes = saved(&manifest).map_err(|error| not_kept(&name, &error.to_string()))?;
            let target = Target::of(&manifest);
            let set = aliases.table().set(&name, generation, &target, rule, now);
            let (record, is_new) = set?;
            let record = record.of(&domain);
            aliases.pin(&aliases.table(), Some(manifest.revision()));
            let written = kept.store.keep_manifest(&target.revision, &bytes);
            let written = written.and_then(|()| kept.store.keep(&record));
            let sure = aliases.in_place(&name, written)?;
            aliases.table().switch(&name, record, manifest, is_new);
            aliases.pin(&aliases.table(), None);
            aliases.tidy();
            if is_new {
                metrics::alias_switched("set");
            }
            sure?;
            Ok((aliases.view(&name)?, is_new))
        });
        changing.await
    }

    /// Forgets a name; how many revisions no alias keeps any more.
    pub(crate) async fn remove(self: &Arc<Self>, name: AliasName) -> Result<u64, Failure> {
        let changing = self.commit(move |aliases, kept| {
            aliases.table().check_free(&name)?;
            let before = aliases.table().revisions().len();
            let sure = aliases.in_place(&name, kept.store.forget(name.as_str()))?;
            aliases.table().remove(&name);
            aliases.pin(&aliases.table(), None);
            aliases.tidy();
            sure?;
            Ok((before - aliases.table().revisions().len()) as u64)
        });
        changing.await
    }

    /// The names, or one of them.
    pub(crate) fn list(&self, name: Option<&AliasName>) -> Result<Vec<View>, Failure> {
        if let Some(name) = name {
            return Ok(vec![self.view(name)?]);
        }
        let names: Vec<AliasName> = self.table().entries.keys().cloned().collect();
        // One that was removed in between is not listed.
        Ok(names.iter().filter_map(|name| self.view(name).ok()).collect())
    }

    /// How many names there are, and how many rules watch.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let table = self.table();
        let armed = table.entries.values().filter(|entry| entry.record.armed().is_some());
        (table.entries.len(), armed.count())
    }

    /// What was damaged, in sentences, of names that are the asker's business; a record that cannot be
    /// read is everybody's, and tells no name.
    pub(crate) fn troubles(&self, is_ours: impl Fn(&Record) -> bool) -> Vec<String> {
        let table = self.table();
        let nameless = table.damaged.iter().map(|(stem, why)| {
            format!("aliases: the record {}… was damaged and is put aside: {why}", &stem[..12])
        });
        let ours = table.entries.iter().filter(|(_, entry)| is_ours(&entry.record));
        let named = ours.flat_map(|(name, entry)| {
            let known = [Some(&entry.current), entry.previous.as_ref()].into_iter().flatten();
            let bad = known.filter_map(|known| known.as_ref().err());
            bad.map(move |why| format!("aliases: a revision of {name} cannot be loaded: {why}"))
        });
        nameless.chain(named).collect()
    }

    fn view(&self, name: &AliasName) -> Result<View, Failure> {
        let table = self.table();
        let Some(entry) = table.entries.get(name) else { return Err(table.unknown(name)) };
        let stored = |target: Option<&Target>| {
            let revision = target.and_then(Target::revision);
            let nvme = self.nvme.as_ref();
            nvme.zip(revision).map_or(0, |(nvme, revision)| nvme.stored_of(revision))
        };
        let record = &entry.record;
        let rule = record.armed();
        Ok(View {
            revisions: [
                (stored(Some(&record.current)), entry.current.as_ref().err().cloned()),
                (
                    stored(record.previous.as_ref()),
                    entry.previous.as_ref().and_then(|known| known.as_ref().err().cloned()),
                ),
            ],
            verdict: rule.map(|rule| entry.window.verdict(&rule, Instant::now())),
            setting: table.setting.get(name).cloned(),
            record: record.clone(),
        })
    }

    fn kept(&self) -> Result<&Kept, Failure> {
        let none = "there is no cache directory that aliases can be kept in";
        self.kept.as_ref().ok_or_else(|| Failure::new(Reason::NvmeOff, none))
    }

    /// Carries a change out on the thread of the disk, after those before it, and to its end even if
    /// nobody waits for it any more.
    async fn commit<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&Self, &Kept) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let own = Arc::clone(self);
        self.kept()?.disk.run(move || change(&own, own.kept()?)).await?
    }

    /// What a write means for the name: an error if nothing has changed; else whether that is sure.
    fn in_place(
        &self,
        name: &AliasName,
        written: Result<(), StoreError>,
    ) -> Result<Result<(), Failure>, Failure> {
        match written {
            Ok(()) => Ok(Ok(())),
            Err(error @ StoreError::Unconfirmed(_)) => Ok(Err(not_kept(name, &error.to_string()))),
            Err(error) => {
                self.pin(&self.table(), None);
                Err(not_kept(name, &error.to_string()))
            }
        }
    }

    /// Pins what the names stand for, and one revision more.
    fn pin(&self, table: &Table, beside: Option<Revision>) {
        if let Some(nvme) = &self.nvme {
            let mut held = table.revisions();
            held.extend(beside);
            nvme.hold_revisions(held);
        }
    }

    /// Removes files that no name needs. What cannot be removed is at the next start.
    fn tidy(&self) {
        let Some(kept) = &self.kept else { return };
        let needed = self.table().needed();
        if let Err(error) = kept.store.sweep(&needed) {
            tracing::warn!(%error, "files that no alias needs are left behind");
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // What is locked here is consistent after each call, whoever panicked between two of them.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_kept(name: &AliasName, why: &str) -> Failure {
    Failure::new(Reason::AliasNotKept, format!("the alias {name} cannot be kept: {why}"))
}

/// The wall clock, since the epoch: people look for a switch by the time of day.
#[expect(clippy::disallowed_methods, reason = "see above")]
pub(crate) fn wall_clock() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
#[path = "alias/alias_tests.rs"]
mod tests;
