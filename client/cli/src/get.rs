//! `forebay get`: objects as files, all of them or none.

use forebay_client::LoadRequest;

use crate::args::{GetArgs, all_globs};
use crate::context::Context;
use crate::error::CliError;
use crate::files::{self, Item, Plan};
use crate::json;
use crate::output::Output;
use crate::progress::Progress;
use crate::text::{duration, printable, rate, short, size};
use crate::worker::Worker;

pub(crate) async fn run(
    context: &Context,
    args: GetArgs,
    output: &mut Output,
) -> Result<(), CliError> {
    let request = LoadRequest::new(args.uri).objects(all_globs(args.only));
    let mut load = context.client().load(request).await?;
    let plan = Plan::new(&args.dir, load.selected_objects())?;
    let mut progress = Progress::bar(output.format(), load.opened().granted_bytes);
    let worker = Worker::start("forebay-files", |feed| files::write(feed, plan))?;
    let mut is_writing = true;
    while is_writing && let Some(chunk) = load.next_chunk().await? {
        let bytes = chunk.extents().map(|extent| extent.bytes().len() as u64).sum();
        is_writing = worker.feed(Item::Chunk(chunk)).await;
        progress.add(bytes);
    }
    if !is_writing {
        drop(load);
        worker.finish().await??;
        return Err(CliError::internal("the files were complete before their bytes were"));
    }
    let report = load.finish().await?;
    // A writer that has failed meanwhile says why below.
    worker.feed(Item::Commit).await;
    let written = worker.finish().await??;
    drop(progress);
    let dir = args.dir.to_string_lossy();
    if output.is_json() {
        return output.object(&json::get(&report, &dir, &written));
    }
    output.text(&format!(
        "{}  {}\n{} files, {} in {} ({}), written to {dir}\n",
        printable(&report.uri),
        short(&report.revision),
        written.len(),
        size(report.bytes),
        duration(report.wall),
        rate(report.bytes, report.wall),
    ))
}
