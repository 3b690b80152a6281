//! The loads that run now, and the revisions of those that ran lately.
//!
//! A load is known by its client-chosen id within its uid. Opening an id again attaches to the same
//! load: it gets the manifest that the first opening resolved, so the same revision, and takes the
//! place of a stream that is still open. An id is remembered until its load is answered, so that a
//! client which lost its stream finds the same revision; a finished load's id is free again, and
//! one whose revision is gone would only fail for ever. What is remembered is bounded in ids and in
//! size.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use forebay_origin::EndpointView;
use forebay_proto::{Failure, Reason};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::Lane;
use crate::handoff::{LoadKey, Peer};
use crate::resolve::Manifest;

/// Ids whose revision is remembered.
const REMEMBERED_MAX: usize = 64;

/// Objects and tensors of all remembered manifests together.
const REMEMBERED_ITEMS_MAX: usize = 1 << 20;

/// One running load, as others see it.
#[derive(Debug)]
pub(crate) struct LoadState {
    /// The client's name for it.
    pub(crate) load_id: String,
    /// What it loads, without a query.
    pub(crate) uri: String,
    /// The alias that it was opened by; empty if it was a URI.
    pub(crate) alias: String,
    /// In which lane.
    pub(crate) lane: Lane,
    /// For whom.
    pub(crate) peer: Peer,
    /// Since when.
    pub(crate) opened: Instant,
    /// Bytes to hand over, once planned.
    pub(crate) total_bytes: AtomicU64,
    /// Bytes handed over.
    pub(crate) granted_bytes: AtomicU64,
    /// Bytes released.
    pub(crate) released_bytes: AtomicU64,
    /// Set when another stream takes its place.
    pub(crate) superseded: CancellationToken,
    /// Bytes that the origin had to bring when it was planned, less those that it brought.
    pub(crate) missing_bytes: AtomicU64,
    /// Where from, once it runs and is planned; none for files.
    pub(crate) endpoint: OnceLock<Option<EndpointView>>,
}

impl LoadState {
    /// It runs, and this much has to come from there.
    pub(crate) fn planned(&self, missing_bytes: u64, endpoint: Option<EndpointView>) {
        self.missing_bytes.store(missing_bytes, Ordering::Relaxed);
        self.endpoint.get_or_init(|| endpoint);
    }

    /// The origin brought a chunk.
    pub(crate) fn brought(&self, bytes: u64) {
        let missing = self.missing_bytes.load(Ordering::Relaxed);
        self.missing_bytes.store(missing.saturating_sub(bytes), Ordering::Relaxed);
    }

    /// How long it takes at least; `None` while it waits for a place itself.
    fn needs(&self) -> Option<Duration> {
        let rate = self.endpoint.get()?.as_ref().and_then(EndpointView::sustained);
        let seconds = self.missing_bytes.load(Ordering::Relaxed) as f64 / rate.unwrap_or(f64::MAX);
        Some(Duration::try_from_secs_f64(seconds).unwrap_or_default())
    }

    /// Bytes leased now.
    pub(crate) fn leased_bytes(&self) -> u64 {
        let released = self.released_bytes.load(Ordering::Relaxed);
        self.granted_bytes.load(Ordering::Relaxed).saturating_sub(released)
    }
}

#[derive(Debug)]
struct Remembered {
    uid: u32,
    load_id: String,
    /// The canonical URI, or the name of an alias.
    asked: String,
    manifest: Arc<Manifest>,
}

impl Remembered {
    fn is(&self, uid: u32, load_id: &str) -> bool {
        self.uid == uid && self.load_id == load_id
    }

    fn items(&self) -> usize {
        self.manifest.objects().len() + self.manifest.tensors().len()
    }
}

#[derive(Debug, Default)]
struct Inner {
    running: BTreeMap<u64, Arc<LoadState>>,
    remembered: VecDeque<Remembered>,
}

/// The loads of one daemon.
#[derive(Debug, Default)]
pub(crate) struct Loads {
    inner: Mutex<Inner>,
}

/// A load's entry; it leaves with it.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    loads: &'a Loads,
    key: LoadKey,
    state: Arc<LoadState>,
}

impl Entry<'_> {
    /// This load takes the place of others of its uid and id. Called when it can run: a call that
    /// is refused must not end the one it would have replaced.
    pub(crate) fn supersede_others(&self) {
        let inner = self.loads.lock();
        let same = |(key, other): &(&u64, &Arc<LoadState>)| {
            **key != self.key.0
                && other.load_id == self.state.load_id
                && other.peer.uid == self.state.peer.uid
        };
        inner.running.iter().filter(same).for_each(|(_, other)| other.superseded.cancel());
    }

    /// What others see.
    pub(crate) fn state(&self) -> &Arc<LoadState> {
        &self.state
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.loads.lock().running.remove(&self.key.0);
    }
}

impl Loads {
    /// Enters a load.
    pub(crate) fn enter(&self, key: LoadKey, state: LoadState) -> Entry<'_> {
        let state = Arc::new(state);
        self.lock().running.insert(key.0, Arc::clone(&state));
        Entry { loads: self, key, state }
    }

    /// How long until one of the `active` loads that run can be over, at least, at the rates that
    /// are known. Nothing is known while one of them has no plan yet.
    pub(crate) fn first_end(&self, active: usize) -> Option<Duration> {
        let planned: Vec<Duration> =
            self.running().iter().filter_map(|load| load.needs()).collect();
        planned.iter().min().copied().filter(|_| planned.len() >= active)
    }

    /// The manifest that this id resolved to before. The same id with another URI is an error; the
    /// URI is the canonical one, so that a presigned URL can be renewed. A name that was switched
    /// since is the same name.
    pub(crate) fn attach(
        &self,
        uid: u32,
        load_id: &str,
        asked: &str,
    ) -> Result<Option<Arc<Manifest>>, Failure> {
        let inner = self.lock();
        match inner.remembered.iter().find(|known| known.is(uid, load_id)) {
            Some(known) if known.asked == asked => Ok(Some(Arc::clone(&known.manifest))),
            Some(_) => Err(Failure::new(
                Reason::BadRequest,
                format!("load id {load_id} belongs to a load of another URI"),
            )),
            None => Ok(None),
        }
    }

    /// Remembers what an id resolved to.
    pub(crate) fn remember(&self, uid: u32, load_id: &str, asked: &str, manifest: &Arc<Manifest>) {
        let mut inner = self.lock();
        inner.remembered.retain(|known| !known.is(uid, load_id));
        inner.remembered.push_back(Remembered {
            uid,
            load_id: load_id.to_owned(),
            asked: asked.to_owned(),
            manifest: Arc::clone(manifest),
        });
        let mut items: usize = inner.remembered.iter().map(Remembered::items).sum();
        while inner.remembered.len() > REMEMBERED_MAX
            || (items > REMEMBERED_ITEMS_MAX && inner.remembered.len() > 1)
        {
            items -= inner.remembered.pop_front().map_or(0, |oldest| oldest.items());
        }
    }

    /// The load with this id is answered, or its revision is gone.
    pub(crate) fn forget(&self, uid: u32, load_id: &str) {
        self.lock().remembered.retain(|known| !known.is(uid, load_id));
    }

    /// Those that run, oldest first.
    pub(crate) fn running(&self) -> Vec<Arc<LoadState>> {
        self.lock().running.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::manifest_for_tests;

    #[test]
    fn a_place_comes_free_when_the_first_can_be_over() {
        let loads = Loads::default();
        let enter = |key| loads.enter(LoadKey(key), state("x", 1));
        let (waiting, first, second) = (enter(1), enter(2), enter(3));
        assert_eq!(loads.first_end(2), None);
        first.state().planned(100, None);
        assert_eq!(loads.first_end(2), None, "the other may be over at once");
        second.state().planned(50, None);
        assert_eq!(loads.first_end(2), Some(Duration::ZERO), "no rate is known");
        second.state().brought(60);
        assert_eq!(second.state().missing_bytes.load(Ordering::Relaxed), 0);
        drop((waiting, first, second));
        assert_eq!(loads.first_end(1), None);
    }

    fn state(load_id: &str, uid: u32) -> LoadState {
        LoadState {
            load_id: load_id.into(),
            uri: "s3://b/k".into(),
            alias: String::new(),
            lane: Lane::Interactive,
            peer: Peer { uid, pid: 1 },
            opened: Instant::now(),
            total_bytes: AtomicU64::default(),
            granted_bytes: AtomicU64::default(),
            released_bytes: AtomicU64::default(),
            missing_bytes: AtomicU64::new(0),
            endpoint: OnceLock::new(),
            superseded: CancellationToken::new(),
        }
    }

    #[test]
    fn a_second_stream_of_the_same_id_and_uid_takes_the_place() {
        let loads = Loads::default();
        let first = loads.enter(LoadKey(1), state("a", 7));
        let other = loads.enter(LoadKey(2), state("a", 8));
        assert!(!first.state().superseded.is_cancelled());
        let second = loads.enter(LoadKey(3), state("a", 7));
        assert!(!first.state().superseded.is_cancelled(), "not before it can run");
        second.supersede_others();
        assert!(!second.state().superseded.is_cancelled());
        assert!(first.state().superseded.is_cancelled());
        assert!(!other.state().superseded.is_cancelled());
        drop((first, other));
        assert_eq!(loads.running().len(), 1);
        drop(second);
        assert!(loads.running().is_empty());
    }

    #[test]
    fn an_id_keeps_its_revision_and_its_uri() {
        let loads = Loads::default();
        let manifest = manifest_for_tests(&[("k", 5)], &[]);
        let uri = manifest.uri();
        loads.remember(7, "a", uri, &manifest);
        let attached = loads.attach(7, "a", uri).unwrap().unwrap();
        assert!(Arc::ptr_eq(&attached, &manifest));
        assert!(loads.attach(8, "a", uri).unwrap().is_none());
        loads.attach(7, "a", "s3://b/other").unwrap_err();
        loads.remember(7, "named", "prod", &manifest);
        loads.attach(7, "named", uri).unwrap_err();
        assert!(loads.attach(7, "named", "prod").unwrap().is_some());
        for n in 0..REMEMBERED_MAX {
            loads.remember(9, &n.to_string(), uri, &manifest);
        }
        assert!(loads.attach(7, "a", uri).unwrap().is_none(), "memory is bounded");
        assert!(loads.attach(9, "3", uri).unwrap().is_some());
        loads.forget(9, "3");
        assert!(loads.attach(9, "3", uri).unwrap().is_none(), "an answered load is forgotten");
    }
}
