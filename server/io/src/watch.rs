//! The thread that gives up operations past their limits, so that no caller hangs with its disk.
//!
//! It is apart from the threads that do the work because those are what hangs: in the kernel, where
//! nothing can wake them. It sleeps while there is nothing to watch.

use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::core::Core;

/// Starts the watch; it ends when the desk is closed and empty.
pub(crate) fn start(core: Arc<Core>, soft: Duration) -> std::io::Result<JoinHandle<()>> {
    // Operations that come while it sleeps have limits of their own: half the shorter one is how
    // late it may be for those.
    let tick = (soft / 2).max(Duration::from_millis(1));
    Builder::new().name("forebay-io-watch".into()).spawn(move || core.watch(tick))
}
