//! 30 s in which every request is answered 503, under 200 callers that each need one read.
//!
//! A caller asks until it is served, each time as long after a failure as the failure says. What is
//! sent beyond one request for each caller is the amplification; recovered is who has been served,
//! from the end of the storm on. The storm is as long as in reality: its figures hang on the
//! breaker's waits, which double. A quick run makes the storm and these waits ten times shorter.
//! Recovery is held to its bound in the worst run too: whether the breaker looks again soon after a
//! storm or long after it is a matter of its jitter, which a median would hide.

use std::sync::Arc;
use std::time::Duration;

use forebay_origin::{OriginErrorKind, OriginSettings, SystemResolver};
use forebay_testkit::{Content, Fault, FaultRule, HttpOptions, HttpOrigin};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::engine::Engine;
use super::{OriginOptions, progress, row};
use crate::Outcome;
use crate::measure::Spread;
use crate::report::{Bound, Figure, Limit, Row};

const CALLERS: u32 = 200;
const STORM: Duration = Duration::from_secs(30);
const RECOVERED_WITHIN: Duration = Duration::from_secs(10);
const QUICK: u32 = 10;
const KEY: &str = "o";
const READ_BYTES: usize = 64 << 10;
/// How long a caller waits after a failure that does not say.
const UNTOLD: Duration = Duration::from_secs(1);
/// What a caller takes for the storm; anything else is none of it.
const TO_BE_ASKED_AGAIN: [OriginErrorKind; 2] =
    [OriginErrorKind::Throttled, OriginErrorKind::BreakerOpen];
/// Requests for each one that is needed, at most.
const SENT_MAX: f64 = 1.2;

/// One storm.
struct Ran {
    /// Requests for each caller.
    sent: f64,
    /// Seconds from its end until the first caller was served, and the last.
    first: f64,
    all: f64,
}

pub(super) fn run(options: &OriginOptions) -> Outcome<Row> {
    let shorter = if options.quick { QUICK } else { 1 };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut runs = Vec::new();
    for number in 1..=options.runs {
        let ran = runtime.block_on(storm(shorter))?;
        progress(format_args!(
            "storm {number}: {:.3} requests for each needed; first served after {:.2} s, all after \
             {:.2} s",
            ran.sent, ran.first, ran.all
        ));
        runs.push(ran);
    }
    let of = |value: fn(&Ran) -> f64| -> Spread { runs.iter().map(value).collect() };
    let (storm, within) = (STORM / shorter, RECOVERED_WITHIN / shorter);
    let seconds = |time: Duration| time.as_secs_f64();
    let mut row =
        row("storm", format!("{} s of nothing but 503 under 200 callers", seconds(storm)));
    let (sent, all) = (of(|ran| ran.sent), of(|ran| ran.all));
    row.bounds = vec![
        Bound::new("requests sent, of those needed", sent.median(), Limit::AtMost(SENT_MAX)),
        Bound::new("all served, s", all.median(), Limit::AtMost(seconds(within))),
        Bound::new("all served, s, in the worst run", all.max(), Limit::AtMost(seconds(within))),
    ];
    row.figures = vec![
        Figure::new("requests for each needed", "of 1", sent),
        Figure::new("first served after", "s", of(|ran| ran.first)),
        Figure::new("all served after", "s", all),
    ];
    Ok(row)
}

async fn storm(shorter: u32) -> Outcome<Ran> {
    let origin = HttpOrigin::start(HttpOptions::default()).await;
    origin.put(KEY, Content::synthetic(1, u64::try_from(READ_BYTES)?));
    let engine =
        Engine::open(settings(shorter), Arc::new(SystemResolver), &origin.url(KEY)).await?;
    let throttled = Fault::Status { code: 503, retry_after: None };
    let fault = origin.fault(FaultRule::new(KEY, throttled));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        callers.spawn(insist(Arc::clone(&engine), UNTOLD / shorter));
    }
    sleep(STORM / shorter).await;
    fault.remove();
    let ended = Instant::now();
    let mut served = Vec::new();
    while let Some(caller) = callers.join_next().await {
        served.push(caller??.saturating_duration_since(ended).as_secs_f64());
    }
    let served: Spread = served.into_iter().collect();
    let sent = u32::try_from(origin.counts(KEY).gets)?;
    Ok(Ran { sent: f64::from(sent) / f64::from(CALLERS), first: served.min(), all: served.max() })
}

/// The default settings, with every wait so many times shorter.
fn settings(shorter: u32) -> OriginSettings {
    let mut settings = OriginSettings::default();
    let engine = &mut settings.engine;
    let retry = &mut settings.retry;
    let waits = [
        &mut engine.breaker_open,
        &mut engine.breaker_open_cap,
        &mut retry.transient_base,
        &mut retry.transient_cap,
        &mut retry.throttle_base,
        &mut retry.throttle_cap,
    ];
    waits.into_iter().for_each(|wait| *wait /= shorter);
    settings
}

/// Reads until it is served; when it was.
async fn insist(engine: Arc<Engine>, untold: Duration) -> Outcome<Instant> {
    let mut bytes = vec![0; READ_BYTES];
    loop {
        match engine.read_range(0, &mut bytes).await {
            Ok(part) => return Ok(part.ended),
            Err(error) if TO_BE_ASKED_AGAIN.contains(&error.kind) => {
                sleep(error.retry_after.unwrap_or(untold)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
