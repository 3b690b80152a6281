//! Fuzzes `forebay_codec::fuzz::pack_manifest`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forebay_codec::fuzz::pack_manifest(bytes));
