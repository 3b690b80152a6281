//! `forebay-bench soak`: everything that goes wrong on a node, for as long as one likes, and then
//! a look at what is left.
//!
//! ```text
//! client.rs    one client, a process: loads, compares, holds, looks again
//!    │ truth.rs  what it should get
//! crew.rs      all of them: killed, started again; what they said
//! weather.rs   the origin, its faults
//! lives.rs     the daemon: SIGKILL, SIGTERM, and the next one on the same directory
//! left.rs, gauges.rs  what there is when nobody wants anything
//! verdict.rs   what all that is held to
//! ```
//!
//! This process owns all others and every draw: the seed decides who is killed, which faults come
//! and how a daemon ends. That happens at times, not at events, so two runs with one seed are alike
//! and not the same. The last quarter of the time belongs to one daemon, the one that is looked at
//! in the end.

mod client;
mod crew;
mod gauges;
mod left;
mod lives;
mod truth;
mod verdict;
mod weather;

use std::path::PathBuf;
use std::time::Duration;

use forebay_client::{CallOptions, Client};
use forebay_testkit::Prng;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::Outcome;
use crate::report::Table;
use crate::run::duration;
use crew::{Crew, Roll, Told};
use lives::{End, Lives};
use verdict::Found;
use weather::{Site, Weather};

pub use client::{ClientArgs, serve};

/// What the command says below its flags.
pub const HELP: &str = "\
Clients are processes, which load through one daemon from an embedded S3 origin with faults; both
they and the daemon are killed at random, and started again. Every byte is compared. At the end all
clients go, and the daemon has to have nothing left. Exits with 1 if anything is missed. Needs 2 GiB
of memory, and neither a network nor root.

Example: forebay-bench soak --for 30m --seed 7";

/// Small, so that there are many of them.
const CHUNK_BYTES: u64 = 64 << 10;
/// How often it is looked what is due.
const TICK: Duration = Duration::from_millis(20);
/// Between two deaths of a client, and so on: on average half of it.
const KILLS: Duration = Duration::from_millis(700);
const EVICTIONS: Duration = Duration::from_secs(2);
const CHANGES: Duration = Duration::from_secs(2);
/// What a verb of the driver may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a client may take until the next daemon has answered it.
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// How long clients may take to end.
const END_WITHIN: Duration = Duration::from_secs(60);

/// How the soak is run.
#[derive(Debug, Clone, clap::Args)]
pub struct SoakOptions {
    /// How long
    #[arg(long = "for", value_name = "DURATION", default_value = "2m", value_parser = duration)]
    pub length: Duration,
    /// The seed of every draw
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Client processes at a time
    #[arg(
        long,
        value_name = "N",
        default_value_t = 50,
        value_parser = clap::value_parser!(u16).range(1..=500)
    )]
    pub clients: u16,
    /// The daemon [default: this program, which has it built in]
    #[arg(long, value_name = "PROGRAM")]
    pub daemon: Option<PathBuf>,
    /// What clients run; this program, if not said.
    #[arg(skip)]
    pub program: Option<PathBuf>,
}

/// Soaks; a table of what was found and what it is held to.
///
/// # Errors
/// If something of the soak itself fails.
pub fn run(options: &SoakOptions) -> Outcome<Table> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = runtime.block_on(async {
        let mut soak = Soak::start(options).await?;
        soak.storm().await?;
        soak.finish().await
    })?;
    found.table(options)
}

/// When something is next due.
struct Due {
    at: Instant,
    within: Duration,
}

impl Due {
    fn new(rng: &mut Prng, within: Duration) -> Self {
        let mut due = Self { at: Instant::now(), within };
        due.draw(rng);
        due
    }

    /// Draws the next time.
    fn draw(&mut self, rng: &mut Prng) {
        let millis = u64::try_from(self.within.as_millis()).unwrap_or(u64::MAX);
        self.at = Instant::now() + Duration::from_millis(rng.below(millis));
    }

    /// Whether it is due; if so, the next time is drawn.
    fn is_due(&mut self, rng: &mut Prng) -> bool {
        let due = Instant::now() >= self.at;
        if due {
            self.draw(rng);
        }
        due
    }
}

struct Soak {
    // Dropped first: the clients, then the daemon, then the origin.
    crew: Crew,
    lives: Lives,
    site: Site,
    rng: Prng,
    length: Duration,
    clients: usize,
    /// Who has still to be answered by a daemon that is new, and since when.
    roll: Option<(Instant, Roll)>,
    not_back: Told,
    _truth: TempDir,
}

impl Soak {
    async fn start(options: &SoakOptions) -> Outcome<Self> {
        let mut rng = Prng::new(options.seed);
        let truth = TempDir::with_prefix("forebay-truth-")?;
        let site = Site::start(truth.path(), rng.next_u64()).await?;
        let lives = Lives::begin(options.daemon.as_deref(), &site).await?;
        let program = options.program.clone().map_or_else(std::env::current_exe, Ok)?;
        let socket = lives.socket().to_owned();
        let crew = Crew::new(program, socket, truth.path().to_owned(), rng.next_u64());
        Ok(Self {
            crew,
            lives,
            site,
            rng,
            length: options.length,
            clients: options.clients.into(),
            roll: None,
            not_back: Told::default(),
            _truth: truth,
        })
    }

    /// Everything goes wrong.
    async fn storm(&mut self) -> Outcome<()> {
        let begun = Instant::now();
        let spell = (self.length / 12).clamp(Duration::from_millis(500), Duration::from_secs(5));
        let gap = (self.length / 8).clamp(Duration::from_secs(2), Duration::from_secs(30));
        let rng = &mut self.rng;
        let mut turns = Due::new(rng, spell);
        let mut kills = Due::new(rng, KILLS);
        let mut evictions = Due::new(rng, EVICTIONS);
        let mut changes = Due::new(rng, CHANGES);
        let mut next_death = begun + gap / 2;
        while begun.elapsed() < self.length || !self.lives.both() {
            while self.crew.len() < self.clients {
                self.crew.add()?;
            }
            if turns.is_due(&mut self.rng) {
                self.site.turn(Weather::draw(&mut self.rng));
            }
            if kills.is_due(&mut self.rng) {
                self.crew.kill_one()?;
            }
            if changes.is_due(&mut self.rng) {
                self.site.change();
            }
            if evictions.is_due(&mut self.rng) {
                self.evict().await;
            }
            self.call();
            let last = begun.elapsed() > self.length * 3 / 4 && self.lives.both();
            if Instant::now() >= next_death && self.roll.is_none() && !last {
                self.site.turn(Weather::Calm);
                let end = self.lives.draw(&mut self.rng);
                self.death(end).await?;
                next_death = Instant::now() + gap;
            }
            self.lives.look()?;
            self.crew.bury()?;
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    }

    async fn death(&mut self, end: End) -> Outcome<()> {
        self.lives.end(end, &self.site).await?;
        self.roll = Some((Instant::now(), self.crew.roll()));
        Ok(())
    }

    /// Sees who is back.
    fn call(&mut self) {
        let Some((since, roll)) = &mut self.roll else { return };
        self.crew.call(roll);
        let late = since.elapsed() > BACK_WITHIN;
        if late {
            for id in roll.keys() {
                self.not_back.add(format!("client {id} was not answered within {BACK_WITHIN:?}"));
            }
        }
        if late || roll.is_empty() {
            self.roll = None;
        }
    }

    /// Evicts a cold checkpoint. Whether that works is not the point.
    async fn evict(&mut self) {
        let uri = self.site.cold();
        if let Ok(client) = self.lives.client().await {
            let options = CallOptions { deadline: Some(PATIENCE), ..CallOptions::default() };
            let client: Client = client.with_options(options);
            drop(client.evict(uri).await);
        }
    }

    /// Everything ends well.
    async fn finish(mut self) -> Outcome<Found> {
        self.site.turn(Weather::Calm);
        while self.roll.is_some() {
            self.call();
            self.crew.bury()?;
            tokio::time::sleep(TICK).await;
        }
        self.crew.end(END_WITHIN).await?;
        let left = self.lives.rest(&self.site).await?;
        let deaths = self.lives.finish().await?;
        let tally = std::mem::take(&mut *self.crew.tally());
        let (killed, not_back) = (self.crew.killed, self.not_back);
        Ok(Found { tally, killed, not_back, deaths, left })
    }
}
