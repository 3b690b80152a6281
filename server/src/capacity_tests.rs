//! The rates that are found of stages whose rate is known.

use super::*;

const MB: f64 = 1e6;

/// A stage of workers that bring so much each, seeded.
struct Sim {
    series: Series,
    start: Instant,
    state: u64,
}

impl Sim {
    fn new(seed: u64) -> Self {
        let start = Instant::now();
        Self { series: Series::new(start), start, state: seed }
    }

    /// From 0 to 1.
    fn random(&mut self) -> f64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        f64::from(u32::try_from(self.state >> 33).unwrap()) / f64::from(1_u32 << 31)
    }

    fn at(&self, seconds: f64) -> Instant {
        self.start + Duration::from_secs_f64(seconds)
    }

    /// `workers` bring pieces of 0.5 to 1.5 MB, each worker at `each` MB/s, from one time to
    /// another.
    fn run(&mut self, (from, to): (f64, f64), workers: usize, each: f64) {
        let mut events = Vec::new();
        for _ in 0..workers {
            let mut now = from;
            while now < to {
                let megabytes = 0.5 + self.random();
                let end = now + megabytes / each;
                events.push((now, now, 0.0));
                events.push((end, now, megabytes));
                now = end;
            }
        }
        events.sort_by(|a, b| a.partial_cmp(b).unwrap());
        for (at, began, megabytes) in events {
            let (at, began) = (self.at(at), self.at(began));
            match megabytes > 0.0 {
                true => {
                    #[expect(
                        clippy::cast_possible_truncation,
                        clippy::cast_sign_loss,
                        reason = "some megabytes, which are positive"
                    )]
                    let bytes = (megabytes * MB) as u64;
                    self.series.end(began, at, (bytes, bytes / 2));
                }
                false => self.series.begin(at),
            }
        }
    }

    fn megabytes(&self, at: f64, scale: Scale) -> Option<f64> {
        self.series.rate(self.at(at), scale).map(|rate| rate.bytes_per_second / MB)
    }
}

#[track_caller]
fn assert_near(found: Option<f64>, expected: f64) {
    let found = found.expect("it is measured");
    assert!((found / expected - 1.0).abs() < 0.03, "{found}, not {expected}");
}

#[test]
fn pauses_do_not_count_and_concurrency_is_told() {
    for seed in 0..8 {
        let mut sim = Sim::new(seed);
        for second in [0.0, 7.0, 33.0, 95.5] {
            sim.run((second, second + 4.0), 6, 50.0);
        }
        assert_near(sim.megabytes(120.0, Scale::Whole), 300.0);
        assert_near(sim.megabytes(120.0, Scale::Workers(16)), 800.0);
        let rate = sim.series.rate(sim.at(120.0), Scale::Workers(16)).unwrap();
        assert_near(rate.of_worker.map(|rate| rate / MB), 50.0);
        assert_near(Some(rate.concurrency), 6.0);
        assert_near(Some(rate.ratio), 0.5);
        assert!(rate.age > Duration::from_secs(20), "{rate:?}");
    }
}

#[test]
fn a_time_in_which_less_was_asked_for_is_left_out() {
    let mut sim = Sim::new(1);
    sim.run((0.0, 100.0), 1, 50.0);
    sim.run((100.0, 130.0), 8, 50.0);
    assert_near(sim.megabytes(131.0, Scale::Whole), 400.0);
}

#[test]
fn a_slow_operation_counts_for_all_the_time_that_it_takes() {
    let mut sim = Sim::new(1);
    for number in 0..8 {
        let (began, ended) =
            (sim.at(25.0 * f64::from(number)), sim.at(25.0 * f64::from(number + 1)));
        sim.series.begin(began);
        sim.series.end(began, ended, (25_000_000, 25_000_000));
    }
    assert_near(sim.megabytes(200.0, Scale::Whole), 1.0);
}

#[test]
fn what_was_not_measured_or_long_ago_is_none() {
    let mut sim = Sim::new(3);
    assert_eq!(sim.megabytes(0.0, Scale::Whole), None);
    let began = sim.at(1.0);
    for _ in 0..7 {
        sim.series.begin(began);
        sim.series.end(began, sim.at(1.001), (1000, 1000));
    }
    assert_eq!(sim.megabytes(3.0, Scale::Whole), None, "too little");
    sim.run((3.0, 9.0), 2, 50.0);
    assert_near(sim.megabytes(10.0, Scale::Whole), 100.0);
    assert_near(sim.megabytes(300.0, Scale::Whole), 100.0);
    assert_eq!(sim.megabytes(400.0, Scale::Whole), None, "long ago");
}

#[test]
fn buckets_are_bounded() {
    let mut sim = Sim::new(4);
    sim.run((0.0, 1000.0), 1, 5.0);
    assert!(sim.series.buckets.len() <= 31, "{}", sim.series.buckets.len());
    let long_ago = (sim.at(5.0), sim.at(5.0));
    sim.series.ran(long_ago, sim.at(305.0), 1000);
    assert!(sim.series.buckets.len() <= 31, "{}", sim.series.buckets.len());
}

#[test]
fn the_present_load_is_that_of_the_last_ten_seconds() {
    let mut sim = Sim::new(5);
    sim.run((0.0, 25.0), 4, 25.0);
    let present = |at: f64| sim.series.present(sim.at(at)) / MB;
    assert!((present(25.0) - 100.0).abs() < 5.0, "{}", present(25.0));
    assert!((present(30.0) - 50.0).abs() < 5.0, "{}", present(30.0));
    assert!(present(41.0).abs() < 1.0, "{}", present(41.0));
}

#[test]
fn copies_that_are_told_later_count_once_where_they_overlap() {
    let mut sim = Sim::new(6);
    let mut until = sim.start;
    for number in 0..20 {
        let began = f64::from(number) * 0.05;
        // Two at a time, each 100 ms of 10 MB.
        let (began, ended) = (sim.at(1.0 + began), sim.at(1.1 + began));
        let alone = began.max(until);
        sim.series.ran((began, alone), ended, 10_000_000);
        until = ended;
    }
    // The first and the last are alone for half of their time.
    assert_near(sim.megabytes(3.0, Scale::Whole), 200.0 / 1.05);
}

#[test]
fn a_union_counts_every_moment_once_in_whatever_order_it_is_told() {
    for seed in 0..50 {
        let mut sim = Sim::new(seed);
        let (mut union, mut seen, mut sum) = (Union::default(), [false; 200], 0);
        for _ in 0..40 {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a number below 200"
            )]
            let start = (sim.random() * 180.0) as u64;
            let end = start + 1 + seed % 7;
            sum += union.add(Duration::from_secs(start), Duration::from_secs(end)).as_secs();
            (start..end).for_each(|second| seen[usize::try_from(second).unwrap()] = true);
            let moments = seen.iter().filter(|seen| **seen).count();
            assert_eq!(sum, moments as u64, "seed {seed}");
        }
    }
    let mut many = Union::default();
    for second in 0..1000 {
        many.add(Duration::from_secs(2 * second), Duration::from_secs(2 * second + 1));
    }
    assert!(many.stretches.len() <= STRETCHES_MAX);
}

/// MB/s of stages by name.
fn known(rates: &[(Stage, f64)]) -> impl Fn(Stage) -> Option<Known> + use<> {
    let rates = rates.to_vec();
    move |stage| {
        let (_, rate) = rates.iter().find(|(known, _)| *known == stage)?;
        Some(Known { rate: Some(*rate), present: rate / 4.0 })
    }
}

#[test]
fn the_least_of_the_stages_is_the_ceiling() {
    use Stage::*;
    let all = known(&[
        (Origin, 1000.0),
        (NvmeRead, 6000.0),
        (NvmeWrite, 400.0),
        (Decompress, 1200.0),
        (Verify, 9000.0),
        (Handoff, 90_000.0),
        (Dma, 20_000.0),
    ]);
    let ceiling = |path| predict(path, &all, Some(0.5)).ceiling.unwrap();
    assert_eq!(ceiling(Path::Cold), (1000.0, Origin, 750.0));
    assert_eq!(ceiling(Path::Packed), (1200.0, Decompress, 900.0), "the origin is worth 2000");
    assert_eq!(ceiling(Path::Nvme), (6000.0, NvmeRead, 4500.0));
    assert_eq!(ceiling(Path::Warm), (20_000.0, Dma, 15_000.0));
    assert_eq!(ceiling(Path::Fill), (400.0, NvmeWrite, 300.0));
    let less = predict(Path::Packed, &all, Some(0.9)).ceiling.unwrap();
    assert_eq!((less.0.round(), less.1), (1111.0, Origin));
}

#[test]
fn a_prediction_says_what_is_missing() {
    use Stage::*;
    let some = known(&[(Origin, 1000.0)]);
    let cold = predict(Path::Cold, &some, None);
    assert_eq!(cold.ceiling.unwrap().0, 1000.0);
    assert_eq!(cold.stages, [(Origin, Some(1000.0)), (Handoff, None)], "a device is no must");
    let packed = predict(Path::Packed, &some, None);
    assert_eq!(packed.ceiling, None, "no ratio, no decoder");
    assert_eq!(packed.stages, [(Origin, None), (Decompress, None), (Handoff, None)]);
}
