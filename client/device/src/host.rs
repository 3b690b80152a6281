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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use forebay_shm::{Segment, SegmentId, SegmentSpec, SlotIndex};

    use super::*;

    const SLOT_BYTES: usize = 16 << 10;

    /// A slot with bytes that differ, as a client sees it. No lease is needed: nobody takes it.
    fn lent() -> SlotView {
        let id = SegmentId(4);
        let spec = SegmentSpec { id, domain: 0, slot_bytes: SLOT_BYTES, slots: 1, lock: false };
        let segment = Segment::create(&spec).expect("a segment");
        let mut writer = segment.writer(SlotIndex(0)).expect("free");
        let pattern: Vec<u8> = (0..251).cycle().take(SLOT_BYTES).collect();
        writer.as_mut_slice().copy_from_slice(&pattern);
        let reader = writer.publish();
        let descriptor = segment.descriptor().try_clone_to_owned().expect("a copy");
        let map = SegmentMap::open(descriptor).expect("a segment");
        map.view(reader.slot(), reader.generation(), SLOT_BYTES).expect("granted")
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do, and there is no other way")]
    fn some_instant() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_copy_is_done_where_and_when_it_starts() {
        let (view, now) = (lent(), some_instant());
        let _registration = HostDevice.register(view.segment()).expect("nothing to prepare");
        let ticket = HostDevice.copy(&view, 100..400, 1 << 40, now).expect("in the view");
        assert_eq!(ticket.bytes().as_ptr(), view.bytes()[100..].as_ptr(), "no byte moved");
        assert_eq!(ticket.bytes(), &view.bytes()[100..400]);
        let span = CopySpan { started: now, finished: now, bytes: 300 };
        let later = now + std::time::Duration::from_secs(1);
        assert_eq!(HostDevice.query(&ticket, later), Ok(CopyState::Done(span)));
        drop(view);
        assert_eq!(HostDevice.wait(ticket), Ok(span), "the ticket keeps the mapping");
    }

    #[test]
    fn a_copy_stays_inside_its_view() {
        let (view, now) = (lent(), some_instant());
        let (len, beyond) = (SLOT_BYTES, SLOT_BYTES + 1);
        for whole in [0..len, len..len] {
            let ticket = HostDevice.copy(&view, whole.clone(), 0, now).expect("inside");
            assert_eq!(ticket.bytes().len(), whole.len());
        }
        for (start, end) in [(0, beyond), (beyond, beyond), (5, 4), (0, usize::MAX)] {
            let refused = HostDevice.copy(&view, start..end, 0, now).expect_err("outside");
            assert_eq!(refused, DeviceError::OutOfRange { start, end, len });
        }
    }

    #[test]
    fn a_registration_is_undone_once_while_its_segment_is_mapped() {
        let view = lent();
        let undone = Arc::new(AtomicU32::new(0));
        let (count, segment) = (Arc::clone(&undone), Arc::downgrade(view.segment()));
        let registration = Registration::with_release(view.segment(), move || {
            assert!(segment.upgrade().is_some(), "the segment is still mapped");
            count.fetch_add(1, Ordering::Relaxed);
        });
        drop(view);
        assert_eq!(registration.segment().id(), SegmentId(4));
        assert_eq!(undone.load(Ordering::Relaxed), 0);
        drop(registration);
        assert_eq!(undone.load(Ordering::Relaxed), 1);
    }
}
