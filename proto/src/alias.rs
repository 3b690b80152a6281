//! Names of revisions, and the rules by which the daemon rolls one back by itself. One type for both
//! ends, one way in.
//!
//! A name has no slash and no colon, so that it is never a URI and never a path with a folder; and
//! it begins with a letter or a digit, so that it is no flag and no hidden file. A rule reads
//! `METRIC > BOUND over WINDOW [min N]`: `load_failure_ratio > 0.05 over 10m`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::failure::{Failure, Reason};
use crate::pb;

/// Bytes of a name.
const NAME_BYTES_MAX: usize = 64;

/// What `explain` and `trace` call the load that ended last.
const RESERVED: &str = "last";

/// The windows that a rule may have.
const WINDOW_MIN: Duration = Duration::from_secs(1);
const WINDOW_MAX: Duration = Duration::from_secs(24 * 3600);

/// Loads that a rule may ask for: so many are remembered of an alias.
const LOADS_MAX: u64 = 10_000;

/// The name of an alias.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AliasName(String);

/// The text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` cannot be the name of an alias: a name is 1 to 64 of A-Z a-z 0-9 . _ -, begins with a \
     letter or a digit, and is not `last`"
)]
pub struct BadAliasName(String);

impl AliasName {
    /// Checks a name.
    pub fn parse(text: &str) -> Result<Self, BadAliasName> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let good = (1..=NAME_BYTES_MAX).contains(&text.len())
            && text.bytes().all(allowed)
            && text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && text != RESERVED;
        match good {
            true => Ok(Self(text.to_owned())),
            false => Err(BadAliasName(text.escape_debug().take(80).collect())),
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AliasName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<BadAliasName> for Failure {
    fn from(bad: BadAliasName) -> Self {
        Self::new(Reason::BadRequest, bad.to_string())
    }
}

/// What a rule looks at: measured by the daemon, of the loads of one alias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RuleMetric {
    /// Of the loads that ended, those that failed, 0 to 1. What the client did itself does not
    /// count, nor does a node that is full or shuts down.
    LoadFailureRatio,
    /// Of the same loads, those that missed their deadline, 0 to 1.
    DeadlineMissRatio,
    /// Seconds until everything was handed over, of the loads that succeeded: the median.
    LoadSecondsP50,
    /// The same: what one in a hundred exceeds.
    LoadSecondsP99,
    /// Loads that failed because bytes were wrong.
    DataLosses,
}

impl RuleMetric {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::LoadFailureRatio,
        Self::DeadlineMissRatio,
        Self::LoadSecondsP50,
        Self::LoadSecondsP99,
        Self::DataLosses,
    ];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LoadFailureRatio => "load_failure_ratio",
            Self::DeadlineMissRatio => "deadline_miss_ratio",
            Self::LoadSecondsP50 => "load_seconds_p50",
            Self::LoadSecondsP99 => "load_seconds_p99",
            Self::DataLosses => "data_losses",
        }
    }

    /// Loads that have to lie in the window, if a rule does not say.
    fn min_loads(self) -> u64 {
        match self {
            Self::DataLosses => 1,
            _ => 10,
        }
    }

    /// Whether it is a share of a whole.
    fn is_ratio(self) -> bool {
        matches!(self, Self::LoadFailureRatio | Self::DeadlineMissRatio)
    }
}

/// When the daemon rolls an alias back by itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RollbackRule {
    /// What it looks at.
    pub metric: RuleMetric,
    /// It acts when the metric is above this.
    pub bound: f64,
    /// Loads that ended longer ago do not count.
    pub window: Duration,
    /// So many loads have to lie in the window before it acts.
    pub min_loads: u64,
}

/// The text, or the message, is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no rollback rule: {0}; write METRIC > BOUND over WINDOW [min N], for example \
     'load_failure_ratio > 0.05 over 10m'"
)]
pub struct BadRule(String);

impl RollbackRule {
    fn checked(metric: &str, bound: f64, window: Duration, min: u64) -> Result<Self, BadRule> {
        let Some(metric) = RuleMetric::ALL.into_iter().find(|known| known.as_str() == metric)
        else {
            let known = RuleMetric::ALL.map(RuleMetric::as_str).join(", ");
            let shown: String = metric.escape_debug().take(40).collect();
            return Err(BadRule(format!("`{shown}` is none of its metrics: {known}")));
        };
        if !(bound.is_finite() && bound >= 0.0) {
            return Err(BadRule("the bound is no number from 0 on".into()));
        }
        if metric.is_ratio() && bound >= 1.0 {
            let what = format!("{} is never above {bound}", metric.as_str());
            return Err(BadRule(what));
        }
        if !(WINDOW_MIN..=WINDOW_MAX).contains(&window) {
            return Err(BadRule("the window is not from 1s to 24h".into()));
        }
        if min > LOADS_MAX {
            return Err(BadRule(format!("more than {LOADS_MAX} loads are not remembered")));
        }
        let min_loads = if min == 0 { metric.min_loads() } else { min };
        Ok(Self { metric, bound, window, min_loads })
    }

    /// Reads a rule as people write it.
    pub fn parse(text: &str) -> Result<Self, BadRule> {
        let spaced = text.replace('>', " > ");
        let words: Vec<&str> = spaced.split_whitespace().collect();
        let (metric, bound, window, min) = match words.as_slice() {
            [metric, ">", bound, "over", window] => (metric, bound, window, None),
            [metric, ">", bound, "over", window, "min", min] => (metric, bound, window, Some(min)),
            _ => return Err(BadRule("it does not read like one".into())),
        };
        let bound = bound.parse().map_err(|_| BadRule("the bound is no number".into()))?;
        let window = span(window).ok_or_else(|| BadRule("the window is no duration".into()))?;
        let min = min.map_or(Ok(0), |min| match min.parse::<u64>() {
            Ok(min @ 1..) => Ok(min),
            _ => Err(BadRule("what follows `min` is no number of loads".into())),
        })?;
        Self::checked(metric, bound, window, min)
    }

    /// Checks a message.
    pub fn receive(rule: &pb::RollbackRule) -> Result<Self, BadRule> {
        let window = Duration::try_from_secs_f64(rule.window_seconds)
            .map_err(|_| BadRule("the window is no duration".into()))?;
        Self::checked(&rule.metric, rule.bound, window, rule.min_loads)
    }

    /// The message.
    #[must_use]
    pub fn to_wire(&self) -> pb::RollbackRule {
        pb::RollbackRule {
            metric: self.metric.as_str().to_owned(),
            bound: self.bound,
            window_seconds: self.window.as_secs_f64(),
            min_loads: self.min_loads,
        }
    }
}

impl FromStr for RollbackRule {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Self, BadRule> {
        Self::parse(text)
    }
}

impl fmt::Display for RollbackRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { metric, bound, window, min_loads } = self;
        let seconds = window.as_secs_f64();
        write!(f, "{} > {bound} over {seconds}s min {min_loads}", metric.as_str())
    }
}

impl From<BadRule> for Failure {
    fn from(bad: BadRule) -> Self {
        Self::new(Reason::BadRequest, bad.to_string())
    }
}

/// `90s`, `10m`, `1.5h`.
fn span(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * factor).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_never_a_uri_or_a_path() {
        for good in ["a", "prod", "llama-3.1-8b", "0", "A_b.c-d", &"x".repeat(64)] {
            assert_eq!(AliasName::parse(good).unwrap().as_str(), good);
        }
        let long = "x".repeat(65);
        for bad in [
            "", "last", ".", "..", ".hidden", "-flag", "_x", "a/b", "/a", "a:b", "s3://b/k", "a b",
            "ü", "a\n", "~", "a\\b", &long,
        ] {
            let error = AliasName::parse(bad).unwrap_err().to_string();
            assert!(error.contains("1 to 64 of"), "{bad}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn rules_read_as_they_are_written() {
        let rule = RollbackRule::parse("load_failure_ratio > 0.05 over 10m").unwrap();
        assert_eq!(rule.metric, RuleMetric::LoadFailureRatio);
        assert_eq!((rule.bound, rule.window, rule.min_loads), (0.05, Duration::from_secs(600), 10));
        let rule = RollbackRule::parse("  data_losses>0 over 1.5h min 3 ").unwrap();
        assert_eq!((rule.bound, rule.window.as_secs(), rule.min_loads), (0.0, 5400, 3));
        assert_eq!(RollbackRule::parse("data_losses > 0 over 1h").unwrap().min_loads, 1);
        for metric in RuleMetric::ALL {
            let text = format!("{} > 0.5 over 90s min 7", metric.as_str());
            let rule = RollbackRule::parse(&text).unwrap();
            assert_eq!(rule.to_string(), text);
            assert_eq!(RollbackRule::receive(&rule.to_wire()).unwrap(), rule);
        }
    }

    #[test]
    fn what_is_no_rule_says_why() {
        for (text, why) in [
            ("", "does not read"),
            ("load_failure_ratio", "does not read"),
            ("load_failure_ratio < 0.05 over 10m", "does not read"),
            ("load_failure_ratio > 0.05 over 10m min", "does not read"),
            ("load_failure_ratio >= 0.05 over 10m", "does not read"),
            ("errors > 0.05 over 10m", "load_failure_ratio, deadline_miss_ratio"),
            ("load_failure_ratio > five over 10m", "bound"),
            ("load_failure_ratio > -1 over 10m", "bound"),
            ("load_failure_ratio > NaN over 10m", "bound"),
            ("load_failure_ratio > 1 over 10m", "never above 1"),
            ("load_failure_ratio > 0.05 over 10", "window"),
            ("load_failure_ratio > 0.05 over 10d", "window"),
            ("load_failure_ratio > 0.05 over 500ms", "window"),
            ("load_failure_ratio > 0.05 over 25h", "window"),
            ("load_failure_ratio > 0.05 over 10m min 0", "min"),
            ("load_failure_ratio > 0.05 over 10m min 10001", "10000"),
        ] {
            let error = RollbackRule::parse(text).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("for example"), "{text}: {error}");
        }
        let nothing = pb::RollbackRule::default();
        RollbackRule::receive(&nothing).unwrap_err();
        let endless = pb::RollbackRule { window_seconds: f64::NAN, ..nothing };
        RollbackRule::receive(&endless).unwrap_err();
    }
}
