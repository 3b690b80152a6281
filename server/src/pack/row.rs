//! Work on the frames of an object, several at a time, in a row: each gets its share of memory
//! before it begins, one after the other, and what comes of it comes out in order.
//!
//! So the frame that is next has its share before those behind it. Whoever takes what comes out
//! does the rest of its work within [`Row::meanwhile`]: what is under way holds places in queues
//! and at endpoints, and would keep them for ever if nobody polled it, from that very work too.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;

use super::PackError;
use crate::staging::{Staging, StagingError, StagingShare};

/// See the module's head. Dropping it drops what is under way.
pub(super) struct Row<T, I, M, F: Future> {
    staging: Arc<Staging>,
    at_once: usize,
    items: I,
    make: M,
    /// The item whose turn it is, while it waits for its share.
    waiting: Option<(T, BoxFuture<'static, Result<StagingShare, StagingError>>)>,
    under_way: FuturesOrdered<F>,
    /// What came of items, and was not taken yet.
    done: VecDeque<F::Output>,
}

impl<T, I, M, F, Done> Row<T, I, M, F>
where
    I: Iterator<Item = (T, u64)>,
    M: FnMut(T, StagingShare) -> F,
    F: Future<Output = Result<Done, PackError>>,
{
    /// Work on `items`, each with the bytes of its share, at most so many at a time.
    pub(super) fn new(staging: &Arc<Staging>, at_once: usize, items: I, make: M) -> Self {
        let (staging, under_way) = (Arc::clone(staging), FuturesOrdered::new());
        Self { staging, at_once, items, make, waiting: None, under_way, done: VecDeque::new() }
    }

    /// What comes of the next item; none after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Done>, PackError> {
        loop {
            if let Some(done) = self.done.pop_front() {
                return done.map(Some);
            }
            self.queue_up();
            if self.waiting.is_none() && self.under_way.is_empty() {
                return Ok(None);
            }
            self.advance().await;
        }
    }

    /// Does something else while the row goes on.
    pub(super) async fn meanwhile<Other: Future>(&mut self, other: Other) -> Other::Output {
        let mut other = std::pin::pin!(other);
        loop {
            tokio::select! {
                output = &mut other => return output,
                () = self.advance() => {}
            }
        }
    }

    /// One step; for ever, if there is none to take.
    async fn advance(&mut self) {
        self.queue_up();
        let share = match &mut self.waiting {
            Some((_, share)) => tokio::select! {
                share = share => share,
                Some(done) = self.under_way.next() => return self.done.push_back(done),
            },
            None => match self.under_way.next().await {
                Some(done) => return self.done.push_back(done),
                None => return std::future::pending().await,
            },
        };
        match (self.waiting.take(), share) {
            (Some((item, _)), Ok(share)) => self.under_way.push_back((self.make)(item, share)),
            (_, Ok(_)) => {}
            (_, Err(stopped)) => self.done.push_back(Err(stopped.into())),
        }
    }

    /// Has the next item wait for its share, if there is room for it.
    fn queue_up(&mut self) {
        if self.waiting.is_none()
            && self.under_way.len() + self.done.len() < self.at_once
            && let Some((item, bytes)) = self.items.next()
        {
            let staging = Arc::clone(&self.staging);
            self.waiting = Some((item, Box::pin(async move { staging.share(bytes).await })));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Passes fifty items through a row; the most that were under way at a time.
    async fn pass(budget: u64, at_once: usize) -> u64 {
        let staging = Staging::new(budget << 16);
        let (running, most) = (&Cell::new(0_u64), &Cell::new(0_u64));
        let items = (0..50_u64).map(|n| (n, 1 << 16));
        let mut row = Row::new(&staging, at_once, items, |n, share| async move {
            running.set(running.get() + 1);
            most.set(most.get().max(running.get()));
            let time = std::time::Duration::from_millis((n * 7919) % 13 * 10);
            tokio::time::sleep(time).await;
            running.set(running.get() - 1);
            Ok((n, share))
        });
        let mut seen = Vec::new();
        while let Some((n, _share)) = row.next().await.unwrap() {
            seen.push(n);
        }
        assert_eq!(seen, (0..50).collect::<Vec<_>>());
        assert_eq!(staging.lent_and_budget().0, 0);
        most.get()
    }

    /// However long each takes, and however little memory there is.
    #[tokio::test(start_paused = true)]
    async fn everything_comes_in_order_and_memory_is_bounded() {
        for (budget, at_once) in [(1, 8), (3, 8), (100, 4)] {
            assert_eq!(pass(budget, at_once).await, budget.min(at_once as u64));
        }
    }

    /// Work in the row holds the only place that the taker needs, until it is polled again.
    #[tokio::test(start_paused = true)]
    async fn the_row_goes_on_while_the_taker_works() {
        let staging = Staging::new(1 << 20);
        let place = tokio::sync::Semaphore::new(1);
        let place = &place;
        let hold = async move || {
            let held = place.acquire().await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            drop(held);
        };
        let hold = &hold;
        let items = (0..20_u64).map(|n| (n, 1));
        let mut row = Row::new(&staging, 4, items, |n, share| async move {
            hold().await;
            Ok((n, share))
        });
        let mut seen = 0;
        while let Some((n, _share)) = row.next().await.unwrap() {
            assert_eq!(n, seen);
            seen += 1;
            row.meanwhile(hold()).await;
        }
        assert_eq!(seen, 20);
    }

    #[tokio::test]
    async fn a_failure_ends_it() {
        let staging = Staging::new(1 << 20);
        let items = (0..5_u64).map(|n| (n, 1));
        let work = |n: u64, _| async move {
            match n {
                2 => Err(PackError::Full),
                n => Ok(n),
            }
        };
        let mut row = Row::new(&staging, 2, items, work);
        assert_eq!(row.next().await.unwrap(), Some(0));
        assert_eq!(row.next().await.unwrap(), Some(1));
        row.next().await.unwrap_err();
    }
}
