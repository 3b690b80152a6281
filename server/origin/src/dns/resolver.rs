//! The resolver: one task looks up what the table says is due; callers read the table.
//!
//! The task owns every lookup, at most [`LOOKUPS_MAX`] at once, and is owned by the resolver:
//! dropping that ends them all. A caller whose name is known is answered without waiting; one whose
//! name is not waits for lookups to end, and asks the table again after each.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::failure::DnsFailure;
use super::settings::DnsSettings;
use super::snapshot::DnsSnapshot;
use super::system::SystemDns;
use super::table::{Answer, Asked, Table};
use crate::resolve::Resolve;

/// Lookups at once.
const LOOKUPS_MAX: usize = 32;
/// RFC 1035: a name has at most 253 characters, and may end in a dot.
const NAME_MAX: usize = 254;

/// Where lookups go.
#[async_trait]
pub(crate) trait Upstream: Send + Sync + std::fmt::Debug {
    /// All addresses of a name in lower case, in the order of preference.
    async fn lookup(&self, name: &str) -> Result<Answer, DnsFailure>;

    /// The name servers, and what is not as it should be.
    fn source(&self) -> (Vec<IpAddr>, Option<String>);
}

/// Resolves names ahead of time and keeps them while DNS fails.
#[derive(Debug)]
pub struct AheadResolver {
    shared: Arc<Shared>,
    task: Mutex<JoinSet<()>>,
}

#[derive(Debug)]
struct Shared {
    upstream: Box<dyn Upstream>,
    table: Mutex<Table>,
    lookup_timeout: Duration,
    /// Something is due earlier than the task knows.
    due: Notify,
    /// A lookup ended.
    ended: watch::Sender<()>,
}

impl AheadResolver {
    /// Reads the system's configuration, and starts the task on `runtime`.
    ///
    /// A configuration that cannot be read is no error: the operating system resolves then, and
    /// [`DnsSnapshot::degraded`] says so.
    #[must_use]
    pub fn start(settings: DnsSettings, runtime: &Handle) -> Self {
        Self::over(Box::new(SystemDns::new(&settings)), settings, runtime)
    }

    pub(crate) fn over(
        upstream: Box<dyn Upstream>,
        settings: DnsSettings,
        runtime: &Handle,
    ) -> Self {
        let shared = Arc::new(Shared {
            upstream,
            lookup_timeout: settings.lookup_timeout,
            table: Mutex::new(Table::new(settings)),
            due: Notify::new(),
            ended: watch::Sender::new(()),
        });
        let mut task = JoinSet::new();
        task.spawn_on(drive(Arc::clone(&shared)), runtime);
        Self { shared, task: Mutex::new(task) }
    }

    /// Has the names looked up now, in the background, and kept from then on. IP addresses are
    /// passed over; so are names beyond the bound of the table.
    pub fn prime<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        let names = names.into_iter().filter(|name| literal(name).is_none());
        let mut table = self.shared.table();
        for name in names.filter_map(canonical) {
            if !table.prime(&name) {
                tracing::warn!(name, "no room to resolve this name ahead of time");
            }
        }
        drop(table);
        self.shared.due.notify_one();
    }

    /// What is known, for Status and metrics.
    #[must_use]
    pub fn snapshot(&self) -> DnsSnapshot {
        let (servers, degraded) = self.shared.upstream.source();
        let now = Instant::now();
        let table = self.shared.table();
        DnsSnapshot { servers, degraded, names: table.names(now), counters: table.counters() }
    }

    /// Ends the task and its lookups, and waits until they are gone. Known names are still served.
    pub async fn stop(&self) {
        let mut task =
            std::mem::take(&mut *self.task.lock().unwrap_or_else(PoisonError::into_inner));
        task.shutdown().await;
    }
}

#[async_trait]
impl Resolve for AheadResolver {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        if let Some(address) = literal(host) {
            return Ok(vec![address]);
        }
        let name = canonical(host).ok_or(DnsFailure::BadName)?;
        let limit = self.shared.lookup_timeout;
        let answer = timeout(limit, self.shared.answer(&name)).await;
        Ok(answer.unwrap_or(Err(DnsFailure::TimedOut(limit)))?)
    }
}

impl Shared {
    async fn answer(&self, name: &str) -> Result<Vec<IpAddr>, DnsFailure> {
        // Subscribed before the table is asked, so that no end is missed.
        let mut ended = self.ended.subscribe();
        loop {
            let (asked, earlier) = self.table().ask(name, Instant::now());
            if earlier {
                self.due.notify_one();
            }
            match asked {
                Asked::Addresses(addresses) => return Ok(addresses),
                Asked::Failed(why) => return Err(why),
                Asked::Wait => {}
            }
            if ended.changed().await.is_err() {
                return Err(DnsFailure::Unreachable("the resolver has stopped".to_owned()));
            }
        }
    }

    async fn look_up(&self, name: &str) {
        let begun = Instant::now();
        let limit = self.lookup_timeout;
        let result = timeout(limit, self.upstream.lookup(name))
            .await
            .unwrap_or(Err(DnsFailure::TimedOut(limit)));
        let took = begun.elapsed();
        if let Err(why) = &result {
            tracing::debug!(name, %why, ?took, "a lookup failed");
        }
        self.table().finish(name, result, took, Instant::now());
        self.ended.send_replace(());
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks up what is due, for ever.
async fn drive(shared: Arc<Shared>) {
    let mut lookups: JoinSet<()> = JoinSet::new();
    loop {
        let room = LOOKUPS_MAX.saturating_sub(lookups.len());
        let (names, next) = {
            let now = Instant::now();
            let mut table = shared.table();
            (table.take_due(now, room), table.next_due(now))
        };
        for name in names {
            let shared = Arc::clone(&shared);
            lookups.spawn(async move { shared.look_up(&name).await });
        }
        let full = lookups.len() >= LOOKUPS_MAX;
        let next_due = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // One that panicked is looked up again when the table counts it as lost.
            Some(_) = lookups.join_next() => {}
            () = shared.due.notified() => {}
            () = next_due, if !full => {}
        }
    }
}

fn literal(host: &str) -> Option<IpAddr> {
    host.trim_matches(['[', ']']).parse().ok()
}

/// The name as the table knows it, if it can be one.
fn canonical(host: &str) -> Option<String> {
    let name = host.to_ascii_lowercase();
    let wellformed = name.len() <= NAME_MAX
        && name.strip_suffix('.').unwrap_or(&name).split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
        });
    wellformed.then_some(name)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const NAME: &str = "s3.test";

    /// Answers 127.0.0.1, or what it is told.
    #[derive(Debug, Clone, Default)]
    struct Fake(Arc<State>);

    #[derive(Debug, Default)]
    struct State {
        failure: Mutex<Option<DnsFailure>>,
        lookups: AtomicU64,
        takes: Duration,
    }

    #[async_trait]
    impl Upstream for Fake {
        async fn lookup(&self, _: &str) -> Result<Answer, DnsFailure> {
            self.0.lookups.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(self.0.takes).await;
            let answer = Answer { addresses: vec![[127, 0, 0, 1].into()], ttl: Duration::ZERO };
            self.0.failure.lock().unwrap().clone().map_or(Ok(answer), Err)
        }

        fn source(&self) -> (Vec<IpAddr>, Option<String>) {
            (Vec::new(), None)
        }
    }

    impl Fake {
        fn fail(&self, failure: Option<DnsFailure>) {
            *self.0.failure.lock().unwrap() = failure;
        }

        fn lookups(&self) -> u64 {
            self.0.lookups.load(Ordering::Relaxed)
        }

        fn resolver(&self) -> AheadResolver {
            let settings = DnsSettings::default();
            AheadResolver::over(Box::new(self.clone()), settings, &Handle::current())
        }
    }

    /// Row 15: ten minutes of SERVFAIL, a connection every second, and nobody waits.
    #[tokio::test(start_paused = true)]
    async fn ten_minutes_without_dns_go_unnoticed() {
        let fake = Fake::default();
        let resolver = fake.resolver();
        resolver.resolve(NAME).await.unwrap();
        fake.fail(Some(DnsFailure::ServerFailed("SERVFAIL".to_owned())));
        for _ in 0..600 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let begun = Instant::now();
            assert_eq!(resolver.resolve(NAME).await.unwrap().len(), 1);
            assert_eq!(begun.elapsed(), Duration::ZERO);
        }
        let asked = fake.lookups();
        assert!((20..=40).contains(&asked), "{asked} lookups: backoff ends at 30 s");
        fake.fail(None);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(resolver.snapshot().names[0].failures, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_in_use_is_refreshed_every_five_seconds_and_an_idle_one_every_thirty() {
        let fake = Fake::default();
        let resolver = fake.resolver();
        for _ in 0..100 {
            resolver.resolve(NAME).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(fake.lookups(), 20);
        // In use for another 30 s, then idle.
        tokio::time::sleep(Duration::from_secs(30)).await;
        let before = fake.lookups();
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert_eq!(fake.lookups() - before, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lookup_is_cut_at_its_limit_and_shared_by_all_who_wait() {
        let state = State { takes: Duration::from_secs(60), ..State::default() };
        let fake = Fake(Arc::new(state));
        let resolver = fake.resolver();
        let begun = Instant::now();
        let all = (0..50).map(|_| resolver.resolve(NAME));
        for result in futures::future::join_all(all).await {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
        assert_eq!((begun.elapsed(), fake.lookups()), (Duration::from_secs(3), 1));
    }

    /// Dropping the resolver drops its task and with it every lookup.
    #[tokio::test(start_paused = true)]
    async fn dropping_the_resolver_ends_its_lookups() {
        let state = State { takes: Duration::from_secs(60), ..State::default() };
        let fake = Fake(Arc::new(state));
        let resolver = fake.resolver();
        resolver.prime([NAME, "other.test"]);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(fake.lookups(), 2);
        drop(resolver);
        while Arc::strong_count(&fake.0) > 1 {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn host_names_are_told_from_other_text() {
        let long = "a".repeat(64);
        let table = [
            ("A.Example", Some("a.example")),
            ("a.example.", Some("a.example.")),
            ("_x.example", Some("_x.example")),
            ("", None),
            (".", None),
            ("a..b", None),
            ("a b", None),
            ("\\.example", None),
            (long.as_str(), None),
        ];
        for (host, want) in table {
            assert_eq!(canonical(host).as_deref(), want, "{host}");
        }
    }
}
