//! The device of a process that uses the bytes where they are lent: the mapping itself is the
//! destination. Nothing is copied, so a copy is done at the instant it starts; its span has no
//! length but says when, and how many bytes became usable.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use forebay_shm::{SegmentMap, SlotView};

use crate::error::DeviceError;
use crate::seam::{CopySpan, CopyState, CopyTicket, Device, Registration};

/// Host memory, in place.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostDevice;

impl HostDevice {
    fn span(ticket: &CopyTicket) -> CopySpan {
        let at = ticket.submitted();
        CopySpan { started: at, finished: at, bytes: ticket.bytes().len() as u64 }
    }
}

impl Device for HostDevice {
    /// Host memory needs no preparation.
    fn register(&self, segment: &Arc<SegmentMap>) -> Result<Registration, DeviceError> {
        Ok(Registration::of(segment))
    }

    /// Done at once: the bytes stay where they are, so the offset means nothing.
    fn copy(
        &self,
        source: &SlotView,
        range: Range<usize>,
        _destination_offset: u64,
        now: Instant,
    ) -> Result<CopyTicket, DeviceError> {
        CopyTicket::new(0, source, range, now)
    }

    fn query(&self, ticket: &CopyTicket, _now: Instant) -> Result<CopyState, DeviceError> {
        Ok(CopyState::Done(Self::span(ticket)))
    }

    fn wait(&self, ticket: CopyTicket) -> Result<CopySpan, DeviceError> {
        Ok(Self::span(&ticket))
    }
}
