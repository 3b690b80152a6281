//! The daemon of the soak: one after another over the same directory.
//!
//! Before each end, and after the next start, the warm checkpoints are loaded once, amid what
//! clients do: the share of their bytes that was a hit. After a start the origin's own count is
//! held against it: a byte that another client had fetched again would look like a hit.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use forebay_client::{Client, Endpoint, EvictRequest, KeepTier, LoadRequest, PrefetchRequest};
use forebay_testkit::Prng;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::Instant;

use super::crew::Told;
use super::left::{self, Descriptors};
use super::weather::Site;
use super::{CHUNK_BYTES, gauges};
use crate::Outcome;
use crate::process::{DaemonProcess, DaemonSpec};
use crate::scrape::{exposition, metrics_address};

/// A third of the checkpoints; guarantees of four slots each for 48 loads.
const RAM: &str = "12MiB";
/// More than all of them, with all their versions.
const NVME: &str = "128MiB";
/// How long a daemon waits for loads when it is told to end.
const DRAIN: &str = "10s";
/// How long it may take to end after that.
const END_WITHIN: Duration = Duration::from_secs(25);
/// Tries of a load that finds whether bytes are hits are made for so long.
const PROBE_WITHIN: Duration = Duration::from_secs(60);
/// How long a daemon may take until everything is at rest.
const REST_WITHIN: Duration = Duration::from_secs(45);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How a daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Kill,
    Term,
}

/// One end and the start after it.
#[derive(Debug)]
pub(super) struct Death {
    pub(super) end: End,
    /// Shares of the warm bytes that were hits.
    pub(super) before: f64,
    pub(super) after: f64,
    /// From the signal to the end, and from the start until it was ready.
    pub(super) ending: Duration,
    pub(super) starting: Duration,
}

/// All ends.
#[derive(Debug, Default)]
pub(super) struct Deaths {
    pub(super) all: Vec<Death>,
    /// SIGTERMs after which it did not end as it should, and ends that nobody asked for.
    pub(super) bad: Told,
    /// Panics in logs.
    pub(super) panics: Told,
}

/// What the last daemon has when nobody wants anything.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Gauges that are not zero.
    pub(super) gauges: Vec<String>,
    /// Descriptors that the first daemon, warm and at rest, did not have; and of what.
    pub(super) descriptors: i64,
    pub(super) of_what: String,
    /// Those that evidence is read from, and the threads that there are.
    pub(super) evidence: i64,
    pub(super) threads: i64,
    /// Segments that no pool has.
    pub(super) segments: i64,
    /// Files that nobody knows.
    pub(super) files: Vec<String>,
    /// Memory of its own that the first one did not have.
    pub(super) more_private_bytes: i64,
}

/// The daemon of now.
#[derive(Debug)]
pub(super) struct Lives {
    program: PathBuf,
    args: &'static [&'static str],
    env: Vec<(String, String)>,
    socket: PathBuf,
    /// None only while there is none.
    daemon: Option<DaemonProcess>,
    client: Option<Client>,
    /// Of the first one, warm and at rest.
    descriptors: Descriptors,
    private_bytes: u64,
    deaths: Deaths,
}

impl Lives {
    /// Starts the first one, and fetches everything.
    pub(super) async fn begin(program: Option<&Path>, site: &Site) -> Outcome<Self> {
        let (program, args): (_, &[&str]) = match program {
            Some(program) => (program.to_owned(), &[]),
            None => (std::env::current_exe()?, &["daemon"]),
        };
        let env = [
            ("FOREBAY_CHUNK", format!("{}KiB", CHUNK_BYTES >> 10)),
            ("FOREBAY_DRAIN", DRAIN.to_owned()),
            ("FOREBAY_FIRST_BYTE_TIMEOUT", "1s".to_owned()),
            ("FOREBAY_BODY_IDLE_TIMEOUT", "1s".to_owned()),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value));
        let mut lives = Self {
            program,
            args,
            env: env.into_iter().chain(site.origin.env()).collect(),
            socket: PathBuf::new(),
            daemon: None,
            client: None,
            descriptors: Descriptors::default(),
            private_bytes: 0,
            deaths: Deaths::default(),
        };
        let daemon = lives.spec().start()?;
        lives.socket = daemon.socket();
        lives.daemon = Some(daemon);
        lives.warm_up(site).await?;
        Ok(lives)
    }

    fn spec(&self) -> DaemonSpec {
        let flags = ["--log", "json", "--metrics", "127.0.0.1:0", "--ram", RAM, "--nvme", NVME];
        let spec = DaemonSpec::new(&self.program, self.args).env(self.env.clone());
        flags.into_iter().fold(spec, DaemonSpec::arg)
    }

    async fn warm_up(&mut self, site: &Site) -> Outcome<()> {
        let client = self.client().await?;
        for uri in site.warm() {
            let request = PrefetchRequest::new(uri).tier(KeepTier::Nvme);
            let mut progress = client.prefetch(request).await?;
            while progress.next().await?.is_some() {}
        }
        for uri in site.all() {
            hits(&client, &uri).await?;
        }
        // Its session is one of those that have to end.
        drop(client);
        self.client = None;
        let astray = self.at_rest().await?;
        if !astray.is_empty() {
            return Err(format!("the first daemon is not at rest: {astray:?}").into());
        }
        let mut before = Descriptors::default();
        // The connections of this process end in the background.
        for _ in 0..tries(REST_WITHIN) {
            let now = Descriptors::of(self.daemon()?, &site.origin)?;
            if now == before {
                break;
            }
            before = now;
            tokio::time::sleep(LOOK_AGAIN * 4).await;
        }
        self.descriptors = before;
        self.private_bytes = left::private_bytes(self.daemon()?)?;
        Ok(())
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    fn daemon(&self) -> Outcome<&DaemonProcess> {
        Ok(self.daemon.as_ref().ok_or("there is no daemon")?)
    }

    /// A client of this process.
    pub(super) async fn client(&mut self) -> Outcome<Client> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let client = Client::connect(Endpoint::unix(&self.socket)?).await?;
        self.client = Some(client.clone());
        Ok(client)
    }

    /// How the next one ends. Both ways come first.
    pub(super) fn draw(&self, rng: &mut Prng) -> End {
        match self.deaths.all.len() {
            0 => End::Kill,
            1 => End::Term,
            _ => [End::Kill, End::Term][usize::from(rng.chance(400))],
        }
    }

    /// Whether it has ended both ways.
    pub(super) fn both(&self) -> bool {
        self.deaths.all.len() >= 2
    }

    /// Sees that it is still there.
    pub(super) fn look(&mut self) -> Outcome<()> {
        let daemon = self.daemon.as_mut().ok_or("there is no daemon")?;
        match daemon.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("the daemon ended with {status}: {}", daemon.log()).into()),
        }
    }

    /// Ends it and starts the next one.
    pub(super) async fn end(&mut self, end: End, site: &Site) -> Outcome<()> {
        let before = self.share_of_hits(site).await?;
        self.client = None;
        let begun = Instant::now();
        let daemon = self.daemon.take().ok_or("there is no daemon")?;
        let dir = self.stop(daemon, end).await?;
        let (ending, fetched) = (begun.elapsed(), site.warm_fetched());
        let begun = Instant::now();
        self.daemon = Some(self.spec().start_in(dir)?);
        let starting = begun.elapsed();
        let seen = self.share_of_hits(site).await?;
        let again = site.warm_fetched().saturating_sub(fetched) as f64 / site.warm_bytes() as f64;
        let after = seen.min(1.0 - again);
        self.deaths.all.push(Death { end, before, after, ending, starting });
        Ok(())
    }

    async fn stop(&mut self, mut daemon: DaemonProcess, end: End) -> Outcome<TempDir> {
        if end == End::Term {
            daemon.signal(Signal::TERM)?;
            match ended(&mut daemon).await? {
                Some(status) if status.code() == Some(0) => {}
                Some(status) => self.deaths.bad.add(format!("SIGTERM ended it with {status}")),
                None => self.deaths.bad.add(format!("SIGTERM did not end it in {END_WITHIN:?}")),
            }
        }
        self.read_log(&daemon);
        Ok(daemon.kill()?)
    }

    /// Its log goes with it.
    fn read_log(&mut self, daemon: &DaemonProcess) {
        let log = daemon.log();
        let panics = log.lines().filter(|line| line.contains("panicked at"));
        panics.for_each(|line| self.deaths.panics.add(line));
    }

    /// Of the warm checkpoints, loaded once.
    async fn share_of_hits(&mut self, site: &Site) -> Outcome<f64> {
        let client = self.client().await?;
        let mut of = (0, 0);
        for uri in site.warm() {
            let (hit, all) = at_last(&client, &uri).await?;
            of = (of.0 + hit, of.1 + all);
        }
        Ok(of.0 as f64 / of.1 as f64)
    }

    /// Waits until nobody wants anything; gauges that do not come to that.
    async fn at_rest(&self) -> Outcome<Vec<String>> {
        let address = metrics_address(&self.daemon()?.log())?;
        let mut astray = Vec::new();
        for _ in 0..tries(REST_WITHIN) {
            astray = gauges::astray(&exposition(&address)?);
            if astray.is_empty() {
                break;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(astray)
    }

    /// Loads everything once more, well, and looks at what is left after that.
    pub(super) async fn rest(&mut self, site: &Site) -> Outcome<Left> {
        let client = self.client().await?;
        for uri in site.all() {
            client.evict(EvictRequest::new(uri.clone()).tier(KeepTier::Ram)).await?;
            // A breaker may still be open.
            at_last(&client, &uri).await?;
        }
        drop(client);
        self.client = None;
        let gauges = self.at_rest().await?;
        let status = self.client().await?.status().await?;
        self.client = None;
        let mut left = Left { gauges, ..Left::default() };
        let daemon = self.daemon()?;
        for _ in 0..tries(REST_WITHIN) {
            let now = Descriptors::of(daemon, &site.origin)?;
            (left.descriptors, left.of_what) = now.more_than(&self.descriptors);
            left.evidence = now.evidence;
            if left.descriptors == 0 {
                break;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let (there, known) = left::segments(daemon, &status)?;
        left.segments = i64::try_from(there)? - i64::try_from(known)?;
        left.files = left::files(daemon, &status)?;
        left.threads = left::threads(daemon)?;
        let private = left::private_bytes(daemon)?;
        left.more_private_bytes = i64::try_from(private)? - i64::try_from(self.private_bytes)?;
        Ok(left)
    }

    /// Ends the last one, as it should be.
    pub(super) async fn finish(mut self) -> Outcome<Deaths> {
        if let Some(daemon) = self.daemon.take() {
            let socket = daemon.socket();
            drop(self.stop(daemon, End::Term).await?);
            if socket.exists() {
                self.deaths.bad.add("it left its socket behind");
            }
        }
        Ok(self.deaths)
    }
}

/// How often to look within a time.
fn tries(within: Duration) -> u128 {
    within.as_millis() / LOOK_AGAIN.as_millis()
}

/// How it ended, if it does.
async fn ended(daemon: &mut DaemonProcess) -> Outcome<Option<ExitStatus>> {
    for _ in 0..tries(END_WITHIN) {
        if let Some(status) = daemon.try_wait()? {
            return Ok(Some(status));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(None)
}

/// Loads once, with as many tries as that takes: the bytes that were hits, and all.
async fn at_last(client: &Client, uri: &str) -> Outcome<(u64, u64)> {
    let begun = Instant::now();
    loop {
        match hits(client, uri).await {
            Ok(found) => return Ok(found),
            Err(error) if begun.elapsed() > PROBE_WITHIN => return Err(error),
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

/// Loads: the bytes that were hits, and all.
async fn hits(client: &Client, uri: &str) -> Outcome<(u64, u64)> {
    let load = client.load(LoadRequest::new(uri).deadline(PROBE_WITHIN)).await?;
    let report = load.finish().await?;
    let tiers = report.bytes_by_tier;
    Ok((tiers.ram + tiers.nvme, report.bytes))
}
