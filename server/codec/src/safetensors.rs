//! Reads the tensor index out of a safetensors header, and trusts nothing in it.
//!
//! Layout: 8 bytes little-endian header length `n`, `n` bytes of JSON, then the data. The JSON maps
//! tensor names to `{dtype, shape, data_offsets: [begin, end)}` relative to the data, plus an
//! optional `__metadata__` of strings. What a hostile header can claim is bounded before anything
//! is allocated: its length by [`HEADER_BYTES_MAX`] and by the object, the tensors by
//! [`TENSORS_MAX`], each name and shape by their own limits; offsets have to lie in the object,
//! must not overlap, and have to match dtype and shape. Gaps between tensors are allowed: the bytes
//! are served as they are.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::tensor::{DIMENSIONS_MAX, NAME_BYTES_MAX, TENSORS_MAX, TensorEntry};

/// The format's own limit on its header, 100 MB.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;

/// Bytes before the JSON.
pub const PREFIX_BYTES: u64 = 8;

/// What is wrong with a header.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// The object is shorter than the length field.
    #[error("{0} bytes are too few for a safetensors header")]
    TooShort(u64),
    /// The length field claims more than the object or the format's limit.
    #[error(
        "the header claims {claimed} bytes; the object has {object}, the format allows {HEADER_BYTES_MAX}"
    )]
    TooLong {
        /// As claimed.
        claimed: u64,
        /// Size of the object.
        object: u64,
    },
    /// Not as many bytes as it should be.
    #[error("{0} bytes are not what the header claims, or the index has")]
    Length(u64),
    /// Not the JSON that the format asks for.
    #[error("the header is not valid: {0}")]
    Json(String),
    /// A tensor lies outside the object, overlaps another one, or contradicts its shape.
    #[error("tensor {name:?} {problem}")]
    Tensor {
        /// The tensor, cut to a printable length.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// How long the header is, from the first eight bytes of an object of `object_bytes`.
pub fn header_bytes(prefix: [u8; 8], object_bytes: u64) -> Result<u64, HeaderError> {
    let room = object_bytes.checked_sub(PREFIX_BYTES).ok_or(HeaderError::TooShort(object_bytes))?;
    let claimed = u64::from_le_bytes(prefix);
    if claimed > room || claimed > HEADER_BYTES_MAX {
        return Err(HeaderError::TooLong { claimed, object: object_bytes });
    }
    Ok(claimed)
}

/// The tensors of an object of `object_bytes`, from its first bytes up to the end of the header.
pub fn parse_whole(bytes: &[u8], object_bytes: u64) -> Result<Vec<TensorEntry>, HeaderError> {
    let (prefix, json) = bytes.split_first_chunk().ok_or(HeaderError::TooShort(object_bytes))?;
    if header_bytes(*prefix, object_bytes)? != json.len() as u64 {
        return Err(HeaderError::Length(json.len() as u64));
    }
    parse(json, object_bytes)
}

/// The tensors of an object of `object_bytes`, from its JSON header, in the order of their bytes.
fn parse(json: &[u8], object_bytes: u64) -> Result<Vec<TensorEntry>, HeaderError> {
    let raw: RawHeader =
        serde_json::from_slice(json).map_err(|error| HeaderError::Json(error.to_string()))?;
    let data_at = PREFIX_BYTES + json.len() as u64;
    let data_bytes = object_bytes
        .checked_sub(data_at)
        .ok_or(HeaderError::TooLong { claimed: json.len() as u64, object: object_bytes })?;
    let mut tensors = Vec::with_capacity(raw.0.len());
    for (name, tensor) in raw.0 {
        let checked = check(&tensor, data_bytes);
        let (begin, bytes) = checked.map_err(|problem| bad(&name, problem))?;
        let RawTensor { dtype, shape, .. } = tensor;
        tensors.push(TensorEntry { name, dtype, shape, offset: data_at + begin, bytes });
    }
    tensors.sort_by(|a, b| (a.offset, a.bytes, &a.name).cmp(&(b.offset, b.bytes, &b.name)));
    let mut end = 0;
    // A tensor without bytes overlaps nothing, wherever it says it is.
    for tensor in tensors.iter().filter(|tensor| tensor.bytes > 0) {
        if tensor.offset < end {
            return Err(bad(&tensor.name, "overlaps another tensor"));
        }
        end = tensor.offset + tensor.bytes;
    }
    Ok(tensors)
}

/// First byte in the data and length of a tensor, if it is sound.
fn check(tensor: &RawTensor, data_bytes: u64) -> Result<(u64, u64), &'static str> {
    let [begin, end] = tensor.data_offsets;
    let bytes = end.checked_sub(begin).ok_or("ends before it begins")?;
    if end > data_bytes {
        return Err("ends after the object");
    }
    if tensor.shape.len() > DIMENSIONS_MAX {
        return Err("has more than 32 dimensions");
    }
    let elements = tensor
        .shape
        .iter()
        .try_fold(1u64, |product, dimension| product.checked_mul(*dimension))
        .ok_or("has a shape that overflows")?;
    match dtype_bits(&tensor.dtype) {
        // A type of a later version of the format: served, its size taken from the offsets.
        None => Ok((begin, bytes)),
        Some(bits) => match elements.checked_mul(bits) {
            Some(total) if total % 8 == 0 && total / 8 == bytes => Ok((begin, bytes)),
            Some(_) => Err("has a length that is not its shape times its type"),
            None => Err("has a shape that overflows"),
        },
    }
}

/// Bits of an element, for the types the format names.
fn dtype_bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ"
        | "F8_E5M2FNUZ" => 8,
        "I16" | "U16" | "F16" | "BF16" => 16,
        "I32" | "U32" | "F32" => 32,
        "I64" | "U64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

fn bad(name: &str, problem: &'static str) -> HeaderError {
    HeaderError::Tensor { name: name.chars().take(120).collect(), problem }
}

/// The shard files that a `*.safetensors.index.json` names, each once, in order.
pub fn parse_index(json: &[u8]) -> Result<Vec<String>, HeaderError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index =
        serde_json::from_slice(json).map_err(|error| HeaderError::Json(error.to_string()))?;
    let mut shards: Vec<String> = index.weight_map.into_values().collect();
    shards.sort_unstable();
    shards.dedup();
    match shards.iter().find(|shard| !is_plain_name(shard)) {
        Some(shard) => Err(bad(shard, "is not the name of a shard beside the index")),
        None => Ok(shards),
    }
}

/// A file beside the index: an index cannot make the daemon read elsewhere.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[derive(Debug, Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// Names with their tensors; duplicates and limits are errors while reading, not afterwards.
struct RawHeader(Vec<(String, RawTensor)>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        use serde::de::Error;
        let mut seen = std::collections::HashSet::new();
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if name.len() > NAME_BYTES_MAX {
                return Err(A::Error::custom("a tensor's name is longer than 4096 bytes"));
            }
            if tensors.len() == TENSORS_MAX {
                return Err(A::Error::custom("more than 1048576 tensors"));
            }
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("tensor {name:?} is there twice")));
            }
            tensors.push((name, map.next_value()?));
        }
        Ok(RawHeader(tensors))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(dtype: &str, shape: &str, begin: u64, end: u64) -> String {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    }

    fn problem(json: &str, data_bytes: u64) -> String {
        parse(json.as_bytes(), 8 + json.len() as u64 + data_bytes).unwrap_err().to_string()
    }

    #[test]
    fn tensors_come_in_the_order_of_their_bytes() {
        let json = format!(
            r#"{{"__metadata__":{{"format":"pt"}},"b":{},"a":{}}}"#,
            entry("BF16", "[2,3]", 0, 12),
            entry("F32", "[]", 12, 16)
        );
        let tensors = parse(json.as_bytes(), 8 + json.len() as u64 + 16).unwrap();
        let names: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), t.bytes)).collect();
        assert_eq!(names, [("b", 12), ("a", 4)]);
        assert_eq!(tensors[0].offset, 8 + json.len() as u64);
    }

    #[test]
    fn a_length_field_cannot_claim_more_than_there_is() {
        let huge = (1u64 << 63).to_le_bytes();
        let error = header_bytes(huge, 1 << 40).unwrap_err();
        assert!(error.to_string().contains("claims 9223372036854775808 bytes"), "{error}");
        header_bytes(1000u64.to_le_bytes(), 1007).unwrap_err();
        assert_eq!(header_bytes(1000u64.to_le_bytes(), 1008), Ok(1000));
        assert_eq!(header_bytes([0; 8], 7), Err(HeaderError::TooShort(7)));
        header_bytes((HEADER_BYTES_MAX + 1).to_le_bytes(), u64::MAX).unwrap_err();
    }

    #[test]
    fn hostile_tensors_are_refused_by_name() {
        let cases = [
            (format!(r#"{{"t":{}}}"#, entry("U8", "[8]", 0, 8)), 7, "ends after the object"),
            (format!(r#"{{"t":{}}}"#, entry("U8", "[8]", 8, 0)), 8, "ends before it begins"),
            (format!(r#"{{"t":{}}}"#, entry("F32", "[8]", 0, 8)), 8, "shape times its type"),
            (
                format!(r#"{{"t":{}}}"#, entry("F32", "[9223372036854775808,4]", 0, 8)),
                8,
                "overflows",
            ),
            (
                format!(
                    r#"{{"t":{},"u":{}}}"#,
                    entry("U8", "[8]", 0, 8),
                    entry("U8", "[8]", 7, 15)
                ),
                16,
                "\"u\" overlaps",
            ),
            (format!(r#"{{"t":{0},"t":{0}}}"#, entry("U8", "[1]", 0, 1)), 1, "is there twice"),
            (r#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[-1,1]}}"#.into(), 1, "not valid"),
            (r#"["t"]"#.into(), 1, "not valid"),
            ("{".into(), 1, "not valid"),
        ];
        for (json, data_bytes, expected) in cases {
            let problem = problem(&json, data_bytes);
            assert!(problem.contains(expected), "{json}: {problem}");
        }
    }

    #[test]
    fn an_unknown_type_is_served_by_its_offsets() {
        let json = format!(r#"{{"t":{}}}"#, entry("F3_E1M1", "[5]", 0, 2));
        assert_eq!(parse(json.as_bytes(), 8 + json.len() as u64 + 2).unwrap()[0].bytes, 2);
    }

    #[test]
    fn an_index_names_each_shard_once_and_only_beside_itself() {
        let json = br#"{"metadata":{},"weight_map":{"a":"m-2.safetensors","b":"m-1.safetensors","c":"m-2.safetensors"}}"#;
        assert_eq!(parse_index(json).unwrap(), ["m-1.safetensors", "m-2.safetensors"]);
        for name in ["../m", "/m", "a/../m", ""] {
            let json = format!(r#"{{"weight_map":{{"a":"{name}"}}}}"#);
            assert!(parse_index(json.as_bytes()).is_err(), "{name}");
        }
    }

    proptest! {
        /// Whatever the bytes: no panic, and every tensor that is accepted lies in the object.
        #[test]
        fn no_header_reaches_outside_its_object(
            json in "\\{(\"[a-c]\":\\{\"dtype\":\"(U8|F32|X)\",\"shape\":\\[[0-9]{0,3}\\],\"data_offsets\":\\[[0-9]{1,3},[0-9]{1,3}\\]\\},?){0,4}\\}?",
            data_bytes in 0u64..1000,
        ) {
            let object = 8 + json.len() as u64 + data_bytes;
            if let Ok(tensors) = parse(json.as_bytes(), object) {
                for tensor in tensors {
                    prop_assert!(tensor.offset + tensor.bytes <= object);
                }
            }
        }

        #[test]
        fn no_bytes_make_the_parser_panic(json in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _outcome = parse(&json, 1 << 20).is_ok();
        }
    }
}
