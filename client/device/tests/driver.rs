//! The driver's library as machines without a GPU have it: not at all, or the real one with nothing
//! to drive.

#![expect(clippy::panic, reason = "a test: another error than those expected fails it")]
#![expect(clippy::print_stdout, reason = "says why a test was skipped")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use forebay_device::{CudaDevice, DeviceError};
use forebay_testkit::{is_child, run_again_with_libraries, temp_dir};

/// What opening the first device says; none if there is one.
fn refusal() -> Option<String> {
    match CudaDevice::open(0) {
        Ok(device) => {
            println!("skipped: this machine has a device: {device:?}");
            None
        }
        Err(DeviceError::Unavailable { reason, .. }) => Some(reason),
        Err(error) => panic!("no way to say that there is no device: {error:?}"),
    }
}

#[test]
fn a_machine_without_a_driver_says_so() {
    let Some(reason) = refusal() else { return };
    let absent = reason == "there is no driver: libcuda.so.1 is not found";
    assert!(absent || reason.contains("(CUDA_ERROR_"), "{reason}");
    assert_eq!(refusal(), Some(reason), "it says the same again");
}

/// Runs a command whose failure is a reason to skip a test.
fn ran(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let told = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {told}")) }
}

/// Debian's driver library in a folder, downloaded and unpacked but not installed.
fn downloaded(folder: &Path) -> Result<(), String> {
    let lists = folder.join("lists");
    let (cache, sources) = (folder.join("cache"), folder.join("sources.list"));
    for made in [lists.join("partial"), cache.join("archives/partial")] {
        fs::create_dir_all(made).map_err(|error| error.to_string())?;
    }
    let source = "deb http://deb.debian.org/debian bookworm non-free\n";
    fs::write(&sources, source).map_err(|error| error.to_string())?;
    let apt_get = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.current_dir(folder).arg("-qq");
        for (name, path) in
            [("State::Lists", &lists), ("Cache", &cache), ("Etc::SourceList", &sources)]
        {
            command.arg("-o").arg(format!("Dir::{name}={}", path.display()));
        }
        command.args(["-o", "Dir::Etc::SourceParts=/dev/null", "-o", "Acquire::Retries=0"]);
        command.args(["-o", "Acquire::http::Timeout=10"]);
        ran(command.args(arguments))
    };
    apt_get(&["update", "--error-on=any"])?;
    apt_get(&["download", "libcuda1"])?;
    let entries = fs::read_dir(folder).map_err(|error| error.to_string())?;
    let package = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let package = package.ok_or("apt-get brought no package")?;
    ran(Command::new("dpkg").arg("-x").arg(package).arg(folder.join("root")))
}

/// The folder with the library below the root of an unpacked package.
fn library_folder(root: &Path) -> Option<PathBuf> {
    let folders = fs::read_dir(root.join("usr/lib")).ok()?;
    let mut folders = folders.filter_map(|entry| Some(entry.ok()?.path().join("nvidia/current")));
    folders.find(|folder| folder.join("libcuda.so.1").exists())
}

#[test]
fn debians_driver_has_every_function_and_says_that_there_is_no_device() {
    if is_child() {
        let Some(reason) = refusal() else { return };
        assert!(reason.contains("(CUDA_ERROR_"), "the driver's own words: {reason}");
        return;
    }
    // Kept for the next run.
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libcuda1");
    if library_folder(&kept).is_none() {
        let folder = temp_dir();
        if let Err(why) = downloaded(folder.path()) {
            println!("skipped: libcuda1 cannot be had: {why}");
            return;
        }
        let copied = ran(Command::new("cp").arg("-a").arg(folder.path().join("root")).arg(&kept));
        copied.expect("what was unpacked can be copied");
    }
    let folder = library_folder(&kept).expect("the package holds the library");
    let test = "debians_driver_has_every_function_and_says_that_there_is_no_device";
    // As root the library makes this node, driver or not.
    let node = Path::new("/dev/nvidiactl");
    let there = node.exists();
    run_again_with_libraries(test, folder);
    if !there && node.exists() {
        fs::remove_file(node).expect("what was made for this test can be removed");
    }
}
