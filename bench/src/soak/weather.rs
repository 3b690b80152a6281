//! The origin of the soak: its checkpoints, and the faults that come and go.

use std::path::Path;
use std::time::Duration;

use forebay_testkit::{
    Chaos, Checkpoint, CheckpointSpec, Content, Fault, FaultRule, Prng, S3Options, S3Origin, When,
    chaos, checkpoint,
};

use super::truth::{Group, Writer};
use crate::Outcome;

const BUCKET: &str = "models";
/// Checkpoints of each group.
const WARM: u64 = 4;
const COLD: u64 = 3;
const CHANGING: u64 = 4;
/// Of a checkpoint, and of an object that changes.
const CHECKPOINT_BYTES: u64 = 4 << 20;
const CHANGING_BYTES: u64 = 2 << 20;
/// What an object that changes may be.
const VERSIONS: u64 = 4;
/// The size of a usual response: a chunk.
const BODY_BYTES: u64 = super::CHUNK_BYTES;

/// What the origin does wrong for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weather {
    Calm,
    /// A little of everything.
    Mixed,
    Errors,
    Throttled,
    Resets,
    Cut,
    Slow,
    Stalls,
    /// Nothing is answered.
    Down,
}

impl Weather {
    const ALL: [Self; 9] = [
        Self::Calm,
        Self::Mixed,
        Self::Errors,
        Self::Throttled,
        Self::Resets,
        Self::Cut,
        Self::Slow,
        Self::Stalls,
        Self::Down,
    ];

    pub(super) fn draw(rng: &mut Prng) -> Self {
        let drawn = usize::try_from(rng.below(Self::ALL.len() as u64)).unwrap_or(0);
        Self::ALL.get(drawn).copied().unwrap_or(Self::Mixed)
    }

    fn rules(self, rng: &mut Prng) -> Vec<FaultRule> {
        let place = rng.below(BODY_BYTES);
        let mut some = |per_mille, fault| {
            let when = When::Chance { seed: rng.next_u64(), per_mille };
            FaultRule::new("*", fault).when(when)
        };
        let status = |code, after| Fault::Status { code, retry_after: after };
        match self {
            Self::Calm => Vec::new(),
            Self::Mixed => {
                let mut plan = |keys: &str, flips| Chaos {
                    seed: rng.next_u64(),
                    keys: keys.to_owned(),
                    body_bytes: BODY_BYTES,
                    per_mille: 200,
                    flips,
                };
                // Their digests are known by now; those of an object that has changed are not.
                let (cold, others) = (plan("cold*", true), plan("changing*", false));
                chaos(&cold).into_iter().chain(chaos(&others)).collect()
            }
            Self::Errors => vec![some(200, status(500, None)), some(100, status(502, None))],
            Self::Throttled => vec![
                some(300, status(503, Some(Duration::from_secs(1)))),
                some(100, status(429, None)),
            ],
            Self::Resets => vec![
                some(150, Fault::ResetBeforeHeaders),
                some(150, Fault::ResetAfter(place)),
                some(50, Fault::CloseBeforeHeaders),
            ],
            Self::Cut => vec![
                some(150, Fault::TruncateTo(place)),
                some(100, Fault::ShortBody(place)),
                some(50, Fault::WrongRange(1 + place)),
                some(50, Fault::Overlong(1 + place)),
            ],
            Self::Slow => vec![
                some(300, Fault::Delay(Duration::from_millis(200))),
                some(100, Fault::Drip { bytes_per_second: BODY_BYTES }),
            ],
            Self::Stalls => {
                vec![some(60, Fault::StallBeforeHeaders), some(60, Fault::StallAfter(place))]
            }
            Self::Down => vec![FaultRule::new("*", Fault::ResetBeforeHeaders).on_any()],
        }
    }
}

/// The origin, and what it has.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) origin: S3Origin,
    rng: Prng,
    /// Keys of objects that stay as they are and are cached.
    warm_keys: Vec<String>,
    warm_bytes: u64,
    versions: Vec<Vec<Content>>,
}

impl Site {
    /// Starts it, and writes down at `truth` what it has.
    pub(super) async fn start(truth: &Path, seed: u64) -> Outcome<Self> {
        let origin = S3Origin::start(S3Options::default()).await;
        let mut writer = Writer::new(truth);
        let (mut warm_keys, mut warm_bytes, mut versions) = (Vec::new(), 0, Vec::new());
        let seeds = seed.wrapping_mul(100);
        for (n, made) in checkpoints(seeds, WARM) {
            let prefix = format!("warm-{n}/");
            add(&origin, &mut writer, &prefix, Group::Warm, &made)?;
            warm_bytes += made.bytes();
            warm_keys.extend(made.files().iter().map(|(key, _)| format!("{prefix}{key}")));
        }
        for (n, made) in checkpoints(seeds.wrapping_add(10), COLD) {
            add(&origin, &mut writer, &format!("cold-{n}/"), Group::Cold, &made)?;
        }
        for n in 0..CHANGING {
            let made = |version| {
                let of = seeds.wrapping_add(20 + n * VERSIONS + version);
                // Of different lengths, so that a size tells nothing either.
                Content::synthetic(of, CHANGING_BYTES + version * 1000)
            };
            let contents: Vec<Content> = (0..VERSIONS).map(made).collect();
            let key = changing(n);
            writer.add(&uri(&key), Group::Changing, [(key.as_str(), contents.clone())])?;
            if let Some(content) = contents.first() {
                origin.put(BUCKET, &key, content.clone());
            }
            versions.push(contents);
        }
        writer.finish()?;
        Ok(Self { origin, rng: Prng::new(seed), warm_keys, warm_bytes, versions })
    }

    /// From now on it does this wrong.
    pub(super) fn turn(&mut self, weather: Weather) {
        self.origin.clear_faults();
        for rule in weather.rules(&mut self.rng) {
            drop(self.origin.fault(rule));
        }
    }

    /// Replaces one of the objects that change.
    pub(super) fn change(&mut self) {
        let n = self.rng.below(self.versions.len() as u64);
        let versions = usize::try_from(n).ok().and_then(|n| self.versions.get(n));
        let versions = versions.map_or(&[][..], Vec::as_slice);
        let version = usize::try_from(self.rng.below(versions.len() as u64)).unwrap_or(0);
        if let Some(content) = versions.get(version) {
            self.origin.replace(BUCKET, &changing(n), content.clone());
        }
    }

    /// One that is fetched again and again.
    pub(super) fn cold(&mut self) -> String {
        uri(&format!("cold-{}/", self.rng.below(COLD)))
    }

    pub(super) fn warm(&self) -> impl Iterator<Item = String> + use<> {
        (0..WARM).map(|n| uri(&format!("warm-{n}/")))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = String> + use<> {
        let cold = (0..COLD).map(|n| uri(&format!("cold-{n}/")));
        self.warm().chain(cold).chain((0..CHANGING).map(|n| uri(&changing(n))))
    }

    pub(super) fn warm_bytes(&self) -> u64 {
        self.warm_bytes
    }

    /// Bytes of the warm checkpoints that it was asked for so far.
    pub(super) fn warm_fetched(&self) -> u64 {
        self.warm_keys.iter().map(|key| self.origin.counts(key).body_bytes).sum()
    }
}

/// So many checkpoints, with their numbers.
fn checkpoints(seed: u64, count: u64) -> impl Iterator<Item = (u64, Checkpoint)> {
    let made = move |n| CheckpointSpec::new(seed.wrapping_add(n), CHECKPOINT_BYTES).shards(2);
    (0..count).map(move |n| (n, checkpoint(made(n))))
}

/// Stores a checkpoint that stays as it is.
fn add(
    origin: &S3Origin,
    writer: &mut Writer,
    prefix: &str,
    group: Group,
    made: &Checkpoint,
) -> Outcome<()> {
    origin.put_checkpoint(BUCKET, prefix, made);
    let objects = made.files().iter();
    let objects = objects.map(|(key, content)| (key.as_str(), vec![content.clone()]));
    writer.add(&uri(prefix), group, objects)
}

fn uri(key: &str) -> String {
    format!("s3://{BUCKET}/{key}")
}

fn changing(n: u64) -> String {
    format!("changing-{n}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides_the_weather() {
        let drawn = |seed| {
            let mut rng = Prng::new(seed);
            let weathers = (0..20).map(|_| Weather::draw(&mut rng)).collect::<Vec<_>>();
            let rules: Vec<_> =
                weathers.iter().map(|weather| format!("{:?}", weather.rules(&mut rng))).collect();
            (weathers, rules)
        };
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        assert!(Weather::Calm.rules(&mut Prng::new(1)).is_empty());
    }
}
