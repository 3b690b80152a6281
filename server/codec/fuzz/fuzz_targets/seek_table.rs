//! Fuzzes `forebay_codec::fuzz::seek_table`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forebay_codec::fuzz::seek_table(bytes));
