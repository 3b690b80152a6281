//! Fuzzes `forebay_server::fuzz::grpc_timeout`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forebay_server::fuzz::grpc_timeout(bytes));
