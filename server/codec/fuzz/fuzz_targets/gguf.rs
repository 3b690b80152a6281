//! Fuzzes `forebay_codec::fuzz::gguf_header`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forebay_codec::fuzz::gguf_header(bytes));
