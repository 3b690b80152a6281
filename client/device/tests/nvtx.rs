//! Ranges reach a library that stands in for NVIDIA's. The library is found when a process starts, so
//! the test runs itself again in a child that finds it.

#![cfg(feature = "nvtx")]

use std::path::Path;
use std::process::Command;

use forebay_device::ProfileRange;

/// Writes a line to the file `NVTX_STAND_IN` for every call.
const STAND_IN: &str = r#"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
static uint64_t next;
static void line(const char *what, const char *name, uint64_t id) {
    FILE *file = fopen(getenv("NVTX_STAND_IN"), "a");
    if (!file) abort();
    fprintf(file, "%s %s %llu\n", what, name, (unsigned long long)id);
    fclose(file);
}
uint64_t nvtxRangeStartA(const char *name) { line("start", name, ++next); return next; }
void nvtxRangeEnd(uint64_t id) { line("end", "-", id); }
"#;

const CHILD: &str = "a-child-with-the-stand-in";

#[test]
fn ranges_reach_the_library_and_end_once() {
    if std::env::args().any(|argument| argument == CHILD) {
        let outer = ProfileRange::begin(c"wait");
        let inner = ProfileRange::begin(c"copy");
        drop(outer);
        drop(inner);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("nvtx.c"), folder.path().join("libnvToolsExt.so"));
    std::fs::write(&source, STAND_IN).unwrap();
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    if !compiled.is_ok_and(|status| status.success()) {
        println!("skipped ranges_reach_the_library_and_end_once: no C compiler");
        return;
    }
    assert_eq!(lines_of_a_child(folder.path()), "start wait 1\nstart copy 2\nend - 1\nend - 2\n");
    std::fs::remove_file(&library).unwrap();
    assert_eq!(lines_of_a_child(folder.path()), "", "without the library a range is nothing");
}

fn lines_of_a_child(folder: &Path) -> String {
    let calls = folder.join("calls");
    std::fs::write(&calls, "").unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ranges_reach_the_library_and_end_once", "--skip", CHILD])
        .env("LD_LIBRARY_PATH", folder)
        .env("NVTX_STAND_IN", &calls)
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    std::fs::read_to_string(&calls).unwrap()
}
