//! Requests that go on when nobody waits for them: those that begin an upload, whose answer says
//! what there is to clear away, and those that clear it away when the upload was given up.
//!
//! Whoever drops an upload does not wait, so they are made by tasks. These belong to the origins,
//! which can be asked to wait for them, and which end them when they go.

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// Requests at a time. Beyond that no upload begins, and one is left to its store's own rules.
const STRAYS_MAX: usize = 256;

/// The tasks.
#[derive(Debug, Default)]
pub(crate) struct Strays(Mutex<JoinSet<()>>);

impl Strays {
    /// Does the work, on this runtime, while the caller goes on; drops it if there is too much.
    pub(crate) fn take(&self, runtime: &Handle, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.lock();
        while tasks.try_join_next().is_some() {}
        if tasks.len() >= STRAYS_MAX {
            tracing::warn!(
                "too many uploads are begun or given up at once: one is left to its store"
            );
            return;
        }
        tasks.spawn_on(work, runtime);
    }

    /// Waits until there are none, those included that others lead to.
    pub(crate) async fn gone(&self) {
        loop {
            let mut tasks = std::mem::take(&mut *self.lock());
            if tasks.is_empty() {
                return;
            }
            while tasks.join_next().await.is_some() {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
