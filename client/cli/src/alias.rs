//! `forebay alias` and `rollback`: names of revisions.

use std::time::Duration;

use clap::{Args, Subcommand};
use forebay_client::model::{Alias, AliasReport, AliasRevision, RolledBack, SetAliasEvent};
use forebay_client::{AliasName, RollbackRule};
use serde_json::json;

use crate::context::Context;
use crate::error::CliError;
use crate::json;
use crate::output::Output;
use crate::progress::Progress;
use crate::text::{Table, count, duration, printable, short, size};

#[derive(Debug, Subcommand)]
pub(crate) enum AliasVerb {
    /// Store a checkpoint, read it again, and have a name stand for it
    Set(SetArgs),
    /// List aliases, what they stand for and stood for before, and their rules
    Ls(LsArgs),
    /// Forget an alias; its revisions may be evicted again
    Rm(NameArg),
}

#[derive(Debug, Args)]
#[command(after_help = "\
The URI is resolved once. What it names is stored in the NVMe tier, read again and checked; only then
the name is switched, in one step. If anything fails before that, the name stands for what it stood
for. Both revisions stay pinned. While an alias is set there has to be room for three.

A rule reads METRIC > BOUND over WINDOW [min N]. The daemon measures the loads of the alias since the
switch, and when the metric is above the bound, over at least N loads of the window, it rolls back,
once. Metrics: load_failure_ratio, deadline_miss_ratio, load_seconds_p50, load_seconds_p99, data_losses.

Examples:
  forebay alias set prod s3://models/llama-3-8b/v2/
  forebay alias set prod s3://models/v3/ --rollback-if 'load_failure_ratio > 0.05 over 10m'
  forebay alias set prod canary
  forebay load prod")]
pub(crate) struct SetArgs {
    /// 1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or a digit
    #[arg(value_parser = name)]
    pub(crate) name: AliasName,

    /// Checkpoint: one object, or all under a prefix that ends in a slash; or another alias
    pub(crate) uri: String,

    /// When the daemon is to roll back by itself
    #[arg(long, value_name = "RULE", value_parser = RollbackRule::parse)]
    pub(crate) rollback_if: Option<RollbackRule>,
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Only this one, with its history
    #[arg(value_parser = name)]
    pub(crate) name: Option<AliasName>,
}

#[derive(Debug, Args)]
pub(crate) struct NameArg {
    /// The alias
    #[arg(value_parser = name)]
    pub(crate) name: AliasName,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Loads that run go on with the revision they began with. What the alias stood for stays pinned too: a
second rollback goes forward again.

Examples:
  forebay rollback prod
  forebay rollback prod --format json | jq -r '.revision'")]
pub(crate) struct RollbackArgs {
    /// The alias
    #[arg(value_parser = name)]
    pub(crate) name: AliasName,
}

fn name(text: &str) -> Result<AliasName, String> {
    AliasName::parse(text).map_err(|bad| bad.to_string())
}

pub(crate) async fn run(
    context: &Context,
    verb: AliasVerb,
    output: &mut Output,
) -> Result<(), CliError> {
    match verb {
        AliasVerb::Set(args) => set(context, &args, output).await,
        AliasVerb::Ls(args) => ls(context, args.name.as_ref(), output).await,
        AliasVerb::Rm(args) => remove(context, &args.name, output).await,
    }
}

async fn set(context: &Context, args: &SetArgs, output: &mut Output) -> Result<(), CliError> {
    let rule = args.rollback_if.as_ref();
    let mut events = context.client().set_alias(args.name.as_str(), &args.uri, rule).await?;
    let mut bar = Progress::bar_or_lines(output.format(), args.name.as_str());
    let mut done = None;
    while let Some(event) = events.next().await? {
        if output.is_json() {
            output.object(&json::setting(&event))?;
        }
        match event {
            // A check is as long again; a bar that jumps back says less than one that stands.
            SetAliasEvent::Progress(progress) if progress.step == "store" => {
                bar.set(progress.done_bytes, progress.total_bytes);
            }
            SetAliasEvent::Progress(_) => {}
            SetAliasEvent::Report(report) => done = Some(report),
        }
    }
    drop(bar);
    match done {
        None => Err(CliError::internal("the alias was set without a report")),
        Some(_) if output.is_json() => Ok(()),
        Some(report) => output.text(&set_to(&report)),
    }
}

fn set_to(report: &AliasReport) -> String {
    let alias = &report.alias;
    let verb = if report.switched { "is now" } else { "was already" };
    let mut text = format!(
        "{} {verb} {} {}, {} ({} fetched, {} read again) in {}\n",
        alias.name,
        printable(&alias.current.uri),
        short(&alias.current.revision),
        size(alias.current.bytes),
        size(report.origin_bytes),
        size(report.checked_bytes),
        duration(report.wall),
    );
    if let Some(previous) = &alias.previous {
        text += &format!("before: {}\n", shown(previous));
    }
    if let Some(rule) = &alias.rule {
        text += &format!("rolls back if {} ({})\n", rule.rule, rule.state);
        if rule.state == "idle" {
            text += "there is nothing to roll back to yet, so the rule does nothing\n";
        }
    }
    text
}

fn shown(revision: &AliasRevision) -> String {
    let mut text = format!("{} {}", printable(&revision.uri), short(&revision.revision));
    if revision.missing_bytes() > 0 {
        text += &format!(", {} of it not in NVMe", size(revision.missing_bytes()));
    }
    if let Some(why) = &revision.damaged {
        text += &format!(", damaged: {}", printable(why));
    }
    text
}

async fn ls(
    context: &Context,
    name: Option<&AliasName>,
    output: &mut Output,
) -> Result<(), CliError> {
    let aliases = context.client().aliases(name.map(AliasName::as_str)).await?;
    if output.is_json() {
        return output.object(&json!({ "aliases": json::array(&aliases, json::alias) }));
    }
    let mut text = table(&aliases).render();
    if name.is_some() {
        for alias in &aliases {
            text.push('\n');
            text.push_str(&history(alias).render());
        }
    }
    output.text(&text)
}

/// What the aliases stand for.
pub(crate) fn table(aliases: &[Alias]) -> Table {
    let headings = [
        "ALIAS",
        "REVISION",
        "SIZE",
        "SINCE (UTC)",
        "PREVIOUS",
        "RULE",
        "STATE",
        "MEASURED",
        "URI",
    ];
    let mut table = Table::new(&headings);
    for alias in aliases {
        let previous = alias.previous.as_ref().map_or("-", |previous| short(&previous.revision));
        let rule = alias.rule.as_ref();
        let measured = |rule: &forebay_client::model::AliasRule| match rule.value {
            Some(value) => format!("{value:.3} of {}", count(rule.loads, "load")),
            None => count(rule.loads, "load"),
        };
        let mut uri = shown(&alias.current);
        if let Some(setting) = &alias.setting {
            uri += &format!(" (being set to {})", printable(setting));
        }
        table.row(vec![
            alias.name.clone(),
            short(&alias.current.revision).to_owned(),
            size(alias.current.bytes),
            date(alias.since),
            previous.to_owned(),
            rule.map_or_else(|| "-".into(), |rule| rule.rule.to_string()),
            rule.map_or_else(|| "-".into(), |rule| rule.state.clone()),
            rule.map_or_else(|| "-".into(), measured),
            uri,
        ]);
    }
    table
}

fn history(alias: &Alias) -> Table {
    let mut table = Table::new(&["WHEN (UTC)", "BY", "FROM", "TO", "URI"]);
    for event in &alias.history {
        let from = event.from.as_ref().map_or("-", short);
        let why = event.why.as_ref().map(|why| format!(": {}", printable(why)));
        table.row(vec![
            date(event.at),
            event.kind.clone(),
            from.to_owned(),
            short(&event.revision).to_owned(),
            printable(&event.uri) + &why.unwrap_or_default(),
        ]);
    }
    table
}

async fn remove(context: &Context, name: &AliasName, output: &mut Output) -> Result<(), CliError> {
    let revisions = context.client().remove_alias(name.as_str()).await?;
    if output.is_json() {
        return output.object(&json!({ "name": name.as_str(), "revisions": revisions }));
    }
    let freed = count(revisions, "revision");
    output.text(&format!("{name} is forgotten; {freed} may be evicted now\n"))
}

pub(crate) async fn rollback(
    context: &Context,
    args: &RollbackArgs,
    output: &mut Output,
) -> Result<(), CliError> {
    let done = context.client().rollback(args.name.as_str()).await?;
    if output.is_json() {
        let mut object = json::alias(&done.alias);
        object["wall_seconds"] = json!(done.wall.as_secs_f64());
        return output.object(&object);
    }
    output.text(&rolled_back(&done))
}

fn rolled_back(done: &RolledBack) -> String {
    let alias = &done.alias;
    let mut text =
        format!("{} is again {}, in {}\n", alias.name, shown(&alias.current), duration(done.wall));
    if let Some(previous) = &alias.previous {
        text += &format!("before: {}\n", shown(previous));
    }
    text
}

/// `2026-11-29 16:12:19` of a time since the epoch.
fn date(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // The civil calendar repeats every 400 years, counted from 1 March of the year 0.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let date = |seconds| date(Duration::from_secs(seconds));
        assert_eq!(date(0), "1970-01-01 00:00:00");
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(date(1_700_000_000), "2023-11-14 22:13:20");
        assert_eq!(date(1_796_055_139), "2026-11-30 16:12:19");
        assert_eq!(date(4_107_542_399), "2100-02-28 23:59:59");
        assert_eq!(date(4_107_542_400), "2100-03-01 00:00:00");
    }
}
