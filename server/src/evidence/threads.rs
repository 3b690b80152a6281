//! Time on and off the CPU of all threads of the daemon, from their `schedstat`.
//!
//! `/proc/self/schedstat` is that of the main thread alone, which in the daemon only waits, so each
//! thread's own file is read. They are kept open; new threads are looked for at intervals. A thread
//! that ends takes its counters with it, so sums are kept here, and only grow. Owns those files.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::files::{KeptFile, Roots, TextBuffer};
use super::host::SchedSample;
use super::text;

/// New threads are looked for this often: the daemon starts its own when it starts.
const RESCAN: Duration = Duration::from_secs(1);

/// Threads that are read; more would cost more than they tell.
const THREADS_MAX: usize = 512;

/// The threads.
#[derive(Debug)]
pub(super) struct Threads {
    folder: PathBuf,
    known: BTreeMap<u32, Thread>,
    scanned: Option<Instant>,
    sum: SchedSample,
}

#[derive(Debug)]
struct Thread {
    file: KeptFile,
    run: Duration,
    wait: Duration,
}

impl Threads {
    pub(super) fn of(roots: &Roots) -> Self {
        let folder = roots.proc.join("self/task");
        Self { folder, known: BTreeMap::new(), scanned: None, sum: SchedSample::default() }
    }

    /// Times since the first call, and before it of the threads that there were; none if no thread
    /// tells.
    pub(super) fn read(&mut self, now: Instant, buffer: &mut TextBuffer) -> Option<SchedSample> {
        if self.scanned.is_none_or(|scanned| now.saturating_duration_since(scanned) >= RESCAN) {
            self.scan();
            self.scanned = Some(now);
        }
        let sum = &mut self.sum;
        self.known.retain(|_, thread| {
            let Some((run, wait)) = thread.file.read(buffer).and_then(text::schedstat) else {
                return false;
            };
            sum.run += run.saturating_sub(thread.run);
            sum.run_queue_wait += wait.saturating_sub(thread.wait);
            (thread.run, thread.wait) = (run, wait);
            true
        });
        sum.threads = self.known.len();
        (!self.known.is_empty()).then_some(*sum)
    }

    fn scan(&mut self) {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return };
        let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        for id in ids {
            if self.known.len() >= THREADS_MAX {
                return;
            }
            self.known.entry(id).or_insert_with(|| Thread {
                file: KeptFile::open(self.folder.join(format!("{id}/schedstat"))),
                run: Duration::ZERO,
                wait: Duration::ZERO,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::proc_tests::{Tree, V2};
    use super::*;

    #[test]
    fn sums_never_shrink_when_threads_come_and_go() {
        let tree = Tree::new(V2);
        std::fs::remove_dir_all(tree.path("proc/self/task")).unwrap();
        tree.write("proc/self/task/10/schedstat", "100 20 1\n");
        tree.write("proc/self/task/11/schedstat", "1000 200 1\n");
        let (mut threads, zero) = (Threads::of(&tree.roots()), Instant::now());
        let buffer = &mut TextBuffer::new();
        let mut read = |after: Duration| {
            let sum = threads.read(zero + after, buffer)?;
            Some((sum.run.as_nanos(), sum.run_queue_wait.as_nanos(), sum.threads))
        };
        assert_eq!(read(Duration::ZERO), Some((1100, 220, 2)));
        tree.write("proc/self/task/10/schedstat", "150 25 2\n");
        // What a thread's file says once it has ended.
        tree.write("proc/self/task/11/schedstat", "");
        tree.write("proc/self/task/12/schedstat", "7 0 1\n");
        assert_eq!(read(RESCAN / 2), Some((1150, 225, 1)), "new ones are looked for later");
        assert_eq!(read(RESCAN), Some((1157, 225, 2)));
    }

    #[test]
    fn without_files_nothing_is_known() {
        let tree = Tree::new(V2);
        std::fs::remove_dir_all(tree.path("proc/self/task")).unwrap();
        assert_eq!(Threads::of(&tree.roots()).read(Instant::now(), &mut TextBuffer::new()), None);
    }
}
