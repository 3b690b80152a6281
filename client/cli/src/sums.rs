//! Files of digests, as `sha256sum` writes and checks them.

use std::io::Read;
use std::path::Path;

use crate::error::CliError;

/// Bytes of such a file: some hundred thousand digests, more than the daemon takes.
const BYTES_MAX: u64 = 16 << 20;

/// The keys and digests of a file; `-` is stdin. Every line has to be one, but for empty lines and
/// comments.
pub(crate) fn read(path: &Path) -> Result<Vec<(String, [u8; 32])>, CliError> {
    let shown = path.display();
    let mut bytes = Vec::new();
    let read = match path == Path::new("-") {
        true => std::io::stdin().lock().take(BYTES_MAX + 1).read_to_end(&mut bytes),
        false => std::fs::File::open(path)
            .and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut bytes)),
    };
    read.map_err(|error| CliError::local(format!("read the digests in {shown}"), error))?;
    let bad = |problem: String| CliError::BadSums { file: shown.to_string(), problem };
    if bytes.len() as u64 > BYTES_MAX {
        return Err(bad(format!("it has more than {BYTES_MAX} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|_other| bad("it is not UTF-8".into()))?;
    let sums = parse(&text).map_err(|line| {
        bad(format!("line {line} is not 64 hex digits, two spaces and an object's key"))
    })?;
    if sums.is_empty() {
        return Err(bad("there is no digest in it".into()));
    }
    Ok(sums)
}

/// What a text says, or the number of its first line that says nothing.
fn parse(text: &str) -> Result<Vec<(String, [u8; 32])>, usize> {
    let mut sums = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        sums.push(digest(line).ok_or(number + 1)?);
    }
    Ok(sums)
}

fn digest(line: &str) -> Option<(String, [u8; 32])> {
    let (escaped, line) = match line.strip_prefix('\\') {
        Some(rest) => (true, rest),
        None => (false, line),
    };
    let (digits, key) = line.split_at_checked(64)?;
    let key = key.strip_prefix("  ").or_else(|| key.strip_prefix(" *"))?;
    let key = key.strip_prefix("./").unwrap_or(key);
    let key = if escaped { unescape(key)? } else { key.to_owned() };
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    (!key.is_empty()).then_some((key, digest))
}

fn unescape(key: &str) -> Option<String> {
    let mut plain = String::new();
    let mut letters = key.chars();
    while let Some(letter) = letters.next() {
        plain.push(match letter {
            '\\' => match letters.next()? {
                'n' => '\n',
                'r' => '\r',
                '\\' => '\\',
                _ => return None,
            },
            letter => letter,
        });
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn what_forebay_and_sha256sum_write_is_read() {
        let sha256 = "0a".repeat(32);
        for key in ["a b.bin", "sub/c", "odd\\key\nwith\rall"] {
            let line = Digest { key: key.into(), sha256: sha256.clone() }.line();
            assert_eq!(parse(&line), Ok(vec![(key.to_owned(), [10; 32])]));
        }
        let text = format!("# of today\n\n{sha256} *./x\r\n");
        assert_eq!(parse(&text), Ok(vec![("x".to_owned(), [10; 32])]));
    }

    #[test]
    fn the_first_bad_line_is_named() {
        let good = format!("{}  x\n", "0a".repeat(32));
        for bad in
            ["x", "0a  x", &"zz".repeat(32), &format!("{}  ", "0a".repeat(32)), &"é".repeat(64)]
        {
            assert_eq!(parse(&format!("{good}{bad}\n")), Err(2), "{bad}");
        }
    }
}
