//! Time and single flight of the keyring, on a paused clock, with a source that a test plays.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::join_all;
use tokio::time::{advance, sleep, timeout};

use super::*;

/// A source that takes a while and gives what it is told.
#[derive(Debug)]
struct Played {
    takes: Duration,
    gives: Mutex<VecDeque<Gives>>,
    place: Place,
    changed: AtomicBool,
}

/// A key and the seconds it lives, or an error; the last one is given for ever.
type Gives = Result<(&'static str, Option<u64>), &'static str>;

fn played(place: Place, gives: &[Gives]) -> (Arc<Played>, Arc<Keyring>) {
    let gives = Mutex::new(gives.iter().copied().collect());
    let takes = Duration::from_millis(100);
    let source = Arc::new(Played { takes, gives, place, changed: AtomicBool::new(false) });
    (Arc::clone(&source), Keyring::new(source))
}

impl Source for Played {
    fn find(self: Arc<Self>) -> BoxFuture<'static, Result<Found, CredentialError>> {
        async move {
            sleep(self.takes).await;
            let mut gives = self.gives.lock().unwrap();
            let next = if gives.len() > 1 { gives.pop_front() } else { gives.front().copied() };
            let (key, life) = next.unwrap().map_err(|what| CredentialError::Malformed {
                service: "the source".to_owned(),
                what,
            })?;
            let credential = AwsCredential {
                key_id: key.to_owned(),
                secret_key: "canary".to_owned(),
                token: None,
            };
            let life = life.map(Duration::from_secs);
            Ok(Found { credential, place: self.place.clone(), life })
        }
        .boxed()
    }

    fn changed(&self, _: &Place) -> bool {
        self.changed.load(Ordering::Relaxed)
    }
}

async fn key(keyring: &Arc<Keyring>) -> Result<String, String> {
    let got = keyring.get().await;
    got.map(|credential| credential.key_id.clone()).map_err(|error| error.to_string())
}

fn files() -> Place {
    Place::Files([None, None])
}

#[tokio::test(start_paused = true)]
async fn a_thousand_callers_make_one_fetch() {
    let (_, keyring) = played(Place::Service, &[Ok(("a", Some(3600)))]);
    let all = join_all((0..1000).map(|_| key(&keyring))).await;
    assert!(all.iter().all(|got| got.as_deref() == Ok("a")));
    assert_eq!((keyring.fetches(), keyring.generation()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_to_all_who_waited_and_briefly_after() {
    let (_, keyring) = played(Place::Service, &[Err("luck"), Ok(("a", None))]);
    let all = join_all((0..1000).map(|_| key(&keyring))).await;
    assert!(all.iter().all(|got| got.as_ref().is_err_and(|text| text.contains("luck"))));
    key(&keyring).await.unwrap_err();
    assert_eq!(keyring.fetches(), 1);
    advance(FAILURE_KEPT).await;
    assert_eq!(key(&keyring).await.as_deref(), Ok("a"));
}

#[tokio::test(start_paused = true)]
async fn a_fetch_whose_first_caller_goes_is_ended_by_the_others() {
    let (_, keyring) = played(Place::Service, &[Ok(("a", None))]);
    let mut first = Box::pin(key(&keyring));
    timeout(Duration::from_millis(50), &mut first).await.unwrap_err();
    let mut second = Box::pin(key(&keyring));
    timeout(Duration::from_millis(10), &mut second).await.unwrap_err();
    drop(first);
    assert_eq!(second.await.as_deref(), Ok("a"));
    assert_eq!(keyring.fetches(), 1);
    // And one that nobody waits for is begun again.
    let (_, keyring) = played(Place::Service, &[Ok(("a", None))]);
    timeout(Duration::from_millis(50), key(&keyring)).await.unwrap_err();
    assert_eq!(key(&keyring).await.as_deref(), Ok("a"));
    assert_eq!(keyring.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn before_the_end_one_caller_fetches_and_the_others_go_on() {
    let gives = [Ok(("a", Some(3600))), Ok(("b", Some(3600)))];
    let (_, keyring) = played(Place::Service, &gives);
    key(&keyring).await.unwrap();
    advance(Duration::from_secs(3600) - SLACK - Duration::from_secs(1)).await;
    assert_eq!((key(&keyring).await.as_deref(), keyring.fetches()), (Ok("a"), 1));
    advance(Duration::from_secs(2)).await;
    let mut fetching = Box::pin(key(&keyring));
    timeout(Duration::from_millis(1), &mut fetching).await.unwrap_err();
    for _ in 0..1000 {
        let at_once = key(&keyring).now_or_never();
        assert_eq!(at_once.unwrap().as_deref(), Ok("a"));
    }
    assert_eq!(fetching.await.as_deref(), Ok("b"));
    assert_eq!((keyring.fetches(), keyring.generation()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_good_credential_outlives_a_source_that_fails_until_its_end() {
    let gives = [Ok(("a", Some(400))), Err("luck")];
    let (_, keyring) = played(Place::Service, &gives);
    key(&keyring).await.unwrap();
    advance(Duration::from_secs(300)).await;
    let fetches = keyring.fetches();
    for _ in 0..100 {
        assert_eq!(key(&keyring).await.as_deref(), Ok("a"));
    }
    assert_eq!(keyring.fetches(), fetches + 1, "a failing source is not asked at each request");
    advance(Duration::from_secs(100)).await;
    assert!(key(&keyring).await.unwrap_err().contains("luck"));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_many_were_told_is_one_renewal() {
    let gives = [Ok(("a", Some(3600))), Ok(("b", Some(3600)))];
    let (_, keyring) = played(Place::Service, &gives);
    key(&keyring).await.unwrap();
    let refused = (0..1000).map(|_| keyring.renew(Refusal::Expired, 1));
    assert!(join_all(refused).await.into_iter().all(|renewed| renewed));
    assert!(keyring.renew(Refusal::Expired, 1).await, "who comes late has what is new");
    assert_eq!((keyring.fetches(), keyring.generation()), (2, 2));
    assert_eq!(key(&keyring).await.as_deref(), Ok("b"));
    // What comes is what was refused: nobody is told to try it again.
    assert!(!keyring.renew(Refusal::Expired, 2).await);
    assert_eq!(keyring.generation(), 2);
}

#[tokio::test(start_paused = true)]
async fn renewals_for_refusals_are_few() {
    let (_, keyring) = played(Place::Service, &[Ok(("a", Some(36_000)))]);
    key(&keyring).await.unwrap();
    for _ in 0..100 {
        assert!(!keyring.renew(Refusal::Expired, 1).await);
    }
    assert_eq!(keyring.fetches(), 1 + u64::from(RENEWALS));
    advance(AGAIN).await;
    keyring.renew(Refusal::Expired, 1).await;
    keyring.renew(Refusal::Expired, 1).await;
    assert_eq!(keyring.fetches(), 2 + u64::from(RENEWALS));
}

#[tokio::test(start_paused = true)]
async fn what_does_not_change_or_is_not_to_blame_is_not_fetched_again() {
    let (_, fixed) = played(Place::Environment, &[Ok(("a", None))]);
    key(&fixed).await.unwrap();
    assert!(!fixed.renew(Refusal::Expired, 1).await);
    let (_, service) = played(Place::Service, &[Ok(("a", Some(3600))), Ok(("b", None))]);
    key(&service).await.unwrap();
    assert!(!service.renew(Refusal::Unsaid, 1).await && !service.renew(Refusal::Skewed, 1).await);
    assert_eq!((fixed.fetches(), service.fetches()), (1, 1));
    advance(YOUNG).await;
    assert!(service.renew(Refusal::Unsaid, 1).await);
}

#[tokio::test(start_paused = true)]
async fn a_changed_file_is_read_again() {
    let (source, keyring) = played(files(), &[Ok(("a", None)), Ok(("b", None))]);
    key(&keyring).await.unwrap();
    advance(LOOK).await;
    assert_eq!((key(&keyring).await.as_deref(), keyring.fetches()), (Ok("a"), 1));
    source.changed.store(true, Ordering::Relaxed);
    assert_eq!(key(&keyring).await.as_deref(), Ok("a"), "files are looked at once a second");
    advance(LOOK).await;
    assert_eq!(key(&keyring).await.as_deref(), Ok("b"));
    // A refusal is reason to look whenever it comes, and whatever it says.
    let (_, keyring) = played(files(), &[Ok(("a", None)), Ok(("b", None))]);
    key(&keyring).await.unwrap();
    assert!(keyring.renew(Refusal::Unsaid, 1).await);
}

#[tokio::test(start_paused = true)]
async fn nothing_shows_a_secret() {
    let (_, keyring) = played(Place::Service, &[Ok(("a", Some(60)))]);
    key(&keyring).await.unwrap();
    let shown = format!("{keyring:?} {:?}", keyring.get().await);
    assert!(!shown.contains("canary"), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn what_is_held_is_told_without_the_secret() {
    let (_, keyring) = played(Place::Service, &[Ok(("a", Some(3600)))]);
    let standing = keyring.standing().await;
    assert_eq!(standing.source, "temporary ones, of a service");
    assert_eq!(standing.expires_in, Some(Duration::from_secs(3600)));
    advance(Duration::from_secs(600)).await;
    let later = keyring.standing().await;
    assert_eq!((later.expires_in, later.problem), (Some(Duration::from_secs(3000)), None));
    assert_eq!(keyring.fetches(), 1, "it is held");
    let (_, keyring) = played(files(), &[Err("luck")]);
    let standing = keyring.standing().await;
    assert!(standing.problem.as_ref().is_some_and(|why| why.contains("luck")), "{standing:?}");
    assert!(!format!("{standing:?}").contains("canary"));
}
