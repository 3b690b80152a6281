//! `forebay status`: the daemon on one screen.

use forebay_client::model::{DaemonStatus, DomainStatus, NvmeStatus};

use crate::alias;
use crate::context::Context;
use crate::error::CliError;
use crate::json;
use crate::output::Output;
use crate::text::{Table, duration, printable, size};

pub(crate) async fn status(context: &Context, output: &mut Output) -> Result<(), CliError> {
    let status = context.client().status().await?;
    match output.is_json() {
        true => output.object(&json::status(&status)),
        false => output.text(&glance(&status)),
    }
}

fn glance(status: &DaemonStatus) -> String {
    let ram = &status.ram;
    let mut text = format!(
        "forebayd {}, up {}{}\n\
         {}\
         RAM  {} budget, {} populated in {} segments of {} chunks, {} locked\n     \
         {} cached, {} leased, {} filling, {} free\n",
        status.version,
        duration(status.uptime),
        if status.draining { ", draining" } else { "" },
        domain(&status.domain),
        size(ram.budget_bytes),
        size(ram.populated_bytes),
        ram.segments,
        size(ram.chunk_bytes),
        size(ram.locked_bytes),
        size(ram.cached_bytes),
        size(ram.leased_bytes),
        size(ram.filling_bytes),
        size(ram.free_bytes),
    );
    if ram.retiring_bytes + ram.retired_bytes > 0 {
        text.push_str(&format!(
            "     {} retiring, {} retired and still mapped by clients\n",
            size(ram.retiring_bytes),
            size(ram.retired_bytes)
        ));
    }
    text.push_str(&nvme(&status.nvme));
    for table in [
        nodes(status),
        queues(status),
        loads(status),
        alias::table(&status.aliases),
        origins(status),
        endpoints(status),
        addresses(status),
        names(status),
    ] {
        if !table.is_empty() {
            text.push('\n');
            text.push_str(&table.render());
        }
    }
    if !status.degraded.is_empty() {
        text.push_str("\nDegraded:\n");
    }
    for sentence in &status.degraded {
        text.push_str(&format!("  {}\n", printable(sentence)));
    }
    text
}

/// Whose view this is, and how much of its quotas is used; nothing of a daemon that does not tell.
fn domain(domain: &DomainStatus) -> String {
    if domain.name.is_empty() {
        return String::new();
    }
    let prefixes: Vec<_> = domain.uri_prefixes.iter().map(|prefix| printable(prefix)).collect();
    let may = match prefixes.as_slice() {
        [] => String::new(),
        prefixes => format!("\n       may load {}", prefixes.join(", ")),
    };
    format!(
        "Domain {}, {} of {} RAM used, {} of {} loads, {} sessions, share {}, lanes {}{may}\n",
        printable(&domain.name),
        size(domain.ram_used_bytes),
        size(domain.ram_budget_bytes),
        domain.loads,
        domain.loads_max,
        domain.sessions,
        domain.share,
        printable(&domain.lanes.join(", ")),
    )
}

fn nvme(nvme: &NvmeStatus) -> String {
    let state = printable(&nvme.state);
    let reason = nvme.engine_reason.as_deref().map(|reason| format!(" ({})", printable(reason)));
    let reason = reason.unwrap_or_default();
    if nvme.state == NvmeStatus::OFF {
        return format!("NVMe {state}{reason}\n");
    }
    format!(
        "NVMe {state}, {} of {} stored in {} extents, {} pinned, {} filling, \
         {} free on the disk\n     \
         {}{reason}, {}\n     \
         {} fills queued, {} given up, {} extents quarantined\n",
        size(nvme.stored_bytes),
        size(nvme.budget_bytes),
        nvme.extents,
        size(nvme.pinned_bytes),
        size(nvme.filling_bytes),
        size(nvme.disk_free_bytes),
        nvme.engine.as_deref().map_or_else(|| "no engine".into(), printable),
        nvme.recovery
            .map_or_else(|| "recovering".into(), |time| format!("recovered in {}", duration(time))),
        nvme.queued_fills,
        nvme.fills_given_up,
        nvme.quarantined,
    )
}

/// Nothing on a machine with one node: what there is to say of it stands above.
fn nodes(status: &DaemonStatus) -> Table {
    let headings = [
        "NODE", "CPUS", "MEMORY", "SLOTS", "STRAYED", "CACHED", "LEASED", "FILLING", "FREE",
        "WORKERS", "PINNED", "JOBS", "OFF NODE",
    ];
    let mut table = Table::new(&headings);
    for node in status.numa.nodes.iter().filter(|_| status.numa.nodes.len() > 1) {
        let cpus = if node.cpus.is_empty() { "-".to_owned() } else { printable(&node.cpus) };
        table.row(vec![
            node.node.to_string(),
            cpus,
            node.memory_bytes.map_or_else(|| "-".into(), size),
            node.slots.to_string(),
            node.strayed_slots.to_string(),
            size(node.cached_bytes),
            size(node.leased_bytes),
            size(node.filling_bytes),
            size(node.free_bytes),
            node.workers.to_string(),
            node.pinned_workers.to_string(),
            node.worker_jobs.to_string(),
            node.offnode_jobs.to_string(),
        ]);
    }
    table
}

fn queues(status: &DaemonStatus) -> Table {
    let mut table = Table::new(&["QUEUE", "DEPTH", "LIMIT", "OLDEST"]);
    for queue in &status.queues {
        table.row(vec![
            queue.name.clone(),
            queue.depth.to_string(),
            queue.limit.to_string(),
            duration(queue.oldest_wait),
        ]);
    }
    table
}

fn loads(status: &DaemonStatus) -> Table {
    let headings = ["LOAD", "LANE", "UID", "PID", "AGE", "GRANTED", "LEASED", "TOTAL", "URI"];
    let mut table = Table::new(&headings);
    for load in &status.loads {
        table.row(vec![
            load.load_id.clone(),
            load.lane.clone(),
            load.uid.to_string(),
            load.pid.to_string(),
            duration(load.age),
            size(load.granted_bytes),
            size(load.leased_bytes),
            size(load.total_bytes),
            printable(&load.uri),
        ]);
    }
    table
}

fn origins(status: &DaemonStatus) -> Table {
    let mut table = Table::new(&["ORIGIN", "REQUESTS", "ERRORS", "RECEIVED", "IN FLIGHT"]);
    for origin in &status.origins {
        table.row(vec![
            printable(&origin.origin),
            origin.requests.to_string(),
            origin.errors.to_string(),
            size(origin.bytes),
            origin.inflight.to_string(),
        ]);
    }
    table
}

fn endpoints(status: &DaemonStatus) -> Table {
    let headings = [
        "ENDPOINT",
        "LIMIT",
        "IN FLIGHT",
        "WAITING",
        "OLDEST",
        "SUSTAINED",
        "BREAKER",
        "TOKENS",
        "THROTTLED",
        "RETRIES",
        "DENIED",
        "HEDGES",
        "WON",
    ];
    let mut table = Table::new(&headings);
    for endpoint in &status.endpoints {
        let breaker = match endpoint.breaker_open.is_zero() {
            true => printable(&endpoint.breaker),
            false => format!("{} {}", endpoint.breaker, duration(endpoint.breaker_open)),
        };
        table.row(vec![
            printable(&endpoint.origin),
            endpoint.limit.to_string(),
            endpoint.inflight.to_string(),
            endpoint.waiting.to_string(),
            duration(endpoint.oldest_wait),
            speed(endpoint.sustained_bytes_per_second),
            breaker,
            endpoint.retry_tokens.to_string(),
            endpoint.throttled.to_string(),
            endpoint.retries.to_string(),
            endpoint.retries_denied.to_string(),
            endpoint.hedges.to_string(),
            endpoint.hedge_wins.to_string(),
        ]);
    }
    table
}

fn addresses(status: &DaemonStatus) -> Table {
    let headings =
        ["HOST", "ADDRESS", "CONNECTIONS", "WEIGHT", "LEFT OUT", "EJECTIONS", "FAILURES", "MEDIAN"];
    let mut table = Table::new(&headings);
    for address in &status.addresses {
        table.row(vec![
            printable(&address.host),
            printable(&address.address),
            address.connections.to_string(),
            format!("{:.1}", address.weight),
            address.ejected.map_or_else(|| "-".into(), |time| format!("for {}", duration(time))),
            address.ejections.to_string(),
            address.failures.to_string(),
            speed(address.bytes_per_second),
        ]);
    }
    table
}

fn names(status: &DaemonStatus) -> Table {
    let mut table = Table::new(&["NAME", "STATE", "AGE", "ADDRESSES", "LAST FAILURE"]);
    for name in &status.names {
        table.row(vec![
            printable(&name.name),
            printable(&name.state),
            name.age.map_or_else(|| "-".into(), duration),
            printable(&name.addresses.join(", ")),
            name.last_failure.as_deref().map_or_else(|| "-".into(), printable),
        ]);
    }
    table
}

fn speed(bytes_per_second: Option<f64>) -> String {
    bytes_per_second.map_or_else(|| "-".into(), |rate| format!("{:.1} MB/s", rate / 1e6))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn tier() -> NvmeStatus {
        NvmeStatus {
            state: "normal".into(),
            budget_bytes: 100 << 30,
            stored_bytes: 3 << 30,
            pinned_bytes: 1 << 30,
            filling_bytes: 8 << 20,
            disk_free_bytes: 50 << 30,
            extents: 412,
            queued_fills: 3,
            engine: Some("io_uring".into()),
            engine_reason: Some("the kernel has it".into()),
            quarantined: 2,
            fills_given_up: 1,
            recovery: Some(Duration::from_millis(1250)),
        }
    }

    #[test]
    fn a_domain_is_told_with_what_it_uses() {
        let mut found = DomainStatus {
            name: "serving".into(),
            ram_budget_bytes: 40 << 30,
            ram_used_bytes: 3 << 30,
            loads: 2,
            loads_max: 48,
            sessions: 3,
            share: 3,
            lanes: vec!["interactive".into(), "prefetch".into()],
            ..Default::default()
        };
        let line = "Domain serving, 3.0 GiB of 40.0 GiB RAM used, 2 of 48 loads, 3 sessions, \
                    share 3, lanes interactive, prefetch\n";
        assert_eq!(domain(&found), line);
        found.uri_prefixes = vec!["s3://m/a".into(), "s3://m/b\n".into()];
        assert!(domain(&found).ends_with("\n       may load s3://m/a, s3://m/b\\n\n"));
        assert_eq!(domain(&DomainStatus::default()), "");
    }

    #[test]
    fn the_nvme_tier_is_told_in_full() {
        let lines = [
            "NVMe normal, 3.0 GiB of 100.0 GiB stored in 412 extents, 1.0 GiB pinned, \
             8.0 MiB filling, 50.0 GiB free on the disk",
            "     io_uring (the kernel has it), recovered in 1.25s",
            "     3 fills queued, 1 given up, 2 extents quarantined",
            "",
        ];
        assert_eq!(nvme(&tier()), lines.join("\n"));
    }

    #[test]
    fn a_tier_that_does_not_know_its_extents_yet_is_recovering() {
        let tier = NvmeStatus { state: "recovering".into(), recovery: None, ..tier() };
        assert!(nvme(&tier).contains("(the kernel has it), recovering\n"), "{}", nvme(&tier));
    }

    #[test]
    fn a_tier_that_is_off_is_one_line() {
        let off = |engine_reason| {
            let state = NvmeStatus::OFF.into();
            nvme(&NvmeStatus { state, engine: None, engine_reason, ..tier() })
        };
        assert_eq!(off(None), "NVMe off\n");
        assert_eq!(off(Some("--nvme\n0".into())), "NVMe off (--nvme\\n0)\n");
    }
}
