//! What origins, their endpoints and their addresses add to the exposition: read from their own
//! counts when somebody asks.
//!
//! An endpoint is called by its alias, the prefix of its block of the settings or its scheme, so
//! that there are as many names as somebody configured; endpoints of one name are added up.
//! Addresses and hosts have no name here.

use std::collections::BTreeMap;

use forebay_origin::{AddressStats, BreakerState, DnsCounters, EndpointStats};
use metrics::{counter, gauge};

use super::{
    ATTEMPTS, BREAKER_OPENINGS, BREAKER_STATE, BREAKER_TURNS, DNS_LOOKUPS, FREE_CONNECTIONS,
    HEDGE_DECISIONS, HEDGE_WASTED_BYTES, HEDGE_WINS, LIMITER_DROPS, LIMITER_INFLIGHT,
    LIMITER_LIMIT, LIMITER_OLDEST_SECONDS, LIMITER_STEPS, LIMITER_WAITING, POOL_EJECTED,
    POOL_EJECTIONS, POOL_SIZE, RETRIES_DENIED, RETRY_DECISIONS, RETRY_TOKENS, as_f64, set,
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
    let decisions = endpoints.iter().map(|stats| &stats.decisions);
    for ((made, reason), count) in sums(decisions.clone().map(|decisions| &decisions.retries)) {
        let labels = [("made", truth(made)), ("reason", reason)];
        counter!(RETRY_DECISIONS, &labels).absolute(count);
    }
    for ((made, reason), count) in sums(decisions.map(|decisions| &decisions.hedges)) {
        let labels = [("made", truth(made)), ("reason", reason)];
        counter!(HEDGE_DECISIONS, &labels).absolute(count);
    }
}

/// Counts of several endpoints, by what they count.
fn sums<'a, K: Ord + Copy + 'a>(
    counts: impl Iterator<Item = &'a BTreeMap<K, u64>>,
) -> BTreeMap<K, u64> {
    let mut sums = BTreeMap::new();
    for (key, count) in counts.flatten() {
        *sums.entry(*key).or_default() += count;
    }
    sums
}

fn truth(made: bool) -> &'static str {
    if made { "true" } else { "false" }
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
    let decisions = endpoints.iter().map(|stats| &stats.decisions);
    for (reason, count) in sums(decisions.clone().map(|decisions| &decisions.breaker_openings)) {
        counter!(BREAKER_OPENINGS, "endpoint" => name(), "reason" => reason).absolute(count);
    }
    for ((step, reason), count) in sums(decisions.map(|decisions| &decisions.limit_steps)) {
        counter!(LIMITER_STEPS, "limiter" => name(), "step" => step, "reason" => reason)
            .absolute(count);
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

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use forebay_origin::{
        AttemptClass, AttemptCount, AttemptEnd, BreakerTurns, Decisions, RefusedCounts,
    };
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    pub(in crate::metrics) fn endpoint(origin: &str, alias: &str) -> EndpointStats {
        let count = |class, end, count| AttemptCount { class, end, count };
        EndpointStats {
            origin: origin.to_owned(),
            alias: alias.to_owned(),
            tokens: 400,
            breaker: BreakerState::Closed,
            breaker_opened: 1,
            breaker_turns: BreakerTurns { opened: 2, half_opened: 2, closed: 1 },
            limit: 24,
            inflight: 20,
            waiting: 3,
            oldest_wait: Some(Duration::from_millis(1500)),
            sustained: Some(1e9),
            attempts: vec![
                count(AttemptClass::First, AttemptEnd::Answered, 100),
                count(AttemptClass::Retry, AttemptEnd::Failed("throttled"), 7),
                count(AttemptClass::Hedge, AttemptEnd::Cancelled, 2),
            ],
            retries: 7,
            retries_denied: 3,
            throttled: 7,
            timed_out: 1,
            refused: RefusedCounts { breaker_open: 5, queue_full: 0, late: 4 },
            hedges: 2,
            hedge_wins: 1,
            hedge_wasted_bytes: 4096,
            decisions: Decisions {
                retries: [((true, "throttled"), 7), ((false, "budget"), 3)].into(),
                hedges: [((true, "slow"), 2), ((false, "ends_soon"), 9)].into(),
                breaker_openings: [("unreachable", 1)].into(),
                limit_steps: [(("up", "trial"), 5), (("down", "throttled"), 2)].into(),
            },
        }
    }

    #[test]
    fn endpoints_of_one_name_add_up_and_no_host_is_a_name() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let open = BreakerState::Open(Duration::from_secs(3));
        let second = EndpointStats { tokens: 90, breaker: open, ..endpoint("s3://b", "s3") };
        let address = AddressStats {
            host: "canary.example".to_owned(),
            address: [192, 0, 2, 1].into(),
            connections: 3,
            weight: 0.0,
            ejected: Some(Duration::from_secs(9)),
            ejections: 5,
            slow_ejections: 2,
            failures: 5,
            bytes_per_second: None,
        };
        metrics::with_local_recorder(&recorder, || {
            endpoints(&[endpoint("s3://canary", "s3"), second, endpoint("https://h", "https")]);
            addresses(&[address]);
        });
        let shown = handle.render();
        for line in [
            "forebay_origin_attempts_total{class=\"first\",outcome=\"ok\",reason=\"none\"} 300",
            "forebay_origin_attempts_total{class=\"retry\",outcome=\"error\",reason=\"throttled\"} 21",
            "forebay_origin_attempts_total{class=\"hedge\",outcome=\"cancelled\",reason=\"none\"} 6",
            "forebay_origin_connections_free 12",
            "forebay_hedge_wins_total 3",
            "forebay_hedge_wasted_bytes_total 12288",
            "forebay_retry_budget_tokens{endpoint=\"s3\"} 90",
            "forebay_retry_budget_exhausted_total{endpoint=\"s3\"} 6",
            "forebay_breaker_state{endpoint=\"s3\"} 2",
            "forebay_breaker_state{endpoint=\"https\"} 0",
            "forebay_breaker_transitions_total{endpoint=\"s3\",to=\"open\"} 4",
            "forebay_limiter_limit{limiter=\"s3\"} 48",
            "forebay_limiter_inflight{limiter=\"https\"} 20",
            "forebay_limiter_oldest_wait_seconds{limiter=\"https\"} 1.5",
            "forebay_limiter_drops_total{limiter=\"s3\",reason=\"late\"} 8",
            "forebay_retry_decisions_total{made=\"true\",reason=\"throttled\"} 21",
            "forebay_retry_decisions_total{made=\"false\",reason=\"budget\"} 9",
            "forebay_hedge_decisions_total{made=\"false\",reason=\"ends_soon\"} 27",
            "forebay_breaker_openings_total{endpoint=\"s3\",reason=\"unreachable\"} 2",
            "forebay_limiter_steps_total{limiter=\"https\",step=\"up\",reason=\"trial\"} 5",
            "forebay_address_pool_size 1",
            "forebay_address_ejected 1",
            "forebay_address_ejections_total{reason=\"slow\"} 2",
            "forebay_address_ejections_total{reason=\"failing\"} 3",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}");
        }
        assert!(!shown.contains("canary") && !shown.contains("192.0.2.1"), "{shown}");
    }
}
