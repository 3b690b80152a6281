//! `[[domain]]`: who may share memory, and what they may use. See [`crate::domain`].
//!
//! Written down as it stands first, key by key with its line; then checked, one block against the
//! others: a uid is in one domain only unless tokens tell its processes apart, and what the domains
//! have of RAM is no more than there is.

use std::collections::BTreeMap;

use forebay_origin::OriginUri;
use toml::Spanned;
use toml::de::DeValue;

use super::raw::{known, plain};
use super::size::{Size, show_bytes};
use super::{ConfigError, SLOTS_MIN, Take, Written, bad};
use crate::admission::Lane;
use crate::domain::{DEFAULT, DOMAINS_MAX, DomainSpec, TokenHash};

/// Settings of one `[[domain]]`.
pub(crate) const DOMAIN_KEYS: [&str; 7] =
    ["name", "uids", "token_sha256", "uri_prefixes", "ram", "share", "lanes"];

/// Share of a domain that does not say one.
const SHARE: u32 = 1;

/// The largest share: sums of them stay far from where numbers end.
const SHARE_MAX: u32 = 1_000_000;

/// The longest name of a domain.
const NAME_BYTES_MAX: usize = 64;

/// One `[[domain]]` as written: each value is a list of texts, with its line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RawDomain {
    place: String,
    values: BTreeMap<String, Written<Vec<String>>>,
}

impl RawDomain {
    /// All blocks of a file; `place_of` says where a byte of it is.
    pub(super) fn read_all(
        value: &Spanned<DeValue<'_>>,
        place_of: &dyn Fn(usize) -> String,
    ) -> Result<Vec<Self>, ConfigError> {
        let place = place_of(value.span().start);
        let DeValue::Array(blocks) = value.get_ref() else {
            return Err(bad("domain", place, "is written as [[domain]], once per domain"));
        };
        if blocks.len() > DOMAINS_MAX {
            return Err(bad("domain", place, format!("has more than {DOMAINS_MAX} blocks")));
        }
        blocks.iter().map(|block| Self::read(block, place_of)).collect()
    }

    fn read(
        block: &Spanned<DeValue<'_>>,
        place_of: &dyn Fn(usize) -> String,
    ) -> Result<Self, ConfigError> {
        let place = place_of(block.span().start);
        let DeValue::Table(table) = block.get_ref() else {
            return Err(bad("domain", place, "is written as [[domain]], once per domain"));
        };
        let mut values = BTreeMap::new();
        for (key, value) in table {
            let place = place_of(key.span().start);
            let key: &str = key.get_ref();
            known(key, &DOMAIN_KEYS, &place)?;
            let texts = match value.get_ref() {
                DeValue::Array(items) => items.iter().map(|item| plain(item.get_ref())).collect(),
                single => plain(single).map(|text| vec![text]),
            };
            let problem = "is not a text, a number or a list of them";
            let value = texts.ok_or_else(|| bad(&named(key), place.clone(), problem))?;
            values.insert(key.to_owned(), Written { value, place });
        }
        Ok(Self { place, values })
    }

    /// The values of a key, as `read` makes them; none if it is not there.
    fn list<T>(
        &self,
        key: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        let Some(written) = self.values.get(key) else { return Ok(None) };
        let read: Result<Vec<T>, String> = written.value.iter().map(|text| read(text)).collect();
        read.map(Some).map_err(|problem| self.bad(key, problem))
    }

    /// The one value of a key.
    fn one<T>(
        &self,
        key: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(mut values) = self.list(key, read)? else { return Ok(None) };
        match (values.pop(), values.is_empty()) {
            (Some(value), true) => Ok(Some(value)),
            _ => Err(self.bad(key, "is one value".to_owned())),
        }
    }

    /// What is wrong with a key, where it was written or where its block begins.
    fn bad(&self, key: &str, problem: String) -> ConfigError {
        let place = self.values.get(key).map_or(&self.place, |written| &written.place);
        bad(&named(key), place.clone(), problem)
    }
}

fn named(key: &str) -> String {
    format!("domain.{key}")
}

impl Take<'_> {
    /// The domains; without blocks the one of all that may call.
    pub(super) fn domains(
        &mut self,
        (allow_uids, said): (&[u32], Option<String>),
        (ram_bytes, chunk_bytes): (u64, u64),
    ) -> Result<Vec<DomainSpec>, ConfigError> {
        let blocks = std::mem::take(&mut self.raw.domains);
        if blocks.is_empty() {
            return Ok(vec![DomainSpec {
                name: DEFAULT.into(),
                uids: allow_uids.to_vec(),
                token: None,
                uri_prefixes: Vec::new(),
                ram_bytes,
                share: SHARE,
                lanes: Lane::ALL.to_vec(),
            }]);
        }
        if let Some(place) = said {
            let problem = "contradicts [[domain]]: say in `uids` of each who may call";
            return Err(bad("allow_uids", place, problem));
        }
        let mut specs = Vec::new();
        for block in &blocks {
            let spec = read(block, ram_bytes)?;
            fits(&specs, &spec, block)?;
            specs.push(spec);
        }
        share_ram(&mut specs, &blocks, (ram_bytes, chunk_bytes))?;
        Ok(specs)
    }
}

/// One block; its RAM is 0 where it says none.
fn read(block: &RawDomain, ram_bytes: u64) -> Result<DomainSpec, ConfigError> {
    let name = block.one("name", domain_name)?;
    let name = name.ok_or_else(|| block.bad("name", "is missing".to_owned()))?;
    let uid = |text: &str| text.parse().map_err(|_nan| format!("{text:?} is no numeric uid"));
    let uids: Vec<u32> = block.list("uids", uid)?.unwrap_or_default();
    if uids.contains(&u32::MAX) {
        return Err(block.bad("uids", format!("{} is nobody's uid", u32::MAX)));
    }
    let token = block.one("token_sha256", |text| {
        let problem = "is no SHA-256 in 64 hexadecimal digits: see `sha256sum` of the token";
        TokenHash::from_hex(text).ok_or_else(|| problem.to_owned())
    })?;
    if uids.is_empty() && token.is_none() {
        let problem = "is missing or empty, and there is no `token_sha256`: nobody is in it";
        return Err(block.bad("uids", problem.to_owned()));
    }
    let ram = block.one("ram", |text| {
        let bytes = Size::parse(text).map_err(|error| error.to_string())?.of(ram_bytes);
        if bytes == 0 { Err("must be more than zero".to_owned()) } else { Ok(bytes) }
    })?;
    let share = block.one("share", |text| match text.parse() {
        Ok(share) if (1..=SHARE_MAX).contains(&share) => Ok(share),
        _ => Err(format!("is a number from 1 to {SHARE_MAX}")),
    })?;
    let lanes = block.list("lanes", |text| {
        let lane = Lane::ALL.into_iter().find(|lane| lane.as_str() == text);
        lane.ok_or_else(|| format!("{text:?} is neither interactive nor prefetch"))
    })?;
    let lanes = lanes.unwrap_or_else(|| Lane::ALL.to_vec());
    if lanes.is_empty() {
        return Err(block.bad("lanes", "is empty: it could load nothing".to_owned()));
    }
    Ok(DomainSpec {
        name: name.into(),
        uids,
        token,
        uri_prefixes: prefixes(block)?,
        ram_bytes: ram.unwrap_or(0),
        share: share.unwrap_or(SHARE),
        lanes,
    })
}

fn domain_name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    if !(1..=NAME_BYTES_MAX).contains(&text.len()) || !text.bytes().all(plain) {
        return Err(format!("{text:?} is not 1 to {NAME_BYTES_MAX} of a-z 0-9 _ -"));
    }
    match text {
        DEFAULT => Err(format!("{text:?} is the domain that there is without [[domain]]")),
        _ => Ok(text.to_owned()),
    }
}

/// Prefixes in the form in which URIs are compared with them.
fn prefixes(block: &RawDomain) -> Result<Vec<String>, ConfigError> {
    let prefixes = block.list("uri_prefixes", |text| match OriginUri::parse(text) {
        Ok(uri) if !uri.has_query() => Ok(uri.to_string()),
        Ok(_) => Err("has a query".to_owned()),
        Err(error) => Err(error.to_string()),
    })?;
    match prefixes {
        Some(prefixes) if prefixes.is_empty() => {
            let problem = "is empty: leave it out for everything, or name what it may load";
            Err(block.bad("uri_prefixes", problem.to_owned()))
        }
        prefixes => Ok(prefixes.unwrap_or_default()),
    }
}

/// Whether a caller of `spec` could be one of an earlier domain as well.
fn fits(earlier: &[DomainSpec], spec: &DomainSpec, block: &RawDomain) -> Result<(), ConfigError> {
    for other in earlier {
        if other.name == spec.name {
            return Err(block.bad("name", format!("{:?} is there twice", spec.name)));
        }
        if spec.token.is_some() && spec.token == other.token {
            let problem = format!("is that of the domain {:?}, too", other.name);
            return Err(block.bad("token_sha256", problem));
        }
        let both = spec.uids.iter().find(|uid| other.uids.contains(uid));
        if let Some(uid) = both.filter(|_| spec.token.is_none() && other.token.is_none()) {
            let problem = format!(
                "{uid} is in the domain {:?}, too: a token has to tell its processes apart",
                other.name
            );
            return Err(block.bad("uids", problem));
        }
    }
    Ok(())
}

/// Domains that say no size have what the others leave, by their shares; each has two chunks.
fn share_ram(
    specs: &mut [DomainSpec],
    blocks: &[RawDomain],
    (ram_bytes, chunk_bytes): (u64, u64),
) -> Result<(), ConfigError> {
    let least = SLOTS_MIN * chunk_bytes;
    let mut left = ram_bytes;
    for (spec, block) in specs.iter().zip(blocks) {
        left = left.checked_sub(spec.ram_bytes).ok_or_else(|| {
            let problem = format!(
                "is more than what is left of the {} of `ram`: {}",
                show_bytes(ram_bytes),
                show_bytes(left)
            );
            block.bad("ram", problem)
        })?;
    }
    let unsaid = || specs.iter().filter(|spec| spec.ram_bytes == 0);
    let shares: u64 = unsaid().map(|spec| u64::from(spec.share)).sum();
    for (spec, block) in specs.iter_mut().zip(blocks) {
        if spec.ram_bytes == 0 {
            let part = u128::from(left) * u128::from(spec.share) / u128::from(shares.max(1));
            spec.ram_bytes = u64::try_from(part).unwrap_or(left);
        }
        if spec.ram_bytes < least {
            let problem = format!(
                "would be {}: loads are lent from RAM, so a domain needs at least {} (two chunks)",
                show_bytes(spec.ram_bytes),
                show_bytes(least)
            );
            return Err(block.bad("ram", problem));
        }
    }
    Ok(())
}

/// The blocks as TOML; of a token nothing is shown.
pub(super) fn show(specs: &[DomainSpec], f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    for spec in specs.iter().filter(|spec| &*spec.name != DEFAULT) {
        let lanes: Vec<&str> = spec.lanes.iter().map(|lane| lane.as_str()).collect();
        writeln!(f, "\n[[domain]]\nname = {:?}\nuids = {:?}", spec.name, spec.uids)?;
        if spec.token.is_some() {
            writeln!(f, "# token_sha256 = ***")?;
        }
        if !spec.uri_prefixes.is_empty() {
            writeln!(f, "uri_prefixes = {}", super::quoted_list(&spec.uri_prefixes))?;
        }
        let ram = show_bytes(spec.ram_bytes);
        writeln!(f, "ram = \"{ram}\"\nshare = {}\nlanes = {lanes:?}", spec.share)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    const HASH: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    fn domains(text: &str) -> Result<Vec<DomainSpec>, String> {
        let settings = Settings::of_file("f.toml", &format!("ram = \"1GiB\"\n{text}"));
        settings.map(|settings| settings.domains).map_err(|error| error.to_string())
    }

    #[test]
    fn without_blocks_there_is_one() {
        let found = domains("allow_uids = [7]").unwrap();
        let [only] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(
            (&*only.name, only.uids.as_slice(), only.ram_bytes),
            (DEFAULT, &[7][..], 1 << 30)
        );
        assert!(only.token.is_none() && only.uri_prefixes.is_empty());
    }

    #[test]
    fn what_is_left_of_ram_goes_by_shares() {
        let text = format!(
            "[[domain]]\nname = \"a\"\nuids = [1, 2]\nram = \"50%\"\nuri_prefixes = [\"s3://m/a,b/\"]\n\
             [[domain]]\nname = \"b\"\nuids = 3\nshare = 3\nlanes = [\"prefetch\"]\n\
             [[domain]]\nname = \"c\"\nuids = [1]\ntoken_sha256 = \"{HASH}\"\n"
        );
        let found = domains(&text).unwrap();
        let sizes: Vec<u64> = found.iter().map(|spec| spec.ram_bytes >> 20).collect();
        assert_eq!(sizes, [511, 384, 128]);
        assert_eq!(found[0].uri_prefixes, ["s3://m/a,b/"]);
        assert_eq!(found[1].lanes, [Lane::Prefetch]);
        assert_eq!(found[2].token, Some(TokenHash::of(b"hello")));
        let shown = Settings::of_file("f.toml", &format!("ram = \"1GiB\"\n{text}")).unwrap();
        let shown = shown.to_string();
        assert!(!shown.contains(HASH) && shown.contains("# token_sha256 = ***"), "{shown}");
        let again = shown.replace("# token_sha256 = ***", &format!("token_sha256 = \"{HASH}\""));
        assert_eq!(Settings::of_file("g.toml", &again).unwrap().domains, found);
    }

    #[test]
    fn contradictions_are_said_with_their_line() {
        let a = "[[domain]]\nname = \"a\"\nuids = [1]\n";
        let with = |more: &str| domains(&format!("{a}{more}")).unwrap_err();
        for (more, said) in [
            ("uid = [2]\n", "f.toml:5: unknown key `uid`; the nearest valid key is `uids`"),
            (
                "[[domain]]\nname = \"b\"\nuids = [2, 1]\n",
                "f.toml:7: domain.uids: 1 is in the domain \"a\", too",
            ),
            (
                "[[domain]]\nname = \"a\"\nuids = [2]\n",
                "f.toml:6: domain.name: \"a\" is there twice",
            ),
            ("ram = \"2GiB\"\n", "f.toml:5: domain.ram: is more than what is left"),
            ("ram = \"1MiB\"\n", "f.toml:5: domain.ram: would be 1MiB"),
            (
                "ram = \"1GiB\"\n[[domain]]\nname = \"b\"\nuids = [2]\n",
                "f.toml:6: domain.ram: would be 0",
            ),
            ("share = 0\n", "f.toml:5: domain.share: is a number"),
            ("share = [1, 2]\n", "f.toml:5: domain.share: is one value"),
            ("lanes = [\"fast\"]\n", "f.toml:5: domain.lanes: \"fast\" is neither"),
            ("lanes = []\n", "f.toml:5: domain.lanes: is empty"),
            ("uri_prefixes = [\"s3://m/../x\"]\n", "f.toml:5: domain.uri_prefixes: "),
            (
                "uri_prefixes = [\"https://h/x?sig=pw\"]\n",
                "f.toml:5: domain.uri_prefixes: has a query",
            ),
            ("uri_prefixes = []\n", "f.toml:5: domain.uri_prefixes: is empty"),
            ("token_sha256 = \"secret\"\n", "f.toml:5: domain.token_sha256: is no SHA-256"),
            (
                "[[domain]]\nname = \"default\"\nuids = [2]\n",
                "f.toml:6: domain.name: \"default\" is",
            ),
            ("[[domain]]\nname = \"B\"\nuids = [2]\n", "f.toml:6: domain.name: \"B\" is not"),
            ("[[domain]]\nuids = [2]\n", "domain.name: is missing"),
            ("[[domain]]\nname = \"b\"\n", "domain.uids: is missing or empty"),
            (
                "[[domain]]\nname = \"b\"\nuids = [4294967295]\n",
                "f.toml:7: domain.uids: 4294967295",
            ),
        ] {
            let problem = with(more);
            assert!(problem.contains(said), "{problem}\nis not\n{said}");
            assert!(!problem.contains("secret") && !problem.contains("pw"), "{problem}");
        }
        let hash = format!("uids = [5]\ntoken_sha256 = \"{HASH}\"\n");
        let twice =
            domains(&format!("[[domain]]\nname = \"a\"\n{hash}[[domain]]\nname = \"b\"\n{hash}"));
        assert!(twice.unwrap_err().contains("f.toml:9: domain.token_sha256: is that of"));
        let both = domains(&format!("allow_uids = [7]\n{a}")).unwrap_err();
        assert!(both.contains("f.toml:2: allow_uids: contradicts [[domain]]"), "{both}");
        assert!(domains("domain = 3\n").unwrap_err().contains("is written as [[domain]]"));
        assert!(domains(&"[[domain]]\n".repeat(33)).unwrap_err().contains("more than 32"));
    }
}
