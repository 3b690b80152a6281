//! When the copy engine of a load was busy.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use forebay_device::{CopySpan, DeviceInfo, DeviceSpec, MemoryPath};

/// How the copies of a load went.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DeviceReport {
    /// Which device, as a person names it.
    pub spec: DeviceSpec,
    /// What its driver calls it.
    pub name: String,
    /// How bytes got there.
    pub path: MemoryPath,
    /// Streams that copied.
    pub streams: usize,
    /// How many copies.
    pub copies: u64,
    /// How many bytes they moved.
    pub bytes: u64,
    /// How long at least one copy ran.
    pub busy: Duration,
    /// How long none did, from the opening of the load to the end of the last copy.
    pub idle: Duration,
    /// From the opening of the load to the start of the first copy.
    pub first_copy: Duration,
    /// From the opening of the load to the end of the last copy.
    pub last_copy: Duration,
    /// From the opening of the load until the first copy was handed to the device.
    pub first_submit: Duration,
}

impl DeviceReport {
    /// The part of the time between first and last copy in which the copy engine was busy; 1 if
    /// there was no such time.
    #[must_use]
    pub fn busy_ratio(&self) -> f64 {
        let spanned = self.last_copy.saturating_sub(self.first_copy).as_secs_f64();
        match spanned > 0.0 {
            true => self.busy.as_secs_f64() / spanned,
            false => 1.0,
        }
    }
}

/// Disjoint spans in which copies ran, and what they moved.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    /// Start to end.
    busy: BTreeMap<Instant, Instant>,
    copies: u64,
    bytes: u64,
    first_submit: Option<Instant>,
}

impl Timeline {
    /// Notes when a copy was handed over.
    pub(crate) fn submitted(&mut self, at: Instant) {
        self.first_submit = Some(self.first_submit.map_or(at, |first| first.min(at)));
    }

    /// Notes when it ran.
    pub(crate) fn ran(&mut self, span: &CopySpan) {
        self.copies += 1;
        self.bytes += span.bytes;
        let (mut start, mut end) = (span.started, span.finished);
        while let Some((from, to)) = self.busy.range(..=end).next_back().map(|(a, b)| (*a, *b))
            && to >= start
        {
            self.busy.remove(&from);
            start = start.min(from);
            end = end.max(to);
        }
        self.busy.insert(start, end);
    }

    /// All of it, for a load that was opened at `opened`.
    pub(crate) fn report(
        &self,
        info: &DeviceInfo,
        streams: usize,
        opened: Instant,
    ) -> DeviceReport {
        let since = |at: Option<Instant>| {
            at.map_or(Duration::ZERO, |at| at.saturating_duration_since(opened))
        };
        let spans = self.busy.iter();
        let busy = spans.map(|(start, end)| end.saturating_duration_since(*start)).sum();
        let last_copy = since(self.busy.last_key_value().map(|(_, end)| *end));
        DeviceReport {
            spec: info.spec,
            name: info.name.clone(),
            path: info.path.clone(),
            streams,
            copies: self.copies,
            bytes: self.bytes,
            busy,
            idle: last_copy.saturating_sub(busy),
            first_copy: since(self.busy.first_key_value().map(|(start, _)| *start)),
            last_copy,
            first_submit: since(self.first_submit),
        }
    }
}

#[cfg(test)]
mod tests {
    use forebay_device::{Device, HostDevice};
    use tokio::time::Instant as Clock;

    use super::*;

    #[test]
    fn overlapping_copies_are_busy_once_and_gaps_are_idle() {
        let opened = Clock::now().into_std();
        let at = |millis| opened + Duration::from_millis(millis);
        let mut timeline = Timeline::default();
        timeline.submitted(at(9));
        timeline.submitted(at(4));
        for (start, end) in [(30, 40), (10, 20), (15, 25), (40, 45), (12, 13), (60, 60)] {
            timeline.ran(&CopySpan { started: at(start), finished: at(end), bytes: 2 });
        }
        let report = timeline.report(HostDevice::new().info(), 2, opened);
        let millis = |time: Duration| time.as_millis();
        assert_eq!((report.copies, report.bytes, report.streams), (6, 12, 2));
        assert_eq!((millis(report.busy), millis(report.idle)), (30, 30));
        assert_eq!((millis(report.first_copy), millis(report.last_copy)), (10, 60));
        assert_eq!(millis(report.first_submit), 4);
        assert!((report.busy_ratio() - 0.6).abs() < 1e-9);
        let none = Timeline::default().report(HostDevice::new().info(), 2, opened);
        assert_eq!((none.busy, none.idle, none.copies), (Duration::ZERO, Duration::ZERO, 0));
    }
}
