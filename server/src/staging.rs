//! Memory for bytes that are not served as they are: compressed parts, until they are decoded.
//!
//! A budget bounds what all loads together hold. Whoever fetches such parts takes its share of the
//! budget before it claims a slot and before it asks the origin. So the order is staging, slot,
//! connection, and whoever holds a share waits for no one who waits for one. Buffers are used
//! again: fresh pages cost as much as a copy.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use forebay_proto::{Failure, Reason};

use crate::cpu::Stopped;

/// The budget's unit.
const UNIT_BYTES: u64 = 64 << 10;

/// What one share may have although the budget is smaller: the largest chunk, a frame of that size
/// at each of its ends, and as much again.
const SHARE_BYTES_MAX: u64 = 96 << 20;

/// Why there is no memory for what is to be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StagingError {
    /// More than there is for one chunk, or than was asked for.
    #[error("{bytes} bytes to decode from are more than the {most} that there are for one chunk")]
    TooLarge {
        /// As much as is wanted.
        bytes: u64,
        /// As much as there is.
        most: u64,
    },
    /// The daemon is going away.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl From<StagingError> for Failure {
    fn from(error: StagingError) -> Self {
        match error {
            StagingError::TooLarge { .. } => {
                let message = error.to_string();
                Self::new(Reason::LimitExceeded, &message).with_quota(message)
            }
            StagingError::Stopped(stopped) => stopped.into(),
        }
    }
}

/// The budget, and buffers that wait to be used again.
#[derive(Debug)]
pub(crate) struct Staging {
    units: Arc<Semaphore>,
    units_max: u32,
    idle: Mutex<Vec<Vec<u8>>>,
}

/// A share of the budget, for the buffers of one chunk. Dropping it gives it back, when its buffers
/// are gone too.
#[derive(Debug, Clone)]
pub(crate) struct StagingShare {
    staging: Arc<Staging>,
    bytes: u64,
    _units: Arc<OwnedSemaphorePermit>,
}

/// A buffer.
#[derive(Debug)]
pub(crate) struct Staged {
    bytes: Vec<u8>,
    used: usize,
    share: StagingShare,
}

impl Staging {
    /// A budget of so many bytes.
    pub(crate) fn new(budget_bytes: u64) -> Arc<Self> {
        let units_max = u32::try_from((budget_bytes / UNIT_BYTES).max(1)).unwrap_or(u32::MAX);
        let units = Arc::new(Semaphore::new(units_max as usize));
        Arc::new(Self { units, units_max, idle: Mutex::default() })
    }

    /// A share for so many bytes, when its turn has come. What is more than the whole budget takes
    /// the whole budget, so there is one such share at a time; above [`SHARE_BYTES_MAX`] it is
    /// refused.
    pub(crate) async fn share(self: &Arc<Self>, bytes: u64) -> Result<StagingShare, StagingError> {
        let most = SHARE_BYTES_MAX.max(u64::from(self.units_max) * UNIT_BYTES);
        if bytes > most {
            return Err(StagingError::TooLarge { bytes, most });
        }
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        let units = Arc::clone(&self.units).acquire_many_owned(units.min(self.units_max));
        // The semaphore lives as long as the daemon and is never closed.
        let units = Arc::new(units.await.map_err(|_closed| Stopped)?);
        Ok(StagingShare { staging: Arc::clone(self), bytes, _units: units })
    }

    /// Bytes of the budget that are lent, and all of them.
    pub(crate) fn lent_and_budget(&self) -> (u64, u64) {
        let lent = self.units_max as usize - self.units.available_permits();
        (lent as u64 * UNIT_BYTES, u64::from(self.units_max) * UNIT_BYTES)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StagingShare {
    /// A buffer of so many bytes, at most those of the share; what is in it is undefined.
    pub(crate) fn buffer(&self, bytes: usize) -> Result<Staged, StagingError> {
        if bytes as u64 > self.bytes {
            return Err(StagingError::TooLarge { bytes: bytes as u64, most: self.bytes });
        }
        let mut buffer = self.staging.idle().pop().unwrap_or_default();
        if buffer.len() < bytes {
            buffer.resize(bytes, 0);
        }
        Ok(Staged { bytes: buffer, used: bytes, share: self.clone() })
    }
}

impl Staged {
    /// All of it.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.used).unwrap_or_default()
    }

    /// All of it, to look at.
    pub(crate) fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut idle = self.share.staging.idle();
        // What lies idle is bounded by the budget too.
        let held: usize = idle.iter().map(Vec::len).sum();
        let budget = u64::from(self.share.staging.units_max) * UNIT_BYTES;
        if (held + bytes.len()) as u64 <= budget {
            idle.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn shares_are_bounded_and_come_back_with_their_last_buffer() {
        let staging = Staging::new(4 * UNIT_BYTES);
        let share = staging.share(3 * UNIT_BYTES).await.unwrap();
        let buffer = share.buffer(100).unwrap();
        drop(share);
        assert_eq!(staging.lent_and_budget(), (3 * UNIT_BYTES, 4 * UNIT_BYTES));
        let second = staging.share(2 * UNIT_BYTES);
        tokio::pin!(second);
        let waited = tokio::time::timeout(Duration::from_secs(1), &mut second).await;
        assert!(waited.is_err(), "a buffer keeps its share");
        drop(buffer);
        second.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_too_large_takes_everything_and_buffers_are_used_again() {
        let staging = Staging::new(4 * UNIT_BYTES);
        let share = staging.share(100 * UNIT_BYTES).await.unwrap();
        assert_eq!(staging.lent_and_budget().0, 4 * UNIT_BYTES);
        let mut buffer = share.buffer(1000).unwrap();
        let at = buffer.as_mut_slice().as_ptr();
        drop(buffer);
        let buffer = share.buffer(10).unwrap();
        assert_eq!((buffer.as_slice().as_ptr(), buffer.as_slice().len()), (at, 10));
    }

    #[tokio::test]
    async fn more_than_a_chunk_can_need_is_refused_and_not_allocated() {
        let staging = Staging::new(4 * UNIT_BYTES);
        let refused = staging.share(4 << 30).await.unwrap_err();
        assert_eq!(refused, StagingError::TooLarge { bytes: 4 << 30, most: SHARE_BYTES_MAX });
        let share = staging.share(1000).await.unwrap();
        let refused = share.buffer(4 << 30).unwrap_err();
        assert_eq!(refused, StagingError::TooLarge { bytes: 4 << 30, most: 1000 });
        assert!(staging.idle().is_empty());
    }

    #[tokio::test]
    async fn what_lies_idle_is_bounded() {
        let staging = Staging::new(UNIT_BYTES);
        let share = staging.share(40 << 10).await.unwrap();
        let (one, two) = (share.buffer(40 << 10).unwrap(), share.buffer(40 << 10).unwrap());
        drop((one, two));
        assert_eq!(staging.idle().len(), 1);
    }
}
