//! Loads that share what one process brought: the second process, and eight at once.
//!
//! Every process is new. The second one finds the checkpoint in the daemon's RAM, as one finds it
//! in the page cache that maps files. Of eight that begin together, with nothing in RAM, the time
//! is that of the last, until it has read a byte of every page. What the server sent is counted
//! there.

use super::PeersOptions;
use super::adapter::{Missing, Source, environment};
use super::child::{Loader, Told};
use super::sides::{OURS, Side, against, name};
use super::site::{Load, Pages, Reader, Site};
use crate::Outcome;
use crate::measure::Spread;
use crate::node::{self, Node};
use crate::nvme::order;
use crate::origin::{gib, progress, row};
use crate::report::{Bound, Figure, Limit, Row};

/// Until the first tensor, milliseconds, at most.
const FIRST_MAX: f64 = 4.0;
/// The peer's time, of ours, at least: no slower.
const FASTER_MIN: f64 = 1.0;
/// Of one process's time, at most.
const EIGHT_MAX: f64 = 1.2;
/// Of the checkpoint's bytes, at most: to two digits once.
const SENT_MAX: f64 = 1.005;
/// Processes at once.
const PROCESSES: usize = 8;
/// Whose loads a warm one is compared with.
const MAPPED: &str = "safetensors-mmap";

async fn start(options: &PeersOptions, site: &Site) -> Outcome<Node> {
    let spec = node::daemon(options.bytes(), &[])?;
    Node::start(spec.env(environment(&site.server.endpoint()))).await
}

/// The second process.
pub(super) async fn warm(options: &PeersOptions, site: &Site) -> Outcome<Row> {
    let (node, uri) = (start(options, site).await?, site.server.uri());
    let load = |evict, verify| Load {
        uri: &uri,
        pages: Pages::Warm,
        evict,
        reader: Reader::Keeps,
        verify,
    };
    site.ours(&node, load(true, false)).await?;
    site.ours(&node, load(false, true)).await?;
    let peer = async |verify| {
        let command = site.adapters.load(MAPPED, &Source::File, &site.files(), verify);
        site.peer(command, Pages::Warm, verify).await
    };
    let (mut ours, mut mapped, mut missing) = (Side::new(OURS), Side::new(MAPPED), None);
    let miss = |reason| Some(Missing { peer: MAPPED.to_owned(), reason });
    if let Err(reason) = peer(true).await? {
        missing = miss(reason);
    }
    for round in 0..options.runs.into() {
        for side in order(2, round) {
            match side {
                0 => ours.loads.push(second(site, &node, load(false, false)).await?),
                _ if missing.is_some() => {}
                _ => match peer(false).await? {
                    Ok(told) => mapped.loads.push(told),
                    Err(reason) => missing = miss(reason),
                },
            }
        }
        if let ([.., ours], [.., mapped]) = (&ours.loads[..], &mapped.loads[..]) {
            progress(format_args!(
                "warm {}: forebay {:.3} s, first tensor {:.2} ms; {MAPPED} {:.3} s, {:.2} ms",
                round + 1,
                ours.wall_seconds,
                ours.first_seconds * 1e3,
                mapped.wall_seconds,
                mapped.first_seconds * 1e3
            ));
        }
    }
    Ok(judge_warm(&ours, &mapped, missing.as_ref()))
}

async fn second(site: &Site, node: &Node, load: Load<'_>) -> Outcome<Told> {
    let told = site.ours(node, load).await?;
    if told.ram_bytes != told.bytes {
        return Err(format!("{} of {} bytes were in RAM", told.ram_bytes, told.bytes).into());
    }
    Ok(told)
}

fn judge_warm(ours: &Side, mapped: &Side, missing: Option<&Missing>) -> Row {
    let what = format!(
        "loads of {:.2} GiB by a second process, from its call to connect until a byte of every \
         page was read, against mapped files in the page cache",
        gib(ours.loads.first().map_or(0, |told| told.bytes))
    );
    let ran = Some(mapped).filter(|side| !side.loads.is_empty());
    let mut row = row("warm", what);
    row.bounds = vec![
        Bound::new("first tensor, ms", ours.first().median(), Limit::AtMost(FIRST_MAX)),
        Bound::new(
            format!("times as fast as {}", name(ran)),
            against(ran.map(Side::wall), Some(ours.wall())),
            Limit::AtLeast(FASTER_MIN),
        ),
    ];
    row.figures = std::iter::once(ours).chain(ran).flat_map(Side::figures).collect();
    row.notes = missing.map(Missing::note).into_iter().collect();
    row
}

/// What eight loads at once came to.
#[derive(Debug, Clone, Copy)]
struct Together {
    /// Of the last.
    wall_seconds: f64,
    /// What the server sent, of the checkpoint's bytes.
    sent: f64,
}

/// Eight processes at once.
pub(super) async fn eight(options: &PeersOptions, site: &Site) -> Outcome<Row> {
    let (node, uri) = (start(options, site).await?, site.server.uri());
    let load =
        Load { uri: &uri, pages: Pages::Warm, evict: true, reader: Reader::Keeps, verify: false };
    site.ours(&node, Load { verify: true, ..load }).await?;
    let (mut alone, mut together) = (Side::new("one process"), Vec::new());
    for round in 0..options.runs.into() {
        for side in order(2, round) {
            match side {
                0 => alone.loads.push(site.ours(&node, load).await?),
                _ => together.push(at_once(site, &node, &uri).await?),
            }
        }
        if let ([.., one], [.., eight]) = (&alone.loads[..], &together[..]) {
            progress(format_args!(
                "eight {}: one {:.2} s, eight {:.2} s, sent {:.4}",
                round + 1,
                one.wall_seconds,
                eight.wall_seconds,
                eight.sent
            ));
        }
    }
    Ok(judge_eight(&alone, &together))
}

async fn at_once(site: &Site, node: &Node, uri: &str) -> Outcome<Together> {
    let mut loaders =
        (0..PROCESSES).map(|_| site.beside(node, uri)).collect::<Outcome<Vec<Loader>>>()?;
    for loader in &mut loaders {
        loader.ready()??;
    }
    let held = site.hold()?;
    node.forget(uri).await?;
    site.set(Pages::Warm)?;
    let before = site.server.sent().await?;
    drop(held);
    loaders.iter_mut().for_each(Loader::go);
    let told: Vec<Told> =
        loaders.iter_mut().map(|loader| Ok(loader.told()??)).collect::<Outcome<_>>()?;
    let sent = site.server.sent().await? - before;
    let wall_seconds = told.iter().map(|told| told.wall_seconds).fold(0.0, f64::max);
    Ok(Together { wall_seconds, sent: gib(sent) / gib(site.made.bytes()) })
}

fn judge_eight(alone: &Side, together: &[Together]) -> Row {
    let of = |value: fn(&Together) -> f64| -> Spread { together.iter().map(value).collect() };
    let (wall, sent) = (of(|ran| ran.wall_seconds), of(|ran| ran.sent));
    let what = format!(
        "cold loads of {:.2} GiB by {PROCESSES} processes at once, all of it each, against one; none \
         reads what it is handed",
        gib(alone.loads.first().map_or(0, |told| told.bytes))
    );
    let mut row = row("eight", what);
    row.bounds = vec![
        Bound::new(
            "the last one's time, of one's",
            against(Some(wall.clone()), Some(alone.wall())),
            Limit::AtMost(EIGHT_MAX),
        ),
        Bound::new("sent, of the checkpoint's bytes", sent.median(), Limit::AtMost(SENT_MAX)),
    ];
    row.figures = vec![
        Figure::new("one process", "s", alone.wall()),
        Figure::new("the last of eight", "s", wall),
        Figure::new("sent by the server", "of it", sent),
    ];
    row
}

#[cfg(test)]
mod tests {
    use super::super::sides::tests::side;
    use super::*;

    fn holds(row: &Row) -> Vec<bool> {
        row.bounds.iter().map(Bound::holds).collect()
    }

    #[test]
    fn a_second_process_is_held_to_four_milliseconds_and_to_mapped_files() {
        let mut ours = side(OURS, &[(0.1, 0.1)]);
        ours.loads[0].first_seconds = 0.004;
        let mapped = side(MAPPED, &[(0.1, 0.1)]);
        assert_eq!(holds(&judge_warm(&ours, &mapped, None)), [true, true]);
        ours.loads[0].first_seconds = 0.0041;
        assert_eq!(holds(&judge_warm(&ours, &side(MAPPED, &[(0.09, 0.1)]), None)), [false, false]);
        let missing = Missing { peer: MAPPED.to_owned(), reason: "no torch".to_owned() };
        let row = judge_warm(&ours, &Side::new(MAPPED), Some(&missing));
        assert_eq!((holds(&row), row.notes.len()), (vec![false, false], 1));
    }

    #[test]
    fn eight_are_held_to_the_time_of_one_and_to_one_checkpoint() {
        let one = side("one", &[(1.0, 1.0)]);
        let ran = |wall_seconds, sent| [Together { wall_seconds, sent }];
        assert_eq!(holds(&judge_eight(&one, &ran(1.2, 1.0))), [true, true]);
        assert_eq!(holds(&judge_eight(&one, &ran(1.21, 1.1))), [false, false]);
    }
}
