//! The clients of the soak: processes that are started, killed at random, and started again.
//!
//! Each has a thread that reads what it says, until its end, and adds that to one tally.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use forebay_testkit::Prng;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::Outcome;

/// Sentences kept of one kind.
const SENTENCES_MAX: usize = 5;
/// A client that says nothing for so long hangs: four times what a load may take.
const SILENT: Duration = Duration::from_secs(90);
/// How often it is looked whether clients have ended.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What clients said.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) loads: u64,
    pub(super) bytes: u64,
    pub(super) dropped: u64,
    /// By reason.
    pub(super) failed: BTreeMap<String, u64>,
    /// Failures that nothing explains.
    pub(super) odd: Told,
    pub(super) wrong: Told,
    pub(super) late: u64,
    /// UNAVAILABLE without a word on when to come again, of a daemon that goes or is gone.
    pub(super) no_hint: Told,
    pub(super) over_death: u64,
    pub(super) over_restart: u64,
    /// Loads that were answered after the daemon had been gone.
    pub(super) back: u64,
    /// Clients that ended by themselves, or did not when told to.
    pub(super) lost: Told,
}

/// How often something was said, and the first few times what.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) times: u64,
    pub(super) sentences: Vec<String>,
}

impl Told {
    pub(super) fn add(&mut self, sentence: impl Into<String>) {
        self.times += 1;
        if self.sentences.len() < SENTENCES_MAX {
            self.sentences.push(sentence.into());
        }
    }
}

impl Tally {
    fn add(&mut self, line: &Value) {
        let count = |name: &str| line[name].as_u64().unwrap_or(0);
        let is = |value: &Value| value.as_bool() == Some(true);
        self.bytes += count("bytes");
        self.over_death += count("over_death");
        self.over_restart += count("over_restart");
        self.late += u64::from(is(&line["late"]));
        self.back += u64::from(is(&line["back"]));
        self.dropped += u64::from(is(&line["dropped"]));
        if let Some(wrong) = line["wrong"].as_str() {
            self.wrong.add(wrong);
        }
        let error = &line["error"];
        let Some(reason) = error["reason"].as_str() else {
            self.loads += u64::from(!is(&line["dropped"]));
            return;
        };
        *self.failed.entry(reason.to_owned()).or_default() += 1;
        let message = error["message"].as_str().unwrap_or_default();
        if !is(&error["explained"]) {
            self.odd.add(format!("{reason}: {message}"));
        }
        if is_of_restart(reason) && !is(&error["hint"]) {
            self.no_hint.add(format!("{reason}: {message}"));
        }
    }
}

/// Reasons of a daemon that goes, or is gone.
fn is_of_restart(reason: &str) -> bool {
    ["DAEMON_UNREACHABLE", "DRAINING"].contains(&reason)
}

/// What the driver has to know of a client.
#[derive(Debug)]
struct Watch {
    /// When it last said something.
    said: Mutex<Instant>,
    /// Times that a daemon answered, in one way or another.
    answered: AtomicU64,
}

#[derive(Debug)]
struct Member {
    id: u64,
    child: Child,
    orders: Option<ChildStdin>,
    watch: Arc<Watch>,
    reader: JoinHandle<()>,
}

/// All clients.
#[derive(Debug)]
pub(super) struct Crew {
    program: PathBuf,
    socket: PathBuf,
    truth: PathBuf,
    rng: Prng,
    members: Vec<Member>,
    next_id: u64,
    pub(super) killed: u64,
    tally: Arc<Mutex<Tally>>,
}

/// Who was there at some moment, and had been answered how often.
pub(super) type Roll = BTreeMap<u64, u64>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Crew {
    /// Nobody yet. `program` is this one.
    pub(super) fn new(program: PathBuf, socket: PathBuf, truth: PathBuf, seed: u64) -> Self {
        let (rng, tally) = (Prng::new(seed), Arc::default());
        let (members, next_id, killed) = (Vec::new(), 0, 0);
        Self { program, socket, truth, rng, members, next_id, killed, tally }
    }

    pub(super) fn tally(&self) -> MutexGuard<'_, Tally> {
        lock(&self.tally)
    }

    /// Starts one more.
    pub(super) fn add(&mut self) -> Outcome<()> {
        let mut child = Command::new(&self.program)
            .arg("soak-client")
            .args([&self.socket, &self.truth])
            .arg(self.rng.next_u64().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let said = child.stdout.take().ok_or("a client without a pipe")?;
        let orders = child.stdin.take();
        let watch = Arc::new(Watch { said: Mutex::new(Instant::now()), answered: 0.into() });
        let (watching, tally) = (Arc::clone(&watch), Arc::clone(&self.tally));
        let reader = std::thread::Builder::new().name(format!("client {}", self.next_id));
        let reader = reader.spawn(move || listen(said, &watching, &tally))?;
        self.members.push(Member { id: self.next_id, child, orders, watch, reader });
        self.next_id += 1;
        Ok(())
    }

    /// Kills one of them, whatever it is doing.
    pub(super) fn kill_one(&mut self) -> Outcome<()> {
        self.bury()?;
        if self.members.is_empty() {
            return Ok(());
        }
        let drawn = usize::try_from(self.rng.below(self.members.len() as u64))?;
        let mut member = self.members.swap_remove(drawn);
        member.child.kill()?;
        member.child.wait()?;
        self.killed += 1;
        member.reader.join().map_err(|_| "a reader panicked".into())
    }

    /// Takes out those that have ended by themselves, which none should, and those that hang.
    pub(super) fn bury(&mut self) -> Outcome<()> {
        let mut lost = Vec::new();
        let mut kept = Vec::new();
        for mut member in self.members.drain(..) {
            let ended = member.child.try_wait()?;
            let silent = lock(&member.watch.said).elapsed() > SILENT;
            match ended {
                Some(status) => lost.push(format!("client {} ended with {status}", member.id)),
                None if silent => {
                    member.child.kill()?;
                    member.child.wait()?;
                    lost.push(format!("client {} said nothing for {SILENT:?}", member.id));
                }
                None => kept.push(member),
            }
        }
        self.members = kept;
        let mut tally = lock(&self.tally);
        lost.into_iter().for_each(|sentence| tally.lost.add(sentence));
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Who is there now.
    pub(super) fn roll(&self) -> Roll {
        let answered = |member: &Member| member.watch.answered.load(Ordering::Relaxed);
        self.members.iter().map(|member| (member.id, answered(member))).collect()
    }

    /// Takes off the roll who is gone, and who has been answered since.
    pub(super) fn call(&self, roll: &mut Roll) {
        let now = self.roll();
        roll.retain(|id, before| now.get(id).is_some_and(|answered| answered == before));
    }

    /// Kills every other one and tells the others to end; all of them end.
    pub(super) async fn end(&mut self, limit: Duration) -> Outcome<()> {
        self.bury()?;
        for _ in 0..self.members.len() / 2 {
            self.kill_one()?;
        }
        self.members.iter_mut().for_each(|member| member.orders = None);
        let begun = Instant::now();
        for mut member in self.members.drain(..) {
            let status = loop {
                match member.child.try_wait()? {
                    Some(status) => break Some(status),
                    None if begun.elapsed() > limit => break None,
                    None => sleep(LOOK_AGAIN).await,
                }
            };
            if !status.is_some_and(|status| status.success()) {
                member.child.kill()?;
                member.child.wait()?;
                let how =
                    status.map_or_else(|| "not at all".to_owned(), |status| status.to_string());
                lock(&self.tally).lost.add(format!("client {} ended with {how}", member.id));
            }
            member.reader.join().map_err(|_| "a reader panicked")?;
        }
        Ok(())
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for member in &mut self.members {
            // One that has ended already cannot be killed, which is as it should be.
            drop(member.child.kill());
            drop(member.child.wait());
        }
    }
}

fn listen(said: ChildStdout, watch: &Watch, tally: &Mutex<Tally>) {
    for line in BufReader::new(said).lines().map_while(Result::ok) {
        // Of one that was killed the last line may be half.
        let Ok(line) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        *lock(&watch.said) = Instant::now();
        let reason = line["error"]["reason"].as_str();
        if !reason.is_some_and(is_of_restart) {
            watch.answered.fetch_add(1, Ordering::Relaxed);
        }
        if line.get("opened").is_none() {
            lock(tally).add(&line);
        }
    }
}
