//! Inputs that packing is not made for: what compresses well, little, or not at all.

use forebay_testkit::{Content, Prng};
use serde_json::json;

/// A name for the table, the object's name, and its content of about so many bytes.
pub(super) fn inputs(bytes: u64) -> Vec<(&'static str, &'static str, Content)> {
    let of_tensor = |dtype, width, content| safetensors(dtype, width, &content);
    vec![
        ("random bytes", "blob.bin", Content::synthetic(1, bytes)),
        ("zeros", "zeros.bin", Content::bytes(vec![0; length(bytes)])),
        ("text", "tokenizer.json", text(bytes)),
        ("f32", "f32.safetensors", of_tensor("F32", 4, single(bytes))),
        ("fp8", "fp8.safetensors", of_tensor("F8_E5M2", 1, fp8(bytes))),
        ("noise in bf16", "noise.safetensors", of_tensor("BF16", 2, Content::synthetic(2, bytes))),
    ]
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// One tensor as an object.
fn safetensors(dtype: &str, width: u64, content: &Content) -> Content {
    let bytes = content.len();
    let entry = json!({ "dtype": dtype, "shape": [bytes / width], "data_offsets": [0, bytes] });
    let header = json!({ "weight": entry }).to_string().into_bytes();
    let begin = u64::try_from(header.len()).unwrap_or(u64::MAX).to_le_bytes();
    Content::concat(vec![Content::bytes(begin.to_vec()), Content::bytes(header), content.clone()])
}

/// Normally distributed numbers of 32 bits: those of a bf16, with 16 random bits below.
fn single(bytes: u64) -> Content {
    let upper = Content::Normal { seed: 3, bytes: bytes / 2 }.to_bytes();
    let mut lower = vec![0; upper.len()];
    Prng::new(4).fill(&mut lower);
    let (upper, lower) = (upper.as_chunks::<2>().0, lower.as_chunks::<2>().0);
    let numbers =
        lower.iter().zip(upper).flat_map(|(low, high)| [low[0], low[1], high[0], high[1]]);
    Content::bytes(numbers.collect::<Vec<u8>>())
}

/// Normally distributed numbers of 8 bits: five of the exponent, two of the mantissa.
fn fp8(bytes: u64) -> Content {
    let wide = Content::Normal { seed: 5, bytes: bytes * 2 }.to_bytes();
    let narrow = |number: &[u8; 2]| {
        let bits = u16::from_le_bytes(*number);
        let exponent = (bits >> 7 & 0xff).saturating_sub(112);
        let magnitude = if exponent == 0 { 0 } else { exponent << 2 | bits >> 5 & 3 };
        u8::try_from(bits >> 15 << 7 | magnitude & 0x7f).unwrap_or(0)
    };
    Content::bytes(wide.as_chunks::<2>().0.iter().map(narrow).collect::<Vec<u8>>())
}

/// As a tokenizer's file has it.
fn text(bytes: u64) -> Content {
    let mut prng = Prng::new(6);
    let mut text = String::new();
    while text.len() < length(bytes) {
        text += &format!("    \"tok{:x}\": {},\n", prng.below(1 << 24), prng.below(200_000));
    }
    Content::bytes(text.into_bytes())
}
