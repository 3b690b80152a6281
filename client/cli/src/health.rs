//! `forebay health`: whether the daemon takes loads, for the probes of those who supervise it.
//!
//! It is asked over the socket, as clients do: a daemon whose HTTP address answers while its socket
//! is gone is not well. A probe must end, so there is a deadline even if none was given.

use std::time::Duration;

use clap::Args;
use forebay_client::{Failure, Reason};
use serde_json::json;

use crate::args::{Budget, Global};
use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;

/// What a probe may take if nobody says otherwise.
const DEADLINE: Duration = Duration::from_secs(5);

pub(crate) const HELP: &str = "\
The daemon is asked over its socket, as clients do, and has 5 s if no --deadline is given: one that does
not answer in time gets exit code 4. Uids that may not call get 8.

Examples:
  forebay health
  forebay health --live --deadline 2s";

#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// Whether it answers at all: one that is stopping, and takes no more loads, is alive
    #[arg(long)]
    pub(crate) live: bool,
}

pub(crate) async fn run(
    global: &Global,
    args: &HealthArgs,
    output: &mut Output,
) -> Result<(), CliError> {
    let Budget(given) = global.deadline;
    let within = Budget(Some(given.unwrap_or(DEADLINE)));
    let context = Context::connect_within(global, within).await?;
    let status = context.client().status().await?;
    if status.draining && !args.live {
        let stopping = "forebayd is stopping and takes no more loads: wait for the next one";
        return Err(CliError::Client(Failure::new(Reason::Draining, stopping).into()));
    }
    let state = if status.draining { "draining" } else { "ready" };
    match output.is_json() {
        true => output.object(&json!({ "state": state, "version": status.version })),
        false => output.text(&format!("{state}\n")),
    }
}
