//! Text on its way through URLs and XML.

use std::fmt::Write;

/// Text as XML carries it.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            control if control < ' ' => push(&mut out, format_args!("&#{};", u32::from(control))),
            other => out.push(other),
        }
    }
    out
}

/// A key as a URL path carries it: unreserved letters and slashes stand as they are.
pub(crate) fn encode(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(char::from(byte));
            }
            _ => push(&mut out, format_args!("%{byte:02X}")),
        }
    }
    out
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    // A String takes whatever it is given.
    out.write_fmt(text).ok();
}

/// A percent-encoded path, decoded; bytes that are not UTF-8 become U+FFFD.
pub(crate) fn decode(encoded: &str) -> String {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let [byte, tail @ ..] = rest {
        let escaped = if *byte == b'%' { escaped(tail) } else { None };
        bytes.push(escaped.unwrap_or(*byte));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The byte that the two hex digits at the start of `digits` name.
fn escaped(digits: &[u8]) -> Option<u8> {
    let nibble = |digit: &u8| char::from(*digit).to_digit(16);
    let value = nibble(digits.first()?)? * 16 + nibble(digits.get(1)?)?;
    u8::try_from(value).ok()
}

/// The decoded value of a query parameter.
pub(crate) fn query(uri: &http::Uri, name: &str) -> Option<String> {
    uri.query()?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| decode(&value.replace('+', " ")))
    })
}

/// The decoded first segment of a path, and the decoded rest.
pub(crate) fn bucket_and_key(uri: &http::Uri) -> (String, String) {
    let path = uri.path();
    let path = path.strip_prefix('/').unwrap_or(path);
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    (decode(bucket), decode(key))
}

/// The texts of the elements of a name, in order; they have no others in them.
pub(crate) fn elements<'a>(xml: &'a str, name: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let parts = xml.split(&*open).skip(1);
    parts.filter_map(|part| part.split_once(&*close).map(|(text, _)| text)).collect()
}

/// Numbers and tags of the parts that a `CompleteMultipartUpload` lists.
pub(crate) fn listed_parts(xml: &[u8]) -> Option<Vec<(u32, String)>> {
    let xml = std::str::from_utf8(xml).ok()?;
    let part = |part: &str| {
        let number = elements(part, "PartNumber").first()?.parse().ok()?;
        let tag = elements(part, "ETag").first()?.replace("&quot;", "");
        Some((number, tag.trim_matches('"').to_owned()))
    };
    elements(xml, "Part").into_iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_a_url() {
        for key in ["a/b.c", "with space", "100%", "%41", "é€/x+y&z=1?#", "\u{1}"] {
            assert_eq!(decode(&encode(key)), key);
        }
    }

    #[test]
    fn parts_are_read_off_their_list() {
        let part = |number, tag| format!("<Part><PartNumber>{number}</PartNumber>{tag}</Part>");
        let tags = ["<ETag>\"a\"</ETag>", "<ETag>&quot;b&quot;</ETag>"];
        let xml = format!("<C>{}{}</C>", part(1, tags[0]), part(2, tags[1]));
        let listed = listed_parts(xml.as_bytes()).unwrap();
        assert_eq!(listed, [(1, "a".to_owned()), (2, "b".to_owned())]);
        assert_eq!(listed_parts(part(3, "").as_bytes()), None);
    }

    #[test]
    fn broken_escapes_stand_as_they_are() {
        assert_eq!(decode("%"), "%");
        assert_eq!(decode("%4"), "%4");
        assert_eq!(decode("%zz%41"), "%zzA");
    }

    #[test]
    fn query_values_are_found_and_decoded() {
        let uri: http::Uri = "/b?list-type=2&prefix=a%2Fb+c&x".parse().unwrap();
        assert_eq!(query(&uri, "prefix").as_deref(), Some("a/b c"));
        assert_eq!(query(&uri, "x").as_deref(), Some(""));
        assert_eq!(query(&uri, "list"), None);
    }

    #[test]
    fn xml_has_no_raw_markup() {
        assert_eq!(escape("a<b>&\"\u{2}"), "a&lt;b&gt;&amp;&quot;&#2;");
    }
}
