//! `include/forebay.h` is what cbindgen makes of the sources, and C and C++ take it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// In the order of the header. The other files come through the `mod` lines of lib.rs: named here they
/// would be declared twice.
const SOURCES: [&str; 3] = ["status.rs", "options.rs", "lib.rs"];

const HEAD: &str = "/* Forebay for C: load a checkpoint from the daemon of this node, without copying it.
 *
 * Every function returns a status, unless it says otherwise: FB_OK is 0, errors are negative, and
 * fb_last_error() has a sentence about the last one. Handles are opaque; one that is NULL, closed or
 * of another kind is FB_BAD_HANDLE, never a crash. Texts are UTF-8 and end with a NUL. Structs begin
 * with their own size: set it, and everything that you do not use to zero. A handle can be passed
 * from thread to thread; what may be used by several at once is said at each function. No function
 * raises a signal or reads an environment variable. After fork(), the child may use none of its
 * parent's handles.
 *
 * Generated from the sources by cbindgen: do not edit. SPDX-License-Identifier: Apache-2.0 */";

fn home() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn header() -> PathBuf {
    home().join("include/forebay.h")
}

fn generated() -> String {
    let mut config = cbindgen::Config {
        language: cbindgen::Language::C,
        header: Some(HEAD.to_owned()),
        include_guard: Some("FOREBAY_H".to_owned()),
        no_includes: true,
        sys_includes: vec!["stddef.h".to_owned(), "stdint.h".to_owned()],
        cpp_compat: true,
        usize_is_size_t: true,
        line_length: 100,
        tab_width: 4,
        style: cbindgen::Style::Both,
        ..Default::default()
    };
    let types = [
        "client",
        "load",
        "tensor",
        "device",
        "stream",
        "copy",
        "tensor_callback",
        "shard_rule",
        "target",
        "connect_options",
        "load_options",
        "prefetch_options",
        "load_info",
        "tensor_info",
        "report",
        "daemon_status",
    ];
    for name in types {
        let words = name.split('_').map(|word| word[..1].to_uppercase() + &word[1..]);
        let rust = format!("Fb{}", words.collect::<String>());
        config.export.rename.insert(rust, format!("fb_{name}"));
    }
    let builder = cbindgen::Builder::new().with_config(config);
    let builder = SOURCES
        .iter()
        .fold(builder, |builder, name| builder.with_src(home().join("src").join(name)));
    let mut text = Vec::new();
    builder.generate().expect("the sources can be bound").write(&mut text);
    String::from_utf8(text).expect("a header is UTF-8")
}

/// Has a compiler take a program that only includes the header; why not, where there is none.
fn compiled(compiler: &str, standard: &str, name: &str) -> Result<(), String> {
    let dir = tempfile::tempdir().expect("a directory");
    let source = dir.path().join(name);
    let program = "#include \"forebay.h\"\nint main(void) { return FB_OK; }\n";
    std::fs::write(&source, program).expect("the directory can be written to");
    let output = Command::new(compiler)
        .arg(standard)
        .args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-I"])
        .arg(home().join("include"))
        .arg(&source)
        .output()
        .map_err(|error| format!("{compiler} cannot be run: {error}"))?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn the_header_is_that_of_the_sources() {
    let committed = std::fs::read_to_string(header()).unwrap_or_default();
    assert!(
        committed == generated(),
        "include/forebay.h is not that of the sources: run `cargo test -p forebay-ffi --test header \
         -- --ignored` and look at the difference"
    );
}

#[test]
#[ignore = "writes include/forebay.h: run it after the interface has changed"]
fn write_the_header() {
    std::fs::write(header(), generated()).unwrap();
}

#[test]
fn c_and_cpp_take_the_header() {
    let compilers = [("cc", "-std=c99", "program.c"), ("c++", "-std=c++11", "program.cpp")];
    for (compiler, standard, name) in compilers {
        if let Err(why) = compiled(compiler, standard, name) {
            println!("skipped: {why}");
        }
    }
}
