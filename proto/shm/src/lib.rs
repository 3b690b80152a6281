//! Shared segments: how checkpoint bytes get from the daemon to its clients without being copied.
//!
//! A *segment* is one sealed memfd: a header, a table of generations, then equal *slots*. The
//! daemon keeps the only writable mapping that can ever exist ([`Segment`]); a client receives a
//! descriptor over a Unix socket ([`send_descriptor`], [`recv_descriptor`]) that the kernel lets
//! it map read-only and nothing else ([`SegmentMap`]).
//!
//! ```text
//!   daemon                                     client
//!   Segment ── descriptor() ── SEQPACKET ──► SegmentMap::open   seals, size and header checked
//!     │ writer(slot)      exclusive              │ view(slot, generation, len)
//!   SlotWriter ─ publish ─► SlotReader ─ clone   ├─► SlotView    bytes of one slot
//!     │ drop: free          last drop: free      └─► ObjectMap   many slots as one slice
//! ```
//!
//! Inside the daemon the slot's state word (free, writing, n readers) is what makes the safe API
//! sound: nobody gets `&mut` bytes of a slot while a reader of it lives. Across processes no word
//! can give that; there the *lease* does. The daemon keeps a [`SlotReader`] for as long as a
//! client may read, and the generation, bumped whenever a slot is taken for writing, makes a
//! grant that outlived its lease detectable.
//!
//! All `unsafe` of this crate lies in `mapping` and `reservation`, and in the one line of each
//! user that turns a range of a mapping into a slice.

mod error;
mod ids;
mod layout;
mod map;
mod mapping;
mod object;
mod pass;
mod reservation;
mod runs;
mod segment;
mod slot;
mod states;

pub use error::ShmError;
pub use ids::{Generation, SegmentId, SlotIndex};
pub use map::{SegmentMap, SlotView};
pub use object::ObjectMap;
pub use pass::{recv_descriptor, send_descriptor};
pub use segment::{Placement, Segment, SegmentSpec};
pub use slot::{SlotReader, SlotWriter};
pub use states::SlotState;
