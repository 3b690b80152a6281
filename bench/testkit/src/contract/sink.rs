//! What every [`OriginSink`] must do.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use forebay_origin::{ObjectKey, OriginError, OriginSink, Origins, Pin};
use futures::future::{join_all, poll_immediate};

use super::origin::ODD_KEYS;
use crate::content::Content;

/// An upload of more bytes has several parts.
const PART_BYTES: u64 = 8 << 20;

/// A sink under test, and the ways to look behind it.
pub struct SinkSubject<'a> {
    /// The sink.
    pub sink: Arc<dyn OriginSink>,
    /// What opened it.
    pub origins: &'a Origins,
    /// What is stored under a key.
    pub stored: &'a (dyn Fn(&str) -> Option<Content> + Sync),
    /// How much there is that belongs to no object.
    pub garbage: &'a (dyn Fn() -> usize + Sync),
    /// Keys get this prefix, which ends in a slash.
    pub prefix: String,
}

impl fmt::Debug for SinkSubject<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = formatter.debug_struct("SinkSubject");
        debug.field("sink", &self.sink).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl SinkSubject<'_> {
    fn key(&self, key: &str) -> ObjectKey {
        ObjectKey::parse(&format!("{}{key}", self.prefix)).expect("the suite's keys are valid")
    }

    fn stored(&self, key: &str) -> Option<Content> {
        (self.stored)(&format!("{}{key}", self.prefix))
    }

    /// Whether a key holds exactly this.
    fn holds(&self, key: &str, content: &Content) -> bool {
        let stored = self.stored(key).map(|stored| stored.to_bytes());
        stored.is_some_and(|stored| {
            content.len() == stored.len() as u64 && content.matches(0, &stored)
        })
    }

    async fn put(&self, key: &str, content: &Content) -> Result<Pin, OriginError> {
        self.sink.put(&self.key(key), content.to_bytes()).await
    }

    /// Uploads a content in pieces of an odd size.
    async fn upload(&self, key: &str, content: &Content) -> Result<Pin, OriginError> {
        let mut upload = self.sink.upload(&self.key(key), content.len()).await?;
        for piece in pieces(content) {
            upload.write(piece).await?;
            assert!(!self.holds(key, content), "{key} is not there before it is finished");
        }
        upload.finish().await
    }
}

fn pieces(content: &Content) -> impl Iterator<Item = Bytes> {
    const PIECE: u64 = (3 << 20) + 7;
    let starts = (0..content.len().div_ceil(PIECE)).map(|piece| piece * PIECE);
    starts.map(|start| content.slice(start..start + PIECE))
}

/// Runs the suite. The sink is empty under the prefix, and nobody else uses it.
///
/// # Panics
/// At the first rule that is broken.
pub async fn origin_sink(subject: SinkSubject<'_>) {
    objects_are_written_whole(&subject).await;
    uploads_are_there_when_they_are_finished(&subject).await;
    what_was_there_stays_until_then(&subject).await;
    what_is_given_up_leaves_nothing(&subject).await;
    what_is_dropped_leaves_nothing(&subject).await;
    odd_keys_are_plain_keys(&subject).await;
    uploads_run_side_by_side(&subject).await;
    deletes_are_done_once_and_for_all(&subject).await;
    let root = subject.sink.put(&ObjectKey::root(), Bytes::new()).await;
    assert!(root.is_err(), "a whole store is no object");
    assert_eq!((subject.garbage)(), 0, "nothing is left that belongs to no object");
}

async fn objects_are_written_whole(subject: &SinkSubject<'_>) {
    for content in [
        Content::synthetic(1, 3_000_001),
        Content::bytes(""),
        Content::bytes("x"),
        Content::synthetic(2, PART_BYTES + 1),
    ] {
        subject.put("put/a", &content).await.expect("an object is written");
        assert!(subject.holds("put/a", &content), "{} bytes are there", content.len());
    }
}

async fn uploads_are_there_when_they_are_finished(subject: &SinkSubject<'_>) {
    let sizes =
        [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES, 5 * PART_BYTES + 1];
    for (seed, bytes) in (10..).zip(sizes) {
        let (key, content) = (format!("upload/{bytes}"), Content::synthetic(seed, bytes));
        subject.upload(&key, &content).await.expect("an upload is finished");
        assert!(subject.holds(&key, &content), "{bytes} bytes are there");
    }
    assert_eq!((subject.garbage)(), 0, "a finished upload leaves nothing beside its object");
}

async fn what_was_there_stays_until_then(subject: &SinkSubject<'_>) {
    let (before, after) = (Content::bytes("before"), Content::synthetic(20, 2 * PART_BYTES + 9));
    subject.put("replaced/a", &before).await.expect("an object is written");
    let upload = subject.sink.upload(&subject.key("replaced/a"), after.len()).await;
    let mut upload = upload.expect("an upload begins");
    for piece in pieces(&after) {
        upload.write(piece).await.expect("a piece is taken");
        assert!(subject.holds("replaced/a", &before), "the old object is there meanwhile");
    }
    upload.finish().await.expect("an upload is finished");
    assert!(subject.holds("replaced/a", &after), "the new object is there afterwards");
}

async fn what_is_given_up_leaves_nothing(subject: &SinkSubject<'_>) {
    for bytes in [0, 1, PART_BYTES + 1, 3 * PART_BYTES] {
        let (key, content) = (format!("aborted/{bytes}"), Content::synthetic(30, bytes));
        let upload = subject.sink.upload(&subject.key(&key), bytes).await;
        let mut upload = upload.expect("an upload begins");
        for piece in pieces(&content) {
            upload.write(piece).await.expect("a piece is taken");
        }
        upload.abort().await;
        assert!(subject.stored(&key).is_none(), "an upload that is given up makes no object");
        assert_eq!((subject.garbage)(), 0, "nothing is left of {bytes} bytes");
    }
}

async fn what_is_dropped_leaves_nothing(subject: &SinkSubject<'_>) {
    let content = Content::synthetic(40, 4 * PART_BYTES);
    for polls in 1..12 {
        let key = format!("dropped/a{polls}");
        let mut work = Box::pin(subject.upload(&key, &content));
        for _ in 0..polls {
            if poll_immediate(&mut work).await.is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(work);
        subject.origins.cleared().await;
        // One that was dropped while it was being finished may be there by now.
        let is_there = subject.stored(&key).is_some();
        assert!(!is_there || subject.holds(&key, &content), "what is there is whole");
    }
    for written in 1..=4 {
        let upload = subject.sink.upload(&subject.key("dropped/b"), content.len()).await;
        let mut upload = upload.expect("an upload begins");
        for piece in pieces(&content).take(written * 3) {
            upload.write(piece).await.expect("a piece is taken");
        }
        drop(upload);
        subject.origins.cleared().await;
        assert!(subject.stored("dropped/b").is_none(), "a dropped upload makes no object");
    }
}

async fn odd_keys_are_plain_keys(subject: &SinkSubject<'_>) {
    for (seed, name) in (50..).zip(ODD_KEYS) {
        let (key, content) = (format!("odd/{name}"), Content::synthetic(seed, 1000));
        subject.put(&key, &content).await.expect("an object is written");
        assert!(subject.holds(&key, &content), "{key} is written under its own name");
        subject.upload(&key, &Content::bytes("again")).await.expect("an upload is finished");
        assert!(subject.holds(&key, &Content::bytes("again")), "{key} is uploaded so as well");
        subject.sink.delete(&subject.key(&key)).await.expect("an object is removed");
        assert!(subject.stored(&key).is_none(), "{key} is removed under its own name");
    }
}

async fn uploads_run_side_by_side(subject: &SinkSubject<'_>) {
    let made =
        |at: u64| (format!("parallel/{at}"), Content::synthetic(60 + at, 2 * PART_BYTES + at));
    let made: Vec<_> = (0..4).map(made).collect();
    let uploads = join_all(made.iter().map(|(key, content)| subject.upload(key, content))).await;
    for ((key, content), uploaded) in made.iter().zip(uploads) {
        uploaded.expect("every upload is finished");
        assert!(subject.holds(key, content), "{key} has its own bytes");
    }
}

async fn deletes_are_done_once_and_for_all(subject: &SinkSubject<'_>) {
    subject.put("deleted/a", &Content::bytes("x")).await.expect("an object is written");
    for _ in 0..2 {
        let deleted = subject.sink.delete(&subject.key("deleted/a")).await;
        deleted.expect("an object that is not there is removed already");
        assert!(subject.stored("deleted/a").is_none(), "a removed object is gone");
    }
    let never = subject.sink.delete(&subject.key("deleted/never/there")).await;
    never.expect("so is one that never was");
}
