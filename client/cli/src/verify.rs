//! `forebay verify`: what is cached, read again and checked.

use forebay_client::model::{VerifyEvent, VerifySummary};

use crate::context::Context;
use crate::error::CliError;
use crate::json;
use crate::output::Output;
use crate::progress::Progress;
use crate::text::{count, printable, tiers};

pub(crate) async fn run(context: &Context, uri: &str, output: &mut Output) -> Result<(), CliError> {
    let mut events = context.client().verify(uri).await?;
    let mut bar = Progress::bar_or_lines(output.format(), &printable(uri));
    let mut found = None;
    while let Some(event) = events.next().await? {
        if output.is_json() {
            output.object(&json::verification(uri, &event))?;
        }
        match event {
            VerifyEvent::Progress(progress) => {
                bar.set(progress.checked_bytes, progress.total_bytes)
            }
            VerifyEvent::Summary(summary) => found = Some(summary),
        }
    }
    drop(bar);
    let Some(summary) = found else {
        return Err(CliError::internal("the verification ended without a summary"));
    };
    if !output.is_json() {
        output.text(&human(uri, &summary))?;
    }
    verdict(uri, &summary)
}

fn human(uri: &str, summary: &VerifySummary) -> String {
    let checkpoints = count(summary.checkpoints, "checkpoint");
    let mut text = format!("{}: {checkpoints}, {} checked", printable(uri), tiers(summary.checked));
    for (bytes, what) in [(summary.bad, "bad"), (summary.unreadable, "not readable")] {
        if bytes.cached() > 0 {
            text += &format!(", {} {what}", tiers(bytes));
        }
    }
    text + "\n"
}

/// A failure if anything was bad. What could not be read is no proof of anything.
fn verdict(uri: &str, summary: &VerifySummary) -> Result<(), CliError> {
    let VerifySummary { bad, unreadable, .. } = *summary;
    match bad.cached() {
        0 => Ok(()),
        _ => Err(CliError::BadCache { uri: uri.to_owned(), bad, unreadable }),
    }
}

#[cfg(test)]
mod tests {
    use forebay_client::model::BytesByTier;

    use super::*;

    const SOUND: VerifySummary = VerifySummary {
        checkpoints: 2,
        checked: BytesByTier { ram: 1 << 20, nvme: 3 << 20, origin: 0 },
        bad: BytesByTier { ram: 0, nvme: 0, origin: 0 },
        unreadable: BytesByTier { ram: 0, nvme: 0, origin: 0 },
    };

    #[test]
    fn what_is_sound_is_no_failure() {
        let text = "s3://b/: 2 checkpoints, RAM 1.0 MiB and NVMe 3.0 MiB checked\n";
        assert_eq!(human("s3://b/", &SOUND), text);
        verdict("s3://b/", &SOUND).unwrap();
    }

    #[test]
    fn what_could_not_be_read_is_said_and_is_no_failure() {
        let unreadable = BytesByTier { nvme: 512, ..Default::default() };
        let summary = VerifySummary { unreadable, ..SOUND };
        assert!(human("s3://b/", &summary).ends_with(" checked, NVMe 512 B not readable\n"));
        verdict("s3://b/", &summary).unwrap();
    }

    #[test]
    fn what_is_bad_is_data_that_is_wrong() {
        for bad in [
            BytesByTier { ram: 1, ..Default::default() },
            BytesByTier { nvme: 1, ..Default::default() },
        ] {
            let summary = VerifySummary { bad, ..SOUND };
            assert!(human("s3://b/", &summary).ends_with(" 1 B bad\n"));
            assert_eq!(verdict("s3://b/", &summary).unwrap_err().exit_code(), 6);
        }
    }
}
