//! The opening of a load and the grants that follow it.
//!
//! A [`Grant`] is checked against the manifest and the slot size of its load: every extent lies in
//! its object and in its slot, and no two extents of a slot overlap.

use std::fmt;
use std::ops::Range;

use super::{Malformed, Manifest, ObjectIndex, Revision, Tier, is_load_id, is_trace_id};
use crate::pb;

/// Names the handoff session of a process. Whoever knows it can attach: never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionToken(Vec<u8>);

impl SessionToken {
    /// The bytes, for the wire.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionToken(***)")
    }
}

/// The right to read one slot, until it is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub u64);

/// Position of a chunk in the plan of its load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkIndex(pub u64);

/// What the daemon says first about a load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The load's id.
    pub load_id: String,
    /// The handoff session that its grants belong to.
    pub session: SessionToken,
    /// The URI as resolved, without a query.
    pub uri: String,
    /// What it resolved to.
    pub revision: Revision,
    /// Objects in the manifest.
    pub object_count: u64,
    /// Tensors in the manifest.
    pub tensor_count: u64,
    /// How many grants will come.
    pub chunk_count: u64,
    /// Sum of the lengths of all grants.
    pub granted_bytes: u64,
    /// Size of the whole checkpoint.
    pub checkpoint_bytes: u64,
    /// Size of a slot.
    pub chunk_bytes: usize,
    /// At most this many bytes can be leased to the load at one time.
    pub window_bytes: u64,
    /// The trace it belongs to, 32 hex digits; empty from a daemon that does not say.
    pub trace_id: String,
}

impl Opened {
    /// Checks the message.
    pub fn receive(opened: pb::LoadOpened) -> Result<Self, Malformed> {
        const MESSAGE: &str = "LoadOpened";
        let bad = |what: String| Err(Malformed::new(MESSAGE, what));
        if !is_load_id(&opened.load_id) {
            return bad(format!("load id {:?}", opened.load_id));
        }
        if opened.session.is_empty() || opened.session.len() > 256 {
            return bad(format!("a session token of {} bytes", opened.session.len()));
        }
        let chunk_bytes = usize::try_from(opened.chunk_bytes).unwrap_or(0);
        if chunk_bytes == 0 || opened.chunk_bytes > 1 << 32 {
            return bad(format!("slots of {} bytes", opened.chunk_bytes));
        }
        if opened.granted_bytes > 0 && opened.window_bytes == 0 {
            return bad("a window of 0 bytes".into());
        }
        if !is_trace_id(&opened.trace_id) {
            return bad(format!("trace id {:?}", opened.trace_id));
        }
        Ok(Self {
            load_id: opened.load_id,
            session: SessionToken(opened.session.to_vec()),
            uri: opened.uri,
            revision: Revision::receive(MESSAGE, opened.revision)?,
            object_count: opened.object_count,
            tensor_count: opened.tensor_count,
            chunk_count: opened.chunk_count,
            granted_bytes: opened.granted_bytes,
            checkpoint_bytes: opened.checkpoint_bytes,
            chunk_bytes,
            window_bytes: opened.window_bytes,
            trace_id: opened.trace_id,
        })
    }
}

/// A run of an object in a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// The object.
    pub object: ObjectIndex,
    /// Which of its bytes.
    pub object_range: Range<u64>,
    /// Where they lie in the slot.
    pub slot_range: Range<usize>,
}

/// The right to read one slot, and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Give this back.
    pub lease: LeaseId,
    /// Position in the load's plan.
    pub chunk: ChunkIndex,
    /// The segment.
    pub segment_id: u64,
    /// The slot in it.
    pub slot: u32,
    /// The slot's generation while the lease holds.
    pub generation: u64,
    /// Where the bytes came from.
    pub tier: Tier,
    /// What the slot holds, in slot order.
    pub extents: Vec<Extent>,
}

impl Grant {
    const MESSAGE: &str = "Grant";

    /// Checks the message against what it speaks of.
    pub fn receive(
        grant: pb::Grant,
        manifest: &Manifest,
        chunk_bytes: usize,
    ) -> Result<Self, Malformed> {
        let mut extents = Vec::with_capacity(grant.extents.len());
        for extent in grant.extents {
            extents.push(receive_extent(extent, manifest, chunk_bytes)?);
        }
        extents.sort_by_key(|extent| extent.slot_range.start);
        let overlap = |pair: &[Extent]| pair[0].slot_range.end > pair[1].slot_range.start;
        if extents.is_empty() || extents.windows(2).any(overlap) {
            let what =
                format!("chunk {} has no extent, or extents that overlap", grant.chunk_index);
            return Err(Malformed::new(Self::MESSAGE, what));
        }
        Ok(Self {
            lease: LeaseId(grant.lease_id),
            chunk: ChunkIndex(grant.chunk_index),
            segment_id: grant.segment_id,
            slot: grant.slot,
            generation: grant.generation,
            tier: Tier::receive(Self::MESSAGE, grant.tier)?,
            extents,
        })
    }

    /// Length of all extents.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.slot_range.len() as u64).sum()
    }

    /// How much of the slot has to be readable.
    #[must_use]
    pub fn slot_len(&self) -> usize {
        self.extents.last().map_or(0, |extent| extent.slot_range.end)
    }
}

fn receive_extent(
    extent: pb::Extent,
    manifest: &Manifest,
    chunk_bytes: usize,
) -> Result<Extent, Malformed> {
    let pb::Extent { object_index, object_offset, slot_offset, bytes } = extent;
    let bad = |what: &str| {
        let what = format!("{what}: object {object_index}, {bytes} bytes at {object_offset}");
        Malformed::new(Grant::MESSAGE, what)
    };
    let object = ObjectIndex(usize::try_from(object_index).unwrap_or(usize::MAX));
    let entry = manifest.object(object).ok_or_else(|| bad("an unknown object"))?;
    let object_end = object_offset
        .checked_add(bytes)
        .filter(|end| bytes > 0 && *end <= entry.bytes)
        .ok_or_else(|| bad("an extent outside of its object"))?;
    let in_slot = |offset: u64| usize::try_from(offset).ok().filter(|end| *end <= chunk_bytes);
    let slot_range = in_slot(slot_offset)
        .zip(slot_offset.checked_add(bytes).and_then(in_slot))
        .ok_or_else(|| bad("an extent outside of its slot"))?;
    Ok(Extent {
        object,
        object_range: object_offset..object_end,
        slot_range: slot_range.0..slot_range.1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> pb::LoadOpened {
        pb::LoadOpened {
            load_id: "l1".into(),
            session: vec![1; 16].into(),
            uri: "s3://b/k".into(),
            revision: format!("b3:{}", "ab".repeat(32)),
            chunk_bytes: 4096,
            window_bytes: 8192,
            granted_bytes: 10,
            ..Default::default()
        }
    }

    #[test]
    fn opened_is_checked() {
        let good = Opened::receive(opened()).unwrap();
        assert_eq!(good.chunk_bytes, 4096);
        assert_eq!(format!("{:?}", good.session), "SessionToken(***)");
        for bad in [
            pb::LoadOpened { load_id: "a/b".into(), ..opened() },
            pb::LoadOpened { session: Default::default(), ..opened() },
            pb::LoadOpened { revision: "b3:1".into(), ..opened() },
            pb::LoadOpened { chunk_bytes: 0, ..opened() },
            pb::LoadOpened { chunk_bytes: u64::MAX, ..opened() },
            pb::LoadOpened { window_bytes: 0, ..opened() },
            pb::LoadOpened { trace_id: "Ab".repeat(16), ..opened() },
        ] {
            Opened::receive(bad).unwrap_err();
        }
    }

    fn manifest() -> Manifest {
        let mut builder = Manifest::builder(1, 0);
        let object = pb::Object { key: "a".into(), bytes: 6000, ..Default::default() };
        let page = pb::ManifestPage { objects: vec![object], last: true, ..Default::default() };
        builder.push(page).unwrap();
        builder.finish().unwrap()
    }

    fn extent(object_offset: u64, slot_offset: u64, bytes: u64) -> pb::Extent {
        pb::Extent { object_index: 0, object_offset, slot_offset, bytes }
    }

    fn grant(extents: Vec<pb::Extent>) -> Result<Grant, Malformed> {
        let grant = pb::Grant { tier: pb::Tier::Ram.into(), extents, ..Default::default() };
        Grant::receive(grant, &manifest(), 4096)
    }

    #[test]
    fn extents_come_out_in_slot_order() {
        let grant = grant(vec![extent(5000, 3000, 1000), extent(0, 0, 3000)]).unwrap();
        assert_eq!(grant.extents[0].object_range, 0..3000);
        assert_eq!(grant.extents[1].slot_range, 3000..4000);
        assert_eq!((grant.bytes(), grant.slot_len()), (4000, 4000));
    }

    #[test]
    fn extents_lie_in_their_object_and_slot() {
        for bad in [
            vec![],
            vec![extent(0, 0, 0)],
            vec![extent(5999, 0, 2)],
            vec![extent(u64::MAX, 0, 2)],
            vec![extent(0, 4095, 2)],
            vec![extent(0, u64::MAX, 2)],
            vec![extent(0, 0, 100), extent(200, 99, 100)],
            vec![pb::Extent { object_index: 1, ..extent(0, 0, 1) }],
        ] {
            grant(bad).unwrap_err();
        }
        let unknown_tier = pb::Grant { extents: vec![extent(0, 0, 1)], ..Default::default() };
        Grant::receive(unknown_tier, &manifest(), 4096).unwrap_err();
    }
}
