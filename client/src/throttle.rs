//! What a client does about a daemon that refuses it for overload: it stops asking for all of it.
//!
//! To refuse a load costs a daemon less than to serve one, but not nothing. Callers that come ten
//! times as fast as they can be served have it spend its CPUs on refusals, and fewer loads end than
//! could. So a client counts, over the last moments, the loads that it was asked for and those that
//! the daemon took. Of what exceeds twice the latter it refuses the surplus itself, with what the
//! daemon said last: "Handling Overload" of the SRE book calls it adaptive throttling. The daemon
//! still hears of a load that it refuses for each that it takes, so that a client learns at once
//! of room that has come free; and soon after the last refusal nothing is held back.
//!
//! A [`Throttle`] belongs to a connection, whose clones share it. It draws no lots: what is due is
//! added up, and a whole load of it is refused.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay_proto::Reason;
use tokio::time::Instant;

use crate::error::ClientError;

/// How long what happened counts: it fades with this time constant. Short, since what it guards
/// against is many loads a moment, and a daemon has room again as soon as it has worked off a
/// queue.
const MEMORY: Duration = Duration::from_millis(100);

/// So many loads are asked for, for each that was taken.
const ASKED_PER_TAKEN: f64 = 2.0;

/// Counts that have faded since `at`.
#[derive(Debug)]
struct Counts {
    at: Instant,
    /// Loads that the application wanted.
    wanted: f64,
    /// Of those: not refused for overload.
    taken: f64,
    /// What is due to be refused.
    due: f64,
    refused: Option<ClientError>,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Throttle(Mutex<Counts>);

/// A load that was let through; says what became of it.
#[derive(Debug)]
#[must_use = "what became of a load has to be counted"]
pub(crate) struct Asked<'a>(&'a Throttle);

impl Throttle {
    pub(crate) fn new() -> Self {
        let (wanted, taken, due) = (0.0, 0.0, 0.0);
        Self(Mutex::new(Counts { at: Instant::now(), wanted, taken, due, refused: None }))
    }

    /// A load is wanted: whether the daemon is asked for it.
    pub(crate) fn ask(&self) -> Result<Asked<'_>, ClientError> {
        let mut counts = self.counts();
        counts.wanted += 1.0;
        let Some(refused) = counts.refused.clone() else { return Ok(Asked(self)) };
        let surplus = counts.wanted - ASKED_PER_TAKEN * counts.taken;
        counts.due += (surplus / (counts.wanted + 1.0)).max(0.0);
        if counts.due < 1.0 {
            return Ok(Asked(self));
        }
        counts.due -= 1.0;
        Err(refused)
    }

    /// A load is wanted, and the daemon is asked for it in any case.
    pub(crate) fn ask_always(&self) -> Asked<'_> {
        self.counts().wanted += 1.0;
        Asked(self)
    }

    /// The counts of now.
    fn counts(&self) -> MutexGuard<'_, Counts> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let past = now.saturating_duration_since(counts.at);
        let kept = (-past.as_secs_f64() / MEMORY.as_secs_f64()).exp();
        counts.at = now;
        counts.wanted *= kept;
        counts.taken *= kept;
        // Less than one load: nothing that could be too many.
        if counts.wanted < 1.0 {
            (counts.due, counts.refused) = (0.0, None);
        }
        counts
    }
}

impl Asked<'_> {
    /// What came of it: only overload counts against the daemon.
    pub(crate) fn ended<T>(self, result: &Result<T, ClientError>) {
        let mut counts = self.0.counts();
        match result {
            Err(error) if error.reason() == Reason::QueueFull => counts.refused = Some(held(error)),
            Ok(_) | Err(_) => counts.taken += 1.0,
        }
    }
}

/// The error of those that the daemon is not asked for.
fn held(error: &ClientError) -> ClientError {
    let mut failure = error.failure().clone();
    let said = &failure.message;
    failure.message =
        format!("the daemon is not asked, it refuses too many loads; it said: {said}");
    failure.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(1);

    fn full() -> ClientError {
        ClientError::new(Reason::QueueFull, "256 loads wait")
    }

    /// One load, which the daemon takes if it has room; whether it was asked.
    fn one(throttle: &Throttle, room: &mut bool) -> bool {
        let Ok(load) = throttle.ask() else { return false };
        let took = std::mem::take(room);
        load.ended(&took.then_some(()).ok_or_else(full));
        true
    }

    /// So many loads a millisecond for so long, of which the daemon takes one each millisecond; how
    /// many it was asked for, and how many it took.
    async fn flood(throttle: &Throttle, each: u32, millis: u32) -> (usize, usize) {
        let (mut asked, mut taken) = (0, 0);
        for _ in 0..millis {
            let mut room = true;
            asked += (0..each).filter(|_| one(throttle, &mut room)).count();
            taken += usize::from(!room);
            tokio::time::advance(TICK).await;
        }
        (asked, taken)
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_held_back_from_a_daemon_that_refuses_nothing() {
        let throttle = Throttle::new();
        for _ in 0..1000 {
            throttle.ask().unwrap().ended(&Ok(()));
            let other = ClientError::new(Reason::ObjectNotFound, "no such object");
            throttle.ask().unwrap().ended::<()>(&Err(other));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_in_a_flood_is_asked_for_twice_what_it_takes_and_takes_as_much() {
        for each in [3, 10, 100] {
            let throttle = Throttle::new();
            let _warm = flood(&throttle, each, 200).await;
            let (asked, taken) = flood(&throttle, each, 1000).await;
            assert!(taken >= 990, "{each}: {taken} of 1000");
            assert!(asked <= 2300, "{each}: {asked}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn soon_after_a_flood_nothing_is_held_back() {
        let throttle = Throttle::new();
        let _ = flood(&throttle, 10, 1000).await;
        tokio::time::advance(8 * MEMORY).await;
        for _ in 0..100 {
            throttle.ask().unwrap().ended(&Ok(()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_held_back_hears_what_the_daemon_said() {
        let throttle = Throttle::new();
        let mut failure = full().failure().clone();
        failure.retry_after = Some(Duration::from_millis(70));
        let said = ClientError::from(failure);
        let held = loop {
            match throttle.ask() {
                Ok(load) => load.ended::<()>(&Err(said.clone())),
                Err(held) => break held,
            }
        };
        assert_eq!(held.reason(), Reason::QueueFull);
        assert_eq!(held.failure().retry_after, Some(Duration::from_millis(70)));
        let text = held.to_string();
        assert!(text.contains("not asked") && text.contains("256 loads wait"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_refusal_holds_nobody_back() {
        let throttle = Throttle::new();
        throttle.ask().unwrap().ended::<()>(&Err(full()));
        throttle.ask().unwrap().ended(&Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_daemon_has_to_answer_is_never_held_back() {
        let throttle = Throttle::new();
        flood(&throttle, 10, 100).await;
        let held = (0..10).filter(|_| throttle.ask().is_err()).count();
        assert!(held > 0, "others are held back by now");
        for _ in 0..10 {
            throttle.ask_always().ended(&Err::<(), _>(full()));
        }
    }
}
