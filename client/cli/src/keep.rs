//! `forebay pin`, `unpin` and `evict`: what stays in the tiers.

use forebay_client::EvictRequest;
use forebay_client::model::{Evicted, Pinned};

use crate::args::EvictArgs;
use crate::context::Context;
use crate::error::CliError;
use crate::json;
use crate::output::Output;
use crate::text::{count, printable, size};

pub(crate) async fn pin(context: &Context, uri: &str, output: &mut Output) -> Result<(), CliError> {
    let pinned = context.client().pin(uri).await?;
    match output.is_json() {
        true => output.object(&json::pinned(uri, pinned)),
        false => output.text(&kept(uri, pinned)),
    }
}

fn kept(uri: &str, pinned: Pinned) -> String {
    let mut text = format!(
        "{}: {} pinned, {} in NVMe",
        printable(uri),
        count(pinned.checkpoints, "checkpoint"),
        size(pinned.nvme_bytes)
    );
    if pinned.missing_bytes > 0 {
        text += &format!(", {} missing there", size(pinned.missing_bytes));
    }
    text + "\n"
}

pub(crate) async fn unpin(
    context: &Context,
    uri: &str,
    output: &mut Output,
) -> Result<(), CliError> {
    let unpinned = context.client().unpin(uri).await?;
    if output.is_json() {
        return output.object(&json::unpinned(uri, unpinned));
    }
    let checkpoints = count(unpinned.checkpoints, "checkpoint");
    output.text(&format!("{}: {checkpoints} unpinned\n", printable(uri)))
}

pub(crate) async fn evict(
    context: &Context,
    args: &EvictArgs,
    output: &mut Output,
) -> Result<(), CliError> {
    let mut request = EvictRequest::new(&args.uri);
    if let Some(tier) = args.tier {
        request = request.tier(tier.into());
    }
    let evicted = context.client().evict(request).await?;
    match output.is_json() {
        true => output.object(&json::evicted(&args.uri, evicted)),
        false => output.text(&dropped(&args.uri, evicted)),
    }
}

fn dropped(uri: &str, evicted: Evicted) -> String {
    let mut text = format!(
        "{}: {} dropped, {} freed in RAM, {} in NVMe",
        printable(uri),
        count(evicted.checkpoints, "checkpoint"),
        size(evicted.freed_bytes),
        size(evicted.nvme_freed_bytes)
    );
    if evicted.leased_bytes > 0 {
        text += &format!(", {} of RAM when their leases end", size(evicted.leased_bytes));
    }
    if evicted.pinned_checkpoints > 0 {
        let pinned = count(evicted.pinned_checkpoints, "checkpoint");
        text += &format!("; pinned and kept in NVMe: {pinned}");
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_says_what_is_not_there() {
        let pinned = Pinned { checkpoints: 2, nvme_bytes: 3 << 20, missing_bytes: 0 };
        assert_eq!(kept("s3://b/", pinned), "s3://b/: 2 checkpoints pinned, 3.0 MiB in NVMe\n");
        let pinned = Pinned { checkpoints: 1, missing_bytes: 1 << 20, ..pinned };
        let text = "s3://b/: 1 checkpoint pinned, 3.0 MiB in NVMe, 1.0 MiB missing there\n";
        assert_eq!(kept("s3://b/", pinned), text);
    }

    #[test]
    fn an_eviction_says_what_stays() {
        let evicted = Evicted {
            checkpoints: 1,
            freed_bytes: 2048,
            leased_bytes: 0,
            nvme_freed_bytes: 4096,
            pinned_checkpoints: 0,
        };
        let text = "s3://b/: 1 checkpoint dropped, 2.0 KiB freed in RAM, 4.0 KiB in NVMe";
        assert_eq!(dropped("s3://b/", evicted), format!("{text}\n"));
        let evicted = Evicted { leased_bytes: 1, pinned_checkpoints: 3, ..evicted };
        let rest = ", 1 B of RAM when their leases end; \
                    pinned and kept in NVMe: 3 checkpoints\n";
        assert_eq!(dropped("s3://b/", evicted), format!("{text}{rest}"));
    }
}
