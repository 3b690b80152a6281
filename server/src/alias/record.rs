//! What an alias is: a name, the revision it stands for, the one before, its rule, its history. Pure:
//! every change is a function of the record and the time, and the store writes what comes out.
//!
//! ```text
//!   set X:        current = X, previous = the current one       (X was current: only the rule changes)
//!   rollback:     current and previous change places
//!   by the rule:  the same, and the rule has acted: it never acts again
//! ```
//!
//! Every switch has a number, the generation. A load notes the one it began with, so that what is
//! measured of it counts for the revision that it was of.

use forebay_proto::{Failure, Reason, RollbackRule, RuleMetric};
use serde::{Deserialize, Serialize};

use std::time::Duration;

use crate::resolve::{Manifest, Revision};

/// Events that are kept of an alias.
pub(crate) const HISTORY_MAX: usize = 32;

/// A revision that an alias stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Target {
    /// Where it was found, without a query.
    pub(crate) uri: String,
    /// Hex digits.
    pub(crate) revision: String,
    /// Of all objects.
    pub(crate) bytes: u64,
    /// How many objects.
    pub(crate) objects: u64,
}

impl Target {
    /// What a manifest describes.
    pub(crate) fn of(manifest: &Manifest) -> Self {
        Self {
            uri: manifest.uri().to_owned(),
            revision: hex(manifest.revision()),
            bytes: manifest.bytes(),
            objects: manifest.objects().len() as u64,
        }
    }

    /// The revision; none if a hand wrote the record.
    pub(crate) fn revision(&self) -> Option<Revision> {
        let hash = blake3::Hash::from_hex(&self.revision).ok()?;
        Some(Revision(*hash.as_bytes()))
    }

    /// As it is shown.
    pub(crate) fn shown(&self) -> String {
        format!("b3:{}", self.revision)
    }
}

/// The digits of a revision.
pub(crate) fn hex(revision: Revision) -> String {
    blake3::Hash::from_bytes(revision.0).to_hex().to_string()
}

/// What became of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RuleState {
    /// It acts when its metric is above its bound.
    Armed,
    /// It has acted.
    Acted,
    /// There is no revision to roll back to.
    Idle,
    /// A person has switched the alias since.
    Off,
}

impl RuleState {
    /// Its name.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Armed => "armed",
            Self::Acted => "acted",
            Self::Idle => "idle",
            Self::Off => "off",
        }
    }
}

/// A rule and its state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RuleRecord {
    metric: String,
    bound: f64,
    window: Duration,
    min_loads: u64,
    /// Whether it still watches.
    pub(crate) state: RuleState,
    /// What was measured when it acted.
    pub(crate) acted_at: Option<f64>,
}

impl RuleRecord {
    fn new(rule: RollbackRule, state: RuleState) -> Self {
        Self {
            metric: rule.metric.as_str().to_owned(),
            bound: rule.bound,
            window: rule.window,
            min_loads: rule.min_loads,
            state,
            acted_at: None,
        }
    }

    /// The rule; none if this daemon does not know its metric.
    pub(crate) fn rule(&self) -> Option<RollbackRule> {
        let metric = RuleMetric::ALL.into_iter().find(|known| known.as_str() == self.metric)?;
        let (bound, window, min_loads) = (self.bound, self.window, self.min_loads);
        Some(RollbackRule { metric, bound, window, min_loads })
    }
}

/// How an alias came to stand for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EventKind {
    /// It was set.
    Set,
    /// Somebody rolled it back.
    Rollback,
    /// Its rule did.
    Rule,
}

impl EventKind {
    /// Its name.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Rollback => "rollback",
            Self::Rule => "rule",
        }
    }
}

/// One switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Event {
    /// Since the epoch.
    pub(crate) at: Duration,
    /// What did it.
    pub(crate) kind: EventKind,
    /// To where.
    pub(crate) uri: String,
    /// To which revision.
    pub(crate) revision: String,
    /// From which.
    pub(crate) from: Option<String>,
    /// Why, if a rule did it.
    pub(crate) why: String,
}

/// See the module's head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// The alias.
    pub(crate) name: String,
    /// The domain that set it, where there are several.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) domain: String,
    /// How often it was switched.
    pub(crate) generation: u64,
    /// What it stands for.
    pub(crate) current: Target,
    /// What it stood for before.
    pub(crate) previous: Option<Target>,
    /// When it was switched last, since the epoch.
    pub(crate) since: Duration,
    /// When it is to be rolled back.
    pub(crate) rule: Option<RuleRecord>,
    /// The oldest first.
    pub(crate) history: Vec<Event>,
}

/// Who rolls back.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum By {
    /// A person, or a person's script.
    Caller,
    /// The rule, which measured this.
    Rule {
        /// The value of its metric.
        value: f64,
        /// In a sentence.
        why: String,
    },
}

impl Record {
    /// A new alias.
    pub(crate) fn new(
        name: &str,
        current: Target,
        rule: Option<RollbackRule>,
        now: Duration,
    ) -> Self {
        let mut record = Self {
            name: name.to_owned(),
            domain: String::new(),
            generation: 1,
            current,
            previous: None,
            since: now,
            rule: rule.map(|rule| RuleRecord::new(rule, RuleState::Idle)),
            history: Vec::new(),
        };
        record.note(EventKind::Set, None, String::new());
        record
    }

    /// The same, of the domain that signs so.
    #[must_use]
    pub(crate) fn of(self, domain: &str) -> Self {
        Self { domain: domain.to_owned(), ..self }
    }

    /// It stands for `target` from now on. If it did before, only its rule is another one.
    pub(crate) fn set(&self, target: Target, rule: Option<RollbackRule>, now: Duration) -> Self {
        let mut record = self.clone();
        if target.revision == self.current.revision {
            record.current = target;
        } else {
            record.previous = Some(std::mem::replace(&mut record.current, target));
            record.generation += 1;
            record.since = now;
            record.note(EventKind::Set, Some(&self.current), String::new());
        }
        let state = if record.previous.is_some() { RuleState::Armed } else { RuleState::Idle };
        record.rule = rule.map(|rule| RuleRecord::new(rule, state));
        record
    }

    /// It stands for what it stood for before.
    pub(crate) fn rolled_back(&self, by: &By, now: Duration) -> Result<Self, Failure> {
        let Some(previous) = self.previous.clone() else {
            let message = format!("{} has stood for no other revision", self.name);
            return Err(Failure::new(Reason::NoPreviousRevision, message));
        };
        let mut record = self.clone();
        record.previous = Some(std::mem::replace(&mut record.current, previous));
        record.generation += 1;
        record.since = now;
        let (kind, why) = match by {
            By::Caller => (EventKind::Rollback, String::new()),
            By::Rule { why, .. } => (EventKind::Rule, why.clone()),
        };
        if let Some(rule) = &mut record.rule {
            match by {
                By::Rule { value, .. } => {
                    rule.state = RuleState::Acted;
                    rule.acted_at = Some(*value);
                }
                By::Caller if rule.state != RuleState::Acted => rule.state = RuleState::Off,
                By::Caller => {}
            }
        }
        record.note(kind, Some(&self.current), why);
        Ok(record)
    }

    fn note(&mut self, kind: EventKind, from: Option<&Target>, why: String) {
        let Target { uri, revision, .. } = self.current.clone();
        let from = from.map(|target| target.revision.clone());
        self.history.push(Event { at: self.since, kind, uri, revision, from, why });
        let surplus = self.history.len().saturating_sub(HISTORY_MAX);
        self.history.drain(..surplus);
    }

    /// The revisions that have to stay for it.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &Target> {
        std::iter::once(&self.current).chain(&self.previous)
    }

    /// The rule, while it watches.
    pub(crate) fn armed(&self) -> Option<RollbackRule> {
        self.rule.as_ref().filter(|rule| rule.state == RuleState::Armed)?.rule()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn target(n: u8) -> Target {
        let revision = hex(Revision([n; 32]));
        Target { uri: format!("s3://b/{n}/"), revision, bytes: 10, objects: 1 }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn rule() -> RollbackRule {
        RollbackRule::parse("data_losses > 0 over 1h").unwrap()
    }

    #[test]
    fn a_switch_keeps_the_one_before_and_a_rollback_changes_places() {
        let one = Record::new("a", target(1), None, at(1));
        assert_eq!(
            one.rolled_back(&By::Caller, at(2)).unwrap_err().reason,
            Reason::NoPreviousRevision
        );
        let two = one.set(target(2), None, at(2));
        assert_eq!((&two.current, &two.previous), (&target(2), &Some(target(1))));
        let three = two.set(target(3), None, at(3));
        assert_eq!((&three.current, &three.previous), (&target(3), &Some(target(2))));
        let back = three.rolled_back(&By::Caller, at(4)).unwrap();
        assert_eq!((&back.current, &back.previous), (&target(2), &Some(target(3))));
        assert_eq!((back.generation, back.since), (4, at(4)));
        let again = back.rolled_back(&By::Caller, at(5)).unwrap();
        assert_eq!((again.current, again.previous), (three.current, three.previous));
        let kinds: Vec<_> = again.history.iter().map(|event| event.kind).collect();
        use EventKind::{Rollback, Set};
        assert_eq!(kinds, [Set, Set, Set, Rollback, Rollback]);
        assert_eq!(again.history[3].from, Some(target(3).revision));
    }

    #[test]
    fn setting_it_to_what_it_is_changes_the_rule_only() {
        let two = Record::new("a", target(1), None, at(1)).set(target(2), None, at(2));
        let same = two.set(target(2), Some(rule()), at(3));
        assert_eq!((same.generation, same.since, same.history.len()), (2, at(2), 2));
        assert_eq!((&same.previous, same.armed()), (&Some(target(1)), Some(rule())));
        assert_eq!(same.set(target(2), None, at(4)).armed(), None);
    }

    #[test]
    fn a_rule_needs_something_to_go_back_to_and_acts_once() {
        let first = Record::new("a", target(1), Some(rule()), at(1));
        assert_eq!((first.armed(), first.rule.as_ref().unwrap().state), (None, RuleState::Idle));
        let armed = first.set(target(2), Some(rule()), at(2));
        assert_eq!(armed.armed(), Some(rule()));
        let by = By::Rule { value: 2.0, why: "two".into() };
        let acted = armed.rolled_back(&by, at(3)).unwrap();
        let state = acted.rule.clone().unwrap();
        assert_eq!(
            (acted.armed(), state.state, state.acted_at),
            (None, RuleState::Acted, Some(2.0))
        );
        assert_eq!(acted.history.last().unwrap().why, "two");
        let forward = acted.rolled_back(&By::Caller, at(4)).unwrap();
        assert_eq!(forward.armed(), None, "not again");
        let off = armed.rolled_back(&By::Caller, at(3)).unwrap();
        assert_eq!(off.rule.unwrap().state, RuleState::Off);
    }

    #[test]
    fn the_history_is_bounded() {
        let mut record = Record::new("a", target(1), None, at(0));
        for n in 0..100 {
            record = record.set(target(if n % 2 == 0 { 2 } else { 1 }), None, at(n));
        }
        assert_eq!(record.history.len(), HISTORY_MAX);
        assert_eq!((record.history[0].at, record.generation), (at(68), 101));
    }
}
