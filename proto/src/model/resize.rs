//! How the RAM tier changes its size.

use std::time::Duration;

use super::{Malformed, required, span};
use crate::pb;

/// How far a resize is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResizeProgress {
    /// The size that was asked for.
    pub budget_bytes: u64,
    /// Slots of all segments that the daemon has.
    pub held_bytes: u64,
    /// Of them: in segments that are out of use.
    pub retiring_bytes: u64,
    /// Of those: lent or being filled, so that their segments cannot go yet.
    pub busy_bytes: u64,
    /// What loads or their clients have to give back before another segment can be taken out of
    /// use.
    pub owed_bytes: u64,
    /// Processes that were told to let go of segments and have not answered.
    pub clients: u64,
    /// What such processes, or those that cannot be told, still map of retired segments.
    pub client_bytes: u64,
}

/// What came of a resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResizeReport {
    /// The size now.
    pub budget_bytes: u64,
    /// Slots of all segments now.
    pub held_bytes: u64,
    /// The size before.
    pub before_bytes: u64,
    /// Processes of an older version, which keep retired segments until they disconnect.
    pub untold_clients: u64,
    /// What they keep.
    pub untold_bytes: u64,
    /// From the request to the end.
    pub wall: Duration,
}

/// What a resize says while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResizeEvent {
    /// How far it is.
    Progress(ResizeProgress),
    /// It is done; nothing follows.
    Report(ResizeReport),
}

impl ResizeEvent {
    /// The report, if this is it.
    #[must_use]
    pub fn into_report(self) -> Option<ResizeReport> {
        match self {
            Self::Progress(_) => None,
            Self::Report(report) => Some(report),
        }
    }

    /// Checks the message.
    pub fn receive(response: pb::ResizeRamResponse) -> Result<Self, Malformed> {
        Ok(match required("ResizeRamResponse", response.event)? {
            pb::resize_ram_response::Event::Progress(progress) => {
                Self::Progress(ResizeProgress::receive(progress)?)
            }
            pb::resize_ram_response::Event::Report(report) => {
                Self::Report(ResizeReport::receive(report)?)
            }
        })
    }
}

impl ResizeProgress {
    fn receive(progress: pb::ResizeRamProgress) -> Result<Self, Malformed> {
        let pb::ResizeRamProgress {
            budget_bytes,
            held_bytes,
            retiring_bytes,
            busy_bytes,
            owed_bytes,
            clients,
            client_bytes,
        } = progress;
        if busy_bytes > retiring_bytes || retiring_bytes > held_bytes {
            return Err(Malformed::new("ResizeRamProgress", "a part is larger than its whole"));
        }
        Ok(Self {
            budget_bytes,
            held_bytes,
            retiring_bytes,
            busy_bytes,
            owed_bytes,
            clients,
            client_bytes,
        })
    }
}

impl ResizeReport {
    fn receive(report: pb::ResizeRamReport) -> Result<Self, Malformed> {
        let wall = span("ResizeRamReport", "wall_seconds", report.wall_seconds)?;
        let pb::ResizeRamReport {
            budget_bytes,
            held_bytes,
            before_bytes,
            untold_clients,
            untold_bytes,
            wall_seconds: _,
        } = report;
        Ok(Self { budget_bytes, held_bytes, before_bytes, untold_clients, untold_bytes, wall })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_malformed() {
        let progress = |held_bytes, retiring_bytes, busy_bytes| {
            let progress = pb::ResizeRamProgress {
                held_bytes,
                retiring_bytes,
                busy_bytes,
                ..Default::default()
            };
            let event = Some(pb::resize_ram_response::Event::Progress(progress));
            ResizeEvent::receive(pb::ResizeRamResponse { event })
        };
        assert!(progress(3, 2, 1).unwrap().into_report().is_none());
        progress(3, 4, 1).unwrap_err();
        progress(3, 2, 3).unwrap_err();
        let report = |wall_seconds| {
            let report = pb::ResizeRamReport { wall_seconds, ..Default::default() };
            let event = Some(pb::resize_ram_response::Event::Report(report));
            ResizeEvent::receive(pb::ResizeRamResponse { event })
        };
        let wall = report(0.5).unwrap().into_report().map(|report| report.wall);
        assert_eq!(wall, Some(Duration::from_millis(500)));
        report(f64::NAN).unwrap_err();
        ResizeEvent::receive(pb::ResizeRamResponse { event: None }).unwrap_err();
    }
}
