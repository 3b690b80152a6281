//! Places for connections, by who connects: nobody takes the descriptors of all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections of one uid, and of all who come over TCP.
const MEMBER_MAX: usize = 1024;

/// Connections of a uid that is in no domain: enough to be told so.
const STRANGER_MAX: usize = 8;

/// Connections by the uid of their peers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places(Arc<Mutex<HashMap<u32, usize>>>);

/// One connection's place; dropped, it is free.
#[derive(Debug)]
pub(crate) struct Place {
    places: Places,
    uid: u32,
}

impl Places {
    /// A place for one more of a uid; none if it has its part.
    pub(crate) fn take(&self, uid: u32, is_member: bool) -> Option<Place> {
        let most = if is_member { MEMBER_MAX } else { STRANGER_MAX };
        let mut counts = self.lock();
        let count = counts.entry(uid).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place { places: self.clone(), uid })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.places.lock();
        if let Some(count) = counts.get_mut(&self.uid) {
            *count -= 1;
        }
        counts.retain(|_, count| *count > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_uid_has_places_of_its_own() {
        let places = Places::default();
        let strangers: Vec<_> = std::iter::from_fn(|| places.take(7, false)).collect();
        assert_eq!(strangers.len(), STRANGER_MAX);
        let members: Vec<_> = std::iter::from_fn(|| places.take(8, true)).collect();
        assert_eq!(members.len(), MEMBER_MAX);
        assert!(places.take(7, false).is_none() && places.take(9, true).is_some());
        drop((strangers, members));
        assert!(places.lock().is_empty());
    }
}
