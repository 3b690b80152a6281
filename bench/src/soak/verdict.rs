//! What the soak is held to.

use std::time::Duration;

use super::crew::{Tally, Told};
use super::lives::{Death, Deaths, End, Left};
use super::{SoakOptions, gauges};
use crate::Outcome;
use crate::report::{Bound, Limit, Row, Table};

/// Of what was a hit before a daemon ended, the share that has to be one after the next start.
const WARM: f64 = 0.95;
/// Memory of its own that a daemon may have gained: allocators keep what was needed at the peak.
const MORE_PRIVATE_MIB: f64 = 64.0;

/// Files of the kernel that evidence is read from, beside one for each thread.
const EVIDENCE_FILES: f64 = 64.0;

/// All that was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) tally: Tally,
    pub(super) killed: u64,
    pub(super) not_back: Told,
    pub(super) deaths: Deaths,
    pub(super) left: Left,
}

impl Found {
    pub(super) fn table(&self, options: &SoakOptions) -> Outcome<Table> {
        let cores = std::thread::available_parallelism()?.to_string();
        let ground = vec![
            ("seed", options.seed.to_string()),
            ("for", format!("{:?}", options.length)),
            ("clients", options.clients.to_string()),
            ("cores", cores),
        ];
        Ok(Table { bench: "soak", ground, rows: vec![self.loads(), self.deaths(), self.left()] })
    }

    fn loads(&self) -> Row {
        let tally = &self.tally;
        let failed: u64 = tally.failed.values().sum();
        let reasons: Vec<String> =
            tally.failed.iter().map(|(reason, times)| format!("{reason} {times}")).collect();
        let mut notes = vec![
            format!(
                "{} MB were compared; {} loads were given up on purpose",
                tally.bytes / 1_000_000,
                tally.dropped
            ),
            format!("{failed} loads failed: {}", reasons.join(", ")),
        ];
        for told in [&tally.wrong, &tally.odd, &tally.lost] {
            notes.extend(told.sentences.iter().cloned());
        }
        Row {
            name: "loads",
            what: "what clients got, whatever happened".to_owned(),
            figures: Vec::new(),
            bounds: vec![
                some("loads that succeeded", tally.loads),
                some("clients that were killed", self.killed),
                none("wrong bytes", tally.wrong.times),
                none("failures that nothing explains", tally.odd.times),
                none("loads that outlived their deadline", tally.late),
                none("clients that hung, or ended by themselves", tally.lost.times),
            ],
            notes,
        }
    }

    fn deaths(&self) -> Row {
        let (tally, deaths) = (&self.tally, &self.deaths);
        let longest = |of: fn(&Death) -> Duration| deaths.all.iter().map(of).max();
        let mut notes = vec![format!(
            "the slowest end took {:?}, the slowest start {:?}",
            longest(|death| death.ending).unwrap_or_default(),
            longest(|death| death.starting).unwrap_or_default(),
        )];
        for told in [&deaths.bad, &deaths.panics, &tally.no_hint, &self.not_back] {
            notes.extend(told.sentences.iter().cloned());
        }
        let count = |end| deaths.all.iter().filter(|death| death.end == end).count() as u64;
        Row {
            name: "deaths",
            what: "the daemon was ended under load, and started again".to_owned(),
            figures: Vec::new(),
            bounds: vec![
                some("SIGKILLs", count(End::Kill)),
                some("SIGTERMs", count(End::Term)),
                self.warm("hits after SIGKILL, of those before", End::Kill),
                self.warm("hits after SIGTERM, of those before", End::Term),
                none("SIGTERMs not answered with a drain and exit 0", deaths.bad.times),
                none("panics", deaths.panics.times),
                some("views looked at after a daemon's death", tally.over_death),
                some("of them after a load from the next one", tally.over_restart),
                some("times that a client found the next one", tally.back),
                none("clients that did not", self.not_back.times),
                none("UNAVAILABLE without a hint", tally.no_hint.times),
            ],
            notes,
        }
    }

    /// The worst of all ends of this kind.
    fn warm(&self, what: &str, end: End) -> Bound {
        let of_kind = self.deaths.all.iter().filter(|death| death.end == end);
        let kept = of_kind.map(|death| death.after / death.before).reduce(f64::min);
        Bound::new(what, kept.unwrap_or(f64::NAN), Limit::AtLeast(WARM))
    }

    fn left(&self) -> Row {
        let left = &self.left;
        let mut notes: Vec<String> = left.gauges.iter().chain(&left.files).cloned().collect();
        if left.descriptors > 0 {
            notes.push(format!("more descriptors: {}", left.of_what));
        }
        let private = left.more_private_bytes as f64 / f64::from(1 << 20);
        let zero = format!("of {} gauges not zero", gauges::held_to_zero());
        Row {
            name: "left",
            what: "what the daemon has when all clients are gone".to_owned(),
            figures: Vec::new(),
            bounds: vec![
                none(&zero, left.gauges.len() as u64),
                Bound::new("descriptors more", left.descriptors as f64, Limit::AtMost(0.0)),
                Bound::new(
                    "files of evidence beside one a thread",
                    (left.evidence - left.threads) as f64,
                    Limit::AtMost(EVIDENCE_FILES),
                ),
                Bound::new("segments beyond the pool's", left.segments as f64, Limit::AtMost(0.0)),
                none("files that nobody knows", left.files.len() as u64),
                Bound::new("private MiB more", private, Limit::AtMost(MORE_PRIVATE_MIB)),
            ],
            notes,
        }
    }
}

fn none(what: &str, times: u64) -> Bound {
    Bound::new(what, times as f64, Limit::AtMost(0.0))
}

fn some(what: &str, times: u64) -> Bound {
    Bound::new(what, times as f64, Limit::AtLeast(1.0))
}
