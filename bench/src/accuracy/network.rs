//! Stalls between the daemon and its origin: names, connections, packets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use forebay_testkit::{DnsServer, RawOptions};

use super::ground::{PREFIX, Scene, Stall, load, skipped};
use super::isolation::{Rules, lay_over, refused};
use crate::Outcome;
use crate::node::Node;
use crate::report::Row;

/// How late the name server answers.
const NAME_LATE: Duration = Duration::from_millis(800);
const DNS_PORT: u16 = 53;
/// A name is asked for once: every load has its own.
const NAME_SECONDS: u32 = 3600;
/// Of all packets from the origin, in per cent.
const LOST_PERCENT: u32 = 15;
/// Packets are lost from this length on, in bytes: those of large bodies. An answer of one packet
/// that is lost comes late without a sign of why.
const LOST_LENGTH_MIN: u32 = 20_000;

pub(super) async fn dns(scene: &Scene) -> Outcome<Row> {
    const NAME: &str = "dns";
    if let Some(why) = refused() {
        return Ok(skipped(NAME, why));
    }
    let here = IpAddr::from(Ipv4Addr::LOCALHOST);
    let server = DnsServer::start_at(SocketAddr::from((here, DNS_PORT))).await?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), format!("nameserver {here}\n"))?;
    lay_over(file.path(), "/etc/resolv.conf")?;
    let node = Node::start(scene.daemon(&[])?).await?;
    let stall = Stall {
        name: NAME,
        what: format!("loads from a name that is not known yet; it resolves {NAME_LATE:?} late"),
        causes: &["dns"],
    };
    let mut names = 0;
    stall
        .compare(scene, async |stalled| {
            names += 1;
            let name = format!("run-{names}.test");
            server.addresses(&name, [here], NAME_SECONDS);
            server.delay(&name, if stalled { NAME_LATE } else { Duration::ZERO });
            let origin = scene.origin(RawOptions::default())?;
            let uri = format!("http://{name}:{}/{PREFIX}", origin.address().port());
            let seen = load(scene, node.client(), &uri).await?;
            node.forget(&uri).await?;
            Ok(if stalled { seen.stalled_for(NAME_LATE.as_secs_f64()) } else { seen })
        })
        .await
}

pub(super) async fn connect(scene: &Scene) -> Outcome<Row> {
    const NAME: &str = "tcp_connect";
    if let Some(why) = Rules::refused() {
        return Ok(skipped(NAME, why));
    }
    let node = Node::start(scene.daemon(&[])?).await?;
    let stall = Stall {
        name: NAME,
        what:
            "loads over new connections; the first SYN is lost, and every fourth after it, and is \
               sent again a second later"
                .to_owned(),
        causes: &["tcp_connect"],
    };
    stall
        .compare(scene, async |stalled| {
            let origin = scene.origin(RawOptions::default())?;
            let port = origin.address().port();
            let syn = format!("tcp dport {port} tcp flags & (syn | ack) == syn");
            let rule = format!("{syn} numgen inc mod 4 0 drop");
            let rules = stalled.then(|| Rules::apply(&rule)).transpose()?;
            let uri = super::ground::uri(&origin);
            let seen = load(scene, node.client(), &uri).await?;
            drop(rules);
            node.forget(&uri).await?;
            Ok(seen)
        })
        .await
}

pub(super) async fn loss(scene: &Scene) -> Outcome<Row> {
    const NAME: &str = "tcp_retransmit";
    if let Some(why) = Rules::refused() {
        return Ok(skipped(NAME, why));
    }
    let node = Node::start(scene.daemon(&[])?).await?;
    let origin = scene.origin(RawOptions::default())?;
    let (uri, port) = (super::ground::uri(&origin), origin.address().port());
    let stall = Stall {
        name: NAME,
        what: format!("loads of which {LOST_PERCENT} % of the packets with bodies are lost"),
        causes: &["tcp_retransmit"],
    };
    stall
        .compare(scene, async |stalled| {
            let bodies = format!("tcp sport {port} meta length > {LOST_LENGTH_MIN}");
            let rule = format!("{bodies} numgen random mod 100 < {LOST_PERCENT} drop");
            let rules = stalled.then(|| Rules::apply(&rule)).transpose()?;
            let seen = load(scene, node.client(), &uri).await?;
            drop(rules);
            node.forget(&uri).await?;
            Ok(seen)
        })
        .await
}
