//! What every [`OriginStore`] must do.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use forebay_origin::{
    Checksums, ObjectKey, ObjectMeta, OriginErrorKind, OriginStore, ReadRecord, ReadRequest,
};
use futures::future::join_all;

use crate::checkpoint::{CheckpointSpec, checkpoint};
use crate::claims::checksums;
use crate::content::{Content, as_usize};

/// Keys that URLs, XML and file systems each have their own ideas of.
pub(super) const ODD_KEYS: [&str; 8] = [
    "with space/and+plus",
    "percent%41%2f%",
    "query?like=1&x#y",
    "ünï/çødé/日本",
    "dots..and.tilde~",
    "quotes'(and)[brackets]{too}",
    "semi;colon,comma=equals@at$",
    "deep/er/and/deep/er/still/x",
];

/// A store under test, and the way to put objects into it.
pub struct OriginSubject<'a> {
    store: Arc<dyn OriginStore>,
    seed: &'a (dyn Fn(&str, Option<Content>) + Sync),
    prefix: String,
    lists: bool,
    claims: Option<Claims<'a>>,
}

/// The way to have checksums told of an object, and which of them the store knows.
type Claims<'a> = (&'a (dyn Fn(&str, Checksums) + Sync), fn(Checksums) -> Checksums);

impl fmt::Debug for OriginSubject<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = formatter.debug_struct("OriginSubject");
        debug.field("store", &self.store).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl<'a> OriginSubject<'a> {
    /// `seed` stores content under a key, or with None takes the object away.
    pub fn new(
        store: Arc<dyn OriginStore>,
        seed: &'a (dyn Fn(&str, Option<Content>) + Sync),
    ) -> Self {
        Self { store, seed, prefix: String::new(), lists: true, claims: None }
    }

    /// Keys get this prefix, which ends in a slash, before the store or `seed` sees them.
    #[must_use]
    pub fn under(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The store lists nothing but checkpoints, which it finds by their index.
    #[must_use]
    pub fn without_listing(mut self) -> Self {
        self.lists = false;
        self
    }

    /// The store tells checksums: `claim` has some told of an object, `known` leaves those of them
    /// that such a store knows.
    #[must_use]
    pub fn claiming(
        mut self,
        claim: &'a (dyn Fn(&str, Checksums) + Sync),
        known: fn(Checksums) -> Checksums,
    ) -> Self {
        self.claims = Some((claim, known));
        self
    }

    fn key(&self, key: &str) -> ObjectKey {
        ObjectKey::parse(&format!("{}{key}", self.prefix)).expect("the suite's keys are valid")
    }

    fn put(&self, key: &str, content: &Content) {
        (self.seed)(&format!("{}{key}", self.prefix), Some(content.clone()));
    }

    fn remove(&self, key: &str) {
        (self.seed)(&format!("{}{key}", self.prefix), None);
    }

    async fn head(&self, key: &str) -> ObjectMeta {
        self.store.head(&self.key(key)).await.expect("the object is there")
    }

    async fn read(
        &self,
        meta: &ObjectMeta,
        range: Range<u64>,
    ) -> Result<(Vec<u8>, ReadRecord), OriginErrorKind> {
        let mut into = vec![0xee; as_usize(range.end - range.start)];
        let request = ReadRequest {
            key: meta.key.clone(),
            pin: meta.pin.clone(),
            object_bytes: meta.bytes,
            range,
        };
        match self.store.read(&request, &mut into).await {
            Ok(record) => Ok((into, record)),
            Err(error) => Err(error.kind),
        }
    }
}

/// Runs every case of the contract, under a prefix of the store that nothing else uses.
///
/// # Panics
/// If a rule is broken.
pub async fn origin_store(subject: OriginSubject<'_>) {
    heads_tell_size_and_version(&subject).await;
    checksums_are_those_of_the_store(&subject).await;
    ranges_come_exactly(&subject).await;
    an_empty_object_is_an_object(&subject).await;
    what_is_missing_is_not_found(&subject).await;
    another_version_is_a_change(&subject).await;
    odd_keys_are_plain_keys(&subject).await;
    reads_run_side_by_side(&subject).await;
    a_dropped_read_leaves_the_store_well(&subject).await;
    if subject.lists {
        listings_are_whole_sorted_and_bounded(&subject).await;
        a_prefix_ends_at_a_slash(&subject).await;
    } else {
        checkpoints_are_found_by_their_index(&subject).await;
    }
}

async fn heads_tell_size_and_version(subject: &OriginSubject<'_>) {
    let content = Content::synthetic(1, 70_001);
    subject.put("head/a", &content);
    let meta = subject.head("head/a").await;
    assert_eq!(meta.key, subject.key("head/a"), "a head names its object");
    assert_eq!(meta.bytes, content.len(), "a head tells the size");
    let pinned = meta.pin.etag.is_some() || meta.pin.last_modified.is_some();
    assert!(pinned, "a head gives something to pin the version by");
    assert_eq!(subject.head("head/a").await, meta, "an object that does not change looks the same");
}

async fn checksums_are_those_of_the_store(subject: &OriginSubject<'_>) {
    let Some((claim, known)) = subject.claims else { return };
    let content = Content::synthetic(7, 100_000);
    let right = checksums(&content);
    let wrong = Checksums {
        crc64_nvme: right.crc64_nvme.map(|crc| crc ^ 1),
        crc32c: right.crc32c.map(|crc| crc ^ 1),
        sha256: Some([7; 32]),
        md5: Some([7; 16]),
    };
    subject.put("checksums/a", &content);
    assert!(subject.head("checksums/a").await.checksums.is_empty(), "nothing is made up");
    for told in [right, wrong] {
        claim(&format!("{}checksums/a", subject.prefix), told);
        let meta = subject.head("checksums/a").await;
        assert_eq!(meta.checksums, known(told), "what the store tells is handed on as it is");
        let (bytes, _) = subject.read(&meta, 0..9).await.expect("it is not for the store to judge");
        assert!(content.matches(0, &bytes), "the bytes are the object's");
    }
    if subject.lists {
        let listing = subject.store.list(&subject.key("checksums"), 9).await;
        let listing = listing.expect("the prefix is listed");
        assert!(listing.iter().all(|meta| meta.checksums.is_empty()), "a listing has none");
    }
}

async fn ranges_come_exactly(subject: &OriginSubject<'_>) {
    let content = Content::synthetic(2, (3 << 20) + 17);
    let end = content.len();
    subject.put("ranges/a", &content);
    let meta = subject.head("ranges/a").await;
    let crossing = (1 << 20) - 1..(2 << 20) + 1;
    for range in [0..1, 1..2, end - 1..end, crossing, 0..end, 5..5, end..end] {
        let read = subject.read(&meta, range.clone()).await;
        let (bytes, record) = read.expect("a range within the object is read");
        let wrong = content.first_difference(range.start, &bytes);
        assert_eq!(wrong, None, "the first wrong byte of {range:?}");
        let received = record.bytes_received;
        assert_eq!(received, range.end - range.start, "no byte of {range:?} comes twice");
    }
    for range in [0..end + 1, end..end + 1] {
        let read = subject.read(&meta, range.clone()).await;
        assert!(read.is_err(), "{range:?} of {end} bytes is refused");
    }
}

async fn an_empty_object_is_an_object(subject: &OriginSubject<'_>) {
    subject.put("empty/a", &Content::bytes(""));
    let meta = subject.head("empty/a").await;
    assert_eq!(meta.bytes, 0, "an empty object has no bytes");
    let read = subject.read(&meta, 0..0).await;
    assert!(read.is_ok_and(|(bytes, _)| bytes.is_empty()), "an empty object can be read");
}

async fn what_is_missing_is_not_found(subject: &OriginSubject<'_>) {
    let head = subject.store.head(&subject.key("missing/a")).await;
    let kind = head.map_err(|error| error.kind).err();
    assert_eq!(kind, Some(OriginErrorKind::NotFound), "head of a missing object");
    subject.put("missing/b", &Content::bytes("soon gone"));
    let meta = subject.head("missing/b").await;
    subject.remove("missing/b");
    let kind = subject.read(&meta, 0..4).await.err();
    assert_eq!(kind, Some(OriginErrorKind::NotFound), "read of an object that was taken away");
}

async fn another_version_is_a_change(subject: &OriginSubject<'_>) {
    for (key, before, after) in [
        ("changed/same-size", Content::synthetic(3, 9000), Content::synthetic(4, 9000)),
        ("changed/shorter", Content::synthetic(3, 9000), Content::synthetic(3, 8000)),
        ("changed/longer", Content::synthetic(3, 9000), Content::synthetic(3, 9001)),
    ] {
        subject.put(key, &before);
        let meta = subject.head(key).await;
        subject.put(key, &after);
        let kind = subject.read(&meta, 0..8000).await.err();
        assert_eq!(kind, Some(OriginErrorKind::Changed), "read of {key} after a change");
        let fresh = subject.head(key).await;
        assert_ne!(fresh.pin, meta.pin, "another version of {key} has another pin");
        let (bytes, _) = subject.read(&fresh, 0..8000).await.expect("the new version is read");
        assert!(after.matches(0, &bytes), "the new version of {key} has its bytes");
    }
}

async fn odd_keys_are_plain_keys(subject: &OriginSubject<'_>) {
    for (seed, name) in (10..).zip(ODD_KEYS) {
        let key = format!("odd/{name}");
        let content = Content::synthetic(seed, 1000);
        subject.put(&key, &content);
        let meta = subject.head(&key).await;
        let read = subject.read(&meta, 0..1000).await;
        let right = read.is_ok_and(|(bytes, _)| content.matches(0, &bytes));
        assert!(right, "{key} is read under its own name");
    }
    if !subject.lists {
        return;
    }
    let mut expected: Vec<_> = ODD_KEYS.map(|name| subject.key(&format!("odd/{name}"))).to_vec();
    expected.sort();
    assert_eq!(listed(subject, "odd").await, expected, "odd keys are listed as they are");
}

async fn reads_run_side_by_side(subject: &OriginSubject<'_>) {
    let content = Content::synthetic(5, 4 << 20);
    subject.put("parallel/a", &content);
    let meta = subject.head("parallel/a").await;
    let ranges = (0..16u64).map(|part| part * (256 << 10)..(part + 1) * (256 << 10));
    let reads = ranges.clone().map(|range| subject.read(&meta, range));
    for (range, read) in ranges.clone().zip(join_all(reads).await) {
        let (bytes, _) = read.expect("every range is read");
        assert!(content.matches(range.start, &bytes), "{range:?} has its own bytes");
    }
}

async fn a_dropped_read_leaves_the_store_well(subject: &OriginSubject<'_>) {
    let content = Content::synthetic(6, 8 << 20);
    subject.put("dropped/a", &content);
    let meta = subject.head("dropped/a").await;
    for polls in 1..20 {
        let mut read = Box::pin(subject.read(&meta, 0..content.len()));
        for _ in 0..polls {
            let done = futures::future::poll_immediate(&mut read).await.is_some();
            if done {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let (bytes, _) = subject.read(&meta, 0..content.len()).await.expect("the store still reads");
    assert!(content.matches(0, &bytes), "and what it reads is right");
}

async fn listed(subject: &OriginSubject<'_>, prefix: &str) -> Vec<ObjectKey> {
    let listing = subject.store.list(&subject.key(prefix), 1000).await;
    let listing = listing.expect("the prefix is listed");
    listing.into_iter().map(|meta| meta.key).collect()
}

async fn listings_are_whole_sorted_and_bounded(subject: &OriginSubject<'_>) {
    let names = ["list/a", "list/b/1", "list/b/2/x", "list/b0", "list/c", "list/d/e/f/g", "list/z"];
    for (bytes, name) in [1, 2, 3, 4, 5, 6, 7].into_iter().zip(names).rev() {
        subject.put(name, &Content::synthetic(bytes, bytes));
    }
    let listing = subject.store.list(&subject.key("list"), names.len()).await;
    let listing = listing.expect("as many objects as the limit are listed");
    let keys: Vec<_> = listing.iter().map(|meta| meta.key.clone()).collect();
    assert_eq!(keys, names.map(|name| subject.key(name)), "every depth, by key");
    for (bytes, meta) in (1..).zip(&listing) {
        assert_eq!(meta.bytes, bytes, "a listing tells the size of {}", meta.key);
        let read = subject.read(meta, 0..bytes).await;
        assert!(read.is_ok(), "the pin of a listing is good for a read of {}", meta.key);
    }
    let over = subject.store.list(&subject.key("list"), names.len() - 1).await;
    let kind = over.map_err(|error| error.kind).err();
    assert_eq!(kind, Some(OriginErrorKind::LimitExceeded), "one object over the limit");
    assert!(listed(subject, "list/nothing").await.is_empty(), "an empty prefix is an empty list");
}

async fn a_prefix_ends_at_a_slash(subject: &OriginSubject<'_>) {
    for name in ["model/a", "model-2/a", "model.bin"] {
        subject.put(name, &Content::bytes("x"));
    }
    let keys = listed(subject, "model").await;
    assert_eq!(keys, [subject.key("model/a")], "siblings with the same beginning are not under it");
}

async fn checkpoints_are_found_by_their_index(subject: &OriginSubject<'_>) {
    let made = checkpoint(CheckpointSpec::new(9, 1 << 20).shards(3));
    for (name, content) in made.files() {
        subject.put(&format!("model/{name}"), content);
    }
    let mut expected: Vec<_> =
        made.files().iter().map(|(name, _)| subject.key(&format!("model/{name}"))).collect();
    expected.sort();
    assert_eq!(listed(subject, "model").await, expected, "the index names every shard");
    let none = subject.store.list(&subject.key("nothing"), 10).await;
    let kind = none.map_err(|error| error.kind).err();
    assert_eq!(kind, Some(OriginErrorKind::NotFound), "without an index there is no listing");
}
