//! The addresses of one host: which of them a new connection goes to.
//!
//! An address with five failures in a row is left out for a while, longer each time; one that is
//! much slower than its peers gets half the connections, or, if it is slower still, is left out
//! too. Of two random ones that remain, the one with fewer connections is taken. At most half are
//! left out and one always stays; if all that stay fail as well, the marks say nothing and are
//! ignored. An address that comes back gets one connection until that one has served.
//!
//! Times and random numbers come in as arguments; owned by the book of all hosts, under its lock.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::jittered;

/// Failures in a row after which an address is left out.
const FAILURES_MAX: u32 = 5;
/// Parts that a judgement of an address's speed takes.
const PARTS: usize = 20;
/// Parts after which one that crawls is left out: as many as failures, for a crawl costs its caller
/// as much.
const PARTS_CRAWLING: usize = 5;
/// An address this many times slower than the median of its peers gets half weight.
const SLOW: f64 = 3.0;
/// One this many times slower is left out.
const CRAWLING: f64 = 8.0;
/// An address that no answer of the resolver named for so long is forgotten.
const KEPT: Duration = Duration::from_secs(300);
/// Addresses remembered of one host.
const ADDRESSES_MAX: usize = 64;

/// How an exchange with an address went, as far as the address answers for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    /// It answered.
    Answered,
    /// It brought a part: so many bytes in so much time.
    Served { bytes: u64, time: Duration },
    /// It was not reached, broke off, was silent or failed.
    Failed,
}

/// What is known of one address of a host.
#[derive(Debug, Clone, PartialEq)]
pub struct AddressStats {
    /// The host's name.
    pub host: String,
    /// The address.
    pub address: IpAddr,
    /// Connections to it.
    pub connections: usize,
    /// Its share of new connections, against 1 of a good one.
    pub weight: f64,
    /// How long it is still left out.
    pub ejected: Option<Duration>,
    /// How often it was left out.
    pub ejections: u64,
    /// How often of these for being slow.
    pub slow_ejections: u64,
    /// Failures in a row.
    pub failures: u32,
    /// Median speed of its last parts.
    pub bytes_per_second: Option<f64>,
}

#[derive(Debug)]
struct Address {
    connections: usize,
    failures: u32,
    ejected_until: Option<Instant>,
    /// The multiple of the base time that the next ejection lasts, less one.
    fouls: u32,
    /// It came back and has not served since.
    probation: bool,
    ejections: u64,
    slow_ejections: u64,
    named: Instant,
    speeds: Vec<f64>,
    next_speed: usize,
    median: Option<f64>,
}

/// The addresses of one host.
#[derive(Debug)]
pub(crate) struct Addresses {
    base: Duration,
    cap: Duration,
    known: BTreeMap<IpAddr, Address>,
}

impl Addresses {
    /// An ejection lasts `base`, times how often it happened, up to `cap`.
    pub(crate) fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, known: BTreeMap::new() }
    }

    /// The order in which to dial: the best first, those that are left out last. `avoid` is the
    /// address that has just failed; `random` gives numbers uniform in `0.0..1.0`.
    pub(crate) fn order(
        &mut self,
        named: &[IpAddr],
        avoid: Option<IpAddr>,
        now: Instant,
        mut random: impl FnMut() -> f64,
    ) -> Vec<IpAddr> {
        self.note_named(named, now);
        let mut all: Vec<IpAddr> = named.to_vec();
        all.sort_unstable();
        all.dedup();
        let (mut good, mut bad): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|address| self.usable(*address, now));
        let failing = |address: &IpAddr| self.failures(*address) >= FAILURES_MAX;
        if good.iter().all(failing) {
            good.append(&mut bad);
        }
        let mut order = Vec::with_capacity(named.len());
        let avoided = avoid.and_then(|avoid| take(&mut good, avoid));
        while let Some(best) = self.least_loaded_of_two(&mut good, &mut random) {
            order.push(best);
        }
        order.extend(avoided);
        bad.sort_by_key(|address| self.known.get(address).and_then(|known| known.ejected_until));
        order.extend(bad);
        order
    }

    /// A connection to it was made, or is gone.
    pub(crate) fn connected(&mut self, address: IpAddr, more: bool) {
        let Some(known) = self.known.get_mut(&address) else { return };
        known.connections =
            if more { known.connections + 1 } else { known.connections.saturating_sub(1) };
    }

    /// Judges an address by what it did. `unit` is uniform in `0.0..1.0`.
    pub(crate) fn did(&mut self, address: IpAddr, deed: Deed, now: Instant, unit: f64) {
        let Some(known) = self.known.get_mut(&address) else { return };
        match deed {
            Deed::Answered => known.well(),
            Deed::Served { bytes, time } => {
                known.well();
                known.note_speed(bytes, time);
                if self.crawls(address) {
                    let out = self.eject(address, now, unit);
                    let known = self.known.get_mut(&address).filter(|_| out);
                    known.into_iter().for_each(|known| known.slow_ejections += 1);
                }
            }
            Deed::Failed => {
                known.failures = known.failures.saturating_add(1);
                if known.failures >= FAILURES_MAX || known.probation {
                    self.eject(address, now, unit);
                }
            }
        }
    }

    /// Whether connections to it that exist should not be used again.
    pub(crate) fn is_shunned(&self, address: IpAddr, now: Instant) -> bool {
        self.is_out(address, now) || self.weight(address) < 1.0
    }

    pub(crate) fn stats(&self, host: &str, now: Instant) -> Vec<AddressStats> {
        let stats = |(address, known): (&IpAddr, &Address)| AddressStats {
            host: host.to_owned(),
            address: *address,
            connections: known.connections,
            weight: if self.is_out(*address, now) { 0.0 } else { self.weight(*address) },
            ejected: known.ejected_until.filter(|until| *until > now).map(|until| until - now),
            ejections: known.ejections,
            slow_ejections: known.slow_ejections,
            failures: known.failures,
            bytes_per_second: known.median,
        };
        self.known.iter().map(stats).collect()
    }

    /// Whether nothing would be lost by forgetting the host.
    pub(crate) fn is_idle(&self) -> bool {
        self.known.values().all(|known| known.connections == 0)
    }

    fn note_named(&mut self, named: &[IpAddr], now: Instant) {
        for address in named {
            if let Some(known) = self.known.get_mut(address) {
                known.named = now;
            }
        }
        self.known.retain(|_, known| known.connections > 0 || now < known.named + KEPT);
        for address in named {
            if self.known.contains_key(address) {
                continue;
            }
            if self.known.len() < ADDRESSES_MAX {
                self.known.insert(*address, Address::new(now));
            }
        }
        for known in self.known.values_mut() {
            if known.ejected_until.is_some_and(|until| until <= now) {
                known.ejected_until = None;
                known.probation = true;
                known.failures = 0;
            }
        }
    }

    fn is_out(&self, address: IpAddr, now: Instant) -> bool {
        let until = self.known.get(&address).and_then(|known| known.ejected_until);
        until.is_some_and(|until| until > now)
    }

    fn usable(&self, address: IpAddr, now: Instant) -> bool {
        let on_trial =
            self.known.get(&address).is_some_and(|known| known.probation && known.connections > 0);
        !self.is_out(address, now) && !on_trial
    }

    fn failures(&self, address: IpAddr) -> u32 {
        self.known.get(&address).map_or(0, |known| known.failures)
    }

    fn least_loaded_of_two(
        &self,
        from: &mut Vec<IpAddr>,
        random: &mut impl FnMut() -> f64,
    ) -> Option<IpAddr> {
        let one = pick(from.len(), random())?;
        let one = from.swap_remove(one);
        let Some(two) = pick(from.len(), random()) else { return Some(one) };
        let other = *from.get(two)?;
        if self.load(one) <= self.load(other) {
            return Some(one);
        }
        from.swap_remove(two);
        from.push(one);
        Some(other)
    }

    fn load(&self, address: IpAddr) -> f64 {
        let known = self.known.get(&address);
        let connections = known.map_or(0, |known| known.connections);
        (connections as f64 + 1.0) / self.weight(address)
    }

    fn weight(&self, address: IpAddr) -> f64 {
        if self.slowness(address).is_some_and(|times| times > SLOW) { 0.5 } else { 1.0 }
    }

    /// How many times slower than the median of its peers it is.
    fn slowness(&self, address: IpAddr) -> Option<f64> {
        let mine = self.known.get(&address)?.median?;
        let peers = self.known.iter().filter(|(peer, _)| **peer != address);
        let peers: Vec<f64> = peers.filter_map(|(_, known)| known.median).collect();
        Some(median(peers)? / mine.max(f64::MIN_POSITIVE))
    }

    /// Leaves an address out, unless too many are; whether it did.
    /// Whether its few last parts were so much slower than those of its peers that no more are
    /// needed to say so.
    fn crawls(&self, address: IpAddr) -> bool {
        let mine = self.known.get(&address).and_then(Address::recent);
        let peers = self.known.iter().filter(|(peer, _)| **peer != address);
        let peers = median(peers.filter_map(|(_, known)| known.recent()).collect());
        let slowness = mine.zip(peers).map(|(mine, peers)| peers / mine.max(f64::MIN_POSITIVE));
        slowness.is_some_and(|times| times >= CRAWLING)
    }

    fn eject(&mut self, address: IpAddr, now: Instant, unit: f64) -> bool {
        let current = |known: &&Address| now < known.named + KEPT;
        let all = self.known.values().filter(current).count();
        let out = |known: &&Address| known.ejected_until.is_some_and(|until| until > now);
        let out = self.known.values().filter(current).filter(out).count();
        let (base, cap) = (self.base, self.cap);
        let Some(known) = self.known.get_mut(&address) else { return false };
        if known.ejected_until.is_some_and(|until| until > now) || (out + 1) * 2 > all {
            return false;
        }
        known.fouls = known.fouls.saturating_add(1);
        known.ejections += 1;
        known.probation = false;
        known.forget_speeds();
        let time = base.saturating_mul(known.fouls).min(cap);
        known.ejected_until = Some(now + jittered(time, unit));
        true
    }
}

impl Address {
    fn new(now: Instant) -> Self {
        Self {
            connections: 0,
            failures: 0,
            ejected_until: None,
            fouls: 0,
            probation: false,
            ejections: 0,
            slow_ejections: 0,
            named: now,
            speeds: Vec::new(),
            next_speed: 0,
            median: None,
        }
    }

    fn well(&mut self) {
        self.failures = 0;
        self.probation = false;
    }

    /// The median speed of the parts there are, once there are some.
    fn recent(&self) -> Option<f64> {
        let enough = self.speeds.len() >= PARTS_CRAWLING;
        enough.then(|| median(self.speeds.clone())).flatten()
    }

    fn note_speed(&mut self, bytes: u64, time: Duration) {
        let speed = bytes as f64 / time.as_secs_f64().max(1e-6);
        match self.speeds.get_mut(self.next_speed) {
            Some(place) => *place = speed,
            None => self.speeds.push(speed),
        }
        self.next_speed = (self.next_speed + 1) % PARTS;
        if self.speeds.len() == PARTS {
            self.median = median(self.speeds.clone());
            // A whole round of good parts works one foul off.
            if self.next_speed == 0 {
                self.fouls = self.fouls.saturating_sub(1);
            }
        }
    }

    fn forget_speeds(&mut self) {
        self.speeds.clear();
        self.next_speed = 0;
        self.median = None;
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn take(from: &mut Vec<IpAddr>, address: IpAddr) -> Option<IpAddr> {
    let at = from.iter().position(|other| *other == address)?;
    Some(from.swap_remove(at))
}

/// One of so many places, by a number in `0.0..1.0`; none of none.
fn pick(places: usize, unit: f64) -> Option<usize> {
    let share = |place: usize| (place + 1) as f64 / places as f64;
    (0..places).find(|place| unit < share(*place)).or_else(|| places.checked_sub(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: Duration = Duration::from_secs(30);
    const MIDDLE: f64 = 0.5;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    fn named(count: u8) -> Vec<IpAddr> {
        (1..=count).map(ip).collect()
    }

    fn host(count: u8, now: Instant) -> Addresses {
        let mut addresses = Addresses::new(BASE, Duration::from_secs(300));
        addresses.order(&named(count), None, now, || MIDDLE);
        addresses
    }

    fn fail(addresses: &mut Addresses, address: IpAddr, times: u32, now: Instant) {
        (0..times).for_each(|_| addresses.did(address, Deed::Failed, now, MIDDLE));
    }

    fn order(addresses: &mut Addresses, count: u8, now: Instant) -> Vec<IpAddr> {
        addresses.order(&named(count), None, now, || MIDDLE)
    }

    #[test]
    fn five_failures_in_a_row_and_not_four() {
        let now = Instant::now();
        let mut addresses = host(8, now);
        fail(&mut addresses, ip(3), 4, now);
        addresses.did(ip(3), Deed::Answered, now, MIDDLE);
        fail(&mut addresses, ip(3), 4, now);
        assert!(!addresses.is_shunned(ip(3), now));
        fail(&mut addresses, ip(3), 1, now);
        assert!(addresses.is_shunned(ip(3), now));
        assert_eq!(order(&mut addresses, 8, now).last(), Some(&ip(3)));
        let stats = addresses.stats("h", now);
        assert_eq!((stats[2].ejected, stats[2].ejections, stats[2].weight), (Some(BASE), 1, 0.0));
    }

    #[test]
    fn one_comes_back_on_trial_and_goes_for_longer() {
        let mut now = Instant::now();
        let mut addresses = host(4, now);
        fail(&mut addresses, ip(1), 5, now);
        for times in 2..13 {
            now += BASE * (times - 1).min(10);
            let first = |addresses: &mut Addresses| {
                addresses.order(&named(4), None, now, || 0.0).contains(&ip(1))
            };
            assert!(first(&mut addresses) && !addresses.is_shunned(ip(1), now));
            addresses.connected(ip(1), true);
            assert_eq!(order(&mut addresses, 4, now).last(), Some(&ip(1)), "one at a time");
            addresses.connected(ip(1), false);
            fail(&mut addresses, ip(1), 1, now);
            let ejected = addresses.stats("h", now)[0].ejected;
            assert_eq!(ejected, Some(BASE * times.min(10)), "{times}");
        }
    }

    #[test]
    fn half_may_be_left_out_and_one_stays() {
        let now = Instant::now();
        for (count, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (8, 4)] {
            let mut addresses = host(count, now);
            for address in named(count) {
                fail(&mut addresses, address, 9, now);
            }
            let out = addresses.stats("h", now).iter().filter(|a| a.ejected.is_some()).count();
            assert_eq!(out, most, "of {count}");
        }
    }

    #[test]
    fn where_all_are_bad_the_marks_are_ignored() {
        let now = Instant::now();
        let mut addresses = host(4, now);
        for address in named(4) {
            fail(&mut addresses, address, 9, now);
        }
        let firsts: std::collections::BTreeSet<IpAddr> = (0..100)
            .map(|n| addresses.order(&named(4), None, now, || f64::from(n) / 100.0)[0])
            .collect();
        assert_eq!(firsts.len(), 4);
    }

    #[test]
    fn fewer_connections_are_better_and_the_failed_one_comes_last() {
        let now = Instant::now();
        let mut addresses = host(2, now);
        addresses.connected(ip(1), true);
        let mut first = |avoid| {
            let units = [0.0, 0.25, 0.5, 0.75, 0.99];
            units.map(|unit| addresses.order(&named(2), avoid, now, || unit)[0])
        };
        assert_eq!(first(None), [ip(2); 5]);
        assert_eq!(first(Some(ip(2))), [ip(1); 5]);
        assert_eq!(addresses.order(&[ip(1)], Some(ip(1)), now, || MIDDLE), [ip(1)]);
    }

    fn serve(addresses: &mut Addresses, address: IpAddr, millis: u64, now: Instant) {
        let deed = Deed::Served { bytes: 1 << 20, time: Duration::from_millis(millis) };
        (0..PARTS).for_each(|_| addresses.did(address, deed, now, MIDDLE));
    }

    #[test]
    fn a_slow_one_has_half_weight_and_a_crawling_one_is_left_out() {
        let now = Instant::now();
        let mut addresses = host(4, now);
        (1..=3).for_each(|last| serve(&mut addresses, ip(last), 10, now));
        serve(&mut addresses, ip(4), 29, now);
        assert!(!addresses.is_shunned(ip(4), now));
        serve(&mut addresses, ip(4), 40, now);
        assert_eq!(addresses.stats("h", now)[3].weight, 0.5);
        assert!(addresses.is_shunned(ip(4), now));
        serve(&mut addresses, ip(4), 200, now);
        assert!(addresses.stats("h", now)[3].ejected.is_some());
        // Alone, nothing is slow.
        let mut addresses = host(1, now);
        serve(&mut addresses, ip(1), 5000, now);
        assert!(!addresses.is_shunned(ip(1), now));
    }

    #[test]
    fn what_is_no_longer_named_is_forgotten() {
        let now = Instant::now();
        let mut addresses = host(3, now);
        let later = now + KEPT;
        addresses.order(&[ip(9)], None, later, || MIDDLE);
        assert_eq!(addresses.stats("h", later).len(), 1);
    }

    proptest! {
        /// Every named address is in the order once, and at most half are ever left out.
        #[test]
        fn an_order_is_a_permutation(
            count in 1_u8..12,
            deeds in prop::collection::vec((1_u8..12, 0_u8..4, 0_u64..40_000), 0..300),
            unit in 0.0_f64..1.0,
        ) {
            let mut now = Instant::now();
            let mut addresses = host(count, now);
            for (last, deed, millis) in deeds {
                now += Duration::from_millis(millis);
                let time = Duration::from_millis(millis);
                match deed {
                    0 => addresses.did(ip(last), Deed::Served { bytes: 1 << 20, time }, now, unit),
                    1 => addresses.connected(ip(last), millis % 2 == 0),
                    _ => addresses.did(ip(last), Deed::Failed, now, unit),
                }
                let mut order = addresses.order(&named(count), Some(ip(last)), now, || unit);
                order.sort_unstable();
                prop_assert_eq!(&order, &named(count));
                let out = addresses.stats("h", now).iter().filter(|a| a.ejected.is_some()).count();
                prop_assert!(out * 2 <= usize::from(count));
            }
        }
    }
}
