//! `Capacity`: what the stages can do, and what loads can get of that, as the wire has it.

use forebay_origin::EndpointStats;
use forebay_proto::pb;

use super::Shared;
use crate::capacity::meter::{Meter, Reading};
use crate::capacity::{Known, Path, Prediction, Scale, Stage, WINDOW, predict};
use crate::nvme::{FILL_WORKERS, READERS};

/// What is known of one stage.
struct Measured {
    stage: Stage,
    of: String,
    reading: Reading,
    /// How it was measured.
    method: &'static str,
    /// The most operations at a time; zero if that is not known.
    workers: usize,
}

impl Measured {
    fn read(
        (stage, of): (Stage, &str),
        meter: &Meter,
        scale: Scale,
        workers: usize,
        method: &'static str,
    ) -> Self {
        Self { stage, of: of.to_owned(), reading: meter.read(scale), method, workers }
    }

    fn known(&self) -> Known {
        let Reading { rate, present } = self.reading;
        Known { rate: rate.map(|rate| rate.bytes_per_second), present }
    }

    fn to_wire(&self) -> pb::StageCapacity {
        let Reading { rate, present } = self.reading;
        let mut message = pb::StageCapacity {
            stage: self.stage.as_str().to_owned(),
            of: self.of.clone(),
            present_bytes_per_second: present,
            ..Default::default()
        };
        let Some(rate) = rate else { return message };
        message.bytes_per_second = Some(rate.bytes_per_second);
        message.method = self.method.to_owned();
        message.age_seconds = rate.age.as_secs_f64();
        message.busy_seconds = rate.busy.as_secs_f64();
        message.concurrency = rate.concurrency;
        message.workers = self.workers as u64;
        message.worker_bytes_per_second = rate.of_worker;
        message.utilisation = Some(present / rate.bytes_per_second);
        message.headroom_bytes_per_second = Some((rate.bytes_per_second - present).max(0.0));
        message
    }
}

/// As it is now.
pub(super) fn now(shared: &Shared) -> pb::CapacityResponse {
    let mut measured = origins(shared);
    measured.extend(own(shared));
    measured.extend(copies(shared));
    let loads = loads(&measured);
    pb::CapacityResponse {
        stages: measured.iter().map(Measured::to_wire).collect(),
        loads: loads.into_iter().map(|(path, of, found)| load(path, of, found)).collect(),
        window_seconds: WINDOW.as_secs_f64(),
    }
}

/// The origins that were read from; one without a name before any was.
fn origins(shared: &Shared) -> Vec<Measured> {
    let endpoints = shared.origins.endpoints();
    let read = |(name, meter): (String, std::sync::Arc<Meter>)| {
        let endpoint = endpoints.iter().find(|endpoint| endpoint.origin == name);
        let limit = endpoint.map_or(0, |endpoint| endpoint.limit);
        let method = "bytes on the wire over the time with requests under way, median";
        let measured = Measured::read((Stage::Origin, &name), &meter, Scale::Whole, limit, method);
        asked_for_all(measured, endpoint)
    };
    let all = shared.stages.fetcher.rates().all().into_iter();
    let seen = all.filter(|(name, _)| shared.stages.domain.sees_origin(name));
    let mut origins: Vec<_> = seen.map(read).collect();
    if origins.is_empty() {
        let none = Meter::default();
        origins.push(Measured::read((Stage::Origin, ""), &none, Scale::Whole, 0, ""));
    }
    origins
}

/// What an endpoint brought while all that it may be asked for was asked for says more than what it
/// brought in all.
fn asked_for_all(mut measured: Measured, endpoint: Option<&EndpointStats>) -> Measured {
    let sustained = endpoint.and_then(|endpoint| endpoint.sustained);
    if let Some((rate, sustained)) = measured.reading.rate.as_mut().zip(sustained)
        && sustained > rate.bytes_per_second
    {
        rate.bytes_per_second = sustained;
        measured.method = "the best second of the last minute with every request out";
    }
    measured
}

/// The stages of this daemon.
fn own(shared: &Shared) -> Vec<Measured> {
    let stages = &shared.stages;
    let workers = stages.workers.states().iter().map(|state| state.workers).sum();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut own = Vec::new();
    let mut add = |stage, meter: &Meter, scale, workers, method| {
        own.push(Measured::read((stage, ""), meter, scale, workers, method));
    };
    if let Some(nvme) = &stages.nvme {
        let [read, written] = nvme.rates();
        let method = "bytes over the time with reads under way, median";
        add(Stage::NvmeRead, read, Scale::Whole, READERS, method);
        let method = "bytes over the time with fills under way, copies and sums included, median";
        add(Stage::NvmeWrite, written, Scale::Whole, FILL_WORKERS, method);
        let checkers = READERS.min(cores);
        let method = "bytes per second of a reader's check, median, times the readers with a core";
        add(Stage::Verify, stages.verifier.meter(), Scale::Workers(checkers), checkers, method);
    }
    let method = "decoded bytes per second of a worker, median, times the workers";
    add(Stage::Decompress, stages.decoder.meter(), Scale::Workers(workers), workers, method);
    let method = "bytes over the time with digests of whole objects at work, median";
    add(Stage::VerifyObject, &stages.rates.objects, Scale::Whole, 0, method);
    let method = "bytes over the time from finding chunks in RAM until the client's stream takes them, median";
    add(Stage::Handoff, &stages.rates.handoff, Scale::Whole, 0, method);
    own
}

/// What clients copied, by device; one without a name before any did.
fn copies(shared: &Shared) -> Vec<Measured> {
    let method = "bytes over the time with copies under way, as clients tell it, median";
    let read = |name: &str, meter: &Meter| {
        Measured::read((Stage::Dma, name), meter, Scale::Whole, 0, method)
    };
    let all = shared.stages.rates.copies.all();
    match all.is_empty() {
        true => vec![read("", &Meter::default())],
        false => all.iter().map(|(name, meter)| read(name, meter)).collect(),
    }
}

/// Each kind of load, from each origin if it reads from one. Of several devices the one that was
/// copied to last counts.
fn loads(measured: &[Measured]) -> Vec<(Path, String, Prediction)> {
    let of_stage = |stage: Stage| measured.iter().filter(move |found| found.stage == stage);
    let latest = |stage: Stage| {
        let age =
            |found: &&Measured| found.reading.rate.map_or(std::time::Duration::MAX, |r| r.age);
        of_stage(stage).min_by_key(age).map(Measured::known)
    };
    let ratio = of_stage(Stage::Decompress).find_map(|found| Some(found.reading.rate?.ratio));
    let mut loads = Vec::new();
    for path in [Path::Cold, Path::Packed, Path::Fill] {
        for origin in of_stage(Stage::Origin) {
            let known = |stage| match stage {
                Stage::Origin => Some(origin.known()),
                other => latest(other),
            };
            loads.push((path, origin.of.clone(), predict(path, known, ratio)));
        }
    }
    for path in [Path::Nvme, Path::Warm] {
        loads.push((path, String::new(), predict(path, latest, None)));
    }
    let has_nvme = of_stage(Stage::NvmeRead).next().is_some();
    loads.retain(|(path, ..)| has_nvme || !matches!(path, Path::Nvme | Path::Fill));
    loads
}

fn load(path: Path, of: String, prediction: Prediction) -> pb::LoadCapacity {
    let Prediction { ceiling, stages } = prediction;
    let stage = |(stage, bytes_per_second): (Stage, Option<f64>)| pb::LoadStage {
        stage: stage.as_str().to_owned(),
        bytes_per_second,
    };
    pb::LoadCapacity {
        kind: path.as_str().to_owned(),
        of,
        bytes_per_second: ceiling.map(|(rate, ..)| rate),
        limited_by: ceiling.map_or_else(String::new, |(_, stage, _)| stage.as_str().to_owned()),
        headroom_bytes_per_second: ceiling.map(|(.., left)| left),
        stages: stages.into_iter().map(stage).collect(),
    }
}
