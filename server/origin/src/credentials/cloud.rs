//! Credentials of Google and Azure: object_store's own, with a bound on the wait, and had anew when
//! the origin refuses them.
//!
//! object_store keeps a token until five minutes before its end, renews it once for all who wait,
//! and cannot be told that it is refused. So a store is built for its provider alone, and again
//! when the provider is to forget.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use object_store::client::{HttpClient, HttpConnector};
use object_store::{ClientConfigKey, ClientOptions, CredentialProvider, Result as StoreResult};
use tokio::time::{Instant, timeout};

use super::{CredentialError, METADATA_LIMIT, Refusal, Renewal, TOKENS_LIMIT};
use crate::transport::probe::{ROUTE, Route, WRITE};
use crate::transport::service::Transport;

/// Renewals for refusals are so far apart: a token that was just had is not to blame.
const APART: Duration = Duration::from_secs(1);

type Provider<T> = Arc<dyn CredentialProvider<Credential = T>>;
type Make<T> = Box<dyn Fn() -> StoreResult<Provider<T>> + Send + Sync>;

/// A provider that can be made to forget what it has.
pub(crate) struct Regrown<T> {
    make: Make<T>,
    limit: Duration,
    grown: Mutex<Grown<T>>,
}

struct Grown<T> {
    provider: Provider<T>,
    generation: u64,
    since: Option<Instant>,
}

impl<T> Regrown<T> {
    /// One that makes its providers so, and waits for them as `limit` says.
    pub(crate) fn new(make: Make<T>, limit: Duration) -> StoreResult<Self> {
        let grown = Grown { provider: make()?, generation: 0, since: None };
        Ok(Self { make, limit, grown: Mutex::new(grown) })
    }

    fn lock(&self) -> MutexGuard<'_, Grown<T>> {
        self.grown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> fmt::Debug for Regrown<T> {
    /// The provider inside would show its token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Regrown")
            .field("generation", &self.lock().generation)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl<T: Send + Sync> CredentialProvider for Regrown<T> {
    type Credential = T;

    async fn get_credential(&self) -> StoreResult<Arc<T>> {
        let provider = Arc::clone(&self.lock().provider);
        // It has no part in the route of the attempt that waits for it.
        let getting = WRITE.scope(None, provider.get_credential());
        let getting = ROUTE.scope(Route::default(), getting);
        timeout(self.limit, getting).await.unwrap_or_else(|_| {
            let metadata = self.limit == METADATA_LIMIT;
            let service = if metadata { "the metadata service" } else { "the token service" };
            let silent = CredentialError::Silent { service: service.to_owned(), limit: self.limit };
            Err(object_store::Error::Generic { store: "credentials", source: Box::new(silent) })
        })
    }
}

#[async_trait]
impl<T: Send + Sync> Renewal for Regrown<T> {
    fn generation(&self) -> u64 {
        self.lock().generation
    }

    async fn renew(&self, refusal: Refusal, generation: u64) -> bool {
        let mut grown = self.lock();
        if grown.generation != generation {
            return true;
        }
        let now = Instant::now();
        let young = grown.since.is_some_and(|since| now < since + APART);
        if refusal != Refusal::Expired || young {
            return false;
        }
        let Ok(provider) = (self.make)() else { return false };
        *grown = Grown { provider, generation: generation + 1, since: Some(now) };
        true
    }

    fn says(&self, _: Refusal) -> Option<String> {
        None
    }
}

/// A connector that learns from what a builder asks of it where the credentials come from.
#[derive(Debug, Clone)]
pub(crate) struct Listener {
    transport: Transport,
    heard: Arc<Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    clients: AtomicUsize,
    metadata: AtomicBool,
}

impl Listener {
    pub(crate) fn new(transport: Transport) -> Self {
        Self { transport, heard: Arc::default() }
    }

    /// How long a credential may take; none if it is no other one each time: then the store's own
    /// client was all that was asked for.
    pub(crate) fn limit(&self) -> Option<Duration> {
        let metadata = self.heard.metadata.load(Ordering::Relaxed);
        let limit = if metadata { METADATA_LIMIT } else { TOKENS_LIMIT };
        (self.heard.clients.load(Ordering::Relaxed) > 1).then_some(limit)
    }
}

impl HttpConnector for Listener {
    fn connect(&self, options: &ClientOptions) -> StoreResult<HttpClient> {
        // object_store's mark of a client for metadata services: elsewhere the limit is 5 s.
        let limit = options.get_config_value(&ClientConfigKey::ConnectTimeout);
        self.heard.clients.fetch_add(1, Ordering::Relaxed);
        self.heard.metadata.fetch_or(limit.as_deref() == Some("1s"), Ordering::Relaxed);
        self.transport.connect(options)
    }
}
