//! Uploads that were given up, and the requests that clear away what they left.
//!
//! Whoever drops an upload does not wait, so the request is made by a task. They belong to the
//! origins: these can be asked to wait for them, and end them when they go.

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// Uploads that are cleared away at a time. Beyond that they are left to the store's own rules.
const STRAYS_MAX: usize = 256;

/// The tasks.
#[derive(Debug, Default)]
pub(crate) struct Strays(Mutex<JoinSet<()>>);

impl Strays {
    /// Does the work, on this runtime, while the caller goes on.
    pub(crate) fn take(&self, runtime: &Handle, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.lock();
        while tasks.try_join_next().is_some() {}
        if tasks.len() >= STRAYS_MAX {
            tracing::warn!("too many uploads were given up at once: one is left to its store");
            return;
        }
        tasks.spawn_on(work, runtime);
    }

    /// Waits until all that was given up before is cleared away.
    pub(crate) async fn gone(&self) {
        let mut tasks = std::mem::take(&mut *self.lock());
        while tasks.join_next().await.is_some() {}
    }

    fn lock(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
