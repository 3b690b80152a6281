//! `Doctor`: what of the machine, the settings and the daemon's state is in the way of loads.
//!
//! Facts of the machine come from `evidence::machine`, what was not had from the stages, the rest
//! is looked at here, once per call. Nothing here waits for an origin; services of credentials are
//! asked if credentials have to be found, for as long as they may take. No secret is seen here.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use forebay_origin::{BreakerState, CredentialStanding, DnsName, DnsState, EndpointStats};
use forebay_proto::handoff::SOCKET_NAME;
use forebay_proto::pb;

use super::Shared;
use crate::config::size::show_bytes;
use crate::evidence::{Fact, Lateness, Roots, SourceState, Verdict, machine};
use crate::remains;

/// A runtime that is this late holds up sockets that a load waits for.
const LATE: Duration = Duration::from_millis(100);

/// Credentials that end sooner have not been renewed when they should have been.
const EXPIRING: Duration = Duration::from_secs(60);

/// How the daemon was set up, as far as it is looked at here.
#[derive(Debug)]
pub(crate) struct Setup {
    /// Where it listens.
    pub(crate) sockets: Vec<PathBuf>,
    /// Who may call.
    pub(crate) allow_uids: Vec<u32>,
    /// Where it keeps what lasts, if it has a place.
    pub(crate) cache_dir: Option<PathBuf>,
    /// Whether an NVMe tier is wanted.
    pub(crate) nvme: bool,
    /// Whether memory is to be locked.
    pub(crate) lock_memory: bool,
    /// How late the runtime was.
    pub(crate) lateness: Arc<Lateness>,
}

/// The checks so far.
#[derive(Debug, Default)]
struct Checks(Vec<pb::DoctorCheck>);

impl Checks {
    fn add(
        &mut self,
        group: &str,
        name: &str,
        found: impl Into<String>,
        verdict: Option<(Verdict, &str)>,
    ) {
        let (verdict, advice) = verdict.unwrap_or((Verdict::Ok, ""));
        self.0.push(pb::DoctorCheck {
            group: group.to_owned(),
            name: name.to_owned(),
            verdict: verdict.as_str().to_owned(),
            found: found.into(),
            advice: advice.to_owned(),
        });
    }
}

/// Everything, as it is now.
pub(super) async fn look(shared: &Shared) -> pb::DoctorResponse {
    let mut checks = Checks::default();
    daemon(&mut checks, shared);
    sockets(&mut checks, &shared.setup);
    for fact in facts(shared).await {
        let Fact { name, value, verdict, advice } = fact;
        let verdict = (verdict != Verdict::Ok).then_some((verdict, advice.as_str()));
        checks.add(group_of(name), name, value, verdict);
    }
    memory(&mut checks, shared);
    nvme(&mut checks, shared);
    numa(&mut checks, shared);
    names(&mut checks, shared);
    let sees = |origin: &str| shared.stages.domain.sees_origin(origin);
    let endpoints = shared.origins.endpoints();
    let endpoints = endpoints.iter().filter(|endpoint| sees(&endpoint.origin));
    endpoints.for_each(|endpoint| breaker(&mut checks, endpoint));
    degraded(&mut checks, shared);
    let credentials = shared.origins.credentials().await;
    let credentials = credentials.iter().filter(|standing| sees(&standing.origin));
    credentials.for_each(|standing| credential(&mut checks, standing));
    sources(&mut checks, &shared.stages.evidence.sources());
    pb::DoctorResponse { checks: checks.0 }
}

/// The machine's facts, read on a thread that a file system which hangs may hold up.
async fn facts(shared: &Shared) -> Vec<Fact> {
    let setup = Arc::clone(&shared.setup);
    let looking =
        shared.stages.cpu.run(move || machine(&Roots::system(), setup.cache_dir.as_deref()));
    // A daemon that ends has no facts to tell.
    looking.await.unwrap_or_default()
}

fn group_of(fact: &str) -> &'static str {
    match fact {
        "memlock_bytes" | "shared_large_pages" | "reserved_huge_pages" | "numa_balancing" => {
            "memory"
        }
        "io_uring" | "cache_mount" | "cache_device" => "nvme",
        _ => "machine",
    }
}

fn daemon(checks: &mut Checks, shared: &Shared) {
    let version = env!("CARGO_PKG_VERSION");
    let draining = "it is being stopped: start it again, or wait for the one that follows";
    let bad = shared.draining.is_cancelled().then_some((Verdict::Bad, draining));
    let up = shared.started.elapsed().as_secs();
    checks.add("daemon", "forebayd", format!("{version}, up {up} s"), bad);
    core_dumps(checks, remains::core_dumps());
    let Some(worst) = shared.setup.lateness.worst() else {
        return checks.add("daemon", "runtime_lag", "not measured yet", None);
    };
    let advice = "its threads get no CPU when they need it, and sockets wait: give the daemon more \
                  CPU, or others less";
    let late = (worst >= LATE).then_some((Verdict::Warn, advice));
    let worst = worst.as_millis();
    let found = format!("{worst} ms at worst in the last minute, of the threads that answer calls");
    checks.add("daemon", "runtime_lag", found, late);
}

fn core_dumps(checks: &mut Checks, found: Result<&str, &str>) {
    let advice = "set core_dumps = false and start it again, once there is nothing left to debug";
    let warn = found.is_err().then_some((Verdict::Warn, advice));
    let (Ok(found) | Err(found)) = found;
    checks.add("daemon", "core_dumps", found, warn);
}

fn sockets(checks: &mut Checks, setup: &Setup) {
    let own = rustix::process::getuid().as_raw();
    let uids: Vec<String> = setup.allow_uids.iter().map(u32::to_string).collect();
    let who = match uids.is_empty() {
        true => "whoever has the token".to_owned(),
        false => format!("uid {}", uids.join(", ")),
    };
    let found = format!("{who} may call; the daemon is uid {own}");
    checks.add("daemon", "allow_uids", found, None);
    for path in &setup.sockets {
        socket(checks, "socket", path);
        socket(checks, "handoff", &path.with_file_name(SOCKET_NAME));
    }
}

fn socket(checks: &mut Checks, name: &str, path: &Path) {
    let shown = path.display();
    let (found, gone) = match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            (format!("{shown}, mode {:04o}, uid {}", found.mode() & 0o7777, found.uid()), false)
        }
        Ok(_) => (format!("{shown} is no socket any more"), true),
        Err(error) => (format!("{shown}: {error}"), true),
    };
    let advice = "start forebayd again: somebody removed or replaced its socket, and nobody new can \
                  connect";
    checks.add("daemon", name, found, gone.then_some((Verdict::Bad, advice)));
}

fn memory(checks: &mut Checks, shared: &Shared) {
    let sizes = shared.stages.ram.sizes();
    let (locked, populated, huge) = (sizes.locked, sizes.populated, sizes.huge);
    let sizes = [locked.min(populated), populated].map(show_bytes);
    let found = format!("{} of {} of the RAM tier", sizes[0], sizes[1]);
    let advice = "set LimitMEMLOCK=infinity: the kernel may write what is not locked to swap";
    let unlocked = shared.setup.lock_memory && locked < populated;
    checks.add("memory", "locked", found, unlocked.then_some((Verdict::Warn, advice)));
    let huge = [huge.min(populated), populated].map(show_bytes);
    let found = format!("{} of {} of the RAM tier", huge[0], huge[1]);
    checks.add("memory", "huge pages", found, None);
}

fn nvme(checks: &mut Checks, shared: &Shared) {
    let Some(tier) = &shared.stages.nvme else {
        return match shared.setup.nvme {
            false => checks.add("nvme", "tier", "off, as the settings say", None),
            true => {
                let advice = "read what is degraded: checkpoints that leave RAM come from their \
                              origins again";
                checks.add("nvme", "tier", "there is none", Some((Verdict::Bad, advice)));
            }
        };
    };
    let state = tier.state();
    let [stored, budget] = [state.stored, state.budget].map(show_bytes);
    let found = format!("{}, {stored} of {budget} stored", state.state);
    let verdict = match state.state {
        "down" => Some((
            Verdict::Bad,
            "look at the disk and at dmesg: it hangs or fails, and is left alone until it answers",
        )),
        "unstable" => Some((Verdict::Warn, "look at the disk and at dmesg: it fails at times")),
        _ => None,
    };
    checks.add("nvme", "tier", found, verdict);
    checks.add("nvme", "engine", format!("{}: {}", state.engine, state.engine_reason), None);
    if state.quarantined > 0 {
        let advice = "what it stored has changed: `forebay verify` reads all of it again; look at \
                      the disk's health";
        let found = format!("{} since the start", state.quarantined);
        checks.add("nvme", "bad_extents", found, Some((Verdict::Warn, advice)));
    }
}

fn numa(checks: &mut Checks, shared: &Shared) {
    let plan = shared.stages.numa.plan();
    let nodes: Vec<String> = plan.nodes().iter().map(|node| node.id.to_string()).collect();
    let (nodes, count) = (nodes.join(", "), nodes.len());
    let found = match count {
        1 => "one node".to_owned(),
        _ => format!("{count} nodes: {nodes}"),
    };
    checks.add("memory", "numa_nodes", found, None);
}

fn names(checks: &mut Checks, shared: &Shared) {
    let dns = shared.resolver.snapshot();
    let servers: Vec<String> = dns.servers.iter().map(ToString::to_string).collect();
    let found = match servers.is_empty() {
        true => "the operating system resolves".to_owned(),
        false => format!("name servers {}", servers.join(", ")),
    };
    checks.add("network", "resolver", found, None);
    // A host's name may tell which bucket is whose.
    if shared.stages.domain.is_alone() {
        dns.names.iter().for_each(|name| one_name(checks, name));
    }
}

fn one_name(checks: &mut Checks, name: &DnsName) {
    let current = name.addresses.iter().filter(|address| address.current);
    let addresses: Vec<String> = current.map(|address| address.address.to_string()).collect();
    let mut found = format!("{} is {}", name.name, name.state.as_str());
    if !addresses.is_empty() {
        found += &format!(": {}", addresses.join(", "));
    }
    if let Some(failure) = &name.last_failure {
        found += &format!("; the last look-up failed: {failure}");
    }
    let verdict = match name.state {
        DnsState::Pending | DnsState::Fresh => None,
        DnsState::Stale => Some((
            Verdict::Warn,
            "old addresses are used: look at the name servers in /etc/resolv.conf",
        )),
        DnsState::Failed => Some((
            Verdict::Bad,
            "nothing can be loaded from there: look at the name and at /etc/resolv.conf",
        )),
    };
    checks.add("network", "name", found, verdict);
}

fn breaker(checks: &mut Checks, endpoint: &EndpointStats) {
    let EndpointStats { origin, breaker, throttled, breaker_opened, .. } = endpoint;
    let verdict = match breaker {
        BreakerState::Closed => None,
        BreakerState::HalfOpen | BreakerState::Open(_) => Some((
            Verdict::Bad,
            "it failed again and again and is left alone for now: look at the origin, and at the \
             way to it",
        )),
    };
    let found = match verdict {
        None => format!("{origin} answers; throttled {throttled} times"),
        Some(_) => format!("{origin} is left alone, for the {breaker_opened}. time"),
    };
    checks.add("network", "origin", found, verdict);
}

/// What could not be had, under the name of what it is about.
fn degraded(checks: &mut Checks, shared: &Shared) {
    let stages = &shared.stages;
    let all = shared.degraded.iter().cloned();
    let all = all.chain(shared.resolver.snapshot().degraded);
    let all = all.chain(stages.ram.pool().degraded()).chain(stages.workers.degraded());
    for sentence in all.chain(stages.nvme.iter().flat_map(|nvme| nvme.degraded())) {
        let named = sentence.split_once(": ").filter(|(name, _)| !name.contains(' '));
        let (name, what) = named.unwrap_or(("other", &sentence));
        let advice = "loads go on without it; what was found says what is missing";
        checks.add("degraded", name, what, Some((Verdict::Warn, advice)));
    }
}

fn credential(checks: &mut Checks, standing: &CredentialStanding) {
    let CredentialStanding { origin, source, expires_in, problem } = standing;
    if let Some(problem) = problem {
        let advice = "set them in the daemon's environment or give it a profile or a role; for a \
                      public bucket set `anonymous = true`";
        let found = format!("{origin}: none: {problem}");
        return checks.add("credentials", "found", found, Some((Verdict::Bad, advice)));
    }
    let end = match expires_in {
        Some(left) => format!(", good for {} s", left.as_secs()),
        None => String::new(),
    };
    let advice = "they end and were not renewed: look at the service that gives them";
    let ending = expires_in.is_some_and(|left| left < EXPIRING);
    let verdict = ending.then_some((Verdict::Warn, advice));
    checks.add("credentials", "found", format!("{origin}: {source}{end}"), verdict);
}

fn sources(checks: &mut Checks, sources: &[SourceState]) {
    for SourceState { source, available, why } in sources {
        let advice =
            "`forebay explain` does without: what depends on it may be charged to `unknown`";
        let verdict = (!available).then_some((Verdict::Warn, advice));
        let found = match (available, why.is_empty()) {
            (true, true) => "can be read".to_owned(),
            (true, false) => format!("can be read: {why}"),
            (false, _) => format!("cannot be read: {why}"),
        };
        checks.add("evidence", source.as_str(), found, verdict);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(checks: Checks) -> (String, String, String) {
        assert_eq!(checks.0.len(), 1);
        let check = checks.0.into_iter().next().unwrap();
        assert_eq!(check.verdict == "ok", check.advice.is_empty(), "{check:?}");
        (check.verdict, check.name, check.found)
    }

    #[test]
    fn credentials_are_found_or_not_and_end() {
        let judged = |expires_in, problem: Option<&str>| {
            let mut checks = Checks::default();
            credential(
                &mut checks,
                &CredentialStanding {
                    origin: "s3://b".into(),
                    source: "an access key of a profile".into(),
                    expires_in,
                    problem: problem.map(str::to_owned),
                },
            );
            only(checks)
        };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(judged(None, None).0, "ok");
        assert_eq!(
            judged(seconds(900), None).2,
            "s3://b: an access key of a profile, good for 900 s"
        );
        assert_eq!(judged(seconds(3), None).0, "warn");
        let (verdict, _, found) = judged(None, Some("nowhere"));
        assert_eq!((verdict.as_str(), found.as_str()), ("bad", "s3://b: none: nowhere"));
    }

    #[test]
    fn core_dumps_are_none_or_a_warning() {
        for (found, verdict) in [(Ok("none"), "ok"), (Err("allowed"), "warn")] {
            let mut checks = Checks::default();
            core_dumps(&mut checks, found);
            assert_eq!(only(checks).0, verdict);
        }
    }

    #[test]
    fn a_socket_that_is_gone_is_bad() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let judged = || {
            let mut checks = Checks::default();
            socket(&mut checks, "socket", &path);
            only(checks)
        };
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let (verdict, _, found) = judged();
        assert!(verdict == "ok" && found.contains("mode 0"), "{found}");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(judged().0, "bad");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(judged().0, "bad");
        drop(listener);
    }

    #[test]
    fn names_are_judged_by_their_state() {
        let judged = |state| {
            let mut checks = Checks::default();
            one_name(
                &mut checks,
                &DnsName {
                    name: "store.example".into(),
                    state,
                    addresses: Vec::new(),
                    age: None,
                    ttl: None,
                    refresh_in: None,
                    took: None,
                    failures: 1,
                    last_failure: Some("SERVFAIL".into()),
                },
            );
            only(checks)
        };
        assert_eq!(judged(DnsState::Fresh).0, "ok");
        assert_eq!(judged(DnsState::Stale).0, "warn");
        let (verdict, name, found) = judged(DnsState::Failed);
        assert_eq!((verdict.as_str(), name.as_str()), ("bad", "name"));
        assert!(found.contains("SERVFAIL"), "{found}");
    }
}
