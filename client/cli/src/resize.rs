//! `forebay resize`: another size for the RAM tier, while the daemon runs.

use std::io::{self, Write};

use clap::Args;
use forebay_client::model::{ResizeEvent, ResizeProgress, ResizeReport};

use crate::args::memory_size;
use crate::context::Context;
use crate::error::CliError;
use crate::json;
use crate::output::Output;
use crate::text::{count, duration, size};

#[derive(Debug, Args)]
#[command(after_help = "\
The size holds at once, and this waits until memory was had or given back. Loads that run go on, and
nothing that is lent is taken away: what is in use goes when it is released. A deadline ends the
waiting only.

Examples:
  forebay resize --ram 4GiB
  forebay resize --ram 64GiB --deadline 1m
  forebay resize --ram 4GiB --format json | jq -c '[.held_bytes, .busy_bytes]'")]
pub(crate) struct ResizeArgs {
    /// Size of the RAM tier: 512MiB, 4GiB; two chunks at least
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    pub(crate) ram: u64,
}

pub(crate) async fn run(
    context: &Context,
    args: &ResizeArgs,
    output: &mut Output,
) -> Result<(), CliError> {
    let mut events = context.client().resize_ram(args.ram).await?;
    let (mut shown, mut done) = (String::new(), None);
    while let Some(event) = events.next().await? {
        if output.is_json() {
            output.object(&json::resizing(&event))?;
        }
        match event {
            ResizeEvent::Progress(progress) if !output.is_json() => {
                let line = waiting(&progress);
                if line != shown {
                    // A line that nobody can read is not worth failing for.
                    io::stderr().lock().write_all(line.as_bytes()).ok();
                    shown = line;
                }
            }
            ResizeEvent::Progress(_) => {}
            ResizeEvent::Report(report) => done = Some(report),
        }
    }
    match done {
        None => Err(CliError::internal("the resize ended without a report")),
        Some(_) if output.is_json() => Ok(()),
        Some(report) => output.text(&human(&report)),
    }
}

/// What there is, and what is waited for.
fn waiting(progress: &ResizeProgress) -> String {
    let mut text = format!("RAM: {} of {}", size(progress.held_bytes), size(progress.budget_bytes));
    let in_use = progress.busy_bytes.saturating_add(progress.owed_bytes);
    if in_use > 0 {
        text += &format!(", {} in use have to be released", size(in_use));
    }
    if progress.clients > 0 {
        let clients = count(progress.clients, "client");
        text += &format!(", {clients} still mapping {}", size(progress.client_bytes));
    }
    text + "\n"
}

fn human(report: &ResizeReport) -> String {
    let mut text = format!(
        "RAM: {} budget, was {}; {} held, after {}",
        size(report.budget_bytes),
        size(report.before_bytes),
        size(report.held_bytes),
        duration(report.wall),
    );
    if report.untold_bytes > 0 {
        let clients = count(report.untold_clients, "client");
        text += &format!(
            "; {clients} of an older version keep {} until they disconnect",
            size(report.untold_bytes)
        );
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn lines_say_what_is_waited_for() {
        let progress = ResizeProgress {
            budget_bytes: 1 << 30,
            held_bytes: 4 << 30,
            retiring_bytes: 1 << 30,
            busy_bytes: 0,
            owed_bytes: 0,
            clients: 0,
            client_bytes: 0,
        };
        assert_eq!(waiting(&progress), "RAM: 4.0 GiB of 1.0 GiB\n");
        let progress = ResizeProgress {
            busy_bytes: 1 << 20,
            owed_bytes: 1 << 20,
            clients: 2,
            client_bytes: 3 << 20,
            ..progress
        };
        let text = "RAM: 4.0 GiB of 1.0 GiB, 2.0 MiB in use have to be released, \
                    2 clients still mapping 3.0 MiB\n";
        assert_eq!(waiting(&progress), text);
    }

    #[test]
    fn the_result_says_who_keeps_what() {
        let report = ResizeReport {
            budget_bytes: 1 << 30,
            held_bytes: 1 << 30,
            before_bytes: 4 << 30,
            untold_clients: 0,
            untold_bytes: 0,
            wall: Duration::from_secs(2),
        };
        let text = "RAM: 1.0 GiB budget, was 4.0 GiB; 1.0 GiB held, after 2.00s";
        assert_eq!(human(&report), format!("{text}\n"));
        let report = ResizeReport { untold_clients: 1, untold_bytes: 2 << 20, ..report };
        let rest = "; 1 client of an older version keep 2.0 MiB until they disconnect\n";
        assert_eq!(human(&report), format!("{text}{rest}"));
    }
}
