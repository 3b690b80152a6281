//! The attempts of one call: counted, timed, recorded, and repeated as the schedule says.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::{OriginError, OriginFailure};
use crate::fault::Fault;
use crate::key::ObjectKey;
use crate::schedule::{RetryPolicy, next_wait};
use crate::stats::{Counters, InFlight};
use crate::store::{AttemptOutcome, AttemptRecord, ReadRecord};
use crate::transport::probe::{ATTEMPT, Probe};

/// What a call is about, for its error.
#[derive(Debug, Clone)]
pub(crate) struct Subject<'a> {
    pub(crate) origin: &'a str,
    pub(crate) key: &'a ObjectKey,
    pub(crate) range: Option<Range<u64>>,
}

/// The attempts of one call.
#[derive(Debug)]
pub(crate) struct Tries<'a> {
    policy: &'a RetryPolicy,
    counters: &'a Arc<Counters>,
    subject: Subject<'a>,
    record: ReadRecord,
}

/// One attempt under way.
#[derive(Debug)]
pub(crate) struct Attempt {
    number: u32,
    pub(crate) probe: Probe,
    started: Instant,
    _inflight: InFlight,
}

impl Attempt {
    /// Runs the attempt's work where the connector can see its number.
    pub(crate) async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        ATTEMPT.scope(self.number, work).await
    }
}

impl<'a> Tries<'a> {
    pub(crate) fn new(
        policy: &'a RetryPolicy,
        counters: &'a Arc<Counters>,
        subject: Subject<'a>,
    ) -> Self {
        Self { policy, counters, subject, record: ReadRecord::default() }
    }

    pub(crate) fn begin(&mut self) -> Attempt {
        self.record.attempts += 1;
        Attempt {
            number: self.record.attempts,
            probe: Probe::new(),
            started: Instant::now(),
            _inflight: self.counters.begin(),
        }
    }

    /// Ends the last attempt well.
    pub(crate) fn done(mut self, attempt: &Attempt, bytes: u64) -> ReadRecord {
        self.note(attempt, bytes, AttemptOutcome::Done);
        self.record
    }

    /// Ends an attempt in failure, and waits for the time of the next one, if there is one.
    pub(crate) async fn failed(
        &mut self,
        attempt: Attempt,
        bytes: u64,
        fault: Fault,
    ) -> Result<(), OriginError> {
        self.counters.failed();
        self.note(&attempt, bytes, AttemptOutcome::Failed(fault.kind));
        drop(attempt);
        let made = self.record.attempts;
        let wait = next_wait(self.policy, fault.kind, made, fault.retry_after, unit());
        let Some(wait) = wait else {
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
        sleep(wait).await;
        self.record.backoff += wait;
        Ok(())
    }

    fn note(&mut self, attempt: &Attempt, bytes: u64, outcome: AttemptOutcome) {
        let seen = attempt.probe.seen();
        let head = [seen.dns, seen.connect, seen.tls, seen.first_byte];
        let head: Duration = head.into_iter().flatten().sum();
        self.record.bytes_received += bytes;
        self.record.attempt_log.push(AttemptRecord {
            started: attempt.started,
            dns: seen.dns,
            connect: seen.connect,
            tls: seen.tls,
            first_byte: seen.first_byte,
            body: attempt.started.elapsed().saturating_sub(head),
            bytes,
            outcome,
        });
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

/// A random number in `0.0..1.0`; without a random source, the middle.
fn unit() -> f64 {
    getrandom::u32().map_or(0.5, |random| f64::from(random) / (f64::from(u32::MAX) + 1.0))
}
