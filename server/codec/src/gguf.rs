//! Reads the tensor index out of a GGUF header, and trusts nothing in it.
//!
//! Layout, little endian: `GGUF`, the version, how many tensors and how many pairs of metadata; the
//! pairs, of which only the alignment matters here; the tensors, with name, dimensions, type and
//! offset in the data; then, from the next multiple of the alignment on, the data. The header says
//! nowhere how long it is. So [`parse`] is given the object's first bytes and asks for more of
//! them, at least twice as many each time, until it has seen the end: up to [`HEADER_BYTES_MAX`].
//!
//! Counts are believed as far as there are bytes for them: nothing is allocated for what is not
//! there. Tensors have to lie in the object, where the alignment allows, without overlapping; the
//! size of one follows from its type and dimensions, of a type unknown here from where the next one
//! begins.

mod kinds;

use std::collections::HashSet;

use crate::tensor::{DIMENSIONS_MAX, NAME_BYTES_MAX, TENSORS_MAX, TensorEntry};

/// Bytes of a header: the largest vocabularies take some ten million.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;

/// Fewer bytes than this no header has, and most have more.
pub const HEADER_GUESS_BYTES: u64 = 64 << 10;

/// Pairs of metadata; real files have some fifty.
const PAIRS_MAX: u64 = 1 << 16;

/// Bytes of a key.
const KEY_BYTES_MAX: u64 = (1 << 16) - 1;

/// Arrays of arrays.
const NESTING_MAX: u32 = 4;

/// Where data begins if the metadata does not say.
const ALIGNMENT_DEFAULT: u64 = 32;

/// The largest alignment: larger than any page.
const ALIGNMENT_MAX: u64 = 1 << 30;

/// The key of the alignment, and the type of its value.
const ALIGNMENT_KEY: &[u8] = b"general.alignment";
const KIND_U32: u32 = 4;
const KIND_STRING: u32 = 8;
const KIND_ARRAY: u32 = 9;

/// What the first bytes of an object say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// So many of the object's first bytes are needed, at least.
    Need(u64),
    /// The header was there.
    Tensors {
        /// In the order of their bytes.
        tensors: Vec<TensorEntry>,
        /// Bytes of the header.
        header_bytes: u64,
    },
}

/// What is wrong with a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// Other bytes than those of a GGUF object.
    #[error("this is no GGUF object")]
    Magic,
    /// A version that is not read here.
    #[error("version {0} is not read, only 2 and 3 in little endian")]
    Version(u32),
    /// The header ends after the object, or is longer than headers may be.
    #[error(
        "the header takes at least {needed} bytes; the object has {object}, {HEADER_BYTES_MAX} are allowed"
    )]
    TooLong {
        /// As many as it takes.
        needed: u64,
        /// Size of the object.
        object: u64,
    },
    /// A bound is passed.
    #[error("{count} {what} are more than {limit}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// As many as there are said to be.
        count: u64,
        /// As many as there may be.
        limit: u64,
    },
    /// A value of a type that does not exist.
    #[error("metadata of type {0}")]
    Kind(u32),
    /// An alignment that is no power of two, or no 32-bit number.
    #[error("the alignment is not a power of two")]
    Alignment,
    /// A name that is no UTF-8.
    #[error("the name of a tensor is not UTF-8")]
    Name,
    /// A tensor lies outside the object, overlaps another one, or contradicts its type.
    #[error("tensor {name:?} {problem}")]
    Tensor {
        /// The tensor, cut to a printable length.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// Why reading stops.
enum Stop {
    /// So many bytes have to be there first.
    Need(u64),
    Wrong(GgufError),
}

impl From<GgufError> for Stop {
    fn from(error: GgufError) -> Self {
        Self::Wrong(error)
    }
}

/// The tensors of an object of `object_bytes`, from its first bytes, or how many of them are
/// needed.
pub fn parse(bytes: &[u8], object_bytes: u64) -> Result<Parsed, GgufError> {
    match header(bytes, object_bytes) {
        Ok(parsed) => Ok(parsed),
        Err(Stop::Wrong(error)) => Err(error),
        Err(Stop::Need(needed)) => {
            let most = object_bytes.min(HEADER_BYTES_MAX);
            if needed > most || bytes.len() as u64 >= most {
                return Err(GgufError::TooLong { needed, object: object_bytes });
            }
            let twice = (bytes.len() as u64).saturating_mul(2);
            Ok(Parsed::Need(needed.max(twice).max(HEADER_GUESS_BYTES).min(most)))
        }
    }
}

fn header(bytes: &[u8], object_bytes: u64) -> Result<Parsed, Stop> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.take(4)? != b"GGUF" {
        return Err(GgufError::Magic.into());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(GgufError::Version(version).into());
    }
    let (tensors, pairs) = (reader.u64()?, reader.u64()?);
    limit("tensors", tensors, TENSORS_MAX as u64)?;
    limit("pairs of metadata", pairs, PAIRS_MAX)?;
    let mut alignment = ALIGNMENT_DEFAULT;
    for _ in 0..pairs {
        if let Some(said) = pair(&mut reader)? {
            alignment = said;
        }
    }
    let mut raw = Vec::new();
    for _ in 0..tensors {
        raw.push(tensor(&mut reader)?);
    }
    let header_bytes = reader.at as u64;
    let data_at = header_bytes.next_multiple_of(alignment);
    let tensors = place(raw, data_at, alignment, object_bytes)?;
    Ok(Parsed::Tensors { tensors, header_bytes })
}

/// Reads a pair of metadata, and says the alignment if that is what it is.
fn pair(reader: &mut Reader<'_>) -> Result<Option<u64>, Stop> {
    let key_bytes = reader.u64()?;
    limit("bytes of a key", key_bytes, KEY_BYTES_MAX)?;
    let key = reader.take(key_bytes)?;
    let kind = reader.u32()?;
    if key != ALIGNMENT_KEY {
        reader.skip_value(kind, 0)?;
        return Ok(None);
    }
    if kind != KIND_U32 {
        return Err(GgufError::Alignment.into());
    }
    let alignment = u64::from(reader.u32()?);
    if !alignment.is_power_of_two() || alignment > ALIGNMENT_MAX {
        return Err(GgufError::Alignment.into());
    }
    Ok(Some(alignment))
}

/// A tensor as its header has it.
struct RawTensor {
    name: String,
    shape: Vec<u64>,
    kind: u32,
    offset: u64,
}

fn tensor(reader: &mut Reader<'_>) -> Result<RawTensor, Stop> {
    let name_bytes = reader.u64()?;
    limit("bytes of a tensor's name", name_bytes, NAME_BYTES_MAX as u64)?;
    let name = std::str::from_utf8(reader.take(name_bytes)?).map_err(|_utf8| GgufError::Name)?;
    let dimensions = reader.u32()?;
    limit("dimensions", dimensions.into(), DIMENSIONS_MAX as u64)?;
    let shape = (0..dimensions).map(|_| reader.u64()).collect::<Result<_, _>>()?;
    Ok(RawTensor { name: name.to_owned(), shape, kind: reader.u32()?, offset: reader.u64()? })
}

/// Checks the tensors against each other and the object, and finds the size of each.
fn place(
    mut raw: Vec<RawTensor>,
    data_at: u64,
    alignment: u64,
    object_bytes: u64,
) -> Result<Vec<TensorEntry>, GgufError> {
    raw.sort_by(|a, b| (a.offset, &a.name).cmp(&(b.offset, &b.name)));
    let mut seen = HashSet::new();
    if let Some(twice) = raw.iter().find(|tensor| !seen.insert(tensor.name.as_str())) {
        return Err(bad(&twice.name, "is there twice"));
    }
    let data_bytes = object_bytes.saturating_sub(data_at);
    let mut ends = raw.iter().skip(1).map(|next| next.offset).collect::<Vec<_>>().into_iter();
    let mut entries = Vec::new();
    let mut end = 0u64;
    for tensor in raw {
        let until = ends.next().unwrap_or(data_bytes);
        let checked = size(&tensor, until, alignment);
        let bytes = checked.map_err(|problem| bad(&tensor.name, problem))?;
        let RawTensor { name, mut shape, kind, offset } = tensor;
        // GGUF writes the innermost dimension first.
        shape.reverse();
        if bytes > 0 && offset < end {
            return Err(bad(&name, "overlaps another tensor"));
        }
        let new_end = offset.checked_add(bytes).filter(|end| *end <= data_bytes);
        end = end.max(new_end.ok_or_else(|| bad(&name, "ends after the object"))?);
        let dtype = kinds::name(kind).map_or_else(|| format!("GGML_{kind}"), str::to_owned);
        entries.push(TensorEntry { name, dtype, shape, offset: data_at + offset, bytes });
    }
    Ok(entries)
}

/// Bytes of a tensor, after which the next one begins at `until`.
fn size(tensor: &RawTensor, until: u64, alignment: u64) -> Result<u64, &'static str> {
    if !tensor.offset.is_multiple_of(alignment) {
        return Err("is not aligned");
    }
    let elements = tensor
        .shape
        .iter()
        .try_fold(1u64, |product, dimension| product.checked_mul(*dimension))
        .ok_or("has a shape that overflows")?;
    let Some(block) = kinds::block(tensor.kind) else {
        return until.checked_sub(tensor.offset).ok_or("begins after the object");
    };
    // A row is whole blocks.
    let row = tensor.shape.first().copied().unwrap_or(1);
    if !row.is_multiple_of(block.elements) {
        return Err("has rows that are no whole blocks of its type");
    }
    (elements / block.elements).checked_mul(block.bytes).ok_or("has a shape that overflows")
}

fn limit(what: &'static str, count: u64, limit: u64) -> Result<(), GgufError> {
    if count <= limit { Ok(()) } else { Err(GgufError::Limit { what, count, limit }) }
}

fn bad(name: &str, problem: &'static str) -> GgufError {
    GgufError::Tensor { name: name.chars().take(120).collect(), problem }
}

/// Takes bytes off the front, as far as there are any.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], Stop> {
        let need = (self.at as u64).saturating_add(count);
        let end = usize::try_from(need).map_err(|_wide| Stop::Need(need))?;
        let taken = self.bytes.get(self.at..end).ok_or(Stop::Need(need))?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let taken = self.take(N as u64)?;
        taken.try_into().map_err(|_length| Stop::Need(u64::MAX))
    }

    fn u32(&mut self) -> Result<u32, Stop> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Stop> {
        self.array().map(u64::from_le_bytes)
    }

    fn skip_value(&mut self, kind: u32, depth: u32) -> Result<(), Stop> {
        let bytes = match kind {
            KIND_STRING => self.u64()?,
            KIND_ARRAY => return self.skip_array(depth),
            _ => scalar_bytes(kind)?,
        };
        self.take(bytes).map(drop)
    }

    fn skip_array(&mut self, depth: u32) -> Result<(), Stop> {
        limit("arrays in arrays", depth.into(), NESTING_MAX.into())?;
        let (kind, count) = (self.u32()?, self.u64()?);
        if !matches!(kind, KIND_STRING | KIND_ARRAY) {
            let bytes = scalar_bytes(kind)?.saturating_mul(count);
            return self.take(bytes).map(drop);
        }
        // Each takes some bytes, so this ends where the bytes do.
        for _ in 0..count {
            self.skip_value(kind, depth + 1)?;
        }
        Ok(())
    }
}

fn scalar_bytes(kind: u32) -> Result<u64, GgufError> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        _ => Err(GgufError::Kind(kind)),
    }
}
