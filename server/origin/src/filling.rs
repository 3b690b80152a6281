//! The destination of a read, filled from its start: nothing is written outside it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::OriginErrorKind;
use crate::fault::Fault;
use crate::store::{Destination, Landing, ReadTerms};
use crate::transport::probe::Seen;

/// A destination and how far it is filled.
pub(crate) struct Filling<'a> {
    into: &'a mut [u8],
    pub(crate) filled: usize,
    /// Body bytes that the attempt under way has received.
    pub(crate) received: u64,
    /// How far it is filled, for who watches an attempt that has the rest.
    pub(crate) progress: Arc<AtomicUsize>,
    landing: Option<&'a mut dyn Landing>,
    terms: Option<ReadTerms>,
}

impl fmt::Debug for Filling<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filling").field("filled", &self.filled).finish_non_exhaustive()
    }
}

impl<'a> Filling<'a> {
    pub(crate) fn new(into: &'a mut [u8]) -> Self {
        Self::of(into.into())
    }

    pub(crate) fn of(to: Destination<'a>) -> Self {
        let Destination { into, landing } = to;
        Self { into, filled: 0, received: 0, progress: Arc::default(), landing, terms: None }
    }

    /// Tells the terms of its read of every byte that lands.
    pub(crate) fn counted_by(self, terms: &ReadTerms) -> Self {
        Self { terms: Some(terms.clone()), ..self }
    }

    /// Bytes that are still to come.
    pub(crate) fn missing(&self) -> usize {
        self.into.len() - self.filled
    }

    /// Where the next bytes go, at most so many of them.
    pub(crate) fn room(&mut self, most: usize) -> &mut [u8] {
        let end = self.into.len().min(self.filled.saturating_add(most));
        self.into.get_mut(self.filled..end).unwrap_or_default()
    }

    /// So many bytes of the body were put where [`room`](Self::room) said.
    pub(crate) fn landed(&mut self, bytes: usize) {
        let end = self.into.len().min(self.filled + bytes);
        if let (Some(landing), Some(new)) = (&mut self.landing, self.into.get(self.filled..end)) {
            landing.landed(new);
        }
        self.filled = end;
        self.received += length(bytes);
        if let Some(terms) = &self.terms {
            terms.landed(length(bytes));
        }
        self.progress.store(end, Ordering::Relaxed);
    }

    /// The attempt that began at `begun` was wrong: none of its bytes count.
    pub(crate) fn take_back(&mut self, begun: usize) {
        self.filled = begun.min(self.filled);
        self.progress.store(self.filled, Ordering::Relaxed);
        self.show_again();
    }

    /// Puts the tail in place that another copy of the request brought.
    pub(crate) fn complete_with(&mut self, from: usize, tail: &[u8]) {
        debug_assert!(from <= self.filled, "the bytes before the tail are there");
        let place = self.into.get_mut(from..).filter(|place| place.len() == tail.len());
        if let Some(place) = place.filter(|_| from <= self.filled) {
            place.copy_from_slice(tail);
            self.filled = self.into.len();
            self.show_again();
        }
    }

    /// What `landing` has seen is not what is there.
    fn show_again(&mut self) {
        if let Some(landing) = &mut self.landing {
            landing.restart();
            landing.landed(self.into.get(..self.filled).unwrap_or_default());
        }
    }

    /// Appends bytes of the body. Too many are an error, and then none of this attempt's count.
    pub(crate) fn take(&mut self, bytes: &[u8], begun: usize, seen: &Seen) -> Result<(), Fault> {
        match self.room(bytes.len()) {
            place if place.len() == bytes.len() => place.copy_from_slice(bytes),
            _ => {
                self.received += length(bytes.len());
                self.take_back(begun);
                let text = "more bytes than the range";
                return Err(Fault::new(OriginErrorKind::Malformed, seen, text));
            }
        }
        self.landed(bytes.len());
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
