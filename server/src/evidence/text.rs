//! What the kernel's text files say: pure functions on their contents.
//!
//! Names are looked up and never counted off: columns of `/proc/net/netstat` and lines of
//! `/proc/vmstat` move between kernels. Only files whose ABI is the order of their columns are read
//! by position (`stat` of a block device, of a process, of the machine; `schedstat`). Owns nothing.

use std::time::Duration;

/// Goes over the lines of a file of `name value` lines, as `cpu.stat` and `/proc/vmstat` are.
pub(super) fn each_value<'a>(text: &'a str, mut see: impl FnMut(&'a str, u64)) {
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some((name, value)) = words.next().zip(words.next()) else { continue };
        if let Ok(value) = value.parse() {
            see(name.trim_end_matches(':'), value);
        }
    }
}

/// Goes over the columns of the tables of a file like `/proc/net/netstat`, where a line of names
/// and a line of values begin with the table's name.
pub(super) fn each_column<'a>(text: &'a str, mut see: impl FnMut(&'a str, &'a str, u64)) {
    let mut lines = text.lines();
    let mut head = lines.next();
    while let Some(names) = head {
        head = lines.next();
        let (Some(values), Some((table, names))) = (head, names.split_once(':')) else { continue };
        let Some((_, values)) = values.split_once(':').filter(|(of, _)| *of == table) else {
            continue;
        };
        let columns = names.split_ascii_whitespace().zip(values.split_ascii_whitespace());
        // Some columns are signed; none of ours is.
        for (name, value) in columns {
            if let Ok(value) = value.parse() {
                see(table, name, value);
            }
        }
        head = lines.next();
    }
}

/// How long some and all tasks were held up, of a file of pressure; none for a line that is not
/// there.
pub(super) fn pressure(text: &str) -> (Option<Duration>, Option<Duration>) {
    let total = |kind: &str| {
        let line = text.lines().find(|line| line.split_ascii_whitespace().next() == Some(kind))?;
        let total = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("total="))?;
        Some(Duration::from_micros(total.parse().ok()?))
    };
    (total("some"), total("full"))
}

/// The counters of a block device's `stat`, as far as they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct BlockStat {
    pub(super) reads: u64,
    pub(super) read_sectors: u64,
    pub(super) read_ticks: Duration,
    pub(super) writes: u64,
    pub(super) write_ticks: Duration,
    pub(super) inflight: u64,
    pub(super) busy: Duration,
    pub(super) time_in_queue: Duration,
}

/// Reads a block device's `stat`: 11 columns, 15 with those of discards, 17 with those of flushes.
pub(super) fn block_stat(text: &str) -> Option<BlockStat> {
    let mut columns = [0_u64; 11];
    let mut words = text.split_ascii_whitespace();
    for column in &mut columns {
        *column = words.next()?.parse().ok()?;
    }
    let [reads, _, read_sectors, read_ms, writes, _, _, write_ms, inflight, busy_ms, queue_ms] =
        columns;
    Some(BlockStat {
        reads,
        read_sectors,
        read_ticks: Duration::from_millis(read_ms),
        writes,
        write_ticks: Duration::from_millis(write_ms),
        inflight,
        busy: Duration::from_millis(busy_ms),
        time_in_queue: Duration::from_millis(queue_ms),
    })
}

/// Time on a CPU and time waiting for one, of a `schedstat`.
pub(super) fn schedstat(text: &str) -> Option<(Duration, Duration)> {
    let mut words = text.split_ascii_whitespace().map(str::parse);
    let (run, wait) = (words.next()?.ok()?, words.next()?.ok()?);
    Some((Duration::from_nanos(run), Duration::from_nanos(wait)))
}

/// Ticks that a hypervisor took from all CPUs together, of `/proc/stat`.
pub(super) fn steal_ticks(text: &str) -> Option<u64> {
    let all = text.lines().next()?.strip_prefix("cpu ")?;
    all.split_ascii_whitespace().nth(7)?.parse().ok()
}

/// Major faults of a process, of its `stat`: field 12, where the name in field 2 may hold anything.
pub(super) fn major_faults(text: &str) -> Option<u64> {
    let (_, fields) = text.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(9)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_name_whatever_their_order() {
        let text = "TcpExt: SyncookiesSent TCPOFOQueue TCPTimeouts\nTcpExt: 1 20 3\n\
                    IpExt: InOctets\nIpExt: 9\n";
        let moved = "IpExt: InOctets\nIpExt: 9\n\
                     TcpExt: TCPTimeouts New TCPOFOQueue SyncookiesSent\nTcpExt: 3 -1 20 1\n";
        let pick = |text| {
            let mut found = Vec::new();
            each_column(text, |table, name, value| {
                found.push(format!("{table}.{name}={value}"));
            });
            found.sort();
            found
        };
        let wanted = ["IpExt.InOctets=9", "TcpExt.SyncookiesSent=1", "TcpExt.TCPOFOQueue=20"];
        assert_eq!(pick(text)[..3], wanted);
        assert_eq!(pick(text), pick(moved));
        assert!(pick("TcpExt: A B\nIpExt: 1 2\n").is_empty(), "the values of another table");
        assert!(pick("TcpExt: A B").is_empty() && pick("").is_empty());
    }

    #[test]
    fn values_are_found_by_name() {
        let mut found = Vec::new();
        each_value("nr_periods 5\nodd\nthrottled_time 7\nx y\nrchar: 3\n", |name, value| {
            found.push((name, value));
        });
        assert_eq!(found, [("nr_periods", 5), ("throttled_time", 7), ("rchar", 3)]);
    }

    #[test]
    fn pressure_is_its_totals() {
        let text = "some avg10=75.38 avg60=33.93 avg300=18.49 total=118766598\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=12\n";
        let micros = Duration::from_micros;
        assert_eq!(pressure(text), (Some(micros(118_766_598)), Some(micros(12))));
        // Before Linux 5.13 there is no line for all tasks of the CPU.
        let (some, full) = pressure("some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n");
        assert_eq!((some, full), (Some(micros(1)), None));
        assert_eq!(pressure(""), (None, None));
    }

    #[test]
    fn a_disk_s_counters_are_read_from_short_and_long_lines() {
        let eleven = "   84930     6366  6439002   108245    25732   166132 89222624   312013        3    25872   435948";
        let fifteen = format!("{eleven}    71880       42 36692744    15684");
        let seventeen = format!("{fifteen}      107        4\n");
        let wanted = BlockStat {
            reads: 84930,
            read_sectors: 6_439_002,
            read_ticks: Duration::from_millis(108_245),
            writes: 25732,
            write_ticks: Duration::from_millis(312_013),
            inflight: 3,
            busy: Duration::from_millis(25872),
            time_in_queue: Duration::from_millis(435_948),
        };
        for text in [eleven, &fifteen, &seventeen] {
            assert_eq!(block_stat(text), Some(wanted));
        }
        assert_eq!(block_stat("1 2 3 4"), None, "a partition of Linux 2.6");
        assert_eq!(block_stat(""), None);
    }

    #[test]
    fn times_of_threads_and_faults_of_processes_are_read() {
        let (run, wait) = schedstat("153480 1262785 6\n").unwrap();
        assert_eq!((run.as_nanos(), wait.as_nanos()), (153_480, 1_262_785));
        assert_eq!(schedstat("0"), None);
        let stat = "77 (a ) b) S 1 77 77 0 -1 4194560 100 0 42 0 7 8 0 0 20 0 1 0 5 6 7";
        assert_eq!(major_faults(stat), Some(42));
        assert_eq!(major_faults("77 (a"), None);
        let stat = "cpu  70673 0 23185 45163 1232 0 193 251 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(steal_ticks(stat), Some(251));
        assert_eq!(steal_ticks("cpu0 1 1 1 1 1 1 1 1 1 1\n"), None);
    }
}
