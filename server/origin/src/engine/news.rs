//! What an endpoint decided lately, for the timelines of the loads that it was decided under.
//!
//! A ring with a count of all there ever were: whoever remembers how many he has heard gets the rest.
//! Owned by the endpoint, under its lock.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::endpoint::Endpoint;

/// Decisions that are kept: more than come between two looks.
const KEPT_MAX: usize = 64;

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointEvent {
    /// When.
    pub at: Instant,
    /// About what: `limit` or `breaker`.
    pub name: &'static str,
    /// What, and why.
    pub detail: String,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct News {
    kept: VecDeque<EndpointEvent>,
    count: u64,
}

impl News {
    pub(super) fn tell(&mut self, at: Instant, name: &'static str, detail: String) {
        if self.kept.len() >= KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(EndpointEvent { at, name, detail });
        self.count += 1;
    }

    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Those after the first `heard`, as far as they are kept.
    pub(super) fn since(&self, heard: u64) -> Vec<EndpointEvent> {
        let unheard = usize::try_from(self.count.saturating_sub(heard)).unwrap_or(usize::MAX);
        self.kept.iter().skip(self.kept.len().saturating_sub(unheard)).cloned().collect()
    }
}

impl Endpoint {
    /// How many decisions there were, and those after the first `heard`.
    pub(crate) fn news(&self, heard: u64) -> (u64, Vec<EndpointEvent>) {
        let state = self.lock();
        (state.news.count(), state.news.since(heard))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_hears_each_once_and_the_oldest_are_forgotten() {
        let (mut news, now) = (News::default(), Instant::now());
        assert_eq!((news.count(), news.since(0)), (0, Vec::new()));
        let told = |news: &News, heard| {
            news.since(heard).into_iter().map(|event| event.detail).collect::<Vec<_>>()
        };
        for n in 0..3 {
            news.tell(now, "limit", n.to_string());
        }
        assert_eq!(told(&news, 1), ["1", "2"]);
        assert!(told(&news, 3).is_empty());
        for n in 3..100 {
            news.tell(now, "limit", n.to_string());
        }
        assert_eq!((told(&news, 0).len(), told(&news, 0)[0].as_str()), (KEPT_MAX, "36"));
        assert_eq!(told(&news, 98), ["98", "99"]);
    }
}
