//! The CPU time of a process, as the kernel counts it: user and system, of all its threads, those
//! that have ended included.
//!
//! `/proc/PID/stat` has it in ticks of usually 10 ms, each scaled from what the scheduler measured.
//! The finer `schedstat` knows one thread only.

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
    fn a_process_that_is_gone_is_an_error() {
        cpu_time(std::process::id()).unwrap();
        cpu_time(u32::MAX).unwrap_err();
    }
}
