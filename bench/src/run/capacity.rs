//! What a pipeline can be expected to bring, from what its stages did one load at a time.
//!
//! The daemon says what each stage brings per second, and which stages each kind of load passes. A
//! scenario is made of kinds by shares: a stage has to bring the shares of all kinds that pass it,
//! so it allows its rate over that sum. The least of the stages is the ceiling. What was not
//! measured is left out and named, and the ceiling may be lower than it is thought to be.
//!
//! Stages know nothing of what a load takes beside its bytes: calls, manifests, grants. Where these
//! are most of it, as in loads from RAM, the CPUs are the ceiling, so they count as one more stage:
//! what all of them would bring at the CPU time that a byte took alone, of everybody on the machine.

use std::collections::BTreeMap;

use forebay_client::model::Capacity;
use serde_json::{Value, json};

/// The CPUs, as a stage.
const CPUS: &str = "CPUs of this machine";

/// A prediction, in bytes of the checkpoint per second.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Prediction {
    pub(super) bytes_per_second: f64,
    /// The stage that sets it.
    pub(super) limited_by: String,
    /// What each stage allows.
    pub(super) stages: BTreeMap<String, f64>,
    /// Stages that are passed and were not measured.
    pub(super) unmeasured: Vec<String>,
}

/// The ceiling of loads of some kinds, by their shares; none if none of their stages was measured.
pub(super) fn predict(capacity: &Capacity, kinds: &[(&str, f64)]) -> Option<Prediction> {
    // By stage: the part of all bytes that passes it, and its rate.
    let mut demand: BTreeMap<&str, (f64, Option<f64>)> = BTreeMap::new();
    for (kind, share) in kinds {
        let known = |load: &&forebay_client::model::LoadCapacity| load.kind == *kind;
        // Of several origins, the one that was read from: the others have no ceiling.
        let loads = capacity.loads.iter().filter(known);
        let load = loads.max_by_key(|load| load.ceiling.is_some());
        for (stage, rate) in load.into_iter().flat_map(|load| &load.stages) {
            let (parts, known) = demand.entry(stage).or_default();
            *parts += share;
            *known = rate.or(*known);
        }
    }
    let allowed = |(stage, (parts, rate)): (&&str, &(f64, Option<f64>))| {
        Some(((*stage).to_owned(), (*rate)? / parts))
    };
    let stages: BTreeMap<String, f64> = demand.iter().filter_map(allowed).collect();
    let (limited_by, bytes_per_second) = stages
        .iter()
        .min_by(|a, b| a.1.total_cmp(b.1))
        .map(|(stage, rate)| (stage.clone(), *rate))?;
    let unmeasured = demand.iter().filter(|(_, (_, rate))| rate.is_none());
    let unmeasured = unmeasured.map(|(stage, _)| (*stage).to_owned()).collect();
    Some(Prediction { bytes_per_second, limited_by, stages, unmeasured })
}

impl Prediction {
    /// With the CPUs as one more stage, of so many cores, where `bytes` took so many CPU seconds.
    pub(super) fn with_cpus(mut self, cores: usize, bytes: f64, seconds: f64) -> Self {
        let allowed = cores as f64 * bytes / seconds;
        if allowed.is_finite() && allowed > 0.0 {
            self.stages.insert(CPUS.to_owned(), allowed);
            if allowed < self.bytes_per_second {
                (self.bytes_per_second, self.limited_by) = (allowed, CPUS.to_owned());
            }
        }
        self
    }

    /// Beside what was measured.
    pub(super) fn json(&self, measured: Option<f64>) -> Value {
        json!({
            "predicted_bytes_per_second": self.bytes_per_second,
            "limited_by": self.limited_by,
            "stages_allow": self.stages,
            "not_measured": self.unmeasured,
            "measured_bytes_per_second": measured,
            "measured_of_predicted": measured.map(|measured| measured / self.bytes_per_second),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use forebay_client::model::{Ceiling, LoadCapacity};

    use super::*;

    fn load(kind: &str, stages: &[(&str, Option<f64>)]) -> LoadCapacity {
        let least = stages.iter().filter_map(|(_, rate)| *rate).fold(f64::MAX, f64::min);
        let ceiling = (least < f64::MAX).then(|| Ceiling {
            bytes_per_second: least,
            limited_by: String::new(),
            headroom_bytes_per_second: 0.0,
        });
        let stages = stages.iter().map(|(stage, rate)| ((*stage).to_owned(), *rate)).collect();
        LoadCapacity { kind: kind.to_owned(), of: None, ceiling, stages }
    }

    fn capacity() -> Capacity {
        let loads = vec![
            load("cold", &[("origin", None), ("handoff", None)]),
            load("cold", &[("origin", Some(100.0)), ("handoff", Some(1000.0))]),
            load("warm", &[("handoff", Some(1000.0))]),
            load("nvme", &[("nvme_read", None), ("handoff", Some(1000.0))]),
        ];
        Capacity { stages: Vec::new(), loads, window: Duration::from_secs(300) }
    }

    #[test]
    fn one_kind_has_the_least_of_its_stages() {
        let found = predict(&capacity(), &[("cold", 1.0)]).unwrap();
        assert_eq!((found.bytes_per_second, found.limited_by.as_str()), (100.0, "origin"));
        let json = found.json(Some(90.0));
        assert_eq!(json["measured_of_predicted"], 0.9);
    }

    #[test]
    fn a_stage_that_only_a_part_passes_allows_more() {
        let found = predict(&capacity(), &[("warm", 0.75), ("cold", 0.25)]).unwrap();
        assert_eq!((found.bytes_per_second, found.limited_by.as_str()), (400.0, "origin"));
        let found = predict(&capacity(), &[("warm", 0.95), ("cold", 0.05)]).unwrap();
        assert_eq!((found.bytes_per_second, found.limited_by.as_str()), (1000.0, "handoff"));
    }

    #[test]
    fn the_cpus_are_a_stage() {
        let found = predict(&capacity(), &[("warm", 1.0)]).unwrap();
        // Ten bytes took two CPU seconds: two cores bring ten a second.
        let lower = found.clone().with_cpus(2, 10.0, 2.0);
        assert_eq!((lower.bytes_per_second, lower.limited_by.as_str()), (10.0, CPUS));
        let same = found.clone().with_cpus(2, 1e9, 1.0);
        assert_eq!((same.bytes_per_second, same.limited_by.as_str()), (1000.0, "handoff"));
        assert_eq!(found.clone().with_cpus(2, 0.0, 0.0), found);
    }

    #[test]
    fn what_was_not_measured_is_named() {
        let found = predict(&capacity(), &[("nvme", 1.0)]).unwrap();
        assert_eq!(found.unmeasured, ["nvme_read"]);
        assert_eq!(predict(&capacity(), &[("packed", 1.0)]), None);
    }
}
