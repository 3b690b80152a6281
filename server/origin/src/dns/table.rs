//! What is known about names, what is due, what is served: pure, with `now` as an argument.
//!
//! ```text
//!            ask            take_due           finish(ok)              ttl over
//! (unknown) -----> wanted -----------> in flight -----> fresh ---------------------> stale
//!                    ^                     | finish(failure)                           |
//!                    |  held time over     v                        stale_max over     |
//!                    +------------------ failed <--------------------------------------+
//! ```
//!
//! A fresh or stale name is looked up again, with its addresses served meanwhile. Which names are
//! in flight is known here, so nobody looks up a name twice at once. A lookup whose end is never
//! told counts as lost after twice its time limit.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::failure::DnsFailure;
use super::settings::DnsSettings;
use super::snapshot::{DnsAddress, DnsCounters, DnsName, DnsState};

/// Addresses used of one answer.
const ANSWER_MAX: usize = 64;
/// Addresses remembered of one name.
const ADDRESSES_MAX: usize = 256;
/// Doublings of the wait after failures: beyond them every base has met its cap.
const DOUBLINGS_MAX: u32 = 16;

/// What a lookup gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) ttl: Duration,
}

/// What the table says to somebody who needs a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    Addresses(Vec<IpAddr>),
    Failed(DnsFailure),
    /// A lookup is due or in flight: ask again when one has ended.
    Wait,
}

/// All names.
#[derive(Debug)]
pub(crate) struct Table {
    settings: DnsSettings,
    entries: BTreeMap<String, Entry>,
    counters: DnsCounters,
}

#[derive(Debug)]
struct Entry {
    refresh_min: Duration,
    /// Somebody waits for a lookup, or the name is new.
    wanted: bool,
    /// A configured name: never forgotten.
    primed: bool,
    asked: Option<Instant>,
    in_flight_until: Option<Instant>,
    good: Option<Good>,
    /// The addresses of the last good answer first.
    addresses: Vec<Seen>,
    failed: Option<Failed>,
    failures: u32,
    ended: Option<Ended>,
}

#[derive(Debug, Clone, Copy)]
struct Good {
    at: Instant,
    ttl: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    address: IpAddr,
    at: Instant,
    /// The last good answer named it.
    current: bool,
}

/// Failed: the last lookup did, and this is why.
#[derive(Debug, Clone)]
struct Failed {
    why: DnsFailure,
    until: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Ended {
    at: Instant,
    took: Duration,
    /// Until the next lookup, if the name is in use.
    interval: Duration,
}

impl Table {
    pub(crate) fn new(settings: DnsSettings) -> Self {
        Self { settings, entries: BTreeMap::new(), counters: DnsCounters::default() }
    }

    /// Makes a name known and due, for good. False if there is no room.
    pub(crate) fn prime(&mut self, name: &str) -> bool {
        if !self.make_known(name) {
            return false;
        }
        if let Some(entry) = self.entries.get_mut(name) {
            entry.primed = true;
        }
        true
    }

    /// What to do for somebody who needs the name now, and whether something is due earlier for it.
    pub(crate) fn ask(&mut self, name: &str, now: Instant) -> (Asked, bool) {
        if !self.make_known(name) {
            return (Asked::Failed(DnsFailure::TooManyNames), false);
        }
        let Some(entry) = self.entries.get_mut(name) else { return (Asked::Wait, true) };
        let before = entry.due(&self.settings, now);
        entry.asked = Some(now);
        let asked = Self::answer(entry, &self.settings, &mut self.counters, now);
        let after = entry.due(&self.settings, now);
        let earlier = after.is_some_and(|after| before.is_none_or(|before| after < before));
        (asked, earlier || entry.ended.is_none())
    }

    fn answer(
        entry: &mut Entry,
        settings: &DnsSettings,
        counters: &mut DnsCounters,
        now: Instant,
    ) -> Asked {
        match entry.state(settings, now) {
            DnsState::Fresh => return Asked::Addresses(entry.current()),
            DnsState::Stale if entry.may_serve_stale(settings, now) => {
                counters.stale += 1;
                return Asked::Addresses(entry.current());
            }
            DnsState::Stale | DnsState::Pending | DnsState::Failed => {}
        }
        match &entry.failed {
            Some(failed) if now < failed.until => Asked::Failed(failed.why.clone()),
            _ => {
                entry.wanted = true;
                Asked::Wait
            }
        }
    }

    /// At most `limit` names to look up now, those asked for last first. Each is in flight until it
    /// is finished.
    pub(crate) fn take_due(&mut self, now: Instant, limit: usize) -> Vec<String> {
        self.forget(now);
        let lost_after = self.settings.lookup_timeout * 2;
        let mut due: Vec<(&String, &mut Entry)> = self.entries.iter_mut().collect();
        due.retain(|(_, entry)| entry.due(&self.settings, now).is_some_and(|due| due <= now));
        due.sort_by_key(|(_, entry)| Reverse(entry.asked));
        let take = |(name, entry): (&String, &mut Entry)| {
            entry.in_flight_until = Some(now + lost_after);
            entry.wanted = false;
            name.clone()
        };
        due.into_iter().take(limit).map(take).collect()
    }

    /// When to call `take_due` again, if nothing is asked before. Never before `now`.
    pub(crate) fn next_due(&self, now: Instant) -> Option<Instant> {
        let due = |entry: &Entry| entry.due(&self.settings, now);
        self.entries.values().filter_map(due).min().map(|due| due.max(now))
    }

    /// A lookup ended.
    pub(crate) fn finish(
        &mut self,
        name: &str,
        result: Result<Answer, DnsFailure>,
        took: Duration,
        now: Instant,
    ) {
        self.counters.lookup_time += took;
        let result = match result {
            Ok(answer) if answer.addresses.is_empty() => Err(DnsFailure::NoAddress { ttl: None }),
            other => other,
        };
        match &result {
            Ok(_) => self.counters.ok += 1,
            Err(why) if why.is_negative() => self.counters.nxdomain += 1,
            Err(DnsFailure::TimedOut(_)) => self.counters.timeout += 1,
            Err(_) => self.counters.servfail += 1,
        }
        let Some(entry) = self.entries.get_mut(name) else { return };
        entry.in_flight_until = None;
        // Whoever asked meanwhile finds an answer or a failure that is held.
        entry.wanted = false;
        let interval = match result {
            Ok(answer) => entry.succeed(&self.settings, answer, now),
            Err(why) => entry.fail(&self.settings, why, now),
        };
        entry.ended = Some(Ended { at: now, took, interval });
    }

    pub(crate) fn counters(&self) -> DnsCounters {
        self.counters
    }

    pub(crate) fn names(&self, now: Instant) -> Vec<DnsName> {
        self.entries.iter().map(|(name, entry)| entry.show(name, &self.settings, now)).collect()
    }

    /// An entry for the name, if need be in place of the one that was asked for longest ago.
    fn make_known(&mut self, name: &str) -> bool {
        if self.entries.contains_key(name) {
            return true;
        }
        if self.entries.len() >= self.settings.names_max && !self.evict() {
            return false;
        }
        let refresh_min = self.settings.refresh_min_of(name);
        self.entries.insert(name.to_owned(), Entry::new(refresh_min));
        true
    }

    /// Neither configured names nor names somebody waits for make room.
    fn evict(&mut self) -> bool {
        let idle =
            |entry: &Entry| !entry.primed && !entry.wanted && entry.in_flight_until.is_none();
        let oldest = self
            .entries
            .iter()
            .filter(|(_, entry)| idle(entry))
            .min_by_key(|(_, entry)| entry.asked)
            .map(|(name, _)| name.clone());
        oldest.is_some_and(|name| self.entries.remove(&name).is_some())
    }

    /// Names nobody asked for as long as stale answers are served are dropped.
    fn forget(&mut self, now: Instant) {
        let kept = self.settings.stale_max;
        self.entries.retain(|_, entry| {
            let idle = entry.asked.is_some_and(|asked| now >= asked + kept);
            entry.primed || entry.wanted || entry.in_flight_until.is_some() || !idle
        });
    }
}

impl Entry {
    fn new(refresh_min: Duration) -> Self {
        Self {
            refresh_min,
            wanted: true,
            primed: false,
            asked: None,
            in_flight_until: None,
            good: None,
            addresses: Vec::new(),
            failed: None,
            failures: 0,
            ended: None,
        }
    }

    fn state(&self, settings: &DnsSettings, now: Instant) -> DnsState {
        match self.good {
            Some(good) if now < good.at + good.ttl => DnsState::Fresh,
            Some(good) if now < good.at + good.ttl + settings.stale_max => DnsState::Stale,
            Some(_) => DnsState::Failed,
            None if self.failed.is_some() => DnsState::Failed,
            None => DnsState::Pending,
        }
    }

    /// While DNS works, addresses it did not confirm for long are not handed out before it is
    /// asked.
    fn may_serve_stale(&self, settings: &DnsSettings, now: Instant) -> bool {
        let kept = self.good.is_some_and(|good| now < good.at + settings.address_kept);
        kept || self.failures > 0
    }

    /// When the name is to be looked up next. `None`: when somebody asks.
    fn due(&self, settings: &DnsSettings, now: Instant) -> Option<Instant> {
        if self.in_flight_until.is_some() {
            return self.in_flight_until;
        }
        let Some(ended) = self.ended else { return Some(now) };
        if self.wanted {
            return Some(now);
        }
        // A name that never was is left alone until somebody wants it.
        if self.good.is_none() && !self.primed {
            return None;
        }
        let due = ended.at + ended.interval;
        let in_use = self.asked.is_some_and(|asked| due <= asked + settings.idle_after);
        Some(if in_use { due } else { due.max(ended.at + settings.refresh_idle) })
    }

    fn succeed(&mut self, settings: &DnsSettings, answer: Answer, now: Instant) -> Duration {
        // A refresh at 80 % of it is never earlier than `refresh_min`.
        let ttl_min = self.refresh_min.saturating_mul(5) / 4;
        let ttl = answer.ttl.max(ttl_min).min(settings.address_kept.max(ttl_min));
        let mut seen: Vec<Seen> = Vec::with_capacity(answer.addresses.len());
        for address in answer.addresses.into_iter().take(ANSWER_MAX) {
            if !seen.iter().any(|known| known.address == address) {
                seen.push(Seen { address, at: now, current: true });
            }
        }
        for old in std::mem::take(&mut self.addresses) {
            let kept = now < old.at + settings.address_kept && seen.len() < ADDRESSES_MAX;
            if kept && !seen.iter().any(|known| known.address == old.address) {
                seen.push(Seen { current: false, ..old });
            }
        }
        self.addresses = seen;
        self.good = Some(Good { at: now, ttl });
        self.failed = None;
        self.failures = 0;
        ttl.saturating_mul(4) / 5
    }

    fn fail(&mut self, settings: &DnsSettings, why: DnsFailure, now: Instant) -> Duration {
        let doublings = self.failures.min(DOUBLINGS_MAX);
        self.failures = self.failures.saturating_add(1);
        let backoff = settings.retry_base.saturating_mul(1 << doublings).min(settings.retry_max);
        // Nobody waits longer for a name that came into being than `negative_max`.
        let held = match why.negative_ttl() {
            Some(ttl) => {
                ttl.clamp(settings.retry_base.min(settings.negative_max), settings.negative_max)
            }
            None => backoff.min(settings.negative_max),
        };
        self.failed = Some(Failed { why, until: now + held });
        backoff
    }

    /// The addresses of the last good answer.
    fn current(&self) -> Vec<IpAddr> {
        self.addresses.iter().filter(|seen| seen.current).map(|seen| seen.address).collect()
    }

    fn show(&self, name: &str, settings: &DnsSettings, now: Instant) -> DnsName {
        let since = |at: Instant| now.saturating_duration_since(at);
        let good_at = self.good.map(|good| good.at);
        let show = |seen: &Seen| DnsAddress {
            address: seen.address,
            current: seen.current,
            age: since(seen.at),
        };
        let refresh_in = match self.in_flight_until {
            Some(_) => Some(Duration::ZERO),
            None => self.due(settings, now).map(|due| due.saturating_duration_since(now)),
        };
        DnsName {
            name: name.to_owned(),
            state: self.state(settings, now),
            addresses: self.addresses.iter().map(show).collect(),
            age: good_at.map(since),
            ttl: self.good.map(|good| good.ttl),
            refresh_in,
            took: self.ended.map(|ended| ended.took),
            failures: self.failures,
            last_failure: self.failed.as_ref().map(|failed| failed.why.to_string()),
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
