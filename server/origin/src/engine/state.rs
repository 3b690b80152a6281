//! What an endpoint knows, under its lock: budget, breaker, limiter, model, and the line before
//! them.
//!
//! A request joins the line of its lane, and [`State::look`] lets in who may go: as many as the
//! limiter has room for, interactive ones first, no more retries than a fifth of the calls, no more
//! bytes per second than are allowed. Who is let in gets a permit, and what became of it comes back
//! through [`State::end`]. Times come in as arguments, and nobody is told anything here: the
//! [`Answers`] are told once the lock is free. Owned by the endpoint.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::breaker::{Admission, Breaker};
use super::budget::Budget;
use super::endpoint::{Admitted, Endpoint, EndpointSpec, Permit, Refused, Verdict, Want};
use super::limiter::{Limiter, Load};
use super::meter::Meter;
use super::model::Model;
use super::news::News;
use super::standing::{
    AttemptClass, AttemptCount, AttemptEnd, Decisions, EndpointStats, RefusedCounts,
};
use super::unit;
use crate::error::OriginErrorKind;
use crate::settings::EngineSettings;
use crate::stats::Counters;
use crate::store::Lane;

/// Requests that may wait for an endpoint.
const WAITING_MAX: usize = 65_536;
/// Retries at a time, whatever the number of calls; beyond it, one for each so many calls.
const RETRIES_MIN: usize = 3;
const CALLS_PER_RETRY: usize = 5;
/// How often those who wait for an endpoint with a limit on bytes per second look at it.
const RATE_TICK: Duration = Duration::from_millis(20);
/// While interactive requests are under way, others have this share of the limit.
const PREFETCH_SHARE: usize = 4;
/// Requests per hedge, and hedges that may be saved up.
const REQUESTS_PER_HEDGE: u32 = 20;
const HEDGES_SAVED_MAX: u32 = 10;

/// See the module's head.
#[derive(Debug)]
pub(super) struct State {
    pub(super) budget: Budget,
    pub(super) breaker: Breaker,
    last_failure: Option<OriginErrorKind>,
    pub(super) limiter: Limiter,
    pub(super) model: Model,
    pub(super) meter: Meter,
    /// What its origin has sent, for the meter.
    received: Arc<Counters>,
    interactive: VecDeque<Waiter>,
    prefetch: VecDeque<Waiter>,
    /// Requests under way that are of interactive calls, and that are retries.
    interactive_inflight: usize,
    retries_inflight: usize,
    /// Calls under way, waits between attempts included.
    pub(super) calls: usize,
    rate: Option<Rate>,
    hedge_credit: u32,
    next_ticket: u64,
    pub(super) counts: Counts,
    pub(super) news: News,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) breaker_opened: u64,
    pub(super) retries: u64,
    pub(super) retries_denied: u64,
    pub(super) throttled: u64,
    pub(super) timed_out: u64,
    pub(super) refused: RefusedCounts,
    pub(super) attempts: BTreeMap<(AttemptClass, AttemptEnd), u64>,
    pub(super) hedges: u64,
    pub(super) hedge_wins: u64,
    pub(super) hedge_wasted_bytes: u64,
    pub(super) decisions: Decisions,
}

/// One in the line.
#[derive(Debug)]
pub(super) struct Waiter {
    /// Its place: lower ones came first. It keeps it when it changes its lane.
    pub(super) ticket: u64,
    pub(super) lane: Lane,
    pub(super) want: Want,
    pub(super) since: Instant,
    pub(super) answer: oneshot::Sender<Admitted>,
}

/// When the next byte may be asked for.
#[derive(Debug)]
struct Rate {
    bytes_per_second: f64,
    free: Instant,
}

impl Rate {
    /// Whether it took most of the time from `since` to `now`.
    fn kept(&self, since: Instant, now: Instant) -> bool {
        let kept = self.free.min(now).saturating_duration_since(since);
        !kept.is_zero() && kept * 2 >= now.saturating_duration_since(since)
    }
}

/// What a look at the line decided; told to those who wait once the lock is free.
#[derive(Debug, Default)]
pub(super) struct Answers {
    told: Vec<(oneshot::Sender<Admitted>, Admitted)>,
    /// When to look again.
    again: Option<Instant>,
}

impl Answers {
    /// A permit whose caller has gone comes back by being dropped.
    pub(super) fn tell(self) -> Option<Instant> {
        for (answer, what) in self.told {
            drop(answer.send(what));
        }
        self.again
    }
}

impl State {
    /// A new endpoint's.
    pub(super) fn new(now: Instant, spec: EndpointSpec<'_>, settings: &EngineSettings) -> Self {
        let max = spec.max_connections.unwrap_or(settings.limit_max);
        let rate = spec.max_bytes_per_second.filter(|rate| *rate > 0);
        Self {
            budget: Budget::new(),
            breaker: Breaker::new(now, settings.breaker_open, settings.breaker_open_cap),
            last_failure: None,
            limiter: Limiter::new(now, settings.limit_start, settings.limit_min, max),
            model: Model::default(),
            meter: Meter::default(),
            received: spec.counters,
            interactive: VecDeque::new(),
            prefetch: VecDeque::new(),
            interactive_inflight: 0,
            retries_inflight: 0,
            calls: 0,
            rate: rate.map(|rate| Rate { bytes_per_second: rate as f64, free: now }),
            hedge_credit: 0,
            next_ticket: 0,
            counts: Counts::default(),
            news: News::default(),
        }
    }

    /// Lets a second copy of a request go at once, if hedges are in order; also what it costs.
    pub(super) fn hedge(
        &mut self,
        endpoint: &Arc<Endpoint>,
        lane: Lane,
        now: Instant,
    ) -> Result<(Permit, u32), &'static str> {
        if !self.breaker.is_closed() {
            return Err("breaker_open");
        }
        if self.limiter.is_shrinking(now) {
            return Err("limit_shrinking");
        }
        if self.hedge_credit < REQUESTS_PER_HEDGE {
            return Err("too_many");
        }
        let cost = self.budget.take(OriginErrorKind::Timeout).ok_or("budget")?;
        self.hedge_credit -= REQUESTS_PER_HEDGE;
        self.counts.hedges += 1;
        *self.counts.decisions.hedges.entry((true, "slow")).or_default() += 1;
        Ok((self.start(endpoint, (lane, AttemptClass::Hedge, 0), false, now), cost))
    }

    /// What can be shown of it, without its names.
    pub(super) fn stats(&self, now: Instant) -> EndpointStats {
        let oldest = [self.interactive.front(), self.prefetch.front()];
        let oldest = oldest.into_iter().flatten().map(|waiter| waiter.since).min();
        let counts = &self.counts;
        let attempts = counts.attempts.iter();
        EndpointStats {
            origin: String::new(),
            alias: String::new(),
            tokens: self.budget.tokens(),
            breaker: self.breaker.state(now),
            breaker_opened: counts.breaker_opened,
            breaker_turns: self.breaker.turns(),
            limit: self.limiter.limit(),
            inflight: self.limiter.inflight(),
            waiting: self.waiting(),
            oldest_wait: oldest.map(|since| now.saturating_duration_since(since)),
            sustained: self.meter.sustained(now),
            attempts: attempts
                .map(|(&(class, end), &count)| AttemptCount { class, end, count })
                .collect(),
            retries: counts.retries,
            retries_denied: counts.retries_denied,
            throttled: counts.throttled,
            timed_out: counts.timed_out,
            refused: counts.refused,
            hedges: counts.hedges,
            hedge_wins: counts.hedge_wins,
            hedge_wasted_bytes: counts.hedge_wasted_bytes,
            decisions: counts.decisions.clone(),
        }
    }

    /// A place in the line, behind all there are.
    pub(super) fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// Joins the line; whether there was room.
    pub(super) fn enter(&mut self, waiter: Waiter) -> bool {
        if self.waiting() >= WAITING_MAX {
            self.counts.refused.queue_full += 1;
            return false;
        }
        let line = self.line(waiter.lane);
        let at = line.partition_point(|other| other.ticket < waiter.ticket);
        line.insert(at, waiter);
        true
    }

    /// Gives a place in the line up, if it was not answered yet.
    pub(super) fn leave(&mut self, lane: Lane, ticket: u64) {
        let line = self.line(lane);
        if let Ok(at) = line.binary_search_by_key(&ticket, |waiter| waiter.ticket) {
            line.remove(at);
        }
    }

    fn waiting(&self) -> usize {
        self.interactive.len() + self.prefetch.len()
    }

    fn line(&mut self, lane: Lane) -> &mut VecDeque<Waiter> {
        match lane {
            Lane::Interactive => &mut self.interactive,
            Lane::Prefetch => &mut self.prefetch,
        }
    }

    /// Answers all who can be answered now.
    pub(super) fn look(&mut self, endpoint: &Arc<Endpoint>, now: Instant) -> Answers {
        let answers = self.answer(endpoint, now);
        // While the limit is still being found, what is brought says little of what could be.
        let limited = !self.limiter.has_room() || (self.rate.is_some() && self.waiting() > 0);
        let full = limited && self.limiter.is_settled();
        self.meter.look(now, full, self.received.received_bytes());
        answers
    }

    fn answer(&mut self, endpoint: &Arc<Endpoint>, now: Instant) -> Answers {
        let mut answers = Answers::default();
        loop {
            if let Some(retry_after) = self.breaker.refuses(now) {
                let refused = Refused::Breaker { retry_after, last: self.last_failure };
                self.counts.refused.breaker_open += self.waiting() as u64;
                let all = self.interactive.drain(..).chain(self.prefetch.drain(..));
                answers.told.extend(all.map(|waiter| (waiter.answer, Err(refused))));
                return answers;
            }
            // Whoever waits looks again himself: nobody else keeps the time.
            let free = self.rate.as_ref().map(|rate| rate.free);
            answers.again = free.map(|free| free.max(now + RATE_TICK));
            if !self.limiter.has_room() || free.is_some_and(|free| free > now) {
                return answers;
            }
            let Some(waiter) = self.next() else { return answers };
            let probe = self.breaker.admit(now) == Admission::Probe;
            if probe {
                self.news.tell(now, "breaker", "half_open: one request tries it".to_owned());
            }
            let saved_max = REQUESTS_PER_HEDGE * HEDGES_SAVED_MAX;
            self.hedge_credit = (self.hedge_credit + 1).min(saved_max);
            let class = if waiter.want.retry { AttemptClass::Retry } else { AttemptClass::First };
            let rated = self.rate.as_ref().is_some_and(|rate| rate.kept(waiter.since, now));
            let what = (waiter.lane, class, waiter.want.bytes);
            let mut permit = self.start(endpoint, what, probe, now);
            permit.rated = rated;
            answers.told.push((waiter.answer, Ok(permit)));
        }
    }

    /// The next who may go, as far as lanes and retries are concerned.
    fn next(&mut self) -> Option<Waiter> {
        let retries_max = (self.calls / CALLS_PER_RETRY).max(RETRIES_MIN);
        let retries = self.retries_inflight < retries_max;
        let fits = |waiter: &Waiter| retries || !waiter.want.retry;
        let prefetch_max = (self.limiter.limit() / PREFETCH_SHARE).max(1);
        let prefetch_inflight = self.limiter.inflight() - self.interactive_inflight;
        let yields = self.interactive_inflight > 0 && prefetch_inflight >= prefetch_max;
        if let Some(at) = self.interactive.iter().position(fits) {
            return self.interactive.remove(at);
        }
        let at = self.prefetch.iter().position(fits).filter(|_| !yields)?;
        self.prefetch.remove(at)
    }

    fn start(
        &mut self,
        endpoint: &Arc<Endpoint>,
        (lane, class, bytes): (Lane, AttemptClass, u64),
        probe: bool,
        now: Instant,
    ) -> Permit {
        self.limiter.begin();
        self.interactive_inflight += usize::from(lane == Lane::Interactive);
        self.retries_inflight += usize::from(class == AttemptClass::Retry);
        if let Some(rate) = &mut self.rate {
            let time = Duration::from_secs_f64(bytes as f64 / rate.bytes_per_second);
            rate.free = rate.free.max(now) + time;
        }
        Permit::new(endpoint, (lane, class), probe, now)
    }

    pub(super) fn end(&mut self, permit: &Permit, now: Instant) {
        self.interactive_inflight -= usize::from(permit.lane == Lane::Interactive);
        self.retries_inflight -= usize::from(permit.class == AttemptClass::Retry);
        let end = match permit.verdict {
            Some(Verdict::Good(_)) => AttemptEnd::Answered,
            Some(Verdict::Bad { kind, .. }) => AttemptEnd::failed(kind),
            Some(Verdict::Unknown) => AttemptEnd::Unsent,
            None => AttemptEnd::Cancelled,
        };
        *self.counts.attempts.entry((permit.class, end)).or_default() += 1;
        let verdict = permit.verdict.unwrap_or(Verdict::Unknown);
        let load = match verdict {
            Verdict::Good(load) | Verdict::Bad { load, .. } => load,
            Verdict::Unknown => Load::Unknown,
        };
        if let Load::Served { bytes, service } = load {
            self.model.learn(bytes, service);
        }
        let limit = self.limiter.limit();
        self.limiter.end(permit.started, now, load, &self.model);
        let next = self.limiter.limit();
        if let Some((step, why)) = step(limit, next, verdict) {
            *self.counts.decisions.limit_steps.entry((step, why)).or_default() += 1;
            let detail = format!("{step} to {next} requests at a time, from {limit}: {why}");
            self.news.tell(now, "limit", detail);
        }
        let (closed, opened) = (self.breaker.is_closed(), self.breaker.turns().opened);
        match verdict {
            Verdict::Good(_) => self.breaker.record(now, true, permit.probe, unit()),
            Verdict::Bad { kind, .. } => {
                self.counts.throttled += u64::from(kind == OriginErrorKind::Throttled);
                self.counts.timed_out += u64::from(kind == OriginErrorKind::Timeout);
                self.last_failure = Some(kind);
                self.breaker.record(now, false, permit.probe, unit());
            }
            Verdict::Unknown if permit.probe => self.breaker.abandon(now),
            Verdict::Unknown => {}
        }
        if closed && !self.breaker.is_closed() {
            self.counts.breaker_opened += 1;
            let last = self.last_failure.map_or("failed", OriginErrorKind::as_str);
            *self.counts.decisions.breaker_openings.entry(last).or_default() += 1;
        }
        if self.breaker.turns().opened > opened {
            let last = self.last_failure.map_or("failed", OriginErrorKind::as_str);
            self.news.tell(now, "breaker", format!("open: requests failed, the last: {last}"));
        }
        if !closed && self.breaker.is_closed() {
            let detail = "closed: the request that tried it was answered".to_owned();
            self.news.tell(now, "breaker", detail);
        }
    }
}

/// How the limit changed with a request that ended so, and why.
fn step(from: usize, to: usize, verdict: Verdict) -> Option<(&'static str, &'static str)> {
    if to == from {
        return None;
    }
    Some(match verdict {
        _ if to > from => ("up", "trial"),
        Verdict::Bad { kind: OriginErrorKind::Throttled, .. } => ("down", "throttled"),
        Verdict::Bad { .. } => ("down", "timeout"),
        Verdict::Good(_) | Verdict::Unknown => ("down", "no_gain"),
    })
}
