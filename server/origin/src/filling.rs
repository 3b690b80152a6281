//! The destination of a read, filled from its start: nothing is written outside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::OriginErrorKind;
use crate::fault::Fault;
use crate::transport::probe::Seen;

/// A destination and how far it is filled.
#[derive(Debug)]
pub(crate) struct Filling<'a> {
    into: &'a mut [u8],
    pub(crate) filled: usize,
    /// Body bytes that the attempt under way has received.
    pub(crate) received: u64,
    /// How far it is filled, for who watches an attempt that has the rest.
    pub(crate) progress: Arc<AtomicUsize>,
}

impl<'a> Filling<'a> {
    pub(crate) fn new(into: &'a mut [u8]) -> Self {
        Self { into, filled: 0, received: 0, progress: Arc::default() }
    }

    /// Bytes that are still to come.
    pub(crate) fn missing(&self) -> usize {
        self.into.len() - self.filled
    }

    /// Puts the tail in place that another copy of the request brought.
    pub(crate) fn complete_with(&mut self, from: usize, tail: &[u8]) {
        if let Some(place) = self.into.get_mut(from..).filter(|place| place.len() == tail.len()) {
            place.copy_from_slice(tail);
            self.filled = self.into.len();
        }
    }

    /// Appends bytes of the body. Too many are an error, and then none of this attempt's count.
    pub(crate) fn take(&mut self, bytes: &[u8], begun: usize, seen: &Seen) -> Result<(), Fault> {
        self.received += length(bytes.len());
        let end = self.filled.saturating_add(bytes.len());
        let Some(place) = self.into.get_mut(self.filled..end) else {
            self.filled = begun;
            self.progress.store(begun, Ordering::Relaxed);
            return Err(Fault::new(OriginErrorKind::Malformed, seen, "more bytes than the range"));
        };
        place.copy_from_slice(bytes);
        self.filled = end;
        self.progress.store(end, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn complete(&self, seen: &Seen) -> Result<(), Fault> {
        let missing = self.missing();
        if missing == 0 {
            return Ok(());
        }
        let text = format!("{missing} bytes are missing");
        Err(Fault::new(OriginErrorKind::Truncated, seen, text))
    }
}

pub(crate) fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
