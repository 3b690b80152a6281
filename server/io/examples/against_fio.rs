//! How fast both engines read and write beside fio, on one file, in interleaved rounds.
//!
//! `cargo run --release -p forebay-io --example against_fio -- DIRECTORY [MIB] [ROUNDS] [SHAPES]`
//!
//! SHAPES is how many of the depths and block sizes to try.
//!
//! Needs fio. Prints, for each depth and block size, the median GB/s and CPU seconds per GiB over
//! the rounds of fio (io_uring, O_DIRECT; CPU of its process), of both engines reading into slots
//! of registered segments, and their share of the best that fio reached with any of the settings.

#![expect(clippy::print_stdout, reason = "a report")]

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use forebay_io::{
    Create, DataFile, Directory, EngineSettings, FileOffset, IoEngine, OpenHow, Preference,
    Registration, choose,
};
use forebay_shm::{Segment, SegmentId, SegmentSpec, SlotIndex, SlotReader, SlotWriter};
use futures::stream::{FuturesUnordered, StreamExt};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Depths and block sizes, in MiB.
const SHAPES: [(usize, usize); 4] = [(32, 1), (8, 4), (16, 2), (64, 1)];

/// One measured run.
#[derive(Clone, Copy)]
struct Run {
    gigabytes_per_second: f64,
    cpu_seconds_per_gib: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

struct Bench {
    directory: PathBuf,
    bytes: usize,
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("which directory?")?;
    let mib: usize = arguments.next().map_or(Ok(4096), |text| text.parse())?;
    let rounds: usize = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let shapes: usize = arguments.next().map_or(Ok(SHAPES.len()), |text| text.parse())?;
    let bench = Bench { directory: directory.into(), bytes: mib << 20 };
    bench.lay_out()?;
    for direction in [Direction::Read, Direction::Write] {
        bench.compare(direction, rounds, shapes)?;
    }
    std::fs::remove_file(bench.path())?;
    Ok(())
}

impl Bench {
    fn path(&self) -> PathBuf {
        self.directory.join("against-fio")
    }

    fn file(&self) -> Result<Arc<DataFile>> {
        let how = OpenHow { write: true, create: Create::IfMissing, direct: true };
        let directory = Directory::open(&self.directory)?;
        Ok(Arc::new(directory.file("against-fio", how)?))
    }

    /// Makes the file, with bytes in all of it: unwritten extents would be read from nowhere.
    fn lay_out(&self) -> Result<()> {
        let file = self.file()?;
        println!("{} of {} bytes: {:?}", self.path().display(), self.bytes, file.mode());
        file.allocate(u64::try_from(self.bytes)?)?;
        drop(file);
        self.fio(Direction::Write, (32, 1))?;
        Ok(())
    }

    fn compare(&self, direction: Direction, rounds: usize, shapes: usize) -> Result<()> {
        let name = if direction == Direction::Read { "read" } else { "overwrite + fdatasync" };
        println!("\n{name}, medians of {rounds}: GB/s (CPU s per GiB)");
        let mut best = 0.0_f64;
        let mut rows = Vec::new();
        for shape in SHAPES.into_iter().take(shapes) {
            let mut runs: [Vec<Run>; 3] = Default::default();
            // Whoever goes first finds another disk than whoever goes last: they take turns.
            let turns = (0..rounds).flat_map(|round| (round..round + 3).map(|turn| turn % 3));
            for who in turns {
                runs[who].push(self.turn(who, direction, shape)?);
            }
            let medians = runs.map(|runs| median(&runs));
            best = best.max(medians[0].gigabytes_per_second);
            rows.push((shape, medians));
        }
        for ((depth, mib), medians) in rows {
            print!("  {depth:>2} x {mib} MiB");
            for (name, run) in ["fio", "io_uring", "threads"].into_iter().zip(medians) {
                let (rate, cpu) = (run.gigabytes_per_second, run.cpu_seconds_per_gib);
                print!("   {name} {rate:.2} ({cpu:.3}) {:>3.0} %", rate / best * 100.0);
            }
            println!();
        }
        Ok(())
    }

    /// A run of fio, of io_uring or of threads.
    fn turn(&self, who: usize, direction: Direction, shape: (usize, usize)) -> Result<Run> {
        match who {
            0 => self.fio(direction, shape),
            1 => self.ours(direction, shape, Preference::Auto),
            _ => self.ours(direction, shape, Preference::Threads),
        }
    }

    fn fio(&self, direction: Direction, (depth, mib): (usize, usize)) -> Result<Run> {
        let rw = if direction == Direction::Read { "read" } else { "write" };
        let mut command = Command::new("fio");
        command.args(["--name=x", "--ioengine=io_uring", "--direct=1", "--output-format=json"]);
        command.args(["--overwrite=1", "--fixedbufs=1", "--registerfiles=1", "--invalidate=1"]);
        if direction == Direction::Write {
            command.arg("--end_fsync=1");
        }
        command.arg(format!("--filename={}", self.path().display()));
        command.args([format!("--rw={rw}"), format!("--iodepth={depth}")]);
        command.args([format!("--bs={mib}m"), format!("--size={}", self.bytes)]);
        let output = command.output()?;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let job = &report["jobs"][0];
        let number = |value: &serde_json::Value| value.as_f64().ok_or("fio reports otherwise");
        let seconds = number(&job["job_runtime"])? / 1000.0;
        let cpu = (number(&job["usr_cpu"])? + number(&job["sys_cpu"])?) / 100.0 * seconds;
        Ok(self.run(seconds, cpu))
    }

    fn run(&self, seconds: f64, cpu_seconds: f64) -> Run {
        let bytes = f64::from(u32::try_from(self.bytes >> 20).unwrap_or(u32::MAX)) * 1_048_576.0;
        Run {
            gigabytes_per_second: bytes / seconds / 1e9,
            cpu_seconds_per_gib: cpu_seconds / (bytes / 1_073_741_824.0),
        }
    }

    fn ours(
        &self,
        direction: Direction,
        (depth, mib): (usize, usize),
        preference: Preference,
    ) -> Result<Run> {
        // Writes alone get three quarters of the depth.
        let depth_asked = if direction == Direction::Write { depth.div_ceil(3) * 4 } else { depth };
        let settings = EngineSettings { depth: depth_asked, ..EngineSettings::default() };
        let choice = choose(&settings, preference)?;
        let (file, block) = (self.file()?, mib << 20);
        // Twice as many as the device gets: the engine refills it without waiting for the caller.
        let ahead = depth * 2;
        let (segment, _registration) = slots(&*choice.engine, ahead, block)?;
        let writers = (0..segment.slots()).map(|slot| segment.writer(SlotIndex(slot)));
        let writers = writers.collect::<std::result::Result<Vec<_>, _>>()?;
        let (begun, cpu) = (now(), cpu_seconds());
        let Self { bytes, .. } = *self;
        match direction {
            Direction::Read => {
                futures::executor::block_on(read_all(&choice.engine, &file, writers, bytes))?;
            }
            Direction::Write => {
                let readers = writers.into_iter().map(SlotWriter::publish).collect();
                futures::executor::block_on(write_all(&choice.engine, &file, readers, bytes))?;
            }
        }
        let (seconds, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        choice.engine.close(Duration::from_secs(5));
        Ok(self.run(seconds, cpu))
    }
}

fn slots(
    engine: &dyn IoEngine,
    slots: usize,
    slot_bytes: usize,
) -> Result<(Arc<Segment>, Option<Registration>)> {
    let slots = u32::try_from(slots)?;
    let spec = SegmentSpec { id: SegmentId(0), domain: 0, slot_bytes, slots, lock: false };
    let segment = Segment::create(&spec)?;
    let registration = engine.register(&segment).ok();
    Ok((segment, registration))
}

/// Reads the file from its beginning into slots, as many at a time as there are.
async fn read_all(
    engine: &Arc<dyn IoEngine>,
    file: &Arc<DataFile>,
    writers: Vec<SlotWriter>,
    bytes: usize,
) -> Result<()> {
    let block = writers.first().map_or(1, |writer| writer.as_slice().len());
    let mut offsets = (0..u64::try_from(bytes)?).step_by(block).map(FileOffset);
    let mut reads = FuturesUnordered::new();
    for (writer, offset) in writers.into_iter().zip(offsets.by_ref()) {
        reads.push(engine.read(file, offset, writer, 0..block));
    }
    while let Some(done) = reads.next().await {
        let done = done.map_err(|failed| failed.error)?;
        if done.bytes != block {
            return Err("a short read".into());
        }
        if let Some(offset) = offsets.next() {
            reads.push(engine.read(file, offset, done.target, 0..block));
        }
    }
    Ok(())
}

/// Writes the file anew from slots, and makes that survive a crash.
async fn write_all(
    engine: &Arc<dyn IoEngine>,
    file: &Arc<DataFile>,
    readers: Vec<SlotReader>,
    bytes: usize,
) -> Result<()> {
    let block = readers.first().map_or(1, |reader| reader.bytes().len());
    let mut offsets = (0..u64::try_from(bytes)?).step_by(block).map(FileOffset);
    let mut writes = FuturesUnordered::new();
    for (reader, offset) in readers.into_iter().zip(offsets.by_ref()) {
        writes.push(engine.write(file, offset, reader, 0..block));
    }
    while let Some(done) = writes.next().await {
        let reader = done.map_err(|failed| failed.error)?.target;
        if let Some(offset) = offsets.next() {
            writes.push(engine.write(file, offset, reader, 0..block));
        }
    }
    engine.sync(file).await?;
    Ok(())
}

fn median(runs: &[Run]) -> Run {
    let middle = |key: fn(&Run) -> f64| {
        let mut values: Vec<_> = runs.iter().map(key).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Run {
        gigabytes_per_second: middle(|run| run.gigabytes_per_second),
        cpu_seconds_per_gib: middle(|run| run.cpu_seconds_per_gib),
    }
}

#[expect(clippy::disallowed_methods, reason = "this program measures")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// What this process, with all its threads, has used.
fn cpu_seconds() -> f64 {
    let clock = rustix::time::ClockId::ProcessCPUTime;
    let used = rustix::time::clock_gettime(clock);
    Duration::try_from(used).unwrap_or_default().as_secs_f64()
}
