//! `forebay doctor`: what is in the way of loads, check by check, grouped.
//!
//! The client's own checks come first and need no daemon. If the daemon does not answer they are
//! printed anyhow, and the command ends as that failure does.

use forebay_client::model::{Check, Verdict};
use forebay_client::{ClientError, Endpoint, check_client};
use serde_json::{Value, json};

use crate::args::Global;
use crate::context::{Context, endpoint};
use crate::error::CliError;
use crate::json;
use crate::output::Output;
use crate::text::{Table, count, printable};

pub(crate) async fn run(global: &Global, output: &mut Output) -> Result<(), CliError> {
    let endpoint = endpoint(global)?;
    let mut checks = check_client(&endpoint);
    let asked = ask(global).await;
    let failed = match asked {
        Ok(of_daemon) => {
            checks.extend(of_daemon);
            None
        }
        Err(error) => {
            checks.push(unanswered(&error));
            Some(error)
        }
    };
    match output.is_json() {
        true => output.object(&object(&endpoint, &checks, failed.is_none()))?,
        false => output.text(&page(&checks))?,
    }
    let bad = with(&checks, Verdict::Bad);
    match failed {
        Some(error) => Err(error),
        None if bad > 0 => Err(CliError::BadChecks { bad }),
        None => Ok(()),
    }
}

async fn ask(global: &Global) -> Result<Vec<Check>, CliError> {
    let context = Context::connect(global).await?;
    let answered: Result<_, ClientError> = context.client().doctor().await;
    Ok(answered?)
}

/// That the daemon did not answer, as a check.
fn unanswered(error: &CliError) -> Check {
    Check {
        group: "daemon".to_owned(),
        name: "forebayd".to_owned(),
        verdict: Verdict::Bad,
        found: error.to_string(),
        advice: "what only the daemon can check is missing here; see its log".to_owned(),
    }
}

fn with(checks: &[Check], verdict: Verdict) -> usize {
    checks.iter().filter(|check| check.verdict == verdict).count()
}

/// In the order of their groups' first checks; what to do stands below each group.
fn page(checks: &[Check]) -> String {
    let mut groups: Vec<&str> = Vec::new();
    for check in checks {
        if !groups.contains(&check.group.as_str()) {
            groups.push(&check.group);
        }
    }
    // One table, so that the columns of all groups stand below each other.
    let mut table = Table::new(&["CHECK", "VERDICT", "FOUND"]);
    let of_group = |group| checks.iter().filter(move |check| check.group == group);
    for check in groups.iter().flat_map(|group| of_group(*group)) {
        let name = format!("  {}", printable(&check.name));
        table.row(vec![name, check.verdict.as_str().to_owned(), printable(&check.found)]);
    }
    let rendered = table.render();
    let mut lines = rendered.lines();
    let mut text = format!("{}\n", lines.next().unwrap_or_default());
    for group in &groups {
        text += &format!("{}\n", printable(group));
        for line in lines.by_ref().take(of_group(*group).count()) {
            text += &format!("{line}\n");
        }
    }
    text + &advice(checks) + &summary(checks)
}

fn advice(checks: &[Check]) -> String {
    let mut worst: Vec<&Check> = checks.iter().filter(|check| !check.advice.is_empty()).collect();
    // The order of the page stays, but for what is bad.
    worst.sort_by_key(|check| std::cmp::Reverse(check.verdict));
    let line = |check: &&Check| {
        let Check { name, verdict, advice, .. } = check;
        format!("  {} {}: {}\n", verdict.as_str(), printable(name), printable(advice))
    };
    let mut lines: Vec<String> = worst.iter().map(line).collect();
    lines.dedup();
    if lines.is_empty() { String::new() } else { format!("\nWhat to do\n{}", lines.concat()) }
}

fn summary(checks: &[Check]) -> String {
    let (bad, warn) = (with(checks, Verdict::Bad), with(checks, Verdict::Warn));
    let all = count(checks.len() as u64, "check");
    format!("\n{all}: {bad} bad, {warn} to be warned of\n")
}

fn object(endpoint: &Endpoint, checks: &[Check], answered: bool) -> Value {
    json!({
        "endpoint": endpoint.to_string(),
        "daemon_answered": answered,
        "ok": with(checks, Verdict::Ok),
        "warn": with(checks, Verdict::Warn),
        "bad": with(checks, Verdict::Bad),
        "checks": json::array(checks, |check| json!({
            "group": check.group,
            "name": check.name,
            "verdict": check.verdict.as_str(),
            "found": check.found,
            "advice": check.advice,
        })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(group: &str, name: &str, verdict: Verdict, advice: &str) -> Check {
        let (group, name) = (group.to_owned(), name.to_owned());
        Check { group, name, verdict, found: "it\u{1b}".to_owned(), advice: advice.to_owned() }
    }

    #[test]
    fn the_page_is_grouped_and_begins_its_advice_with_what_is_bad() {
        let checks = [
            check("client", "uid", Verdict::Ok, ""),
            check("nvme", "engine", Verdict::Warn, "allow io_uring"),
            check("client", "memlock", Verdict::Warn, "raise it"),
            check("nvme", "tier", Verdict::Bad, "look at the disk"),
        ];
        let lines = [
            "CHECK       VERDICT   FOUND",
            "client",
            "  uid       ok        it\\u{1b}",
            "  memlock   warn      it\\u{1b}",
            "nvme",
            "  engine    warn      it\\u{1b}",
            "  tier      bad       it\\u{1b}",
            "",
            "What to do",
            "  bad tier: look at the disk",
            "  warn engine: allow io_uring",
            "  warn memlock: raise it",
            "",
            "4 checks: 1 bad, 2 to be warned of",
            "",
        ];
        assert_eq!(page(&checks), lines.join("\n"));
    }

    #[test]
    fn a_clean_page_has_no_advice() {
        let page = page(&[check("client", "uid", Verdict::Ok, "")]);
        assert!(
            !page.contains("What to do") && page.ends_with("1 check: 0 bad, 0 to be warned of\n")
        );
    }
}
