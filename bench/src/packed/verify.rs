//! What digests take of a load's CPU seconds, by what is known of its objects.
//!
//! A cold load from an unshaped S3 origin, on a node that has never seen the checkpoint: the CPU
//! time of daemon and client counts, that of the origin, a process of its own, does not. No daemon
//! goes without digests, so what they take is not the difference of two loads. It is measured in
//! this process, on the very code: pieces as long as a receive are copied into a slot and looked at
//! at once, as they are when they land, and the CPU time of the same copies alone is taken off.
//!
//! What a daemon does about digests beside taking them is not seen so. Loads of which more is known
//! show it: what they take beyond loads of which nothing is known, and the chunk's digest, which
//! those take too. The larger of the two counts.

use std::hint::black_box;

use forebay_server::measured::{Sums, land};
use forebay_testkit::Prng;

use super::PackedOptions;
use super::child::{ClaimingOrigin, Told, made};
use super::ground::uri;
use crate::Outcome;
use crate::cpu::own_time;
use crate::measure::{Measurement, Spread};
use crate::node::{self, Node};
use crate::nvme::order;
use crate::origin::{gib, progress, row};
use crate::proof::Proof;
use crate::report::{Bound, Figure, Limit, Row};

/// Of the load's CPU seconds, at most, where nothing or a CRC is known.
const SHARE_MAX: f64 = 0.20;
/// What a part receives at a time.
const PIECE_BYTES: usize = 256 << 10;
const SLOT_BYTES: usize = 8 << 20;
/// Slots that are filled in a round: more than any cache holds.
const SLOTS: usize = 16;

const SIDES: usize = Told::ALL.len();

/// CPU seconds for each GiB, by what the store tells.
type BySide = [Vec<f64>; SIDES];

pub(super) fn run(options: &PackedOptions) -> Outcome<Row> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let origin = ClaimingOrigin::start(options.bytes)?;
    let (mut loads, mut digests) = (BySide::default(), BySide::default());
    let mut rates = BySide::default();
    let mut bench = Bench::new();
    for round in 0..options.runs {
        for side in order(SIDES, round) {
            let told = Told::ALL[side];
            digests[side].push(bench.digests(told));
            let run = runtime.block_on(load(options, &origin, told, round == 0))?;
            progress(format_args!(
                "verify {} {}: digests {:.3} of {:.3} CPU s/GiB, {:.2} GB/s",
                round + 1,
                told.prefix().trim_end_matches('/'),
                digests[side].last().unwrap_or(&f64::NAN),
                run.cpu_per_gib(),
                run.gigabytes_per_second()
            ));
            loads[side].push(run.cpu_per_gib());
            rates[side].push(run.gigabytes_per_second());
        }
    }
    let what = format!(
        "cold loads of {:.2} GiB from an unshaped S3 origin: CPU seconds of digests, of those of \
         daemon and client",
        gib(options.bytes)
    );
    Ok(judge(row("verify", what), loads, digests, rates))
}

/// A load with a daemon of its own. What the first one of a kind hands over is proven.
async fn load(
    options: &PackedOptions,
    origin: &ClaimingOrigin,
    told: Told,
    first: bool,
) -> Outcome<Measurement> {
    let node = Node::start(node::daemon(options.bytes, &[])?.env(origin.env())).await?;
    let uri = uri(told.prefix());
    let (run, report) = node.cold(&uri, |_| Ok(())).await?;
    let verified = report.verified;
    let as_told = if told == Told::Nothing { verified.first_fetch } else { verified.object_digest };
    let made = made(options.bytes);
    let objects = u64::try_from(made.files().len())?;
    if as_told != objects {
        return Err(format!("{as_told} of {objects} objects are held to {told:?}").into());
    }
    if first {
        let mut proof = Proof::default();
        node.load(&uri, |chunk| proof.see(chunk, &made)).await?;
        proof.end(&made)?;
    }
    Ok(run)
}

/// Slots to fill, and a piece to fill them with.
struct Bench {
    piece: Vec<u8>,
    slots: Vec<Vec<u8>>,
}

impl Bench {
    fn new() -> Self {
        let mut piece = vec![0; PIECE_BYTES];
        Prng::new(8).fill(&mut piece);
        Self { piece, slots: vec![vec![1; SLOT_BYTES]; SLOTS] }
    }

    /// CPU seconds for each GiB, of what is taken of bytes of which this is known.
    fn digests(&mut self, told: Told) -> f64 {
        let sums = match told {
            Told::Nothing => Sums::Chunk,
            Told::Crc64Nvme => Sums::Crc64Nvme,
            Told::Sha256 => Sums::Sha256,
            Told::Md5 => Sums::Md5,
        };
        // Once for the caches and the clock of the core.
        self.fill(sums);
        let copies = self.fill(Sums::Off);
        self.fill(sums) - copies
    }

    #[expect(clippy::cast_precision_loss, reason = "a few slots")]
    fn fill(&mut self, sums: Sums) -> f64 {
        let begun = own_time();
        for slot in &mut self.slots {
            black_box(land(&self.piece, slot, sums));
        }
        let bytes = SLOTS * SLOT_BYTES;
        own_time().saturating_sub(begun).as_secs_f64() / (bytes as f64 / 1_073_741_824.0)
    }
}

fn judge(mut row: Row, loads: BySide, digests: BySide, rates: BySide) -> Row {
    let spreads = |values: BySide| values.map(|values| values.into_iter().collect::<Spread>());
    let (loads, digests, rates) = (spreads(loads), spreads(digests), spreads(rates));
    let [plain, plain_digests] = [loads[0].median(), digests[0].median()];
    let names = ["nothing known", "CRC-64/NVME", "SHA-256", "MD5"];
    let sides = loads.into_iter().zip(digests).zip(rates);
    for (name, ((load, digest), rate)) in names.into_iter().zip(sides) {
        let (took, all) = (digest.median(), load.median());
        // What such a load takes beyond one of which nothing is known is the digests' too.
        let as_loaded = plain_digests + all - plain;
        row.figures.push(Figure::new(format!("{name}: load, CPU"), "s/GiB", load));
        row.figures.push(Figure::new(format!("{name}: digests"), "s/GiB", digest));
        row.figures.push(figure(format!("{name}: by difference"), "s/GiB", as_loaded));
        row.figures.push(Figure::new(format!("{name}: load"), "GB/s", rate));
        let share = took.max(as_loaded) / all;
        if ["SHA-256", "MD5"].contains(&name) {
            row.figures.push(figure(format!("{name}: digests"), "of CPU", share));
        } else {
            let what = format!("digests of the load's CPU, {name}");
            row.bounds.push(Bound::new(what, share, Limit::AtMost(SHARE_MAX)));
        }
    }
    row
}

fn figure(of: String, unit: &'static str, value: f64) -> Figure {
    Figure::new(of, unit, [value].into_iter().collect())
}
