//! Compiles the contract with protox (no protoc needed) and writes the descriptor set that
//! reflection serves. With the feature `otlp` the messages of OTLP too, which it does not serve.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=forebay/v1/forebay.proto");
    let descriptors = protox::compile(["forebay/v1/forebay.proto"], ["."])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    std::fs::write(
        out.join("forebay_descriptor.bin"),
        protox::prost::Message::encode_to_vec(&descriptors),
    )?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=otlp/trace_service.proto");
    if std::env::var_os("CARGO_FEATURE_OTLP").is_some() {
        let descriptors = protox::compile(["otlp/trace_service.proto"], ["."])?;
        tonic_prost_build::configure().compile_fds(descriptors)?;
    }
    Ok(())
}
