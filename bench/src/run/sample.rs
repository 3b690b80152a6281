//! One load as it was measured, and many of them as a table that keeps every one.
//!
//! Times are seconds since their phase began. In JSON a phase's loads are rows of a table with
//! named columns: of 10,000 loads the names alone would be most of the file otherwise.

use std::collections::{BTreeMap, BTreeSet};

use forebay_client::model::{BytesByTier, Report};
use forebay_client::{ClientError, ErrorKind, Reason};
use serde_json::{Value, json};

/// What became of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// All bytes were handed over before its deadline.
    Met,
    /// All bytes were handed over, too late.
    Late,
    /// It was refused for want of room or time; nothing was begun.
    Refused,
    /// Its deadline passed.
    Expired,
    /// Anything else.
    Failed,
}

impl Ended {
    /// Its name.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Late => "late",
            Self::Refused => "refused",
            Self::Expired => "expired",
            Self::Failed => "failed",
        }
    }

    /// What an error of a load means.
    pub(super) fn of(error: &ClientError) -> Self {
        match (error.kind(), error.reason()) {
            (_, Reason::LimitExceeded) => Self::Failed,
            (ErrorKind::ResourceExhausted, _) => Self::Refused,
            (ErrorKind::DeadlineExceeded, _) => Self::Expired,
            _ => Self::Failed,
        }
    }
}

/// Time of one stage.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StageSeconds {
    /// Which.
    pub(super) stage: String,
    /// Between being handed to it and being taken up by it, over all chunks.
    pub(super) queue: f64,
    /// Being worked on, over all chunks.
    pub(super) service: f64,
    /// On the chain that decided how long the load took.
    pub(super) critical: f64,
}

/// One load.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample {
    /// When it was to begin, when it began, and when it was over.
    pub(super) scheduled: f64,
    pub(super) started: f64,
    pub(super) ended: f64,
    /// What became of it, and why where it was not well.
    pub(super) outcome: Ended,
    pub(super) reason: &'static str,
    /// Bytes handed over, and where they came from.
    pub(super) bytes: u64,
    pub(super) tiers: BytesByTier,
    /// Where the time went; empty of loads that did not end well.
    pub(super) stages: Vec<StageSeconds>,
    /// What the daemon calls it.
    pub(super) load_id: String,
}

impl Sample {
    /// Seconds from when it was to begin to its end.
    pub(super) fn latency(&self) -> f64 {
        self.ended - self.scheduled
    }

    /// Whether it was begun and ended, by all its bytes or since its time was over.
    pub(super) fn was_let_in(&self) -> bool {
        self.is_complete() || self.outcome == Ended::Expired
    }

    /// Whether all its bytes came, in time or not.
    pub(super) fn is_complete(&self) -> bool {
        matches!(self.outcome, Ended::Met | Ended::Late)
    }
}

/// Where the time of a load went, as its report says.
pub(super) fn stages(report: &Report) -> Vec<StageSeconds> {
    let critical = |stage: &str| {
        let steps = report.critical_path.iter().filter(|step| step.stage == stage);
        steps.map(|step| step.time.as_secs_f64()).sum()
    };
    let known = report.stages.iter().map(|stage| stage.stage.as_str());
    let on_path = report.critical_path.iter().map(|step| step.stage.as_str());
    let names: BTreeSet<&str> = known.chain(on_path).collect();
    let stage = |name: &str| {
        let sums = report.stages.iter().find(|stage| stage.stage == name);
        StageSeconds {
            stage: name.to_owned(),
            queue: sums.map_or(0.0, |stage| stage.queue.as_secs_f64()),
            service: sums.map_or(0.0, |stage| stage.service.as_secs_f64()),
            critical: critical(name),
        }
    };
    let found = names.into_iter().map(stage);
    found.filter(|stage| stage.queue + stage.service + stage.critical > 0.0).collect()
}

const COLUMNS: [&str; 11] = [
    "scheduled",
    "started",
    "ended",
    "outcome",
    "reason",
    "bytes",
    "ram",
    "nvme",
    "origin",
    "load_id",
    "stages",
];

/// All loads of a phase. Those that were refused are most of an overload, and have nothing to tell
/// but when: they are columns.
pub(super) fn table(samples: &[Sample]) -> Value {
    let names = samples.iter().flat_map(|sample| &sample.stages).map(|stage| stage.stage.as_str());
    let names: Vec<&str> = names.collect::<BTreeSet<_>>().into_iter().collect();
    let row = |sample: &Sample| {
        let Sample { scheduled, started, ended, outcome, reason, bytes, tiers, .. } = sample;
        let stages = sample.stages.iter().map(|stage| {
            let name = names.iter().position(|name| *name == stage.stage);
            json!([name, micro(stage.queue), micro(stage.service), micro(stage.critical)])
        });
        json!([
            micro(*scheduled),
            micro(*started),
            micro(*ended),
            outcome.as_str(),
            reason,
            bytes,
            tiers.ram,
            tiers.nvme,
            tiers.origin,
            sample.load_id,
            stages.collect::<Vec<_>>(),
        ])
    };
    let refused = || samples.iter().filter(|sample| sample.outcome == Ended::Refused);
    let times = |of: fn(&Sample) -> f64| refused().map(|load| micro(of(load))).collect::<Vec<_>>();
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    refused().for_each(|load| *reasons.entry(load.reason).or_default() += 1);
    json!({
        "columns": COLUMNS,
        "stages_are": ["stage", "queue_seconds", "service_seconds", "critical_path_seconds"],
        "stage_names": names,
        "rows": samples
            .iter()
            .filter(|sample| sample.outcome != Ended::Refused)
            .map(row)
            .collect::<Vec<_>>(),
        "refused": {
            "reasons": reasons,
            "scheduled": times(|load| load.scheduled),
            "began_after": times(|load| load.started - load.scheduled),
            "ended_after": times(|load| load.ended - load.started),
        },
    })
}

/// Seconds with six digits behind the point: what a clock is good for.
pub(super) fn micro(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

/// What a comparison needs of a load that was read back.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kept {
    pub(super) scheduled: f64,
    pub(super) ended: f64,
    pub(super) outcome: String,
}

/// The loads of a table that were not refused; none of what is no table.
pub(super) fn read(table: &Value) -> Vec<Kept> {
    let columns: Vec<&str> =
        table["columns"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let at = |name: &str| columns.iter().position(|column| *column == name);
    let (Some(scheduled), Some(ended), Some(outcome)) =
        (at("scheduled"), at("ended"), at("outcome"))
    else {
        return Vec::new();
    };
    let kept = |row: &Value| {
        Some(Kept {
            scheduled: row.get(scheduled)?.as_f64()?,
            ended: row.get(ended)?.as_f64()?,
            outcome: row.get(outcome)?.as_str()?.to_owned(),
        })
    };
    table["rows"].as_array().into_iter().flatten().filter_map(kept).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A load that took so long.
    pub(crate) fn sample(scheduled: f64, latency: f64, outcome: Ended) -> Sample {
        Sample {
            scheduled,
            started: scheduled,
            ended: scheduled + latency,
            outcome,
            reason: "",
            bytes: 1 << 20,
            tiers: BytesByTier::default(),
            stages: Vec::new(),
            load_id: "a".to_owned(),
        }
    }

    #[test]
    fn a_table_keeps_every_load() {
        let mut first = sample(0.5, 0.25, Ended::Met);
        let stage = |name: &str, critical| StageSeconds {
            stage: name.to_owned(),
            queue: 0.1,
            service: 0.2,
            critical,
        };
        first.stages = vec![stage("body", 0.15), stage("resolve", 0.05)];
        let table = table(&[first, sample(1.0, 0.001, Ended::Refused)]);
        assert_eq!(table["stage_names"], json!(["body", "resolve"]));
        assert_eq!(table["rows"][0][10], json!([[0, 0.1, 0.2, 0.15], [1, 0.1, 0.2, 0.05]]));
        let kept = read(&table);
        assert_eq!(kept.len(), 1);
        assert_eq!((kept[0].scheduled, kept[0].ended), (0.5, 0.75));
        let refused = &table["refused"];
        assert_eq!(
            (&refused["scheduled"], &refused["ended_after"]),
            (&json!([1.0]), &json!([0.001]))
        );
        assert_eq!(refused["reasons"], json!({ "": 1 }));
        assert!(read(&json!({})).is_empty() && read(&json!({"columns": ["a"]})).is_empty());
    }
}
