//! The command lines of the documents, held against the command: each has to be one that it takes.

use std::path::Path;

use clap::Parser;
use clap::error::ErrorKind;
use forebay_testkit::documented_calls;

use crate::args::Cli;

/// A file of the repository.
fn document(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    std::fs::read_to_string(root.join(path)).unwrap()
}

#[test]
fn every_command_of_the_documents_is_one() {
    for (path, at_least) in [("README.md", 30), ("docker/README.md", 15)] {
        let calls = documented_calls(&document(path), "forebay");
        assert!(calls.len() >= at_least, "{path}: {} calls were found", calls.len());
        for call in calls {
            // A name alone speaks of the command, or of one of its verbs.
            let is_named = call.len() <= 1;
            let words = ["forebay".to_owned()].into_iter().chain(call.clone());
            let Err(error) = Cli::try_parse_from(words) else { continue };
            let fits = match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
                ErrorKind::MissingRequiredArgument
                | ErrorKind::MissingSubcommand
                | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => is_named,
                _ => false,
            };
            assert!(fits, "{path}: forebay {}: {error}", call.join(" "));
        }
    }
}
