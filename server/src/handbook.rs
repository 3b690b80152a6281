//! The parts of the operators' handbook, `docker/README.md`, that are made from tables of the code.
//!
//! A part lies between `<!-- NAME: … -->` and `<!-- end of NAME -->`. What is between belongs to the
//! table, and is written anew with `cargo test -p forebay-server handbook -- --ignored`; the rest is
//! written by people.

use std::path::{Path, PathBuf};

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("docker").join("README.md")
}

/// Where the part begins and ends in `text`.
fn bounds(text: &str, name: &str) -> (usize, usize) {
    let opening = format!("<!-- {name}: ");
    let begin = text.find(&opening).unwrap_or_else(|| panic!("docker/README.md has no {opening}"));
    let begin = begin + text[begin..].find("-->\n").unwrap() + "-->\n".len();
    let end = text.find(&format!("<!-- end of {name} -->")).unwrap();
    (begin, end)
}

/// Writes the part anew.
pub(crate) fn write(name: &str, part: &str) {
    let mut text = std::fs::read_to_string(path()).unwrap();
    let (begin, end) = bounds(&text, name);
    text.replace_range(begin..end, part);
    std::fs::write(path(), text).unwrap();
}

/// Fails if the part is another one than that of the table.
#[track_caller]
pub(crate) fn assert_is_of_the_table(name: &str, part: &str) {
    let text = std::fs::read_to_string(path()).unwrap();
    let (begin, end) = bounds(&text, name);
    let same = &text[begin..end] == part;
    assert!(
        same,
        "run `cargo test -p forebay-server handbook -- --ignored` and commit docker/README.md"
    );
}

/// The words in backticks.
pub(crate) fn quoted_words(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}
