//! The access keys that an S3 origin accepts, which a test gives out and takes back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use http::HeaderMap;
use s3s::auth::{S3Auth, SecretKey};
use s3s::dto::{Timestamp, TimestampFormat};
use s3s::{S3Result, s3_error};

use crate::head;
use crate::plan::Refusal;

/// S3 refuses what is signed for a time this far from its own.
const SKEW_SECONDS_MAX: i64 = 15 * 60;

/// An access key of an [`S3Origin`](crate::S3Origin).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessKey {
    /// Its name, which requests carry.
    pub id: String,
    /// What they are signed with.
    pub secret: String,
    /// What they carry beside it, if the key is temporary.
    pub token: Option<String>,
}

#[derive(Debug)]
struct Known {
    key: AccessKey,
    expired: bool,
}

/// Keys by name. Clones share one table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys(Arc<Mutex<BTreeMap<String, Known>>>);

impl Keys {
    pub(crate) fn accept(&self, key: AccessKey) {
        self.table().insert(key.id.clone(), Known { key, expired: false });
    }

    pub(crate) fn expire(&self, id: &str) {
        if let Some(known) = self.table().get_mut(id) {
            known.expired = true;
        }
    }

    pub(crate) fn forget(&self, id: &str) {
        self.table().remove(id);
    }

    /// Why a signed request is refused before its signature is looked at.
    pub(crate) fn refusal(&self, headers: &HeaderMap, ahead_seconds: i64) -> Option<Refusal> {
        let code = |status, code| Some(Refusal { code: Some(code), ..Refusal::from(status) });
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let signed = text("authorization")?.strip_prefix("AWS4-HMAC-SHA256 Credential=")?;
        let (id, _) = signed.split_once('/')?;
        let table = self.table();
        let Some(known) = table.get(id) else { return code(403, "InvalidAccessKeyId") };
        let time = text("x-amz-date").and_then(signed_at);
        if time.is_none_or(|time| (time - now(ahead_seconds)).abs() > SKEW_SECONDS_MAX) {
            return code(403, "RequestTimeTooSkewed");
        }
        if known.expired {
            return code(400, "ExpiredToken");
        }
        if known.key.token.as_deref() != text("x-amz-security-token") {
            return code(400, "InvalidToken");
        }
        None
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl S3Auth for Keys {
    async fn get_secret_key(&self, id: &str) -> S3Result<SecretKey> {
        let table = self.table();
        let known = table.get(id).ok_or_else(|| s3_error!(InvalidAccessKeyId))?;
        Ok(SecretKey::from(known.key.secret.as_str()))
    }
}

/// Seconds since 1970 on a clock that is so far ahead of this machine's.
#[expect(clippy::disallowed_methods, reason = "signatures carry the time of day")]
fn now(ahead_seconds: i64) -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX).saturating_add(ahead_seconds)
}

/// The `Date` of a response by that clock.
pub(crate) fn date(ahead_seconds: i64) -> String {
    head::http_date(u64::try_from(now(ahead_seconds)).unwrap_or(0))
}

/// `20130524T000000Z` as seconds since 1970.
fn signed_at(text: &str) -> Option<i64> {
    let part = |from: usize, to: usize| text.get(from..to);
    let iso = format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0, 4)?,
        part(4, 6)?,
        part(6, 8)?,
        part(9, 11)?,
        part(11, 13)?,
        part(13, 15)?
    );
    let time = Timestamp::parse(TimestampFormat::DateTime, &iso).ok()?;
    let mut seconds = Vec::new();
    time.format(TimestampFormat::EpochSeconds, &mut seconds).ok()?;
    String::from_utf8(seconds).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_signatures_are_read() {
        assert_eq!(signed_at("20130524T000000Z"), Some(1_369_353_600));
        assert_eq!(signed_at("2013"), None);
        assert_eq!(date(0).len(), "Sun, 06 Nov 1994 08:49:37 GMT".len());
    }

    #[test]
    fn keys_are_good_until_they_are_not() {
        let keys = Keys::default();
        let key = AccessKey { id: "a".into(), secret: "s".into(), token: Some("t".into()) };
        let mut headers = HeaderMap::new();
        head::set(&mut headers, "authorization", "AWS4-HMAC-SHA256 Credential=a/x");
        let refusal = |keys: &Keys, headers: &HeaderMap| {
            keys.refusal(headers, 0).map(|refusal| (refusal.status, refusal.code.unwrap()))
        };
        assert_eq!(refusal(&keys, &headers), Some((403, "InvalidAccessKeyId")));
        keys.accept(key);
        assert_eq!(refusal(&keys, &headers), Some((403, "RequestTimeTooSkewed")));
        let signed = head::iso_date(u64::try_from(now(0)).unwrap());
        let signed: String = signed.chars().filter(|c| !"-:".contains(*c)).collect();
        let signed = format!("{}Z", &signed[..15]);
        head::set(&mut headers, "x-amz-date", &signed);
        assert_eq!(refusal(&keys, &headers), Some((400, "InvalidToken")));
        head::set(&mut headers, "x-amz-security-token", "t");
        assert_eq!(refusal(&keys, &headers), None);
        keys.expire("a");
        assert_eq!(refusal(&keys, &headers), Some((400, "ExpiredToken")));
        keys.forget("a");
        assert_eq!(refusal(&keys, &headers), Some((403, "InvalidAccessKeyId")));
    }
}
