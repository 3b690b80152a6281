//! What a part of some size should take: a line through recent service times, and how far single
//! ones lie above it.
//!
//! Times are divided by what the line says for their size, so that small and large parts can be
//! compared and one number, a quantile of that ratio, says what is unusually slow for any size.
//! Owned by the endpoint, under its lock.

use std::time::Duration;

/// What an older sample counts against the next newer one.
const DECAY: f64 = 0.99;
/// Ratios remembered.
const RATIOS: usize = 256;
/// New ratios after which the quantile is computed anew.
const REFRESH: usize = 16;
/// Sizes count in MiB, so that sums of squares stay well conditioned.
const UNIT: f64 = 1_048_576.0;

/// The line and the ratios.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    weight: f64,
    size: f64,
    size_squared: f64,
    time: f64,
    size_time: f64,
    ratios: Vec<f64>,
    next_ratio: usize,
    samples: u64,
    p50: Option<f64>,
    p95: Option<f64>,
}

/// Seconds for a request of no size, and for each MiB.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Line {
    fixed: f64,
    per_unit: f64,
}

impl Line {
    /// What so many requests with so many bytes together should have taken, in seconds.
    pub(crate) fn total(&self, requests: f64, bytes: f64) -> f64 {
        self.fixed * requests + self.per_unit * (bytes / UNIT)
    }
}

impl Model {
    /// Learns from one good request.
    pub(crate) fn learn(&mut self, bytes: u64, service: Duration) {
        let (size, time) = (bytes as f64 / UNIT, service.as_secs_f64());
        if let Some(expected) = self.line().map(|line| line.total(1.0, bytes as f64)) {
            self.note_ratio(time / expected.max(1e-6));
        }
        self.weight = self.weight * DECAY + 1.0;
        self.size = self.size * DECAY + size;
        self.size_squared = self.size_squared * DECAY + size * size;
        self.time = self.time * DECAY + time;
        self.size_time = self.size_time * DECAY + size * time;
        self.samples += 1;
    }

    /// The line, once there is any sample.
    pub(crate) fn line(&self) -> Option<Line> {
        if self.weight <= 0.0 {
            return None;
        }
        let (size, time) = (self.size / self.weight, self.time / self.weight);
        let spread = self.size_squared / self.weight - size * size;
        // Sizes that are all alike say nothing of a slope: then time is proportional to size.
        let slope = if spread > 0.01 * size * size {
            (self.size_time / self.weight - size * time) / spread
        } else {
            time / size.max(1e-9)
        };
        let per_unit = slope.clamp(0.0, time / size.max(1e-9));
        Some(Line { fixed: (time - per_unit * size).max(0.0), per_unit })
    }

    /// What a request of that size usually takes.
    pub(crate) fn usual(&self, bytes: u64) -> Option<Duration> {
        let seconds = self.line()?.total(1.0, bytes as f64);
        Some(Duration::from_secs_f64(seconds.min(3600.0)))
    }

    /// What 95 % of requests of that size are done within, once there are `samples_min` samples.
    pub(crate) fn p95(&self, bytes: u64, samples_min: u64) -> Option<Duration> {
        let ratio = self.p95.filter(|_| self.samples >= samples_min)?;
        Some(self.usual(bytes)?.mul_f64(ratio.clamp(1.0, 1000.0)))
    }

    /// What half of the requests of that size are done within, likewise. A few that hung make the
    /// line steep, and this not.
    pub(crate) fn p50(&self, bytes: u64, samples_min: u64) -> Option<Duration> {
        let ratio = self.p50.filter(|_| self.samples >= samples_min)?;
        Some(self.usual(bytes)?.mul_f64(ratio.clamp(0.0, 1.0)))
    }

    fn note_ratio(&mut self, ratio: f64) {
        match self.ratios.get_mut(self.next_ratio) {
            Some(place) => *place = ratio,
            None => self.ratios.push(ratio),
        }
        self.next_ratio = (self.next_ratio + 1) % RATIOS;
        if self.next_ratio.is_multiple_of(REFRESH) {
            let mut sorted = self.ratios.clone();
            sorted.sort_by(f64::total_cmp);
            self.p50 = sorted.get(sorted.len() / 2).copied();
            self.p95 = sorted.get(sorted.len() * 95 / 100).copied();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_line_is_found() {
        let mut model = Model::default();
        for bytes in (1..=200).map(|n| n % 16 * MIB) {
            model.learn(bytes, Duration::from_millis(40 + bytes / MIB * 10));
        }
        let near = |bytes, millis: f64| {
            let usual = model.usual(bytes).unwrap().as_secs_f64() * 1000.0;
            assert!((usual - millis).abs() < 1.0, "{usual} ms, not {millis}");
        };
        near(0, 40.0);
        near(8 * MIB, 120.0);
        near(64 * MIB, 680.0);
    }

    #[test]
    fn the_quantile_waits_for_samples_and_fits_every_size() {
        let mut model = Model::default();
        for n in 0..99_u64 {
            let slow = if n % 10 == 9 { 5 } else { 1 };
            model.learn(8 * MIB, Duration::from_millis(100 * slow));
        }
        assert_eq!(model.p95(8 * MIB, 100), None);
        (0..30).for_each(|_| model.learn(8 * MIB, Duration::from_millis(100)));
        let large = model.p95(8 * MIB, 100).unwrap();
        assert!(large > Duration::from_millis(200), "{large:?}");
        assert_eq!(model.p95(4 * MIB, 100).unwrap().as_millis(), large.as_millis() / 2);
        // One in ten took five times as long: half take what they always took.
        let half = model.p50(8 * MIB, 100).unwrap().as_millis();
        assert!((80..=110).contains(&half), "{half} ms");
    }

    proptest! {
        /// Never negative, never shorter for more bytes, whatever was seen.
        #[test]
        fn more_bytes_never_take_less(
            samples in prop::collection::vec((0_u64..100 * MIB, 0_u64..60_000), 1..300),
            (a, b) in (0_u64..1 << 34, 0_u64..1 << 34),
        ) {
            let mut model = Model::default();
            for (bytes, millis) in samples {
                model.learn(bytes, Duration::from_millis(millis));
            }
            let (less, more) = (model.usual(a.min(b)).unwrap(), model.usual(a.max(b)).unwrap());
            prop_assert!(less <= more);
        }
    }
}
