//! A named thread for work that would block the runtime, fed through a bounded channel.
//!
//! The worker ends when its feed does, by [`Worker::finish`] or by a drop, and is joined either
//! way. Items it was not fed are dropped, so leases in them go back.

use std::thread::{Builder, JoinHandle};

use tokio::sync::{mpsc, oneshot};

use crate::error::CliError;

/// Items in flight to the thread. Each holds a lease: few, so that a small window is not all here.
const FEED_MAX: usize = 4;

/// What the thread takes its items from.
#[derive(Debug)]
pub(crate) struct Feed<T>(mpsc::Receiver<T>);

impl<T> Iterator for Feed<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.blocking_recv()
    }
}

/// A thread that turns items into a result.
#[derive(Debug)]
pub(crate) struct Worker<T, R> {
    feed: Option<mpsc::Sender<T>>,
    result: Option<oneshot::Receiver<R>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static, R: Send + 'static> Worker<T, R> {
    /// Starts the thread.
    pub(crate) fn start(
        name: &str,
        work: impl FnOnce(Feed<T>) -> R + Send + 'static,
    ) -> Result<Self, CliError> {
        let (feed, items) = mpsc::channel(FEED_MAX);
        let (done, result) = oneshot::channel();
        let body = move || {
            // Nobody waits for the result of a command that was interrupted.
            done.send(work(Feed(items))).ok();
        };
        let thread = Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(|error| CliError::local("start a thread", error))?;
        Ok(Self { feed: Some(feed), result: Some(result), thread: Some(thread) })
    }

    /// Hands over an item; false when the thread has ended and its result says why.
    pub(crate) async fn feed(&self, item: T) -> bool {
        match &self.feed {
            Some(feed) => feed.send(item).await.is_ok(),
            None => false,
        }
    }

    /// No more items come.
    pub(crate) fn close(&mut self) {
        self.feed = None;
    }

    /// Waits for the result.
    pub(crate) async fn finish(mut self) -> Result<R, CliError> {
        self.close();
        let result = self.result.take();
        match result {
            Some(result) => {
                result.await.map_err(|_| CliError::internal("a worker thread panicked"))
            }
            None => Err(CliError::internal("a worker was finished twice")),
        }
    }
}

impl<T, R> Drop for Worker<T, R> {
    fn drop(&mut self) {
        self.feed = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been seen as a missing result.
            thread.join().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_sees_every_item_and_its_end() {
        let worker = Worker::start("sum", |feed: Feed<u64>| feed.sum::<u64>()).unwrap();
        for item in 1..=100 {
            assert!(worker.feed(item).await);
        }
        assert_eq!(worker.finish().await.unwrap(), 5050);
    }

    #[tokio::test]
    async fn a_worker_that_ends_early_says_so_and_drops_the_rest() {
        let worker = Worker::start("one", |mut feed: Feed<u64>| feed.next()).unwrap();
        while worker.feed(7).await {}
        assert_eq!(worker.finish().await.unwrap(), Some(7));
    }
}
