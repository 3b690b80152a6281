//! Security domains: who may share memory, and what they may use.
//!
//! A caller belongs to one domain, by the uid that the kernel tells or by a token that it gives,
//! where containers share a uid. What a domain has of its own is made once per domain and never
//! shared: slots and segments, admission, the table of loads, the history, the sessions. So nothing
//! has to be filtered there: a domain's calls cannot reach what is another's. What is shared is
//! what has no owner: origins, digests, workers and the NVMe tier, of which a domain sees what it
//! may load ([`Domain::sees`]).
//!
//! A token is known by its SHA-256 only, compared in constant time, and shown by nothing. Whoever
//! gives one is in its domain or nowhere: a wrong token never falls back to the uid.

use std::collections::BTreeSet;
use std::fmt;
use std::hint::black_box;
use std::sync::{Arc, Mutex, PoisonError};

use forebay_proto::{Failure, Reason};
use sha2::{Digest, Sha256};

use crate::admission::Lane;
use crate::ram::is_at_or_under;

/// Domains that the settings may have: each is a name in metrics, and a thread.
pub(crate) const DOMAINS_MAX: usize = 32;

/// The name of the only domain there is when the settings have none.
pub(crate) const DEFAULT: &str = "default";

/// URIs that a domain without prefixes is known to have used, at most; the first ones are
/// forgotten.
const SEEN_MAX: usize = 4096;

/// Who calls, as far as the connection and the request tell.
#[derive(Clone, Copy)]
pub(crate) struct Caller<'a> {
    /// As the kernel told; none over TCP.
    pub(crate) uid: Option<u32>,
    /// As given, or none.
    pub(crate) token: Option<&'a [u8]>,
}

/// The SHA-256 of a token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenHash([u8; 32]);

impl TokenHash {
    /// Of these 64 hexadecimal digits.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let mut hash = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        for (at, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(Self(hash))
    }

    /// Of this token.
    pub(crate) fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// Whether it is the same, in a time that does not depend on where the two differ.
    fn is(&self, other: &Self) -> bool {
        let pairs = self.0.iter().zip(&other.0);
        black_box(pairs.fold(0, |differs, (a, b)| differs | (a ^ b))) == 0
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(***)")
    }
}

/// One domain, as the settings have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DomainSpec {
    /// Its name, in metrics and in the log.
    pub(crate) name: Arc<str>,
    /// Whose processes are in it; none: whoever has the token.
    pub(crate) uids: Vec<u32>,
    /// What they have to give, if the uid alone does not tell.
    pub(crate) token: Option<TokenHash>,
    /// What it may load, in canonical form; empty: everything.
    pub(crate) uri_prefixes: Vec<String>,
    /// Slots of its own.
    pub(crate) ram_bytes: u64,
    /// Its part of what all use, beside those of the others.
    pub(crate) share: u32,
    /// Lanes that it may use.
    pub(crate) lanes: Vec<Lane>,
}

/// One domain of a daemon that runs.
#[derive(Debug)]
pub(crate) struct Domain {
    spec: DomainSpec,
    /// Its number, which its segments carry.
    index: u32,
    /// Of all domains.
    names: Arc<[Arc<str>]>,
    /// What it loaded, where no prefixes say what is its business.
    seen: Mutex<BTreeSet<String>>,
}

impl Domain {
    /// As the settings have it.
    pub(crate) fn spec(&self) -> &DomainSpec {
        &self.spec
    }

    /// Its number, which its segments carry.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Whether it is the only one, so that nothing has to be kept from it.
    pub(crate) fn is_alone(&self) -> bool {
        self.names.len() == 1
    }

    /// What it signs what outlives the daemon with; empty if nothing has to be kept from anybody.
    pub(crate) fn signature(&self) -> &str {
        if self.is_alone() { "" } else { &self.spec.name }
    }

    /// Whether it may change what was signed so: its own, and what is nobody's, as of a domain that
    /// the settings do not have any more.
    pub(crate) fn may_change(&self, signature: &str) -> bool {
        let is_somebodys = self.names.iter().any(|name| **name == *signature);
        self.is_alone() || *self.spec.name == *signature || !is_somebodys
    }

    /// An error unless it may load what lies at `uri`, which is in canonical form.
    pub(crate) fn check_uri(&self, uri: &str) -> Result<(), Failure> {
        if self.may_load(uri) {
            return Ok(());
        }
        let message = format!("{uri} is under no prefix of the domain {}", self.spec.name);
        Err(Failure::new(Reason::UriNotAllowed, message))
    }

    /// An error unless it may use the lane.
    pub(crate) fn check_lane(&self, lane: Lane) -> Result<(), Failure> {
        if self.spec.lanes.contains(&lane) {
            return Ok(());
        }
        let (name, lane) = (&self.spec.name, lane.as_str());
        let message = format!("the domain {name} may not use the lane {lane}");
        Err(Failure::new(Reason::LaneNotAllowed, message))
    }

    /// Whether it may load `uri`.
    pub(crate) fn may_load(&self, uri: &str) -> bool {
        let prefixes = &self.spec.uri_prefixes;
        prefixes.is_empty() || prefixes.iter().any(|prefix| is_at_or_under(uri, prefix))
    }

    /// It loads what lies at `uri`.
    pub(crate) fn uses(&self, uri: &str) {
        if self.is_alone() || !self.spec.uri_prefixes.is_empty() {
            return;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= SEEN_MAX && !seen.contains(uri) {
            seen.pop_first();
        }
        seen.insert(uri.to_owned());
    }

    /// Whether what is stored of `uri` is its business: what it may load, where the settings say
    /// that, else what it has loaded since the daemon was started.
    pub(crate) fn sees(&self, uri: &str) -> bool {
        if self.is_alone() || !self.spec.uri_prefixes.is_empty() {
            return self.may_load(uri);
        }
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).contains(uri)
    }

    /// Whether an origin, by scheme and bucket or host, holds something that is its business.
    pub(crate) fn sees_origin(&self, origin: &str) -> bool {
        let within = |uri: &str| is_at_or_under(uri, origin) || is_at_or_under(origin, uri);
        match self.spec.uri_prefixes.as_slice() {
            [] if self.is_alone() => true,
            [] => {
                let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.iter().any(|uri| within(uri))
            }
            prefixes => prefixes.iter().any(|prefix| within(prefix)),
        }
    }
}

/// The domains of one daemon; at least one.
#[derive(Debug, Clone)]
pub(crate) struct Domains(Arc<[Arc<Domain>]>);

impl Domains {
    /// As the settings have them.
    pub(crate) fn new(specs: &[DomainSpec]) -> Self {
        let names: Arc<[Arc<str>]> = specs.iter().map(|spec| Arc::clone(&spec.name)).collect();
        let domain = |(index, spec): (u32, &DomainSpec)| {
            let (spec, names) = (spec.clone(), Arc::clone(&names));
            Arc::new(Domain { spec, index, names, seen: Mutex::default() })
        };
        Self((0..).zip(specs).map(domain).collect())
    }

    /// All of them, by their numbers.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Domain>> {
        self.0.iter()
    }

    /// The part of `all` that a domain has by its share; one at least.
    pub(crate) fn part_of(&self, domain: &Domain, all: usize) -> usize {
        let sum: u64 = self.iter().map(|one| u64::from(one.spec.share)).sum();
        let part = all as u64 * u64::from(domain.spec.share) / sum.max(1);
        usize::try_from(part).unwrap_or(all).max(1)
    }

    /// Whether processes of a uid may be in any of them.
    pub(crate) fn may_connect(&self, uid: u32) -> bool {
        let may = |spec: &DomainSpec| match spec.uids.as_slice() {
            [] => spec.token.is_some(),
            uids => uids.contains(&uid),
        };
        self.iter().any(|domain| may(&domain.spec))
    }

    /// Whether only processes of these uids may be in any of them.
    pub(crate) fn are_within(&self, uids: &[u32]) -> bool {
        let within = |spec: &DomainSpec| {
            !(spec.uids.is_empty() && spec.token.is_some())
                && spec.uids.iter().all(|uid| uids.contains(uid))
        };
        self.iter().all(|domain| within(&domain.spec))
    }

    /// The number of the caller's domain. A refusal tells nothing but what the caller said.
    pub(crate) fn find(&self, caller: Caller<'_>) -> Result<usize, Failure> {
        match caller.token {
            Some(token) => self.by_token(TokenHash::of(token), caller.uid),
            None => self.by_uid(caller.uid),
        }
    }

    fn by_token(&self, hash: TokenHash, uid: Option<u32>) -> Result<usize, Failure> {
        // All of them are compared, whichever it is.
        let found = self.iter().enumerate().fold(None, |found, (index, domain)| {
            let is_it = domain.spec.token.is_some_and(|token| token.is(&hash));
            if is_it { Some((index, domain)) } else { found }
        });
        let known = found.filter(|(_, domain)| {
            // Over TCP there is no uid: the token, and the certificate before it, have to do.
            let uids = &domain.spec.uids;
            uids.is_empty() || uid.is_none_or(|uid| uids.contains(&uid))
        });
        known.map(|(index, _)| index).ok_or_else(|| {
            Failure::new(Reason::TokenUnknown, "the token is not that of a domain of this caller")
        })
    }

    fn by_uid(&self, uid: Option<u32>) -> Result<usize, Failure> {
        let Some(uid) = uid else {
            // Without domains, whoever may connect over TCP is in the only one.
            let open = self.0.len() == 1 && self.iter().all(|one| &*one.spec.name == DEFAULT);
            let message = "over TCP a domain is known by its token, and none was given";
            return match open {
                true => Ok(0),
                false => Err(Failure::new(Reason::TokenUnknown, message)),
            };
        };
        let of_uid =
            |domain: &Arc<Domain>| domain.spec.token.is_none() && domain.spec.uids.contains(&uid);
        if let Some(index) = self.iter().position(of_uid) {
            return Ok(index);
        }
        if self.may_connect(uid) {
            let message = format!("uid {uid} has to give a token, and gave none");
            return Err(Failure::new(Reason::TokenUnknown, message));
        }
        let message = format!("uid {uid} may not use this daemon");
        Err(Failure::new(Reason::UidNotAllowed, message))
    }
}

#[cfg(test)]
#[path = "domain_tests.rs"]
mod tests;
