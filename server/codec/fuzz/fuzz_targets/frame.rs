//! Fuzzes `forebay_codec::fuzz::frame`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forebay_codec::fuzz::frame(bytes));
