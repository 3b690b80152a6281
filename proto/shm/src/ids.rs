//! The three numbers that a grant is made of. They are different types so that a slot can not be
//! taken for a segment, nor a generation for either.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Names one segment for the life of the daemon that made it.
    SegmentId(u64)
}
number! {
    /// Which slot of a segment, from 0.
    SlotIndex(u32)
}
number! {
    /// How many times a slot has been taken for writing. 0: never, so nothing can be read in it.
    Generation(u64)
}
