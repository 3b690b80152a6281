//! Who is compared, and what their loads came to: the part that is arithmetic.

use super::child::Told;
use crate::measure::Spread;
use crate::origin::gib;
use crate::report::Figure;

/// Our own name in tables.
pub(super) const OURS: &str = "forebay";

/// One who loads, and the loads so far.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Side {
    pub(super) name: String,
    pub(super) loads: Vec<Told>,
}

impl Side {
    pub(super) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), loads: Vec::new() }
    }

    fn spread(&self, value: impl Fn(&Told) -> f64) -> Spread {
        self.loads.iter().map(value).collect()
    }

    pub(super) fn wall(&self) -> Spread {
        self.spread(|told| told.wall_seconds)
    }

    /// 10^9 bytes per second.
    pub(super) fn rate(&self) -> Spread {
        self.spread(|told| gib(told.bytes) * 1.073_741_824 / told.wall_seconds)
    }

    /// CPU seconds for each GiB.
    pub(super) fn cpu(&self) -> Spread {
        self.spread(|told| told.cpu_seconds / gib(told.bytes))
    }

    /// Milliseconds until the first tensor.
    pub(super) fn first(&self) -> Spread {
        self.spread(|told| told.first_seconds * 1e3)
    }

    /// GiB.
    pub(super) fn peak(&self) -> Spread {
        self.spread(|told| gib(told.peak_bytes))
    }

    /// All of it, for the table.
    pub(super) fn figures(&self) -> Vec<Figure> {
        let name = &self.name;
        vec![
            Figure::new(name, "s", self.wall()),
            Figure::new(format!("{name}, rate"), "GB/s", self.rate()),
            Figure::new(format!("{name}, CPU"), "s/GiB", self.cpu()),
            Figure::new(format!("{name}, first tensor"), "ms", self.first()),
            Figure::new(format!("{name}, peak memory"), "GiB", self.peak()),
        ]
    }
}

/// The peer whose loads took the least time, by the median. One without a load is none.
pub(super) fn fastest(peers: &[Side]) -> Option<&Side> {
    least(peers, Side::wall)
}

/// The peer whose loads took the least CPU time, by the median.
pub(super) fn cheapest(peers: &[Side]) -> Option<&Side> {
    least(peers, Side::cpu)
}

fn least(peers: &[Side], value: impl Fn(&Side) -> Spread) -> Option<&Side> {
    let ran = peers.iter().filter(|side| !side.loads.is_empty());
    ran.min_by(|one, other| value(one).median().total_cmp(&value(other).median()))
}

/// The ratio of two sides' medians; none of one that is not there.
pub(super) fn against(of: Option<Spread>, to: Option<Spread>) -> f64 {
    let median = |spread: Option<Spread>| spread.map_or(f64::NAN, |spread| spread.median());
    median(of) / median(to)
}

/// How a bound names a side that may not be there.
pub(super) fn name(side: Option<&Side>) -> &str {
    side.map_or("nobody", |side| &side.name)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn side(name: &str, runs: &[(f64, f64)]) -> Side {
        let told = |&(wall_seconds, cpu_seconds): &(f64, f64)| Told {
            wall_seconds,
            cpu_seconds,
            first_seconds: 0.25,
            bytes: 1 << 30,
            peak_bytes: 3 << 30,
            ..Told::default()
        };
        Side { name: name.to_owned(), loads: runs.iter().map(told).collect() }
    }

    #[test]
    fn the_fastest_is_so_by_its_median_and_need_not_be_the_cheapest() {
        let peers = [
            side("lucky", &[(0.1, 9.0), (2.0, 9.0), (2.0, 9.0)]),
            side("steady", &[(1.0, 3.0), (1.1, 3.0), (1.2, 3.0)]),
            side("thrifty", &[(5.0, 0.5), (5.0, 0.6), (5.0, 9.0)]),
            side("missing", &[]),
        ];
        assert_eq!((name(fastest(&peers)), name(cheapest(&peers))), ("steady", "thrifty"));
        assert_eq!((name(fastest(&peers[3..])), name(cheapest(&[]))), ("nobody", "nobody"));
    }

    #[test]
    fn a_ratio_to_nobody_keeps_no_bound() {
        let (one, other) = (side("a", &[(2.0, 1.0)]), side("b", &[(4.0, 1.0)]));
        assert!((against(Some(one.wall()), Some(other.wall())) - 0.5).abs() < 1e-12);
        assert!(against(Some(one.wall()), None).is_nan() && against(None, None).is_nan());
        assert!(against(Some(Side::new("c").wall()), Some(one.wall())).is_nan());
    }

    #[test]
    fn figures_have_the_units_that_they_say() {
        let figures = side("a", &[(2.0, 1.0)]).figures();
        let of =
            |unit: &str| figures.iter().find(|figure| figure.unit == unit).unwrap().spread.median();
        assert!((of("GB/s") - 0.536_870_912).abs() < 1e-9);
        assert!((of("s/GiB") - 1.0).abs() < 1e-9 && (of("ms") - 250.0).abs() < 1e-9);
        assert!((of("GiB") - 3.0).abs() < 1e-9);
    }
}
