//! One client of the soak, as a process of its own.
//!
//! It keeps one [`Client`] for as long as it lives and loads through it, again and again, whatever
//! happens to the daemon: it is that client that has to find the daemon again. It looks at every
//! byte when it comes, holds some of what it is lent, looks at that again and gives it back. What
//! it holds when the daemon dies it keeps until it has loaded from the next one. After each load
//! it says what came of it, in one line of JSON. It ends when its standard input does.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forebay_client::model::Opened;
use forebay_client::{
    Chunk, Client, ClientError, Endpoint, ErrorKind, Load, LoadRequest, ObjectView, Reason,
};
use forebay_testkit::Prng;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::truth::{self, Group, Judge, Known};
use crate::Outcome;

/// What a load may take, as a rule.
const DEADLINE: Duration = Duration::from_secs(10);
/// How much longer than its deadline a call may take: processes wait for CPUs here.
const LATE: Duration = Duration::from_secs(10);
/// Chunks held at most, where the window allows it.
const HELD_MAX: u64 = 6;
/// How long they are held at the end of a load, as a rule and now and then.
const HOLD: Duration = Duration::from_millis(150);
const LONG_HOLD: Duration = Duration::from_secs(3);
/// The most that is waited before the next load, whatever an error says.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// How long a client waits that is told nothing.
const WAIT: Duration = Duration::from_millis(200);

/// What a client is told.
#[derive(Debug, Clone, clap::Args)]
pub struct ClientArgs {
    /// The daemon's socket
    socket: PathBuf,
    /// Where it finds what it should get
    truth: PathBuf,
    /// The seed of what it does
    seed: u64,
}

/// Loads until standard input ends.
///
/// # Errors
/// If it cannot begin.
pub fn serve(args: &ClientArgs) -> Outcome<()> {
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&over);
    let waiting = std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        io::stdin().read_to_end(&mut Vec::new()).ok();
        told.store(true, Ordering::Relaxed);
    });
    drop(waiting?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(live(args, &over))
}

async fn live(args: &ClientArgs, over: &AtomicBool) -> Outcome<()> {
    let known = truth::read(&args.truth)?;
    let endpoint = Endpoint::unix(&args.socket)?;
    // The daemon may be down right now; from the first connection on the client is on its own.
    let client = loop {
        match Client::connect(endpoint.clone()).await {
            Ok(client) => break client,
            Err(error) if error.reason() == Reason::DaemonUnreachable => sleep(WAIT).await,
            Err(error) => return Err(error.into()),
        }
        if over.load(Ordering::Relaxed) {
            return Ok(());
        }
    };
    let mut life = Life { client, rng: Prng::new(args.seed), relics: None, lost: false };
    while !over.load(Ordering::Relaxed) {
        let drawn = life.draw(&known)?;
        life.one(drawn).await?;
    }
    Ok(())
}

/// Something that is held, and gives its bytes.
enum Held {
    Chunk(Chunk),
    Object(ObjectView),
}

impl Held {
    fn check(
        &self,
        mut check: impl FnMut(&str, u64, &[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        match self {
            Self::Chunk(chunk) => chunk
                .extents()
                .try_for_each(|extent| check(extent.key(), extent.offset(), extent.bytes())),
            Self::Object(object) => check(object.key(), 0, object.bytes()),
        }
    }
}

struct Life<'a> {
    client: Client,
    rng: Prng,
    /// What was held when a daemon died.
    relics: Option<(Judge<'a>, VecDeque<Held>)>,
    /// The daemon was gone when it was last called.
    lost: bool,
}

/// What happened to one load.
#[derive(Debug, Default)]
struct Told {
    error: Option<ClientError>,
    wrong: Option<String>,
    /// It was given up on purpose.
    dropped: bool,
    bytes: u64,
    /// Of what is held: looked at after the daemon's death, and after it was there again.
    over_death: usize,
    over_restart: usize,
    /// It outlived its deadline.
    late: bool,
    /// The daemon is there again.
    back: bool,
}

impl<'a> Life<'a> {
    fn draw(&mut self, known: &'a [Known]) -> Outcome<&'a Known> {
        let group = match self.rng.below(100) {
            0..55 => Group::Warm,
            55..85 => Group::Cold,
            _ => Group::Changing,
        };
        let of_group: Vec<&Known> = known.iter().filter(|known| known.group == group).collect();
        let drawn = self.rng.below(of_group.len() as u64);
        Ok(of_group.get(usize::try_from(drawn)?).ok_or("nothing to load")?)
    }

    /// One load, and what there is to say about it.
    async fn one(&mut self, known: &'a Known) -> Outcome<()> {
        let deadline = match self.rng.chance(30) {
            true => Duration::from_millis(1 + self.rng.below(50)),
            false => DEADLINE,
        };
        let request = LoadRequest::new(&known.uri).deadline(deadline);
        let mut told = Told::default();
        let mut held = VecDeque::new();
        let mut judge = known.judge();
        let begun = Instant::now();
        let loaded = self.load(request, &mut judge, &mut held, &mut told).await;
        told.late = loaded.duration_since(begun) > deadline + LATE;
        let unreachable = is_unreachable(told.error.as_ref());
        if unreachable && !held.is_empty() {
            told.over_death = held.len();
            self.relics = Some((judge, held));
        } else if told.error.is_none()
            && let Some((mut judge, relics)) = self.relics.take()
        {
            told.over_restart = relics.len();
            look(&mut judge, &relics, &mut told);
        }
        told.back = self.lost && !unreachable;
        self.lost = unreachable;
        say(&told, known.group)?;
        if let Some(error) = &told.error {
            let wait = error.failure().retry_after.unwrap_or(WAIT).min(WAIT_MAX);
            sleep(wait / 2 + self.part_of(wait)).await;
        }
        Ok(())
    }

    /// Some part of a time.
    fn part_of(&mut self, time: Duration) -> Duration {
        let thousandths = u32::try_from(self.rng.below(1000)).unwrap_or(0);
        time * thousandths / 1000
    }

    /// Loads; when all was handed over, or the load had failed.
    async fn load(
        &mut self,
        request: LoadRequest,
        judge: &mut Judge<'_>,
        held: &mut VecDeque<Held>,
        told: &mut Told,
    ) -> Instant {
        let mut load = match self.client.load(request).await {
            Ok(load) => load,
            Err(error) => {
                told.error = Some(error);
                return Instant::now();
            }
        };
        // Who reads this is gone if it cannot be said, and ends this process, too.
        put(&json!({ "opened": true })).ok();
        told.error = self.read(&mut load, judge, held, told).await.err();
        let loaded = Instant::now();
        if told.error.is_some() || told.dropped {
            drop(load);
            look(judge, &*held, told);
            return loaded;
        }
        if let Err(missing) = judge.complete() {
            told.wrong.get_or_insert(missing);
        }
        // The report comes when nothing is held any more; an error comes when the daemon dies.
        let most = if self.rng.chance(40) { LONG_HOLD } else { HOLD };
        let mut finishing = pin!(load.finish());
        let early = timeout(self.part_of(most), &mut finishing).await;
        look(judge, &*held, told);
        told.error = match early {
            Ok(finished) => finished.err(),
            Err(_elapsed) => {
                held.clear();
                finishing.await.err()
            }
        };
        loaded
    }

    async fn read(
        &mut self,
        load: &mut Load,
        judge: &mut Judge<'_>,
        held: &mut VecDeque<Held>,
        told: &mut Told,
    ) -> Result<(), ClientError> {
        let opened = load.opened().clone();
        let by_objects = self.rng.chance(200);
        let room = match by_objects || self.rng.chance(400) {
            // How much an object holds is its own affair.
            true => 0,
            false => self.rng.below(1 + HELD_MAX.min(window(&opened) / 2)),
        };
        let give_up = self.rng.chance(80).then(|| self.rng.below(opened.granted_bytes));
        let mut lent = 0;
        loop {
            let next = match by_objects {
                true => load.next_object().await?.map(Held::Object),
                false => load.next_chunk().await?.map(Held::Chunk),
            };
            let Some(next) = next else { return Ok(()) };
            let seen = next.check(|key, offset, bytes| {
                lent += bytes.len() as u64;
                judge.see(key, offset, bytes)
            });
            if let Err(wrong) = seen {
                told.wrong.get_or_insert(wrong);
            }
            told.bytes = lent;
            // The last one may be kept: nothing more has to come into its place.
            held.push_back(next);
            let keep = if lent >= opened.granted_bytes { room.max(1) } else { room };
            let over = held.len().saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX));
            for oldest in held.drain(..over) {
                look(judge, [&oldest], told);
            }
            if give_up.is_some_and(|at| lent >= at) {
                told.dropped = true;
                return Ok(());
            }
        }
    }
}

/// Looks again at what is held.
fn look<'h>(judge: &mut Judge<'_>, held: impl IntoIterator<Item = &'h Held>, told: &mut Told) {
    for one in held {
        let again = one.check(|key, offset, bytes| judge.see_again(key, offset, bytes));
        if let Err(wrong) = again {
            told.wrong.get_or_insert(wrong);
        }
    }
}

/// Chunks that the daemon lends at a time.
fn window(opened: &Opened) -> u64 {
    opened.window_bytes / (opened.chunk_bytes as u64).max(1)
}

fn is_unreachable(error: Option<&ClientError>) -> bool {
    error.is_some_and(|error| error.reason() == Reason::DaemonUnreachable)
}

/// Whether it can have come from an origin with faults, a daemon that restarts, or too many others.
fn is_explained(error: &ClientError, group: Group) -> bool {
    match error.kind() {
        ErrorKind::Unavailable | ErrorKind::ResourceExhausted | ErrorKind::DeadlineExceeded => true,
        // Of what is in the cache nothing can be damaged on the way.
        ErrorKind::DataLoss => group != Group::Warm,
        ErrorKind::FailedPrecondition => group == Group::Changing,
        _ => false,
    }
}

fn say(told: &Told, group: Group) -> io::Result<()> {
    let error = told.error.as_ref().map(|error| {
        json!({
            "reason": error.reason().as_str(),
            "unavailable": error.kind() == ErrorKind::Unavailable,
            "hint": error.failure().retry_after.is_some(),
            "explained": is_explained(error, group),
            "message": error.to_string(),
        })
    });
    let line = json!({
        "error": error, "wrong": told.wrong, "dropped": told.dropped, "bytes": told.bytes,
        "over_death": told.over_death, "over_restart": told.over_restart,
        "late": told.late, "back": told.back,
    });
    put(&line)
}

fn put(line: &serde_json::Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
