//! Addresses this machine has no route to are left out, as getaddrinfo puts them last (RFC 6724).
//!
//! A machine without IPv6 would otherwise spend half of its dials of a dual-stack origin on
//! nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// The port does not matter: nothing is sent.
const DISCARD: u16 = 9;

/// The addresses of the families that `routed` says can be reached; all, if none can.
pub(crate) fn usable(all: Vec<IpAddr>, routed: impl Fn(IpAddr) -> bool) -> Vec<IpAddr> {
    let family = |v6| all.iter().copied().find(|address| address.is_ipv6() == v6);
    let (Some(v4), Some(v6)) = (family(false), family(true)) else { return all };
    match (routed(v4), routed(v6)) {
        (true, false) => all.into_iter().filter(IpAddr::is_ipv4).collect(),
        (false, true) => all.into_iter().filter(IpAddr::is_ipv6).collect(),
        (true, true) | (false, false) => all,
    }
}

/// Whether the kernel knows a way: connecting a datagram socket looks for one and sends nothing.
pub(crate) fn has_route(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0))
        .and_then(|socket| socket.connect(SocketAddr::new(address, DISCARD)))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_without_a_route_is_left_out_unless_nothing_remains() {
        let [v4, v6]: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let of = |all: &[IpAddr], routed: fn(IpAddr) -> bool| usable(all.to_vec(), routed);
        assert_eq!(of(&[v4, v6], |address| address.is_ipv4()), [v4]);
        assert_eq!(of(&[v4, v6], |address| address.is_ipv6()), [v6]);
        assert_eq!(of(&[v4, v6], |_| true), [v4, v6]);
        assert_eq!(of(&[v4, v6], |_| false), [v4, v6]);
        assert_eq!(of(&[v6], |_| false), [v6]);
        assert!(has_route(Ipv4Addr::LOCALHOST.into()));
    }
}
