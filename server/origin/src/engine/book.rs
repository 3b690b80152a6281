//! The address book of all hosts, shared by every connector.
//!
//! A connection carries a [`Mark`] that says which address it leads to; whoever used it reports
//! through the mark. The connection itself holds a [`Held`], which counts it until it is closed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::addresses::{AddressStats, Addresses, Deed};
use super::unit;

/// Hosts remembered.
const HOSTS_MAX: usize = 256;

/// All hosts and their addresses.
#[derive(Debug)]
pub(crate) struct Book {
    ejection: Duration,
    ejection_cap: Duration,
    hosts: Mutex<BTreeMap<String, Addresses>>,
}

impl Book {
    pub(crate) fn new(ejection: Duration, ejection_cap: Duration) -> Arc<Self> {
        Arc::new(Self { ejection, ejection_cap, hosts: Mutex::default() })
    }

    /// The order in which to dial the addresses that a name has.
    pub(crate) fn order(
        &self,
        host: &str,
        named: &[IpAddr],
        avoid: Option<IpAddr>,
        now: Instant,
    ) -> Vec<IpAddr> {
        let mut hosts = self.lock();
        if !hosts.contains_key(host) && hosts.len() >= HOSTS_MAX {
            let idle = hosts.iter().find(|(_, addresses)| addresses.is_idle());
            let Some(idle) = idle.map(|(host, _)| host.clone()) else { return named.to_vec() };
            hosts.remove(&idle);
        }
        let new = || Addresses::new(self.ejection, self.ejection_cap);
        let addresses = hosts.entry(host.to_owned()).or_insert_with(new);
        addresses.order(named, avoid, now, unit)
    }

    /// What an address did.
    pub(crate) fn did(&self, host: &str, address: IpAddr, deed: Deed, now: Instant) {
        if let Some(addresses) = self.lock().get_mut(host) {
            addresses.did(address, deed, now, unit());
        }
    }

    /// Every address of every host.
    pub(crate) fn stats(&self, now: Instant) -> Vec<AddressStats> {
        self.lock().iter().flat_map(|(host, addresses)| addresses.stats(host, now)).collect()
    }

    fn connected(&self, host: &str, address: IpAddr, more: bool) {
        if let Some(addresses) = self.lock().get_mut(host) {
            addresses.connected(address, more);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Addresses>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which address a connection leads to.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    book: Arc<Book>,
    host: Arc<str>,
    address: IpAddr,
}

impl Mark {
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    /// Reports what the address did.
    pub(crate) fn did(&self, deed: Deed, now: Instant) {
        self.book.did(&self.host, self.address, deed, now);
    }

    /// Whether the connection should serve nobody after this.
    pub(crate) fn is_shunned(&self, now: Instant) -> bool {
        let hosts = self.book.lock();
        hosts.get(&*self.host).is_some_and(|addresses| addresses.is_shunned(self.address, now))
    }
}

/// A connection, counted while this lives.
#[derive(Debug)]
pub(crate) struct Held(Mark);

impl Held {
    pub(crate) fn new(book: &Arc<Book>, host: &str, address: IpAddr) -> Self {
        book.connected(host, address, true);
        Self(Mark { book: Arc::clone(book), host: host.into(), address })
    }

    pub(crate) fn mark(&self) -> Mark {
        self.0.clone()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.book.connected(&self.0.host, self.0.address, false);
    }
}
