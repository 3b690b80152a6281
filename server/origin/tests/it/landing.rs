//! Who looks at the bytes as they land sees what is there at the end, whatever happened on the way.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use forebay_origin::{
    Destination, Landing, ObjectMeta, OriginStore, ReadTerms, SocketEvidence, TcpSnapshot,
};
use forebay_testkit::{Content, Fault, FaultRule, HttpOptions, HttpOrigin, LinkOptions};

use crate::{origins, quick, request, uri};

const BYTES: u64 = 700_000;

/// Keeps everything it is shown.
#[derive(Default)]
struct Seen(Vec<u8>);

impl Landing for Seen {
    fn landed(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn restart(&mut self) {
        self.0.clear();
    }
}

async fn read(store: &dyn OriginStore, meta: &ObjectMeta, content: &Content) -> (u32, u32) {
    let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
    let mut seen = Seen::default();
    let to = Destination { into: &mut bytes, landing: Some(&mut seen) };
    let wanted = request(meta, 0..meta.bytes);
    let record = store.read_on(&wanted, ReadTerms::default(), to).await.unwrap();
    assert!(content.matches(0, &bytes), "wrong bytes");
    assert!(seen.0 == bytes, "{} bytes were shown of {BYTES}", seen.0.len());
    (record.attempts, record.hedge_wins)
}

#[tokio::test]
async fn bytes_are_shown_in_order_and_once() {
    let origin = HttpOrigin::start(HttpOptions::default()).await;
    let content = Content::synthetic(5, BYTES);
    origin.put("o", content.clone());
    let uri = uri(&origin.url("o"));
    let store = origins(quick()).open(&uri).unwrap();
    let meta = store.head(uri.key()).await.unwrap();
    assert_eq!(read(&*store, &meta, &content).await, (1, 0));
    for fault in [
        Fault::ResetAfter(BYTES / 2),
        Fault::TruncateTo(1),
        Fault::ShortBody(1234),
        Fault::ChunkedTo(BYTES - 1),
        Fault::CloseDelimitedTo(100_000),
        Fault::Overlong(1),
        Fault::WrongRange(1),
    ] {
        let rule = origin.fault(FaultRule::new("o", fault.clone()).nth(1));
        assert_eq!(read(&*store, &meta, &content).await, (2, 0), "{fault:?}");
        rule.remove();
    }
}

#[tokio::test]
async fn a_tail_that_another_copy_brought_is_shown_too() {
    let link = LinkOptions { bytes_per_second: Some(60 * BYTES), ..LinkOptions::default() };
    let origin = HttpOrigin::start(HttpOptions { link, ..HttpOptions::default() }).await;
    let content = Content::synthetic(6, BYTES);
    origin.put("o", content.clone());
    let mut settings = quick();
    settings.engine.hedge_after_min = Duration::from_millis(100);
    let uri = uri(&origin.url("o"));
    let store = origins(settings).open(&uri).unwrap();
    let meta = store.head(uri.key()).await.unwrap();
    for _ in 0..110 {
        assert_eq!(read(&*store, &meta, &content).await.0, 1);
    }
    origin.fault(FaultRule::new("o", Fault::StallAfter(BYTES / 3)).nth(1));
    assert_eq!(read(&*store, &meta, &content).await, (1, 1));
}

/// A kernel that has received ten bytes more at each look.
#[derive(Debug, Default)]
struct Kernel(AtomicU64);

impl SocketEvidence for Kernel {
    fn tcp(&self, _socket: BorrowedFd<'_>) -> Option<TcpSnapshot> {
        let looks = self.0.fetch_add(1, Ordering::Relaxed);
        Some(TcpSnapshot { bytes_received: looks * 10, out_of_order: 7, ..TcpSnapshot::default() })
    }
}

#[tokio::test]
async fn an_attempt_tells_what_happened_on_its_connection() {
    let origin = HttpOrigin::start(HttpOptions::default()).await;
    origin.put("o", Content::synthetic(7, BYTES));
    let uri = uri(&origin.url("o"));
    let store = origins(quick()).with_evidence(Arc::<Kernel>::default()).open(&uri).unwrap();
    let meta = store.head(uri.key()).await.unwrap();
    origin.fault(FaultRule::new("o", Fault::ResetAfter(1000)).nth(1));
    let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
    let record = store.read(&request(&meta, 0..BYTES), &mut bytes).await.unwrap();
    for attempt in &record.attempt_log {
        let (head, whole) = (attempt.head_tcp.unwrap(), attempt.tcp.unwrap());
        assert_eq!((head.bytes_received, head.out_of_order), (10, 0), "only what is new");
        assert!(whole.bytes_received > head.bytes_received, "of a failed one too: {whole:?}");
        assert_eq!(whole.out_of_order, 0);
    }
    assert_eq!(record.attempt_log.len(), 2);
}

/// A kernel on which segments were lost a while ago, and nothing came since.
#[derive(Debug, Default)]
struct Lossy(AtomicU64);

impl SocketEvidence for Lossy {
    fn tcp(&self, _socket: BorrowedFd<'_>) -> Option<TcpSnapshot> {
        let out_of_order = self.0.fetch_add(1, Ordering::Relaxed);
        let silent = Duration::from_millis(70);
        Some(TcpSnapshot { out_of_order, silent, ..TcpSnapshot::default() })
    }
}

#[tokio::test]
async fn an_attempt_that_a_copy_overtook_tells_what_it_waited_for() {
    let link = LinkOptions { bytes_per_second: Some(60 * BYTES), ..LinkOptions::default() };
    let origin = HttpOrigin::start(HttpOptions { link, ..HttpOptions::default() }).await;
    let content = Content::synthetic(8, BYTES);
    origin.put("o", content.clone());
    let mut settings = quick();
    settings.engine.hedge_after_min = Duration::from_millis(100);
    let uri = uri(&origin.url("o"));
    let store = origins(settings).with_evidence(Arc::<Lossy>::default()).open(&uri).unwrap();
    let meta = store.head(uri.key()).await.unwrap();
    for _ in 0..110 {
        assert_eq!(read(&*store, &meta, &content).await.0, 1);
    }
    origin.fault(FaultRule::new("o", Fault::StallAfter(BYTES / 3)).nth(1));
    let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
    let record = store.read(&request(&meta, 0..BYTES), &mut bytes).await.unwrap();
    assert_eq!((record.attempts, record.hedge_wins), (1, 1));
    let last = record.attempt_log[0].silences.last().unwrap();
    assert_eq!(last.length, Duration::from_millis(70), "as the kernel says");
    assert!(last.out_of_order > 0, "{last:?}");
}

#[tokio::test]
async fn an_attempt_tells_when_nothing_came() {
    const IDLE: Duration = Duration::from_millis(500);
    let origin = HttpOrigin::start(HttpOptions::default()).await;
    origin.put("o", Content::synthetic(7, BYTES));
    let uri = uri(&origin.url("o"));
    let mut settings = quick();
    settings.timeouts.body_idle = IDLE;
    let store = origins(settings).with_evidence(Arc::<Lossy>::default()).open(&uri).unwrap();
    let meta = store.head(uri.key()).await.unwrap();
    origin.fault(FaultRule::new("o", Fault::StallAfter(BYTES / 2)).nth(1));
    let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
    let record = store.read(&request(&meta, 0..BYTES), &mut bytes).await.unwrap();
    let stalled = &record.attempt_log[0];
    let longest = stalled.silences.iter().max_by_key(|silence| silence.length).unwrap();
    assert!(longest.length >= IDLE, "{longest:?}");
    assert_eq!(longest.late, Duration::ZERO, "nothing ended it that could have lain there");
    assert!(stalled.waited >= longest.length && stalled.waited <= stalled.body, "{stalled:?}");
    assert!(stalled.silences.is_sorted_by_key(|silence| silence.start));
}
