//! The C library, as C programs use it: compiled here from `forebay.h` alone, run against a daemon.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use forebay_testkit::{Checkpoint, CheckpointSpec, checkpoint, temp_dir};

use crate::binaries::libforebay;
use crate::harness::{BUCKET, Node, NodeSpec, s3, s3_uri};

/// The C library's folder in the tree.
fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("loader-ffi")
}

/// Compiles one of the examples; why not, where there is no C compiler.
pub(crate) fn compiled(name: &str, dir: &Path, flags: &[&str]) -> Result<PathBuf, String> {
    let library = libforebay().parent().expect("a library lies in a folder");
    let program = dir.join(name);
    let output = Command::new("cc")
        .args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-g"])
        .args(flags)
        .arg("-I")
        .arg(home().join("include"))
        .arg(home().join("examples").join(format!("{name}.c")))
        .arg("-L")
        .arg(library)
        .arg(format!("-Wl,-rpath,{}", library.display()))
        .args(["-lforebay", "-ldl", "-pthread", "-o"])
        .arg(&program)
        .output()
        .map_err(|error| format!("cc cannot be run: {error}"))?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(program)
}

pub(crate) fn endpoint(node: &Node) -> String {
    format!("unix://{}", node.daemon.socket().display())
}

/// The checksum that the examples print.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The lines that `load_host` and `load_cuda` print of a checkpoint, sorted.
fn expected(made: &Checkpoint) -> Vec<String> {
    let line = |tensor: &forebay_testkit::Tensor| {
        let bytes = made.tensor_bytes(&tensor.name).expect("a tensor of the checkpoint");
        let hash = fnv1a(&bytes);
        let shape: Vec<String> = tensor.shape.iter().map(ToString::to_string).collect();
        let (name, shape) = (&tensor.name, shape.join(","));
        format!("{name} BF16 [{shape}] {} {hash:016x}", bytes.len())
    };
    let mut lines: Vec<_> = made.tensors().map(line).collect();
    lines.sort();
    lines
}

#[track_caller]
pub(crate) fn assert_printed(output: &Output, made: &Checkpoint) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let printed = String::from_utf8_lossy(&output.stdout);
    let mut lines: Vec<_> = printed.lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, expected(made), "{said}");
}

#[tokio::test]
async fn a_c_program_loads_a_checkpoint_to_host_memory() {
    let dir = temp_dir();
    let program = match compiled("load_host", dir.path(), &[]) {
        Ok(program) => program,
        Err(why) => return println!("skipped: {why}"),
    };
    let origin = s3().await;
    let made = checkpoint(CheckpointSpec::new(1, 1 << 20).shards(2));
    origin.put_checkpoint(BUCKET, "m/", &made);
    let node = NodeSpec::of(&origin).start().await;
    let args = [endpoint(&node), s3_uri("m/")];
    let output = Command::new(&program).args(&args).output().unwrap();
    assert_printed(&output, &made);
    node.settled().await;

    let wrong = Command::new(&program).args([&args[0], &s3_uri("none/")]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("not found"), "{wrong:?}");

    // Again, with what it reads, writes and frees watched.
    let watched = temp_dir();
    let watched = compiled("load_host", watched.path(), &["-fsanitize=address,undefined"]).unwrap();
    let output = Command::new(watched).args(&args).output().unwrap();
    assert_printed(&output, &made);
    node.settled().await;

    // And what the library does, which the sanitizers do not see.
    let valgrind =
        ["--quiet", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite"];
    match Command::new("valgrind").args(valgrind).arg(&program).args(&args).output() {
        Ok(output) => assert_printed(&output, &made),
        Err(error) => println!("skipped in part: valgrind cannot be run: {error}"),
    }
    node.settled().await;
}

#[tokio::test]
async fn mistakes_of_a_c_program_are_statuses_and_so_is_a_daemon_that_dies() {
    let dir = temp_dir();
    let program = match compiled("misuse", dir.path(), &["-fsanitize=address,undefined"]) {
        Ok(program) => program,
        Err(why) => return println!("skipped: {why}"),
    };
    let origin = s3().await;
    // More than the pool: the load cannot be over when the daemon dies.
    origin.put_checkpoint(BUCKET, "m/", &checkpoint(CheckpointSpec::new(1, 8 << 20).shards(2)));
    let node = NodeSpec::of(&origin).start().await;
    let mut child = Command::new(&program)
        .args([endpoint(&node), s3_uri("m/")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "kill\n", "{:?}", child.wait_with_output());
    drop(node.daemon.kill().unwrap());
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn the_library_exports_its_interface_and_nothing_else() {
    let output = match Command::new("nm").args(["-D", "--defined-only"]).arg(libforebay()).output()
    {
        Ok(output) => output,
        Err(error) => return println!("skipped: nm cannot be run: {error}"),
    };
    assert!(output.status.success(), "{output:?}");
    let listed = String::from_utf8_lossy(&output.stdout);
    let names: Vec<&str> =
        listed.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    let header = std::fs::read_to_string(home().join("include/forebay.h")).unwrap();
    assert!(names.contains(&"fb_connect"), "{listed}");
    for name in names {
        assert!(header.contains(&format!("{name}(")), "{name} is exported and not in forebay.h");
    }
}
