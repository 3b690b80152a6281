//! `forebay capacity`: what each stage brings per second as measured, and what loads can get.

use forebay_client::model::{Capacity, Ceiling, LoadCapacity, Measured, StageCapacity};
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::CliError;
use crate::json;
use crate::output::Output;
use crate::text::{Table, duration, printable};

/// What stands where a figure would.
const UNMEASURED: &str = "not measured yet";

pub(crate) async fn run(context: &Context, output: &mut Output) -> Result<(), CliError> {
    let capacity = context.client().capacity().await?;
    match output.is_json() {
        true => output.object(&object(&capacity)),
        false => output.text(&page(&capacity)),
    }
}

fn page(capacity: &Capacity) -> String {
    let headings = [
        "STAGE",
        "CAN DO",
        "PER WORKER",
        "WORKERS",
        "UNDER WAY",
        "NOW",
        "USED",
        "LEFT",
        "AGO",
        "OF",
    ];
    let mut stages = Table::new(&headings);
    capacity.stages.iter().for_each(|found| stages.row(stage(found)));
    let mut loads = Table::new(&["LOADS", "CEILING", "SET BY", "LEFT", "ORIGIN"]);
    capacity.loads.iter().for_each(|found| loads.row(load(found)));
    let mut methods: Vec<String> = Vec::new();
    for found in &capacity.stages {
        let Some(measured) = &found.measured else { continue };
        let line = format!("  {}: {}\n", printable(&found.stage), printable(&measured.method));
        if !methods.contains(&line) {
            methods.push(line);
        }
    }
    let mut text = format!("{}\n{}", loads.render(), stages.render());
    if !methods.is_empty() {
        let window = duration(capacity.window);
        text += &format!("\nHow it was measured, over the last {window}\n{}", methods.concat());
    }
    text
}

fn stage(found: &StageCapacity) -> Vec<String> {
    let of = found.of.as_deref().map(printable).unwrap_or_default();
    let (name, now) = (printable(&found.stage), speed(found.present_bytes_per_second));
    let Some(measured) = &found.measured else {
        let none = || "-".to_owned();
        return vec![
            name,
            UNMEASURED.into(),
            none(),
            none(),
            none(),
            now,
            none(),
            none(),
            none(),
            of,
        ];
    };
    let Measured { bytes_per_second, age, concurrency, workers, .. } = measured;
    vec![
        name,
        speed(*bytes_per_second),
        measured.worker_bytes_per_second.map_or_else(|| "-".into(), speed),
        workers.map_or_else(|| "-".into(), |workers| workers.to_string()),
        format!("{concurrency:.1}"),
        now,
        format!("{:.0} %", measured.utilisation * 100.0),
        speed(measured.headroom_bytes_per_second),
        duration(*age),
        of,
    ]
}

/// A ceiling whose stages were not all measured is an upper bound, and says so.
fn load(found: &LoadCapacity) -> Vec<String> {
    let (kind, of) =
        (printable(&found.kind), found.of.as_deref().map(printable).unwrap_or_default());
    let Some(Ceiling { bytes_per_second, limited_by, headroom_bytes_per_second }) = &found.ceiling
    else {
        return vec![kind, UNMEASURED.into(), "-".into(), "-".into(), of];
    };
    let missing: Vec<&str> = found.unmeasured().collect();
    let ceiling = match missing.is_empty() {
        true => speed(*bytes_per_second),
        false => format!("at most {}", speed(*bytes_per_second)),
    };
    let set_by = match missing.is_empty() {
        true => printable(limited_by),
        false => {
            format!("{} ({} {UNMEASURED})", printable(limited_by), printable(&missing.join(", ")))
        }
    };
    vec![kind, ceiling, set_by, speed(*headroom_bytes_per_second), of]
}

fn speed(bytes_per_second: f64) -> String {
    match bytes_per_second >= 1e9 {
        true => format!("{:.2} GB/s", bytes_per_second / 1e9),
        false => format!("{:.1} MB/s", bytes_per_second / 1e6),
    }
}

fn object(capacity: &Capacity) -> Value {
    json!({
        "window_seconds": capacity.window.as_secs_f64(),
        "stages": json::array(&capacity.stages, stage_object),
        "loads": json::array(&capacity.loads, |load| {
            let ceiling = load.ceiling.as_ref();
            json!({
                "kind": load.kind,
                "of": load.of,
                "bytes_per_second": ceiling.map(|ceiling| ceiling.bytes_per_second),
                "limited_by": ceiling.map(|ceiling| &ceiling.limited_by),
                "headroom_bytes_per_second":
                    ceiling.map(|ceiling| ceiling.headroom_bytes_per_second),
                "stages": json::array(&load.stages, |(stage, rate)| json!({
                    "stage": stage,
                    "bytes_per_second": rate,
                })),
                "unmeasured": load.unmeasured().collect::<Vec<_>>(),
            })
        }),
    })
}

/// What was not measured is null.
fn stage_object(stage: &StageCapacity) -> Value {
    let measured = stage.measured.as_ref();
    json!({
        "stage": stage.stage,
        "of": stage.of,
        "bytes_per_second": measured.map(|found| found.bytes_per_second),
        "method": measured.map(|found| &found.method),
        "age_seconds": measured.map(|found| found.age.as_secs_f64()),
        "busy_seconds": measured.map(|found| found.busy.as_secs_f64()),
        "concurrency": measured.map(|found| found.concurrency),
        "workers": measured.and_then(|found| found.workers),
        "worker_bytes_per_second": measured.and_then(|found| found.worker_bytes_per_second),
        "present_bytes_per_second": stage.present_bytes_per_second,
        "utilisation": measured.map(|found| found.utilisation),
        "headroom_bytes_per_second": measured.map(|found| found.headroom_bytes_per_second),
    })
}
