//! Cold loads of files on a disk, by everybody, in turns, beside fio on the same files.
//!
//! Before each load the files are removed from the page cache, and what the disk had to bring is
//! looked at afterwards. The disk is one that may be held to a rate by a bucket that refills (see
//! [`nvme`](crate::nvme)): everybody is paced alike, and fio is its best shape.

use std::collections::BTreeMap;
use std::time::Duration;

use super::PeersOptions;
use super::adapter::{Missing, Source};
use super::child::Told;
use super::sides::{OURS, Side, against, fastest, name};
use super::site::{Load, Pages, Reader, Site};
use crate::Outcome;
use crate::measure::Measurement;
use crate::node::{self, Node};
use crate::nvme::fio::{self, SHAPES, Shape};
use crate::nvme::{Pace, order};
use crate::origin::{gib, progress, row};
use crate::report::{Bound, Figure, Limit, Row};

/// Between the end of one who reads and the start of the next.
const PAUSE: Duration = Duration::from_secs(3);
/// The fastest peer's time, of ours, at least: no slower.
const FASTER_MIN: f64 = 1.0;
/// Of daemon and client, CPU seconds for each GiB, at most.
const CPU_MAX: f64 = 0.10;
/// Of fio's rate, at least.
const FIO_MIN: f64 = 0.95;

/// Who reads: one of the sides, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contestant {
    Ours,
    Peer(usize),
    Fio(usize),
}

/// Everybody's loads.
struct Found {
    ours: Side,
    peers: Vec<Side>,
    fios: Vec<(Shape, Side)>,
    missing: Vec<Missing>,
}

pub(super) async fn run(options: &PeersOptions, site: &Site) -> Outcome<Row> {
    let node = Node::start(node::daemon(options.bytes(), &[])?).await?;
    let mut session =
        Session { site, node, found: able(options, site).await?, failed: BTreeMap::new() };
    session.load_ours(true).await?;
    let mut contestants = vec![Contestant::Ours];
    contestants.extend((0..session.found.peers.len()).map(Contestant::Peer));
    contestants.extend((0..session.found.fios.len()).map(Contestant::Fio));
    let mut pace = Pace::new(PAUSE);
    for round in 0..options.runs.into() {
        for place in order(contestants.len(), round) {
            pace.wait().await;
            session.turn(round, contestants[place]).await?;
            pace.ended();
        }
    }
    Ok(judge(&session.end()))
}

/// A daemon and what was found so far.
struct Session<'a> {
    site: &'a Site,
    node: Node,
    found: Found,
    /// Peers that failed in a turn of theirs, by number.
    failed: BTreeMap<usize, String>,
}

impl Session<'_> {
    async fn load_ours(&self, verify: bool) -> Outcome<Told> {
        let uri = &self.site.file_uri();
        let load = Load { uri, pages: Pages::Cold, evict: true, reader: Reader::Keeps, verify };
        self.site.ours(&self.node, load).await
    }

    /// One load; none of a peer that fails now, or has failed.
    async fn turn(&mut self, round: usize, contestant: Contestant) -> Outcome<()> {
        let told = match contestant {
            Contestant::Ours => self.load_ours(false).await?,
            Contestant::Fio(number) => {
                self.site.set(Pages::Cold)?;
                told_of(&fio::read(&self.site.files(), self.found.fios[number].0)?)
            }
            Contestant::Peer(number) if self.failed.contains_key(&number) => return Ok(()),
            Contestant::Peer(number) => {
                match load(self.site, &self.found.peers[number].name, false).await? {
                    Ok(told) => told,
                    Err(reason) => {
                        self.failed.insert(number, reason);
                        return Ok(());
                    }
                }
            }
        };
        let side = match contestant {
            Contestant::Ours => &mut self.found.ours,
            Contestant::Peer(number) => &mut self.found.peers[number],
            Contestant::Fio(number) => &mut self.found.fios[number].1,
        };
        progress(format_args!(
            "disk {}, {}: {:.2} s, {:.3} CPU s/GiB",
            round + 1,
            side.name,
            told.wall_seconds,
            told.cpu_seconds / gib(told.bytes)
        ));
        side.loads.push(told);
        Ok(())
    }

    /// Loads of one that failed once are no median of its.
    fn end(mut self) -> Found {
        for (number, reason) in self.failed.into_iter().rev() {
            let peer = self.found.peers.remove(number).name;
            self.found.missing.push(Missing { peer, reason });
        }
        self.found
    }
}

/// Everybody who can load: each does once, untimed, and every byte is compared.
async fn able(options: &PeersOptions, site: &Site) -> Outcome<Found> {
    let mut missing = Vec::new();
    let names = site.adapters.peers(&Source::File).unwrap_or_else(|nobody| {
        missing.push(nobody);
        Vec::new()
    });
    let mut peers = Vec::new();
    for peer in names.into_iter().filter(|name| options.compares(name)) {
        match load(site, &peer, true).await? {
            Ok(_) => peers.push(Side::new(peer)),
            Err(reason) => missing.push(Missing { peer, reason }),
        }
    }
    let fios = match fio::check() {
        Ok(()) => SHAPES.iter().map(|shape| (*shape, Side::new(shape.name()))).collect(),
        Err(error) => {
            missing.push(Missing { peer: "fio".to_owned(), reason: error.to_string() });
            Vec::new()
        }
    };
    for missing in &missing {
        progress(format_args!("disk: {}", missing.note()));
    }
    Ok(Found { ours: Side::new(OURS), peers, fios, missing })
}

async fn load(site: &Site, peer: &str, verify: bool) -> Outcome<Result<Told, String>> {
    let command = site.adapters.load(peer, &Source::File, &site.files(), verify);
    site.peer(command, Pages::Cold, verify).await
}

/// Reads of fio, as a child would tell them.
fn told_of(run: &Measurement) -> Told {
    let cpu: Duration = run.cpu.iter().map(|(_, time)| *time).sum();
    let (wall_seconds, cpu_seconds) = (run.wall.as_secs_f64(), cpu.as_secs_f64());
    Told { wall_seconds, cpu_seconds, bytes: run.bytes, ..Told::default() }
}

fn judge(found: &Found) -> Row {
    let (ours, fast) = (&found.ours, fastest(&found.peers));
    let fios: Vec<Side> = found.fios.iter().map(|(_, side)| side.clone()).collect();
    let best = fios.iter().filter(|side| !side.loads.is_empty());
    let best = best.max_by(|a, b| a.rate().median().total_cmp(&b.rate().median()));
    let what = format!(
        "cold loads of {:.2} GiB from files on the local disk, their pages dropped from the page \
         cache, against peers and fio with O_DIRECT",
        gib(ours.loads.first().map_or(0, |told| told.bytes))
    );
    let mut row = row("disk", what);
    row.bounds = vec![
        Bound::new(
            format!("times as fast as the fastest peer, {}", name(fast)),
            against(fast.map(Side::wall), Some(ours.wall())),
            Limit::AtLeast(FASTER_MIN),
        ),
        Bound::new("daemon and client, CPU s/GiB", ours.cpu().median(), Limit::AtMost(CPU_MAX)),
        Bound::new(
            format!("GB/s, of the best of fio, {}", name(best)),
            against(Some(ours.rate()), best.map(Side::rate)),
            Limit::AtLeast(FIO_MIN),
        ),
    ];
    row.figures = std::iter::once(ours).chain(&found.peers).flat_map(Side::figures).collect();
    for side in &fios {
        row.figures.push(Figure::new(&side.name, "GB/s", side.rate()));
        row.figures.push(Figure::new(format!("{}, CPU", side.name), "s/GiB", side.cpu()));
    }
    row.notes = found.missing.iter().map(Missing::note).collect();
    row
}

#[cfg(test)]
mod tests {
    use super::super::sides::tests::side;
    use super::*;

    fn found(wall: f64, cpu: f64, fio: f64) -> Found {
        let peers = vec![side("slow", &[(2.0, 0.01)]), side("fast", &[(1.0, 0.5)])];
        let fios = SHAPES.iter().zip([fio, 9.0, 9.0, 9.0]);
        let fios = fios.map(|(shape, wall)| (*shape, side("fio", &[(wall, 0.1)]))).collect();
        Found { ours: side(OURS, &[(wall, cpu)]), peers, fios, missing: Vec::new() }
    }

    #[test]
    fn no_slower_than_the_fastest_and_fio_at_its_best() {
        let holds =
            |found: &Found| judge(found).bounds.iter().map(Bound::holds).collect::<Vec<_>>();
        assert_eq!(holds(&found(1.0, 0.10, 0.95)), [true, true, true]);
        assert_eq!(holds(&found(1.01, 0.11, 0.95)), [false, false, false]);
        let mut alone = found(1.0, 0.1, 1.0);
        alone.peers.clear();
        alone.fios.clear();
        assert_eq!(holds(&alone), [false, true, false]);
    }
}
