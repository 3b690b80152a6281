//! Workload classes: what a load is for, as its client says.
//!
//! The settings list the names that there are, so that metrics have a bounded number of them: what
//! is not listed is `other`, and who says nothing is `none`.

use std::sync::Arc;

/// A load that names no class.
pub(crate) const NONE: &str = "none";
/// One whose class is not listed.
pub(crate) const OTHER: &str = "other";

/// Names that the settings may list.
pub(crate) const WORKLOADS_MAX: usize = 16;

/// The longest name.
const NAME_BYTES_MAX: usize = 64;

/// The classes that there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Workloads(Vec<Arc<str>>);

/// One of them, `none` or `other`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Workload(Arc<str>);

impl Workloads {
    /// Takes names of lower-case letters, digits, `_` and `-`.
    pub(crate) fn parse<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
        let mut taken: Vec<Arc<str>> = Vec::new();
        for name in names {
            if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(plain) {
                return Err(format!("{name:?} is not 1 to {NAME_BYTES_MAX} of a-z 0-9 _ -"));
            }
            if [NONE, OTHER].contains(&name) {
                return Err(format!("{name:?} has a meaning already"));
            }
            if taken.iter().any(|known| **known == *name) {
                return Err(format!("{name:?} is listed twice"));
            }
            taken.push(name.into());
        }
        if taken.len() > WORKLOADS_MAX {
            return Err(format!("has {} names, at most {WORKLOADS_MAX} are possible", taken.len()));
        }
        Ok(Self(taken))
    }

    /// The class of a load whose client said `given`.
    pub(crate) fn class_of(&self, given: &str) -> Workload {
        let known = self.0.iter().find(|name| ***name == *given);
        let fixed = if given.is_empty() { NONE } else { OTHER };
        Workload(known.map_or_else(|| fixed.into(), Arc::clone))
    }

    /// The names.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.0.iter().map(|name| &**name).collect()
    }
}

impl Workload {
    /// Its name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Workload {
    fn default() -> Self {
        Self(NONE.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_classes_than_are_listed() {
        let workloads = Workloads::parse(["serving", "training"]).unwrap();
        let class = |given: &str| workloads.class_of(given).as_str().to_owned();
        assert_eq!(class("serving"), "serving");
        assert_eq!(class("Serving"), OTHER);
        assert_eq!(class(&"x".repeat(10_000)), OTHER);
        assert_eq!(class(""), NONE);
        assert_eq!(Workloads::default().class_of("serving").as_str(), OTHER);
    }

    #[test]
    fn names_are_plain_few_and_new() {
        for bad in [&["other"][..], &["none"], &[""], &["A"], &["a b"], &["a", "a"]] {
            Workloads::parse(bad.iter().copied()).unwrap_err();
        }
        let names: Vec<String> = (0..=WORKLOADS_MAX).map(|n| n.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        Workloads::parse(names[1..].iter().copied()).unwrap();
        Workloads::parse(names).unwrap_err();
    }
}
