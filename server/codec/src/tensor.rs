//! One tensor of an object, whatever the object's format.

use serde::{Deserialize, Serialize};

use crate::coding::Width;

/// Tensors of one object: twenty times what the largest published checkpoints have in all.
pub const TENSORS_MAX: usize = 1 << 20;

/// Bytes of a tensor's name.
pub const NAME_BYTES_MAX: usize = 4096;

/// Dimensions of a tensor.
pub const DIMENSIONS_MAX: usize = 32;

/// One tensor of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// As its format writes it: `BF16`, `F32`, `Q4_K`, …
    pub dtype: String,
    /// Its dimensions, outermost first, whatever the order of its format.
    pub shape: Vec<u64>,
    /// First byte in the object.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

impl TensorEntry {
    /// The size of an element, if it is a floating point number that byte planes may help.
    pub fn plane_width(&self) -> Option<Width> {
        match self.dtype.as_str() {
            "BF16" | "F16" => Some(Width::Two),
            "F32" => Some(Width::Four),
            _ => None,
        }
    }
}
