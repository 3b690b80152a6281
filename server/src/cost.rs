//! What reading from an origin costs: requests and bytes.

use forebay_origin::ReadRecord;

/// What reads took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FetchCost {
    /// Requests sent.
    pub(crate) attempts: u64,
    /// Requests beyond one per part.
    pub(crate) retries: u64,
    /// Body bytes received, failed attempts included.
    pub(crate) bytes: u64,
}

impl FetchCost {
    /// What one read took.
    pub(crate) fn of(record: &ReadRecord) -> Self {
        Self {
            attempts: u64::from(record.attempts),
            retries: u64::from(record.attempts.saturating_sub(1)),
            bytes: record.bytes_received,
        }
    }

    /// The sum of both.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            attempts: self.attempts + other.attempts,
            retries: self.retries + other.retries,
            bytes: self.bytes + other.bytes,
        }
    }
}
