//! What was decided about the tier lately, for the timelines of the loads that run meanwhile.
//!
//! Owns the last [`NEWS_MAX`] decisions and their number. A load remembers how many there were when
//! it looked, and gets those that came since.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::timeline::Event;

/// News that are kept: more than come between two looks.
const NEWS_MAX: usize = 64;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct News {
    kept: VecDeque<Event>,
    count: u64,
}

impl News {
    /// Something was decided now.
    pub(super) fn tell(&mut self, name: &'static str, detail: String) {
        if self.kept.len() >= NEWS_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(Event { at: Instant::now(), name, detail });
        self.count += 1;
    }

    /// What came since there were so many, which are counted on.
    pub(super) fn since(&self, heard: &mut u64) -> Vec<Event> {
        let unheard = self.count.saturating_sub(std::mem::replace(heard, self.count));
        let unheard = usize::try_from(unheard).unwrap_or(usize::MAX);
        self.kept.iter().skip(self.kept.len().saturating_sub(unheard)).cloned().collect()
    }

    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_heard_once_and_old_ones_go() {
        let mut news = News::default();
        news.tell("evict", "before".to_owned());
        let mut heard = news.count();
        news.tell("evict", "one".to_owned());
        news.tell("breaker", "two".to_owned());
        let told = |news: &News, heard: &mut u64| -> Vec<_> {
            news.since(heard).into_iter().map(|event| (event.name, event.detail)).collect()
        };
        let expected = [("evict", "one".to_owned()), ("breaker", "two".to_owned())];
        assert_eq!(told(&news, &mut heard), expected);
        assert!(told(&news, &mut heard).is_empty());
        (0..NEWS_MAX + 9).for_each(|n| news.tell("evict", n.to_string()));
        assert_eq!(told(&news, &mut heard).len(), NEWS_MAX);
    }
}
