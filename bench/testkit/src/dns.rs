//! A resolver that answers what a test tells it, for the `Resolve` seam.
//!
//! Each host has one behaviour, which may be changed while the code under test runs; hosts nobody
//! mentioned do not exist. Clones share one table.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use forebay_origin::Resolve;

/// A table of host names.
#[derive(Clone, Debug, Default)]
pub struct FakeDns(Arc<Mutex<BTreeMap<String, Host>>>);

#[derive(Debug, Default)]
struct Host {
    behaviour: Behaviour,
    delay: Duration,
    calls: u64,
}

#[derive(Clone, Debug, Default)]
enum Behaviour {
    #[default]
    Unknown,
    Addresses(Vec<IpAddr>),
    Fail(io::ErrorKind),
    Stall,
}

impl FakeDns {
    /// A table without hosts.
    pub fn new() -> Self {
        Self::default()
    }

    /// A table in which every one of `hosts` is 127.0.0.1.
    pub fn loopback<'a>(hosts: impl IntoIterator<Item = &'a str>) -> Self {
        let table = Self::new();
        for host in hosts {
            table.set(host, [Ipv4Addr::LOCALHOST.into()]);
        }
        table
    }

    /// From now on `host` has these addresses, in this order.
    pub fn set(&self, host: &str, addresses: impl IntoIterator<Item = IpAddr>) {
        self.behave(host, Behaviour::Addresses(addresses.into_iter().collect()));
    }

    /// From now on looking `host` up fails.
    pub fn fail(&self, host: &str, kind: io::ErrorKind) {
        self.behave(host, Behaviour::Fail(kind));
    }

    /// From now on looking `host` up never ends.
    pub fn stall(&self, host: &str) {
        self.behave(host, Behaviour::Stall);
    }

    /// From now on answers about `host` take this long.
    pub fn delay(&self, host: &str, delay: Duration) {
        self.table().entry(host.to_owned()).or_default().delay = delay;
    }

    /// How often `host` was looked up.
    pub fn calls(&self, host: &str) -> u64 {
        self.table().get(host).map_or(0, |host| host.calls)
    }

    fn behave(&self, host: &str, behaviour: Behaviour) {
        self.table().entry(host.to_owned()).or_default().behaviour = behaviour;
    }

    fn ask(&self, host: &str) -> (Behaviour, Duration) {
        let mut table = self.table();
        let host = table.entry(host.to_owned()).or_default();
        host.calls += 1;
        (host.behaviour.clone(), host.delay)
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Host>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Resolve for FakeDns {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let (behaviour, delay) = self.ask(host);
        tokio::time::sleep(delay).await;
        match behaviour {
            Behaviour::Addresses(addresses) if !addresses.is_empty() => Ok(addresses),
            Behaviour::Addresses(_) | Behaviour::Unknown => {
                Err(io::Error::new(io::ErrorKind::NotFound, "no such host in the fake table"))
            }
            Behaviour::Fail(kind) => Err(io::Error::new(kind, "told to fail")),
            Behaviour::Stall => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn hosts_behave_as_they_were_told_last() {
        let dns = FakeDns::loopback(["a"]);
        assert_eq!(dns.resolve("a").await.unwrap(), [IpAddr::from(Ipv4Addr::LOCALHOST)]);
        assert_eq!(dns.resolve("b").await.unwrap_err().kind(), io::ErrorKind::NotFound);
        dns.fail("a", io::ErrorKind::TimedOut);
        assert_eq!(dns.resolve("a").await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        dns.stall("a");
        let stalled = tokio::time::timeout(Duration::from_secs(60), dns.resolve("a")).await;
        stalled.unwrap_err();
        dns.set("a", [Ipv4Addr::new(127, 0, 0, 9).into()]);
        dns.delay("a", Duration::from_secs(2));
        let asked = tokio::time::Instant::now();
        assert_eq!(dns.resolve("a").await.unwrap().len(), 1);
        assert_eq!(asked.elapsed(), Duration::from_secs(2));
        assert_eq!((dns.calls("a"), dns.calls("b"), dns.calls("c")), (4, 1, 0));
    }
}
