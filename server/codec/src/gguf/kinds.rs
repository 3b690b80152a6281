//! The types of tensors in GGUF objects: their names, and the blocks that their elements come in.

/// What a type's elements are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    /// Elements of a block.
    pub(super) elements: u64,
    /// Bytes of a block.
    pub(super) bytes: u64,
}

/// Number, name, elements and bytes of a block. Types that are never stored, or whose size has
/// changed under their number, have no block here.
const KINDS: &[(u32, &str, u64, u64)] = &[
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (31, "Q4_0_4_4", 32, 18),
    (32, "Q4_0_4_8", 32, 18),
    (33, "Q4_0_8_8", 32, 18),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (36, "IQ4_NL_4_4", 32, 18),
    (37, "IQ4_NL_4_8", 32, 18),
    (38, "IQ4_NL_8_8", 32, 18),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
];

fn kind(number: u32) -> Option<&'static (u32, &'static str, u64, u64)> {
    KINDS.iter().find(|(known, ..)| *known == number)
}

/// The name of a type.
pub(super) fn name(number: u32) -> Option<&'static str> {
    kind(number).map(|(_, name, ..)| *name)
}

/// The block of a type.
pub(super) fn block(number: u32) -> Option<Block> {
    kind(number).map(|(_, _, elements, bytes)| Block { elements: *elements, bytes: *bytes })
}
