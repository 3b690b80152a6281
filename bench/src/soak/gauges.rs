//! Which gauges are zero when nobody wants anything, and which are not.
//!
//! Every gauge of the daemon is in this table, in one way or the other: one that it does not have
//! is a miss, so that a new one has to be thought about.

/// What a gauge is when nobody wants anything.
#[derive(Debug, Clone, Copy)]
enum AtRest {
    Zero,
    /// Where a label has one of these values.
    ZeroFor(&'static str, &'static [&'static str]),
    /// Something else.
    Stands,
}

use AtRest::{Stands, Zero, ZeroFor};

const SLOTS_IN_USE: &[&str] = &["filling", "leased"];

const GAUGES: &[(&str, AtRest)] = &[
    // What clients have, and wait for.
    ("forebay_sessions", Zero),
    ("forebay_leases", Zero),
    ("forebay_leased_bytes", Zero),
    ("forebay_leases_oldest_seconds", Zero),
    ("forebay_loads_active", Zero),
    ("forebay_admission_queue_depth", Zero),
    ("forebay_admission_oldest_wait_seconds", Zero),
    ("forebay_domain_sessions", Zero),
    ("forebay_domain_loads_active", Zero),
    ("forebay_domain_admission_queue_depth", Zero),
    // Slots.
    ("forebay_pinned_bytes", ZeroFor("state", SLOTS_IN_USE)),
    ("forebay_domain_pinned_bytes", ZeroFor("state", SLOTS_IN_USE)),
    ("forebay_numa_slot_bytes", ZeroFor("state", SLOTS_IN_USE)),
    ("forebay_ram_retiring_bytes", Zero),
    ("forebay_ram_retired_bytes", Zero),
    ("forebay_ram_retire_clients", Zero),
    ("forebay_staging_bytes", ZeroFor("state", &["lent"])),
    // What is on its way from origins.
    ("forebay_flights", Zero),
    ("forebay_limiter_inflight", Zero),
    ("forebay_limiter_waiting", Zero),
    ("forebay_limiter_oldest_wait_seconds", Zero),
    // The last loads were good ones.
    ("forebay_breaker_state", Zero),
    // The NVMe tier.
    ("forebay_cache_bytes", ZeroFor("state", &["filling", "pinned"])),
    ("forebay_cache_fill_queue_depth", Zero),
    ("forebay_nvme_io_queue_depth", Zero),
    ("forebay_nvme_io_oldest_wait_seconds", Zero),
    ("forebay_nvme_io_inflight", Zero),
    ("forebay_cache_disk_state", Zero),
    // Others.
    ("forebay_aliases", Zero),
    ("forebay_gpu_idle_confidence", Stands), // of the last load
    ("forebay_retry_budget_tokens", Stands), // they come back with requests that succeed
    ("forebay_limiter_limit", Stands),       // what was learnt
    ("forebay_origin_connections_free", Stands), // what was learnt
    ("forebay_address_pool_size", Stands),   // what was learnt
    ("forebay_address_ejected", Stands),     // for up to five minutes, after failures
    ("forebay_dns_age_seconds", Stands),     // an age
    ("forebay_cache_extents", Stands),       // what is stored
    ("forebay_cache_recovery_seconds", Stands), // of the start
    ("forebay_cache_recovered_entries", Stands), // of the start
    ("forebay_nvme_io_engine", Stands),      // one is in use
    ("forebay_decompress_cpu_seconds", Stands), // only grows
    ("forebay_numa_strayed_slots", Stands),  // as the machine gave them
    ("forebay_workers", Stands),             // threads that stay
    ("forebay_admission_queue_limit", Stands), // a setting
    ("forebay_admission_width", Stands),     // what was measured
    ("forebay_ram_populated_bytes", Stands), // the pool
    ("forebay_ram_budget_bytes", Stands),    // a setting
    ("forebay_ram_locked_bytes", Stands),    // the pool
    ("forebay_ram_huge_bytes", Stands),      // the pool
    ("forebay_domain_ram_budget_bytes", Stands), // a setting
    ("forebay_degraded", Stands),            // as the machine allows
];

/// What is not as it should be in an exposition, by series; and gauges that no table has.
pub(super) fn astray(exposition: &str) -> Vec<String> {
    let mut astray = Vec::new();
    let mut found = 0;
    for line in exposition.lines() {
        if let Some(typed) = line.strip_prefix("# TYPE ") {
            let name = typed.strip_suffix(" gauge").unwrap_or_default();
            if !name.is_empty() && !GAUGES.iter().any(|(known, _)| *known == name) {
                astray.push(format!("{name} is in no table"));
            }
            continue;
        }
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let name = series.split('{').next().unwrap_or_default();
        let Some((_, rest)) = GAUGES.iter().find(|(known, _)| *known == name) else { continue };
        found += 1;
        let must = match rest {
            Zero => true,
            ZeroFor(label, values) => {
                values.iter().any(|value| series.contains(&format!("{label}=\"{value}\"")))
            }
            Stands => false,
        };
        if must && value.parse::<f64>() != Ok(0.0) {
            astray.push(line.to_owned());
        }
    }
    if found == 0 {
        astray.push("nothing is exposed".to_owned());
    }
    astray
}

/// Gauges that have to be zero.
pub(super) fn held_to_zero() -> usize {
    GAUGES.iter().filter(|(_, rest)| !matches!(rest, Stands)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_zero_or_not_known_is_told() {
        let exposed = "# TYPE forebay_leases gauge\nforebay_leases 0\n\
                       # TYPE forebay_pinned_bytes gauge\n\
                       forebay_pinned_bytes{state=\"cached\"} 9\n\
                       forebay_pinned_bytes{state=\"leased\"} 1\n\
                       # TYPE forebay_new gauge\nforebay_new 0\n\
                       # TYPE forebay_loads_total counter\nforebay_loads_total 3\n";
        let astray = astray(exposed);
        assert_eq!(
            astray,
            ["forebay_pinned_bytes{state=\"leased\"} 1", "forebay_new is in no table"]
        );
        assert_eq!(super::astray(""), ["nothing is exposed"]);
    }

    #[test]
    fn each_gauge_is_there_once() {
        let names: std::collections::BTreeSet<_> = GAUGES.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), GAUGES.len());
        assert_eq!(held_to_zero(), 29);
    }
}
