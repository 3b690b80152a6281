//! A mark that every credential of tests has in it, and the search for it in whatever was told.
//!
//! A secret can leave a process in another form than it came in: as base64 of a header, as hex or as
//! the decimal bytes of a `Debug`. The search knows those. It looks for the mark and not for whole
//! secrets, so that a part of one is found as well.

use std::fmt::Write;
use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// What every credential of tests has in it, and nothing else.
pub const CANARY: &str = "Kanarienvogel";

/// Bytes of an excerpt, before and after what was found.
const AROUND: usize = 160;

/// The forms in which the mark can be told.
fn forms() -> &'static [String] {
    static FORMS: OnceLock<Vec<String>> = OnceLock::new();
    FORMS.get_or_init(|| {
        let mut forms = vec![CANARY.to_owned(), CANARY.to_lowercase()];
        // Base64 of a text with the mark in it: what does not depend on what stands beside it.
        for before in 0..3 {
            let text = STANDARD.encode([&b"___"[..before], CANARY.as_bytes()].concat());
            let whole = (before + CANARY.len()) / 3 * 4;
            forms.push(text[(before * 8).div_ceil(6)..whole].to_owned());
        }
        let mut hex = String::new();
        for byte in CANARY.bytes() {
            write!(hex, "{byte:02x}").ok();
        }
        forms.extend([hex.to_uppercase(), hex]);
        let decimal: Vec<_> = CANARY.bytes().map(|byte| byte.to_string()).collect();
        forms.extend([decimal.join(", "), decimal.join(",")]);
        forms
    })
}

/// Where the mark, or one of `others`, is told in some form: the text around it.
#[must_use]
pub fn canary_in(told: &[u8], others: &[String]) -> Option<String> {
    let told = String::from_utf8_lossy(told);
    let at = forms().iter().chain(others).find_map(|form| told.find(form.as_str()))?;
    let from = told.floor_char_boundary(at.saturating_sub(AROUND));
    let to = told.ceil_char_boundary((at + AROUND).min(told.len()));
    Some(told[from..to].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_in_every_form_and_place() {
        for before in ["", "a", "ab", "abc", "Basic user:"] {
            let secret = format!("{before}{CANARY}-and-more");
            let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
            for told in [
                secret.clone(),
                format!("?sig={secret}&x"),
                format!("{:?}", secret.as_bytes()),
                STANDARD.encode(&secret),
                hex.clone(),
                hex.to_uppercase(),
                secret.to_lowercase(),
                serde_json::to_string(secret.as_bytes()).unwrap(),
            ] {
                let told = format!("{}{told}\u{fffd}", "\u{e9}".repeat(200));
                assert!(canary_in(told.as_bytes(), &[]).is_some(), "{told}");
            }
        }
    }

    #[test]
    fn what_is_none_is_not_found() {
        for told in [&b""[..], b"\xff\x00Kanarienvoge", b"a log line", b"S2FuYXJp"] {
            assert_eq!(canary_in(told, &[]), None);
        }
        let others = ["blue".to_owned()];
        assert_eq!(canary_in(b"it is blue", &others).unwrap(), "it is blue");
    }
}
