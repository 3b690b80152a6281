//! Tests over what is exposed: the table's names, and the exposition of a recorder that was fed with
//! everything there is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use metrics::Unit;

use super::labels::Label;
use super::{Fallback, TABLE, Type, builder, describe};

/// What Prometheus keeps for itself.
const RESERVED: [&str; 2] = ["le", "quantile"];

#[test]
fn names_follow_the_conventions_and_are_unique() {
    let names: BTreeSet<_> = TABLE.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), TABLE.len());
    for row in TABLE {
        let name = row.name;
        assert!(name.starts_with("forebay_"), "{name}");
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        assert!(name.bytes().all(plain), "{name}");
        assert_eq!(name.ends_with("_total"), row.kind == Type::Counter, "{name}");
        let body = name.trim_end_matches("_total");
        assert_eq!(body.ends_with("_seconds"), row.unit == Unit::Seconds, "{name}");
        assert_eq!(body.ends_with("_bytes"), row.unit == Unit::Bytes, "{name}");
        for suffix in ["_count", "_sum", "_bucket", "_milliseconds", "_ms", "_kib", "_percent"] {
            assert!(!body.ends_with(suffix), "{name}");
        }
        assert!(!row.meaning.is_empty(), "{name}");
        let keys: BTreeSet<_> = row.labels.iter().map(|label| label.key).collect();
        assert_eq!(keys.len(), row.labels.len(), "{name}");
        for key in keys {
            assert!(!["key", "uri", "uid", "pid", "ip"].contains(&key), "{name}");
            assert!(!RESERVED.contains(&key), "{name}");
        }
    }
}

/// A sample's name and labels.
type Series = (String, BTreeMap<String, String>);

fn series(line: &str) -> Series {
    let (series, _value) = line.rsplit_once(' ').unwrap();
    let Some((name, labels)) = series.split_once('{') else {
        return (series.to_owned(), BTreeMap::new());
    };
    // No value that is exposed here has a comma or a quote.
    let labels = labels.trim_end_matches('}').split(',').map(|label| {
        let (key, value) = label.split_once('=').unwrap();
        (key.to_owned(), value.trim_matches('"').to_owned())
    });
    (name.to_owned(), labels.collect())
}

/// Every metric, with every value of every label.
fn feed() {
    for row in TABLE {
        // One label at a time: all combinations are too many.
        let of = |label: &Label, n: usize| {
            let values = values(label);
            metrics::Label::from_static_parts(label.key, values[n.min(values.len() - 1)])
        };
        let most = row.labels.iter().map(|label| values(label).len()).max().unwrap_or(1);
        for n in 0..most {
            let labels: Vec<_> = row.labels.iter().map(|label| of(label, n)).collect();
            match row.kind {
                Type::Counter => metrics::counter!(row.name, labels.iter()).increment(1),
                Type::Gauge => metrics::gauge!(row.name, labels.iter()).set(1.0),
                Type::Histogram => metrics::histogram!(row.name, labels.iter()).record(1.0),
            }
        }
    }
}

fn values(label: &Label) -> Vec<&'static str> {
    match label.values {
        super::labels::Values::Of(values) => values.to_vec(),
        super::labels::Values::And { fixed: [], .. } => vec!["0"],
        super::labels::Values::And { fixed, .. } => fixed.to_vec(),
    }
}

#[test]
fn what_is_exposed_passes_the_rules_of_promtool() {
    let recorder = builder().unwrap().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        describe();
        feed();
    });
    let shown = handle.render();
    for row in TABLE {
        let kind = match row.kind {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Histogram => "histogram",
        };
        assert!(shown.contains(&format!("# TYPE {} {kind}\n", row.name)), "{}", row.name);
        let help = format!("# HELP {} {}", row.name, row.meaning);
        assert!(shown.contains(&help), "{}", row.name);
    }
    for (name, labels) in shown.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).map(series)
    {
        let parts = ["_bucket", "_sum", "_count"].map(|part| name.strip_suffix(part));
        let is_part = |row: &&super::Row| {
            row.kind == Type::Histogram && parts.contains(&Some(row.name)) || row.name == name
        };
        assert!(TABLE.iter().any(|row| is_part(&row)), "{name}");
        let bucket = labels.contains_key("le");
        assert_eq!(bucket, name.ends_with("_bucket"), "{name}: not a histogram");
        assert!(!labels.contains_key("quantile"), "{name} is a summary");
    }
}

/// Everything that is counted with labels, once.
fn count_everything() {
    use forebay_proto::{Failure, Reason};
    for reason in Reason::ALL {
        super::failed(&Failure::new(*reason, "x"));
        super::request_ended("Load", reason.kind().as_str(), 1.0);
        let meter = super::LoadMeter::default();
        let timeline = crate::timeline::Timeline::new(tokio::time::Instant::now());
        for stage in crate::timeline::Stage::ALL {
            drop(timeline.begin(stage, crate::timeline::Kind::Service));
        }
        meter.ended(Err(&Failure::new(*reason, "x")), &timeline);
    }
    super::endpoints(&[super::origin::tests::endpoint("s3://b", "s3://b/prefix")]);
    super::dns_lookups(&forebay_origin::DnsCounters::default());
    super::addresses(&[]);
    super::set_of(super::DEGRADED, "what", "dns", 1.0);
    super::unplaced("no_node");
    let fallbacks = [
        Fallback::StagedCopy,
        Fallback::ThreadEngine("sysctl"),
        Fallback::BufferedIo,
        Fallback::FarSlot,
        Fallback::OtherSource,
        Fallback::Origin(crate::report::Why::LeftAlone),
        Fallback::Origin(crate::report::Why::ReadFailed),
        Fallback::Origin(crate::report::Why::BadExtent),
    ];
    fallbacks.into_iter().for_each(super::fell_back);
    super::decoded(1, 1, Duration::from_secs(1));
    ["calls", "bytes"].into_iter().for_each(|of| super::runtime_lag(of, Duration::ZERO));
    super::looked("glance", Duration::ZERO);
    drop(super::ram());
    let tier = super::TierMeters::new();
    tier.hit();
    tier.quarantined(crate::nvme::BadExtent::Header.label());
    for why in crate::report::Why::ALL {
        super::chose(crate::report::Tier::Origin, why);
    }
}

#[test]
fn no_label_has_a_value_outside_its_set() {
    let recorder = builder().unwrap().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, count_everything);
    let shown = handle.render();
    let mut seen = 0;
    for (name, labels) in shown.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).map(series)
    {
        let parts = ["_bucket", "_sum", "_count"].map(|part| name.strip_suffix(part));
        let row = TABLE.iter().find(|row| row.name == name || parts.contains(&Some(row.name)));
        let row = row.unwrap_or_else(|| panic!("{name} is not in the table"));
        let keys: BTreeSet<&str> =
            labels.keys().map(String::as_str).filter(|key| *key != "le").collect();
        assert_eq!(keys, row.labels.iter().map(|label| label.key).collect(), "{name}");
        for label in row.labels {
            let value = &labels[label.key];
            assert!(label.allows(value), "{name}: {}={value:?}", label.key);
        }
        seen += 1;
    }
    assert!(seen > 500, "{seen}");
}
