//! What a load waits for before it starts, as its timeline tells it.

use std::time::Duration;

use tokio::time::Instant;

use crate::admission::Admission;
use crate::timeline::{Event, Kind, LEASE_WAIT, Span, Stage, Timeline};

/// A load that waits to start: for a place first, then for slots that others hold. It is accounted
/// for when this is dropped, whatever came of it.
pub(super) struct Waiting<'a> {
    admission: &'a Admission,
    timeline: &'a Timeline,
    since: Instant,
    short_before: Duration,
    /// Who had most slots when it began to wait.
    holder: Option<String>,
}

impl<'a> Waiting<'a> {
    pub(super) fn begin(admission: &'a Admission, timeline: &'a Timeline, since: Instant) -> Self {
        // Its own load is not among them yet.
        let holder = admission.largest_holder_but("");
        Self { admission, timeline, since, short_before: admission.short_of_slots(), holder }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let short = self.admission.short_of_slots().saturating_sub(self.short_before);
        let placed = now.checked_sub(short).unwrap_or(now).max(self.since);
        self.timeline.load_span(Span::new(Stage::Admission, Kind::Queue, self.since, placed));
        if placed < now {
            self.timeline.load_span(Span::new(Stage::LeaseAlloc, Kind::Queue, placed, now));
            if let Some(holder) = self.holder.take() {
                self.timeline.event_at(Event { at: placed, name: LEASE_WAIT, detail: holder });
            }
        }
    }
}
