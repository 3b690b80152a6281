//! The commands that documents tell people to run, read from their text.
//!
//! No more of the shell's grammar is known than documents use: quotes, comments, `\` at the end of a
//! line, lists and pipes, variables before a command, redirections behind it.

/// Words that stand for a value, and one that they could stand for.
const MEANT: [(&str, &str); 8] = [
    ("SIZE", "1MiB"),
    ("DURATION", "30s"),
    ("ADDR:PORT", "127.0.0.1:1"),
    ("HOST:PORT", "h:1"),
    ("tcp://HOST:PORT", "tcp://h:1"),
    ("R/N", "0/2"),
    ("N", "3"),
    ("…", "x"),
];

/// The commands in a line of shell, as words, with no more of the shell's grammar than documents use.
fn commands(line: &str) -> Vec<Vec<String>> {
    let (mut commands, mut words, mut word, mut quote) = (Vec::new(), Vec::new(), None, None);
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (Some(_), _) => word.get_or_insert_with(String::new).push(letter),
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_with(String::new);
            }
            (None, '#') if word.is_none() => break,
            (None, ' ' | '\t') => words.extend(word.take()),
            (None, ';' | '|' | '&') => {
                words.extend(word.take());
                commands.push(std::mem::take(&mut words));
            }
            (None, '\\') => word.get_or_insert_with(String::new).extend(letters.next()),
            (None, _) => word.get_or_insert_with(String::new).push(letter),
        }
    }
    words.extend(word);
    commands.push(words);
    commands
}

/// What `program` is called with in a command; none if another one is called.
fn arguments(words: &[String], program: &str) -> Option<Vec<String>> {
    let is_variable = |word: &&String| {
        word.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
        })
    };
    let mut words = words.iter().skip_while(|word| *word == "sudo" || is_variable(word));
    let called = words.next()?;
    (called.rsplit('/').next() == Some(program)).then_some(())?;
    // Parts that may be left out are given; what goes where is the shell's.
    let words = words.take_while(|word| !word.starts_with('>') && !word.starts_with("2>"));
    let meant = |word: &String| {
        let word = word.trim_matches(['[', ']']).trim_end_matches("...");
        let found = MEANT.iter().find(|(name, _)| *name == word);
        found.map_or(word, |(_, value)| value).to_owned()
    };
    Some(words.map(meant).collect())
}

/// The arguments of every call of `program` in a document: in blocks of shell, and between backticks in its text.
#[must_use]
pub fn documented_calls(text: &str, program: &str) -> Vec<Vec<String>> {
    let mut calls = Vec::new();
    let mut take = |line: &str| {
        let found = commands(line).into_iter().filter_map(|words| arguments(&words, program));
        calls.extend(found);
    };
    for (at, block) in text.split("```").enumerate() {
        match (at % 2, block.strip_prefix("sh\n")) {
            (0, _) => {
                // A span goes over a line's end, never over a paragraph's.
                for paragraph in block.split("\n\n") {
                    let spans = paragraph.split('`').skip(1).step_by(2);
                    let spans = spans.map(|span| span.replace('\n', " "));
                    spans.filter(|span| span.starts_with(program)).for_each(|span| take(&span));
                }
            }
            (_, Some(shell)) => shell.replace("\\\n", " ").lines().for_each(&mut take),
            _ => {}
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_found_where_they_stand() {
        let text = "`forebay ls` and `forebay_metric` and `forebay\nget URI DIR`\n\n`a\n```sh\n\
            AWS_X=y sudo forebay load s3://b/ \\\n  --only '*.json' # all\n\
            /usr/bin/forebay status > f && forebay resize --ram SIZE; other forebay\n```\n";
        let found =
            documented_calls(text, "forebay").iter().map(|call| call.join(" ")).collect::<Vec<_>>();
        let expected =
            ["ls", "get URI DIR", "load s3://b/ --only *.json", "status", "resize --ram 1MiB"];
        assert_eq!(found, expected);
    }
}
