//! The CPU time of a process, as the kernel counts it: user and system, of all its threads, those
//! that have ended included.
//!
//! `/proc/PID/stat` has it in ticks of usually 10 ms, each scaled from what the scheduler measured.
//! The finer `schedstat` knows one thread only, which is what [`thread_times`] is made of.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use rustix::param::clock_ticks_per_second;

/// Fields between the process's name and its user time.
const FIELDS_BEFORE_USER: usize = 11;

/// What a process has used so far.
///
/// # Errors
/// If it is gone.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = ticks(&stat).ok_or_else(|| io::Error::other(format!("odd: {stat}")))?;
    let nanos = u128::from(ticks) * 1_000_000_000 / u128::from(clock_ticks_per_second().max(1));
    Ok(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
}

/// What the calling thread has used so far.
#[must_use]
pub fn own_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanos)
}

/// What the threads of a process have used so far, by name. Threads whose names differ in a number
/// at the end count as one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ThreadTimes(BTreeMap<String, Duration>);

impl ThreadTimes {
    /// What was used since `earlier`, by threads that have not ended.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let spent = |(name, time): (&String, &Duration)| {
            (name.clone(), time.saturating_sub(earlier.of(name)))
        };
        Self(self.0.iter().map(spent).collect())
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Of the threads of that name.
    #[must_use]
    pub fn of(&self, name: &str) -> Duration {
        self.0.get(name).copied().unwrap_or_default()
    }
}

/// What the threads of a process have used so far.
///
/// # Errors
/// If it is gone.
pub fn thread_times(pid: u32) -> io::Result<ThreadTimes> {
    let mut times = ThreadTimes::default();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = task?.path();
        let name = std::fs::read_to_string(path.join("comm"));
        let spent = std::fs::read_to_string(path.join("schedstat"));
        // One that ended meanwhile.
        let (Ok(name), Ok(spent)) = (name, spent) else { continue };
        let nanos = spent.split_ascii_whitespace().next().and_then(|nanos| nanos.parse().ok());
        let name = name.trim().trim_end_matches(|c: char| c.is_ascii_digit() || c == '-');
        *times.0.entry(name.to_owned()).or_default() += Duration::from_nanos(nanos.unwrap_or(0));
    }
    Ok(times)
}

/// User and system ticks of a line of `/proc/PID/stat`. The name, in brackets, may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_ascii_whitespace().skip(FIELDS_BEFORE_USER);
    let user: u64 = times.next()?.parse().ok()?;
    let system: u64 = times.next()?.parse().ok()?;
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel_is_read_whatever_the_name() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 1200 34 0 0 20 0 5 0 99";
        assert_eq!(ticks(&format!("17 (forebayd) {fields}")), Some(1234));
        assert_eq!(ticks(&format!("17 (a) b (c) d) {fields}")), Some(1234));
        assert_eq!(ticks("17 (forebayd) S 1 2"), None);
        assert_eq!(ticks(""), None);
    }

    #[test]
    fn threads_are_told_apart_by_their_names() {
        let own = std::process::id();
        let before = thread_times(own).unwrap();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (end, is_end) = std::sync::mpsc::channel::<()>();
        let busy = std::thread::Builder::new().name("busy-17".into());
        let busy = busy.spawn(move || {
            while thread_times(own).unwrap().of("busy").is_zero() {
                std::hint::spin_loop();
            }
            ready.send(()).unwrap();
            is_end.recv().unwrap_err();
        });
        is_ready.recv().unwrap();
        let spent = thread_times(own).unwrap().since(&before);
        drop(end);
        busy.unwrap().join().unwrap();
        assert!(spent.of("busy") > Duration::ZERO && spent.names().any(|name| name == "busy"));
        assert_eq!(spent.of("nobody"), Duration::ZERO);
        thread_times(u32::MAX).unwrap_err();
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        cpu_time(std::process::id()).unwrap();
        cpu_time(u32::MAX).unwrap_err();
    }
}
