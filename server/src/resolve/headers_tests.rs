//! What is kept of objects made sense, and what makes none is read anew.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use forebay_codec::safetensors::HeaderError;
use forebay_origin::{Lane, OriginSettings, Origins, ReadTerms, SystemResolver};
use forebay_testkit::{Fault, FaultRule, HttpOptions, HttpOrigin};
use futures::FutureExt;

use super::super::{KnownDigests, ResolveError, Resolver};
use super::*;
use crate::admission::Admission;
use crate::admission::queue::Limits;
use crate::proof::ObjectDigest;

/// A cache in memory, which writes at once or, if it hangs, never.
#[derive(Debug, Default)]
struct Memory {
    kept: Mutex<BTreeMap<[u8; 32], Vec<u8>>>,
    read: Mutex<u64>,
    hangs: bool,
    waiting: Mutex<Vec<OwnedSemaphorePermit>>,
}

impl Memory {
    fn kept(&self) -> MutexGuard<'_, BTreeMap<[u8; 32], Vec<u8>>> {
        self.kept.lock().unwrap()
    }
}

impl HeaderCache for Memory {
    fn bytes_of(&self, name: [u8; 32]) -> BoxFuture<'_, Option<u64>> {
        std::future::ready(self.kept().get(&name).map(|bytes| bytes.len() as u64)).boxed()
    }

    fn get(&self, name: [u8; 32], bytes: u64) -> BoxFuture<'_, Option<Vec<u8>>> {
        let kept = self.kept().get(&name).filter(|kept| kept.len() as u64 <= bytes).cloned();
        *self.read.lock().unwrap() += kept.as_ref().map_or(0, |kept| kept.len() as u64);
        std::future::ready(kept).boxed()
    }

    fn put(&self, name: [u8; 32], bytes: Vec<u8>, room: OwnedSemaphorePermit) {
        // Nothing is replaced: what is to go must be forgotten.
        self.kept().entry(name).or_insert(bytes);
        if self.hangs {
            self.waiting.lock().unwrap().push(room);
        }
    }

    fn forget(&self, name: [u8; 32]) -> BoxFuture<'_, ()> {
        self.kept().remove(&name);
        std::future::ready(()).boxed()
    }
}

fn cpu() -> Arc<Workers> {
    Arc::new(Workers::start("test", 1).unwrap())
}

/// Resolves as a daemon that has just started: nothing is known but what was kept.
async fn tensors(uri: &str, cache: &Arc<Memory>) -> Result<usize, ResolveError> {
    let origins = Origins::new(OriginSettings::default(), Arc::new(SystemResolver)).unwrap();
    let kept = Some(Arc::clone(cache) as _);
    let resolver = Resolver::new(Arc::new(origins), cpu(), kept, Arc::new(NothingKnown));
    let limits = Limits { queued_max: 1, active_max: 1 };
    let permit = Admission::new(limits, Duration::from_secs(60)).look_up().unwrap();
    let terms = ReadTerms::new(Lane::Interactive, None);
    Ok(resolver.resolve(&permit, uri, &terms).await?.tensors().len())
}

#[tokio::test]
async fn one_bit_on_the_way_is_not_kept_and_what_was_kept_wrong_is_read_anew() {
    let origin = HttpOrigin::start(HttpOptions::default()).await;
    let spec = forebay_testkit::CheckpointSpec::new(1, 100 << 10).shards(2);
    origin.put_checkpoint("", &forebay_testkit::checkpoint(spec));
    let uri = origin.url("model.safetensors.index.json");
    let cache = Arc::new(Memory::default());
    for (keys, at) in [("*.index.json", 0), ("*.safetensors", 8)] {
        origin.fault(FaultRule::new(keys, Fault::FlipBit(at)));
        let error = tensors(&uri, &cache).await.unwrap_err();
        assert!(matches!(error, ResolveError::Header { .. }), "{error}");
        origin.clear_faults();
    }
    let expected = tensors(&uri, &cache).await.unwrap();
    let right = cache.kept().clone();
    assert_eq!((right.len(), expected > 0), (3, true));
    let gets = origin.total().gets;
    assert_eq!(tensors(&uri, &cache).await.unwrap(), expected);
    assert_eq!(origin.total().gets, gets, "nothing is asked for again");
    // Sealed under a valid digest as they may be, each of them is read anew, once.
    let spoils: [fn(&mut Vec<u8>); 5] = [
        |bytes| bytes.clear(),
        |bytes| bytes.truncate(bytes.len() - 1),
        |bytes| bytes.push(b' '),
        |bytes| bytes[0] ^= 1,
        |bytes| bytes[8] ^= 0x80,
    ];
    for (round, spoil) in spoils.into_iter().enumerate() {
        cache.kept().values_mut().for_each(spoil);
        assert_eq!(tensors(&uri, &cache).await.unwrap(), expected, "spoilt as of {round}");
        assert_eq!(*cache.kept(), right, "spoilt as of {round}");
        let gets = origin.total().gets;
        assert_eq!(tensors(&uri, &cache).await.unwrap(), expected);
        assert_eq!(origin.total().gets, gets);
    }
}

#[derive(Debug)]
struct NothingKnown;

impl KnownDigests for NothingKnown {
    fn known(&self, _: &[u8; 32]) -> Option<Option<ObjectDigest>> {
        None
    }

    fn remember(&self, _: &[u8; 32], _: Option<ObjectDigest>) {}
}

fn object() -> Object {
    let manifest = super::super::manifest_for_tests(&[("m", 1000)], &[]);
    manifest.objects()[0].clone()
}

#[tokio::test]
async fn what_was_kept_takes_its_room_before_it_is_read() {
    let cache = Arc::new(Memory::default());
    let headers = Headers::new(cpu(), Some(Arc::clone(&cache) as _));
    headers.keep(&object(), vec![7; 1000]);
    let room = headers.room(u64::MAX).await.unwrap();
    let object = object();
    let kept = headers.kept(&object, |bytes| Ok::<_, HeaderError>(bytes.len()));
    tokio::pin!(kept);
    assert!(kept.as_mut().now_or_never().is_none());
    assert_eq!(*cache.read.lock().unwrap(), 0);
    drop(room);
    assert_eq!(kept.await.unwrap(), Some(1000));
}

#[test]
fn a_disk_that_hangs_holds_a_bounded_number_of_bytes() {
    let cache = Arc::new(Memory { hangs: true, ..Memory::default() });
    let headers = Headers::new(cpu(), Some(Arc::clone(&cache) as _));
    let keep = || headers.keep(&object(), vec![0; 30 << 20]);
    let waiting = || cache.waiting.lock().unwrap().len();
    (0..5).for_each(|_| keep());
    assert_eq!(waiting(), KEEP_MIB_AT_ONCE / 31);
    cache.waiting.lock().unwrap().clear();
    keep();
    assert_eq!(waiting(), 1);
}
