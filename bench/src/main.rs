//! `forebay-bench`: the demo, and the daemon that it starts as a child.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "forebay-bench", version, about = "Shows what Forebay does, on this machine")]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Load a generated checkpoint from an embedded S3 origin: cold, warm, and proven by SHA-256
    Demo {
        /// Size of the checkpoint in MiB
        #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(8..=65536))]
        mib: u64,
    },
    /// What `forebayd` does; the demo starts itself with this
    #[command(hide = true, disable_help_flag = true)]
    Daemon {
        /// Flags of forebayd
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
}

fn main() -> ExitCode {
    match Args::parse().verb {
        Verb::Demo { mib } => match forebay_bench::demo::run(mib << 20) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&*error);
                ExitCode::FAILURE
            }
        },
        Verb::Daemon { args } => {
            let name = std::ffi::OsString::from("forebayd");
            forebay_server::daemon::main(std::iter::once(name).chain(args))
        }
    }
}

#[expect(clippy::print_stderr, reason = "the sentence that a failed run owes its caller")]
fn complain(error: &dyn std::error::Error) {
    eprintln!("forebay-bench: {error}");
}
