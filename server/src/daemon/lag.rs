//! How late a runtime is: work on its threads that does not let go delays every socket.
//!
//! A task asks to be woken at a fixed pace and looks how long after its time it runs. What it finds
//! is what any task finds whose turn has come: the queue before it, and whoever holds the threads.
//! The runtime's own clock has steps of a millisecond, so less than that is nothing.

use std::time::Duration;

use tokio::time::Instant;

/// Ten looks a second cost nothing, and a stall of the runtime lasts longer than that or hurts
/// nobody.
const PACE: Duration = Duration::from_millis(100);

/// Tells `late` of every wake-up by how much it came too late, for ever.
pub(super) async fn watch(late: impl Fn(Duration)) {
    loop {
        let due = Instant::now() + PACE;
        tokio::time::sleep_until(due).await;
        late(Instant::now().saturating_duration_since(due));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_is_held_up_is_late_by_that_much() {
        let heard = Arc::<Mutex<Vec<Duration>>>::default();
        let telling = Arc::clone(&heard);
        let watching = watch(move |late| telling.lock().unwrap().push(late));
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(watching);
        let take = || std::mem::take(&mut *heard.lock().unwrap());
        // With nothing to do the clock goes from one wake-up to the next.
        tokio::time::sleep(PACE * 10).await;
        let idle = take();
        assert!(idle.len() >= 9 && idle.iter().all(Duration::is_zero), "{idle:?}");
        // Nobody gets the thread while the clock goes on by this much.
        tokio::time::advance(PACE * 30).await;
        tokio::task::yield_now().await;
        let late = take();
        let worst = late.iter().max().copied().unwrap_or_default();
        assert!((PACE * 29..=PACE * 30).contains(&worst), "{late:?}");
        tokio::time::sleep(PACE * 3).await;
        assert!(take().iter().skip(1).all(Duration::is_zero), "it was late once");
    }
}
