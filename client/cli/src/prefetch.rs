//! `forebay prefetch`: one checkpoint after the other; one that fails does not stop the others.

use forebay_client::PrefetchRequest;
use forebay_client::model::{PrefetchEvent, Report};

use crate::args::PrefetchArgs;
use crate::context::Context;
use crate::error::CliError;
use crate::json;
use crate::load::placement;
use crate::output::Output;
use crate::progress::Progress;
use crate::text::{duration, printable, rate, short, size};

pub(crate) async fn run(
    context: &Context,
    args: &PrefetchArgs,
    output: &mut Output,
) -> Result<(), CliError> {
    let mut errors = Vec::new();
    for uri in &args.uris {
        match prefetch(context, uri, args, output).await {
            Ok(()) => {}
            Err(CliError::BrokenPipe) => return Err(CliError::BrokenPipe),
            Err(error) if args.uris.len() > 1 => {
                error.report(output.format());
                errors.push(error);
            }
            Err(error) => return Err(error),
        }
    }
    let failed = errors.len();
    match errors.into_iter().next() {
        None => Ok(()),
        Some(first) => {
            Err(CliError::Several { failed, all: args.uris.len(), first: Box::new(first) })
        }
    }
}

async fn prefetch(
    context: &Context,
    uri: &str,
    args: &PrefetchArgs,
    output: &mut Output,
) -> Result<(), CliError> {
    let mut request = PrefetchRequest::new(uri);
    if let Some(tier) = args.tier {
        request = request.tier(tier.into());
    }
    if args.pin {
        request = request.pin();
    }
    if let Some(workload) = &args.purpose.workload {
        request = request.workload(workload);
    }
    if let Some(placement) = args.near.placement() {
        request = request.placement(placement);
    }
    let mut events = context.client().prefetch(request).await?;
    let mut bar = Progress::bar_or_lines(output.format(), &printable(uri));
    let mut done = None;
    while let Some(event) = events.next().await? {
        match event {
            PrefetchEvent::Progress(progress) if output.is_json() => {
                output.object(&json::progress(&progress))?;
            }
            PrefetchEvent::Progress(progress) => {
                bar.set(progress.done_bytes, progress.total_bytes);
            }
            PrefetchEvent::Report(report) => done = Some(report),
        }
    }
    // Else the report would stand behind the bar, on the same line.
    drop(bar);
    match done {
        None => Err(CliError::internal("the prefetch ended without a report")),
        Some(report) if output.is_json() => output.object(&json::prefetched(&report)),
        Some(report) => output.text(&human(&report, args.pin)),
    }
}

fn human(report: &Report, is_pinned: bool) -> String {
    let tiers = report.bytes_by_tier;
    format!(
        "{}  {}  {} in {} ({}), {} from RAM, {} from NVMe, {} from the origin{}\n{}",
        printable(&report.uri),
        short(&report.revision),
        size(report.bytes),
        duration(report.wall),
        rate(report.bytes, report.wall),
        size(tiers.ram),
        size(tiers.nvme),
        size(tiers.origin),
        if is_pinned { ", pinned" } else { "" },
        placement(report),
    )
}
