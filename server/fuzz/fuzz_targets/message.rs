//! Fuzzes `forebay_server::fuzz::message`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forebay_server::fuzz::message(bytes));
