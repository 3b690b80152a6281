//! The stand-in for an NVIDIA driver: compiled from C when a test wants it, loaded by a child
//! process.
//!
//! The library (`libcuda/cuda.c`, whose head says what it checks) copies for real, on threads of
//! its own and at a given pace, and checks its caller meanwhile. Which library a process loads is
//! settled when it starts, by `LD_LIBRARY_PATH`: so a test runs itself again in a child process,
//! which knows that it is one by a filter among its arguments that matches no test. What the
//! stand-in found is in a report: one line per violation, or the one line `ok`.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::disk::temp_dir;

const SOURCE: &str = include_str!("../libcuda/cuda.c");

/// A filter that matches no test: its presence tells a child that it is one.
const CHILD: &str = "child-with-a-cuda-driver";

/// The library, compiled, and the report of the processes that load it. Gone when dropped.
#[derive(Debug)]
pub struct CudaDriver(TempDir);

impl CudaDriver {
    /// Compiles the library; the error says what is missing to do so.
    ///
    /// # Panics
    /// If there is a compiler that does not take the source.
    pub fn compiled() -> Result<Self, String> {
        Self::compiled_with(&[])
    }

    /// The same, as an old driver that lacks a function.
    ///
    /// # Panics
    /// As [`CudaDriver::compiled`].
    pub fn compiled_without(function: &str) -> Result<Self, String> {
        Self::compiled_with(&[format!("-D{function}=under_another_name")])
    }

    fn compiled_with(arguments: &[String]) -> Result<Self, String> {
        let folder = temp_dir();
        let (source, library) = (folder.path().join("cuda.c"), folder.path().join("libcuda.so.1"));
        fs::write(&source, SOURCE).map_err(|error| error.to_string())?;
        let output = Command::new("cc")
            .args(["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"])
            // Loaded once and for all: its report is of the whole process.
            .args(["-Wl,-soname,libcuda.so.1", "-Wl,-z,nodelete", "-pthread", "-o"])
            .args([&library, &source])
            .args(arguments)
            .output();
        let output = match output {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err("there is no C compiler (cc)".to_owned());
            }
            other => other.map_err(|error| error.to_string())?,
        };
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the stand-in driver does not compile:\n{told}");
        // The name that a machine with the development files has, which is looked for first. A
        // link, as there: one library under both names.
        symlink(&library, folder.path().join("libcuda.so")).map_err(|error| error.to_string())?;
        Ok(Self(folder))
    }

    /// Where the library lies.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    /// Makes a command load the library, with `script`: names of variables without their
    /// `FOREBAY_CUDA_`, and values.
    pub fn lend(&self, command: &mut Command, script: &[(&str, &str)]) {
        command.env("LD_LIBRARY_PATH", self.folder());
        command.env("FOREBAY_CUDA_REPORT", self.report_path());
        for (name, value) in script {
            command.env(format!("FOREBAY_CUDA_{name}"), value);
        }
    }

    /// What the library found in all processes so far: `ok` from each without a violation.
    #[must_use]
    pub fn report(&self) -> Vec<String> {
        let text = fs::read_to_string(self.report_path()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Runs a test of the calling test binary again, in a child with the library.
    ///
    /// # Panics
    /// If the test fails there.
    pub fn run_again(&self, test: &str, script: &[(&str, &str)]) {
        let mut command = child(test);
        self.lend(&mut command, script);
        passed(test, &command.output().expect("this test can be run again"));
    }

    fn report_path(&self) -> PathBuf {
        self.folder().join("report")
    }
}

/// Runs a test of the calling test binary again in a child that looks for libraries in `folder`
/// first.
///
/// # Panics
/// If the test fails there.
pub fn run_again_with_libraries(test: &str, folder: impl AsRef<OsStr>) {
    let mut command = child(test);
    command.env("LD_LIBRARY_PATH", folder);
    passed(test, &command.output().expect("this test can be run again"));
}

/// Whether this process is such a child.
#[must_use]
pub fn is_child() -> bool {
    std::env::args().any(|argument| argument == CHILD)
}

fn child(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the path of this test"));
    command.args(["--exact", test, "--skip", CHILD, "--nocapture"]);
    command
}

fn passed(test: &str, output: &Output) {
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{test} in a child:\n{stdout}\n{stderr}");
    assert!(stdout.contains("1 passed"), "{test} did not run in its child:\n{stdout}");
}
