//! What `capacity` answers: what each stage brings per second as measured, and what loads can get.

use std::time::Duration;

use super::{Malformed, span};
use crate::pb;

/// What the daemon's stages can do.
#[derive(Debug, Clone, PartialEq)]
pub struct Capacity {
    /// Every stage, measured or not.
    pub stages: Vec<StageCapacity>,
    /// The most that each kind of load can get.
    pub loads: Vec<LoadCapacity>,
    /// Measurements older than this are forgotten.
    pub window: Duration,
}

/// What one stage can do. Rates are bytes of the checkpoint per second, but for an origin: bytes on
/// the wire.
#[derive(Debug, Clone, PartialEq)]
pub struct StageCapacity {
    /// Its name.
    pub stage: String,
    /// Which origin, or which device, where there are several.
    pub of: Option<String>,
    /// What was measured; none if nothing was yet.
    pub measured: Option<Measured>,
    /// Over the last 10 seconds.
    pub present_bytes_per_second: f64,
}

/// A measurement of a stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// What it can do.
    pub bytes_per_second: f64,
    /// How that was measured.
    pub method: String,
    /// Since it worked last.
    pub age: Duration,
    /// Time in which it worked that the figure is from.
    pub busy: Duration,
    /// Operations under way in that time, on average.
    pub concurrency: f64,
    /// The most that can be under way, if that is known.
    pub workers: Option<u64>,
    /// What one worker brings, where more of them bring as much more.
    pub worker_bytes_per_second: Option<f64>,
    /// The present load over what it can do.
    pub utilisation: f64,
    /// What it can do less the present load.
    pub headroom_bytes_per_second: f64,
}

/// The most that a kind of load can get, in bytes of the checkpoint per second.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadCapacity {
    /// `cold`, `packed`, `nvme`, `warm` or `fill`.
    pub kind: String,
    /// Which origin, if it reads from one.
    pub of: Option<String>,
    /// The least of its stages; none if none of them was measured yet.
    pub ceiling: Option<Ceiling>,
    /// The stages that it passes, and what each of them can do; none if that was not measured yet.
    pub stages: Vec<(String, Option<f64>)>,
}

impl LoadCapacity {
    /// The stages that were not measured yet: the ceiling may be lower than it is thought to be.
    pub fn unmeasured(&self) -> impl Iterator<Item = &str> {
        let missing = self.stages.iter().filter(|(_, rate)| rate.is_none());
        missing.map(|(stage, _)| stage.as_str())
    }
}

/// What bounds a kind of load.
#[derive(Debug, Clone, PartialEq)]
pub struct Ceiling {
    /// How much.
    pub bytes_per_second: f64,
    /// The stage that sets it.
    pub limited_by: String,
    /// What is left of it beside the present load.
    pub headroom_bytes_per_second: f64,
}

impl Capacity {
    /// Checks the message.
    pub fn receive(capacity: pb::CapacityResponse) -> Result<Self, Malformed> {
        let stages = capacity.stages.into_iter().map(StageCapacity::receive);
        let loads = capacity.loads.into_iter().map(LoadCapacity::receive);
        Ok(Self {
            stages: stages.collect::<Result<_, _>>()?,
            loads: loads.collect::<Result<_, _>>()?,
            window: span("CapacityResponse", "window_seconds", capacity.window_seconds)?,
        })
    }
}

impl StageCapacity {
    fn receive(stage: pb::StageCapacity) -> Result<Self, Malformed> {
        const MESSAGE: &str = "StageCapacity";
        let measured = stage.bytes_per_second.map(|bytes_per_second| {
            Ok(Measured {
                bytes_per_second: rate(MESSAGE, bytes_per_second)?,
                method: stage.method,
                age: span(MESSAGE, "age_seconds", stage.age_seconds)?,
                busy: span(MESSAGE, "busy_seconds", stage.busy_seconds)?,
                concurrency: rate(MESSAGE, stage.concurrency)?,
                workers: Some(stage.workers).filter(|workers| *workers > 0),
                worker_bytes_per_second: stage
                    .worker_bytes_per_second
                    .map(|of_one| rate(MESSAGE, of_one))
                    .transpose()?,
                utilisation: rate(MESSAGE, stage.utilisation.unwrap_or_default())?,
                headroom_bytes_per_second: rate(
                    MESSAGE,
                    stage.headroom_bytes_per_second.unwrap_or_default(),
                )?,
            })
        });
        Ok(Self {
            stage: stage.stage,
            of: Some(stage.of).filter(|of| !of.is_empty()),
            measured: measured.transpose()?,
            present_bytes_per_second: rate(MESSAGE, stage.present_bytes_per_second)?,
        })
    }
}

impl LoadCapacity {
    fn receive(load: pb::LoadCapacity) -> Result<Self, Malformed> {
        const MESSAGE: &str = "LoadCapacity";
        let ceiling = load.bytes_per_second.map(|bytes_per_second| {
            let headroom = load.headroom_bytes_per_second.unwrap_or_default();
            Ok(Ceiling {
                bytes_per_second: rate(MESSAGE, bytes_per_second)?,
                limited_by: load.limited_by,
                headroom_bytes_per_second: rate(MESSAGE, headroom)?,
            })
        });
        let stage = |stage: pb::LoadStage| {
            let rate = stage.bytes_per_second.map(|found| rate(MESSAGE, found)).transpose()?;
            Ok((stage.stage, rate))
        };
        Ok(Self {
            kind: load.kind,
            of: Some(load.of).filter(|of| !of.is_empty()),
            ceiling: ceiling.transpose()?,
            stages: load.stages.into_iter().map(stage).collect::<Result<_, Malformed>>()?,
        })
    }
}

/// A number that is measured: none below zero, and finite.
fn rate(message: &'static str, number: f64) -> Result<f64, Malformed> {
    match number.is_finite() && number >= 0.0 {
        true => Ok(number),
        false => Err(Malformed::new(message, format!("{number} is no rate"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_none_and_not_zero() {
        let stage = pb::StageCapacity { stage: "origin".into(), ..Default::default() };
        let load = pb::LoadCapacity {
            kind: "cold".into(),
            stages: vec![pb::LoadStage { stage: "origin".into(), bytes_per_second: None }],
            ..Default::default()
        };
        let message =
            pb::CapacityResponse { stages: vec![stage], loads: vec![load], window_seconds: 300.0 };
        let capacity = Capacity::receive(message).unwrap();
        assert_eq!((&capacity.stages[0].measured, &capacity.stages[0].of), (&None, &None));
        assert_eq!(capacity.loads[0].ceiling, None);
        assert_eq!(capacity.loads[0].unmeasured().collect::<Vec<_>>(), ["origin"]);
    }

    #[test]
    fn rates_are_finite_and_not_negative() {
        for bad in [-1.0, f64::NAN, f64::INFINITY] {
            let stage = pb::StageCapacity { bytes_per_second: Some(bad), ..Default::default() };
            let message = pb::CapacityResponse { stages: vec![stage], ..Default::default() };
            Capacity::receive(message).unwrap_err();
        }
    }
}
