//! `forebay load`: what a client would do, and the report of it.

use forebay_client::{DeviceSpec, Lane, Layout, Load, LoadRequest, VerifyPolicy, model::Report};

use crate::args::{LaneArg, LoadArgs, VerifyArg, all_globs};
use crate::context::Context;
use crate::device;
use crate::digest::{self, Digest};
use crate::error::CliError;
use crate::json;
use crate::output::Output;
use crate::progress::Progress;
use crate::sums;
use crate::text::{Table, duration, printable, rate, short, size};
use crate::worker::Worker;

pub(crate) async fn run(
    context: &Context,
    args: LoadArgs,
    output: &mut Output,
) -> Result<(), CliError> {
    let mut request = LoadRequest::new(args.uri);
    if let Some(load_id) = args.load_id {
        request = request.load_id(load_id);
    }
    if let Some(lane) = args.lane {
        request = request.lane(match lane {
            LaneArg::Interactive => Lane::Interactive,
            LaneArg::Prefetch => Lane::Prefetch,
        });
    }
    if let Some(policy) = args.verify {
        request = request.verify(match policy {
            VerifyArg::Stream => VerifyPolicy::Stream,
            VerifyArg::Strict => VerifyPolicy::Strict,
        });
    }
    if let Some(file) = args.sha256 {
        request = request.sha256(sums::read(&file)?);
    }
    if let Some(workload) = &args.purpose.workload {
        request = request.workload(workload);
    }
    if let Some(placement) = args.near.placement() {
        request = request.placement(placement);
    }
    let tensors = all_globs(args.tensors);
    let shard = args.shard.shard()?;
    let whole = tensors.is_empty() && shard.is_none();
    if let Some(shard) = shard {
        request = request.shard(shard);
    }
    let request = request.tensors(tensors);
    if args.device != DeviceSpec::Host {
        return to_device(context, request, (args.device, args.digest, whole), output).await;
    }
    let load = context.client().load(request).await?;
    let mut progress = Progress::bar(output.format(), load.opened().granted_bytes);
    let (report, digests) = match args.digest {
        true => with_digests(load, whole, &mut progress).await?,
        false => (without_digests(load, &mut progress).await?, Vec::new()),
    };
    drop(progress);
    if output.is_json() {
        return output.object(&json::report(&report, args.digest.then_some(&digests)));
    }
    let lines: String = digests.iter().map(Digest::line).collect();
    output.text(&(human(&report) + &lines))
}

/// Copies the bytes to a device: objects as they are, or the tensors that were asked for.
async fn to_device(
    context: &Context,
    request: LoadRequest,
    (device, digest, whole): (DeviceSpec, bool, bool),
    output: &mut Output,
) -> Result<(), CliError> {
    if digest {
        let message = "--digest reads the bytes on the host: leave it or --device out";
        return Err(CliError::bad_request(message));
    }
    let layout = if whole { Layout::PerObject } else { Layout::PerTensor };
    let client = context.client().with_device(device::open(device)?);
    let load = client.load(request).await?;
    let mut progress = Progress::bar(output.format(), load.opened().granted_bytes);
    let resident = device::copy(load, layout, &mut progress).await?;
    drop(progress);
    if output.is_json() {
        let mut object = json::report(&resident.report, None);
        object["device"] = forebay_client::json::device(&resident.device);
        return output.object(&object);
    }
    output.text(&(human(&resident.report) + &device::human(&resident.device)))
}

async fn without_digests(mut load: Load, progress: &mut Progress) -> Result<Report, CliError> {
    while let Some(chunk) = load.next_chunk().await? {
        progress.add(chunk.extents().map(|extent| extent.bytes().len() as u64).sum());
    }
    Ok(load.finish().await?)
}

async fn with_digests(
    mut load: Load,
    whole: bool,
    progress: &mut Progress,
) -> Result<(Report, Vec<Digest>), CliError> {
    let manifest = load.manifest().clone();
    let mut worker = Worker::start("forebay-digest", digest::hash)?;
    while let Some(piece) = load.next_piece().await? {
        progress.add(piece.bytes().len() as u64);
        if !worker.feed(piece).await {
            break;
        }
    }
    worker.close();
    let report = load.finish().await?;
    let hashers = worker.finish().await?;
    Ok((report, digest::digests(hashers, &manifest, whole)))
}

/// What the origin made of it, if anything was out of the ordinary.
fn trouble(report: &Report) -> String {
    let counts = [
        (report.throttles, format!("{} throttles", report.throttles)),
        (report.hedge_wins, format!("{} hedges won", report.hedge_wins)),
        (report.wasted_bytes, format!("{} brought twice", size(report.wasted_bytes))),
    ];
    let times = [(report.origin_queue, "in line before it"), (report.backoff, "between attempts")];
    let times = times.map(|(time, what)| {
        (u64::from(time.as_millis() > 0), format!("{} {what}", duration(time)))
    });
    let parts = counts.into_iter().chain(times).filter(|(count, _)| *count > 0);
    let parts: Vec<String> = parts.map(|(_, text)| text).collect();
    match parts.is_empty() {
        true => String::new(),
        false => format!("origin: {}\n", parts.join(", ")),
    }
}

/// What the bytes were held to.
fn verified(report: &Report) -> String {
    let counts = [
        (report.verified.manifest, "by the manifest's digests of their chunks"),
        (report.verified.object_digest, "by a digest of the whole"),
        (report.verified.first_fetch, "by the digest of their first fetch"),
    ];
    let parts = counts.into_iter().filter(|(count, _)| *count > 0);
    let parts: Vec<String> = parts.map(|(count, how)| format!("{count} {how}")).collect();
    match parts.is_empty() {
        true => String::new(),
        false => format!("objects verified: {}\n", parts.join(", ")),
    }
}

/// What became of the place that was asked for.
pub(crate) fn placement(report: &Report) -> String {
    let Some(placement) = &report.placement else { return String::new() };
    let from = placement.node.map_or_else(|| "any node".into(), |node| format!("node {node}"));
    let why = placement.degraded.as_deref().map(|why| format!("; {}", printable(why)));
    format!(
        "placement: {}, slots from {from}, {} near, {} far{}\n",
        printable(&placement.asked),
        size(placement.near_bytes),
        size(placement.far_bytes),
        why.unwrap_or_default(),
    )
}

/// The report for a person.
pub(crate) fn human(report: &Report) -> String {
    let tiers = report.bytes_by_tier;
    let mut text = format!(
        "{}  {}\n{} in {} ({}), first chunk after {}, load {}, lane {}\n\
         from RAM {}, NVMe {}, origin {}; fetched {} in {} attempts, {} retries, {} hedges; \
         peak window {}\n{}{}",
        printable(&report.uri),
        short(&report.revision),
        size(report.bytes),
        duration(report.wall),
        rate(report.bytes, report.wall),
        duration(report.time_to_first_chunk),
        report.load_id,
        report.lane,
        size(tiers.ram),
        size(tiers.nvme),
        size(tiers.origin),
        size(report.origin_bytes),
        report.attempts,
        report.retries,
        report.hedges,
        size(report.peak_window_bytes),
        trouble(report),
        verified(report) + &placement(report),
    );
    let mut stages = Table::new(&["STAGE", "QUEUE", "SERVICE"]);
    for stage in &report.stages {
        stages.row(vec![stage.stage.clone(), duration(stage.queue), duration(stage.service)]);
    }
    let mut path = Table::new(&["CRITICAL PATH", "KIND", "TIME"]);
    for step in &report.critical_path {
        path.row(vec![step.stage.clone(), step.kind.clone(), duration(step.time)]);
    }
    if !path.is_empty() {
        path.row(vec!["unattributed".into(), String::new(), duration(report.unattributed)]);
    }
    let mut idle = Table::new(&["DEVICE IDLE", "TIME"]);
    for cause in &report.device_idle {
        idle.row(vec![cause.cause.clone(), duration(cause.time)]);
    }
    for table in [stages, path, idle].iter().filter(|table| !table.is_empty()) {
        text.push('\n');
        text.push_str(&table.render());
    }
    text.push('\n');
    text
}
