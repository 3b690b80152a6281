//! DNS ahead of time against a name server with faults: rows 14 to 16 of the reliability table.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use forebay_origin::{
    AheadResolver, DnsFailure, DnsName, DnsSettings, DnsState, OriginErrorKind, Origins, Resolve,
};
use forebay_testkit::{Content, DnsAnswer, DnsServer, HttpOptions, HttpOrigin};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::{quick, uri};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A name server, and the configuration files of a system that uses it.
struct Site {
    server: DnsServer,
    files: tempfile::TempDir,
}

impl Site {
    async fn new(resolv_conf: &str, hosts: &str) -> Self {
        let site = Self { server: DnsServer::start().await, files: tempfile::tempdir().unwrap() };
        site.write("resolv.conf", resolv_conf);
        site.write("hosts", hosts);
        site
    }

    async fn plain() -> Self {
        Self::new("nameserver 127.0.0.1\n", "").await
    }

    fn write(&self, file: &str, text: &str) {
        let mut file = std::fs::File::create(self.files.path().join(file)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// Short times, so that every bound is met within a test.
    fn settings(&self) -> DnsSettings {
        DnsSettings {
            resolv_conf: self.files.path().join("resolv.conf"),
            hosts: self.files.path().join("hosts"),
            server_port: self.server.address().port(),
            refresh_min: Duration::from_millis(20),
            retry_base: Duration::from_millis(20),
            retry_max: Duration::from_millis(40),
            ..DnsSettings::default()
        }
    }

    fn resolver(&self) -> AheadResolver {
        AheadResolver::start(self.settings(), &Handle::current())
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn known(resolver: &AheadResolver, name: &str) -> DnsName {
    let names = resolver.snapshot().names;
    names.into_iter().find(|known| known.name == name).unwrap()
}

/// Waits for an event that the resolver's own task brings about.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect(what);
}

#[tokio::test]
async fn both_families_are_found_and_kept() {
    let site = Site::plain().await;
    site.server.addresses("s3.test", ["127.0.0.2", "127.0.0.3", "::1"].map(ip), 300);
    let resolver = site.resolver();
    let found = resolver.resolve("S3.test").await.unwrap();
    assert_eq!(found[..2], ["127.0.0.2", "127.0.0.3"].map(ip));
    assert_eq!(resolver.resolve("s3.test").await.unwrap(), found);
    let queries = site.server.queries("s3.test");
    assert_eq!((queries.a, queries.aaaa), (1, 1));
    let known = known(&resolver, "s3.test");
    assert_eq!((known.state, known.ttl), (DnsState::Fresh, Some(Duration::from_secs(300))));
    let snapshot = resolver.snapshot();
    assert_eq!((snapshot.servers, snapshot.degraded), (vec![ip("127.0.0.1")], None));
    assert_eq!((snapshot.counters.ok, snapshot.counters.lookups()), (1, 1));
}

#[tokio::test]
async fn primed_names_are_known_before_anybody_asks() {
    let site = Site::plain().await;
    site.server.addresses("a.test", [ip("127.0.0.2")], 300);
    let resolver = site.resolver();
    resolver.prime(["a.test", "b.test", "127.0.0.1"]);
    until("both lookups end", || resolver.snapshot().counters.lookups() >= 2).await;
    assert_eq!(known(&resolver, "a.test").state, DnsState::Fresh);
    assert_eq!(known(&resolver, "b.test").state, DnsState::Failed);
    let asked = site.server.queries("a.test");
    assert_eq!(resolver.resolve("a.test").await.unwrap(), [ip("127.0.0.2")]);
    assert_eq!(site.server.queries("a.test"), asked);
}

#[tokio::test]
async fn many_callers_share_one_lookup() {
    let site = Site::plain().await;
    site.server.addresses("s3.test", [ip("127.0.0.2")], 300);
    site.server.delay("s3.test", Duration::from_millis(100));
    let resolver = site.resolver();
    let all = (0..200).map(|_| resolver.resolve("s3.test"));
    for found in futures::future::join_all(all).await {
        assert_eq!(found.unwrap(), [ip("127.0.0.2")]);
    }
    assert_eq!(site.server.queries("s3.test").a, 1);
}

#[tokio::test]
async fn a_name_that_never_was_fails_at_once_and_comes_into_being() {
    let site = Site::plain().await;
    let resolver = site.resolver();
    site.server.set("no.test", DnsAnswer::NoSuchName { ttl: 3600 });
    let error = resolver.resolve("no.test").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert!(error.to_string().contains("DNS: the name does not exist"), "{error}");
    // The denial is believed for a while, though not for the hour that the zone allows.
    resolver.resolve("no.test").await.unwrap_err();
    assert_eq!(site.server.queries("no.test").a, 1);
    assert_eq!(resolver.snapshot().counters.nxdomain, 1);
    let settings = DnsSettings { negative_max: Duration::from_millis(20), ..site.settings() };
    let resolver = AheadResolver::start(settings, &Handle::current());
    resolver.resolve("no.test").await.unwrap_err();
    site.server.addresses("no.test", [ip("127.0.0.2")], 60);
    let found = async {
        while resolver.resolve("no.test").await.is_err() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, found).await.unwrap();
    assert_eq!(resolver.snapshot().counters.servfail, 0);
}

#[tokio::test]
async fn known_addresses_outlive_every_failure_of_dns() {
    let failures = [
        DnsAnswer::ServerFailure,
        DnsAnswer::Refused,
        DnsAnswer::Silence,
        DnsAnswer::NoSuchName { ttl: 0 },
    ];
    for failure in failures {
        let site = Site::plain().await;
        site.server.addresses("s3.test", [ip("127.0.0.2")], 0);
        let settings =
            DnsSettings { try_timeout: Duration::from_millis(250), tries: 1, ..site.settings() };
        let resolver = AheadResolver::start(settings, &Handle::current());
        resolver.resolve("s3.test").await.unwrap();
        site.server.all(Some(failure.clone()));
        until("three lookups fail", || known(&resolver, "s3.test").failures >= 3).await;
        // Served at once: nobody waits for a server that fails.
        let found = futures::FutureExt::now_or_never(resolver.resolve("s3.test"));
        assert_eq!(found.unwrap().unwrap(), [ip("127.0.0.2")], "{failure:?}");
        assert_eq!(known(&resolver, "s3.test").state, DnsState::Stale);
        assert!(resolver.snapshot().counters.stale > 0);
        site.server.all(None);
        until("DNS is back", || known(&resolver, "s3.test").failures == 0).await;
    }
}

#[tokio::test]
async fn a_rotated_set_is_served_after_one_refresh() {
    let site = Site::plain().await;
    let sets = vec![vec![ip("127.0.0.2")], vec![ip("127.0.0.3")]];
    site.server.set("s3.test", DnsAnswer::Rotating { sets, ttl: 0 });
    let resolver = site.resolver();
    assert_eq!(resolver.resolve("s3.test").await.unwrap(), [ip("127.0.0.2")]);
    until("one refresh", || resolver.snapshot().counters.ok >= 2).await;
    let known = known(&resolver, "s3.test");
    assert_eq!(known.addresses.len(), 2, "the old address is remembered: {known:?}");
    assert_eq!(known.addresses.iter().filter(|address| address.current).count(), 1);
    site.server.addresses("s3.test", [ip("127.0.0.9")], 0);
    let moved = async {
        while resolver.resolve("s3.test").await.unwrap() != [ip("127.0.0.9")] {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, moved).await.unwrap();
}

#[tokio::test]
async fn a_truncated_answer_is_asked_for_over_tcp() {
    let site = Site::plain().await;
    let all: Vec<IpAddr> = (1..=60).map(|last| ip(&format!("127.0.1.{last}"))).collect();
    site.server.addresses("s3.test", all.clone(), 300);
    site.server.truncate("s3.test", true);
    let resolver = site.resolver();
    assert_eq!(resolver.resolve("s3.test").await.unwrap(), all);
    let queries = site.server.queries("s3.test");
    assert!(queries.udp >= 1 && queries.tcp >= 1, "{queries:?}");
}

#[tokio::test]
async fn an_alias_is_followed_and_its_shorter_ttl_counts() {
    let site = Site::plain().await;
    site.server.addresses("real.test", [ip("127.0.0.2")], 300);
    site.server.set("s3.test", DnsAnswer::Alias { target: "real.test".to_owned(), ttl: 60 });
    let resolver = site.resolver();
    assert_eq!(resolver.resolve("s3.test").await.unwrap(), [ip("127.0.0.2")]);
    assert_eq!(known(&resolver, "s3.test").ttl, Some(Duration::from_secs(60)));
}

#[tokio::test]
async fn the_second_server_answers_when_the_first_is_dead() {
    let silent = tokio::net::UdpSocket::bind("127.0.0.3:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let answering = DnsServer::start_at(SocketAddr::new(ip("127.0.0.4"), port)).await.unwrap();
    answering.addresses("s3.test", [ip("127.0.0.2")], 300);
    let site = Site::new("nameserver 127.0.0.3\nnameserver 127.0.0.4\n", "").await;
    let settings = DnsSettings {
        server_port: port,
        try_timeout: Duration::from_millis(250),
        ..site.settings()
    };
    let resolver = AheadResolver::start(settings, &Handle::current());
    assert_eq!(resolver.resolve("s3.test").await.unwrap(), [ip("127.0.0.2")]);
}

#[tokio::test]
async fn lost_aaaa_questions_cost_neither_the_name_nor_the_time_limit() {
    let site = Site::plain().await;
    site.server.addresses("s3.test", [ip("127.0.0.2")], 300);
    site.server.lose_aaaa("s3.test", true);
    let settings =
        DnsSettings { try_timeout: PATIENCE * 2, lookup_timeout: PATIENCE * 2, ..site.settings() };
    let resolver = AheadResolver::start(settings, &Handle::current());
    let found = timeout(PATIENCE, resolver.resolve("s3.test")).await.unwrap();
    assert_eq!(found.unwrap(), [ip("127.0.0.2")]);
}

#[tokio::test]
async fn a_failing_search_domain_is_told_rather_than_a_missing_name() {
    let site = Site::new("nameserver 127.0.0.1\nsearch bad.test\n", "").await;
    site.server.set("s3.bad.test", DnsAnswer::ServerFailure);
    let resolver = site.resolver();
    let error = resolver.resolve("s3").await.unwrap_err();
    assert!(error.to_string().contains("the name server failed"), "{error}");
    // It does not hide the name itself.
    site.server.addresses("s4", [ip("127.0.0.2")], 60);
    site.server.set("s4.bad.test", DnsAnswer::ServerFailure);
    assert_eq!(resolver.resolve("s4").await.unwrap(), [ip("127.0.0.2")]);
}

#[tokio::test]
async fn the_search_list_is_walked_as_the_c_library_does() {
    let conf = "nameserver 127.0.0.1\nsearch one.test two.test\noptions ndots:2\n";
    let site = Site::new(conf, "").await;
    for (name, last) in [("s3.two.test", 2), ("s3.a.b", 3), ("s3.full", 4)] {
        site.server.addresses(name, [ip(&format!("127.0.0.{last}"))], 60);
    }
    let resolver = site.resolver();
    // Fewer dots than ndots: the list first. At least as many: the name itself. A final dot: no
    // list.
    for (name, last) in [("s3", 2), ("s3.a.b", 3), ("s3.full", 4), ("s3.two.test.", 2)] {
        let found = resolver.resolve(name).await.unwrap();
        assert_eq!(found, [ip(&format!("127.0.0.{last}"))], "{name}");
    }
    let asked = site.server.names();
    let want = ["s3.a.b.", "s3.full.", "s3.full.one.test.", "s3.full.two.test.", "s3.one.test."];
    assert_eq!(asked[..5], want);
    assert_eq!(asked[5..], ["s3.two.test."]);
}

#[tokio::test]
async fn hosts_file_literals_and_localhost_need_no_server() {
    let site = Site::new("nameserver 127.0.0.1\n", "127.0.0.7 s3.test alias\n").await;
    site.server.all(Some(DnsAnswer::ServerFailure));
    let resolver = site.resolver();
    for name in ["s3.test", "alias", "S3.TEST"] {
        assert_eq!(resolver.resolve(name).await.unwrap(), [ip("127.0.0.7")], "{name}");
    }
    assert_eq!(resolver.resolve("127.0.0.9").await.unwrap(), [ip("127.0.0.9")]);
    assert_eq!(resolver.resolve("::1").await.unwrap(), [ip("::1")]);
    assert!(resolver.resolve("localhost").await.unwrap().contains(&ip("127.0.0.1")));
    assert_eq!(site.server.names(), [""; 0]);
    let error = resolver.resolve("not a name").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn changed_files_are_read_again_and_lost_ones_are_told() {
    let site = Site::new("nameserver 127.0.0.1\n", "").await;
    site.server.addresses("s3.test", [ip("127.0.0.2")], 0);
    let resolver = site.resolver();
    assert_eq!(resolver.resolve("s3.test").await.unwrap(), [ip("127.0.0.2")]);
    site.write("hosts", "127.0.0.8 s3.test\n");
    let moved = async {
        while resolver.resolve("s3.test").await.unwrap() != [ip("127.0.0.8")] {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, moved).await.unwrap();
    std::fs::remove_file(site.files.path().join("resolv.conf")).unwrap();
    let degraded = resolver.snapshot().degraded.unwrap();
    assert!(degraded.contains("resolv.conf") && degraded.contains("getaddrinfo"), "{degraded}");
    assert!(resolver.snapshot().servers.is_empty());
    // Only getaddrinfo reads this form of an address.
    assert_eq!(resolver.resolve("127.1").await.unwrap(), [ip("127.0.0.1")]);
    assert_eq!(resolver.resolve("s3.test").await.unwrap(), [ip("127.0.0.8")]);
}

#[tokio::test]
async fn a_cold_load_that_dns_fails_names_dns_as_the_cause() {
    let table = [
        (DnsAnswer::ServerFailure, "the name server failed (Server Failure)"),
        (DnsAnswer::Silence, "no answer within 50 ms"),
        (DnsAnswer::NoSuchName { ttl: 0 }, "the name does not exist (NXDOMAIN)"),
    ];
    for (answer, words) in table {
        let site = Site::plain().await;
        site.server.all(Some(answer));
        let settings = DnsSettings { try_timeout: Duration::from_millis(50), ..site.settings() };
        let resolver = AheadResolver::start(settings, &Handle::current());
        let origins = Origins::new(quick(), Arc::new(resolver)).unwrap();
        let uri = uri("http://s3.test:9/object");
        let store = origins.open(&uri).unwrap();
        let error = timeout(PATIENCE, store.head(uri.key())).await.unwrap().unwrap_err();
        assert_eq!(error.kind, OriginErrorKind::DnsFailed, "{error}");
        let shown = error.to_string();
        assert!(shown.contains("DNS: ") && shown.contains(words), "{shown}");
    }
}

#[tokio::test]
async fn loads_do_not_notice_that_dns_fails_behind_a_warm_set() {
    let site = Site::plain().await;
    let origin = HttpOrigin::start(HttpOptions::default()).await;
    origin.put("object", Content::Bytes(vec![7; 1000].into()));
    site.server.addresses("s3.test", [ip("127.0.0.1")], 0);
    let resolver = Arc::new(site.resolver());
    resolver.resolve("s3.test").await.unwrap();
    site.server.all(Some(DnsAnswer::ServerFailure));
    until("lookups fail", || known(&resolver, "s3.test").failures >= 3).await;
    let resolve: Arc<dyn Resolve> = Arc::<AheadResolver>::clone(&resolver);
    let origins = Origins::new(quick(), resolve).unwrap();
    let port = origin.endpoint().rsplit_once(':').unwrap().1.to_owned();
    let uri = uri(&format!("http://s3.test:{port}/object"));
    let meta = origins.open(&uri).unwrap().head(uri.key()).await.unwrap();
    assert_eq!(meta.bytes, 1000);
}

#[tokio::test]
async fn a_stopped_resolver_serves_what_it_knows_and_holds_nothing_else() {
    let site = Site::plain().await;
    site.server.addresses("s3.test", [ip("127.0.0.2")], 300);
    let settings = DnsSettings { lookup_timeout: Duration::from_millis(500), ..site.settings() };
    let resolver = AheadResolver::start(settings, &Handle::current());
    resolver.resolve("s3.test").await.unwrap();
    resolver.stop().await;
    assert_eq!(resolver.resolve("s3.test").await.unwrap(), [ip("127.0.0.2")]);
    let error = resolver.resolve("other.test").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    let inner = error.get_ref().unwrap().downcast_ref::<DnsFailure>();
    assert_eq!(inner, Some(&DnsFailure::TimedOut(Duration::from_millis(500))));
    assert_eq!(site.server.queries("other.test").a, 0);
}
