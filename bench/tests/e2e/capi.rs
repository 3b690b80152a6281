//! The C library, as C programs use it: compiled here from `forebay.h` alone, run against a daemon.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use forebay_testkit::{Checkpoint, CheckpointSpec, Content, checkpoint, temp_dir};

use crate::binaries::libforebay;
use crate::canary;
use crate::command::text;
use crate::harness::{BUCKET, CHUNK, Node, NodeSpec, s3, s3_uri};
use crate::remote::{Authority, listening, mutual};
use crate::tenants::block;

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

/// Who may not call, may; over the socket by a token, over TCP by a certificate and a token.
#[tokio::test]
async fn a_c_program_is_known_by_its_token_and_its_certificate() {
    const TOKEN: &str = "c-program-5f3a9c";
    let dir = temp_dir();
    let program = match compiled("connect", dir.path(), &["-fsanitize=address,undefined"]) {
        Ok(program) => program,
        Err(why) => return println!("skipped: {why}"),
    };
    let Some(authority) = Authority::new() else { return };
    let settings = mutual(&authority) + "\n" + &block("blue", TOKEN, "");
    let origin = s3().await;
    origin.put(BUCKET, "m", Content::synthetic(1, 4 * CHUNK));
    let spec = NodeSpec::of(&origin).ram("8MiB");
    let (node, tcp, _settings) = listening(spec, &settings).await;
    let (cert, key) = authority.certify("client", 2);
    let file = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).display().to_string()
    };
    let (token, wrong) = (file("token", &format!(" {TOKEN}\n")), file("wrong", "c-wrong-5f3a9d"));
    let (two, long) = (file("two", "two words"), file("long", &"x".repeat((1 << 20) + 1)));
    let [ca, cert, key] = [authority.ca(), cert, key].map(|path| path.display().to_string());
    let (unix, tcp, uri) = (endpoint(&node), tcp.to_string(), s3_uri("m"));
    let tls = ["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key];
    // What is called, the statuses that its calls have, and what is said.
    let cases: [(Vec<&str>, &str, &str); 15] = [
        (vec![&unix, "--token", TOKEN, "--load", &uri], "0 0 0", ""),
        (vec![&unix, "--token-file", &token, "--load", &uri], "0 0 0", ""),
        ([&[&*tcp, "--token-file", &token][..], &tls].concat(), "0 0", ""),
        (vec![&unix], "0 -16", "TOKEN_UNKNOWN"),
        (vec![&unix, "--token-file", &wrong], "0 -16", "TOKEN_UNKNOWN"),
        ([&[&*tcp, "--token-file", &wrong][..], &tls].concat(), "0 -16", "TOKEN_UNKNOWN"),
        (vec![&tcp, "--tls-ca", &ca, "--token-file", &token], "0 -14", "DAEMON_UNREACHABLE"),
        (vec![&unix, "--token", TOKEN, "--token-file", &token], "-3", "both given"),
        (vec![&unix, "--token-file", "/no/such/file"], "-3", "/no/such/file: No such file"),
        (vec![&unix, "--token-file", &two], "-3", "visible ASCII"),
        (vec![&unix, "--token-file", &long], "-3", "longer than 1 MiB"),
        (vec![&tcp, "--tls-ca", &ca, "--tls-cert", &cert], "-3", "need each other"),
        (vec![&tcp, "--tls-cert", &cert, "--tls-key", &key], "-3", "needs tls_ca_file"),
        (vec![&tcp, "--tls-ca", &token], "-14", ""),
        (vec!["tcp://192.0.2.1:7000", "--token", TOKEN], "-3", "in the clear"),
    ];
    for (args, statuses, said) in cases {
        let output = Command::new(&program).args(&args).output().unwrap();
        let [stdout, stderr] = [&output.stdout, &output.stderr].map(|of| text(of));
        let found: Vec<_> = stdout
            .lines()
            .filter(|line| !line.starts_with("bytes"))
            .map(|line| line.split(' ').nth(1).unwrap())
            .collect();
        assert_eq!(found.join(" "), statuses, "{args:?} {output:?}");
        assert!(stderr.contains(said), "{args:?} {stderr}");
        assert_eq!(stderr.is_empty(), output.status.success(), "{output:?}");
        canary::check("a C program", [&output.stdout[..], &output.stderr].concat());
        for secret in ["c-wrong", "two words", "xxxx"] {
            assert!(!stderr.contains(secret), "{stderr}");
        }
    }
    node.settled().await;
}
