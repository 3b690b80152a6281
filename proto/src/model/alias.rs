//! Names of revisions.

use std::time::Duration;

use super::{BytesByTier, Malformed, Revision, required, span};
use crate::alias::RollbackRule;
use crate::pb;

/// A revision that an alias stands for, or stood for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasRevision {
    /// Its URI, without a query.
    pub uri: String,
    /// The revision.
    pub revision: Revision,
    /// Size of the checkpoint.
    pub bytes: u64,
    /// Objects in the manifest.
    pub object_count: u64,
    /// Bytes of it that the NVMe tier holds.
    pub nvme_bytes: u64,
    /// Why it cannot be loaded, if it cannot.
    pub damaged: Option<String>,
}

impl AliasRevision {
    fn receive(revision: pb::AliasRevision) -> Result<Self, Malformed> {
        let pb::AliasRevision { uri, revision, bytes, object_count, nvme_bytes, damaged } =
            revision;
        Ok(Self {
            uri,
            revision: Revision::receive("AliasRevision", revision)?,
            bytes,
            object_count,
            nvme_bytes,
            damaged: Some(damaged).filter(|why| !why.is_empty()),
        })
    }

    /// Bytes of it that would have to be fetched.
    #[must_use]
    pub fn missing_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.nvme_bytes)
    }
}

/// A rule and what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct AliasRule {
    /// The rule.
    pub rule: RollbackRule,
    /// `armed`, `acted`, `idle` (there is nothing to roll back to) or `off` (a person switched
    /// since).
    pub state: String,
    /// Loads in its window now.
    pub loads: u64,
    /// The metric: now if it is armed, when it acted if it did.
    pub value: Option<f64>,
}

/// One switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasEvent {
    /// Since the epoch.
    pub at: Duration,
    /// `set`, `rollback` or `rule`.
    pub kind: String,
    /// To where.
    pub uri: String,
    /// To which revision.
    pub revision: Revision,
    /// From which; none if the alias was new.
    pub from: Option<Revision>,
    /// Why, if a rule did it.
    pub why: Option<String>,
}

impl AliasEvent {
    fn receive(event: pb::AliasEvent) -> Result<Self, Malformed> {
        const MESSAGE: &str = "AliasEvent";
        let pb::AliasEvent { unix_seconds, kind, uri, revision, from_revision, why } = event;
        let from = Some(from_revision).filter(|from| !from.is_empty());
        Ok(Self {
            at: span(MESSAGE, "unix_seconds", unix_seconds)?,
            kind,
            uri,
            revision: Revision::receive(MESSAGE, revision)?,
            from: from.map(|from| Revision::receive(MESSAGE, from)).transpose()?,
            why: Some(why).filter(|why| !why.is_empty()),
        })
    }
}

/// A name and what it stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct Alias {
    /// The name.
    pub name: String,
    /// What it stands for.
    pub current: AliasRevision,
    /// What a rollback goes back to, if there is something.
    pub previous: Option<AliasRevision>,
    /// When it was switched last, since the epoch.
    pub since: Duration,
    /// When the daemon rolls it back by itself, if it may.
    pub rule: Option<AliasRule>,
    /// Its last switches, the oldest first; none in a status.
    pub history: Vec<AliasEvent>,
    /// What another call is setting it to.
    pub setting: Option<String>,
}

impl Alias {
    /// Checks the message.
    pub fn receive(alias: pb::Alias) -> Result<Self, Malformed> {
        const MESSAGE: &str = "Alias";
        let rule = alias.rule.map(|rule| {
            let rule = RollbackRule::receive(&rule)
                .map_err(|bad| Malformed::new(MESSAGE, bad.to_string()))?;
            let value = alias.rule_value.filter(|value| value.is_finite());
            Ok(AliasRule { rule, state: alias.rule_state, loads: alias.rule_loads, value })
        });
        Ok(Self {
            name: alias.name,
            current: AliasRevision::receive(required(MESSAGE, alias.current)?)?,
            previous: alias.previous.map(AliasRevision::receive).transpose()?,
            since: span(MESSAGE, "since_unix_seconds", alias.since_unix_seconds)?,
            rule: rule.transpose()?,
            history: alias
                .history
                .into_iter()
                .map(AliasEvent::receive)
                .collect::<Result<_, _>>()?,
            setting: Some(alias.setting).filter(|setting| !setting.is_empty()),
        })
    }
}

/// How far the setting of an alias is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasProgress {
    /// `store` or `check`.
    pub step: String,
    /// What it is set to.
    pub revision: Revision,
    /// Bytes of this step that are done.
    pub done_bytes: u64,
    /// Bytes there are.
    pub total_bytes: u64,
}

/// What came of setting an alias.
#[derive(Debug, Clone, PartialEq)]
pub struct AliasReport {
    /// The alias now.
    pub alias: Alias,
    /// Whether it stood for something else before.
    pub switched: bool,
    /// Where what had to be stored came from.
    pub bytes_by_tier: BytesByTier,
    /// Bytes fetched for it.
    pub origin_bytes: u64,
    /// Bytes read again from the NVMe tier and found to be right.
    pub checked_bytes: u64,
    /// From the request to the end.
    pub wall: Duration,
}

/// What the setting of an alias says while it runs.
#[derive(Debug, Clone, PartialEq)]
pub enum SetAliasEvent {
    /// How far it is.
    Progress(AliasProgress),
    /// It is set; nothing follows.
    Report(Box<AliasReport>),
}

impl SetAliasEvent {
    /// The report, if this is it.
    #[must_use]
    pub fn into_report(self) -> Option<AliasReport> {
        match self {
            Self::Progress(_) => None,
            Self::Report(report) => Some(*report),
        }
    }

    /// Checks the message.
    pub fn receive(response: pb::SetAliasResponse) -> Result<Self, Malformed> {
        const MESSAGE: &str = "SetAliasResponse";
        Ok(match required(MESSAGE, response.event)? {
            pb::set_alias_response::Event::Progress(progress) => {
                let pb::SetAliasProgress { step, revision, done_bytes, total_bytes } = progress;
                let revision = Revision::receive(MESSAGE, revision)?;
                Self::Progress(AliasProgress { step, revision, done_bytes, total_bytes })
            }
            pb::set_alias_response::Event::Report(report) => Self::Report(Box::new(AliasReport {
                alias: Alias::receive(required(MESSAGE, report.alias)?)?,
                switched: report.switched,
                bytes_by_tier: BytesByTier::receive(report.bytes_by_tier),
                origin_bytes: report.origin_bytes,
                checked_bytes: report.checked_bytes,
                wall: span(MESSAGE, "wall_seconds", report.wall_seconds)?,
            })),
        })
    }
}

/// What a rollback did.
#[derive(Debug, Clone, PartialEq)]
pub struct RolledBack {
    /// The alias now.
    pub alias: Alias,
    /// How long the daemon took.
    pub wall: Duration,
}

impl RolledBack {
    /// Checks the message.
    pub fn receive(response: pb::RollbackResponse) -> Result<Self, Malformed> {
        const MESSAGE: &str = "RollbackResponse";
        Ok(Self {
            alias: Alias::receive(required(MESSAGE, response.alias)?)?,
            wall: span(MESSAGE, "wall_seconds", response.wall_seconds)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(n: u8) -> pb::AliasRevision {
        pb::AliasRevision {
            uri: "s3://b/".into(),
            revision: format!("b3:{}", format!("{n:02x}").repeat(32)),
            bytes: 10,
            nvme_bytes: 7,
            ..Default::default()
        }
    }

    #[test]
    fn an_alias_stands_for_something_and_its_rule_is_one() {
        Alias::receive(pb::Alias::default()).unwrap_err();
        let rule = RollbackRule::parse("data_losses > 0 over 1m").unwrap().to_wire();
        let alias = pb::Alias {
            name: "a".into(),
            current: Some(revision(1)),
            rule: Some(rule),
            rule_state: "armed".into(),
            rule_value: Some(f64::NAN),
            history: vec![pb::AliasEvent { revision: revision(1).revision, ..Default::default() }],
            ..Default::default()
        };
        let received = Alias::receive(alias.clone()).unwrap();
        assert_eq!((received.current.missing_bytes(), received.previous), (3, None));
        assert_eq!(received.rule.unwrap().value, None);
        assert_eq!((received.history[0].from.clone(), received.setting), (None, None));
        let no_rule = pb::RollbackRule { metric: "luck".into(), ..rule_of(&alias) };
        Alias::receive(pb::Alias { rule: Some(no_rule), ..alias.clone() }).unwrap_err();
        let since_unix_seconds = f64::INFINITY;
        Alias::receive(pb::Alias { since_unix_seconds, ..alias }).unwrap_err();
    }

    fn rule_of(alias: &pb::Alias) -> pb::RollbackRule {
        alias.rule.clone().unwrap()
    }

    #[test]
    fn a_set_says_how_far_it_is_and_then_what_came_of_it() {
        let receive = |event| SetAliasEvent::receive(pb::SetAliasResponse { event: Some(event) });
        let progress =
            pb::SetAliasProgress { revision: revision(1).revision, ..Default::default() };
        let progress = receive(pb::set_alias_response::Event::Progress(progress)).unwrap();
        assert!(progress.into_report().is_none());
        let report = pb::SetAliasReport::default();
        receive(pb::set_alias_response::Event::Report(report.clone())).unwrap_err();
        let alias = pb::Alias { current: Some(revision(1)), ..Default::default() };
        let report = pb::SetAliasReport { alias: Some(alias), switched: true, ..report };
        let report = receive(pb::set_alias_response::Event::Report(report)).unwrap();
        assert!(report.into_report().unwrap().switched);
        SetAliasEvent::receive(pb::SetAliasResponse { event: None }).unwrap_err();
        RolledBack::receive(pb::RollbackResponse::default()).unwrap_err();
    }
}
