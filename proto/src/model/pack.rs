//! How a pack goes, and went.

use std::time::Duration;

use super::{Malformed, required, span};
use crate::pb;

/// How far a pack is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackProgress {
    /// What is packed, as resolved, without a query.
    pub source: String,
    /// Where to.
    pub destination: String,
    /// Bytes that are written and read again: one half of each of them for either.
    pub done_bytes: u64,
    /// Bytes there are.
    pub total_bytes: u64,
}

/// What came of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackReport {
    /// What was packed, as resolved, without a query.
    pub source: String,
    /// Where to.
    pub destination: String,
    /// Objects of the packed checkpoint.
    pub objects: u64,
    /// Bytes of them, unpacked.
    pub bytes: u64,
    /// Bytes of them as they are stored.
    pub packed_bytes: u64,
    /// Bytes of the manifest.
    pub manifest_bytes: u64,
    /// Objects that this call wrote.
    pub written_objects: u64,
    /// Bytes of them, unpacked.
    pub written_bytes: u64,
    /// Objects that an earlier call had written.
    pub skipped_objects: u64,
    /// Bytes of them, unpacked.
    pub skipped_bytes: u64,
    /// Objects that are stored as they are, since compression does not pay.
    pub raw_objects: u64,
    /// Objects that were packed once, and are not part of it any more.
    pub removed_objects: u64,
    /// From the request to the end.
    pub wall: Duration,
}

/// What a pack says while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackEvent {
    /// How far it is.
    Progress(PackProgress),
    /// It is done; nothing follows.
    Report(Box<PackReport>),
}

impl PackEvent {
    /// The report, if this is it.
    #[must_use]
    pub fn into_report(self) -> Option<PackReport> {
        match self {
            Self::Progress(_) => None,
            Self::Report(report) => Some(*report),
        }
    }

    /// Checks the message.
    pub fn receive(response: pb::PackResponse) -> Result<Self, Malformed> {
        Ok(match required("PackResponse", response.event)? {
            pb::pack_response::Event::Progress(progress) => {
                let pb::PackProgress { source, destination, done_bytes, total_bytes } = progress;
                Self::Progress(PackProgress { source, destination, done_bytes, total_bytes })
            }
            pb::pack_response::Event::Report(report) => {
                Self::Report(Box::new(PackReport::receive(report)?))
            }
        })
    }
}

impl PackReport {
    fn receive(report: pb::PackReport) -> Result<Self, Malformed> {
        let parts = report.written_objects.checked_add(report.skipped_objects);
        if parts != Some(report.objects) {
            return Err(Malformed::new("PackReport", "its objects do not add up"));
        }
        Ok(Self {
            source: report.source,
            destination: report.destination,
            objects: report.objects,
            bytes: report.bytes,
            packed_bytes: report.packed_bytes,
            manifest_bytes: report.manifest_bytes,
            written_objects: report.written_objects,
            written_bytes: report.written_bytes,
            skipped_objects: report.skipped_objects,
            skipped_bytes: report.skipped_bytes,
            raw_objects: report.raw_objects,
            removed_objects: report.removed_objects,
            wall: span("PackReport", "wall_seconds", report.wall_seconds)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(written: u64, skipped: u64, wall_seconds: f64) -> pb::PackResponse {
        let report = pb::PackReport {
            objects: 3,
            written_objects: written,
            skipped_objects: skipped,
            wall_seconds,
            ..Default::default()
        };
        pb::PackResponse { event: Some(pb::pack_response::Event::Report(report)) }
    }

    #[test]
    fn what_cannot_be_is_malformed() {
        let event = PackEvent::receive(report(1, 2, 0.5)).unwrap();
        assert_eq!(event.into_report().unwrap().wall, Duration::from_millis(500));
        for bad in [
            report(1, 1, 0.5),
            report(u64::MAX, 4, 0.5),
            report(1, 2, f64::NAN),
            pb::PackResponse { event: None },
        ] {
            PackEvent::receive(bad).unwrap_err();
        }
    }
}
