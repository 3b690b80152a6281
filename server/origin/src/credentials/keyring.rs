//! The credential of one store: fetched by whoever needs it first, shared by all who wait, had anew
//! before it expires, when its file changes, or when the origin refuses it.
//!
//! ```text
//! none ──fetch──► fresh ──slack of its end──► stale ──its end──► expired
//!                   ▲     its file changed      │ one caller fetches;   │ all wait for a fetch
//!                   └───────────────────────────┘ the others go on      │
//!                   └───────────────────────────────────────────────────┘
//! ```
//!
//! A fetch is a future that all its waiters drive: if they all go, it is gone. What it finds counts
//! as a new generation only if it differs from what was held: so nobody asks an origin again with
//! what it has just refused. A failure is told to all who waited, and for a moment to those who
//! come after; a credential that is still good is used while fetches fail.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use object_store::aws::AwsCredential;
use tokio::time::Instant;

use super::chain::{Found, Place};
use super::standing::Standing;
use super::{CredentialError, Refusal};

/// A credential is had anew so long before its end, or in the last quarter of its life: long enough
/// for a service that is out of order to come back.
const SLACK: Duration = Duration::from_secs(300);
/// After a fetch that failed or brought what was held, the next one for a credential that is still
/// good comes no sooner.
const AGAIN: Duration = Duration::from_secs(15);
/// A failure is told so long to those who come after it.
const FAILURE_KEPT: Duration = Duration::from_secs(1);
/// How often the states of files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Renewals for refusals, at a burst; one more comes per `AGAIN`.
const RENEWALS: u32 = 4;
/// A refusal that does not say why is not blamed on a credential younger than this.
const YOUNG: Duration = Duration::from_secs(60);

/// Where credentials are found: [`super::chain::Chain`], but for tests.
pub(crate) trait Source: fmt::Debug + Send + Sync {
    /// What there is now.
    fn find(self: Arc<Self>) -> BoxFuture<'static, Result<Found, CredentialError>>;

    /// Whether it may be something else than it was then.
    fn changed(&self, since: &Place) -> bool;
}

impl Source for super::chain::Chain {
    fn find(self: Arc<Self>) -> BoxFuture<'static, Result<Found, CredentialError>> {
        async move { Self::find(&self).await }.boxed()
    }

    fn changed(&self, since: &Place) -> bool {
        matches!(since, Place::Files(stamps) if *stamps != self.profiles.stamps())
    }
}

type Fetched = Result<(), Arc<CredentialError>>;
type Fetch = Shared<BoxFuture<'static, Fetched>>;

/// A credential with its history.
#[derive(Debug)]
pub(crate) struct Keyring {
    source: Arc<dyn Source>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    generation: u64,
    fetch: Option<WeakShared<BoxFuture<'static, Fetched>>>,
    failed: Option<(Instant, Arc<CredentialError>)>,
    looked: Option<Instant>,
    renewals: Renewals,
    fetches: u64,
}

struct Held {
    credential: Arc<AwsCredential>,
    place: Place,
    since: Instant,
    /// From when on a fetch is in order.
    stale: Option<Instant>,
    expires: Option<Instant>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = self.held.as_ref().map(|held| (&held.place, held.expires));
        f.debug_struct("State")
            .field("held", &held)
            .field("generation", &self.generation)
            .field("fetches", &self.fetches)
            .finish_non_exhaustive()
    }
}

/// How urgent a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    None,
    /// What is held is good yet.
    Soon,
    Now,
}

/// What a caller does.
enum Next {
    Use(Arc<AwsCredential>),
    Fail(Arc<CredentialError>),
    /// And what it may use if that fails.
    Fetch(Option<Arc<AwsCredential>>, Fetch),
}

impl Keyring {
    pub(crate) fn new(source: Arc<dyn Source>) -> Arc<Self> {
        Arc::new(Self { source, state: Mutex::default() })
    }

    /// Changes with every credential that differs from the one before.
    pub(crate) fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Fetches begun so far.
    #[cfg(test)]
    fn fetches(&self) -> u64 {
        self.lock().fetches
    }

    /// The credential that is good now.
    pub(crate) async fn get(self: &Arc<Self>) -> Result<Arc<AwsCredential>, Arc<CredentialError>> {
        let (held, fetch) = match self.next(Instant::now()) {
            Next::Use(held) => return Ok(held),
            Next::Fail(error) => return Err(error),
            Next::Fetch(held, fetch) => (held, fetch),
        };
        let fetched = fetch.await;
        match (fetched, held) {
            (Err(error), None) => Err(error),
            (Err(error), Some(held)) => {
                tracing::warn!(%error, "the credentials that are still good could not be renewed");
                Ok(held)
            }
            (Ok(()), held) => {
                let state = self.lock();
                let now_held = state.held.as_ref().map(|held| Arc::clone(&held.credential));
                // A fetch that went well leaves something.
                now_held.or(held).ok_or_else(|| {
                    let (service, what) = ("the credential store".to_owned(), "a credential");
                    Arc::new(CredentialError::Malformed { service, what })
                })
            }
        }
    }

    fn next(self: &Arc<Self>, now: Instant) -> Next {
        let mut state = self.lock();
        let need = self.need(&mut state, now);
        let held = state.held.as_ref().map(|held| Arc::clone(&held.credential));
        let busy = state.fetch.as_ref().and_then(WeakShared::upgrade);
        match (need, held) {
            (Need::None, Some(held)) => Next::Use(held),
            (Need::Soon, Some(held)) if busy.is_some() => Next::Use(held),
            (Need::Soon, held) => Next::Fetch(held, self.fetch(&mut state, busy)),
            (Need::Now | Need::None, _) => match state.failure(now).filter(|_| busy.is_none()) {
                Some(error) => Next::Fail(error),
                None => Next::Fetch(None, self.fetch(&mut state, busy)),
            },
        }
    }

    /// The credential of a key, if it is the one held: for who signs again what it has signed.
    pub(crate) fn held(&self, key_id: &str) -> Option<Arc<AwsCredential>> {
        let state = self.lock();
        let held = state.held.as_ref().filter(|held| held.credential.key_id == key_id)?;
        Some(Arc::clone(&held.credential))
    }

    /// What it holds, or why it holds nothing; looks for it if it has to.
    pub(crate) async fn standing(self: &Arc<Self>) -> Standing {
        if let Err(error) = self.get().await {
            return Standing::none(error.to_string());
        }
        let state = self.lock();
        let Some(held) = &state.held else { return Standing::none("none is held".to_owned()) };
        let source = match held.place {
            Place::Environment => "an access key of the environment",
            Place::Files(_) => "an access key of a profile",
            Place::Service => "temporary ones, of a service",
        };
        let now = Instant::now();
        let expires_in = held.expires.map(|expires| expires.saturating_duration_since(now));
        Standing { expires_in, ..Standing::of(source) }
    }

    /// Fetches another credential than one that was refused. Answers whether there is one.
    pub(crate) async fn renew(self: &Arc<Self>, refusal: Refusal, generation: u64) -> bool {
        let fetch = {
            let mut state = self.lock();
            if state.generation != generation {
                return true;
            }
            let now = Instant::now();
            let busy = state.fetch.as_ref().and_then(WeakShared::upgrade);
            if busy.is_none() && !self.may_renew(&mut state, refusal, now) {
                return false;
            }
            self.fetch(&mut state, busy)
        };
        if let Err(error) = fetch.await {
            tracing::warn!(%error, "the credentials that the origin refuses could not be renewed");
        }
        self.generation() != generation
    }

    fn may_renew(&self, state: &mut State, refusal: Refusal, now: Instant) -> bool {
        let Some(held) = &state.held else { return false };
        let blamed = match (&held.place, refusal) {
            (Place::Environment, _) | (_, Refusal::Skewed) => false,
            // To look costs nothing, and if it is the same nobody is asked again.
            (Place::Files(_), _) | (Place::Service, Refusal::Expired) => true,
            (Place::Service, Refusal::Unsaid) => {
                held.stale.is_some_and(|stale| now >= stale) || now >= held.since + YOUNG
            }
        };
        blamed && state.renewals.take(now)
    }

    fn need(&self, state: &mut State, now: Instant) -> Need {
        let look = state.looked.is_none_or(|looked| now >= looked + LOOK);
        let Some(held) = &state.held else { return Need::Now };
        if held.expires.is_some_and(|expires| now >= expires) {
            return Need::Now;
        }
        if held.stale.is_some_and(|stale| now >= stale) {
            return Need::Soon;
        }
        if look && matches!(held.place, Place::Files(_)) {
            state.looked = Some(now);
            if self.source.changed(&held.place) {
                return Need::Soon;
            }
        }
        Need::None
    }

    /// The fetch under way, or a new one.
    fn fetch(self: &Arc<Self>, state: &mut State, busy: Option<Fetch>) -> Fetch {
        if let Some(busy) = busy {
            return busy;
        }
        let this = Arc::clone(self);
        let source = Arc::clone(&self.source);
        let fetch = async move {
            let found = source.find().await;
            this.lock().found(found, Instant::now())
        };
        let fetch = fetch.boxed().shared();
        state.fetch = fetch.downgrade();
        state.fetches += 1;
        fetch
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The failure that is told to who comes now.
    fn failure(&self, now: Instant) -> Option<Arc<CredentialError>> {
        let (at, error) = self.failed.as_ref()?;
        (now < *at + FAILURE_KEPT).then(|| Arc::clone(error))
    }

    /// Ends a fetch.
    fn found(&mut self, found: Result<Found, CredentialError>, now: Instant) -> Fetched {
        self.fetch = None;
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                let error = Arc::new(error);
                self.failed = Some((now, Arc::clone(&error)));
                if let Some(held) = &mut self.held {
                    held.stale = Some(now + AGAIN);
                }
                return Err(error);
            }
        };
        self.failed = None;
        let slack = found.life.map(|life| SLACK.min(life / 4));
        let expires = found.life.map(|life| now + life);
        let stale = expires.zip(slack).map(|(expires, slack)| expires - slack);
        match &mut self.held {
            Some(held) if *held.credential == found.credential => {
                held.place = found.place;
                held.expires = expires;
                held.stale = stale.map(|stale| stale.max(now + AGAIN));
            }
            held => {
                self.generation += 1;
                let credential = Arc::new(found.credential);
                *held = Some(Held { credential, place: found.place, since: now, stale, expires });
            }
        }
        Ok(())
    }
}

/// A small purse of renewals: origins that refuse everything shall not empty the metadata service.
#[derive(Debug)]
struct Renewals {
    left: u32,
    since: Option<Instant>,
}

impl Default for Renewals {
    fn default() -> Self {
        Self { left: RENEWALS, since: None }
    }
}

impl Renewals {
    fn take(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let earned = now.duration_since(since).as_secs() / AGAIN.as_secs();
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(earned).min(RENEWALS);
            self.since = Some(since + AGAIN.saturating_mul(earned));
        }
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }
}

#[cfg(test)]
#[path = "keyring_tests.rs"]
mod tests;
