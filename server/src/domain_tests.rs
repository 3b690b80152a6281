//! Tests of domains: who is in which, and what it may use.

use super::*;

fn spec(name: &str, uids: &[u32], token: Option<&str>) -> DomainSpec {
    DomainSpec {
        name: name.into(),
        uids: uids.to_vec(),
        token: token.map(|token| TokenHash::of(token.as_bytes())),
        uri_prefixes: Vec::new(),
        ram_bytes: 1 << 30,
        share: 1,
        lanes: Lane::ALL.to_vec(),
    }
}

fn find(domains: &Domains, uid: Option<u32>, token: Option<&str>) -> Result<usize, Reason> {
    let caller = Caller { uid, token: token.map(str::as_bytes) };
    domains.find(caller).map_err(|failure| failure.reason)
}

#[test]
fn a_caller_is_in_one_domain_or_in_none() {
    let domains = Domains::new(&[
        spec("serving", &[1000, 1001], None),
        spec("blue", &[1000], Some("b1ue")),
        spec("anyone", &[], Some("open sesame")),
        spec("ops", &[0], None),
    ]);
    for (uid, token, expected) in [
        (1000, None, Ok(0)),
        (1001, None, Ok(0)),
        (0, None, Ok(3)),
        (1000, Some("b1ue"), Ok(1)),
        (7, Some("open sesame"), Ok(2)),
        (0, Some("open sesame"), Ok(2)),
        // A token of others' uids, one that is wrong, and an empty one never fall back to the uid.
        (1001, Some("b1ue"), Err(Reason::TokenUnknown)),
        (1000, Some("blue"), Err(Reason::TokenUnknown)),
        (0, Some(""), Err(Reason::TokenUnknown)),
        (7, None, Err(Reason::TokenUnknown)),
    ] {
        assert_eq!(find(&domains, Some(uid), token), expected, "{uid} {token:?}");
    }
    assert_eq!(find(&domains, None, None), Err(Reason::TokenUnknown));
    assert_eq!(find(&domains, None, Some("b1ue")), Ok(1), "over TCP");
    assert!(domains.may_connect(65_534), "somebody may have the token");
}

#[test]
fn without_domains_the_allowed_uids_are_one() {
    let domains = Domains::new(&[spec(DEFAULT, &[0, 1000], None)]);
    assert_eq!(find(&domains, Some(1000), None), Ok(0));
    assert_eq!(find(&domains, Some(65_534), None), Err(Reason::UidNotAllowed));
    assert_eq!(find(&domains, Some(1000), Some("x")), Err(Reason::TokenUnknown));
    assert_eq!(find(&domains, None, None), Ok(0), "TLS or loopback lets it in");
    assert!(domains.are_within(&[0, 1000]) && !domains.are_within(&[0]));
    let named = Domains::new(&[spec("serving", &[1000], None)]);
    assert_eq!(find(&named, None, None), Err(Reason::TokenUnknown));
    assert!(!named.may_connect(0));
    assert!(!Domains::new(&[spec("t", &[], Some("x"))]).are_within(&[0]));
}

#[test]
fn a_prefix_is_left_by_no_spelling() {
    let of = |prefixes: &[&str]| {
        let uri_prefixes = prefixes.iter().map(|text| (*text).to_owned()).collect();
        let one = DomainSpec { uri_prefixes, ..spec("a", &[1], None) };
        Arc::clone(Domains::new(&[one, spec("b", &[2], None)]).iter().next().unwrap())
    };
    let domain = of(&["s3://models/team-a", "https://h.example/team-a/", "file:///srv/a"]);
    // As requests are read before they are checked.
    let may = |uri: &str| match forebay_origin::OriginUri::parse(uri) {
        Ok(uri) => domain.check_uri(&uri.to_string()).is_ok(),
        Err(_) => false,
    };
    for good in [
        "s3://models/team-a",
        "s3://models/team-a/",
        "s3://models/team-a/llama/model.safetensors",
        "https://H.example:443/team-a/x?sig=secret",
        "https://h.example/%74eam-a/x",
        "file:///srv/a/m",
        "file://localhost/srv/a",
    ] {
        assert!(may(good), "{good}");
    }
    for bad in [
        "s3://models",
        "s3://models/",
        "s3://models/team-ab/x",
        "s3://models/team-a/../team-b/x",
        "s3://models/team-a/./../x",
        "s3://models/team-a//../x",
        "s3://Models/team-a/x",
        "gs://models/team-a/x",
        "https://h.example/team-a/%2e%2e/team-b/x",
        "https://h.example/team-a/%2E%2E/x",
        "https://h.example/team-a%2f..%2fteam-b/x",
        "https://h.example/team-a/..%2fx",
        "https://h.example:444/team-a/x",
        "http://h.example/team-a/x",
        "file:///srv/a/../b",
        "file:///srv/a%2f..%2fb",
        "file:///srv/ab",
    ] {
        assert!(!may(bad), "{bad}");
    }
    assert!(domain.sees_origin("s3://models") && !domain.sees_origin("s3://other"));
    let whole = of(&["s3://models/"]);
    assert!(whole.check_uri("s3://models/x").is_ok() && whole.check_uri("s3://models/").is_ok());
    assert!(whole.check_uri("s3://models2/x").is_err());
}

#[test]
fn without_prefixes_it_sees_what_it_used() {
    let both = Domains::new(&[spec("a", &[1], None), spec("b", &[2], None)]);
    let [a, b] = [0, 1].map(|index| Arc::clone(both.iter().nth(index).unwrap()));
    a.uses("s3://m/x");
    assert!(a.sees("s3://m/x") && !b.sees("s3://m/x") && !a.sees("s3://m/y"));
    assert!(a.sees_origin("s3://m") && !b.sees_origin("s3://m"));
    for n in 0..2 * SEEN_MAX {
        b.uses(&n.to_string());
    }
    assert_eq!(b.seen.lock().unwrap().len(), SEEN_MAX);
    let alone = Domains::new(&[spec(DEFAULT, &[1], None)]);
    let alone = alone.iter().next().unwrap();
    assert!(alone.sees("anything") && alone.sees_origin("s3://m"));
}

#[test]
fn shares_are_parts_and_nobody_gets_nothing() {
    let share = |share| DomainSpec { share, ..spec("x", &[], None) };
    let domains = Domains::new(&[share(3), share(1), share(0)]);
    let parts = |all| domains.iter().map(|one| domains.part_of(one, all)).collect::<Vec<_>>();
    assert_eq!(parts(64), [48, 16, 1]);
    assert_eq!(parts(1), [1, 1, 1]);
    assert_eq!(Domains::new(&[share(5)]).iter().count(), 1);
}

#[test]
fn a_hash_is_hex_and_is_shown_by_nothing() {
    let hex = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    assert_eq!(TokenHash::from_hex(hex), Some(TokenHash::of(b"hello")));
    for bad in ["", &hex[1..], &hex.replace('2', "x"), &format!("{hex}0"), &"é".repeat(32)] {
        assert_eq!(TokenHash::from_hex(bad), None, "{bad}");
    }
    let shown = format!("{:?}", spec("x", &[], Some("hello")));
    assert!(!shown.contains("2c") && shown.contains("***"), "{shown}");
}

#[test]
fn lanes_are_those_that_it_may_use() {
    let lanes = vec![Lane::Prefetch];
    let domains = Domains::new(&[DomainSpec { lanes, ..spec("x", &[1], None) }]);
    let domain = domains.iter().next().unwrap();
    domain.check_lane(Lane::Prefetch).unwrap();
    let refused = domain.check_lane(Lane::Interactive).unwrap_err();
    assert_eq!(refused.reason, Reason::LaneNotAllowed);
}

#[test]
fn what_a_domain_signed_only_it_may_change() {
    let domains = Domains::new(&[spec("blue", &[1], None), spec("red", &[2], None)]);
    let [blue, red] = [0, 1].map(|index| Arc::clone(domains.iter().nth(index).unwrap()));
    assert_eq!((blue.signature(), red.signature()), ("blue", "red"));
    assert!(blue.may_change("blue") && !red.may_change("blue"));
    // Of before there were domains, and of one that is gone.
    for signature in ["", "green"] {
        assert!(blue.may_change(signature) && red.may_change(signature));
    }
    let alone = Domains::new(&[spec("blue", &[1], None)]);
    let alone = alone.iter().next().unwrap();
    assert_eq!(alone.signature(), "");
    assert!(alone.may_change("red"));
}
