//! `forebay`: the command for people and scripts.
//!
//! Results go to stdout, everything else to stderr. One runtime on the main thread talks to the
//! daemon; hashing and writing files happen on a named thread per load, fed through a bounded
//! channel. A verb is one future: an interrupt drops it, which cancels the load, ends the thread
//! and removes what it had not finished.
//!
//! * `args`, `access`: what can be said on the command line. `context`: the connection and the deadline.
//! * `prefetch`, `load`, `get`, `inspect`, `keep`, `verify`, `pack`, `resize`, `status`, `explain`,
//!   `trace`, `alias`, `capacity`, `doctor`, `health`: the verbs.
//! * `sums`: files of digests. `digest`, `files`, `worker`: the threads' work. `output`, `json`, `text`, `progress`: how
//!   results look. `error`: how failures do.

#![forbid(unsafe_code)]

mod access;
mod alias;
mod args;
mod capacity;
mod context;
mod device;
mod digest;
mod doctor;
#[cfg(test)]
mod documented;
mod error;
mod explain;
mod files;
mod get;
mod health;
mod inspect;
mod json;
mod keep;
mod load;
mod output;
mod pack;
mod prefetch;
mod progress;
mod resize;
mod status;
mod sums;
mod text;
mod trace;
mod verify;
mod worker;

use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Cli, Format, Verb};
use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to tell a person whose terminal is gone.
            error.print().ok();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let format = cli.global.format;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(until_signal(cli)),
        Err(error) => Outcome::Failed(CliError::local("start the runtime", error)),
    };
    match outcome {
        Outcome::Done => ExitCode::SUCCESS,
        Outcome::Signalled(number) => ExitCode::from(128 + number),
        Outcome::Failed(error) => {
            error.report(format);
            ExitCode::from(error.exit_code())
        }
    }
}

enum Outcome {
    Done,
    Failed(CliError),
    Signalled(u8),
}

async fn until_signal(cli: Cli) -> Outcome {
    let mut terminated = match signal(SignalKind::terminate()) {
        Ok(terminated) => terminated,
        Err(error) => return Outcome::Failed(CliError::local("watch for signals", error)),
    };
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => Outcome::Signalled(2),
        _ = terminated.recv() => Outcome::Signalled(15),
        done = Box::pin(run(cli)) => match done {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::Failed(error),
        },
    }
}

async fn run(cli: Cli) -> Result<(), CliError> {
    let mut output = Output::stdout(cli.global.format);
    if let Verb::Doctor = cli.verb {
        return doctor::run(&cli.global, &mut output).await;
    }
    if let Verb::Health(args) = &cli.verb {
        return health::run(&cli.global, args, &mut output).await;
    }
    let context = Context::connect(&cli.global).await?;
    match cli.verb {
        Verb::Prefetch(args) => prefetch::run(&context, &args, &mut output).await,
        Verb::Load(args) => load::run(&context, args, &mut output).await,
        Verb::Get(args) => get::run(&context, args, &mut output).await,
        Verb::Ls(args) => inspect::ls(&context, args.uri.as_deref(), &mut output).await,
        Verb::Stat(args) => inspect::stat(&context, &args.uri, &mut output).await,
        Verb::Pin(args) => keep::pin(&context, &args.uri, &mut output).await,
        Verb::Unpin(args) => keep::unpin(&context, &args.uri, &mut output).await,
        Verb::Evict(args) => keep::evict(&context, &args, &mut output).await,
        Verb::Verify(args) => verify::run(&context, &args.uri, &mut output).await,
        Verb::Pack(args) => pack::run(&context, &args, &mut output).await,
        Verb::Explain(args) => {
            let load_id = explain::which(args.load_id.as_deref());
            explain::run(&context, load_id, &mut output).await
        }
        Verb::Trace(args) => {
            let load_id = explain::which(Some(&args.load_id));
            trace::run(&context, load_id, args.output.as_deref(), &mut output).await
        }
        Verb::Alias(verb) => alias::run(&context, verb, &mut output).await,
        Verb::Rollback(args) => alias::rollback(&context, &args, &mut output).await,
        Verb::Resize(args) => resize::run(&context, &args, &mut output).await,
        Verb::Status => status::status(&context, &mut output).await,
        Verb::Capacity => capacity::run(&context, &mut output).await,
        // These make their own connection, and were served before this one.
        Verb::Doctor | Verb::Health(_) => Ok(()),
    }
}

/// Whether output is for scripts.
fn is_json(format: Format) -> bool {
    format == Format::Json
}
