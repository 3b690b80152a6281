//! The table by example, and against what must hold for any sequence of events.

use proptest::prelude::*;

use super::*;

const NAME: &str = "h.test";

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ips(last: &[u8]) -> Vec<IpAddr> {
    last.iter().map(|last| [127, 0, 0, *last].into()).collect()
}

fn answer(last: &[u8], ttl: u64) -> Result<Answer, DnsFailure> {
    Ok(Answer { addresses: ips(last), ttl: secs(ttl) })
}

fn servfail() -> Result<Answer, DnsFailure> {
    Err(DnsFailure::ServerFailed("SERVFAIL".to_owned()))
}

fn nxdomain(ttl: u64) -> Result<Answer, DnsFailure> {
    Err(DnsFailure::NameUnknown { ttl: Some(secs(ttl)) })
}

/// A table, and the time since its start.
struct Bench {
    table: Table,
    start: Instant,
}

impl Bench {
    fn new(settings: DnsSettings) -> Self {
        Self { table: Table::new(settings), start: Instant::now() }
    }

    fn ask(&mut self, at: u64) -> Asked {
        self.table.ask(NAME, self.start + secs(at)).0
    }

    /// Takes what is due and ends its lookup at once; whether there was something.
    fn look_up(&mut self, at: u64, result: Result<Answer, DnsFailure>) -> bool {
        let now = self.start + secs(at);
        let taken = self.table.take_due(now, 32);
        for name in &taken {
            self.table.finish(name, result.clone(), secs(0), now);
        }
        !taken.is_empty()
    }

    fn next(&self, at: u64) -> Option<u64> {
        let due = self.table.next_due(self.start + secs(at))?;
        Some((due - self.start).as_secs())
    }

    fn show(&self, at: u64) -> DnsName {
        self.table.names(self.start + secs(at)).remove(0)
    }
}

#[test]
fn a_refresh_comes_at_80_percent_within_the_bounds() {
    // (TTL of the answer, the name, seconds until the refresh while in use)
    let table = [
        (0, NAME, 5),
        (5, NAME, 5),
        (20, NAME, 16),
        (30, NAME, 24),
        (3600, NAME, 240),
        (0, "s3.amazonaws.com", 1),
        (5, "s3.amazonaws.com", 4),
    ];
    for (ttl, name, want) in table {
        let settings = DnsSettings { idle_after: secs(1000), ..DnsSettings::default() };
        let mut bench = Bench::new(settings);
        assert_eq!(bench.table.ask(name, bench.start).0, Asked::Wait);
        assert!(bench.look_up(0, answer(&[1], ttl)));
        assert_eq!(bench.next(0), Some(want), "TTL {ttl} of {name}");
    }
}

#[test]
fn an_idle_name_is_refreshed_less_often_and_at_once_when_it_is_used_again() {
    let mut bench = Bench::new(DnsSettings::default());
    bench.ask(0);
    bench.look_up(0, answer(&[1], 0));
    bench.look_up(100, answer(&[1], 0));
    assert_eq!(bench.next(100), Some(130));
    let (asked, earlier) = bench.table.ask(NAME, bench.start + secs(120));
    assert_eq!((asked, earlier), (Asked::Addresses(ips(&[1])), true));
    assert_eq!(bench.next(120), Some(120));
}

#[test]
fn while_dns_works_an_unconfirmed_address_is_not_served_for_long() {
    let mut bench = Bench::new(DnsSettings::default());
    bench.ask(0);
    bench.look_up(0, answer(&[1], 10));
    assert_eq!(bench.ask(299), Asked::Addresses(ips(&[1])));
    assert_eq!(bench.ask(300), Asked::Wait, "as after a suspended machine");
    bench.look_up(300, answer(&[2], 10));
    assert_eq!(bench.ask(300), Asked::Addresses(ips(&[2])));
}

#[test]
fn while_dns_fails_the_last_answer_is_served_for_an_hour() {
    for failure in [servfail(), nxdomain(60), Err(DnsFailure::TimedOut(secs(3)))] {
        let mut bench = Bench::new(DnsSettings::default());
        bench.ask(0);
        bench.look_up(0, answer(&[1, 2], 10));
        for at in (8..3610).step_by(7) {
            bench.look_up(at, failure.clone());
            assert_eq!(bench.ask(at), Asked::Addresses(ips(&[1, 2])), "{failure:?} at {at}");
        }
        assert_eq!(bench.show(3609).state, DnsState::Stale);
        assert_eq!(bench.show(3610).state, DnsState::Failed);
        assert!(!matches!(bench.ask(3610), Asked::Addresses(_)));
    }
}

#[test]
fn a_name_that_never_was_is_denied_for_a_bounded_time_and_not_looked_up_unasked() {
    // (TTL of the denial, seconds it is believed)
    for (ttl, held) in [(0, 1), (3, 3), (3600, 5)] {
        let mut bench = Bench::new(DnsSettings::default());
        bench.ask(0);
        bench.look_up(0, nxdomain(ttl));
        assert!(matches!(bench.ask(held - 1), Asked::Failed(DnsFailure::NameUnknown { .. })));
        assert_eq!(bench.next(100), None);
        assert_eq!(bench.ask(held), Asked::Wait);
        assert!(bench.look_up(held, answer(&[1], 10)));
    }
}

#[test]
fn a_configured_name_is_tried_until_it_is_there_ever_more_slowly() {
    let mut bench = Bench::new(DnsSettings::default());
    assert!(bench.table.prime(NAME));
    let (mut at, mut waits) = (0, Vec::new());
    for _ in 0..7 {
        assert!(bench.look_up(at, servfail()));
        let next = bench.next(at).unwrap();
        waits.push(next - at);
        at = next;
    }
    assert_eq!(waits, [30; 7], "idle: nobody asked");
    bench.ask(at);
    bench.look_up(at, answer(&[1], 0));
    for _ in 0..7 {
        bench.ask(at);
        at = bench.next(at).unwrap();
        assert!(bench.look_up(at, servfail()));
    }
    bench.ask(at);
    assert_eq!(bench.next(at), Some(at + 30));
}

#[test]
fn rotated_addresses_are_remembered_though_only_the_last_answer_is_served() {
    let mut bench = Bench::new(DnsSettings::default());
    bench.ask(0);
    bench.look_up(0, answer(&[1, 2], 0));
    bench.ask(5);
    bench.look_up(5, answer(&[2, 3, 2], 0));
    assert_eq!(bench.ask(6), Asked::Addresses(ips(&[2, 3])));
    let shown = |bench: &Bench, at| -> Vec<(IpAddr, bool)> {
        let addresses = bench.show(at).addresses;
        addresses.iter().map(|address| (address.address, address.current)).collect()
    };
    let all = ips(&[2, 3, 1]);
    assert_eq!(shown(&bench, 6), [(all[0], true), (all[1], true), (all[2], false)]);
    bench.look_up(300, answer(&[3], 0));
    assert_eq!(shown(&bench, 300), [(all[1], true), (all[0], false)]);
}

#[test]
fn names_in_use_keep_their_place_and_configured_ones_always() {
    let settings = DnsSettings { names_max: 3, ..DnsSettings::default() };
    let mut bench = Bench::new(settings);
    let now = bench.start;
    assert!(bench.table.prime("configured"));
    for (at, name) in ["a", "b"].into_iter().enumerate() {
        assert_eq!(bench.table.ask(name, now + secs(at as u64)).0, Asked::Wait);
    }
    let full = Asked::Failed(DnsFailure::TooManyNames);
    assert_eq!(bench.table.ask("c", now).0, full, "somebody waits for each");
    bench.look_up(2, answer(&[1], 60));
    assert_eq!(bench.table.ask("c", now + secs(3)).0, Asked::Wait);
    let names: Vec<_> = bench.table.names(now).into_iter().map(|known| known.name).collect();
    assert_eq!(names, ["b", "c", "configured"]);
    bench.look_up(2 + 3600, answer(&[1], 60));
    bench.look_up(2 * 3600, answer(&[1], 60));
    assert_eq!(bench.table.names(now).len(), 1, "forgotten when nobody asks");
}

#[test]
fn who_asks_while_a_lookup_is_in_flight_causes_no_other() {
    for result in [answer(&[1], 60), servfail(), nxdomain(60)] {
        let mut bench = Bench::new(DnsSettings::default());
        assert_eq!(bench.ask(0), Asked::Wait);
        assert_eq!(bench.table.take_due(bench.start, 32), [NAME]);
        assert_eq!(bench.ask(1), Asked::Wait);
        bench.table.finish(NAME, result, secs(2), bench.start + secs(2));
        assert_ne!(bench.ask(2), Asked::Wait);
        assert!(bench.table.take_due(bench.start + secs(2), 32).is_empty());
    }
}

#[test]
fn a_lost_lookup_is_started_again() {
    let mut bench = Bench::new(DnsSettings::default());
    bench.ask(0);
    assert_eq!(bench.table.take_due(bench.start, 32), [NAME]);
    assert_eq!(bench.table.take_due(bench.start + secs(5), 32), [""; 0]);
    assert_eq!(bench.table.take_due(bench.start + secs(6), 32), [NAME]);
}

#[derive(Debug, Clone)]
enum Event {
    Pass(u64),
    Ask(u8),
    Take(usize),
    Finish(u8, Result<Answer, DnsFailure>),
}

fn event() -> impl Strategy<Value = Event> {
    let results = prop_oneof![
        (proptest::collection::vec(1_u8..6, 0..4), 0_u64..7200)
            .prop_map(|(last, ttl)| answer(&last, ttl)),
        Just(servfail()),
        (0_u64..7200).prop_map(nxdomain),
        Just(Err(DnsFailure::TimedOut(secs(3)))),
    ];
    prop_oneof![
        (0_u64..2_000_000).prop_map(Event::Pass),
        (0_u64..2_000).prop_map(Event::Pass),
        (0_u8..6).prop_map(Event::Ask),
        (0_usize..4).prop_map(Event::Take),
        (0_u8..6, results).prop_map(|(name, result)| Event::Finish(name, result)),
    ]
}

/// What is remembered of the events, to check answers against.
#[derive(Default)]
struct Model {
    in_flight: BTreeMap<String, Instant>,
    good: BTreeMap<String, (Instant, Vec<IpAddr>)>,
}

proptest! {
    /// Whatever happens: the bound on names holds, no name is looked up twice at once, what is
    /// served is the last good answer and never older than the bounds allow, and whoever has to
    /// wait waits for something that is due or in flight.
    #[test]
    fn the_table_keeps_its_bounds(events in proptest::collection::vec(event(), 1..200)) {
        let settings = DnsSettings { names_max: 4, ..DnsSettings::default() };
        let oldest = settings.address_kept + settings.stale_max;
        let lost_after = settings.lookup_timeout * 2;
        let mut table = Table::new(settings);
        let mut model = Model::default();
        let mut now = Instant::now();
        for event in events {
            match event {
                Event::Pass(millis) => now += Duration::from_millis(millis),
                Event::Ask(name) => {
                    let name = format!("n{name}");
                    match table.ask(&name, now).0 {
                        Asked::Addresses(served) => {
                            let (at, addresses) = &model.good[&name];
                            prop_assert_eq!(&served, addresses);
                            prop_assert!(now < *at + oldest);
                        }
                        Asked::Wait => prop_assert!(
                            table.next_due(now).is_some_and(|due| due <= now + lost_after)
                        ),
                        Asked::Failed(_) => {}
                    }
                }
                Event::Take(limit) => {
                    let taken = table.take_due(now, limit);
                    prop_assert!(taken.len() <= limit);
                    for name in taken {
                        let before = model.in_flight.insert(name, now);
                        prop_assert!(before.is_none_or(|before| now >= before + lost_after));
                    }
                }
                Event::Finish(name, result) => {
                    let name = format!("n{name}");
                    if model.in_flight.remove(&name).is_none() {
                        continue;
                    }
                    if let Ok(Answer { addresses, .. }) = &result
                        && !addresses.is_empty()
                    {
                        let mut once = Vec::new();
                        for address in addresses {
                            if !once.contains(address) {
                                once.push(*address);
                            }
                        }
                        model.good.insert(name.clone(), (now, once));
                    }
                    table.finish(&name, result, Duration::ZERO, now);
                    let shown = table.names(now).into_iter().find(|known| known.name == name);
                    let shown = shown.expect("a name in flight is not dropped");
                    let wait = shown.refresh_in.map(|wait| wait.as_secs());
                    prop_assert!(wait.is_none_or(|wait| (1..=240).contains(&wait)));
                }
            }
            let names = table.names(now);
            prop_assert!(names.len() <= 4);
            for known in names {
                prop_assert!(known.addresses.len() <= ADDRESSES_MAX);
            }
        }
    }
}
