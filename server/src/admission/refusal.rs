//! Why a load is not admitted, or gets no further slot, and what its caller is told.
//!
//! These own nothing: [`super`] makes them of what its queue says, and here they become failures with
//! a hint when to come again, and the name of who has what was wanted.

use std::fmt;
use std::time::Duration;

use forebay_proto::{Failure, Reason};

use super::queue::{Refusal, What};
use crate::error::stopping;

/// Hint to a caller that met a full queue: about the time a small load takes.
const QUEUE_FULL_RETRY: Duration = Duration::from_millis(500);

/// Hint to a caller that met a pool held by leases.
const RAM_EXHAUSTED_RETRY: Duration = Duration::from_secs(5);

/// Who asks, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    /// The load's id.
    pub(crate) load_id: String,
    /// The client's uid.
    pub(crate) uid: u32,
    /// The client's pid as the daemon sees it; 0 if it cannot.
    pub(crate) pid: u32,
    /// What it wants, if that can be told.
    pub(crate) what: Option<What>,
}

/// Who has slots, how many of them, and since when it has some without a break.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(super) holder: Holder,
    pub(super) slots: usize,
    pub(super) of: usize,
    pub(super) age: Duration,
}

impl fmt::Display for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { holder: Holder { load_id, uid, pid, .. }, slots, of, age } = self;
        write!(f, "load {load_id} of uid {uid} (pid {pid}) holds {slots} of {of} slots")?;
        write!(f, ", and has held some for {age:.1?}")
    }
}

/// A queue that is too slow for a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlowQueue {
    /// Loads that wait.
    pub(super) depth: usize,
    /// How long one more would.
    pub(super) wait: Duration,
}

/// Why a load is not admitted, or gets no further slot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdmissionError {
    /// The queue is at its bound.
    #[error("{depth} loads already wait for admission")]
    QueueFull {
        /// Loads waiting.
        depth: usize,
    },
    /// The queue is too slow for the time that the load has.
    #[error("{depth} loads already wait for admission, so this one would wait {wait:.1?}")]
    QueueSlow {
        /// Loads waiting.
        depth: usize,
        /// How long it would be one of them.
        wait: Duration,
    },
    /// The daemon is going away.
    #[error("the daemon is draining and takes no more loads")]
    Draining,
    /// Leases hold the pool and nothing came back for the stall limit.
    #[error("no slot of the RAM tier came free for {waited:?}: {holder}")]
    RamExhausted {
        /// How long nothing moved.
        waited: Duration,
        /// Who holds most of it.
        holder: Holding,
    },
}

impl From<Refusal> for AdmissionError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::QueueFull { depth } => Self::QueueFull { depth },
            Refusal::Draining => Self::Draining,
        }
    }
}

impl From<AdmissionError> for Failure {
    fn from(error: AdmissionError) -> Self {
        let message = error.to_string();
        match error {
            AdmissionError::QueueFull { depth } => Self::new(Reason::QueueFull, message)
                .with_quota(format!("admission queue: {depth} waiting"))
                .with_fact("queue_length", depth)
                .retry_in(QUEUE_FULL_RETRY),
            AdmissionError::QueueSlow { depth, wait } => Self::new(Reason::QueueFull, message)
                .with_quota(format!("admission queue: {depth} waiting"))
                .with_fact("queue_length", depth)
                .with_fact("wait_seconds", format_args!("{:.3}", wait.as_secs_f64()))
                .retry_in(wait),
            AdmissionError::Draining => stopping(message),
            AdmissionError::RamExhausted { holder, .. } => Self::new(Reason::RamExhausted, message)
                .with_quota(holder.to_string())
                .with_fact("holder_load", &holder.holder.load_id)
                .with_fact("holder_uid", holder.holder.uid)
                .with_fact("holder_pid", holder.holder.pid)
                .with_fact("holder_slots", holder.slots)
                .with_fact("holder_seconds", format_args!("{:.3}", holder.age.as_secs_f64()))
                .retry_in(RAM_EXHAUSTED_RETRY),
        }
        .at_stage("admission")
    }
}
