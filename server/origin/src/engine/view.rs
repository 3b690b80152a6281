//! An endpoint as those see it who plan what to ask of it: what it takes now, and their part of
//! that.
//!
//! Who has a [`Share`] keeps as many requests on their way as it says: together they are twice what
//! may be under way, so that each connection has its next part ready and a limit that grows finds
//! work, while the line before the endpoint stays as short as the limit.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::endpoint::Endpoint;
use super::news::EndpointEvent;

/// Requests on their way for each that may be under way.
const ON_THEIR_WAY: usize = 2;

/// One endpoint.
#[derive(Debug, Clone)]
pub struct EndpointView(Arc<Endpoint>);

/// What shares of an endpoint are counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Loads, which ask for chunks.
    Loads,
    /// Chunks, which ask for parts.
    Chunks,
}

/// Whose share it is. Groups get parts by their weights, users of a group equal parts of its part,
/// and what they ask for at one time equal parts of theirs: nobody gets more by asking more often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Party {
    /// Which group.
    pub group: u32,
    /// What its part is beside those of the others; one at least. Every party of a group says the
    /// same.
    pub weight: u32,
    /// Which user of the group.
    pub user: u32,
}

/// Who has a share of an endpoint, counted: of each group its weight, and of each of its users how
/// many shares there are.
#[derive(Debug, Default)]
pub(super) struct Sharers {
    loads: Mutex<Groups>,
    chunks: Mutex<Groups>,
}

#[derive(Debug, Default)]
struct Groups(BTreeMap<u32, (u32, BTreeMap<u32, usize>)>);

impl Groups {
    fn add(&mut self, party: Party) {
        let (weight, users) = self.0.entry(party.group).or_default();
        *weight = party.weight.max(1);
        *users.entry(party.user).or_default() += 1;
    }

    fn take(&mut self, party: Party) {
        let Some((_, users)) = self.0.get_mut(&party.group) else { return };
        if let Some(count) = users.get_mut(&party.user) {
            *count = count.saturating_sub(1);
        }
        users.retain(|_, count| *count > 0);
        self.0.retain(|_, (_, users)| !users.is_empty());
    }

    /// What one share of a party is of `all`, rounded up; one at least.
    fn part(&self, party: Party, all: usize) -> usize {
        let weights: usize = self.0.values().map(|(weight, _)| *weight as usize).sum();
        let Some((weight, users)) = self.0.get(&party.group) else { return all.max(1) };
        let shares = users.get(&party.user).copied().unwrap_or(1).max(1);
        let parts = weights.saturating_mul(users.len().max(1)).saturating_mul(shares);
        all.saturating_mul(*weight as usize).div_ceil(parts.max(1)).max(1)
    }
}

impl Sharers {
    fn of(&self, sharing: Sharing) -> MutexGuard<'_, Groups> {
        let groups = match sharing {
            Sharing::Loads => &self.loads,
            Sharing::Chunks => &self.chunks,
        };
        groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of an endpoint that one of several has, until it is dropped.
#[derive(Debug)]
pub struct Share {
    endpoint: Arc<Endpoint>,
    sharing: Sharing,
    party: Party,
    /// Decisions of the endpoint that its owner has heard of, or that were before its time.
    heard: AtomicU64,
}

impl EndpointView {
    pub(crate) fn new(endpoint: Arc<Endpoint>) -> Self {
        Self(endpoint)
    }

    /// Bytes per second that it brought lately while it was asked for all it could; none before
    /// enough was measured. More than that cannot be counted on.
    #[must_use]
    pub fn sustained(&self) -> Option<f64> {
        self.0.sustained()
    }

    /// One more who asks of it, where all are alike.
    #[must_use]
    pub fn share(&self, sharing: Sharing) -> Share {
        self.share_of(sharing, Party::default())
    }

    /// One more who asks of it, for somebody.
    #[must_use]
    pub fn share_of(&self, sharing: Sharing, party: Party) -> Share {
        self.0.sharers().of(sharing).add(party);
        let heard = AtomicU64::new(self.0.news(u64::MAX).0);
        Share { endpoint: Arc::clone(&self.0), sharing, party, heard }
    }
}

impl Share {
    /// Requests that may be under way at the endpoint now, of all who ask.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.endpoint.limit()
    }

    /// What the endpoint decided since this was last asked, or since the share was had: about its
    /// limit and its breaker.
    #[must_use]
    pub fn news(&self) -> Vec<EndpointEvent> {
        let (count, news) = self.endpoint.news(self.heard.load(Ordering::Relaxed));
        self.heard.store(count, Ordering::Relaxed);
        news
    }

    /// What this one may have on its way now; at least one.
    #[must_use]
    pub fn on_its_way(&self) -> usize {
        let all = self.endpoint.limit().saturating_mul(ON_THEIR_WAY);
        self.endpoint.sharers().of(self.sharing).part(self.party, all)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.endpoint.sharers().of(self.sharing).take(self.party);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::endpoint::EndpointSpec;
    use crate::settings::EngineSettings;

    #[test]
    fn groups_get_parts_by_weight_and_asking_more_often_gives_none() {
        let party = |group, weight, user| Party { group, weight, user };
        let (a, b) = (party(1, 3, 0), party(2, 1, 0));
        let mut groups = Groups::default();
        assert_eq!(groups.part(a, 100), 100);
        groups.add(a);
        assert_eq!(groups.part(a, 100), 100, "alone it has all");
        (0..50).for_each(|_| groups.add(b));
        assert_eq!((groups.part(a, 100), groups.part(b, 100)), (75, 1));
        let other = party(1, 3, 9);
        groups.add(other);
        assert_eq!((groups.part(a, 100), groups.part(other, 100)), (38, 38));
        (0..50).for_each(|_| groups.take(b));
        assert_eq!(groups.part(a, 100), 50);
        groups.take(a);
        groups.take(other);
        assert!(groups.0.is_empty());
        groups.take(other);
        groups.add(party(5, 0, 0));
        assert_eq!(groups.part(party(5, 0, 0), 7), 7);
    }

    #[tokio::test]
    async fn shares_are_alike_and_follow_the_limit_and_each_other() {
        let spec = EndpointSpec {
            origin: "s3://b",
            alias: "s3",
            max_connections: Some(6),
            max_bytes_per_second: None,
            counters: Arc::default(),
        };
        let view = EndpointView::new(Endpoint::new(spec, &EngineSettings::default()));
        let one = view.share(Sharing::Loads);
        assert_eq!(one.on_its_way(), 12);
        let chunk = view.share(Sharing::Chunks);
        let others: Vec<_> = (0..4).map(|_| view.share(Sharing::Loads)).collect();
        assert_eq!((one.on_its_way(), chunk.on_its_way()), (3, 12));
        let many: Vec<_> = (0..100).map(|_| view.share(Sharing::Loads)).collect();
        assert_eq!(one.on_its_way(), 1);
        drop((others, many));
        assert_eq!(one.on_its_way(), 12);
    }
}
