//! One endpoint: a lock over its budget, breaker, limiter and model, and the line before them.
//!
//! A request waits in its lane until the limiter has room, and goes as a [`Permit`]; what the
//! permit is settled with teaches all four. A permit that is dropped unsettled was cancelled by its
//! caller, which says nothing. The line is the only wait: retries beyond a fifth of the calls under
//! way wait in it too, as does everyone when the endpoint's bytes per second are used up. When the
//! breaker opens, all who wait are told at once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::limiter::Load;
use super::standing::{AttemptClass, EndpointStats};
use super::state::{State, Waiter};
use super::view::Sharers;
use crate::error::OriginErrorKind;
use crate::settings::EngineSettings;
use crate::stats::Counters;
use crate::store::{Lane, ReadTerms};
use crate::terms::Demand;

/// Good requests before the first hedge.
const HEDGE_SAMPLES_MIN: u64 = 100;
/// Good requests before it is known what half of them take.
const MEDIAN_SAMPLES_MIN: u64 = 20;
/// No request is sent with less time than this.
pub(crate) const ATTEMPT_MIN: Duration = Duration::from_millis(50);

/// A request that asks to be sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Want {
    pub(crate) retry: bool,
    /// What it will bring, for the limit on bytes per second.
    pub(crate) bytes: u64,
}

/// Why a request is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The breaker is open; what it saw last.
    Breaker { retry_after: Duration, last: Option<OriginErrorKind> },
    /// Too many wait.
    Full,
    /// The deadline passed before it could have been of use.
    Late,
}

/// What an endpoint is, and its limits.
#[derive(Debug)]
pub(crate) struct EndpointSpec<'a> {
    /// Scheme and bucket or host.
    pub(crate) origin: &'a str,
    /// What metrics call it: one of few names.
    pub(crate) alias: &'a str,
    pub(crate) max_connections: Option<usize>,
    pub(crate) max_bytes_per_second: Option<u64>,
    /// What its origin has sent.
    pub(crate) counters: Arc<Counters>,
}

/// What a request came to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict {
    /// The endpoint is well; a part was brought, or an answer such as "no such object".
    Good(Load),
    /// It is not.
    Bad { kind: OriginErrorKind, load: Load },
    /// It had no part in it.
    Unknown,
}

/// Leave to send a request, or none.
pub(crate) type Admitted = Result<Permit, Refused>;

/// One endpoint.
#[derive(Debug)]
pub(crate) struct Endpoint {
    origin: String,
    alias: String,
    hedging: bool,
    hedge_after_min: Duration,
    sharers: Sharers,
    state: Mutex<State>,
}

/// Leave to send one request.
#[derive(Debug)]
pub(crate) struct Permit {
    endpoint: Arc<Endpoint>,
    pub(super) started: Instant,
    pub(super) lane: Lane,
    pub(super) class: AttemptClass,
    pub(super) probe: bool,
    /// It was mostly the configured rate that it waited for.
    pub(super) rated: bool,
    /// None as long as it is not settled.
    pub(super) verdict: Option<Verdict>,
}

/// A place in the line, given up when this is dropped.
struct Place<'a> {
    endpoint: &'a Arc<Endpoint>,
    lane: Lane,
    ticket: u64,
}

/// A call under way.
#[derive(Debug)]
pub(crate) struct Call(Arc<Endpoint>);

impl Endpoint {
    pub(crate) fn new(spec: EndpointSpec<'_>, settings: &EngineSettings) -> Arc<Self> {
        Arc::new(Self {
            origin: spec.origin.to_owned(),
            alias: spec.alias.to_owned(),
            hedging: settings.hedging,
            hedge_after_min: settings.hedge_after_min,
            sharers: Sharers::default(),
            state: Mutex::new(State::new(Instant::now(), spec, settings)),
        })
    }

    /// Counts a call until it is dropped.
    pub(crate) fn call(self: &Arc<Self>) -> Call {
        self.lock().calls += 1;
        Call(Arc::clone(self))
    }

    /// Waits for leave to send a request, in the lane and until the deadline of its terms as they
    /// are at each moment. Dropping the future gives the place in the line up.
    ///
    /// A request that could not be answered before the deadline is not sent. It stays, out of the
    /// line, until the deadline: who waits for it has one of its own, and someone with more time
    /// may join them.
    pub(crate) async fn admit(self: &Arc<Self>, want: Want, terms: &ReadTerms) -> Admitted {
        let mut news = terms.news();
        let (since, ticket) = (Instant::now(), self.lock().ticket());
        loop {
            let Demand { lane, deadline } = *news.borrow_and_update();
            let start_by = deadline.map(|deadline| self.latest_start(want.bytes, deadline));
            let late = start_by.is_some_and(|start_by| Instant::now() >= start_by);
            if let Some(deadline) = deadline.filter(|_| late) {
                self.more_time(deadline, &mut news).await?;
                continue;
            }
            let (answer, answered) = oneshot::channel();
            if !self.lock().enter(Waiter { ticket, lane, want, since, answer }) {
                return Err(Refused::Full);
            }
            let _place = Place { endpoint: self, lane, ticket };
            if let Some(admitted) = self.wait(answered, &mut news, start_by).await {
                return admitted;
            }
        }
    }

    /// Waits for new terms until the deadline of the old ones.
    async fn more_time(
        &self,
        deadline: Instant,
        news: &mut watch::Receiver<Demand>,
    ) -> Result<(), Refused> {
        if timeout_at(deadline, news.changed()).await.is_ok() {
            return Ok(());
        }
        self.lock().counts.refused.late += 1;
        Err(Refused::Late)
    }

    /// Waits in the line until it is answered, the terms change or there is not enough time left.
    async fn wait(
        self: &Arc<Self>,
        mut answered: oneshot::Receiver<Admitted>,
        news: &mut watch::Receiver<Demand>,
        start_by: Option<Instant>,
    ) -> Option<Admitted> {
        loop {
            let again = self.look();
            let wake = [again, start_by].into_iter().flatten().min();
            let alarm = async {
                match wake {
                    Some(wake) => sleep_until(wake).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                answer = &mut answered => return Some(answer.unwrap_or(Err(Refused::Full))),
                _ = news.changed() => return answered.try_recv().ok(),
                () = alarm => {}
            }
            if start_by.is_some_and(|start_by| Instant::now() >= start_by) {
                return answered.try_recv().ok();
            }
        }
    }

    /// Until when a request for so many bytes has to begin to be done by the deadline: half of them
    /// would be.
    fn latest_start(&self, bytes: u64, deadline: Instant) -> Instant {
        let needed = self.needed(bytes);
        deadline.checked_sub(needed).unwrap_or(deadline)
    }

    /// The least time in which it makes sense to begin a request for so many bytes.
    pub(crate) fn needed(&self, bytes: u64) -> Duration {
        let median = self.lock().model.p50(bytes, MEDIAN_SAMPLES_MIN);
        median.unwrap_or_default().max(ATTEMPT_MIN)
    }

    /// Leave to send a second copy of a request at once, if hedges are in order; else why not.
    pub(crate) fn hedge(self: &Arc<Self>, lane: Lane) -> Result<(Permit, u32), &'static str> {
        self.lock().hedge(self, lane, Instant::now())
    }

    /// A request that took long had no second copy, for a reason.
    pub(crate) fn not_hedged(&self, why: &'static str) {
        *self.lock().counts.decisions.hedges.entry((false, why)).or_default() += 1;
    }

    /// A request that failed is made again, or is not, for a reason.
    pub(crate) fn decided_retry(&self, made: bool, why: &'static str) {
        *self.lock().counts.decisions.retries.entry((made, why)).or_default() += 1;
    }

    /// How long a request for so many bytes may take before a second copy is worth it.
    pub(crate) fn hedge_after(&self, bytes: u64) -> Option<Duration> {
        let state = self.hedging.then(|| self.lock())?;
        Some(state.model.p95(bytes, HEDGE_SAMPLES_MIN)?.max(self.hedge_after_min))
    }

    /// What a request for so many bytes usually takes.
    pub(crate) fn usual(&self, bytes: u64) -> Option<Duration> {
        self.lock().model.usual(bytes)
    }

    /// A hedge is decided: which copy won, and what the other had brought.
    pub(crate) fn hedged(&self, won: bool, wasted: u64, cost: u32) {
        let mut state = self.lock();
        state.counts.hedge_wasted_bytes += wasted;
        if won {
            state.counts.hedge_wins += 1;
            state.budget.succeeded(Some(cost));
        }
    }

    /// Pays for a retry after such a failure.
    pub(crate) fn take_tokens(&self, kind: OriginErrorKind) -> Option<u32> {
        let mut state = self.lock();
        let taken = state.budget.take(kind);
        match taken {
            Some(_) => state.counts.retries += 1,
            None => state.counts.retries_denied += 1,
        }
        taken
    }

    /// A call succeeded; its last retry had cost so much.
    pub(crate) fn succeeded(&self, taken: Option<u32>) {
        self.lock().budget.succeeded(taken);
    }

    /// Whether a call with time may have more attempts than usual.
    pub(crate) fn is_rich(&self) -> bool {
        self.lock().budget.is_rich()
    }

    /// For how long the breaker refuses everything.
    pub(crate) fn refuses(&self) -> Option<Duration> {
        self.lock().breaker.refuses(Instant::now())
    }

    pub(super) fn sharers(&self) -> &Sharers {
        &self.sharers
    }

    /// Requests that may be under way now.
    pub(crate) fn limit(&self) -> usize {
        self.lock().limiter.limit()
    }

    /// Bytes per second that it brought lately when it was asked for all it could.
    pub(crate) fn sustained(&self) -> Option<f64> {
        self.lock().meter.sustained(Instant::now())
    }

    pub(crate) fn stats(&self) -> EndpointStats {
        let stats = self.lock().stats(Instant::now());
        EndpointStats { origin: self.origin.clone(), alias: self.alias.clone(), ..stats }
    }

    fn look(self: &Arc<Self>) -> Option<Instant> {
        let answers = self.lock().look(self, Instant::now());
        answers.tell()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.endpoint.lock().leave(self.lane, self.ticket);
    }
}

impl Permit {
    /// Whether it was mostly the configured rate that it waited for.
    pub(crate) fn is_rated(&self) -> bool {
        self.rated
    }

    /// What so many bytes took, though the request did not go well.
    pub(crate) fn teach(&self, bytes: u64, service: Duration) {
        self.endpoint.lock().model.learn(bytes, service);
    }

    pub(super) fn new(
        endpoint: &Arc<Endpoint>,
        (lane, class): (Lane, AttemptClass),
        probe: bool,
        now: Instant,
    ) -> Self {
        let endpoint = Arc::clone(endpoint);
        Self { endpoint, started: now, lane, class, probe, rated: false, verdict: None }
    }

    /// Says what the request came to, and gives its place to the next.
    pub(crate) fn settle(mut self, verdict: Verdict) {
        self.verdict = Some(verdict);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let now = Instant::now();
        let endpoint = Arc::clone(&self.endpoint);
        let answers = {
            let mut state = endpoint.lock();
            state.end(self, now);
            state.look(&endpoint, now)
        };
        answers.tell();
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.calls = state.calls.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::engine::breaker::BreakerState;

    const SERVED: Verdict =
        Verdict::Good(Load::Served { bytes: 1 << 20, service: Duration::from_millis(100) });
    const FAILED: Verdict =
        Verdict::Bad { kind: OriginErrorKind::Unreachable, load: Load::Unknown };
    const READ: Want = Want { retry: false, bytes: 0 };
    const RETRY: Want = Want { retry: true, ..READ };

    fn endpoint(limit: usize, rate: Option<u64>) -> Arc<Endpoint> {
        let settings = EngineSettings { limit_start: limit, ..EngineSettings::default() };
        let spec = EndpointSpec {
            origin: "s3://b",
            alias: "s3",
            max_connections: Some(limit),
            max_bytes_per_second: rate,
            counters: Arc::default(),
        };
        Endpoint::new(spec, &settings)
    }

    fn prefetch() -> ReadTerms {
        ReadTerms::new(Lane::Prefetch, None)
    }

    /// An interactive request without a deadline.
    async fn admit(endpoint: &Arc<Endpoint>, want: Want) -> Admitted {
        endpoint.admit(want, &ReadTerms::default()).await
    }

    async fn admitted(endpoint: &Arc<Endpoint>, want: Want) -> Permit {
        admit(endpoint, want).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn interactive_requests_go_first_and_the_line_is_in_order() {
        let endpoint = endpoint(1, None);
        let held = admitted(&endpoint, READ).await;
        let terms = prefetch();
        let mut prefetch = Box::pin(endpoint.admit(READ, &terms));
        let mut first = Box::pin(admit(&endpoint, READ));
        let mut second = Box::pin(admit(&endpoint, READ));
        assert!((&mut prefetch).now_or_never().is_none());
        assert!((&mut first).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());
        assert_eq!(endpoint.stats().waiting, 3);
        drop(held);
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut prefetch).now_or_never().is_none());
        drop(first.await.unwrap());
        drop(second.await.unwrap());
        drop(prefetch.await.unwrap());
        assert_eq!((endpoint.stats().waiting, endpoint.stats().inflight), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn whom_someone_joins_is_promoted_where_he_stands() {
        let endpoint = endpoint(1, None);
        let held = admitted(&endpoint, READ).await;
        let (early, late) = (prefetch(), prefetch());
        let mut early_read = Box::pin(endpoint.admit(READ, &early));
        let mut late_read = Box::pin(endpoint.admit(READ, &late));
        assert!((&mut early_read).now_or_never().is_none());
        let mut read = Box::pin(admit(&endpoint, READ));
        assert!((&mut read).now_or_never().is_none());
        assert!((&mut late_read).now_or_never().is_none());
        // Both are joined by someone who waits: now it counts who came first.
        for terms in [&late, &early] {
            terms.set(Lane::Interactive, None);
        }
        assert!((&mut late_read).now_or_never().is_none());
        assert!((&mut early_read).now_or_never().is_none());
        assert_eq!(endpoint.stats().waiting, 3);
        // And the first is left again.
        early.set(Lane::Prefetch, None);
        assert!((&mut early_read).now_or_never().is_none());
        drop(held);
        assert!((&mut late_read).now_or_never().is_none());
        assert!((&mut early_read).now_or_never().is_none());
        drop(read.await.unwrap());
        assert!((&mut early_read).now_or_never().is_none());
        drop(late_read.await.unwrap());
        drop(early_read.await.unwrap());
        assert_eq!((endpoint.stats().waiting, endpoint.stats().inflight), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_could_use_is_not_sent() {
        let endpoint = endpoint(1, None);
        let held = admitted(&endpoint, READ).await;
        let (begun, second) = (Instant::now(), Duration::from_secs(1));
        let terms = ReadTerms::new(Lane::Interactive, Some(begun + second));
        let mut read = Box::pin(endpoint.admit(READ, &terms));
        assert!((&mut read).now_or_never().is_none());
        tokio::time::advance(second - Duration::from_millis(20)).await;
        assert!((&mut read).now_or_never().is_none());
        // Room comes, too late for it...
        drop(held);
        assert_eq!(endpoint.stats().waiting, 0);
        assert!((&mut read).now_or_never().is_none());
        // ... but not for one that joins.
        terms.set(Lane::Interactive, Some(begun + 2 * second));
        let permit = read.await.unwrap();
        assert!(begun.elapsed() < second);
        let terms = ReadTerms::new(Lane::Interactive, Some(begun + second));
        assert_eq!(endpoint.admit(READ, &terms).await.unwrap_err(), Refused::Late);
        assert_eq!(begun.elapsed(), second);
        permit.settle(SERVED);
        for _ in 0..40 {
            admitted(&endpoint, READ).await.settle(SERVED);
        }
        // It is known that a part takes 100 ms: nothing begins that has less.
        let part = Want { bytes: 1 << 20, ..READ };
        let time = Duration::from_millis(90);
        let terms = ReadTerms::new(Lane::Interactive, Some(Instant::now() + time));
        assert_eq!(endpoint.admit(part, &terms).await.unwrap_err(), Refused::Late);
    }

    #[tokio::test(start_paused = true)]
    async fn prefetch_has_a_quarter_while_anyone_waits_for_more() {
        let endpoint = endpoint(8, None);
        let read = admitted(&endpoint, READ).await;
        let terms = prefetch();
        let ask = || endpoint.admit(READ, &terms);
        let prefetched = [ask().await.unwrap(), ask().await.unwrap()];
        let mut third = Box::pin(ask());
        assert!((&mut third).now_or_never().is_none());
        drop(read);
        drop(third.await.unwrap());
        drop(prefetched);
    }

    #[tokio::test(start_paused = true)]
    async fn retries_beyond_a_fifth_of_the_calls_wait() {
        let endpoint = endpoint(64, None);
        let calls: Vec<Call> = (0..10).map(|_| endpoint.call()).collect();
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(admitted(&endpoint, RETRY).await);
        }
        let mut fourth = Box::pin(admit(&endpoint, RETRY));
        assert!((&mut fourth).now_or_never().is_none());
        drop(admitted(&endpoint, READ).await);
        held.pop();
        held.push(fourth.await.unwrap());
        let more: Vec<Call> = (0..10).map(|_| endpoint.call()).collect();
        held.push(admitted(&endpoint, RETRY).await);
        drop((calls, more, held));
        assert_eq!(endpoint.stats().inflight, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_breaker_opens_all_who_wait_are_told() {
        let endpoint = endpoint(2, None);
        for _ in 0..19 {
            admitted(&endpoint, READ).await.settle(FAILED);
        }
        let last = admitted(&endpoint, READ).await;
        let other = admitted(&endpoint, READ).await;
        let waiting: Vec<_> = (0..5).map(|_| Box::pin(admit(&endpoint, READ))).collect();
        let told = futures::future::join_all(waiting);
        let (told, ()) = futures::join!(told, async { last.settle(FAILED) });
        let unreachable = Some(OriginErrorKind::Unreachable);
        assert!(told.iter().all(|told| matches!(
            told,
            Err(Refused::Breaker { retry_after, last })
                if *retry_after <= Duration::from_millis(1200) && *last == unreachable
        )));
        drop(other);
        // A probe whose caller goes away leaves room for the next.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let probe = admitted(&endpoint, READ).await;
        admit(&endpoint, READ).await.unwrap_err();
        drop(probe);
        admitted(&endpoint, READ).await.settle(SERVED);
        assert_eq!(endpoint.stats().breaker, BreakerState::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_per_second_are_kept() {
        let endpoint = endpoint(8, Some(1_000_000));
        let begun = Instant::now();
        let want = Want { bytes: 500_000, ..READ };
        let all = (0..21).map(|_| async { admitted(&endpoint, want).await.settle(SERVED) });
        futures::future::join_all(all).await;
        let seconds = begun.elapsed().as_secs_f64();
        assert!((9.9..10.6).contains(&seconds), "{seconds} s for 20 parts of half a second");
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_says_whether_the_rate_was_waited_for() {
        let endpoint = endpoint(1, Some(1_000_000));
        let half = Want { bytes: 500_000, ..READ };
        let first = admitted(&endpoint, half).await;
        assert!(!first.is_rated());
        first.settle(SERVED);
        let second = admitted(&endpoint, half).await;
        assert!(second.is_rated(), "it waited for half a second");
        // The next one waits for this one's connection, ten times as long as for the rate.
        let next = admitted(&endpoint, half);
        let held = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            second.settle(SERVED);
        };
        let (next, ()) = futures::join!(next, held);
        assert!(!next.is_rated());
    }

    #[tokio::test(start_paused = true)]
    async fn one_in_twenty_requests_may_have_a_copy() {
        let endpoint = endpoint(8, None);
        assert_eq!(endpoint.hedge(Lane::Interactive).unwrap_err(), "too_many");
        assert_eq!(endpoint.hedge_after(1 << 20), None);
        let mut hedges = 0;
        for _ in 0..1000 {
            admitted(&endpoint, READ).await.settle(SERVED);
            let copy = endpoint.hedge(Lane::Interactive);
            hedges += usize::from(copy.is_ok());
            copy.into_iter().for_each(|(_permit, cost)| endpoint.hedged(true, 0, cost));
        }
        assert!((45..=50).contains(&hedges), "{hedges}");
        assert_eq!(endpoint.hedge_after(1 << 20), Some(Duration::from_millis(200)));
        // Not while it throttles.
        let throttled = Verdict::Bad { kind: OriginErrorKind::Throttled, load: Load::Overloaded };
        (0..20).for_each(|_| drop(admit(&endpoint, READ).now_or_never()));
        admitted(&endpoint, READ).await.settle(throttled);
        assert_eq!(endpoint.hedge(Lane::Interactive).unwrap_err(), "limit_shrinking");
        let decisions = endpoint.stats().decisions;
        assert_eq!(decisions.hedges, [((true, "slow"), hedges as u64)].into());
        assert_eq!(decisions.limit_steps, [(("down", "throttled"), 1)].into());
        let news: Vec<_> = endpoint.news(0).1.into_iter().map(|news| news.detail).collect();
        assert_eq!(news, ["down to 7 requests at a time, from 8: throttled"]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_away_leaves_nothing_behind() {
        let endpoint = endpoint(1, None);
        let held = admitted(&endpoint, READ).await;
        let mut gone: Vec<_> = (0..50).map(|_| Box::pin(admit(&endpoint, READ))).collect();
        for waiting in &mut gone {
            assert!(waiting.now_or_never().is_none());
        }
        // Half go while they wait, half with a permit that they never saw.
        gone.truncate(25);
        drop(held);
        drop(gone);
        drop(admitted(&endpoint, READ).await);
        let stats = endpoint.stats();
        assert_eq!((stats.inflight, stats.waiting), (0, 0));
    }
}
