//! Fuzzes `forebay_server::fuzz::config_file`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forebay_server::fuzz::config_file(bytes));
