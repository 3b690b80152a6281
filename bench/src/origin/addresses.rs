//! One bad address of eight: how long parts take once the engine has met it five times.
//!
//! Eight loopback addresses of one name serve parts of 8 MiB at 90 MB/s each, and close connections
//! after four requests, so that new ones are made all the time. In turn all are well, the last one
//! swallows connections, or it is 20 times slower. Only parts that were asked for after the address
//! had gone wrong five times count: five connects that came to nothing, or five requests that it
//! took on. The engine starts anew for every run.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use forebay_origin::OriginSettings;
use forebay_testkit::{BlackHole, Content, FakeDns, RawFiles, RawOptions, RawOrigin};
use tokio::time::{Instant, sleep};

use super::engine::{Buffers, Engine, PartTime};
use super::{OriginOptions, progress, row};
use crate::Outcome;
use crate::measure::{Spread, quantile};
use crate::report::{Bound, Figure, Limit, Row};

const HOST: &str = "origin.test";
const KEY: &str = "blob";
const OBJECT_BYTES: u64 = 256 << 20;
const ADDRESSES: u8 = 8;
const FIRST_BYTE: Duration = Duration::from_millis(40);
const RATE: u64 = 90_000_000;
const SLOWER: u64 = 20;
const REQUESTS_PER_CONNECTION: u64 = 4;
/// As many as the engine lets through at first, so that no part waits for another.
const CALLERS: usize = 8;
const PARTS: u64 = 900;
const PARTS_QUICK: u64 = 300;
/// How often the address may go wrong.
const FAILURES: u64 = 5;
/// Parts that a quantile needs.
const COUNTED_MIN: usize = 100;
/// Of the healthy p99, at most.
const P99_MAX: f64 = 1.5;
/// How often it is looked whether the address has gone wrong often enough.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Tries to find a port that is free on all addresses.
const PORTS_MAX: usize = 16;

/// What the last address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Well,
    BlackHole,
    Slow,
}

/// The last address, as it is.
enum Eighth {
    Origin(RawOrigin),
    Hole(#[expect(dead_code, reason = "it swallows connections while it lives")] BlackHole),
}

/// Seven good addresses, and the place of the eighth. Every run has a port of its own: connections
/// that ended a moment ago would keep the black hole from the old one.
struct Site<'a> {
    files: &'a RawFiles,
    port: u16,
    _good: Vec<RawOrigin>,
}

pub(super) fn run(options: &OriginOptions) -> Outcome<Vec<Row>> {
    let parts = if options.quick { PARTS_QUICK } else { PARTS };
    let content = Content::synthetic(1, OBJECT_BYTES);
    let files = RawFiles::make([(KEY.to_owned(), &content)])?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut buffers = Buffers::touched(CALLERS);
    let variants = [Last::Well, Last::BlackHole, Last::Slow];
    let mut found: [Vec<P99>; 3] = Default::default();
    for number in 1..=options.runs {
        for (last, found) in variants.iter().zip(&mut found) {
            let site = Site::start(&files)?;
            let ran = runtime.block_on(site.measure(*last, parts, &mut buffers))?;
            progress(format_args!(
                "addresses {number}, {last:?}: p99 {:.0} ms of {} parts, {:.0} ms of all",
                ran.after * 1e3,
                ran.counted,
                ran.all * 1e3
            ));
            found.push(ran);
        }
    }
    let [well, hole, slow] = found;
    Ok(vec![
        judge("address-blackholed", "swallows connections", &well, &hole),
        judge("address-slow", "is 20 times slower", &well, &slow),
    ])
}

/// The p99 part time of a run in seconds, of the parts that count and of all.
struct P99 {
    after: f64,
    all: f64,
    counted: usize,
}

fn judge(name: &'static str, how: &str, well: &[P99], ill: &[P99]) -> Row {
    let of = |runs: &[P99], value: fn(&P99) -> f64| -> Spread { runs.iter().map(value).collect() };
    let (healthy, after) = (of(well, |run| run.after), of(ill, |run| run.after));
    let value = after.median() / healthy.median();
    let mut row = row(name, format!("p99 part time where one of eight addresses {how}"));
    row.bounds = vec![Bound::new("after five failures, of healthy", value, Limit::AtMost(P99_MAX))];
    row.figures = vec![
        Figure::new("all healthy", "s", healthy),
        Figure::new("after five failures", "s", after),
        Figure::new("from the start", "s", of(ill, |run| run.all)),
    ];
    row
}

fn address(last: u8, port: u16) -> SocketAddr {
    SocketAddr::new(ip(last), port)
}

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

impl<'a> Site<'a> {
    fn start(files: &'a RawFiles) -> Outcome<Self> {
        for _ in 0..PORTS_MAX {
            let first = serve(files, address(1, 0), RATE)?;
            let port = first.address().port();
            let others = (2..ADDRESSES).map(|last| serve(files, address(last, port), RATE));
            if let Ok(mut good) = others.collect::<io::Result<Vec<_>>>() {
                good.push(first);
                return Ok(Self { files, port, _good: good });
            }
        }
        Err("no port is free on all loopback addresses".into())
    }

    fn eighth(&self, last: Last) -> io::Result<Eighth> {
        let at = address(ADDRESSES, self.port);
        Ok(match last {
            Last::Well => Eighth::Origin(serve(self.files, at, RATE)?),
            Last::Slow => Eighth::Origin(serve(self.files, at, RATE / SLOWER)?),
            Last::BlackHole => Eighth::Hole(BlackHole::open_at(at)?),
        })
    }

    async fn measure(&self, last: Last, parts: u64, buffers: &mut Buffers) -> Outcome<P99> {
        let eighth = self.eighth(last)?;
        let dns = FakeDns::new();
        dns.set(HOST, (1..=ADDRESSES).map(ip));
        let uri = format!("http://{HOST}:{}/{KEY}", self.port);
        let engine = Engine::open(OriginSettings::default(), Arc::new(dns), &uri).await?;
        let mut since = (last == Last::Well).then(Instant::now);
        let gone_wrong = || match &eighth {
            Eighth::Origin(origin) => origin.counts().gets >= FAILURES,
            Eighth::Hole(_) => failed(&engine),
        };
        let mut reading = Box::pin(engine.read_all(parts, buffers));
        let times = loop {
            tokio::select! {
                times = &mut reading => break times?,
                () = sleep(LOOK_AGAIN), if since.is_none() => {
                    since = gone_wrong().then(Instant::now);
                }
            }
        };
        Ok(P99::of(&times, since))
    }
}

/// Whether the last address has failed as often as it may.
fn failed(engine: &Engine) -> bool {
    let stats = engine.origins.addresses();
    let last = stats.iter().find(|stats| stats.address == ip(ADDRESSES));
    last.is_some_and(|stats| stats.ejections > 0 || u64::from(stats.failures) >= FAILURES)
}

fn serve(files: &RawFiles, listen: SocketAddr, rate: u64) -> io::Result<RawOrigin> {
    let options = RawOptions {
        listen,
        first_byte: FIRST_BYTE,
        bytes_per_second: Some(rate),
        requests_per_connection: Some(REQUESTS_PER_CONNECTION),
        ..RawOptions::default()
    };
    RawOrigin::start(options, files)
}

impl P99 {
    fn of(times: &[PartTime], since: Option<Instant>) -> Self {
        let p99 = |times: Vec<Duration>| quantile(times, 990).map_or(f64::NAN, |p| p.as_secs_f64());
        let time = |part: &PartTime| part.ended.saturating_duration_since(part.started);
        let counts = |part: &&PartTime| since.is_some_and(|since| part.started >= since);
        let after: Vec<Duration> = times.iter().filter(counts).map(time).collect();
        let counted = after.len();
        let after = if counted >= COUNTED_MIN { p99(after) } else { f64::NAN };
        Self { after, all: p99(times.iter().map(time).collect()), counted }
    }
}
