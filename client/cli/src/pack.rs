//! `forebay pack`: a checkpoint written anew, by the daemon.
//!
//! The daemon knows folders as `file:///` URIs only, so a path that is given becomes one here:
//! absolute, with links resolved as far as the path exists, and percent-encoded.

use std::io;
use std::path::{Path, PathBuf};

use forebay_client::PackRequest;
use forebay_client::model::{PackEvent, PackReport};

use crate::args::PackArgs;
use crate::context::Context;
use crate::error::CliError;
use crate::json;
use crate::output::Output;
use crate::progress::Progress;
use crate::text::{count, duration, printable, rate, size};

pub(crate) async fn run(
    context: &Context,
    args: &PackArgs,
    output: &mut Output,
) -> Result<(), CliError> {
    let (source, destination) = (located(&args.source)?, located(&args.destination)?);
    let request = PackRequest::new(source, destination).frame_bytes(args.chunk).level(args.level);
    let mut events = context.client().pack(request).await?;
    let mut bar = Progress::bar_or_lines(output.format(), &printable(&args.source));
    let mut done = None;
    while let Some(event) = events.next().await? {
        if output.is_json() {
            output.object(&json::packing(&event))?;
        }
        match event {
            PackEvent::Progress(progress) => bar.set(progress.done_bytes, progress.total_bytes),
            PackEvent::Report(report) => done = Some(report),
        }
    }
    drop(bar);
    match done {
        None => Err(CliError::internal("the pack ended without a report")),
        Some(_) if output.is_json() => Ok(()),
        Some(report) => output.text(&human(&report)),
    }
}

fn human(report: &PackReport) -> String {
    let mut text = format!(
        "{} -> {}: {}, {} in {}{}",
        printable(&report.source),
        printable(&report.destination),
        count(report.objects, "object"),
        size(report.bytes),
        size(report.packed_bytes),
        ratio(report.packed_bytes, report.bytes),
    );
    if report.written_objects == 0 {
        text += "; it was packed already";
    } else {
        text += &format!(
            ", in {} ({})",
            duration(report.wall),
            rate(report.written_bytes, report.wall)
        );
    }
    let skipped = if report.written_objects == 0 { 0 } else { report.skipped_objects };
    for (number, what) in [
        (report.raw_objects, "stored as they are"),
        (skipped, "skipped: they were packed already"),
        (report.removed_objects, "removed"),
    ] {
        if number > 0 {
            text += &format!("; {number} {what}");
        }
    }
    text + "\n"
}

/// ` (0.68)`: nothing of nothing has no ratio.
fn ratio(packed_bytes: u64, bytes: u64) -> String {
    // In thousandths: floating point would need a cast that loses bits.
    let thousandths = u128::from(packed_bytes) * 1000 + u128::from(bytes / 2);
    match thousandths.checked_div(u128::from(bytes)) {
        Some(parts) => format!(" ({}.{:03})", parts / 1000, parts % 1000),
        None => String::new(),
    }
}

/// A URI as it is; the URI of a path.
fn located(given: &str) -> Result<String, CliError> {
    if given.contains("://") {
        return Ok(given.to_owned());
    }
    let doing = || format!("find {}", printable(given));
    if given.is_empty() {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "an empty path");
        return Err(CliError::local(doing(), error));
    }
    let path = std::path::absolute(given).map_err(|error| CliError::local(doing(), error))?;
    let resolved = resolved(&path);
    let is_folder = given.ends_with('/') || !resolved.is_file();
    let text = resolved.to_str().ok_or_else(|| {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "the path is not UTF-8");
        CliError::local(doing(), error)
    })?;
    let slash = if is_folder && !text.ends_with('/') { "/" } else { "" };
    Ok(format!("file://{}{slash}", encoded(text)))
}

/// The path with its links resolved, as far as it exists. What does not exist is left to the
/// daemon.
fn resolved(path: &Path) -> PathBuf {
    for parent in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (parent.canonicalize(), path.strip_prefix(parent)) {
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path.to_owned()
}

fn encoded(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'/' | b'-' | b'_' | b'.' | b'~' => text.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => text.push(char::from(byte)),
            byte => text += &format!("%{byte:02X}"),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn report(written: u64, skipped: u64) -> PackReport {
        PackReport {
            source: "s3://b/a/".into(),
            destination: "s3://b/p/".into(),
            objects: written + skipped,
            bytes: 100 << 20,
            packed_bytes: 68 << 20,
            manifest_bytes: 900,
            written_objects: written,
            written_bytes: written << 20,
            skipped_objects: skipped,
            skipped_bytes: skipped << 20,
            raw_objects: 1,
            removed_objects: 0,
            wall: Duration::from_secs(2),
        }
    }

    #[test]
    fn the_summary_says_what_was_done_and_what_was_not() {
        let text = human(&report(3, 0));
        let begin = "s3://b/a/ -> s3://b/p/: 3 objects, 100.0 MiB in 68.0 MiB (0.680), in 2.00s (";
        assert!(text.starts_with(begin), "{text}");
        assert!(text.ends_with("); 1 stored as they are\n"), "{text}");
        let text = human(&report(1, 2));
        assert!(text.contains("; 2 skipped: they were packed already\n"), "{text}");
        let text = human(&report(0, 3));
        assert!(text.contains("(0.680); it was packed already"), "{text}");
        assert_eq!(ratio(5, 0), "");
    }

    #[test]
    fn paths_become_uris_and_uris_stay() {
        assert_eq!(located("s3://b/k").unwrap(), "s3://b/k");
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let real = real.to_str().unwrap();
        std::fs::write(dir.path().join("a b%#.bin"), "x").unwrap();
        let given = |name: &str| located(dir.path().join(name).to_str().unwrap()).unwrap();
        assert_eq!(given(""), format!("file://{real}/"));
        assert_eq!(given("a b%#.bin"), format!("file://{real}/a%20b%25%23.bin"));
        assert_eq!(given("new/folder"), format!("file://{real}/new/folder/"));
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        assert_eq!(given("link/new"), format!("file://{real}/new/"));
        assert!(located("").is_err() && located("relative").unwrap().starts_with("file:///"));
    }
}
