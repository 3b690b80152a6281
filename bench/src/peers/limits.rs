//! How fast memory is: what nothing that copies can be faster than.

use crate::Outcome;
use crate::measure::Spread;

/// Each thread copies so many bytes, beyond every cache.
const BYTES: usize = 256 << 20;
const THREADS: usize = 2;

/// 10^9 bytes copied per second by two threads, after everything was touched.
pub(super) fn memcpy(runs: usize) -> Outcome<Spread> {
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> =
        (0..THREADS).map(|_| (vec![1; BYTES], vec![2; BYTES])).collect();
    let mut copy = || {
        let begun = tokio::time::Instant::now();
        std::thread::scope(|scope| {
            for (from, to) in &mut pairs {
                scope.spawn(|| to.copy_from_slice(std::hint::black_box(from)));
            }
        });
        begun.elapsed().as_secs_f64()
    };
    let bytes = f64::from(u32::try_from(BYTES * THREADS)?);
    Ok((0..runs).map(|_| bytes / 1e9 / copy()).collect())
}
