//! What one run came to, and what several runs come to together.
//!
//! A [`Stopwatch`] is started with the processes whose CPU time counts and read once, which gives
//! a [`Measurement`]; runs are summed up as a [`Spread`]. Whoever measures decides what belongs to
//! the run; nothing here looks at a clock of its own but the stopwatch.

use std::io;
use std::time::Duration;

use tokio::time::Instant;

use crate::cpu::cpu_time;

const GIB: f64 = 1_073_741_824.0;

/// A process whose CPU time counts, by the name it has in reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// What it is.
    pub name: &'static str,
    /// Its id.
    pub pid: u32,
}

/// A run that goes on.
#[derive(Debug)]
pub struct Stopwatch {
    started: Instant,
    processes: Vec<(Counted, Duration)>,
}

/// What one run came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// How long it took.
    pub wall: Duration,
    /// Bytes that arrived.
    pub bytes: u64,
    /// CPU time, user and system, by process.
    pub cpu: Vec<(&'static str, Duration)>,
}

impl Stopwatch {
    /// Begins a run.
    ///
    /// # Errors
    /// If a process is gone.
    pub fn start(processes: &[Counted]) -> io::Result<Self> {
        let so_far = |process: &Counted| Ok((*process, cpu_time(process.pid)?));
        let processes = processes.iter().map(so_far).collect::<io::Result<_>>()?;
        Ok(Self { started: Instant::now(), processes })
    }

    /// Ends it, after so many bytes.
    ///
    /// # Errors
    /// If a process is gone.
    pub fn stop(self, bytes: u64) -> io::Result<Measurement> {
        let wall = self.started.elapsed();
        let spent = |(process, before): &(Counted, Duration)| {
            Ok((process.name, cpu_time(process.pid)?.saturating_sub(*before)))
        };
        let cpu = self.processes.iter().map(spent).collect::<io::Result<_>>()?;
        Ok(Measurement { wall, bytes, cpu })
    }
}

impl Measurement {
    /// 10^9 bytes per second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "for people, three digits")]
    pub fn gigabytes_per_second(&self) -> f64 {
        self.bytes as f64 / 1e9 / self.wall.as_secs_f64()
    }

    /// CPU seconds of all processes for each GiB.
    #[must_use]
    pub fn cpu_per_gib(&self) -> f64 {
        self.per_gib(self.cpu.iter().map(|(_, time)| *time).sum())
    }

    /// The same, of one of them.
    #[must_use]
    pub fn cpu_per_gib_of(&self, name: &str) -> f64 {
        let of = self.cpu.iter().filter(|(process, _)| *process == name);
        self.per_gib(of.map(|(_, time)| *time).sum())
    }

    #[expect(clippy::cast_precision_loss, reason = "for people, three digits")]
    fn per_gib(&self, time: Duration) -> f64 {
        time.as_secs_f64() / (self.bytes as f64 / GIB)
    }
}

/// The values that several runs came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Spread {
    sorted: Vec<f64>,
}

impl Spread {
    /// The median; between two in the middle, their mean. NaN if there is no run.
    #[must_use]
    pub fn median(&self) -> f64 {
        let middle = self.sorted.len() / 2;
        match (self.sorted.len() % 2, self.sorted.get(middle.wrapping_sub(1)..=middle)) {
            (0, Some([below, above])) => f64::midpoint(*below, *above),
            _ => self.sorted.get(middle).copied().unwrap_or(f64::NAN),
        }
    }

    /// The smallest.
    #[must_use]
    pub fn min(&self) -> f64 {
        self.sorted.first().copied().unwrap_or(f64::NAN)
    }

    /// The largest.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.sorted.last().copied().unwrap_or(f64::NAN)
    }

    /// All, in order of size.
    #[must_use]
    pub fn sorted(&self) -> &[f64] {
        &self.sorted
    }
}

impl FromIterator<f64> for Spread {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Self { sorted }
    }
}

/// The value that `per_mille` of 1,000 values do not exceed: the nearest rank. None of no values.
#[must_use]
pub fn quantile(mut values: Vec<Duration>, per_mille: usize) -> Option<Duration> {
    values.sort_unstable();
    let rank = (values.len() * per_mille).div_ceil(1000).max(1);
    values.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(values: &[f64]) -> Spread {
        values.iter().copied().collect()
    }

    #[test]
    fn the_median_is_in_the_middle_of_what_was_measured() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]).median().total_cmp(&2.0), std::cmp::Ordering::Equal);
        assert!((spread(&[4.0, 1.0, 2.0, 3.0]).median() - 2.5).abs() < 1e-12);
        assert!((spread(&[7.0]).median() - 7.0).abs() < 1e-12);
        assert!(spread(&[]).median().is_nan());
        let odd = spread(&[5.0, 9.0, 1.0]);
        assert_eq!(odd.sorted(), [1.0, 5.0, 9.0]);
        assert!((odd.min() - 1.0).abs() < 1e-12 && (odd.max() - 9.0).abs() < 1e-12);
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let ms = |range: std::ops::RangeInclusive<u64>| range.map(Duration::from_millis).collect();
        assert_eq!(quantile(ms(1..=100), 990), Some(Duration::from_millis(99)));
        assert_eq!(quantile(ms(1..=10), 990), Some(Duration::from_millis(10)));
        assert_eq!(quantile(ms(1..=10), 500), Some(Duration::from_millis(5)));
        assert_eq!(quantile(Vec::new(), 990), None);
    }

    #[test]
    fn rates_are_of_all_bytes_and_all_processes() {
        let half = Duration::from_millis(500);
        let run = Measurement {
            wall: Duration::from_secs(2),
            bytes: 4 << 30,
            cpu: vec![("daemon", half), ("client", half * 3)],
        };
        assert!((run.gigabytes_per_second() - 2.147).abs() < 1e-3);
        assert!((run.cpu_per_gib() - 0.5).abs() < 1e-12);
        assert!((run.cpu_per_gib_of("daemon") - 0.125).abs() < 1e-12);
        assert!(run.cpu_per_gib_of("nobody").abs() < 1e-12);
    }

    #[test]
    fn a_stopwatch_sees_the_work_of_its_process() {
        let own = Counted { name: "own", pid: std::process::id() };
        let watch = Stopwatch::start(&[own]).unwrap();
        let tick = Duration::from_millis(30);
        let before = cpu_time(own.pid).unwrap();
        let mut sum = 0_u64;
        while cpu_time(own.pid).unwrap() < before + tick {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let run = watch.stop(1).unwrap();
        assert!(run.cpu[0].1 >= tick, "{run:?}");
        Stopwatch::start(&[Counted { name: "nobody", pid: u32::MAX }]).unwrap_err();
    }
}
