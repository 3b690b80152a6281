//! Fuzzes `forebay_server::fuzz::content_range`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forebay_server::fuzz::content_range(bytes));
