//! One host of several loopback addresses, each an origin of its own with its own speed, latency,
//! jitter and faults.
//!
//! All listen on one port, as the machines behind one name do; the name's addresses are told by a
//! [`FakeDns`]. An address may be dead, by nothing listening there, or swallow connections.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::black_hole::BlackHole;
use crate::content::Content;
use crate::contents::Contents;
use crate::dns::FakeDns;
use crate::fault::{Fault, FaultRule};
use crate::http_origin::{HttpOptions, HttpOrigin};
use crate::serve::LinkOptions;

/// Tries to find a port that is free on all addresses.
const PORTS_MAX: usize = 16;

/// How a [`Site`] starts.
#[derive(Clone, Debug)]
pub struct SiteOptions {
    /// Its name.
    pub host: String,
    /// The addresses that its name has, from 127.0.0.1 on.
    pub named: u8,
    /// How many of them, from the first on, are served.
    pub served: u8,
    /// The speed of each; where it listens is the site's to choose. Each has its own jitter.
    pub link: LinkOptions,
    /// Whether a connection serves one request, so that each request chooses its address.
    pub close: bool,
}

impl Default for SiteOptions {
    fn default() -> Self {
        Self {
            host: "origin.test".to_owned(),
            named: 8,
            served: 8,
            link: LinkOptions::default(),
            close: false,
        }
    }
}

/// What is at one address.
#[derive(Debug)]
enum Machine {
    Origin(HttpOrigin),
    Hole(#[expect(dead_code, reason = "it swallows connections while it lives")] BlackHole),
    Nothing,
}

/// A running site; dropping it stops all its origins.
#[derive(Debug)]
pub struct Site {
    options: SiteOptions,
    port: u16,
    dns: FakeDns,
    contents: Contents,
    machines: Vec<Machine>,
}

impl Site {
    /// Starts a site.
    ///
    /// # Panics
    /// If no port is free on all its addresses.
    #[expect(clippy::panic, reason = "a fixture that cannot be had ends its test")]
    pub async fn start(options: SiteOptions) -> Self {
        let contents = Contents::new();
        let mut last = None;
        for _ in 0..PORTS_MAX {
            match Self::at_some_port(&options, &contents).await {
                Ok((port, machines)) => {
                    let dns = FakeDns::new();
                    dns.set(&options.host, (1..=options.named).map(Self::ip));
                    return Self { options, port, dns, contents, machines };
                }
                Err(error) => last = Some(error),
            }
        }
        panic!("no port is free on all loopback addresses: {last:?}");
    }

    async fn at_some_port(
        options: &SiteOptions,
        contents: &Contents,
    ) -> io::Result<(u16, Vec<Machine>)> {
        let (mut port, mut machines) = (0, Vec::new());
        for last in 1..=options.named {
            if last > options.served {
                machines.push(Machine::Nothing);
                continue;
            }
            let origin = origin(options, options.link.clone(), contents, last, port).await?;
            port = origin.address().port();
            machines.push(Machine::Origin(origin));
        }
        Ok((port, machines))
    }

    /// The `last`th address, from 1.
    pub fn ip(last: u8) -> IpAddr {
        Ipv4Addr::new(127, 0, 0, last).into()
    }

    /// The `last`th address and the port.
    pub fn address(&self, last: u8) -> SocketAddr {
        SocketAddr::new(Self::ip(last), self.port)
    }

    /// The URL of a key under the site's name.
    pub fn url(&self, key: &str) -> String {
        format!("http://{}:{}/{key}", self.options.host, self.port)
    }

    /// Tells the name's addresses.
    pub fn dns(&self) -> &FakeDns {
        &self.dns
    }

    /// Stores an object at all addresses.
    pub fn put(&self, key: &str, content: impl Into<Content>) {
        self.contents.put("", key, content);
    }

    /// The origin at the `last`th address.
    ///
    /// # Panics
    /// If there is none.
    #[expect(clippy::panic, reason = "a fixture that is not there ends its test")]
    pub fn origin(&self, last: u8) -> &HttpOrigin {
        match self.machines.get(usize::from(last) - 1) {
            Some(Machine::Origin(origin)) => origin,
            other => panic!("no origin at {}: {other:?}", Self::ip(last)),
        }
    }

    /// The origins there are.
    pub fn origins(&self) -> impl Iterator<Item = &HttpOrigin> {
        self.machines.iter().filter_map(|machine| match machine {
            Machine::Origin(origin) => Some(origin),
            Machine::Hole(_) | Machine::Nothing => None,
        })
    }

    /// Starts an origin at the `last`th address, in place of what was there, with a speed of its
    /// own.
    ///
    /// # Panics
    /// If the port is taken there.
    pub async fn serve(&mut self, last: u8, link: LinkOptions) -> &HttpOrigin {
        self.stop(last);
        let started = origin(&self.options, link, &self.contents, last, self.port).await;
        let started = started.expect("the site's port is its own");
        *self.machine(last) = Machine::Origin(started);
        self.origin(last)
    }

    /// Makes the `last`th address swallow connections.
    ///
    /// # Panics
    /// If the port is taken there.
    pub fn swallow(&mut self, last: u8) {
        self.stop(last);
        let hole = BlackHole::open_at(self.address(last)).expect("the site's port is its own");
        *self.machine(last) = Machine::Hole(hole);
    }

    /// Makes the `last`th address refuse connections; those that are open end.
    pub fn stop(&mut self, last: u8) {
        *self.machine(last) = Machine::Nothing;
    }

    fn machine(&mut self, last: u8) -> &mut Machine {
        &mut self.machines[usize::from(last) - 1]
    }
}

async fn origin(
    options: &SiteOptions,
    link: LinkOptions,
    contents: &Contents,
    last: u8,
    port: u16,
) -> io::Result<HttpOrigin> {
    let listen = SocketAddr::new(Site::ip(last), port);
    // Addresses with one seed would all be late at once.
    let seed = link.seed ^ (u64::from(last) << 56);
    let link = LinkOptions { listen, seed, ..link };
    let contents = contents.clone();
    let origin = HttpOrigin::try_start(HttpOptions { link, contents, ..HttpOptions::default() });
    let origin = origin.await?;
    if options.close {
        let close = Fault::SetHeader("connection", "close".to_owned());
        origin.fault(FaultRule::new("*", close));
    }
    Ok(origin)
}
