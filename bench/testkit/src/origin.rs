//! The handle of a running origin: its objects, its faults and what it saw.
//!
//! The four kinds of origin differ in their protocol only; each derefs to this.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::content::Content;
use crate::contents::Contents;
use crate::fault::{FaultHandle, FaultRule};
use crate::ledger::{Counts, RequestRecord};
use crate::serve::{Backend, Connections, LinkOptions, Server};

/// A running origin of any kind; dropping it stops it.
#[derive(Debug)]
pub struct Origin {
    server: Server,
}

impl Origin {
    /// Starts an origin.
    ///
    /// # Panics
    /// If no socket or thread can be had.
    pub(crate) async fn start(
        name: &str,
        link: LinkOptions,
        contents: Contents,
        backend: Arc<dyn Backend>,
    ) -> Self {
        let origin = Self::try_start(name, link, contents, backend).await;
        origin.expect("a loopback server can be started")
    }

    /// Starts an origin, if its address is free.
    pub(crate) async fn try_start(
        name: &str,
        link: LinkOptions,
        contents: Contents,
        backend: Arc<dyn Backend>,
    ) -> io::Result<Self> {
        Ok(Self { server: Server::start(name, link, contents, backend).await? })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The base URL under a host name, for tests that resolve names themselves.
    pub fn endpoint_at(&self, host: &str) -> String {
        format!("http://{host}:{}", self.address().port())
    }

    /// The objects.
    pub fn contents(&self) -> &Contents {
        &self.server.shared().contents
    }

    /// Stores an object, in place of the one that was there.
    pub fn put(&self, bucket: &str, key: &str, content: impl Into<Content>) {
        self.contents().put(bucket, key, content);
    }

    /// Stores a checkpoint's files under `prefix`, which ends in a slash or is empty.
    pub fn put_checkpoint(&self, bucket: &str, prefix: &str, checkpoint: &Checkpoint) {
        for (name, content) in checkpoint.files() {
            self.put(bucket, &format!("{prefix}{name}"), content.clone());
        }
    }

    /// The same as [`Origin::put`], for an object that is there.
    pub fn replace(&self, bucket: &str, key: &str, content: impl Into<Content>) {
        self.put(bucket, key, content);
    }

    /// Takes an object away; answers whether it was there.
    pub fn remove(&self, bucket: &str, key: &str) -> bool {
        self.contents().remove(bucket, key)
    }

    /// Commits a fault from now on.
    pub fn fault(&self, rule: FaultRule) -> FaultHandle {
        self.server.shared().faults.add(rule)
    }

    /// Forgets every fault rule.
    pub fn clear_faults(&self) {
        self.server.shared().faults.clear();
    }

    /// Requests for one key, in any bucket; for a listing the key is its prefix.
    pub fn counts(&self, key: &str) -> Counts {
        self.server.shared().ledger.counts(key)
    }

    /// All requests.
    pub fn total(&self) -> Counts {
        self.server.shared().ledger.total()
    }

    /// The last 65,536 requests, oldest first.
    pub fn records(&self) -> Vec<RequestRecord> {
        self.server.shared().ledger.records()
    }

    /// Connections open, at most open, and accepted.
    pub fn connections(&self) -> Connections {
        self.server.shared().connections()
    }
}

/// Names and values of environment variables.
pub(crate) fn variables<const N: usize>(variables: [(&str, String); N]) -> Vec<(String, String)> {
    variables.map(|(name, value)| (name.to_owned(), value)).to_vec()
}
