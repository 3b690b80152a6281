//! `forebay explain`: where the time of a load went, as a page or an object.

use std::time::Duration;

use forebay_client::model::{CauseReport, Explanation, Fact};
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::CliError;
use crate::json;
use crate::output::Output;
use crate::text::{Table, duration, printable, size};

/// Below this the page says that not everything could be looked at.
const SURE: f64 = 0.95;

pub(crate) async fn run(
    context: &Context,
    load_id: Option<&str>,
    output: &mut Output,
) -> Result<(), CliError> {
    let explained = context.client().explain(load_id).await?;
    match output.is_json() {
        true => output.object(&object(&explained)),
        false => output.text(&page(&explained)),
    }
}

/// The id of a load, or none for the last one.
pub(crate) fn which(text: Option<&str>) -> Option<&str> {
    text.filter(|text| *text != "last")
}

fn page(explained: &Explanation) -> String {
    let mut text = format!(
        "{}\n\n{} as load {}, {} in all\n",
        printable(&explained.verdict),
        printable(&explained.uri),
        explained.load_id,
        duration(explained.wall),
    );
    if let Some(failure) = &explained.failure {
        text += &format!("failed: {}\n", printable(failure));
    }
    let mut causes = Table::new(&["WAITED FOR", "TIME", "SHARE", "LONGEST", "SURE", "EVIDENCE"]);
    for cause in &explained.causes {
        causes.row(row(cause));
    }
    let mut gaps = Table::new(&["LONGEST WAITS", "FROM", "TO", "LENGTH"]);
    for gap in &explained.longest_gaps {
        let (from, to) = (duration(gap.from), duration(gap.to));
        gaps.row(vec![gap.cause.clone(), from, to, duration(gap.to.saturating_sub(gap.from))]);
    }
    for table in [causes, gaps].iter().filter(|table| !table.is_empty()) {
        text.push('\n');
        text.push_str(&table.render());
    }
    text + &advice(explained) + &doubts(explained)
}

fn row(cause: &CauseReport) -> Vec<String> {
    let facts: Vec<String> = cause.evidence.iter().map(fact).collect();
    vec![
        cause.cause.clone(),
        duration(cause.time),
        percent(cause.share),
        duration(cause.longest),
        percent(cause.confidence),
        facts.join("; "),
    ]
}

fn fact(fact: &Fact) -> String {
    let whole = |value: f64| format!("{value:.0}");
    let much = match fact.unit.as_str() {
        "s" => duration(Duration::try_from_secs_f64(fact.value).unwrap_or_default()),
        "B" => whole(fact.value).parse().map_or_else(|_| whole(fact.value), size),
        unit => format!("{} {unit}", whole(fact.value)),
    };
    let said = format!("{} {much}", printable(&fact.name));
    match fact.source.as_str() {
        "clock" => said,
        source => format!("{said} ({})", printable(source)),
    }
}

/// What to change: for what took a tenth of the waiting at least.
fn advice(explained: &Explanation) -> String {
    let worth = explained.causes.iter().filter(|cause| cause.share >= 0.1);
    let lines = worth.map(|cause| format!("  {}: {}\n", cause.cause, printable(&cause.advice)));
    let lines: String = lines.collect();
    if lines.is_empty() { lines } else { format!("\nWhat to change\n{lines}") }
}

fn doubts(explained: &Explanation) -> String {
    let missing = explained.sources.iter().filter(|source| !source.available);
    let missing: Vec<String> = missing
        .map(|source| format!("  {}: {}\n", printable(&source.source), printable(&source.why)))
        .collect();
    let mut text = String::new();
    if explained.confidence < SURE {
        let sure = percent(explained.confidence);
        text += &format!("\nFor {sure} of the waiting everything could be looked at.\n");
    }
    if !missing.is_empty() {
        text += &format!("\nEvidence that is not available here\n{}", missing.concat());
    }
    text
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn object(explained: &Explanation) -> Value {
    json!({
        "load_id": explained.load_id,
        "uri": explained.uri,
        "verdict": explained.verdict,
        "failure": explained.failure,
        "opened_unix_seconds": explained.opened_unix_seconds,
        "wall_seconds": explained.wall.as_secs_f64(),
        "idle_seconds": explained.idle.as_secs_f64(),
        "gaps": explained.gaps,
        "confidence": explained.confidence,
        "causes": json::array(&explained.causes, |cause| json!({
            "cause": cause.cause,
            "meaning": cause.meaning,
            "seconds": cause.time.as_secs_f64(),
            "share": cause.share,
            "longest_seconds": cause.longest.as_secs_f64(),
            "confidence": cause.confidence,
            "evidence": json::array(&cause.evidence, |fact| json!({
                "source": fact.source,
                "name": fact.name,
                "value": fact.value,
                "unit": fact.unit,
            })),
            "advice": cause.advice,
        })),
        "longest_gaps": json::array(&explained.longest_gaps, |gap| json!({
            "cause": gap.cause,
            "from_seconds": gap.from.as_secs_f64(),
            "to_seconds": gap.to.as_secs_f64(),
        })),
        "sources": json::array(&explained.sources, |source| json!({
            "source": source.source,
            "available": source.available,
            "why": source.why,
        })),
        "critical_path": json::array(&explained.critical_path, |step| json!({
            "stage": step.stage,
            "kind": step.kind,
            "seconds": step.time.as_secs_f64(),
        })),
        "unattributed_seconds": explained.unattributed.as_secs_f64(),
        "report": explained.report.as_ref().map(|report| json::report(report, None)),
    })
}

#[cfg(test)]
mod tests {
    use forebay_client::model::IdleGap;

    use super::*;

    fn explained() -> Explanation {
        let cause = |cause: &str, millis: u64, share: f64| CauseReport {
            cause: cause.into(),
            meaning: "for the origin".into(),
            time: Duration::from_millis(millis),
            share,
            longest: Duration::from_millis(millis / 2),
            confidence: 1.0,
            evidence: vec![
                Fact { source: "clock".into(), name: "ttfb".into(), value: 0.9, unit: "s".into() },
                Fact {
                    source: "tcp_info".into(),
                    name: "out of order".into(),
                    value: 3.0,
                    unit: "segments".into(),
                },
            ],
            advice: format!("Change {cause}."),
        };
        Explanation {
            load_id: "l".into(),
            uri: "s3://b/m/".into(),
            verdict: "The GPU waited\u{1b}[2J.".into(),
            report: None,
            failure: None,
            opened_unix_seconds: 1.0,
            wall: Duration::from_secs(2),
            idle: Duration::from_millis(1000),
            gaps: 3,
            confidence: 1.0,
            causes: vec![cause("origin_slow", 950, 0.95), cause("verify", 50, 0.05)],
            longest_gaps: vec![IdleGap {
                from: Duration::ZERO,
                to: Duration::from_millis(950),
                cause: "origin_slow".into(),
            }],
            sources: Vec::new(),
            critical_path: Vec::new(),
            unattributed: Duration::ZERO,
        }
    }

    #[test]
    fn the_page_begins_with_the_verdict_and_advises_on_what_matters() {
        let page = page(&explained());
        assert!(page.starts_with("The GPU waited\\u{1b}[2J.\n"), "{page}");
        assert!(page.contains("ttfb 900.0ms; out of order 3 segments (tcp_info)"), "{page}");
        assert!(page.contains("Change origin_slow.") && !page.contains("Change verify."), "{page}");
        assert!(!page.contains("could be looked at"), "{page}");
    }

    #[test]
    fn doubts_are_said() {
        let mut explained = explained();
        explained.confidence = 0.5;
        explained.sources.push(forebay_client::model::EvidenceSource {
            source: "pressure".into(),
            available: false,
            why: "this kernel has none".into(),
        });
        let page = page(&explained);
        assert!(page.contains("For 50 % of the waiting"), "{page}");
        assert!(page.contains("pressure: this kernel has none"), "{page}");
    }

    #[test]
    fn last_is_no_id() {
        assert_eq!((which(None), which(Some("last")), which(Some("x"))), (None, None, Some("x")));
    }
}
