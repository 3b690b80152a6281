//! Bodies that go wrong late: at their very end, or while a second copy of them is under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forebay_origin::{ObjectMeta, OriginStore};
use tokio::sync::Notify;

use crate::server::{Act, Asked, Server, Thing, response};
use crate::{origins, pattern, quick, request, uri};

const BYTES: usize = 100_000;
const HALF: usize = BYTES / 2;

async fn open(server: &Server) -> (Arc<dyn OriginStore>, ObjectMeta) {
    let mut settings = quick();
    settings.engine.hedge_after_min = Duration::from_millis(500);
    let uri = uri(&server.url("o"));
    let store = origins(settings).open(&uri).unwrap();
    let meta = store.head(uri.key()).await.unwrap();
    (store, meta)
}

/// Reads all of it; the attempts that took.
async fn read(store: &dyn OriginStore, meta: &ObjectMeta) -> u32 {
    let mut bytes = vec![0; BYTES];
    let record = store.read(&request(meta, 0..meta.bytes), &mut bytes).await.unwrap();
    assert!(bytes == pattern(BYTES), "wrong bytes");
    record.attempts
}

/// A head of a part whose body has no length, and a chunk.
fn chunked(first: usize, chunk: &[u8]) -> Vec<u8> {
    let range = format!("bytes {first}-{}/{BYTES}", BYTES - 1);
    let headers = [("etag", "\"v1\""), ("content-range", &range), ("transfer-encoding", "chunked")];
    let mut body = format!("{:x}\r\n", chunk.len()).into_bytes();
    body.extend_from_slice(chunk);
    body.extend_from_slice(b"\r\n");
    response(206, &headers, &body)
}

/// The first half of a body came, the rest was asked for again, and then what had come turned out
/// to be no answer at all: the copy has only the other half.
#[tokio::test]
async fn a_copy_does_not_complete_bytes_that_were_taken_back() {
    // So many reads before a copy of one is made at all.
    const WARM: usize = 130;
    let armed = Arc::new(AtomicBool::new(false));
    let (is_armed, is_spoiled) = (Arc::clone(&armed), AtomicBool::new(false));
    let (copy_came, first_gone) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let thing = Thing::new(pattern(BYTES));
    let script = move |asked: &Asked| {
        if asked.method != "GET" || !is_armed.load(Ordering::Relaxed) {
            return thing.serve(asked);
        }
        let is_first = !is_spoiled.swap(true, Ordering::Relaxed);
        let wrong: Vec<u8> = thing.bytes[..HALF].iter().map(|byte| !byte).collect();
        let (came, gone) = (Arc::clone(&copy_came), Arc::clone(&first_gone));
        match asked.range() {
            _ if is_first => vec![
                Act::Send(chunked(0, &wrong)),
                Act::Await(came),
                Act::Send(b"no size\r\n".to_vec()),
                Act::Gone(gone),
            ],
            Some((HALF, _)) => {
                came.notify_one();
                vec![Act::Await(gone), Act::Send(thing.answer(asked))]
            }
            _ => thing.serve(asked),
        }
    };
    let server = Server::start(script).await;
    let (store, meta) = open(&server).await;
    for _ in 0..WARM {
        read(&*store, &meta).await;
    }
    let before = server.asked().len();
    armed.store(true, Ordering::Relaxed);
    assert_eq!(read(&*store, &meta).await, 2, "everything is asked for once more");
    let ranges: Vec<_> = server.asked()[before..].iter().map(|asked| asked.range()).collect();
    assert_eq!(ranges[0], Some((0, BYTES - 1)));
    assert_eq!(ranges[1], Some((HALF, BYTES - 1)), "the copy");
    assert_eq!(ranges[2], Some((0, BYTES - 1)), "{ranges:?}");
}

/// A body that is whole is whole, however its connection ends.
#[tokio::test]
async fn what_breaks_behind_the_last_byte_costs_nothing() {
    type Spoil = fn(&Thing, &Asked) -> Vec<Act>;
    let spoils: [Spoil; 4] = [
        |thing, _| vec![Act::Send(chunked(0, &thing.bytes)), Act::Reset],
        |thing, _| vec![Act::Send(chunked(0, &thing.bytes)), Act::Close],
        |thing, _| vec![Act::Send(chunked(0, &thing.bytes)), Act::Stall],
        |thing, asked| {
            let answer = String::from_utf8_lossy(&thing.answer(asked)).into_owned();
            let (head, _) = answer.split_once("\r\n\r\n").unwrap();
            let length = format!("content-length: {BYTES}\r\n");
            let mut bytes = format!("{head}\r\n\r\n").replace(&length, "").into_bytes();
            bytes.extend_from_slice(&thing.bytes);
            vec![Act::Send(bytes), Act::Stall]
        },
    ];
    for (number, spoil) in spoils.into_iter().enumerate() {
        let thing = Thing::new(pattern(BYTES));
        let script = move |asked: &Asked| match asked.method.as_str() {
            "GET" => spoil(&thing, asked),
            _ => thing.serve(asked),
        };
        let server = Server::start(script).await;
        let mut settings = quick();
        settings.timeouts.body_idle = Duration::from_secs(2);
        let uri = uri(&server.url("o"));
        let store = origins(settings).open(&uri).unwrap();
        let meta = store.head(uri.key()).await.unwrap();
        assert_eq!(read(&*store, &meta).await, 1, "case {number}");
    }
}
