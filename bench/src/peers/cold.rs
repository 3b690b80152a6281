//! Cold loads from the store, by everybody, in turns; and the rows that come of them.
//!
//! Our daemon has been up for a moment, so that its pool has its size, and has nothing of the
//! checkpoint: what is evicted is looked at, and that no byte came from RAM. Its NVMe tier is off:
//! peers write nothing to a disk either. A second daemon has a pool of a quarter of the checkpoint
//! and a client that gives back what it has read: its load shows memory, and is no contestant.

use std::collections::BTreeMap;
use std::time::Duration;

use super::adapter::{Missing, Source};
use super::child::Told;
use super::limits;
use super::sides::{OURS, Side, against, cheapest, fastest, name};
use super::site::{Load, Pages, Reader, Site};
use super::{PeersOptions, PeersRow};
use crate::Outcome;
use crate::measure::{Measurement, Spread};
use crate::node::{self, Node};
use crate::nvme::order;
use crate::origin::raw_loop::RawLoop;
use crate::origin::{gib, progress, row};
use crate::report::{Bound, Figure, Limit, Row};

/// As many times as fast as the fastest peer, at least.
const FASTER_MIN: f64 = 1.4;
/// Of the cheapest peer's CPU time for each GiB, at most.
const CPU_MAX: f64 = 0.65;
/// The same against the peer that most users would pick, at its best setting.
const RUNAI_FASTER_MIN: f64 = 2.2;
const RUNAI_CPU_MAX: f64 = 0.45;
/// Of the rate of raw ranged reads, at least.
const RAW_MIN: f64 = 0.85;
/// Of the fastest peer's peak memory, at most.
const MEMORY_MAX: f64 = 0.4;
/// How the adapters call it, in front of its settings.
const RUNAI: &str = "runai-model-streamer";
/// Of the raw reads, as of the daemon.
const PART_BYTES: u32 = 8 << 20;
const CONNECTIONS: usize = 8;

/// Everybody's loads.
struct Found {
    ours: Side,
    /// Whose client reads nothing.
    unread: Side,
    /// With the small pool.
    small: Side,
    raw: Side,
    /// The same, into memory that keeps them: what the wire and one copy take.
    kept: Side,
    peers: Vec<Side>,
    missing: Vec<Missing>,
    memcpy: Spread,
}

/// Who loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contestant {
    Ours,
    Unread,
    Small,
    Raw,
    Kept,
    Peer(usize),
}

/// The rows of cold loads that are asked for.
pub(super) const ROWS: [PeersRow; 4] =
    [PeersRow::Cold, PeersRow::Runai, PeersRow::Raw, PeersRow::Memory];

pub(super) async fn run(options: &PeersOptions, site: &Site) -> Outcome<Vec<Row>> {
    let found = Session::start(options, site).await?.measure(options.runs.into()).await?;
    let asked = ROWS.into_iter().filter(|row| options.asked(*row));
    let judge = |row| match row {
        PeersRow::Runai => judge_runai(&found),
        PeersRow::Raw => judge_raw(&found),
        PeersRow::Memory => judge_memory(&found, options.pool_bytes()),
        _ => judge_cold(&found),
    };
    Ok(asked.map(judge).collect())
}

/// Daemons, reads and peers that are ready.
struct Session<'a> {
    site: &'a Site,
    uri: String,
    source: Source,
    node: Node,
    small: Node,
    raw: RawLoop,
    /// If it is asked for: it takes the memory of a whole checkpoint.
    kept: Option<RawLoop>,
    order: Vec<Contestant>,
    /// Peers that failed in a turn of theirs, by number.
    failed: BTreeMap<usize, String>,
    found: Found,
}

impl<'a> Session<'a> {
    async fn start(options: &PeersOptions, site: &'a Site) -> Outcome<Self> {
        let environment = super::adapter::environment(&site.server.endpoint());
        let spec = node::daemon(options.bytes(), &[])?.env(environment.clone());
        let node = Node::start(spec).await?;
        let pool = format!("{}MiB", options.pool_bytes() >> 20);
        let small = Node::start(node::sized_daemon(pool, 0, &[])?.env(environment)).await?;
        let reads = (site.server.address(), site.path());
        let raw = RawLoop::dropping(reads.0, &reads.1, &site.made, PART_BYTES);
        let keeping = || RawLoop::new(reads.0, &reads.1, &site.made, PART_BYTES);
        let kept = options.asked(PeersRow::Raw).then(keeping);
        let source = Source::S3(site.server.endpoint());
        let mut found = Found {
            ours: Side::new(OURS),
            unread: Side::new("forebay, unread"),
            small: Side::new("forebay, small pool"),
            raw: Side::new("raw ranged reads"),
            kept: Side::new("raw ranged reads, kept"),
            peers: Vec::new(),
            missing: Vec::new(),
            memcpy: limits::memcpy(options.runs.into())?,
        };
        match site.adapters.peers(&source) {
            Ok(names) => {
                let names = names.into_iter().filter(|name| options.compares(name));
                found.peers = names.map(Side::new).collect();
            }
            Err(missing) => found.missing.push(missing),
        }
        if !options.asked(PeersRow::Cold) && !options.asked(PeersRow::Memory) {
            let runai = options.asked(PeersRow::Runai);
            found.peers.retain(|side| runai && side.name.starts_with(RUNAI));
        }
        let mut session = Self {
            uri: site.server.uri(),
            site,
            source,
            node,
            small,
            raw,
            kept,
            order: Vec::new(),
            failed: BTreeMap::new(),
            found,
        };
        session.prove(options).await?;
        Ok(session)
    }

    /// Everybody loads once untimed, and every byte is compared. Who cannot is left out.
    async fn prove(&mut self, options: &PeersOptions) -> Outcome<()> {
        self.load_ours(&self.node, Reader::Keeps, true).await?;
        self.load_ours(&self.small, Reader::Streams, true).await?;
        self.raw.run(CONNECTIONS)?;
        self.kept.iter_mut().try_for_each(|kept| kept.run(CONNECTIONS).map(drop))?;
        let mut able = Vec::new();
        for side in std::mem::take(&mut self.found.peers) {
            match self.load_peer(&side.name, true).await? {
                Ok(_) => able.push(side),
                Err(reason) => self.leave_out(side.name, reason),
            }
        }
        self.found.peers = able;
        self.order.push(Contestant::Ours);
        if options.asked(PeersRow::Memory) {
            self.order.push(Contestant::Small);
        }
        if options.asked(PeersRow::Raw) {
            self.order.extend([Contestant::Unread, Contestant::Raw, Contestant::Kept]);
        }
        self.order.extend((0..self.found.peers.len()).map(Contestant::Peer));
        Ok(())
    }

    fn leave_out(&mut self, peer: String, reason: String) {
        let missing = Missing { peer, reason };
        progress(format_args!("cold: {}", missing.note()));
        self.found.missing.push(missing);
    }

    async fn measure(mut self, runs: usize) -> Outcome<Found> {
        for round in 0..runs {
            for place in order(self.order.len(), round) {
                self.turn(round, self.order[place]).await?;
            }
        }
        // Loads of one that failed once are no median of its.
        for (number, reason) in std::mem::take(&mut self.failed).into_iter().rev() {
            let side = self.found.peers.remove(number);
            self.leave_out(side.name, reason);
        }
        Ok(self.found)
    }

    /// One load; none of a peer that fails now, or has failed.
    async fn turn(&mut self, round: usize, contestant: Contestant) -> Outcome<()> {
        let told = match contestant {
            Contestant::Ours => Some(self.load_ours(&self.node, Reader::Keeps, false).await?),
            Contestant::Unread => Some(self.load_ours(&self.node, Reader::Drops, false).await?),
            Contestant::Small => Some(self.load_ours(&self.small, Reader::Streams, false).await?),
            Contestant::Raw => Some(raw(self.site, &mut self.raw)?),
            Contestant::Kept => self.kept.as_mut().map(|kept| raw(self.site, kept)).transpose()?,
            Contestant::Peer(number) if self.failed.contains_key(&number) => None,
            Contestant::Peer(number) => {
                let told = self.load_peer(&self.found.peers[number].name, false).await?;
                told.map_err(|reason| self.failed.insert(number, reason)).ok()
            }
        };
        if let Some(told) = told {
            self.keep(contestant, round, told);
        }
        Ok(())
    }

    fn keep(&mut self, contestant: Contestant, round: usize, told: Told) {
        let found = &mut self.found;
        let side = match contestant {
            Contestant::Ours => &mut found.ours,
            Contestant::Unread => &mut found.unread,
            Contestant::Small => &mut found.small,
            Contestant::Raw => &mut found.raw,
            Contestant::Kept => &mut found.kept,
            Contestant::Peer(number) => &mut found.peers[number],
        };
        progress(format_args!(
            "cold {}, {}: {:.2} s, {:.2} CPU s/GiB, {:.2} GiB",
            round + 1,
            side.name,
            told.wall_seconds,
            told.cpu_seconds / gib(told.bytes),
            gib(told.peak_bytes)
        ));
        side.loads.push(told);
    }

    async fn load_ours(&self, node: &Node, reader: Reader, verify: bool) -> Outcome<Told> {
        let load = Load { uri: &self.uri, pages: Pages::Warm, evict: true, reader, verify };
        self.site.ours(node, load).await
    }

    async fn load_peer(&self, peer: &str, verify: bool) -> Outcome<Result<Told, String>> {
        let command = self.site.adapters.load(peer, &self.source, &self.site.files(), verify);
        self.site.peer(command, Pages::Warm, verify).await
    }
}

/// The server's files are in the page cache, and everything is read.
fn raw(site: &Site, reads: &mut RawLoop) -> Outcome<Told> {
    site.set(Pages::Warm)?;
    Ok(told_of(&reads.run(CONNECTIONS)?))
}

/// Reads of this process, as a child would tell them.
fn told_of(run: &Measurement) -> Told {
    let cpu: Duration = run.cpu.iter().map(|(_, time)| *time).sum();
    Told {
        wall_seconds: run.wall.as_secs_f64(),
        cpu_seconds: cpu.as_secs_f64(),
        first_seconds: run.wall.as_secs_f64(),
        bytes: run.bytes,
        ..Told::default()
    }
}

fn size(found: &Found) -> f64 {
    gib(found.ours.loads.first().map_or(0, |told| told.bytes))
}

fn judge_cold(found: &Found) -> Row {
    let (ours, fast, cheap) = (&found.ours, fastest(&found.peers), cheapest(&found.peers));
    let what = format!(
        "cold loads of {:.2} GiB from S3 on the loopback into host memory, by a daemon that is up, \
         its pool populated and empty, with a client that keeps every tensor; against peers",
        size(found)
    );
    let mut row = row("cold", what);
    row.bounds = vec![
        Bound::new(
            format!("times as fast as the fastest peer, {}", name(fast)),
            against(fast.map(Side::wall), Some(ours.wall())),
            Limit::AtLeast(FASTER_MIN),
        ),
        Bound::new(
            format!("CPU s/GiB, of the cheapest peer's, {}", name(cheap)),
            against(Some(ours.cpu()), cheap.map(Side::cpu)),
            Limit::AtMost(CPU_MAX),
        ),
    ];
    row.figures = std::iter::once(ours).chain(&found.peers).flat_map(Side::figures).collect();
    row.notes = found.missing.iter().map(Missing::note).collect();
    row
}

fn judge_runai(found: &Found) -> Row {
    let settings: Vec<Side> =
        found.peers.iter().filter(|side| side.name.starts_with(RUNAI)).cloned().collect();
    let (ours, best) = (&found.ours, fastest(&settings));
    let mut row = row("runai", format!("the same against {RUNAI} at its best setting"));
    row.bounds = vec![
        Bound::new(
            format!("times as fast as {}", name(best)),
            against(best.map(Side::wall), Some(ours.wall())),
            Limit::AtLeast(RUNAI_FASTER_MIN),
        ),
        Bound::new(
            format!("CPU s/GiB, of that of {}", name(best)),
            against(Some(ours.cpu()), best.map(Side::cpu)),
            Limit::AtMost(RUNAI_CPU_MAX),
        ),
    ];
    row.figures = std::iter::once(ours).chain(&settings).flat_map(Side::figures).collect();
    let about = |missing: &&Missing| missing.peer.starts_with(RUNAI) || best.is_none();
    row.notes = found.missing.iter().filter(about).map(Missing::note).collect();
    row
}

fn judge_raw(found: &Found) -> Row {
    let what = format!(
        "the same with a client that gives back unread what it is handed, against ranged reads of \
         8 MiB over {CONNECTIONS} connections, bodies dropped"
    );
    let mut row = row("raw", what);
    row.bounds = vec![Bound::new(
        "GB/s, of the raw reads'",
        against(Some(found.unread.rate()), Some(found.raw.rate())),
        Limit::AtLeast(RAW_MIN),
    )];
    row.figures = vec![
        Figure::new(OURS, "GB/s", found.unread.rate()),
        Figure::new("forebay, every page read", "GB/s", found.ours.rate()),
        Figure::new("raw ranged reads", "GB/s", found.raw.rate()),
        Figure::new("raw ranged reads, bodies kept", "GB/s", found.kept.rate()),
        Figure::new("forebay, CPU", "s/GiB", found.unread.cpu()),
        Figure::new("raw ranged reads, CPU", "s/GiB", found.raw.cpu()),
        Figure::new("raw ranged reads, bodies kept, CPU", "s/GiB", found.kept.cpu()),
        Figure::new("memcpy by two threads", "GB/s", found.memcpy.clone()),
    ];
    row
}

fn judge_memory(found: &Found, pool_bytes: u64) -> Row {
    let fast = fastest(&found.peers);
    let what = format!(
        "peak memory of the daemon with a pool of {} MiB and its client, which gives back what it \
         has read; pages that both have mapped count once",
        pool_bytes >> 20
    );
    let mut row = row("memory", what);
    row.bounds = vec![Bound::new(
        format!("of the fastest peer's, {}", name(fast)),
        against(Some(found.small.peak()), fast.map(Side::peak)),
        Limit::AtMost(MEMORY_MAX),
    )];
    row.figures = vec![Figure::new("forebay", "GiB", found.small.peak())];
    let peers = found.peers.iter();
    row.figures.extend(peers.map(|side| Figure::new(&side.name, "GiB", side.peak())));
    row.figures.push(Figure::new("forebay, the load", "s", found.small.wall()));
    row.notes = found.missing.iter().map(Missing::note).collect();
    row
}

#[cfg(test)]
mod tests {
    use super::super::sides::tests::side;
    use super::*;

    fn found(ours: (f64, f64), peers: Vec<Side>) -> Found {
        let missing = Missing { peer: "s5cmd".to_owned(), reason: "there is no s5cmd".to_owned() };
        Found {
            ours: side(OURS, &[ours]),
            unread: side("unread", &[ours]),
            small: side("small", &[ours]),
            raw: side("raw", &[(0.9, 0.4)]),
            kept: side("kept", &[(1.0, 0.4)]),
            peers,
            missing: vec![missing],
            memcpy: [9.0].into_iter().collect(),
        }
    }

    fn peers() -> Vec<Side> {
        vec![
            side("runai-model-streamer", &[(3.0, 2.0)]),
            side("runai-model-streamer-4", &[(2.2, 1.0)]),
            side("rclone", &[(1.4, 1.2)]),
        ]
    }

    fn holds(row: &Row) -> Vec<bool> {
        row.bounds.iter().map(Bound::holds).collect()
    }

    #[test]
    fn the_fastest_the_cheapest_and_the_best_setting_are_what_counts() {
        let good = found((1.0, 0.45), peers());
        assert_eq!(holds(&judge_cold(&good)), [true, true]);
        assert!(judge_cold(&good).bounds[0].what.ends_with("rclone"));
        assert!(judge_cold(&good).bounds[1].what.ends_with("runai-model-streamer-4"));
        assert_eq!(holds(&judge_runai(&good)), [true, true]);
        assert_eq!(holds(&judge_cold(&found((1.01, 0.66), peers()))), [false, false]);
        assert_eq!(holds(&judge_runai(&found((1.01, 0.46), peers()))), [false, false]);
        assert_eq!(holds(&judge_raw(&good)), [true]);
        assert_eq!(holds(&judge_raw(&found((1.07, 0.4), peers()))), [false]);
    }

    #[test]
    fn memory_is_held_to_that_of_the_fastest_peer() {
        let mut good = found((1.0, 0.45), peers());
        good.small.loads[0].peak_bytes = 1 << 30;
        assert_eq!(holds(&judge_memory(&good, 512 << 20)), [true]);
        good.small.loads[0].peak_bytes = 2 << 30;
        assert_eq!(holds(&judge_memory(&good, 512 << 20)), [false]);
    }

    #[test]
    fn without_peers_no_bound_holds_and_the_table_says_why() {
        let alone = found((1.0, 0.1), Vec::new());
        for row in [judge_cold(&alone), judge_runai(&alone), judge_memory(&alone, 512 << 20)] {
            assert!(holds(&row).iter().all(|holds| !holds), "{row:?}");
            assert_eq!(row.notes, ["s5cmd did not run: there is no s5cmd"]);
        }
        assert!(judge_runai(&found((1.0, 0.1), peers())).notes.is_empty());
    }
}
