//! Loads to a device: `--device`, `--rank`, and what is told about the copies.

use std::sync::Arc;

use clap::Args;
use forebay_client::{Device, DeviceReport, DeviceSpec, Layout, Load, MemoryPath, Resident, Shard};

use crate::error::CliError;
use crate::progress::Progress;
use crate::text::{duration, printable, rate, size};

/// Which slice of every tensor to load.
#[derive(Debug, Args)]
pub(crate) struct ShardArgs {
    /// Only the slices that rank R of N wants in tensor parallelism, counted from 0
    #[arg(long, value_name = "R/N", value_parser = rank)]
    rank: Option<Shard>,

    /// Along which dimension tensors are cut for --rank; 0 is the outermost
    #[arg(long, value_name = "D", default_value_t = 0, requires = "rank")]
    dim: u32,

    /// Along which dimension the tensors are cut whose name matches; the first that matches counts,
    /// before --dim
    #[arg(long, value_name = "GLOB=DIM", requires = "rank", value_parser = rule)]
    shard: Vec<Rule>,
}

/// One `GLOB=DIM`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    glob: String,
    dim: u32,
}

impl ShardArgs {
    /// What was asked for, if anything.
    pub(crate) fn shard(&self) -> Result<Option<Shard>, CliError> {
        let Some(shard) = self.rank.clone() else { return Ok(None) };
        let rules = self.shard.iter().map(|rule| (rule.glob.as_str(), rule.dim));
        let shard = rules
            .chain([("**", self.dim)])
            .try_fold(shard, |shard, (glob, dim)| shard.along(glob, dim));
        shard.map(Some).map_err(|error| CliError::bad_request(&error.to_string()))
    }
}

/// Opens a device. That it is missing on this machine is no mistake on the command line.
pub(crate) fn open(spec: DeviceSpec) -> Result<Arc<dyn Device>, CliError> {
    spec.open().map_err(|error| CliError::Client(error.into()))
}

fn rank(text: &str) -> Result<Shard, String> {
    let number = |text: &str| text.parse::<u32>().ok();
    let parts = text.split_once('/');
    let parts = parts.and_then(|(rank, ranks)| Some((number(rank)?, number(ranks)?)));
    let (rank, ranks) = parts.ok_or("it is not R/N, as in 0/8")?;
    Shard::new(rank, ranks).map_err(|error| error.to_string())
}

fn rule(text: &str) -> Result<Rule, String> {
    let parts = text.rsplit_once('=').filter(|(glob, _)| !glob.is_empty());
    let rule =
        parts.and_then(|(glob, dim)| Some(Rule { glob: glob.to_owned(), dim: dim.parse().ok()? }));
    rule.ok_or_else(|| "it is not GLOB=DIM, as in '*.o_proj.weight=1'".to_owned())
}

/// Copies a load to its device.
pub(crate) async fn copy(
    load: Load,
    layout: Layout,
    progress: &mut Progress,
) -> Result<Resident, CliError> {
    let mut load = load.to_device(layout)?;
    while let Some(tensor) = load.next().await? {
        progress.add(tensor.bytes);
    }
    Ok(load.finish().await?)
}

/// How the copies went, for a person.
pub(crate) fn human(report: &DeviceReport) -> String {
    let why = match &report.path {
        MemoryPath::Staged { why } => format!(", because {}", printable(why)),
        _ => String::new(),
    };
    format!(
        "device {} ({}): {} in {} copies by {} streams, {}{why}\n\
         first copy handed over after {}, copying from {} to {}: busy {} ({}), idle {}\n",
        report.spec,
        printable(&report.name),
        size(report.bytes),
        report.copies,
        report.streams,
        report.path.as_str(),
        duration(report.first_submit),
        duration(report.first_copy),
        duration(report.last_copy),
        duration(report.busy),
        rate(report.bytes, report.busy),
        duration(report.idle),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_and_rules_are_read_or_said_to_be_none() {
        assert_eq!(rank("3/8").unwrap(), Shard::new(3, 8).unwrap());
        for bad in ["", "3", "8/8", "-1/8", "a/b", "0/0", "1/2/3"] {
            rank(bad).unwrap_err();
        }
        assert_eq!(rule("a=b.*=1"), Ok(Rule { glob: "a=b.*".into(), dim: 1 }));
        for bad in ["", "=1", "a", "a=", "a=x", "a=-1"] {
            rule(bad).unwrap_err();
        }
    }

    #[test]
    fn rules_come_before_the_dimension_of_all_others() {
        let rules = vec![rule("*.o=1").unwrap()];
        let args = ShardArgs { rank: Some(rank("1/2").unwrap()), dim: 0, shard: rules };
        let wanted = Shard::new(1, 2).unwrap().along("*.o", 1).unwrap().along("**", 0).unwrap();
        assert_eq!(args.shard().unwrap(), Some(wanted));
        let none = ShardArgs { rank: None, dim: 0, shard: Vec::new() };
        assert_eq!(none.shard().unwrap(), None);
    }
}
