//! What origins, their endpoints and their addresses add to the exposition: read from their own
//! counts when somebody asks.
//!
//! An endpoint is called by its alias, the prefix of its block of the settings or its scheme, so that
//! there are as many names as somebody configured; endpoints of one name are added up. Addresses and
//! hosts have no name here.

use std::collections::BTreeMap;

use forebay_origin::{AddressStats, BreakerState, DnsCounters, EndpointStats};
use metrics::{counter, gauge};

use super::{
    ATTEMPTS, BREAKER_STATE, BREAKER_TURNS, DNS_LOOKUPS, FREE_CONNECTIONS, HEDGE_WASTED_BYTES,
    HEDGE_WINS, LIMITER_DROPS, LIMITER_INFLIGHT, LIMITER_LIMIT, LIMITER_OLDEST_SECONDS,
    LIMITER_WAITING, POOL_EJECTED, POOL_EJECTIONS, POOL_SIZE, RETRIES_DENIED, RETRY_TOKENS, as_f64,
    set,
};

/// Endpoints as they are, and what they did so far.
pub(crate) fn endpoints(endpoints: &[EndpointStats]) {
    let sum = |of: fn(&EndpointStats) -> u64| endpoints.iter().map(of).sum::<u64>();
    set(FREE_CONNECTIONS, sum(|stats| stats.limit.saturating_sub(stats.inflight) as u64));
    counter!(HEDGE_WINS).absolute(sum(|stats| stats.hedge_wins));
    counter!(HEDGE_WASTED_BYTES).absolute(sum(|stats| stats.hedge_wasted_bytes));
    let mut attempts: BTreeMap<_, u64> = BTreeMap::new();
    for count in endpoints.iter().flat_map(|stats| &stats.attempts) {
        let (outcome, reason) = count.end.labels();
        *attempts.entry((count.class.as_str(), outcome, reason)).or_default() += count.count;
    }
    for ((class, outcome, reason), count) in attempts {
        let labels = [("class", class), ("outcome", outcome), ("reason", reason)];
        counter!(ATTEMPTS, &labels).absolute(count);
    }
    let mut named: BTreeMap<&str, Vec<&EndpointStats>> = BTreeMap::new();
    for stats in endpoints {
        named.entry(&stats.alias).or_default().push(stats);
    }
    named.iter().for_each(|(alias, stats)| of_one_name(alias, stats));
}

fn of_one_name(alias: &str, endpoints: &[&EndpointStats]) {
    let name = || alias.to_owned();
    let sum = |of: fn(&EndpointStats) -> u64| endpoints.iter().map(|stats| of(stats)).sum::<u64>();
    let tokens = endpoints.iter().map(|stats| stats.tokens).min().unwrap_or_default();
    gauge!(RETRY_TOKENS, "endpoint" => name()).set(f64::from(tokens));
    counter!(RETRIES_DENIED, "endpoint" => name()).absolute(sum(|stats| stats.retries_denied));
    let state = endpoints.iter().map(|stats| breaker_number(stats.breaker)).max();
    gauge!(BREAKER_STATE, "endpoint" => name()).set(f64::from(state.unwrap_or_default()));
    for (to, count) in [
        ("closed", sum(|stats| stats.breaker_turns.closed)),
        ("half_open", sum(|stats| stats.breaker_turns.half_opened)),
        ("open", sum(|stats| stats.breaker_turns.opened)),
    ] {
        counter!(BREAKER_TURNS, "endpoint" => name(), "to" => to).absolute(count);
    }
    for (gauge, value) in [
        (LIMITER_LIMIT, sum(|stats| stats.limit as u64)),
        (LIMITER_INFLIGHT, sum(|stats| stats.inflight as u64)),
        (LIMITER_WAITING, sum(|stats| stats.waiting as u64)),
    ] {
        gauge!(gauge, "limiter" => name()).set(as_f64(value));
    }
    let oldest = endpoints.iter().filter_map(|stats| stats.oldest_wait).max().unwrap_or_default();
    gauge!(LIMITER_OLDEST_SECONDS, "limiter" => name()).set(oldest.as_secs_f64());
    for (reason, count) in [
        ("throttled", sum(|stats| stats.throttled)),
        ("timeout", sum(|stats| stats.timed_out)),
        ("breaker_open", sum(|stats| stats.refused.breaker_open)),
        ("queue_full", sum(|stats| stats.refused.queue_full)),
        ("late", sum(|stats| stats.refused.late)),
    ] {
        counter!(LIMITER_DROPS, "limiter" => name(), "reason" => reason).absolute(count);
    }
}

fn breaker_number(state: BreakerState) -> u8 {
    match state {
        BreakerState::Closed => 0,
        BreakerState::HalfOpen => 1,
        BreakerState::Open(_) => 2,
    }
}

/// Addresses of all hosts.
pub(crate) fn addresses(addresses: &[AddressStats]) {
    set(POOL_SIZE, addresses.len() as u64);
    let out = addresses.iter().filter(|address| address.ejected.is_some()).count();
    set(POOL_EJECTED, out as u64);
    let all: u64 = addresses.iter().map(|address| address.ejections).sum();
    let slow: u64 = addresses.iter().map(|address| address.slow_ejections).sum();
    counter!(POOL_EJECTIONS, "reason" => "slow").absolute(slow);
    counter!(POOL_EJECTIONS, "reason" => "failing").absolute(all.saturating_sub(slow));
}

/// Look-ups so far, by result.
pub(crate) fn dns_lookups(counters: &DnsCounters) {
    let by_result = [
        ("ok", counters.ok),
        ("nxdomain", counters.nxdomain),
        ("servfail", counters.servfail),
        ("timeout", counters.timeout),
        ("stale", counters.stale),
    ];
    for (result, count) in by_result {
        counter!(DNS_LOOKUPS, "result" => result).absolute(count);
    }
}
