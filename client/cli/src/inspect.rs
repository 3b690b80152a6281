//! `forebay ls` and `stat`: what is cached, and what a URI resolves to.

use forebay_client::Stat;
use forebay_client::model::CachedCheckpoint;

use crate::context::Context;
use crate::error::CliError;
use crate::json;
use crate::output::Output;
use crate::text::{Table, duration, printable, short, size};

pub(crate) async fn ls(
    context: &Context,
    uri: Option<&str>,
    output: &mut Output,
) -> Result<(), CliError> {
    let checkpoints = context.client().list(uri).await?;
    match output.is_json() {
        true => output.object(&json::list(&checkpoints)),
        false => output.text(&cached(&checkpoints)),
    }
}

fn cached(checkpoints: &[CachedCheckpoint]) -> String {
    let headings = ["URI", "REVISION", "OBJECTS", "SIZE", "RAM", "NVME", "PINNED", "LOADS", "IDLE"];
    let mut table = Table::new(&headings);
    for checkpoint in checkpoints {
        table.row(vec![
            printable(&checkpoint.uri),
            short(&checkpoint.revision).to_owned(),
            checkpoint.object_count.to_string(),
            size(checkpoint.bytes),
            size(checkpoint.cached.ram),
            size(checkpoint.cached.nvme),
            if checkpoint.pinned { "yes" } else { "no" }.to_owned(),
            checkpoint.active_loads.to_string(),
            duration(checkpoint.idle),
        ]);
    }
    table.render()
}

pub(crate) async fn stat(
    context: &Context,
    uri: &str,
    output: &mut Output,
) -> Result<(), CliError> {
    let stat = context.client().stat(uri).await?;
    match output.is_json() {
        true => output.object(&json::stat(&stat)),
        false => output.text(&resolved(&stat)),
    }
}

fn resolved(stat: &Stat) -> String {
    let summary = &stat.summary;
    let mut text = format!(
        "URI:       {}\nRevision:  {}\nSize:      {} ({} bytes) in {} objects, {} tensors\n\
         Cached:    RAM {}, NVMe {}, only at the origin {}\n",
        printable(&summary.uri),
        summary.revision,
        size(summary.bytes),
        summary.bytes,
        summary.object_count,
        summary.tensor_count,
        size(summary.cached.ram),
        size(summary.cached.nvme),
        size(summary.cached.origin),
    );
    let mut objects = Table::new(&["OBJECT", "SIZE", "RAM", "NVME", "ETAG", "VERSION"]);
    for object in stat.manifest.objects() {
        let given = |text: &Option<String>| text.as_deref().map_or_else(|| "-".into(), printable);
        objects.row(vec![
            printable(&object.key),
            size(object.bytes),
            size(object.cached_ram_bytes),
            size(object.cached_nvme_bytes),
            given(&object.etag),
            given(&object.version),
        ]);
    }
    let mut tensors = Table::new(&["TENSOR", "DTYPE", "SHAPE", "SIZE", "OBJECT"]);
    for tensor in stat.manifest.tensors() {
        let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
        let key = stat.manifest.object(tensor.object).map(|object| printable(&object.key));
        tensors.row(vec![
            printable(&tensor.name),
            printable(&tensor.dtype),
            format!("[{}]", shape.join(", ")),
            size(tensor.bytes()),
            key.unwrap_or_default(),
        ]);
    }
    for table in [objects, tensors].iter().filter(|table| !table.is_empty()) {
        text.push('\n');
        text.push_str(&table.render());
    }
    text
}
