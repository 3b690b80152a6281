//! Memory on a node: asked for before its pages exist, and looked for when they do.
//!
//! The policy is MPOL_PREFERRED and not MPOL_BIND. A node that has no free memory left would make
//! the kernel kill a process when a bound page is touched; with a preference the page comes to lie
//! on another node. So asking is no promise, and [`page_nodes`] says what came of it.

use std::collections::BTreeMap;
use std::ffi::c_void;

use super::{NodeId, NumaError};

/// Nodes that a mask has room for: as many as any kernel is built for.
const MASK_BITS: usize = 1024;
const WORD_BITS: usize = u64::BITS as usize;

/// Pages that the kernel is asked about in one call.
const BATCH_PAGES: usize = 512;

/// Asks for the pages of `memory` that do not exist yet to be made on `node`, for as long as the
/// memory is mapped. It begins at a page. No page that exists is moved.
pub fn bind_memory(memory: *const [u8], node: NodeId) -> Result<(), NumaError> {
    let mut mask = [0_u64; MASK_BITS / WORD_BITS];
    let bit = node.0 as usize;
    let what = || format!("node {node}");
    let Some(word) = mask.get_mut(bit / WORD_BITS) else {
        return Err(NumaError::NotAllowed { call: "mbind", what: what() });
    };
    *word = 1 << (bit % WORD_BITS);
    // SAFETY: mbind reads the mask, which is MASK_BITS long, and changes how pages of the range
    // will be made; it reads and writes no byte of the range, and refuses one that is not mapped.
    // The kernel counts one bit less than it is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            memory.cast::<c_void>(),
            memory.len(),
            libc::MPOL_PREFERRED,
            mask.as_ptr(),
            MASK_BITS + 1,
            0_u32,
        )
    };
    if result == 0 { Ok(()) } else { Err(NumaError::last("mbind", what)) }
}

/// Where pages lie.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageNodes {
    /// Pages on each node.
    pub pages: BTreeMap<NodeId, u64>,
    /// Pages that do not exist.
    pub missing: u64,
}

impl PageNodes {
    /// The node that most of the pages lie on.
    #[must_use]
    pub fn most(&self) -> Option<NodeId> {
        self.pages
            .iter()
            .max_by_key(|(id, pages)| (**pages, std::cmp::Reverse(**id)))
            .map(|(id, _)| *id)
    }
}

/// Where the pages of `memory` lie: `samples` of them, evenly spread, or all if there are fewer.
pub fn page_nodes(memory: *const [u8], samples: usize) -> Result<PageNodes, NumaError> {
    let page_bytes = rustix::param::page_size();
    let pages = memory.len().div_ceil(page_bytes);
    let step = pages.div_ceil(samples.max(1)).max(1);
    let start = memory.cast::<c_void>();
    let looked_at: Vec<*const c_void> =
        (0..pages).step_by(step).map(|page| start.wrapping_byte_add(page * page_bytes)).collect();
    let mut found = PageNodes::default();
    for batch in looked_at.chunks(BATCH_PAGES) {
        look(batch, &mut found)?;
    }
    Ok(found)
}

fn look(pages: &[*const c_void], found: &mut PageNodes) -> Result<(), NumaError> {
    let mut nodes = [0_i32; BATCH_PAGES];
    assert!(pages.len() <= BATCH_PAGES, "more pages than there is room for answers");
    // SAFETY: without nodes to move to, move_pages moves nothing: it reads `pages.len()` addresses,
    // which it never follows, and writes as many numbers to `nodes`, which has room for them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0_i32,
            pages.len(),
            pages.as_ptr(),
            std::ptr::null::<i32>(),
            nodes.as_mut_ptr(),
            0_i32,
        )
    };
    if result < 0 {
        return Err(NumaError::last("move_pages", || "these pages".into()));
    }
    for node in &nodes[..pages.len()] {
        match u32::try_from(*node) {
            Ok(node) => *found.pages.entry(NodeId(node)).or_default() += 1,
            // ENOENT, or EFAULT: nothing has been put there.
            Err(_negative) => found.missing += 1,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use forebay_shm::{Segment, SegmentId, SegmentSpec};

    use super::*;

    #[test]
    fn the_most_frequent_node_is_the_lowest_of_equals() {
        let of = |pages: &[(u32, u64)]| {
            let pages = pages.iter().map(|(id, pages)| (NodeId(*id), *pages)).collect();
            PageNodes { pages, missing: 0 }.most()
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[(0, 1), (3, 9)]), Some(NodeId(3)));
        assert_eq!(of(&[(1, 5), (2, 5)]), Some(NodeId(1)));
    }

    #[test]
    fn a_node_beyond_every_machine_is_refused_and_memory_is_as_it_was() {
        let spec = SegmentSpec {
            id: SegmentId(0),
            domain: 0,
            slot_bytes: 64 << 10,
            slots: 4,
            lock: false,
        };
        let segment = Segment::create(&spec).unwrap();
        let refused = bind_memory(segment.slot_memory(), NodeId(5000)).unwrap_err();
        assert_eq!(refused.label(), "not_allowed", "{refused}");
        // 1023 has a place in the mask and no machine.
        bind_memory(segment.slot_memory(), NodeId(1023)).unwrap_err();
    }
}
