//! How far an origin's clock is from this machine's: learnt from the `Date` of a refusal.
//!
//! Signatures carry a time, and an origin refuses one that is minutes from its own. The distance is
//! taken over once per refusal that it explains, whoever of the callers comes first; every
//! signature after that is made for the origin's time. Timers do not come here: they are all
//! monotonic.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// A distance below this is no reason for a refusal: origins allow five minutes or fifteen.
const FAR: i64 = 4 * 60;
/// A distance that is this close to the one in use is the same.
const SAME: i64 = 60;

/// A source of wall-clock time.
type Wall = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// An origin's clock.
pub(crate) struct OriginClock {
    wall: Wall,
    offset: Mutex<Offset>,
}

/// Seconds that the origin is ahead.
#[derive(Debug, Default)]
struct Offset {
    used: i64,
    seen: Option<i64>,
    generation: u64,
}

impl fmt::Debug for OriginClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OriginClock").field(&*self.lock()).finish()
    }
}

impl Default for OriginClock {
    fn default() -> Self {
        Self::on(Arc::new(wall))
    }
}

impl OriginClock {
    /// One beside a wall clock.
    pub(crate) fn on(wall: Wall) -> Self {
        Self { wall, offset: Mutex::default() }
    }

    /// Takes note of the origin's time.
    pub(crate) fn saw(&self, origin: i64) {
        let seen = origin.saturating_sub(seconds((self.wall)()));
        self.lock().seen = Some(seen);
    }

    /// Takes over the distance that was seen last, if that explains the refusal of a request signed
    /// with this generation of it. Answers whether the next one is signed for another time.
    pub(crate) fn adopt(&self, generation: u64) -> bool {
        let mut offset = self.lock();
        if offset.generation != generation {
            return true;
        }
        let Some(seen) = offset.seen.filter(|seen| (seen - offset.used).abs() >= SAME) else {
            return false;
        };
        offset.used = if seen.abs() >= FAR { seen } else { 0 };
        offset.generation += 1;
        let says = distance(seen);
        tracing::warn!(seconds = seen, "{says}: requests are signed for its time");
        true
    }

    /// Whether the time of requests is far from the origin's.
    pub(crate) fn is_far(&self) -> bool {
        let offset = self.lock();
        offset.seen.is_some_and(|seen| (seen - offset.used).abs() >= FAR)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// The origin's time, where it is not ours.
    pub(crate) fn other_time(&self) -> Option<i64> {
        let used = self.lock().used;
        (used != 0).then(|| seconds((self.wall)()).saturating_add(used))
    }

    /// The distance that was seen last, if it is far.
    pub(crate) fn says(&self) -> Option<String> {
        let seen = self.lock().seen.filter(|seen| seen.abs() >= FAR)?;
        Some(distance(seen))
    }

    fn lock(&self) -> MutexGuard<'_, Offset> {
        self.offset.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn distance(ahead: i64) -> String {
    let word = if ahead < 0 { "behind" } else { "ahead of" };
    format!("the origin's clock is {} s {word} this machine's", ahead.abs())
}

/// The wall clock: for what is signed, and for lives that are given as dates.
#[expect(clippy::disallowed_methods, reason = "signatures carry the time of day")]
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}

/// Whole seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn a_far_clock_is_adopted_once_and_given_up_when_ours_is_set_right() {
        let now = Arc::new(AtomicU64::new(1_000_000));
        let shown = Arc::clone(&now);
        let clock = OriginClock::on(Arc::new(move || {
            SystemTime::UNIX_EPOCH + Duration::from_secs(shown.load(Ordering::Relaxed))
        }));
        assert!(!clock.adopt(0), "nothing was seen");
        clock.saw(1_000_010);
        assert!(!clock.adopt(0) && !clock.is_far(), "ten seconds are no reason");
        // The origin is an hour ahead; of all who were refused, one learns it and none repeats it.
        clock.saw(1_003_600);
        assert!(clock.is_far() && clock.adopt(0) && clock.adopt(0) && !clock.adopt(1));
        assert_eq!((clock.generation(), clock.other_time()), (1, Some(1_003_600)));
        assert_eq!(clock.says().unwrap(), "the origin's clock is 3600 s ahead of this machine's");
        // Our clock is set right: the next refusal undoes the correction.
        now.store(1_003_610, Ordering::Relaxed);
        clock.saw(1_003_610);
        assert!(clock.is_far() && clock.adopt(1));
        assert_eq!((clock.generation(), clock.other_time(), clock.says()), (2, None, None));
        clock.saw(1_000_000);
        assert!(clock.says().unwrap().contains("3610 s behind"));
    }
}
