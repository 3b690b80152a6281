//! The attempts of one call: let in, counted, timed, recorded, and repeated as the schedule says.
//!
//! A retry has to be due (schedule), paid for (budget) and of use (breaker, deadline); it goes over
//! a new connection to another address. What each attempt came to teaches its endpoint and its
//! address.

use std::future::Future;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::credentials::Renewal;
use crate::engine::addresses::Deed;
use crate::engine::book::Mark;
use crate::engine::endpoint::{ATTEMPT_MIN, Call, Endpoint, Permit, Refused, Verdict, Want};
use crate::engine::limiter::Load;
use crate::engine::unit;
use crate::error::{OriginError, OriginErrorKind, OriginFailure};
use crate::fault::Fault;
use crate::hedge::{Copied, Overtaken};
use crate::journal::{Line, Sent};
use crate::key::ObjectKey;
use crate::schedule::{RetryPolicy, next_wait};
use crate::stats::{Counters, InFlight};
use crate::store::{AttemptOutcome, AttemptRecord, ReadRecord, ReadTerms};
use crate::terms::OnWire;
use crate::trace::TraceTag;
use crate::transport::probe::{Probe, ROUTE, Route, Seen, WRITE};

/// The largest answer to a write.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// Below this a body drips.
const STEADY_BYTES_PER_SECOND: f64 = 262_144.0;
/// Bodies below this say nothing about the speed of an address.
const SPEED_BYTES_MIN: u64 = 64 << 10;

/// What a call is about, for its error.
#[derive(Debug, Clone)]
pub(crate) struct Subject<'a> {
    pub(crate) origin: &'a str,
    pub(crate) key: &'a ObjectKey,
    pub(crate) range: Option<Range<u64>>,
}

/// What the attempts of a call share with those of others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ground<'a> {
    pub(crate) policy: &'a RetryPolicy,
    pub(crate) counters: &'a Arc<Counters>,
    /// None for files.
    pub(crate) endpoint: Option<&'a Arc<Endpoint>>,
    /// None for what has no credentials.
    pub(crate) renewal: Option<&'a dyn Renewal>,
}

/// The attempts of one call.
#[derive(Debug)]
pub(crate) struct Tries<'a> {
    ground: Ground<'a>,
    subject: Subject<'a>,
    terms: ReadTerms,
    _call: Option<Call>,
    on_wire: Option<OnWire>,
    record: ReadRecord,
    /// What the last attempt was to bring.
    wanted: u64,
    /// When it was asked for: before the endpoint let it.
    wanted_at: Instant,
    /// What the journal knows of this call.
    line: Line,
    /// What the last retry cost.
    taken: Option<u32>,
    /// Even the first attempt shall have a new connection.
    fresh: bool,
    /// Where the last attempt failed, and how.
    avoid: Option<IpAddr>,
    last: Option<Fault>,
    /// Which credentials the attempt under way is signed with.
    generation: u64,
    /// The call has had new ones: once is all there is.
    renewed: bool,
    /// When a second copy of the attempt under way was made; why none was, if one was due.
    copied: Option<Instant>,
    not_copied: Option<&'static str>,
}

/// One attempt under way.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) probe: Probe,
    pub(crate) started: Instant,
    route: Route,
    _inflight: InFlight,
    permit: Option<Permit>,
}

impl Attempt {
    pub(crate) fn new(route: Route, counters: &Arc<Counters>, permit: Option<Permit>) -> Self {
        let probe = Probe::new();
        Self {
            route: Route { dials: Some(probe.clone()), ..route },
            probe,
            started: Instant::now(),
            _inflight: counters.begin(),
            permit,
        }
    }

    /// The route of a second copy: over a new connection, to another address.
    pub(crate) fn route_of_copy(&self) -> Route {
        let avoid = self.probe.seen().mark.map(|mark| mark.address());
        let trace = self.route.trace;
        Route { first: true, fresh: true, avoid, trace, dials: None }
    }

    /// Before it began it waited mostly for the rate that is configured.
    fn is_rated(&self) -> bool {
        self.permit.as_ref().is_some_and(Permit::is_rated)
    }

    /// Runs the attempt's work where the transport can see its route.
    pub(crate) async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        ROUTE.scope(self.route.clone(), work).await
    }

    /// Runs a write's, where the transport finds its probe as well.
    pub(crate) async fn write<T>(&self, work: impl Future<Output = T>) -> T {
        let probe = self.probe.with_body_max(ANSWER_BYTES_MAX);
        self.run(WRITE.scope(Some(probe), work)).await
    }

    /// Ends it well, having brought so many bytes.
    pub(crate) fn served(self, bytes: u64) {
        let seen = self.probe.seen();
        let time = self.started.elapsed().saturating_sub(connecting(&seen));
        if let Some(mark) = &seen.mark {
            let enough = bytes >= SPEED_BYTES_MIN;
            let deed = if enough { Deed::Served { bytes, time } } else { Deed::Answered };
            mark.did(deed, Instant::now());
        }
        if let Some(permit) = self.permit {
            let load = Load::Served { bytes, service: time };
            permit.settle(Verdict::Good(if bytes > 0 { load } else { Load::Unknown }));
        }
    }

    /// Ends it undecided, though its address is known to be bad or slow.
    fn left(self, deed: Deed) {
        if let Some(mark) = self.probe.seen().mark {
            mark.did(deed, Instant::now());
        }
    }

    /// Ends it in failure, having brought so many bytes.
    pub(crate) fn failed(self, fault: &Fault, bytes: u64) {
        let seen = self.probe.seen();
        let time = self.started.elapsed().saturating_sub(connecting(&seen));
        if let (Some(mark), Some(deed)) = (&seen.mark, deed(fault.kind)) {
            mark.did(deed, Instant::now());
        }
        if let Some(permit) = self.permit {
            // Cut off for want of speed, and yet it moved: the whole origin may be that slow, and
            // then the next attempt needs more time.
            if fault.kind == OriginErrorKind::Timeout && is_steady(bytes, time) {
                permit.teach(bytes, time);
            }
            permit.settle(verdict(fault.kind, &seen));
        }
    }
}

impl<'a> Tries<'a> {
    pub(crate) fn new(ground: Ground<'a>, subject: Subject<'a>, terms: ReadTerms) -> Self {
        let distrusted = terms.distrusted();
        Self {
            ground,
            subject,
            terms,
            _call: ground.endpoint.map(Endpoint::call),
            on_wire: None,
            record: ReadRecord::default(),
            wanted: 0,
            wanted_at: Instant::now(),
            line: Line::begin(),
            taken: None,
            fresh: distrusted.is_some(),
            avoid: distrusted.and_then(|distrust| distrust.0),
            last: None,
            generation: 0,
            renewed: false,
            copied: None,
            not_copied: None,
        }
    }

    /// Begins an attempt that is to bring so many bytes, once the endpoint lets it.
    pub(crate) async fn begin(&mut self, bytes: u64) -> Result<Attempt, OriginError> {
        let retry = self.record.attempts > 0;
        let mut permit = None;
        let since = Instant::now();
        (self.wanted, self.wanted_at) = (bytes, since);
        self.line.wants(since);
        self.on_wire = None;
        if let Some(renewal) = self.ground.renewal {
            renewal.ready().await;
        }
        if let Some(endpoint) = self.ground.endpoint {
            let admitted = endpoint.admit(Want { retry, bytes }, &self.terms).await;
            permit = Some(admitted.map_err(|refused| self.refused(refused))?);
        }
        let queued = since.elapsed();
        self.on_wire = Some(self.terms.on_wire(queued));
        self.record.queued += queued;
        self.record.attempts += 1;
        {
            let mut spent = self.terms.spending();
            spent.queued += queued;
            spent.attempts += 1;
            spent.retries += u32::from(retry);
        }
        self.generation = self.ground.renewal.map_or(0, Renewal::generation);
        let (fresh, trace) = (retry || self.fresh, TraceTag::current());
        let route = Route { first: !retry, fresh, avoid: self.avoid, trace, dials: None };
        let attempt = Attempt::new(route, self.ground.counters, permit);
        self.line.sends(since, || Sent {
            started: attempt.started,
            rated: attempt.is_rated(),
            probe: attempt.probe.clone(),
        });
        Ok(attempt)
    }

    /// Ends the last attempt, and the call, well.
    pub(crate) fn done(mut self, attempt: Attempt, bytes: u64) -> ReadRecord {
        self.note(&attempt, bytes, AttemptOutcome::Done);
        attempt.served(bytes);
        if let Some(endpoint) = self.ground.endpoint {
            endpoint.succeeded(self.taken);
        }
        self.record
    }

    /// Counts a copy of an attempt.
    pub(crate) fn copied(&mut self, copy: Copied) {
        (self.copied, self.not_copied) = (copy.at, copy.why_not);
        self.record.hedges += u32::from(copy.made);
        self.record.hedge_wins += u32::from(copy.won);
        self.record.bytes_received += copy.received;
        self.record.wasted_bytes += copy.wasted;
        let mut spent = self.terms.spending();
        spent.hedges += u32::from(copy.made);
        spent.hedge_wins += u32::from(copy.won);
        spent.bytes += copy.received;
        spent.wasted_bytes += copy.wasted;
    }

    /// Ends the last attempt, whose copy was faster, and the call.
    pub(crate) fn overtaken(mut self, attempt: Attempt, bytes: u64, why: Overtaken) -> ReadRecord {
        self.note(&attempt, bytes, AttemptOutcome::Overtaken);
        match why {
            Overtaken::Failed(fault) => {
                self.ground.counters.failed();
                attempt.failed(&fault, bytes);
            }
            Overtaken::Silent => attempt.left(Deed::Failed),
            Overtaken::Slow => {
                let time = attempt.started.elapsed();
                attempt.left(Deed::Served { bytes, time });
            }
        }
        if let Some(endpoint) = self.ground.endpoint {
            endpoint.succeeded(self.taken);
        }
        self.record
    }

    /// Ends an attempt in failure, and waits for the time of the next one, if there is one.
    pub(crate) async fn failed(
        &mut self,
        attempt: Attempt,
        bytes: u64,
        mut fault: Fault,
    ) -> Result<(), OriginError> {
        self.ground.counters.failed();
        self.note(&attempt, bytes, AttemptOutcome::Failed(fault.kind));
        let seen = attempt.probe.seen();
        let avoid = seen.mark.map(|mark| mark.address()).or(seen.no_handshake);
        self.avoid = avoid.or(self.avoid);
        attempt.failed(&fault, bytes);
        let made = self.record.attempts;
        if self.renews(&mut fault).await {
            self.decided(true, "renewed_credentials");
            self.last = Some(fault);
            return Ok(());
        }
        let Some(wait) = self.wait(&mut fault) else {
            return Err(self.error(fault));
        };
        tracing::debug!(
            origin = self.subject.origin,
            key = %self.subject.key,
            attempt = made,
            kind = fault.kind.as_str(),
            wait_seconds = wait.as_secs_f64(),
            "attempt failed, trying again"
        );
        self.last = Some(fault);
        self.line.wants(Instant::now());
        sleep(wait).await;
        self.record.backoff += wait;
        self.terms.spending().backoff += wait;
        Ok(())
    }

    /// Whether the next attempt, which follows at once, is signed otherwise than the one that was
    /// refused.
    async fn renews(&mut self, fault: &mut Fault) -> bool {
        let Some((renewal, refusal)) = self.ground.renewal.zip(fault.refusal) else { return false };
        let may = !self.renewed && self.record.attempts < self.ground.policy.attempts;
        let since = Instant::now();
        let renewing = renewal.renew(refusal, self.generation);
        let renewed = may
            && match self.terms.deadline() {
                Some(deadline) => timeout_at(deadline, renewing).await.unwrap_or(false),
                None => renewing.await,
            };
        self.renewed |= renewed;
        let waited = since.elapsed();
        self.record.backoff += waited;
        self.terms.spending().backoff += waited;
        if let Some(cause) = renewal.says(refusal) {
            let detail = fault.detail.take().map(|detail| format!("{detail}: {cause}"));
            fault.detail = Some(detail.unwrap_or(cause));
        }
        renewed
    }

    /// How long to wait for the next attempt, which is then paid for; none if there is to be none.
    fn wait(&mut self, fault: &mut Fault) -> Option<Duration> {
        let decided = self.decide(fault);
        match decided {
            Ok(_) => self.decided(true, fault.kind.as_str()),
            // What cannot be mended is no decision.
            Err(why) if fault.kind.is_transient() => {
                self.decided(false, why);
                self.line.gives_up(why);
            }
            Err(_) => {}
        }
        decided.ok()
    }

    fn decide(&mut self, fault: &mut Fault) -> Result<Duration, &'static str> {
        let endpoint = self.ground.endpoint;
        let deadline = self.terms.deadline();
        let rich = deadline.is_some() && endpoint.is_some_and(|endpoint| endpoint.is_rich());
        let made = self.record.attempts;
        let policy = self.ground.policy;
        let wait = next_wait(policy, rich, fault.kind, made, fault.retry_after, unit());
        let too_long = fault.retry_after.is_some_and(|hint| hint > policy.throttle_cap);
        let wait = wait.ok_or(if too_long { "told_to_wait" } else { "attempts_spent" })?;
        let needed = endpoint.map_or(ATTEMPT_MIN, |endpoint| endpoint.needed(self.wanted));
        let late = |deadline| Instant::now() + wait + needed > deadline;
        if deadline.is_some_and(late) {
            return Err("deadline");
        }
        let Some(endpoint) = endpoint else { return Ok(wait) };
        if let Some(open) = endpoint.refuses() {
            fault.retry_after = fault.retry_after.max(Some(open));
            return Err("breaker_open");
        }
        self.taken = Some(endpoint.take_tokens(fault.kind).ok_or("budget")?);
        Ok(wait)
    }

    fn decided(&self, made: bool, why: &'static str) {
        if let Some(endpoint) = self.ground.endpoint {
            endpoint.decided_retry(made, why);
        }
    }

    fn note(&mut self, attempt: &Attempt, bytes: u64, outcome: AttemptOutcome) {
        let time = (attempt.started, attempt.started.elapsed());
        self.record.bytes_received += bytes;
        {
            let throttled = outcome == AttemptOutcome::Failed(OriginErrorKind::Throttled);
            let mut spent = self.terms.spending();
            spent.bytes += bytes;
            spent.throttles += u32::from(throttled);
        }
        let record = AttemptRecord {
            bytes,
            copied: self.copied.take(),
            not_copied: self.not_copied.take(),
            ..record_of(attempt.probe.seen(), time, attempt.is_rated(), outcome)
        };
        self.line.ended(self.wanted_at, &record);
        self.record.attempt_log.push(record);
    }

    /// The error of a call whose next attempt was not let in: that of the attempt before, if any.
    fn refused(&mut self, refused: Refused) -> OriginError {
        if let (Some(endpoint), Some(cost)) = (self.ground.endpoint, self.taken.take()) {
            endpoint.succeeded(Some(cost));
        }
        let (kind, retry_after, text) = match refused {
            Refused::Breaker { retry_after, last } => {
                let last = last.map_or("failed", OriginErrorKind::as_str);
                let text = format!("most requests of the last 10 s failed, the last: {last}");
                (OriginErrorKind::BreakerOpen, Some(retry_after), text)
            }
            Refused::Full => {
                let text = "too many requests wait for the origin".to_owned();
                (OriginErrorKind::LimitExceeded, None, text)
            }
            Refused::Late => {
                let text = "the deadline passed before it could be asked for".to_owned();
                (OriginErrorKind::Timeout, None, text)
            }
        };
        let fault = match self.last.take() {
            Some(last) => Fault { retry_after: last.retry_after.max(retry_after), ..last },
            None => Fault { retry_after, ..Fault::new(kind, &Seen::default(), text) },
        };
        self.error(fault)
    }

    fn error(&mut self, fault: Fault) -> OriginError {
        let record = std::mem::take(&mut self.record);
        OriginError::from_failure(OriginFailure {
            kind: fault.kind,
            origin: self.subject.origin.to_owned(),
            key: self.subject.key.clone(),
            range: self.subject.range.clone(),
            attempts: record.attempts,
            status: fault.status,
            request_id: fault.request_id,
            retry_after: fault.retry_after,
            bytes_received: record.bytes_received,
            attempt_log: record.attempt_log,
            backoff: record.backoff,
            detail: fault.detail,
            source: None,
        })
    }
}

/// Whether a body came at a pace that a slow path has, and no body that only drips.
fn is_steady(bytes: u64, time: Duration) -> bool {
    bytes >= SPEED_BYTES_MIN && bytes as f64 >= STEADY_BYTES_PER_SECOND * time.as_secs_f64()
}

/// What is known of an attempt that began then and took so long.
pub(crate) fn record_of(
    seen: Seen,
    (started, took): (Instant, Duration),
    rated: bool,
    outcome: AttemptOutcome,
) -> AttemptRecord {
    let (first_byte, body) = waits(&seen, took);
    AttemptRecord {
        started,
        rated,
        dns: seen.dns,
        connect: seen.connect,
        tls: seen.tls,
        first_byte,
        body,
        bytes: 0,
        address: seen.mark.as_ref().map(Mark::address),
        tcp: seen.tcp,
        head_tcp: seen.head_tcp,
        waited: seen.waited,
        silences: seen.silences,
        cold_bytes: seen.cold_bytes,
        copied: None,
        not_copied: None,
        outcome,
    }
}

/// The time before there was a connection.
fn connecting(seen: &Seen) -> Duration {
    [seen.dns, seen.connect, seen.tls].into_iter().flatten().sum()
}

/// How long an attempt waited for its first byte, and for its body: if no head came, all that was
/// waited after there was a connection was for the first byte.
fn waits(seen: &Seen, elapsed: Duration) -> (Option<Duration>, Duration) {
    let connected = elapsed.saturating_sub(connecting(seen));
    if seen.sent && seen.status.is_none() {
        return (seen.mark.is_some().then_some(connected), Duration::ZERO);
    }
    (seen.first_byte, connected.saturating_sub(seen.first_byte.unwrap_or_default()))
}

/// What a failure says about the endpoint.
fn verdict(kind: OriginErrorKind, seen: &Seen) -> Verdict {
    use OriginErrorKind as K;
    match kind {
        K::Throttled => Verdict::Bad { kind, load: Load::Overloaded },
        // A connect that timed out is the address's matter.
        K::Timeout if seen.mark.is_some() => Verdict::Bad { kind, load: Load::Overloaded },
        K::Timeout | K::Failed | K::Unreachable | K::Truncated | K::Malformed => {
            Verdict::Bad { kind, load: Load::Unknown }
        }
        K::NotFound | K::Denied | K::Unauthenticated | K::Changed | K::Rejected
            if seen.status.is_some() =>
        {
            Verdict::Good(Load::Unknown)
        }
        _ => Verdict::Unknown,
    }
}

/// What a failure says about the address.
fn deed(kind: OriginErrorKind) -> Option<Deed> {
    use OriginErrorKind as K;
    match kind {
        K::Timeout | K::Failed | K::Unreachable | K::Truncated | K::Malformed => Some(Deed::Failed),
        K::NotFound | K::Denied | K::Changed => Some(Deed::Answered),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_charged_to_whom_they_belong() {
        use OriginErrorKind as K;
        let answered = Seen { status: Some(400), ..Seen::default() };
        let unsent = Seen::default();
        // Kind, against the endpoint, a sign of overload, against the address.
        let table = [
            (K::Throttled, Some(false), true, None),
            (K::Failed, Some(false), false, Some(Deed::Failed)),
            (K::Unreachable, Some(false), false, Some(Deed::Failed)),
            (K::Truncated, Some(false), false, Some(Deed::Failed)),
            (K::Malformed, Some(false), false, Some(Deed::Failed)),
            (K::Timeout, Some(false), false, Some(Deed::Failed)),
            (K::NotFound, Some(true), false, Some(Deed::Answered)),
            (K::Changed, Some(true), false, Some(Deed::Answered)),
            (K::Denied, Some(true), false, Some(Deed::Answered)),
            (K::Rejected, Some(true), false, None),
            (K::Unauthenticated, Some(true), false, None),
            (K::DnsFailed, None, false, None),
            (K::LimitExceeded, None, false, None),
            (K::Unsupported, None, false, None),
        ];
        for (kind, good, overloaded, at) in table {
            let verdict = verdict(kind, &answered);
            let (seen, load) = match verdict {
                Verdict::Good(load) => (Some(true), load),
                Verdict::Bad { load, .. } => (Some(false), load),
                Verdict::Unknown => (None, Load::Unknown),
            };
            assert_eq!((seen, load == Load::Overloaded), (good, overloaded), "{kind:?}");
            assert_eq!(deed(kind), at, "{kind:?}");
        }
        // Without credentials nothing was sent.
        assert!(matches!(verdict(K::Unauthenticated, &unsent), Verdict::Unknown));
    }
}
